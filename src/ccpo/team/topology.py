"""Who speaks, in which order, and who reads whom: frozen data, and one method that runs it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from .prompts import SOLO_PROMPT, SOLVER_PROMPT, THINKER_PROMPT


@dataclass(frozen=True)
class Role:
    """
    A place in the topology.

    Args:
        name (`str`): e.g. `"thinker"`.
        reads (`tuple[str, ...]`): names of the earlier roles whose text it reads beside the problem.
    """

    name: str
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topology:
    """
    Roles in the order in which they speak; the last one's text is the team's answer.

    Args:
        roles (`tuple[Role, ...]`): the roles.
    """

    roles: tuple[Role, ...]

    @property
    def role_names(self) -> tuple[str, ...]:
        """Names of the roles, in the order in which they speak."""
        return tuple(role.name for role in self.roles)

    @property
    def prompts(self) -> dict[str, str]:
        """The templates by name: what must be known to use the trained roles as they were trained."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_prompt")}

    def run(self, speak: Callable[[Role, dict[str, Any]], Any]) -> dict[str, Any]:
        """
        One pass: every role speaks once, reading what its `reads` said.

        Args:
            speak (`Callable`):
                Called with the role and `{name: what that role said}`; its value is what the role says.

        Returns:
            `dict[str, Any]`: what each role said.
        """
        said: dict[str, Any] = {}
        for role in self.roles:
            said[role.name] = speak(role, {name: said[name] for name in role.reads})
        return said


@dataclass(frozen=True)
class ThinkSolve(Topology):
    r"""
    The Thinker writes a plan, the Solver reads it and writes the answer; the same Solver alone is the counterfactual.

    Args:
        thinker_prompt (`str`): template with `{problem}`.
        solver_prompt (`str`): template with `{problem}` and `{thought}`.
        solo_prompt (`str`): template with `{problem}`.
    """

    roles: tuple[Role, ...] = (Role("thinker"), Role("solver", reads=("thinker",)))
    thinker_prompt: str = THINKER_PROMPT
    solver_prompt: str = SOLVER_PROMPT
    solo_prompt: str = SOLO_PROMPT

    def __post_init__(self):
        for name, wanted in (
            ("thinker_prompt", ("{problem}",)),
            ("solver_prompt", ("{problem}", "{thought}")),
            ("solo_prompt", ("{problem}",)),
        ):
            prompt = getattr(self, name)
            for field in wanted:
                if not isinstance(prompt, str) or field not in prompt:
                    raise ValueError(f"`{name}` must contain {field}, got {prompt!r}.")
            if "{thought}" in prompt and "{thought}" not in wanted:
                raise ValueError(f"`{name}` cannot contain {{thought}}: there is none yet, got {prompt!r}.")


@dataclass(frozen=True)
class Solo(Topology):
    """The Solver alone, on the dataset's own prompts: stock GRPO."""

    roles: tuple[Role, ...] = (Role("solver"),)
