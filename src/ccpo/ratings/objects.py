"""Find the JSON objects of a rating in a reply, in which other text may stand around them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .scale import PAIRS

SHARE_OF_PAIR = {pair: pair[0] for pair in PAIRS}
_SHARES = {share: share for share, _ in PAIRS}
_MEANING = {"correct": "correct", "wrong": "wrong", "incorrect": "wrong"}
# Every pattern takes linear time, because no two adjacent repetitions can match the same characters.
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

# Reads the value of a key that begins at a position of the text. `None` means that it is invalid.
Reader = Callable[[str, int], Any]


def share_of_pair(first: str, first_percent: str | None, second: str, percent: str | None) -> float | None:
    """The first role's share if two numbers, up to rounding errors, form an allowed pair; else `None`."""
    scale = 100 if percent else 1
    pair = (round(float(first) / scale, 9), round(float(second) / scale, 9))
    return None if first_percent and not percent else SHARE_OF_PAIR.get(pair)


def read_outcome(text: str, start: int) -> str | None:
    """The verdict that begins at `start`, `"correct"` or `"wrong"`, or `None` if none begins there."""
    found = _OUTCOME.match(text, start)
    return _MEANING.get(found[1].strip().lower()) if found else None


def read_pair(text: str, start: int) -> float | None:
    """The first role's share of the allowed pair that begins at `start`, or `None` if none begins there."""
    found = _PAIR.match(text, start)
    return share_of_pair(*found.groups()) if found else None


def shares_reader(roles: Sequence[str]) -> Reader:
    """Make a function that reads an object with one allowed share for each role and nothing else."""

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
    The values of each outermost object that has all the keys.

    The objects are read leniently, because models write `\sqrt` and newlines in JSON strings. The text is read once,
    by its brackets and strings. `stack` has one item for each bracket that is open: -1 for a list, and for an object
    the number of ratings found before it. Ratings found after that lie inside the object.

    Args:
        text (`str`): A reply.
        readers (`Mapping[str, Callable]`): Maps each key to the function that reads its value.

    Returns:
        `list[tuple]`: For each object the values, in the order of `readers`. `None` stands for an invalid value, and
        for a key that occurs twice.
    """
    found, stack, fields, position = [], [], {}, 0  # fields maps depth -> key -> value
    while (mark := _MARK.search(text, position)) is not None:
        char, position = mark[0], mark.end()
        if char == "{":
            stack.append(len(found))
        elif not stack:
            continue  # quotes and lists outside any object
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
        elif (char == "}") != (stack[-1] >= 0):  # the brackets do not match, so it is not JSON
            stack.clear()
            fields.clear()
        else:
            field, before = fields.pop(len(stack), {}), stack.pop()
            if len(field) == len(readers):
                found[before:] = [tuple(field[key] for key in readers)]
    return found
