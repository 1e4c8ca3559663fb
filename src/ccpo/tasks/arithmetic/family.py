"""What a team needs on the embedded task, as data."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """
    What a role does, or several that do the same, such as the voters.

    Args:
        write (`Callable`):
            Writes a demonstration: takes the random state, `a`, `b`, `c` and for each role read its text as the role
            sees it, `None` where that role is removed.
        steps (`int`): optimizer steps of an agent's own warm start; and its weight among the agent's parts.
    """

    write: Callable[..., str]
    steps: int


@dataclass(frozen=True)
class Family:
    """
    A kind of team on the embedded task.

    Args:
        kind (`str`): the topology's.
        arguments (`Mapping[str, Any]`): of the topology, its short prompts among them.
        parts (`Mapping[str, Part]`): a role's name without the number or letter at its end -> what it does.
        words (`tuple[str, ...]`): words of its texts that are to be one token each, beside Think-Solve's.
        without_share (`float`, defaults to 0):
            Share of a reader's demonstrations in which it is asked without one of the roles that it reads.
        common_steps (`int`, defaults to 0): optimizer steps on all parts, before the agents' policies part.
    """

    kind: str
    arguments: Mapping[str, Any]
    parts: Mapping[str, Part]
    words: tuple[str, ...] = ()
    without_share: float = 0.0
    common_steps: int = 0


def part_name(role: str) -> str:
    """`voter` of `voter_2`, `answer` of `answer_a`."""
    return re.sub(r"_(\d+|[a-z])\Z", "", role)


def pick(rng: random.Random, shares: Mapping[str, float]) -> str:
    """One of the kinds, each as often as its share says."""
    return rng.choices(list(shares), weights=list(shares.values()))[0]
