"""The teams that the embedded task knows, and their demonstrations."""

import random
from dataclasses import replace
from typing import Any

from datasets import Dataset

from ccpo.team.answers import DEFAULT_READER
from ccpo.team.role import Role
from ccpo.team.rollout import build_role_prompt
from ccpo.team.topology import Topology, make_topology

from .chain import FAMILY as CHAIN
from .dacr import FAMILY as ANSWER_CRITIQUE_REWRITE
from .family import Family, part_name
from .problems import problem_text, problems
from .think_solve import FAMILY as THINK_SOLVE
from .vote import FAMILY as VOTE
from .vote import SOLO_FAMILY

FAMILIES = {family.kind: family for family in (THINK_SOLVE, SOLO_FAMILY, VOTE, ANSWER_CRITIQUE_REWRITE, CHAIN)}


def topology(given: Any = "think_solve") -> Topology:
    """
    A team with this task's short prompts.

    Args:
        given (`Topology`, `str` or `Mapping`, defaults to `"think_solve"`):
            What [`~ccpo.team.topology.make_topology`] takes: `"think_solve"`, `"solo"`, `"vote"`,
            `"answer_critique_rewrite"` or `"chain"`, here of planner, adder and solver; or a mapping of the kind's
            arguments, `{"kind": "vote", "num_voters": 3}`. An argument that is given stays; a topology, and a team of
            another kind, is taken as it is.

    Returns:
        [`~ccpo.team.topology.Topology`]

    Raises:
        `ValueError`: what [`~ccpo.team.topology.make_topology`] raises.
    """
    values = {"kind": given} if isinstance(given, str) else given
    kind = values.get("kind") if isinstance(values, dict) else None
    if isinstance(kind, str) and kind in FAMILIES:
        return make_topology({**FAMILIES[kind].arguments, **values})
    return make_topology(given)


def family_of(team: Topology) -> Family:
    """
    The family of a team, which says how its roles are demonstrated.

    Raises:
        `ValueError`: a team whose roles the task cannot play.
    """
    family = FAMILIES.get(team.kind)
    known = topology(team.kind) if family else None
    if known is None or any(part_name(name) not in family.parts for name in team.role_names):
        teams = {kind: list(topology(kind).role_names) for kind in FAMILIES}
        raise ValueError(
            f"The embedded task has no examples to learn from for a team of the kind {team.kind!r} with the "
            f"roles {list(team.role_names)}. It has some for {teams}. Choose one of these teams, or name "
            "models."
        )
    reads = {part_name(role.name): tuple(map(part_name, role.reads)) for role in known.roles}
    for role in team.roles:
        if tuple(map(part_name, role.reads)) != reads[part_name(role.name)]:
            raise ValueError(
                f"`reads={list(role.reads)}` of role {role.name!r}: the embedded task has examples only for a "
                f"role that reads {list(reads[part_name(role.name)])}. Change `reads`, or name models."
            )
    return family


def _before(team: Topology, role: str) -> tuple[Role, ...]:
    """The roles whose texts the role depends on, in their order."""
    needed = {role}
    for other in reversed(team.roles):
        if other.name in needed:
            needed.update(other.reads)
    return tuple(other for other in team.roles if other.name in needed - {role})


def demonstrations(role: str, size: int, seed: int = 0, team: Topology | None = None) -> Dataset:
    """
    Demonstrations on training problems, in the shares stated at the top of the module of the team's kind.

    The roles before it speak as they are demonstrated, and a role sees of their texts what it would see in the team:
    what the leak guard leaves. What it reads it follows, right or wrong.

    Args:
        role (`str`): the role's name, e.g. `"thinker"`.
        size (`int`): number of demonstrations.
        seed (`int`, defaults to 0): seed of the draws.
        team ([`~ccpo.team.topology.Topology`], *optional*): of which the role is one. Defaults to Think-Solve.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt` and `completion`; the trainer adds the end-of-sequence token.

    Raises:
        `ValueError`: no role of the team, or a team that the task cannot play.
    """
    team = topology() if team is None else team
    if role not in team.role_names:
        raise ValueError(f"`role` must be one of {team.role_names}, got {role!r}.")
    family, earlier = family_of(team), _before(team, role)
    rng = random.Random(f"{role}-{seed}")
    training, rows = problems("train"), []

    def write(speaker: Role, problem: tuple[int, int, int], views: dict[str, str]) -> str:
        return family.parts[part_name(speaker.name)].write(rng, *problem, *map(views.get, team[speaker.name].reads))

    for _ in range(size):
        problem, views, speaker = rng.choice(training), {}, team[role]
        for other in earlier:
            text = write(other, problem, views)
            views[other.name] = DEFAULT_READER.strip(text) if team.guarded(other.name) else text
        if speaker.prompt_without and rng.random() < family.without_share:
            removed = rng.choice(list(speaker.prompt_without)) if len(speaker.reads) > 1 else speaker.reads[0]
            reads = tuple(name for name in speaker.reads if name != removed)
            speaker = replace(speaker, reads=reads, prompt=speaker.prompt_without[removed])
            views.pop(removed)
        read = {name: views[name] for name in speaker.reads}
        prompt = build_role_prompt(team, speaker, problem_text(*problem), read)
        rows.append({"prompt": prompt, "completion": write(speaker, problem, views)})
    return Dataset.from_list(rows)
