"""
The problems of the arithmetic task, `(a+b)*c`, which are the same for all teams.

Whether a problem is held out depends on the problem, not on a seed. It is held out if `(min(a, b) + c) % 5` is 0 or 2
and another pair has the same sum. So `(7+12)*4` and `(12+7)*4` are always in the same split, and each sum and each
product of a held-out problem also occurs in a training problem. Both splits need the same facts, but share no problem.
"""

import itertools
import zlib

from datasets import Dataset

TERMS = range(1, 16)  # a and b
FACTORS = range(2, 10)  # c


def problem_text(a: int, b: int, c: int) -> str:
    return f"({a}+{b})*{c}"


def _held_out(a: int, b: int, c: int) -> bool:
    # Of two pairs with the same sum and neighbouring min(a, b), at most one is held out, so the other is for training.
    several_pairs = sum(TERMS[:2]) < a + b < sum(TERMS[-2:])
    return several_pairs and (min(a, b) + c) % 5 in (0, 2)


def problems(split: str) -> list[tuple[int, int, int]]:
    """The `(a, b, c)` of a split, in a fixed shuffled order: sorted by the CRC-32 of the problem's text."""
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    everything = itertools.product(TERMS, TERMS, FACTORS)
    chosen = (problem for problem in everything if _held_out(*problem) == (split == "test"))
    return sorted(chosen, key=lambda problem: zlib.crc32(problem_text(*problem).encode()))


def build_dataset(split: str = "train", size: int | None = None) -> Dataset:
    """
    Build the problems of a split. They are always the same, in the same order.

    Args:
        split (`str`, defaults to `"train"`): `"train"` (1,098 problems) or `"test"` (702 held-out problems).
        size (`int`, *optional*): Take only this many problems from the beginning. By default all are taken.

    Returns:
        [`~datasets.Dataset`]: Has the columns `prompt`, e.g. `"(7+12)*4"`, and `solution`, e.g. `"76"`.
    """
    chosen = problems(split)
    if size is not None and not 0 < size <= len(chosen):
        raise ValueError(f"`size` must be between 1 and {len(chosen)} for the {split} split, got {size}.")
    chosen = chosen[:size]
    return Dataset.from_dict(
        {
            "prompt": [problem_text(*problem) for problem in chosen],
            "solution": [str((a + b) * c) for a, b, c in chosen],
        }
    )
