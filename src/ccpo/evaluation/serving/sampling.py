"""The sampling that a request asks for, and the team with this sampling."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...team.topology import Topology
from ..team import Team
from .errors import RequestError


@dataclass(frozen=True)
class Sampling:
    """
    The sampling that a request asks for. `None` means the team's own setting.

    Args:
        temperature (`float`, *optional*), top_p (`float`, *optional*): The settings of all roles.
        seed (`int`, *optional*): The seed of all roles.
        max_tokens (`int`, *optional*): The longest text that answers, in tokens. Other roles keep their limits.
        max_completion_tokens (`int`, *optional*): The most tokens of all roles' texts together.
        stop (`tuple[str, ...]`): The stop strings, which end a text that answers.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether the request must be answered alone, because its samples must not depend on a batch."""
        return self.seed is not None and self.temperature != 0


def sample_as(team: Team, sampling: Sampling) -> Team:
    """
    Make a team with the sampling that a request asks for.

    Args:
        team ([`Team`]): The team, whose generators have a method `sampled`.
        sampling ([`Sampling`]): The sampling.

    Raises:
        [`RequestError`]: If a generator does not support it, or if no tokens are left for the answer.
    """
    common = {name: value for name in ("temperature", "top_p") if (value := getattr(sampling, name)) is not None}
    limit = _limit(team, sampling)
    if not common and limit is None and sampling.seed is None and not sampling.stop:
        return team
    made: dict[tuple, Callable] = {}
    generate = {}
    for role, generator in team.generate.items():
        own: dict[str, Any] = dict(common)
        if role in team.topology.answer_roles:
            own |= {} if limit is None else {"max_new_tokens": min(limit, _own_limit(role, generator))}
            own |= {"stop": list(sampling.stop)} if sampling.stop and _stops_itself(generator) else {}
        own |= {} if sampling.seed is None else {"seed": (sampling.seed + 7919 * len(made)) % 2**32}
        key = id(generator), role in team.topology.answer_roles
        if own and key not in made:
            if not hasattr(generator, "sampled"):
                name = next(iter(own))
                message = f"`{name}` cannot be set for this team: the role {role!r} has a generator of its own."
                raise RequestError(message, param="max_tokens" if name == "max_new_tokens" else name)
            made[key] = generator.sampled(**own)
        generate[role] = made.get(key, generator)
    return Team(team.topology, generate, team.outcome)


def _stops_itself(generator: Any) -> bool:
    """Whether a generator takes stop strings. One that can be watched token by token does not need them."""
    return "stop" in inspect.signature(getattr(generator, "sampled", lambda: None)).parameters


def _own_limit(role: str, generator: Any) -> int:
    if (limit := getattr(generator, "max_new_tokens", None)) is None:
        message = f"A limit cannot be set for this team: the role {role!r} has a generator of its own."
        raise RequestError(message, param="max_tokens")
    return limit


def _limit(team: Team, sampling: Sampling) -> int | None:
    """The most tokens that a text which answers may have by the request."""
    limits = [] if sampling.max_tokens is None else [sampling.max_tokens]
    if sampling.max_completion_tokens is not None:
        topology: Topology = team.topology
        others = [role for role in topology.role_names if role not in topology.answer_roles]
        spent = sum(_own_limit(role, team.generate[role]) for role in others)
        room = (sampling.max_completion_tokens - spent) // len(topology.answer_roles)
        if room < 1:
            least = spent + len(topology.answer_roles)
            raise RequestError(
                f"`max_completion_tokens={sampling.max_completion_tokens}` leaves no room for the answer, "
                f"because the other roles, {others}, may write {spent} tokens. Give at least {least}, or use "
                "`max_tokens`, which limits only the answer.",
                param="max_completion_tokens",
            )
        limits.append(room)
    return min(limits, default=None)
