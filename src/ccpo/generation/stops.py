"""Stop strings: where a completion ends that a text ends, not a token."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


def cut_at_stop(ids: list[int], tokenizer: Any, stops: Sequence[str]) -> tuple[list[int], bool]:
    """
    A completion up to the token with which the first stop string is complete, as transformers and vLLM sample it.

    Args:
        ids (`list[int]`): what was sampled, with what a batch filled up behind it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): reads the ids.
        stops (`Sequence[str]`): the stop strings.

    Returns:
        `tuple[list[int], bool]`: the ids, and whether a stop string ended them.
    """

    def stopped(length: int) -> bool:
        text = tokenizer.decode(ids[:length])
        return any(stop in text for stop in stops)

    if not stops or not stopped(len(ids)):
        return ids, False
    return ids[: bisect_left(range(len(ids)), True, key=stopped)], True
