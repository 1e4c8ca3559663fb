r"""
The teams that come with the package, and [`make_topology`], which reads a team from YAML.

A *role* is a part in the team. An *agent* is the model that plays it; one agent may play several roles. Roles speak in
a fixed order. Each role may read texts of earlier ones. A rule turns what the judged roles wrote into one answer.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from .base import Topology
from .prompts import CRITIQUE_PROMPT, REWRITE_PROMPT, SOLO_PROMPT, SOLVER_PROMPT, THINKER_PROMPT
from .role import Role, as_list, read_role


@dataclass(frozen=True)
class Solo(Topology):
    """
    A single model without a team, trained as TRL's GRPO does it.

    Args:
        prompt (`str`, *optional*):
            What the model is asked: a text with `{problem}`. By default the dataset's prompts, unchanged.
    """

    roles: tuple[Role, ...] = field(init=False, default=())
    answer: str = field(init=False, default="last")
    answer_roles: tuple[str, ...] = field(init=False, default=())
    prompt: str | None = None

    kind: ClassVar[str] = "solo"

    def __post_init__(self):
        self._set(roles=(Role("solver", prompt=self.prompt),))
        super().__post_init__()

    @property
    def is_solo(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **({} if self.prompt is None else {"prompt": self.prompt})}


@dataclass(frozen=True)
class ThinkSolve(Topology):
    r"""
    A team of two: the Thinker writes a plan, and the Solver reads it and writes the answer.

    To see what the plan is worth, the Solver can also answer alone, without it.

    Args:
        thinker_prompt (`str`): what the Thinker is asked, a text with `{problem}`.
        solver_prompt (`str`): what the Solver is asked, a text with `{problem}` and `{thought}`, the Thinker's plan.
        solo_prompt (`str`): what the Solver is asked when it answers alone, a text with `{problem}`.
    """

    roles: tuple[Role, ...] = field(init=False, default=())
    answer: str = field(init=False, default="last")
    answer_roles: tuple[str, ...] = field(init=False, default=())
    thinker_prompt: str = THINKER_PROMPT
    solver_prompt: str = SOLVER_PROMPT
    solo_prompt: str = SOLO_PROMPT

    kind: ClassVar[str] = "think_solve"
    _labels: ClassVar[dict[str, str]] = {
        "thinker": "thought",
        "solver": "joint_answer",
        "without_thinker": "solo_answer",
        "rollout/thinker": "rollout/thought",
        "rollout/solver": "rollout/joint",
        "rollout/without_thinker": "rollout/solo",
        "credit/without_thinker_accuracy": "credit/solo_accuracy",
        "credit/thinker/help_rate": "credit/help_rate",
        "credit/thinker/hurt_rate": "credit/hurt_rate",
    }

    def __post_init__(self):
        for name, wanted in (
            ("thinker_prompt", ("{problem}",)),
            ("solver_prompt", ("{problem}", "{thought}")),
            ("solo_prompt", ("{problem}",)),
        ):
            _check_fields(name, getattr(self, name), wanted, ("{thought}",))
        solver_prompt = self.solver_prompt.replace("{thought}", "{thinker}")
        without = {"thinker": self.solo_prompt}
        solver = Role("solver", reads=("thinker",), prompt=solver_prompt, prompt_without=without)
        self._set(roles=(Role("thinker", prompt=self.thinker_prompt), solver))
        super().__post_init__()

    @property
    def prompts(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("thinker_prompt", "solver_prompt", "solo_prompt")}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.prompts}


@dataclass(frozen=True)
class Chain(Topology):
    """
    A team in which each role reads the one before it; the last role's text is the team's answer.

    Args:
        roles (`list[str | Role]`): the roles, or only their names. A role with `reads` of its own keeps them.
    """

    answer: str = field(init=False, default="last")
    answer_roles: tuple[str, ...] = field(init=False, default=())

    kind: ClassVar[str] = "chain"

    def __post_init__(self):
        roles = [Role(role) if isinstance(role, str) else read_role(role) for role in as_list("roles", self.roles)]
        for i, role in enumerate(roles):
            if i > 0 and not role.reads:
                roles[i] = replace(role, reads=(roles[i - 1].name,))
        self._set(roles=tuple(roles))
        super().__post_init__()


@dataclass(frozen=True)
class Vote(Topology):
    """
    A team of voters, each of which answers alone; the team's answer is the one that most of them give.

    The roles are named `voter_1`, `voter_2` and so on.

    Args:
        num_voters (`int`): how many voters, at least 1.
        prompt (`str`): what each voter is asked, a text with `{problem}`.
        agent (`str`, *optional*): one agent (model) that plays all voters. By default each voter has its own.
    """

    roles: tuple[Role, ...] = field(init=False, default=())
    answer: str = field(init=False, default="vote")
    answer_roles: tuple[str, ...] = field(init=False, default=())
    num_voters: int = 3
    prompt: str = SOLO_PROMPT
    agent: str | None = None

    kind: ClassVar[str] = "vote"

    def __post_init__(self):
        number = self.num_voters
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"`num_voters` must be an integer of at least 1, got {number!r}. Set it to 1 or more.")
        states = {"judged": True, "states_answer": True}
        names = [f"voter_{i}" for i in range(1, number + 1)]
        self._set(roles=tuple(Role(name, agent=self.agent, prompt=self.prompt, **states) for name in names))
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        agent = {} if self.agent is None else {"agent": self.agent}
        return {"kind": self.kind, "num_voters": self.num_voters, "prompt": self.prompt, **agent}


@dataclass(frozen=True)
class AnswerCritiqueRewrite(Topology):
    r"""
    The team of DACR: two agents `a` and `b` answer, criticise each other's answer, and rewrite their own.

    The team's outcome is the mean of the outcomes of the two rewrites
    ([arXiv 2603.21574](https://huggingface.co/papers/2603.21574)).

    Roles: `answer_a`, `answer_b`; `critique_a`, which reads `answer_b`, and `critique_b`, which reads `answer_a`;
    `rewrite_a`, which reads `answer_a` and `critique_b`, and `rewrite_b`.

    Args:
        answer_prompt (`str`): for the answers, a text with `{problem}`.
        critique_prompt (`str`): for the critiques, a text with `{problem}` and the partner's `{answer}`.
        rewrite_prompt (`str`):
            For the rewrites, a text with `{problem}`, the agent's own `{answer}`, and the partner's `{critique}`.
    """

    roles: tuple[Role, ...] = field(init=False, default=())
    answer: str = field(init=False, default="mean")
    answer_roles: tuple[str, ...] = field(init=False, default=())
    answer_prompt: str = SOLO_PROMPT
    critique_prompt: str = CRITIQUE_PROMPT
    rewrite_prompt: str = REWRITE_PROMPT

    kind: ClassVar[str] = "answer_critique_rewrite"

    def __post_init__(self):
        for name, wanted in (
            ("answer_prompt", ("{problem}",)),
            ("critique_prompt", ("{problem}", "{answer}")),
            ("rewrite_prompt", ("{problem}", "{answer}", "{critique}")),
        ):
            _check_fields(name, getattr(self, name), wanted, ("{answer}", "{critique}"))
        pairs, roles = (("a", "b"), ("b", "a")), []
        for own, _ in pairs:
            states = {"judged": True, "states_answer": True}
            roles.append(Role(f"answer_{own}", agent=own, prompt=self.answer_prompt, **states))
        for own, other in pairs:
            prompt = self.critique_prompt.replace("{answer}", f"{{answer_{other}}}")
            roles.append(Role(f"critique_{own}", reads=(f"answer_{other}",), agent=own, prompt=prompt))
        for own, other in pairs:
            prompt = self.rewrite_prompt.replace("{answer}", f"{{answer_{own}}}")
            prompt = prompt.replace("{critique}", f"{{critique_{other}}}")
            reads = (f"answer_{own}", f"critique_{other}")
            roles.append(Role(f"rewrite_{own}", reads=reads, agent=own, prompt=prompt, judged=True))
        self._set(roles=tuple(roles), answer_roles=("rewrite_a", "rewrite_b"))
        super().__post_init__()

    @property
    def prompts(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("answer_prompt", "critique_prompt", "rewrite_prompt")}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.prompts}


def _check_fields(name: str, template: Any, wanted: tuple[str, ...], special: tuple[str, ...]) -> None:
    """
    Check the placeholders in the prompt of a team that comes with the package.

    Raises:
        `ValueError`: if one of the `wanted` is missing, or if another of the `special` is there.
    """
    for field_name in wanted:
        if not isinstance(template, str) or field_name not in template:
            raise ValueError(f"`{name}` must contain {field_name}, got {template!r}. Add it to the text.")
    for field_name in special:
        if field_name in template and field_name not in wanted:
            raise ValueError(
                f"`{name}` cannot contain {field_name}, because that text is not written yet when this prompt "
                f"is used, got {template!r}. Remove it from the text."
            )


_KINDS = {cls.kind: cls for cls in (Topology, Solo, ThinkSolve, Chain, Vote, AnswerCritiqueRewrite)}


def make_topology(given: Any) -> Topology:
    """
    Make a team from plain values, as they stand in YAML and in `team.json`.

    Args:
        given (`Topology`, `str` or `Mapping`):
            The name of a kind: `"think_solve"`, `"solo"`, `"vote"` or `"answer_critique_rewrite"`. Or a mapping with
            `kind` and the arguments of that kind; without `kind` it is `"team"`: `{"roles": [{"name": …}, …]}`. A key
            `run`, as in `team.json`, is ignored.

    Returns:
        [`Topology`]

    Raises:
        `ValueError`: if the kind or an argument is unknown, or if the team is impossible.
    """
    if isinstance(given, Topology):
        return given
    values = {"kind": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        raise ValueError(f"`topology` must be the name of a team or a mapping, got {given!r}. Write {{roles: [...]}}.")
    kind, values = values.get("kind", "team"), {k: v for k, v in values.items() if k not in ("kind", "run")}
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"`topology` must be one of the kinds {list(_KINDS)}, got {kind!r}. Name one of these, or "
            "describe a team of your own: {roles: [...]}."
        )
    cls = _KINDS[kind]
    known = list(inspect.signature(cls).parameters)
    if unknown := [name for name in values if name not in known]:
        raise ValueError(
            f"`topology` of the kind {kind!r} has the unknown keys {unknown}. It may have {known}. Remove the others."
        )
    if kind in ("team", "chain") and "roles" not in values:
        raise ValueError(
            f"`topology` of the kind {kind!r} needs `roles`, got {dict(values)!r}. Write {{roles: [...]}}."
        )
    return cls(**values)
