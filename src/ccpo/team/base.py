"""A team as data: its roles in order, who reads whom, and the rule that gives one answer."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from .prompts import default_prompt
from .role import Role, as_list, check_names, check_role, check_used, read_answer_roles, read_role


@dataclass(frozen=True)
class Topology:
    """
    A team: its roles in the order in which they speak, and the rule that gives the team's answer.

    Args:
        roles (`tuple[Role, ...]`): the roles. A mapping of a role's fields is turned into a [`Role`].
        answer (`str`, defaults to `"last"`):
            What counts as the team's answer. `"last"`: the text of the last role. `"vote"`: the answer that most of
            the `answer_roles` give. `"mean"`: each of the `answer_roles` answers, and the team's outcome is the mean
            of theirs.
        answer_roles (`tuple[str, ...]`, *optional*):
            Names of the roles that give the answer. By default the last role; with `"vote"` and `"mean"`, all judged
            roles.

    Raises:
        `ValueError`: if a field has a value that no team can have. The message says which and what to do.
    """

    roles: tuple[Role, ...]
    answer: str = "last"
    answer_roles: tuple[str, ...] = ()

    kind: ClassVar[str] = "team"
    _labels: ClassVar[dict[str, str]] = {}

    def __post_init__(self):
        roles = tuple(read_role(role) for role in as_list("roles", self.roles))
        self._set(roles=roles)
        check_names(self)
        self._set(answer_roles=read_answer_roles(self))
        for place, role in enumerate(self.roles):
            check_role(self, place, role)
        self._set(roles=roles if self.is_solo else _with_prompts(self))
        check_used(self)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    # ---- Questions about the team ----

    @cached_property
    def role_names(self) -> tuple[str, ...]:
        """Names of the roles, in the order in which they speak."""
        return tuple(role.name for role in self.roles)

    def __getitem__(self, name: str) -> Role:
        return self.roles[self.role_names.index(name)]

    def agent_of(self, name: str) -> str:
        """The agent that plays a role."""
        return self[name].agent or name

    @cached_property
    def agents(self) -> tuple[str, ...]:
        """The agents, in the order in which they first speak."""
        return tuple(dict.fromkeys(map(self.agent_of, self.role_names)))

    def roles_of(self, agent: str) -> tuple[str, ...]:
        """Names of the roles that an agent plays."""
        return tuple(name for name in self.role_names if self.agent_of(name) == agent)

    @cached_property
    def levels(self) -> dict[str, int]:
        """For each role, the longest chain of roles that must speak before it. Roles of one level speak together."""
        levels: dict[str, int] = {}
        for role in self.roles:
            levels[role.name] = max((levels[name] + 1 for name in role.reads), default=0)
        return levels

    @cached_property
    def judged(self) -> tuple[str, ...]:
        """Names of the roles whose own text is judged right or wrong."""
        return tuple(role.name for role in self.roles if role.judged or role.name in self.answer_roles)

    @property
    def is_chain(self) -> bool:
        """Whether only the last role's text is judged: it is the team's answer, and all others lead to it."""
        return self.answer == "last" and self.judged == self.role_names[-1:]

    @property
    def is_solo(self) -> bool:
        """Whether this is a single model without a team, as in TRL's GRPO."""
        return False

    def branches(self, num_solves: int = 1) -> tuple[int, ...]:
        """How many texts of each role continue one text of the role before it; `num_solves` replaces the last."""
        branches = tuple(role.branches for role in self.roles)
        if num_solves == 1:
            return branches
        if branches[-1] != 1 or len(branches) == 1:
            what = "has no role before it" if len(branches) == 1 else f"has `branches={branches[-1]}`"
            raise ValueError(
                f"`num_solves={num_solves}` sets the `branches` of the last role, but {self.role_names[-1]!r} "
                f"{what}. Set only one of the two fields."
            )
        if self.answer == "vote":
            raise ValueError(
                f"`num_solves={num_solves}` does not work with `answer='vote'`, where each voter speaks once. "
                "Set `num_solves` to 1."
            )
        return (*branches[:-1], num_solves)

    def guarded(self, name: str) -> bool:
        """Whether the leak guard removes a stated answer from the role's text before others read it."""
        return not self[name].states_answer and any(name in role.reads for role in self.roles)

    def answers(self, name: str) -> bool:
        """Whether the role is to state an answer. If not, its prompt does not ask for one."""
        return self[name].states_answer or name in self.judged

    def without(self, removed: str) -> tuple[Role, ...]:
        """
        The roles that still speak if one role is left out, with the prompts that they get then.

        Roles that read the left-out one are asked with their `prompt_without`. Roles that nobody reads any more do
        not speak.

        Args:
            removed (`str`): name of the role to leave out.

        Returns:
            `tuple[Role, ...]`: the other roles, in their order.

        Raises:
            `ValueError`: if there is no such role, if it gives the team's answer, or if a role that reads it has no
                prompt for this case.
        """
        if removed not in self.role_names:
            raise ValueError(f"`removed` must be one of the roles {list(self.role_names)}, got {removed!r}.")
        if removed in self.answer_roles:
            raise ValueError(
                f"The role {removed!r} cannot be left out, because it gives the team's answer: `answer_roles` "
                f"is {list(self.answer_roles)}. Remove it from the `removals` of the reward function's "
                "`evidence`."
            )
        kept = []
        for role in self.roles:
            if role.name == removed:
                continue
            if removed in role.reads:
                if removed not in role.prompt_without:
                    raise ValueError(
                        f"Role {role.name!r} reads {removed!r} and has no prompt for when {removed!r} is left "
                        f"out. Set `prompt_without={{{removed!r}: ...}}` of role {role.name!r}."
                    )
                reads = tuple(name for name in role.reads if name != removed)
                role = replace(role, reads=reads, prompt=role.prompt_without[removed])
            kept.append(role)
        while True:
            read = {name for role in kept for name in role.reads}
            idle = [role for role in kept if role.name not in read and role.name not in self.judged]
            if not idle:
                return tuple(kept)
            kept = [role for role in kept if role not in idle]

    def reduced(self, removed: str) -> "Topology":
        """
        A new team that lacks one role, see [`without`]. In it every role speaks once.

        Prompts that mention a role which is not read any more are dropped. Default prompts are made anew.
        """
        kept = []
        for role in self.without(removed):
            gone = [f"{{{name}}}" for name in self.role_names if name not in role.reads]
            known = {
                name: text
                for name, text in role.prompt_without.items()
                if name in role.reads and not any(field in text for field in gone)
            }
            by_default = role.prompt == default_prompt(role.name, role.reads, self.answers(role.name))
            prompt = None if by_default else role.prompt  # which then comes with those without each role
            role = replace(role, agent=self.agent_of(role.name), prompt=prompt, prompt_without=known, branches=1)
            kept.append(role)
        return Topology(tuple(kept), self.answer, self.answer_roles)

    def removable(self, name: str) -> bool:
        """Whether the team can answer without the role."""
        readers = (role for role in self.roles if name in role.reads)
        return name not in self.answer_roles and all(name in role.prompt_without for role in readers)

    def label(self, name: str) -> str:
        """The name under which a metric or column is logged. Some teams have other names for some."""
        return self._labels.get(name, name)

    @property
    def prompts(self) -> dict[str, str]:
        """All prompt templates by name. To use the trained models, ask them with these."""
        prompts = {}
        for role in self.roles:
            prompts |= {f"{role.name}_prompt": role.prompt} if role.prompt is not None else {}
            prompts |= {f"{role.name}_prompt_without_{name}": text for name, text in role.prompt_without.items()}
        return prompts

    def to_dict(self) -> dict[str, Any]:
        """The team as plain values, for YAML or JSON; [`make_topology`] turns them into the team again."""
        roles = []
        for role in self.roles:
            values = {
                "name": role.name,
                "reads": list(role.reads),
                "agent": role.agent,
                "prompt": role.prompt,
                "prompt_without": dict(role.prompt_without),
                "branches": role.branches,
                "judged": role.judged,
                "states_answer": role.states_answer,
            }
            default = Role(role.name)
            roles.append(
                {k: v for k, v in values.items() if k == "name" or (v or None) != (getattr(default, k) or None)}
            )
        team = {"kind": self.kind, "roles": roles}
        return team | (
            {} if self.answer == "last" else {"answer": self.answer, "answer_roles": list(self.answer_roles)}
        )


def _with_prompts(topology: Topology) -> tuple[Role, ...]:
    """The roles; those without a prompt get the default one."""
    roles = []
    for role in topology.roles:
        if role.prompt is None:
            answers = topology.answers(role.name)
            without = {
                removed: default_prompt(role.name, tuple(n for n in role.reads if n != removed), answers)
                for removed in role.reads
            }
            prompt = default_prompt(role.name, role.reads, answers)
            role = replace(role, prompt=prompt, prompt_without={**without, **role.prompt_without})
        roles.append(role)
    return tuple(roles)
