"""
The problems, the same for every team: `(a+b)*c`, two steps that depend on each other.

Which problems are held out is a property of the problem, not of a seed: those with `(min(a, b) + c) % 5` 0 or 2 whose
sum can be had in another way. `(7+12)*4` and `(12+7)*4` are therefore always on the same side, and no sum and no
product of a held-out problem is without training problems that have it: the facts are shared, the problems are not.
"""

import itertools
import zlib

from datasets import Dataset

TERMS = range(1, 16)  # a and b
FACTORS = range(2, 10)  # c


def problem_text(a: int, b: int, c: int) -> str:
    return f"({a}+{b})*{c}"


def _held_out(a: int, b: int, c: int) -> bool:
    # Neighbours in min(a, b) are never both held out, so one of two pairs with the same sum trains its product by c.
    several_pairs = sum(TERMS[:2]) < a + b < sum(TERMS[-2:])
    return several_pairs and (min(a, b) + c) % 5 in (0, 2)


def problems(split: str) -> list[tuple[int, int, int]]:
    """The `(a, b, c)` of a split, in a fixed shuffled order: by the CRC-32 of the problem's text."""
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    everything = itertools.product(TERMS, TERMS, FACTORS)
    chosen = (problem for problem in everything if _held_out(*problem) == (split == "test"))
    return sorted(chosen, key=lambda problem: zlib.crc32(problem_text(*problem).encode()))


def build_dataset(split: str = "train", size: int | None = None) -> Dataset:
    """
    The problems of a split, always the same and in the same order.

    Args:
        split (`str`, defaults to `"train"`): `"train"` (1,098 problems) or `"test"` (702, held out).
        size (`int`, *optional*): take the first `size` problems; all of them by default.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt`, e.g. `"(7+12)*4"`, and `solution`, e.g. `"76"`.
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
