"""The teams of the arithmetic task, and their demonstrations."""

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
    Make a team with this task's short prompts.

    Args:
        given (`Topology`, `str` or `Mapping`, defaults to `"think_solve"`):
            The team, in any form that [`~ccpo.team.topology.make_topology`] takes: `"think_solve"`, `"solo"`,
            `"vote"`, `"answer_critique_rewrite"` or `"chain"` (here of planner, adder and solver), or a mapping with
            arguments, such as `{"kind": "vote", "num_voters": 3}`. Arguments that are given are kept. A [`Topology`],
            and a team of another kind, is returned as it is.

    Returns:
        [`~ccpo.team.topology.Topology`]

    Raises:
        `ValueError`: As [`~ccpo.team.topology.make_topology`].
    """
    values = {"kind": given} if isinstance(given, str) else given
    kind = values.get("kind") if isinstance(values, dict) else None
    if isinstance(kind, str) and kind in FAMILIES:
        return make_topology({**FAMILIES[kind].arguments, **values})
    return make_topology(given)


def family_of(team: Topology) -> Family:
    """
    The family of a team, which says how demonstrations of its roles are written.

    Raises:
        `ValueError`: If the task has no demonstrations for the roles of the team.
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
    """The roles on whose texts this role depends, in their order."""
    needed = {role}
    for other in reversed(team.roles):
        if other.name in needed:
            needed.update(other.reads)
    return tuple(other for other in team.roles if other.name in needed - {role})


def demonstrations(role: str, size: int, seed: int = 0, team: Topology | None = None) -> Dataset:
    """
    Write demonstrations of a role on training problems.

    The shares of the kinds of demonstrations are at the top of the module of each kind of team. The texts of earlier
    roles are demonstrations, too. The role reads them as it would in the team, after the leak guard, and follows them,
    right or wrong.

    Args:
        role (`str`): The name of the role, e.g. `"thinker"`.
        size (`int`): The number of demonstrations.
        seed (`int`, defaults to 0): The seed of the random draws.
        team ([`~ccpo.team.topology.Topology`], *optional*): The team of the role. Defaults to Think-Solve.

    Returns:
        [`~datasets.Dataset`]: Has the columns `prompt` and `completion`, without end-of-sequence tokens, which the
        trainer adds.

    Raises:
        `ValueError`: If the team has no such role, or if the task has no demonstrations for the team.
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
