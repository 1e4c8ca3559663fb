"""
The word problems: templates with names, things and verbs, and a calculation of one or two steps.

Whether a problem is held out depends on its calculation, not on a seed: the CRC-32 of its form and numbers must be
divisible by three. `5 + 4` and `4 + 5` count as the same calculation. So no held-out problem has the calculation of a
training problem, even if words or difficulty differ.
"""

import random
import zlib
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

NAMES = ("Sam", "Ann", "Tom", "Mia", "Ben", "Eva", "Max", "Zoe", "Leo", "Ida", "Jack", "Rosa", "Omar", "Nina", "Paul")
THINGS = ("pens", "cups", "nuts", "books", "coins", "eggs", "keys", "shells", "stamps", "apples", "cards", "balls")
GAINS = ("finds", "buys", "gets", "wins")
LOSSES = ("loses", "sells", "breaks", "gives away")
PLACES = ("bags", "boxes", "jars", "baskets")

# Maps each form of a calculation to the problems that ask for it. Two steps have three numbers.
FORMS = {
    "{a} + {b}": (
        "{name} has {a} {things} and {gains} {b}. How many now?",
        "{name} {gains} {a} {things} and then {b} more. How many in all?",
        "There are {a} {things} on a table. {name} puts {b} more there. How many now?",
    ),
    "{a} - {b}": (
        "{name} has {a} {things} and {loses} {b}. How many are left?",
        "There are {a} {things} on a table. {name} takes {b}. How many are left?",
        "Of {a} {things} {name} {loses} {b}. How many are left?",
    ),
    "{a} * {b}": (
        "{name} has {a} {places} with {b} {things} each. How many {things}?",
        "There are {b} {things} in each of {a} {places}. How many {things}?",
        "{name} {gains} {a} {places} of {b} {things}. How many {things}?",
    ),
    "({a} + {b}) * {c}": (
        "In each of {c} {places} are {a} red and {b} blue {things}. How many {things}?",
        "{name} has {c} {places}, each with {a} old and {b} new {things}. How many {things}?",
    ),
    "{a} * {b} + {c}": (
        "{name} has {a} {places} with {b} {things} each and {gains} {c} more {things}. How many {things}?",
        "There are {b} {things} in each of {a} {places} and {c} on a table. How many {things}?",
    ),
    "{a} * {b} - {c}": (
        "{name} has {a} {places} with {b} {things} each and {loses} {c} {things}. How many are left?",
        "There are {b} {things} in each of {a} {places}. {name} takes {c} {things}. How many are left?",
    ),
}
ONE_STEP, TWO_STEPS = tuple(FORMS)[:3], tuple(FORMS)[3:]
# Forms in which a and b can be exchanged
_COMMUTE = {"{a} + {b}", "{a} * {b}", "({a} + {b}) * {c}", "{a} * {b} + {c}", "{a} * {b} - {c}"}
_TEST_SEED = 20_261_127
_PATIENCE = 1_000  # after so many draws without a new problem, there are not enough of them


def held_out(form: str, a: int, b: int, c: int = 0) -> bool:
    """Whether problems with this calculation are held out."""
    first, second = sorted((a, b)) if form in _COMMUTE else (a, b)
    return zlib.crc32(f"{form} {first} {second} {c}".encode()) % 3 == 0


def _draw(rng: random.Random, two_steps: float, terms: Sequence[int], factors: Sequence[int]) -> tuple[str, list[int]]:
    """Draw a form and its numbers. No result is below 1."""
    form = rng.choice(TWO_STEPS if rng.random() < two_steps else ONE_STEP)
    factor, term = (lambda: rng.randint(*factors)), (lambda: rng.randint(*terms))
    if form in ("{a} + {b}", "{a} - {b}"):
        a, b = term(), term()
        if "-" in form and a <= b:
            a, b = b + a, a  # subtract from a larger number, so that something is left
        return form, [a, b, 0]
    if form == "({a} + {b}) * {c}":
        return form, [factor(), factor(), factor()]
    a, b = factor(), factor()
    c = rng.randint(1, a * b - 1) if "-" in form else term()
    return form, [a, b, c if form in TWO_STEPS else 0]


def _result(form: str, a: int, b: int, c: int) -> int:
    return {
        "{a} + {b}": a + b,
        "{a} - {b}": a - b,
        "{a} * {b}": a * b,
        "({a} + {b}) * {c}": (a + b) * c,
        "{a} * {b} + {c}": a * b + c,
        "{a} * {b} - {c}": a * b - c,
    }[form]


def build_dataset(
    split: str = "train",
    size: int | None = None,
    *,
    seed: int = 0,
    two_steps: float = 0.0,
    terms: Sequence[int] = (1, 12),
    factors: Sequence[int] = (2, 9),
) -> Dataset:
    """
    Generate the problems of a split. No two are the same.

    Args:
        split (`str`, defaults to `"train"`):
            `"train"`, or `"test"` for held-out problems. No training problem of any seed or difficulty has the same
            calculation as one of these.
        size (`int`, *optional*): The number of problems. Defaults to 4,000 for training and 600 for testing.
        seed (`int`, defaults to 0): The seed of the training problems. The test split is always the same.
        two_steps (`float`, defaults to 0.0): The share of problems with two steps, from 0 to 1.
        terms (`tuple[int, int]`, defaults to `(1, 12)`): The smallest and the largest number to add or subtract.
        factors (`tuple[int, int]`, defaults to `(2, 9)`): The smallest and the largest number to multiply.

    Returns:
        [`~datasets.Dataset`]: Has the columns `prompt` (the problem), `solution` (e.g. `"9"`) and `calculation` (e.g.
        `"5 + 4"`).

    Raises:
        `ValueError`: If an argument is wrong, or if there are fewer such problems than `size`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    size = {"train": 4_000, "test": 600}[split] if size is None else size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"`size` must be an integer of at least 1, got {size!r}.")
    if isinstance(two_steps, bool) or not isinstance(two_steps, int | float) or not 0 <= two_steps <= 1:
        raise ValueError(f"`two_steps` must be a number in [0, 1], got {two_steps!r}.")
    for name, given, least in (("terms", terms, 1), ("factors", factors, 2)):
        _check_range(name, given, least)
    rng = random.Random(_TEST_SEED if split == "test" else seed)
    rows, idle = {}, 0
    while len(rows) < size:
        form, (a, b, c) = _draw(rng, two_steps, terms, factors)
        words = {
            "name": rng.choice(NAMES),
            "things": rng.choice(THINGS),
            "gains": rng.choice(GAINS),
            "loses": rng.choice(LOSSES),
            "places": rng.choice(PLACES),
        }
        text = rng.choice(FORMS[form]).format(a=a, b=b, c=c, **words)
        if held_out(form, a, b, c) != (split == "test") or text in rows:
            idle += 1
            if idle == _PATIENCE:
                raise ValueError(
                    f"`size={size}` is too large: this difficulty has only about {len(rows)} problems in the "
                    f"{split} split. Ask for fewer, or widen `terms` and `factors`."
                )
            continue
        idle, rows[text] = 0, (str(_result(form, a, b, c)), form.format(a=a, b=b, c=c))
    solutions, calculations = zip(*rows.values(), strict=True)
    return Dataset.from_dict({"prompt": list(rows), "solution": solutions, "calculation": calculations})


def _check_range(name: str, given: Any, least: int) -> None:
    whole = isinstance(given, list | tuple) and all(type(number) is int for number in given)
    if not (whole and len(given) == 2 and least <= given[0] <= given[1]):
        raise ValueError(
            f"`{name}` must be a pair of integers, the smallest and the largest number, of at least {least}, "
            f"got {given!r}."
        )
