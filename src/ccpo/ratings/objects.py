"""The objects of a rating in a reply: JSON read leniently, in one pass, whatever stands around it."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .scale import PAIRS

SHARE_OF_PAIR = {pair: pair[0] for pair in PAIRS}
_SHARES = {share: share for share, _ in PAIRS}
_MEANING = {"correct": "correct", "wrong": "wrong", "incorrect": "wrong"}
# Every pattern is linear: no neighbouring repeats match the same characters.
NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
PERCENT = r"([ \t]?\\?%)?"
_JSON_NUMBER = rf"({NUMBER}(?:[eE][+-]?[0-9]+)?){PERCENT}"
_MARK = re.compile(r'[{}\[\]"]')
_STRING_END, _COLON = re.compile(r'"|\\.', re.DOTALL), re.compile(r"\s*:\s*")
_NEXT = r'(?=\s*(?:\}|,\s*["}]))'
_OUTCOME = re.compile(rf'"([^"\\]*)"{_NEXT}')
_PAIR = re.compile(rf"\[\s*{_JSON_NUMBER}\s*,\s*{_JSON_NUMBER}\s*\]{_NEXT}")
_CLOSE = re.compile(rf"\s*\}}{_NEXT}")
_ENTRY = re.compile(rf'\s*"([^"\\]*)"\s*:\s*{_JSON_NUMBER}\s*(?:,|(?=\}}))')

# Reads the value of a key that begins at a place of the text; `None` if it cannot be right.
Reader = Callable[[str, int], Any]


def share_of_pair(first: str, first_percent: str | None, second: str, percent: str | None) -> float | None:
    """The first role's share if two numbers form an allowed pair; rounding forgives 0.30000000000000004, no more."""
    scale = 100 if percent else 1
    pair = (round(float(first) / scale, 9), round(float(second) / scale, 9))
    return None if first_percent and not percent else SHARE_OF_PAIR.get(pair)


def read_outcome(text: str, start: int) -> str | None:
    """The verdict that begins at `start`, `"correct"` or `"wrong"`; `None` where none does."""
    found = _OUTCOME.match(text, start)
    return _MEANING.get(found[1].strip().lower()) if found else None


def read_pair(text: str, start: int) -> float | None:
    """The first role's share of the allowed pair that begins at `start`; `None` where none does."""
    found = _PAIR.match(text, start)
    return share_of_pair(*found.groups()) if found else None


def shares_reader(roles: Sequence[str]) -> Reader:
    """Reads an object with one allowed share for each role, and nothing else: the shares in the order of `roles`."""

    def read(text: str, start: int) -> tuple[float, ...] | None:
        shares: dict[str, float] = {}
        if not text.startswith("{", start):
            return None
        start += 1
        while entry := _ENTRY.match(text, start):
            name, number, percent = entry.groups()
            share = _SHARES.get(round(float(number) / (100 if percent else 1), 9))
            if share is None or name not in roles or name in shares:
                return None
            shares[name], start = share, entry.end()
        complete = len(shares) == len(roles) and _CLOSE.match(text, start)
        return tuple(shares[role] for role in roles) if complete else None

    return read


def read_objects(text: str, readers: Mapping[str, Reader]) -> list[tuple]:
    r"""
    The values of every outermost object that has all the keys.

    JSON read leniently (models write `\sqrt` and newlines in strings), in one pass over brackets and strings. `stack`
    has -1 per open list and, per open object, how many ratings were found before it: later ones lie inside it.

    Args:
        text (`str`): a reply.
        readers (`Mapping[str, Callable]`): the keys, and what reads the value of each.

    Returns:
        `list[tuple]`: per object the values in the order of `readers`; `None` for one that cannot be right, also where
        its key stands twice.
    """
    found, stack, fields, position = [], [], {}, 0  # fields: depth -> key -> value
    while (mark := _MARK.search(text, position)) is not None:
        char, position = mark[0], mark.end()
        if char == "{":
            stack.append(len(found))
        elif not stack:
            continue  # quotes and lists of the prose
        elif char == "[":
            stack.append(-1)
        elif char == '"':
            end = next((m.end() for m in _STRING_END.finditer(text, position) if m[0] == '"'), None)
            if end is None:
                break
            key, position = text[position : end - 1], end
            if key in readers and stack[-1] >= 0 and (colon := _COLON.match(text, end)):
                field = fields.setdefault(len(stack), {})
                field[key] = None if key in field else readers[key](text, colon.end())
        elif (char == "}") != (stack[-1] >= 0):  # brackets that do not match: not JSON
            stack.clear()
            fields.clear()
        else:
            field, before = fields.pop(len(stack), {}), stack.pop()
            if len(field) == len(readers):
                found[before:] = [tuple(field[key] for key in readers)]
    return found
