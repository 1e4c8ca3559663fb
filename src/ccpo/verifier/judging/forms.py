"""What kind of answer a text is: a tree whose leaves are LaTeX expressions. Frozen values."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expr:
    """A LaTeX expression, for the grammar."""

    latex: str


@dataclass(frozen=True)
class Words:
    """An answer in words, lower case."""

    text: str


@dataclass(frozen=True)
class Letters:
    """Capital letters in a row, such as a choice of two options or the name of a segment."""

    text: str


@dataclass(frozen=True)
class Option:
    """A letter of multiple choice with the text of the option, or without."""

    letter: str
    content: Any


@dataclass(frozen=True)
class Clock:
    """A time of day: hours, minutes, seconds; `half` is am, pm or "". `plain` is what else `12:30` may be."""

    time: tuple[int, ...]
    half: str
    plain: Any


@dataclass(frozen=True)
class Ratio:
    parts: tuple


@dataclass(frozen=True)
class Based:
    """Digits in a base."""

    digits: str
    base: int


@dataclass(frozen=True)
class Measure:
    """Values with units, `2 hours 30 minutes`; each part is `(value, multiplier, unit)`."""

    parts: tuple


@dataclass(frozen=True)
class Percent:
    value: Any


@dataclass(frozen=True)
class Items:
    """A list: of any order, unless it stands against a tuple."""

    items: tuple


@dataclass(frozen=True)
class Group:
    """`(a, b)`, `[a, b)`, `\\{a, b\\}`, a column vector: brackets and what they hold."""

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
    """`x = 7`, `3 + 4 = 7`: a name, or `""`, and its value, said in one or several ways."""

    name: str
    values: tuple


@dataclass(frozen=True)
class Relation:
    """A relation that names no value: sides and what stands between them."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Either:
    """A text with two readings: `101,103` is a number and a list."""

    readings: tuple
