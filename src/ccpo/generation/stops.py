"""Stop strings: texts that end a completion when they appear in it."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


def check_stops(name: str, options: dict[str, Any], key: str) -> None:
    """
    Check the stop strings among the options of a backend.

    Args:
        name (`str`): Name of the options, for the message.
        options (`dict`): The options.
        key (`str`): The option that holds the stop strings.

    Raises:
        `ValueError`: If they are not a text or a list of texts, or if one is empty.
    """
    given = [options[key]] if isinstance(options.get(key), str) else options.get(key)
    texts = isinstance(given, list | tuple) and given and all(isinstance(x, str) and x for x in given)
    if given is not None and not texts:
        raise ValueError(f"`{name}[{key!r}]` must be a text or a list of texts, got {options[key]!r}.")


def with_stops(options: dict[str, Any] | None, key: str, stops: Sequence[str]) -> dict[str, Any]:
    """Add stop strings to those that the options of a backend have under `key`. Returns new options."""
    own = (options or {}).get(key) or []
    return {**(options or {}), key: [*([own] if isinstance(own, str) else own), *stops]}


def cut_at_stop(
    ids: list[int], tokenizer: Any, stops: Sequence[str], prompt: Sequence[int] = ()
) -> tuple[list[int], bool]:
    """
    Cut a completion after the token that completes the first stop string, where transformers stops sampling, too.

    Args:
        ids (`list[int]`): The sampled tokens, and the padding of the batch after them.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Decodes the ids.
        stops (`Sequence[str]`): The stop strings.
        prompt (`Sequence[int]`): The tokens before them. A stop string may begin there.

    Returns:
        `tuple[list[int], bool]`: The ids, and whether a stop string ended them.
    """
    if not stops:
        return ids, False
    before = list(prompt)[-4 * max(map(len, stops)) :]  # a character has at most four tokens
    start = len(tokenizer.decode(before))

    def stopped(length: int) -> bool:
        text = tokenizer.decode(before + ids[:length])
        return any(stop in text[max(0, start - len(stop) + 1) :] for stop in stops)

    if not stopped(len(ids)):
        return ids, False
    return ids[: bisect_left(range(len(ids)), True, key=stopped)], True


class EndedIds(list):
    """
    The token ids of a completion that was ended by a stop string.

    TRL looks at `ids[-1]` to see whether a completion has ended. So `ids[-1]` returns an end-of-sequence token here.
    Every other access sees the ids as they are.

    Args:
        ids (`list[int]`): The ids.
        end (`int`): An end-of-sequence token.
    """

    def __init__(self, ids: list[int], end: int):
        super().__init__(ids)
        self.end = end

    def __getitem__(self, place: Any) -> Any:
        return self.end if isinstance(place, int) and place == -1 else super().__getitem__(place)
