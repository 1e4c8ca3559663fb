"""The forms of an answer: frozen values that make a tree, whose leaves are LaTeX expressions."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expr:
    """A LaTeX expression, which math-verify's grammar reads."""

    latex: str


@dataclass(frozen=True)
class Words:
    """An answer in words, in lower case."""

    text: str


@dataclass(frozen=True)
class Letters:
    """Capital letters in a row, such as a choice of two options or the name of a segment."""

    text: str


@dataclass(frozen=True)
class Option:
    """A letter of multiple choice, with or without the text of the option."""

    letter: str
    content: Any


@dataclass(frozen=True)
class Clock:
    """A time of day in hours, minutes and seconds. `half` is am, pm or "". `plain` is another reading of `12:30`."""

    time: tuple[int, ...]
    half: str
    plain: Any


@dataclass(frozen=True)
class Ratio:
    parts: tuple


@dataclass(frozen=True)
class Based:
    """A number written in a given base."""

    digits: str
    base: int


@dataclass(frozen=True)
class Measure:
    """Values with units, such as `2 hours 30 minutes`. Each part is `(value, multiplier, unit)`."""

    parts: tuple


@dataclass(frozen=True)
class Percent:
    value: Any


@dataclass(frozen=True)
class Items:
    """A list. Its order does not matter, unless it is compared with a tuple."""

    items: tuple


@dataclass(frozen=True)
class Group:
    """Brackets and their content: `(a, b)`, `[a, b)`, `\\{a, b\\}`, or a column vector."""

    opening: str
    closing: str
    items: tuple


@dataclass(frozen=True)
class Matrix:
    rows: tuple


@dataclass(frozen=True)
class Union:
    parts: tuple


@dataclass(frozen=True)
class Assign:
    """A name, or `""`, and its value in one or several ways: `x = 7`, `3 + 4 = 7`."""

    name: str
    values: tuple


@dataclass(frozen=True)
class Relation:
    """A relation that gives no value for a name: its sides and the signs between them."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Either:
    """A text with two readings, such as `101,103`, which may be a number or a list."""

    readings: tuple
