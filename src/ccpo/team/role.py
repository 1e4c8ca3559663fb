"""What a role is, and the checks that refuse impossible teams."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ANSWERS = ("last", "vote", "mean")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LONGEST = 64  # characters of a name, because files are named after it
# Names with another meaning in the completions table, in the timing of a step, in prompt templates, in a run's folder
# or in PEFT.
_TAKEN = (
    *("step", "prompt", "completion", "advantage", "image", "outcome", "rating", "verify", "update"),
    *("problem", "solution", "no_answer", "answer_role"),
    *("role", "transcript", "completions", "runs", "default", "ref", "base"),
)
# Columns and metrics that contain a role's name, so that two roles could end up with the same one.
_LOGGED = (
    *("{}", "without_{}", "eval_{}", "{}_prompt", "{}_outcome", "{}_credit", "{}_advantage"),
    *("{}_leaked", "{}_truncated", "{}_rating", "{}_shares", "{}_effect", "without_{}_outcome"),
)


@dataclass(frozen=True)
class Role:
    r"""
    One part in a team: it reads the problem and maybe texts of earlier roles, and writes a text.

    Args:
        name (`str`): its name, of letters, digits, `_` and `-`, e.g. `"thinker"`.
        reads (`tuple[str, ...]`, defaults to none): names of the earlier roles whose texts it reads.
        agent (`str`, *optional*):
            The agent that plays the role, which is the model that is trained. Roles with the same agent share a model.
            Defaults to the role's name: a model of its own.
        prompt (`str`, *optional*):
            What the role is asked: a text with `{problem}` and one `{name}` for each role in `reads`. Other braces,
            such as those of `\boxed{}`, stay as they are. By default a text that names the roles.
        prompt_without (`Mapping[str, str]`, *optional*):
            For each role in `reads`, the prompt to use if that role is left out. If `prompt` is the default, these
            have defaults, too.
        branches (`int`, defaults to 1): how many texts of this role continue one text of the role before it.
        judged (`bool`, defaults to `False`):
            Whether the role's own text is judged right or wrong. If the last role's text is the team's answer, it is
            judged in any case.
        states_answer (`bool`, defaults to `False`):
            Whether other roles may read an answer in this role's text. If `False`, the leak guard removes it.
    """

    name: str
    reads: tuple[str, ...] = ()
    agent: str | None = None
    prompt: str | None = None
    prompt_without: Mapping[str, str] = field(default_factory=dict, hash=False)
    branches: int = 1
    judged: bool = False
    states_answer: bool = False


def as_list(name: str, value: Any) -> list:
    """
    Turn a list or tuple into a list.

    Args:
        name (`str`): name of the field, for the message.
        value: its value.

    Raises:
        `ValueError`: if it is anything else, also a text, whose letters would be taken for names.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"`{name}` must be a list, got {value!r}. Write [...].")
    return list(value)


def read_role(role: Any) -> Role:
    """
    Turn a mapping of a role's fields into a [`Role`]; a role stays as it is.

    Raises:
        `ValueError`: if it is neither, has unknown keys or no `name`, or if `reads` is not a list.
    """
    if isinstance(role, Mapping):
        known = Role.__dataclass_fields__
        if unknown := [key for key in role if key not in known]:
            raise ValueError(
                f"A role in `roles` has the unknown keys {unknown}. The keys of a role are {list(known)}. Rename "
                "or remove the unknown ones."
            )
        if role.get("name") is None:
            raise ValueError(f"A role in `roles` has no `name`: {dict(role)!r}. Give it one.")
        role = Role(**{key: value for key, value in role.items() if value is not None})
    if not isinstance(role, Role):
        raise ValueError(
            f"Each item of `roles` must be a Role or a mapping of its fields, got {role!r}. Write Role({role!r})."
        )
    return replace(role, reads=tuple(as_list(f"reads` of `{role.name}", role.reads)))


def check_names(team) -> None:
    """
    Check that names of roles and agents can be used in templates, metrics, columns and folders without confusion.

    Args:
        team ([`Topology`]): the team.

    Raises:
        `ValueError`: if there are no roles; if a name has other characters, is too long or reserved; if two roles have
            the same name or would be logged under one; if two agents would share a folder; or if an agent has the name
            of another agent's role.
    """
    if not team.roles:
        raise ValueError("`roles` is empty, but a team needs at least one role. Add a role.")
    names = team.role_names
    for role in team.roles:
        for what, name in (("name", role.name), ("agent", role.agent)):
            if what == "agent" and name is None:
                continue
            if isinstance(name, str) and len(name) > _LONGEST:
                raise ValueError(
                    f"`{what}` of a role may have at most {_LONGEST} characters, because files are named "
                    f"after it. {name[:20]!r}… has {len(name)}. Choose a shorter name."
                )
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
                taken = f", and must not be one of the reserved words {', '.join(_TAKEN)}"
                raise ValueError(
                    f"`{what}` of a role must be a letter, followed by letters, digits, '_' or '-'{taken}, "
                    f"got {name!r}. Rename it."
                )
        if names.count(role.name) > 1:
            raise ValueError(f"`roles` has {names.count(role.name)} roles named {role.name!r}. Rename one of them.")
    logged: dict[str, str] = {}
    for name in names:
        for column in (form.format(name) for form in _LOGGED):
            if column in logged:
                raise ValueError(
                    f"`roles` has {logged[column]!r} and {name!r}, which would both be logged as {column!r}. "
                    "Rename one of them."
                )
            logged[column] = name
    folded = [agent.lower() for agent in team.agents]
    for agent in team.agents:
        if agent.startswith("checkpoint-"):
            raise ValueError(
                f"`agent` {agent!r} cannot start with 'checkpoint-': its folder would be taken for a checkpoint "
                "of the run. Rename it."
            )
        if folded.count(agent.lower()) > 1:
            raise ValueError(
                f"`agent` {agent!r} and another agent differ only in upper and lower case, but folders are named "
                "after them. Rename one of them."
            )
        if agent in names and team.roles_of(agent) != (agent,):
            raise ValueError(
                f"`agent={agent!r}` plays the roles {list(team.roles_of(agent))}, but its name is also the "
                "name of a role. An agent with the name of a role may play that role only. Rename the agent."
            )


class Derived(tuple):
    """Default `answer_roles`. They are computed again if `dataclasses.replace` changes the roles."""


def read_answer_roles(team) -> tuple[str, ...]:
    """
    Find the roles that give the team's answer: those given, or by default the last one or all judged ones.

    Args:
        team ([`Topology`]): the team.

    Returns:
        `tuple[str, ...]`: their names; for a vote, in the order in which they speak.

    Raises:
        `ValueError`: if the rule is unknown, if the roles do not fit it, or if a voter reads others, has several
            branches or gives no answer.
    """
    if team.answer not in ANSWERS:
        raise ValueError(f"`answer` must be one of {list(ANSWERS)}, got {team.answer!r}. Set one of these.")
    given = () if isinstance(team.answer_roles, Derived) else tuple(as_list("answer_roles", team.answer_roles))
    if team.answer == "last":
        if given not in ((), team.role_names[-1:]):
            raise ValueError(
                f"`answer_roles={list(given)}` does not work with `answer='last'`, where the last role gives "
                "the answer. Remove `answer_roles`, or set `answer` to 'vote' or 'mean'."
            )
        return Derived(team.role_names[-1:])
    given = given or Derived(role.name for role in team.roles if role.judged)
    if unknown := [name for name in given if name not in team.role_names]:
        raise ValueError(
            f"`answer_roles` names {unknown}, which are not roles of the team. Its roles are "
            f"{list(team.role_names)}. Name some of these."
        )
    if len(set(given)) < len(given):
        raise ValueError(f"`answer_roles={list(given)}` names a role twice. Name each role once.")
    if not given:
        raise ValueError(
            f"`answer={team.answer!r}` needs roles whose texts are judged. Set `judged` to true for some roles, "
            "or name them in `answer_roles`."
        )
    if team.answer == "vote":
        for role in team.roles:
            if role.branches != 1 or role.name not in given:
                raise ValueError(
                    "With `answer='vote'`, every role must be one of `answer_roles` and have `branches=1`. "
                    f"Role {role.name!r} has `branches={role.branches}`, and `answer_roles` is {list(given)}. "
                    "Change them, or use `answer='mean'`."
                )
            if role.reads:
                raise ValueError(
                    f"With `answer='vote'`, no voter may read another role, but role {role.name!r} has "
                    f"`reads={list(role.reads)}`. Remove its `reads`, or use `answer='mean'`."
                )
        return type(given)(team.role_names)
    return given


def check_role(team, place: int, role: Role) -> None:
    """
    Check the fields of one role, and that it reads only roles before it.

    Args:
        team ([`Topology`]): the team.
        place (`int`): the role's index in the order of speaking, from 0.
        role ([`Role`]): the role.

    Raises:
        `ValueError`: if one of `reads`, `branches`, the switches or the templates is impossible.
    """
    earlier = team.role_names[:place]
    where = f"of role {role.name!r}"
    for name in role.reads:
        if name not in earlier:
            what = "is not a role of the team" if name not in team.role_names else "does not speak before this role"
            raise ValueError(
                f"`reads={list(role.reads)}` {where}: {name!r} {what}. A role can read only the roles before "
                f"it in `roles`, here {list(earlier)}. Name some of these, or change the order of `roles`."
            )
    if len(set(role.reads)) < len(role.reads):
        raise ValueError(f"`reads={list(role.reads)}` {where} names a role twice. Name each role once.")
    number = isinstance(role.branches, int) and not isinstance(role.branches, bool)
    if not number or role.branches < 1:
        raise ValueError(
            f"`branches` {where} must be an integer of at least 1, got {role.branches!r}. Set it to 1 or more."
        )
    if place == 0 and role.branches != 1:
        raise ValueError(
            f"`branches={role.branches}` {where} must be 1, because the first role writes one text in each "
            "episode (one run of the team on one problem). To get more texts, raise `num_generations`, the "
            "episodes per prompt."
        )
    for name in ("judged", "states_answer"):
        if not isinstance(getattr(role, name), bool):
            raise ValueError(
                f"`{name}` {where} must be true or false, got {getattr(role, name)!r}. Set one of the two."
            )
    if not isinstance(role.prompt_without, Mapping):
        raise ValueError(
            f"`prompt_without` {where} must map names of roles to templates, got {role.prompt_without!r}. "
            "Write {role: ...}."
        )
    if strangers := [name for name in role.prompt_without if name not in role.reads]:
        raise ValueError(
            f"`prompt_without` {where} names {strangers}, which the role does not read. It reads "
            f"{list(role.reads)}. Add them to `reads`, or remove them from `prompt_without`."
        )
    if role.prompt is not None:
        _check_template(team, role, "prompt", role.prompt, role.reads)
    for removed, template in role.prompt_without.items():
        rest = tuple(name for name in role.reads if name != removed)
        _check_template(team, role, f"prompt_without[{removed!r}]", template, rest)


def _check_template(team, role: Role, name: str, template: Any, reads: tuple[str, ...]) -> None:
    for wanted in ("problem", *reads):
        if not isinstance(template, str) or f"{{{wanted}}}" not in template:
            raise ValueError(
                f"`{name}` of role {role.name!r} must contain {{{wanted}}}, got {template!r}. Write it there."
            )
    for other in team.role_names:
        if other not in reads and f"{{{other}}}" in template:
            raise ValueError(
                f"`{name}` of role {role.name!r} contains {{{other}}}, but the role does not read that role "
                f"here: {template!r}. Add the name to `reads`, or remove it from the text."
            )


def check_used(team) -> None:
    """
    Check that each role's text is read by another role or judged.

    Args:
        team ([`Topology`]): the team.

    Raises:
        `ValueError`: if nobody uses a role's text.
    """
    read = {name for role in team.roles for name in role.reads}
    for role in team.roles:
        if role.name not in read and role.name not in team.judged:
            raise ValueError(
                f"Role {role.name!r} writes a text that no role reads and that is not judged. Add it to the "
                "`reads` of a later role, set its `judged` to true, or remove the role."
            )
