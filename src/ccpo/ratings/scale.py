"""The values that a rating may have: one of two outcomes, and shares from 0.9 to 0.1."""

import re
from collections.abc import Sequence

PAIRS: tuple[tuple[float, float], ...] = tuple((i / 10, (10 - i) / 10) for i in range(9, 0, -1))
OUTCOMES = ("correct", "wrong")
MAX_RATING_TOKENS = 512
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_outcome(outcome: str) -> None:
    if outcome not in OUTCOMES:
        raise ValueError(f'`outcome` must be the verdict, "correct" or "wrong", got {outcome!r}.')


def check_roles(roles: Sequence[str]) -> tuple[str, ...]:
    """
    The names of the roles as a tuple.

    Raises:
        `ValueError`: If there are fewer than two, if two are equal, or if one has other characters than a role's name
            may have. They are written into JSON without escapes.
    """
    names = () if isinstance(roles, str) else tuple(roles)
    fit = all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
    if len(names) < 2 or not fit or len(set(names)) < len(names):
        raise ValueError(
            "`roles` must be at least two different names of letters, digits, '_' and '-', in the order in "
            f"which the roles speak, got {roles!r}."
        )
    return names
