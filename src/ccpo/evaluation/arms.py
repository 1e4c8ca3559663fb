"""
Arms: the ways to answer that an evaluation compares.

They are the team as it is, the team without a role or with another text in its place, and a single model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..generation import Completion, TransformersGenerator
from ..team.prompts import Prompt
from ..team.role import Role
from ..team.topology import Topology
from .team import Team, TeamAnswer

JOINT, SINGLE, VOTES = "joint", "single", "self_consistency"


@dataclass(frozen=True)
class Said:
    """
    What the joint team wrote, sample by sample.

    Args:
        own (`list[TeamAnswer]`): Its answers to the same problems.
        other (`list[TeamAnswer]`): Its answers to another problem for each; empty if they are not needed.
    """

    own: list[TeamAnswer]
    other: list[TeamAnswer]


@dataclass(frozen=True)
class Arm:
    """
    A way to answer.

    Args:
        name (`str`): Its name in the tables.
        team ([`Team`]): The team that answers.
        draw (`Callable`): Takes prompts and what the joint team wrote ([`Said`] or `None`). Returns answers.
        reads (`str`, *optional*): Which part of [`Said`] it needs, `"own"` or `"other"`. By default none.
    """

    name: str
    team: Team = field(repr=False)
    draw: Callable[[list[Prompt], Said | None], list[TeamAnswer]] = field(repr=False)
    reads: str | None = None


def build_arms(
    team: Team,
    names: Sequence[str] | None = None,
    *,
    single: Team | None = None,
    swaps: Mapping[str, Callable] | None = None,
) -> dict[str, Arm]:
    """
    Build the arms of a team.

    - `joint`: the team as it is.
    - `without_<role>`: the team without the role. Roles that read it are asked with `prompt_without`. In a team that
      votes, the other votes are counted again, and nothing is generated.
    - `ablated_<role>`: the role says nothing, and roles that read it are asked as usual. This is the ablation of the
      CCPO paper.
    - `swapped_<role>`: the role says what it said about another problem, and later roles write anew.
    - `replaced_<role>`: another generator plays the role.
    - `single`: one model alone.
    - `self_consistency`: a majority vote of several answers of that model, as many as have the joint team's tokens.

    Args:
        team ([`Team`]): The team.
        names (`Sequence[str]`, *optional*): The arms to build, besides `joint`. By default all that are possible.
        single ([`Team`], *optional*): A team of one role, which `single` and `self_consistency` need.
        swaps (`Mapping[str, Callable]`, *optional*): Maps roles to other generators, which `replaced_<role>` needs.

    Returns:
        `dict[str, Arm]`: Maps each name to its arm. `joint` comes first.

    Raises:
        `ValueError`: If an arm is not possible. The message names those that are.
    """
    topology = team.topology
    arms = [Arm(JOINT, team, lambda prompts, _: team.answer(prompts))]
    for role in topology.role_names:
        if topology.answer == "vote" and _can_leave(topology, role):
            arms.append(_without_voter(team, role))
        elif topology.removable(role) and not topology.is_solo:
            arms.append(_plain_arm(f"without_{role}", Team(topology.reduced(role), team.generate, team.outcome)))
    for role in topology.role_names:
        if any(role in other.reads for other in topology.roles):
            arms.append(Arm(f"ablated_{role}", team, lambda prompts, _, role=role: _ablate(team, role, prompts)))
            swap = Arm(
                f"swapped_{role}", team, lambda prompts, said, role=role: _swap(team, role, prompts, said), "other"
            )
            arms.append(swap)
    for role, generate in (swaps or {}).items():
        if role not in topology.role_names:
            raise ValueError(
                f"`swaps` names {role!r}, which is not a role of the team. Its roles are {list(topology.role_names)}."
            )
        arms.append(_plain_arm(f"replaced_{role}", Team(topology, {**team.generate, role: generate}, team.outcome)))
    if single is not None:
        if len(single.topology.roles) != 1:
            raise ValueError(f"`single` must be a team of one role, got {list(single.topology.role_names)}.")
        single = Team(single.topology, single.generate, team.outcome)  # all arms are judged by the same function
        arms += [_plain_arm(SINGLE, single), _plain_arm(VOTES, single)]
    known = {arm.name: arm for arm in arms}
    wanted = list(known) if names is None else [JOINT, *names]
    if unknown := [name for name in wanted if name not in known]:
        hint = (
            f" `{SINGLE}` and `{VOTES}` need one model to compare the team with. Give it as `single`."
            if single is None
            else ""
        )
        raise ValueError(
            f"`arms` (the ways in which the team is asked) has {unknown}, which this team does not have. It has "
            f"{list(known)}.{hint}"
        )
    if VOTES in wanted:  # the number of votes depends on the tokens of `single`
        wanted.append(SINGLE)
    return {name: arm for name, arm in known.items() if name in wanted}


def alone(topology: Topology) -> Topology:
    """
    The team of one role that answers alone, with a prompt of the given team.

    It is the first role that answers and reads nobody, as in a vote. If there is none, it is the role that answers,
    with all other roles removed.

    Args:
        topology ([`Topology`]): The team.

    Raises:
        `ValueError`: If the team has no prompt for a role that answers alone.
    """
    if topology.is_solo:
        return topology
    first = next((role for role in topology.roles if role.name in topology.judged and not role.reads), None)
    found = _reduced_to_one(topology) if first is None else Topology((first,))
    if found is None:
        raise ValueError(
            f"The team {list(topology.role_names)} does not say how one of its roles answers alone: "
            f"{topology.answer_roles[-1]!r} has no prompt without the texts that it reads. Give `single` a "
            "team with a prompt of its own, Team.from_models(model, Solo(prompt=...)), or set "
            "`prompt_without`. On the command line, give `--single_prompt`."
        )
    return found


def single_policy(
    topology: Topology, sampling: Mapping[str, Mapping[str, Any]], prompt: str | None = None
) -> tuple[Topology, dict[str, Any]]:
    """
    A team of one role for comparison with a team, and how it is sampled.

    It may write as many tokens as all roles of the team together.

    Args:
        topology ([`Topology`]): The team.
        sampling (`Mapping`): Maps each role to the arguments of its generator.
        prompt (`str`, *optional*): The prompt template of the role that answers. By default that of [`alone`].

    Returns:
        `tuple[Topology, dict]`: The team of one role, and the arguments of its generator.

    Raises:
        `ValueError`: If the prompt lacks the problem, or if it is not given and [`alone`] finds none.
    """
    name = topology.answer_roles[-1]
    given = Role(name, agent=topology.agent_of(name), prompt=prompt)
    one = alone(topology) if prompt is None else Topology((given,))
    lengths = [sampling[role].get("max_new_tokens", TransformersGenerator.max_new_tokens) for role in sampling]
    return one, {**sampling[one.role_names[0]], "max_new_tokens": sum(lengths)}


def _reduced_to_one(topology: Topology) -> Topology | None:
    if len(topology.roles) == 1:
        return topology
    smaller = (topology.reduced(role) for role in topology.role_names if topology.removable(role))
    return next((found for rest in smaller if (found := _reduced_to_one(rest)) is not None), None)


def _plain_arm(name: str, team: Team) -> Arm:
    return Arm(name, team, lambda prompts, _: team.answer(prompts))


def _can_leave(topology: Topology, role: str) -> bool:
    """Whether a vote can be counted without this voter."""
    is_read = any(role in other.reads for other in topology.roles)
    return role in topology.answer_roles and len(topology.answer_roles) > 1 and not is_read


def _without_voter(team: Team, voter: str) -> Arm:
    roles = tuple(role for role in team.topology.roles if role.name != voter)
    voters = tuple(role for role in team.topology.answer_roles if role != voter)
    rest = Team(Topology(roles, "vote", voters), team.generate, team.outcome)

    def draw(prompts: list[Prompt], said: Said) -> list[TeamAnswer]:
        return rest.answer(prompts, {role.name: _of(role.name, said.own) for role in roles})

    return Arm(f"without_{voter}", rest, draw, "own")


def _of(role: str, said: Sequence[TeamAnswer]) -> list[Completion]:
    return [answer.completions[role] for answer in said]


def _ablate(team: Team, role: str, prompts: list[Prompt]) -> list[TeamAnswer]:
    return team.answer(prompts, {role: [Completion("", 0, False)] * len(prompts)})


def _swap(team: Team, role: str, prompts: list[Prompt], said: Said) -> list[TeamAnswer]:
    """Let a role say what it said about other problems. The texts of the roles before it are kept."""
    before = team.topology.role_names[: team.topology.role_names.index(role)]
    return team.answer(prompts, {**{name: _of(name, said.own) for name in before}, role: _of(role, said.other)})
