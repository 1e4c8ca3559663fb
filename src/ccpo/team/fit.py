"""Make prompts fit a model's context: texts of other roles are cut at their end, the problem never."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..calls import call
from .prompts import Prompt

Read = Mapping[str, str]  # role read -> its text


def too_long(role: str, where: str, length: int, limit: int) -> ValueError:
    """
    The error of a problem that does not fit by itself.

    Args:
        role (`str`): whose prompt.
        where (`str`): which row of what.
        length (`int`): its tokens without any text of another role.
        limit (`int`): tokens that it may have.
    """
    return ValueError(
        f"The prompt of role {role!r} for {where} has {length} tokens even without the texts of other roles, "
        f"but the context of the role's model leaves {max(limit, 0)} beside the longest completion. Leave the "
        "row out, shorten the role's `prompt`, lower `max_completion_length` (`max_new_tokens` of a "
        "generator), or use a model with a longer context (with vLLM, raise `vllm_max_model_length`)."
    )


def cut_texts(read: Read, keep: int) -> dict[str, str]:
    """The texts with at most their first `keep` characters: the longest lose first, short ones stay whole."""
    return {name: text[:keep] for name, text in read.items()}


@dataclass
class Request:
    """
    One prompt that is to be made.

    Args:
        role (`str`): who is asked.
        read (`Mapping[str, str]`): what stands of others' texts in it.
        build (`Callable`): makes it of that.
        where (`Callable`): what an error calls the row.
    """

    role: str
    read: Read
    build: Callable[[Read], Prompt]
    where: Callable[[], str]


def fit_prompts(requests: Sequence[Request], generate: Any) -> tuple[list[Prompt], list[bool]]:
    """
    Make the prompts, and cut what stands of others' texts in those that are too long for the model.

    How many characters each text keeps is searched by halving, for all such prompts at once, so that any tokenizer
    will do. The others are looked at once: a generator that keeps what it tokenized for its next call loses nothing.

    Args:
        requests (`Sequence[Request]`): the prompts to be made, length n.
        generate (`Callable`):
            With `prompt_limit` (`int` or `None`), tokens that a prompt may have, and `count_tokens(prompts) ->
            list[int]`, prompts are made to fit. Without, as of an endpoint, they are left as they are.

    Returns:
        `tuple[list, list[bool]]`: the prompts, and whether each was cut.

    Raises:
        `ValueError`: a prompt that is too long without any text of another role.
    """
    prompts, cut = [request.build(request.read) for request in requests], [False] * len(requests)
    limit = getattr(generate, "prompt_limit", None)
    if limit is None or not prompts:
        return prompts, cut

    def lengths(keep: dict[int, int]) -> Iterator[tuple[int, Prompt, int]]:
        """Index, prompt and tokens with so many characters of each text."""
        tried = [requests[i].build(cut_texts(requests[i].read, kept)) for i, kept in keep.items()]
        return zip(keep, tried, call(generate.count_tokens, tried), strict=True)

    long = [i for i, length in enumerate(call(generate.count_tokens, prompts)) if length > limit]
    for i, prompt, length in lengths(dict.fromkeys(long, 0)) if long else ():
        if length > limit:
            raise too_long(requests[i].role, requests[i].where(), length, limit)
        prompts[i], cut[i] = prompt, True
    low = dict.fromkeys(long, 0)  # characters with which it fits, and with which it does not
    high = {i: max(map(len, requests[i].read.values()), default=0) for i in long}
    while middle := {i: (low[i] + high[i]) // 2 for i in long if high[i] - low[i] > 1}:
        for i, prompt, length in lengths(middle):
            if length > limit:
                high[i] = middle[i]
            else:
                low[i], prompts[i] = middle[i], prompt
    return prompts, cut
