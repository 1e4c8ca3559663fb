"""What the arithmetic task must know about a kind of team, as data."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """
    The part of a role in a team. Several roles, such as voters, may have the same part.

    Args:
        write (`Callable`):
            Writes a demonstration. It takes the random state, `a`, `b`, `c`, and the text of each role that this role
            reads, as it sees it. The text is `None` if that role is removed.
        steps (`int`):
            The optimizer steps of an agent's warm start. It is also the weight of the part if an agent has several.
    """

    write: Callable[..., str]
    steps: int


@dataclass(frozen=True)
class Family:
    """
    A kind of team on the arithmetic task.

    Args:
        kind (`str`): The kind of the topology.
        arguments (`Mapping[str, Any]`): The arguments of the topology, such as its short prompts.
        parts (`Mapping[str, Part]`): Maps the name of a role, without a number or letter at its end, to its part.
        words (`tuple[str, ...]`): Words that are one token each, in addition to those of Think-Solve.
        without_share (`float`, defaults to 0.0):
            The share of demonstrations in which a role is asked without one of the roles that it reads.
        common_steps (`int`, defaults to 0): The optimizer steps on all parts, before each agent trains alone.
    """

    kind: str
    arguments: Mapping[str, Any]
    parts: Mapping[str, Part]
    words: tuple[str, ...] = ()
    without_share: float = 0.0
    common_steps: int = 0


def part_name(role: str) -> str:
    """The name of a role's part: `voter` for `voter_2`, `answer` for `answer_a`."""
    return re.sub(r"_(\d+|[a-z])\Z", "", role)


def pick(rng: random.Random, shares: Mapping[str, float]) -> str:
    """Draw one of the kinds, by their shares."""
    return rng.choices(list(shares), weights=list(shares.values()))[0]
