"""How a role's rating is read from its reply."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from .objects import NUMBER, PERCENT, read_objects, read_outcome, read_pair, share_of_pair, shares_reader
from .scale import OUTCOMES, check_outcome, check_roles

# Every pattern is linear: no neighbouring repeats match the same characters, and those with `$` see only a window.
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
    Read a rating of a team of two: the first role's share of the credit or of the blame.

    SEPO, [arXiv 2603.21563](https://huggingface.co/papers/2603.21563). Two readings, both linear in the text's length:

    1. Objects that have both keys, `{"outcome": "correct", "pair": [0.7, 0.3]}`, anywhere in the text; other keys are
       ignored, and so is an object inside the value of one. If there is such an object, only objects count: those are
       readable whose outcome is "correct", "wrong" or "incorrect", whose pair is two numbers (no strings, no booleans)
       that form one of the nine pairs, and in which neither key stands twice. The readable ones must agree.
    2. Without one, plain text: an outcome word ("correct", "wrong", "incorrect"; "not correct" means wrong) and a pair
       (`0.7, 0.3`, `0.7/0.3`, `0.7 and 0.3`, `70% / 30%`, `70/30 %`; any brackets). All outcome words must agree, and
       so must all pairs; where they do not, as after an echo of the nine pairs, the last one in the text counts if it
       has its key (`pair: 0.7, 0.3`, `outcome: wrong`) and none that has the key differs. Three joined numbers or more
       are a list, not a pair.

    Args:
        text (`str` or `None`): the role's reply; `None` is no reply and so invalid.
        outcome (`str`): the verdict, `"correct"` or `"wrong"`. A rating that states the other one is invalid.

    Returns:
        `float` or `None`: exactly one of 0.9, 0.8, …, 0.1; `None` if the rating is invalid.

    Raises:
        `ValueError`: `outcome` is not one of the two. `TypeError`: `text` is neither text nor `None`.

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
    Read one rating per episode with [`parse_rating`].

    Args:
        texts (`Sequence[str | None]`): the replies.
        outcomes (`Sequence[str | float | None]`): `"correct"`, `"wrong"`; `None` or NaN for an unscorable episode.

    Returns:
        `list[float]`: the first role's shares, NaN where the rating is invalid or the episode unscorable.
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
    Read a rating of a team of any number of roles: every role's share of the credit or of the blame.

    A rating is a JSON object anywhere in the text, read as [`parse_rating`] reads its object, in a time linear in the
    text's length: other keys are ignored, several objects must agree, and text without such an object is no rating.

    Args:
        text (`str` or `None`): the role's reply; `None` is no reply and so invalid.
        outcome (`str`): the verdict, `"correct"` or `"wrong"`. A rating that states the other one is invalid.
        roles (`Sequence[str]`): names of the roles, two or more.

    Returns:
        `dict[str, float]` or `None`: role -> exactly one of 0.9, 0.8, …, 0.1, in the order of `roles`; `None` if the
        rating is invalid, also where a role is missing, unknown or named twice, or one share is not allowed.

    Raises:
        `ValueError`: `outcome` is not one of the two, or `roles` are no two different names. `TypeError`: `text` is
        neither text nor `None`.

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
    """The rating on which all readable statements, of an outcome and a rating, agree, if they state the verdict."""
    readable = {statement for statement in statements if None not in statement}
    stated, rating = readable.pop() if len(readable) == 1 else (None, None)
    return rating if stated == outcome else None


def _agreed(statements: Iterable[tuple[str | float | None, bool]]) -> str | float | None:
    """What all (value, has its key) say; failing that, the last one if it has the key and all others with it agree."""
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
    (share, has its key) of every run of joined numbers that may be meant as a rating: two that form an allowed pair;
    and with share `None`, so that they contradict, two others that have the key, or more with an allowed pair in them.
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
