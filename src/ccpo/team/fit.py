"""Prompts that fit a model's context: of what a role reads from others the head is kept, the problem whole."""

from collections.abc import Callable, Mapping, Sequence
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
        f"The prompt of role {role!r} for {where} has {length} tokens without any text of another role, and its "
        f"model's context leaves {max(limit, 0)} beside the longest completion. Leave the row out, shorten the role's "
        "`prompt`, lower `max_completion_length` (`max_new_tokens` of a generator), or use a model with a longer "
        "context (with vLLM, raise `vllm_max_model_length`)."
    )


def cut_texts(read: Read, keep: int) -> dict[str, str]:
    """The texts with at most their first `keep` characters: the longest lose first, short ones stay whole."""
    return {name: text[:keep] for name, text in read.items()}


def fit_prompts(
    role: str,
    prompts: list[Prompt],
    reads: Sequence[Read],
    build: Callable[[int, Read], Prompt],
    generate: Any,
    where: Callable[[int], str],
) -> tuple[list[Prompt], list[bool]]:
    """
    Cut what stands of others' texts in prompts that are too long for the model.

    How many characters each text keeps is searched by halving, for all such prompts at once, so that any tokenizer
    will do. The others are looked at once: a generator that keeps what it tokenized for its next call loses nothing.

    Args:
        role (`str`): for the error.
        prompts (`list`): what the role is to be asked, length n.
        reads (`Sequence[Mapping[str, str]]`): what each holds of others' texts.
        build (`Callable`): makes the prompt of an index from what it reads.
        generate (`Callable`):
            With `prompt_limit` (`int` or `None`), tokens that a prompt may have, and `count_tokens(prompts) ->
            list[int]`, prompts are made to fit. Without, as of an endpoint, they are left as they are.
        where (`Callable`): what the error calls the row of an index.

    Returns:
        `tuple[list, list[bool]]`: the prompts, and whether each was cut.

    Raises:
        `ValueError`: a prompt that is too long without any text of another role.
    """
    cut, limit = [False] * len(prompts), getattr(generate, "prompt_limit", None)
    if limit is None or not prompts:
        return prompts, cut

    def lengths(asked: list[Prompt]) -> list[int]:
        return call(generate.count_tokens, asked)

    long = [i for i, length in enumerate(lengths(prompts)) if length > limit]
    if not long:
        return prompts, cut
    fitting = {i: build(i, cut_texts(reads[i], 0)) for i in long}
    for i, length in zip(long, lengths(list(fitting.values())), strict=True):
        if length > limit:
            raise too_long(role, where(i), length, limit)
    low = dict.fromkeys(long, 0)  # characters with which it fits, and with which it does not
    high = {i: max(map(len, reads[i].values()), default=0) for i in long}
    while searched := [i for i in long if high[i] - low[i] > 1]:
        keep = {i: (low[i] + high[i]) // 2 for i in searched}
        tried = {i: build(i, cut_texts(reads[i], keep[i])) for i in searched}
        for i, length in zip(searched, lengths(list(tried.values())), strict=True):
            if length > limit:
                high[i] = keep[i]
            else:
                low[i], fitting[i] = keep[i], tried[i]
    return [fitting.get(i, prompt) for i, prompt in enumerate(prompts)], [i in fitting for i in range(len(prompts))]
