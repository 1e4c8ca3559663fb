"""How one request wants to be sampled, and the team that samples so."""

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
    What a request says of its sampling; `None` leaves it to the team.

    Args:
        temperature (`float`, *optional*), top_p (`float`, *optional*): of every role.
        seed (`int`, *optional*): of every role's samples.
        max_tokens (`int`, *optional*): of the text that answers; the other roles write as they do.
        max_completion_tokens (`int`, *optional*): of all roles' texts together, whatever each needs.
        stop (`tuple[str, ...]`): where the text that answers ends.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether what is drawn would depend on the other requests of a batch, and must not."""
        return self.seed is not None and self.temperature != 0


def sample_as(team: Team, sampling: Sampling) -> Team:
    """
    The team, sampled as a request wants it.

    Args:
        team ([`Team`]): whose generators have `sampled`.
        sampling ([`Sampling`]): the request's.

    Raises:
        [`RequestError`]: a generator that cannot be sampled so, or no room for the answer.
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
    """Whether a generator takes stop strings; one that can be watched token by token needs none."""
    return "stop" in inspect.signature(getattr(generator, "sampled", lambda: None)).parameters


def _own_limit(role: str, generator: Any) -> int:
    if (limit := getattr(generator, "max_new_tokens", None)) is None:
        message = f"A limit cannot be set for this team: the role {role!r} has a generator of its own."
        raise RequestError(message, param="max_tokens")
    return limit


def _limit(team: Team, sampling: Sampling) -> int | None:
    """Tokens that a text which answers may have by the request."""
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
