"""Read equations, inequalities and memberships, as values with a name or as relations without one."""

import re

from .forms import Assign, Expr, Group, Items, Measure, Percent, Relation, Union
from .scan import CLOSE, OPEN, split
from .values import is_constant, numeral

_RELATIONS = frozenset(["=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\in"])
_SWAP = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
NAME = re.compile(
    rf"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma|pi|tau|epsilon|angle\s*[A-Z]+))"
    r"(?:'|_\{?[A-Za-z0-9]+\}?|\^\{-1\})*(?:\s*\(\s*(?:[a-z]|-?[0-9]{1,3})(?:\s*,\s*(?:[a-z]|-?[0-9]{1,3}))*\s*\))?"
    rf"|{OPEN}(?!not\b|no\b)[a-z]+(?: [a-z]+){{0,4}}{CLOSE}(?:\s*[A-Za-z])?|[A-Z]{{2,3}}"
    r"|\([a-z](?:\s*,\s*[a-z])+\)|\|[a-zA-Z]+\||m\s?\\angle\s*[A-Z]+",
    re.IGNORECASE,
)


def read_all(read, texts, depth):
    """The forms of all texts, or `None` if one of them has none."""
    forms = tuple(read(text, depth + 1) for text in texts)
    return forms if all(form is not None for form in forms) else None


def read_relation(text, read, depth):
    parts, between = split(text.replace("&", ""), _RELATIONS)
    if not between:
        return None
    parts = [part.strip() for part in parts]
    if between == [r"\approx"] and not parts[0]:
        return read(parts[1], depth + 1) or ()
    if not all(parts):
        if between[0] == "=" and not parts[0] and len(between) == 1:
            return read(parts[1], depth + 1) or ()
        return ()
    if set(between) <= {"=", r"\approx"}:
        return _read_equation(parts, between, read, depth)
    if between == [r"\in"]:
        value = read(parts[1], depth + 1)
        if value is None or not NAME.fullmatch(parts[0]):
            return ()
        if isinstance(value, Group) and value.opening == r"\{":
            value = Items(value.items)
        return Assign(_name(parts[0]), (value,))
    return _read_inequality(parts, between, read, depth)


def _name(text):
    return re.sub(rf"[{OPEN}{CLOSE}\s{{}}]", "", text)


def _read_equation(parts, between, read, depth):
    if between[-1] == r"\approx":  # if an exact and an approximate value are given, the exact one counts
        if len(parts) > 2 or not NAME.fullmatch(parts[0]):
            numbers = [numeral(part) for part in parts[-2:]]
            if None not in numbers and abs(numbers[0].value - numbers[1].value) > abs(numbers[0].value) / 100:
                return ()
            parts = parts[:-1]
    names = [part for part in (parts[0], parts[-1]) if NAME.fullmatch(part) and not re.fullmatch(r"\\pi|e|i", part)]
    if len(parts) == 1:
        return read(parts[0], depth + 1) or ()
    if names and not (len(names) == 2 and len(parts) == 2):
        index = 0 if NAME.fullmatch(parts[0]) and parts[0] in names else len(parts) - 1
        rest = [part for position, part in enumerate(parts) if position != index]
        if index == 0 and is_constant(rest[-1]):  # in A = \pi r^2 = 9\pi, the formula in the middle is not a value
            rest = [part for part in rest if is_constant(part)]
        forms = read_all(read, rest, depth)
        if forms is None:
            return ()
        if parts[index].startswith("(") and isinstance(forms[0], Group) and len(forms) == 1:
            return forms[0]
        return Assign(_name(parts[index]), forms)
    if all(is_constant(part) for part in parts):
        forms = read_all(read, parts, depth)
        return Assign("", forms) if forms else ()
    if len(parts) == 2:
        return Relation(tuple(parts), ("=",))
    forms = read_all(read, parts, depth)
    return Assign("", forms) if forms else ()


def _read_inequality(parts, between, read, depth):
    if len(parts) == 2 and NAME.fullmatch(parts[1]) and not NAME.fullmatch(parts[0]) and between[0] in _SWAP:
        parts, between = parts[::-1], [_SWAP[between[0]]]
    if len(parts) == 2 and NAME.fullmatch(parts[0]):
        value = read(parts[1], depth + 1)
        if not isinstance(value, (Expr, Percent)):
            return Relation(tuple(parts), tuple(between)) if isinstance(value, Measure) else ()
        return Assign(_name(parts[0]), (_half_line(between[0], value),))
    if len(parts) == 3 and NAME.fullmatch(parts[1]):
        low, high = read(parts[0], depth + 1), read(parts[2], depth + 1)
        if between[0] in (">", r"\ge") and between[1] in (">", r"\ge"):
            low, high, between = high, low, [_SWAP[sign] for sign in reversed(between)]
        if not (isinstance(low, Expr) and isinstance(high, Expr) and set(between) <= {"<", r"\le"}):
            return ()
        brackets = "(" if between[0] == "<" else "[", ")" if between[1] == "<" else "]"
        return Assign(_name(parts[1]), (Group(*brackets, (low, high)),))
    return Relation(tuple(parts), tuple(between))


def _half_line(sign, value):
    low, high = Expr(r"-\infty"), Expr(r"\infty")
    match sign:
        case "<" | r"\le":
            return Group("(", ")" if sign == "<" else "]", (low, value))
        case ">" | r"\ge":
            return Group("(" if sign == ">" else "[", ")", (value, high))
    return Union((Group("(", ")", (low, value)), Group("(", ")", (value, high))))
