"""Read a role's rating from its reply."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from .objects import NUMBER, PERCENT, read_objects, read_outcome, read_pair, share_of_pair, shares_reader
from .scale import OUTCOMES, check_outcome, check_roles

# Every pattern takes linear time: no two adjacent repetitions can match the same characters, and patterns that end in
# `$` search only a short window.
_ALONE = re.compile(rf"(?<![\w.%+\-−])({NUMBER}){PERCENT}(?!\w|\.[0-9])")
_JOIN = re.compile(r"\s*(?:[,/]|and\b)\s*", re.IGNORECASE)
_WORD = re.compile(r"(?<![\w-])(correct|incorrect|wrong)(?![\w-])", re.IGNORECASE)
_ADVERB = r"(?:(?:an?|the|quite|entirely|fully|completely|really|exactly)[ \t]{1,4})?"
_NOT = re.compile(rf"(?:\b(?:not|never|no)|n['’]t)[ \t]{{1,4}}{_ADVERB}$", re.IGNORECASE)
_KEYS = {
    key: re.compile(rf"\b{key}[\"'`*_\\]{{0,4}}\s{{0,4}}(?:[:=]|is\b|was\b)\W{{0,8}}(?:not\s{{1,4}})?$", re.IGNORECASE)
    for key in ("outcome", "pair")
}


def parse_rating(text: str | None, outcome: str) -> float | None:
    """
    Read a rating of a team of two: the share of the credit or blame that it gives to the first role.

    This is for SEPO, [arXiv 2603.21563](https://huggingface.co/papers/2603.21563). A rating states the outcome and one
    of the nine pairs (0.9, 0.1), (0.8, 0.2), …, (0.1, 0.9). It is read as follows.

    1. As JSON objects with both keys, `{"outcome": "correct", "pair": [0.7, 0.3]}`, anywhere in the text. If there is
       such an object, everything else in the text is ignored. An object is readable if its outcome is "correct",
       "wrong" or "incorrect", if its pair is two numbers that form one of the nine pairs, and if neither key occurs
       twice. It may have other keys, which are ignored. All readable objects must agree.
    2. If there is no such object, as plain text with an outcome word and a pair. Outcome words are "correct", "wrong"
       and "incorrect"; "not correct" means wrong. A pair may be `0.7, 0.3`, `0.7/0.3`, `0.7 and 0.3`, `70% / 30%` or
       `70/30 %`, in any brackets. Three or more joined numbers are not a pair. All outcome words must agree, and so
       must all pairs. If they do not, e.g. because the reply repeats the list of the nine pairs, the last one counts,
       provided that its key stands before it (`pair: 0.7, 0.3`, `outcome: wrong`) and that no other one with the key
       differs.

    The time that this takes is linear in the length of the text.

    Args:
        text (`str` or `None`): The role's reply. `None` means that there is none.
        outcome (`str`): The verdict, `"correct"` or `"wrong"`. A rating that states the other one is invalid.

    Returns:
        `float` or `None`: Exactly one of 0.9, 0.8, …, 0.1, or `None` if the rating is invalid.

    Raises:
        `ValueError`: If `outcome` is not one of the two. `TypeError`: If `text` is neither a text nor `None`.

    Example:

    ```python
    >>> parse_rating('I would say {"outcome": "correct", "pair": [0.7, 0.3]}', "correct")
    0.7
    ```
    """
    check_outcome(outcome)
    if not _is_reply(text):
        return None
    objects = read_objects(text, {"outcome": read_outcome, "pair": read_pair})
    return _rated(objects or [(_agreed(_stated_outcomes(text)), _agreed(_stated_shares(text)))], outcome)


def parse_shares(texts: Sequence[str | None], outcomes: Sequence[str | float | None]) -> list[float]:
    """
    Read many ratings with [`parse_rating`].

    Args:
        texts (`Sequence[str | None]`): The replies.
        outcomes (`Sequence[str | float | None]`):
            For each reply the verdict, `"correct"` or `"wrong"`, or `None` or NaN if the answer cannot be scored.

    Returns:
        `list[float]`: The first role's shares. NaN if a rating is invalid or the answer cannot be scored.

    Raises:
        `ValueError`: If the lengths differ. Also what [`parse_rating`] raises.
    """
    if len(texts) != len(outcomes):
        raise ValueError(f"`texts` and `outcomes` must have the same length, got {len(texts)} and {len(outcomes)}.")
    shares = [
        parse_rating(text, outcome) if outcome is not None and outcome == outcome else None
        for text, outcome in zip(texts, outcomes, strict=True)
    ]
    return [float("nan") if share is None else share for share in shares]


def parse_role_shares(text: str | None, outcome: str, roles: Sequence[str]) -> dict[str, float] | None:
    """
    Read a rating of a team of any size: the share of the credit or blame that it gives to each role.

    A rating is a JSON object anywhere in the text, and is read as [`parse_rating`] reads objects. Other keys are
    ignored, and several objects must agree. A text without such an object is not a rating. The time that this takes is
    linear in the length of the text.

    Args:
        text (`str` or `None`): The role's reply. `None` means that there is none.
        outcome (`str`): The verdict, `"correct"` or `"wrong"`. A rating that states the other one is invalid.
        roles (`Sequence[str]`): Names of the roles, at least two.

    Returns:
        `dict[str, float]` or `None`: Maps each role, in the order of `roles`, to exactly one of 0.9, 0.8, …, 0.1.
        `None` if the rating is invalid, e.g. if a role is missing, unknown or named twice, or a share is not allowed.

    Raises:
        `ValueError`: If `outcome` is not one of the two, or if `roles` are not at least two different names.
        `TypeError`: If `text` is neither a text nor `None`.

    Example:

    ```python
    >>> text = '{"outcome": "wrong", "shares": {"planner": 0.4, "critic": 0.1, "writer": 0.5}}'
    >>> parse_role_shares(text, "wrong", ["planner", "critic", "writer"])
    {'planner': 0.4, 'critic': 0.1, 'writer': 0.5}
    ```
    """
    check_outcome(outcome)
    roles = check_roles(roles)
    if not _is_reply(text):
        return None
    shares = _rated(read_objects(text, {"outcome": read_outcome, "shares": shares_reader(roles)}), outcome)
    return None if shares is None else dict(zip(roles, shares, strict=True))


def _is_reply(text: str | None) -> bool:
    if text is not None and not isinstance(text, str):
        raise TypeError(f"`text` must be a `str` or `None`, got {type(text).__name__}.")
    return text is not None


def _rated(statements: Iterable[tuple], outcome: str) -> Any:
    """The rating, if all readable statements (pairs of an outcome and a rating) agree and state the verdict."""
    readable = {statement for statement in statements if None not in statement}
    stated, rating = readable.pop() if len(readable) == 1 else (None, None)
    return rating if stated == outcome else None


def _agreed(statements: Iterable[tuple[str | float | None, bool]]) -> str | float | None:
    """
    The value on which all statements agree. A statement is a value, and whether the key stands before it.

    If they do not agree, it is the value of the last one, provided that it has the key and all with the key agree.
    """
    values, keyed, last = set(), set(), False
    for value, last in statements:
        values.add(value)
        if last:
            keyed.add(value)
    chosen = values if len(values) == 1 else keyed if last else ()
    return next(iter(chosen)) if len(chosen) == 1 else None


def _before(pattern: re.Pattern, text: str, start: int, window: int = 40) -> bool:
    return pattern.search(text, max(0, start - window), start) is not None


def _stated_outcomes(text: str) -> Iterator[tuple[str, bool]]:
    for word in _WORD.finditer(text):
        right = (word[0].lower() == "correct") != _before(_NOT, text, word.start())
        yield OUTCOMES[not right], _before(_KEYS["outcome"], text, word.start())


def _stated_shares(text: str) -> Iterator[tuple[float | None, bool]]:
    """
    Find the joined numbers that may be meant as a rating. Yields their share, and whether the key stands before them.

    Two numbers that form an allowed pair give their share. The share is `None`, which contradicts any rating, for two
    other numbers with the key, and for three or more numbers with the key or with an allowed pair among them.
    """
    last, start, count, share, allowed = None, 0, 0, None, 0
    for number in chain(_ALONE.finditer(text), [None]):
        if last and number and _JOIN.fullmatch(text, last.end(), number.start()):
            share = share_of_pair(*last.groups(), *number.groups())
            count, allowed = count + 1, allowed + (share is not None)
        else:
            keyed = count > 1 and _before(_KEYS["pair"], text, start)
            if allowed or keyed:
                yield (share if count == 2 else None), keyed
            start, count, allowed = number.start() if number else 0, 1, 0
        last = number
