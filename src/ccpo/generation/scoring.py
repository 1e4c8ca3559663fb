"""
Batches of token ids: sorting by length, padding, and scoring of choices.

To score choices is to compute how likely a model is to continue a prompt with each of a few given texts.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def batches_by_length(lengths: Sequence[int], size: int | None) -> list[list[int]]:
    """
    Divide rows into batches that need little padding.

    If there are more than `size` rows, they are sorted by length and divided into batches of nearly equal size. The
    number of batches depends only on the number of rows, so that all processes run the same number: weights that are
    split over processes are gathered for each batch.

    Args:
        lengths (`Sequence[int]`): The number of tokens of each row.
        size (`int` or `None`): The most rows in a batch; `None` for one batch of all rows.

    Returns:
        `list[list[int]]`: The indices of the rows of each batch. A single batch keeps the order of the rows.
    """
    rows = list(range(len(lengths)))
    calls = 1 if size is None else -(-len(rows) // size)
    if calls > 1:
        rows.sort(key=lengths.__getitem__)
    size = max(1, -(-len(rows) // max(1, calls)))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def left_pad(rows: list[list[int]], pad_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the left. Returns the token ids and the attention mask, both of shape `(B, L)`."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def common_length(choices: list[list[int]]) -> int:
    """Count the tokens with which all the choices begin. The last token of a choice is never counted as common."""
    shortest = min(choices, key=len)
    return len(os.path.commonprefix([*choices, shortest[:-1]]))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients. Afterwards each module is in its former mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def score_choices(
    model: nn.Module,
    prompts: list[list[int]],
    choices: list[list[list[int]]],
    *,
    pad_id: int,
    temperature: float,
    device: torch.device,
) -> torch.Tensor:
    """
    Compute the log-probability of each choice as the continuation of its prompt, summed over the choice's tokens.

    The model computes a prompt, and the tokens with which all its choices begin, only once. The choices then continue
    its key-value cache. If the cache has layers of another kind than attention, it cannot be repeated, and each choice
    is computed together with its prompt. There are always two forward passes, because weights that are split over
    processes are gathered in each. The model runs in evaluation mode.

    Args:
        model (`nn.Module`): A causal language model.
        prompts (`list[list[int]]`): The token ids of the B prompts.
        choices (`list[list[list[int]]]`): For each prompt the token ids of its C choices. None is empty.
        pad_id (`int`): The token for padding, which may be any token.
        temperature (`float`): Divides the logits.
        device (`torch.device`): The device of the model's input. Offloaded weights may be on another one.

    Returns:
        `torch.Tensor` of shape `(B, C)`: The log-probabilities, float32.

    Raises:
        `ValueError`: If the model has no cache. Such a model may also ignore the attention mask.
    """
    count = len(choices[0])
    common = [common_length(own) for own in choices]
    heads = [prompt + own[0][:length] for prompt, own, length in zip(prompts, choices, common, strict=True)]
    tails = [tail[length:] for own, length in zip(choices, common, strict=True) for tail in own]
    head, head_mask = left_pad(heads, pad_id, device)  # (B, L)
    width = max(map(len, tails))
    tail = torch.tensor([row + [pad_id] * (width - len(row)) for row in tails], device=device)  # (B·C, T)
    tail_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tails], device=device)
    mask = torch.cat([head_mask.repeat_interleave(count, dim=0), tail_mask], dim=1)  # (B·C, L + T)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding on the left does not count

    def log_probs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return (logits.float() / temperature).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)

    shared = max(common)
    with evaluating(model):
        begun = model(
            input_ids=head,
            attention_mask=head_mask,
            position_ids=places[::count, : head.size(1)],
            use_cache=True,
            logits_to_keep=shared + 1,
        )
        cache = getattr(begun, "past_key_values", None)
        if cache is None and getattr(begun, "cache_params", None) is None:
            raise ValueError(
                f"Scoring choices needs a model with a key-value cache, but {type(model).__name__} returned "
                "none. Use another model."
            )
        if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in getattr(cache, "layers", [None])):
            cache.batch_repeat_interleave(count)
            gone_on = model(
                input_ids=tail,
                attention_mask=mask,
                position_ids=places[:, head.size(1) :],
                past_key_values=cache,
                use_cache=True,
            )
            rest = gone_on.logits[:, :-1]
        else:
            ids = torch.cat([head.repeat_interleave(count, dim=0), tail], dim=1)
            whole = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=width)
            rest = whole.logits[:, -width:-1]
    beginnings = log_probs(begun.logits[:, -shared - 1 : -1], head[:, head.size(1) - shared :])  # (B, S)
    counts = torch.arange(shared, 0, -1, device=device) <= torch.tensor(common, device=device)[:, None]  # its own last
    first = begun.logits[:, -1:].repeat_interleave(count, dim=0)  # (B·C, 1, V)
    ends = log_probs(torch.cat([first, rest], dim=1), tail).masked_fill(tail_mask == 0, 0)  # (B·C, T)
    return beginnings.masked_fill(~counts, 0).sum(dim=1)[:, None] + ends.sum(dim=1).view(-1, count)
