"""What a team is compared with: the team as it is, without a role, with another's text, and a single policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..team.prompts import Prompt
from .team import Team, TeamAnswer

JOINT, SINGLE, VOTES = "joint", "single", "self_consistency"
Draw = Callable[[list[Prompt], list[TeamAnswer] | None], list[TeamAnswer]]


@dataclass(frozen=True)
class Arm:
    """
    One way to answer.

    Args:
        name (`str`): what the tables call it.
        draw (`Callable`): prompts, and what the joint team said about them -> answers.
        teams (`tuple[Team, ...]`): whose generators it draws with.
        reads_joint (`bool`, defaults to `False`): whether it reads what the joint team said.
    """

    name: str
    draw: Draw = field(repr=False)
    teams: tuple[Team, ...] = field(default=(), repr=False)
    reads_joint: bool = False


def build_arms(
    team: Team,
    names: Sequence[str] | None = None,
    *,
    single: Team | None = None,
    swaps: Mapping[str, Callable] | None = None,
) -> dict[str, Arm]:
    """
    The arms of a team, by name, the joint one first.

    - `joint`: the team.
    - `without_<role>`: the team without the role; who reads it gets its `prompt_without`.
    - `ablated_<role>`: the role says nothing, and who reads it gets its usual prompt: the ablation of the CCPO paper.
    - `swapped_<role>`: the role says what it said about the next problem of the batch; later roles speak anew.
    - `replaced_<role>`: another generator speaks in the role.
    - `single`: one policy on the dataset's own prompts.
    - `self_consistency`: the vote of as many of its answers as have the joint team's tokens.

    Args:
        team ([`Team`]): the team.
        names (`Sequence[str]`, *optional*): which arms, by default all that can be. `joint` is always there.
        single ([`Team`], *optional*): of one role, for `single` and `self_consistency`.
        swaps (`Mapping[str, Callable]`, *optional*): role -> a generator, for `replaced_<role>`.

    Raises:
        `ValueError`: an arm that cannot be, with those that can.
    """
    topology = team.topology
    first_level = [role for role in topology.role_names if role not in topology.answer_roles]
    arms = [Arm(JOINT, lambda prompts, _: team.answer(prompts), (team,))]
    for role in topology.role_names:
        if topology.is_chain and topology.removable(role):
            rest = Team(topology.reduced(role), team.generate, team.outcome)
            arms.append(Arm(f"without_{role}", lambda prompts, _, rest=rest: rest.answer(prompts), (rest,)))
    for role in first_level:
        arms.append(Arm(f"ablated_{role}", lambda prompts, _, role=role: _ablate(team, role, prompts), (team,)))
        arms.append(
            Arm(f"swapped_{role}", lambda prompts, said, role=role: _swap(team, role, prompts, said), (team,), True)
        )
    for role, generate in (swaps or {}).items():
        if role not in topology.role_names:
            raise ValueError(f"`swaps` names {role!r}; the roles are {list(topology.role_names)}.")
        other = Team(topology, {**team.generate, role: generate}, team.outcome)
        arms.append(Arm(f"replaced_{role}", lambda prompts, _, other=other: other.answer(prompts), (other,)))
    if single is not None:
        if len(single.topology.roles) != 1:
            raise ValueError(f"`single` must be a team of one role, got {list(single.topology.role_names)}.")
        arms.append(Arm(SINGLE, lambda prompts, _: single.answer(prompts), (single,)))
        arms.append(Arm(VOTES, lambda prompts, _: single.answer(prompts), (single,)))
    known = {arm.name: arm for arm in arms}
    wanted = list(known) if names is None else list(dict.fromkeys([JOINT, *names]))
    if unknown := [name for name in wanted if name not in known]:
        hint = " `single` needs a policy." if single is None and {*unknown} & {SINGLE, VOTES} else ""
        raise ValueError(f"`arms` has {unknown}; this team has {list(known)}.{hint}")
    if VOTES in wanted and SINGLE not in wanted:  # its tokens say how many votes
        wanted.insert(wanted.index(VOTES), SINGLE)
    return {name: known[name] for name in wanted}


def _ablate(team: Team, role: str, prompts: list[Prompt]) -> list[TeamAnswer]:
    return team.answer(prompts, given={role: [""] * len(prompts)})


def _swap(team: Team, role: str, prompts: list[Prompt], said: list[TeamAnswer] | None) -> list[TeamAnswer]:
    """Roles before it stay as they spoke; a problem's samples get those of the next other problem."""
    before = team.topology.role_names[: team.topology.role_names.index(role)]
    given = {name: [answer.texts[name] for answer in said] for name in before}
    places = {repr(prompt): [] for prompt in prompts}
    for i, prompt in enumerate(prompts):
        places[repr(prompt)].append(i)
    groups = list(places.values())
    if len(groups) < 2:
        raise ValueError(
            f"`swapped_{role}` needs at least two problems in a batch, got {len(groups)}. Raise `batch_size`, or "
            "leave the arm out."
        )
    other = {}
    for group, following in zip(groups, [*groups[1:], groups[0]], strict=True):
        other |= {i: following[n % len(following)] for n, i in enumerate(group)}
    given[role] = [said[other[i]].texts[role] for i in range(len(prompts))]
    return team.answer(prompts, given=given)
