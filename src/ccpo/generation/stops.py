"""Stop strings: where a completion ends that a text ends, not a token."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


def check_stops(name: str, options: dict[str, Any], key: str) -> None:
    """Refuse stop strings among the options of a backend that are no text and no list of texts, or empty ones."""
    given = [options[key]] if isinstance(options.get(key), str) else options.get(key)
    texts = isinstance(given, list | tuple) and given and all(isinstance(x, str) and x for x in given)
    if given is not None and not texts:
        raise ValueError(f"`{name}[{key!r}]` must be a text or a list of texts, got {options[key]!r}.")


def with_stops(options: dict[str, Any] | None, key: str, stops: Sequence[str]) -> dict[str, Any]:
    """Options of a backend with more stop strings than they have, a text or a list, under `key`."""
    own = (options or {}).get(key) or []
    return {**(options or {}), key: [*([own] if isinstance(own, str) else own), *stops]}


def cut_at_stop(
    ids: list[int], tokenizer: Any, stops: Sequence[str], prompt: Sequence[int] = ()
) -> tuple[list[int], bool]:
    """
    A completion up to the token with which the first stop string is complete, as transformers samples it.

    Args:
        ids (`list[int]`): what was sampled, with what a batch filled up behind it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): reads the ids.
        stops (`Sequence[str]`): the stop strings.
        prompt (`Sequence[int]`): the ids before, in which a stop string may begin.

    Returns:
        `tuple[list[int], bool]`: the ids, and whether a stop string ended them.
    """
    if not stops:
        return ids, False
    before = list(prompt)[-4 * max(map(len, stops)) :]  # a character has four tokens at most
    start = len(tokenizer.decode(before))

    def stopped(length: int) -> bool:
        text = tokenizer.decode(before + ids[:length])
        return any(stop in text[max(0, start - len(stop) + 1) :] for stop in stops)

    if not stopped(len(ids)):
        return ids, False
    return ids[: bisect_left(range(len(ids)), True, key=stopped)], True


class EndedIds(list):
    """
    Token ids of a completion that a stop string has ended.

    TRL takes a completion for ended if its last token, which it asks for as `ids[-1]`, is an end-of-sequence token.
    Here that is one. All else sees the ids as they are.

    Args:
        ids (`list[int]`): the ids.
        end (`int`): an end-of-sequence token.
    """

    def __init__(self, ids: list[int], end: int):
        super().__init__(ids)
        self.end = end

    def __getitem__(self, place: Any) -> Any:
        return self.end if isinstance(place, int) and place == -1 else super().__getitem__(place)
