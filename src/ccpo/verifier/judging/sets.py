"""Compute differences and intersections of sets whose elements are numbers."""

import re

from .forms import Assign, Expr, Group, Union
from .scan import split
from .values import numeral

_SIGNS = frozenset([r"\setminus", r"\backslash", r"\cap"])
_LOW, _HIGH = Expr(r"-\infty"), Expr(r"\infty")
REALS = Union((Group("(", ")", (_LOW, _HIGH)),))


def read_difference(text, read, depth):
    r"""Read `\{1, 2\} \cap \{2\}`, `\mathbb{R} \setminus \{2\}`, `\mathbb{R} \setminus [-1, 2]` and the like."""
    text = re.sub(r"\A\\mathbb\{R\} ?- ?(?=\\\{)", lambda m: r"\mathbb{R} \setminus ", text)
    parts, between = split(text, _SIGNS)
    if not between or re.search(r"\\in(?![a-z])|=", parts[0]):  # x \in A \setminus B: the relation comes first
        return None
    first, second = (read(part, depth + 1) for part in parts) if len(parts) == 2 else (None, None)
    if not isinstance(second, Group):
        return ()
    if _is_finite(first) and _is_finite(second):
        numbers = {_number(item) for item in second.items}
        keep = between == [r"\cap"]
        items = tuple(item for item in first.items if (_number(item) in numbers) == keep)
        is_known = None not in numbers and all(_number(item) is not None for item in first.items)
        return Group(r"\{", r"\}", items) if is_known else ()
    if first != REALS or between == [r"\cap"]:
        return ()
    return _without_points(second.items) if _is_finite(second) else _without_interval(second)


def is_region(form):
    """Whether a form is an interval or a union."""
    return isinstance(form, Union) or (isinstance(form, Group) and form.opening in "([")


def intersect(regions):
    """The intersection of two half-lines, or `None` if it is not an interval with two ends."""
    groups = [form.values[0] for form in regions]
    if len(groups) != 2 or not all(isinstance(group, Group) for group in groups):
        return None
    low = [group for group in groups if group.items[1] == Expr(r"\infty")]
    high = [group for group in groups if group.items[0] == Expr(r"-\infty")]
    if len(low) == len(high) == 1 and low[0] is not high[0]:
        return Assign(regions[0].name, (Group(low[0].opening, high[0].closing, (low[0].items[0], high[0].items[1])),))
    return None


def _is_finite(form):
    return isinstance(form, Group) and form.opening == r"\{"


def _number(form):
    number = numeral(form.latex) if isinstance(form, Expr) else None
    return None if number is None else number.value


def _without_points(points):
    if not points or not all(isinstance(point, Expr) for point in points):
        return ()
    if len(points) > 1:
        if any(_number(point) is None for point in points):
            return ()
        points = sorted(points, key=_number)
    ends = (_LOW, *points, _HIGH)
    return Union(tuple(Group("(", ")", pair) for pair in zip(ends, ends[1:], strict=False)))


def _without_interval(interval):
    if interval.opening not in "([" or len(interval.items) != 2 or {_LOW, _HIGH} & set(interval.items):
        return ()
    low, high = interval.items
    below = Group("(", "]" if interval.opening == "(" else ")", (_LOW, low))
    return Union((below, Group("[" if interval.closing == ")" else "(", ")", (high, _HIGH))))
