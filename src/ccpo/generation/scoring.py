"""
Rows of token ids on their way through a model: padded, put into batches by length, and given choices scored.

Scoring: how likely a model is to go on with each of a few given texts; what their prompts have in common is read once.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def batches_by_length(lengths: Sequence[int], size: int | None) -> list[list[int]]:
    """
    Which rows to generate together, so that few are padded far.

    More than `size` rows go out sorted by length, in batches as equal as can be. How many there are depends on the
    number of rows alone, since sharded weights are gathered in each.

    Args:
        lengths (`Sequence[int]`): tokens of each row.
        size (`int` or `None`): most rows of a batch; `None` for all in one.

    Returns:
        `list[list[int]]`: the rows' indices, batch by batch; in their own order where there is one batch.
    """
    rows = list(range(len(lengths)))
    calls = 1 if size is None else -(-len(rows) // size)
    if calls > 1:
        rows.sort(key=lengths.__getitem__)
    size = max(1, -(-len(rows) // max(1, calls)))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def left_pad(rows: list[list[int]], pad_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both of shape `(B, L)`."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def common_length(choices: list[list[int]]) -> int:
    """With how many tokens all the choices begin; the last token of each decides, even if others go on with it."""
    shortest = min(choices, key=len)
    return len(os.path.commonprefix([*choices, shortest[:-1]]))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, and every module's own mode again afterwards."""
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
    Summed log-probability of each choice as the continuation of its prompt.

    A prompt, with the tokens that all its choices begin with, is run once, and the choices continue its key-value
    cache, side by side. A cache of other layers than attention's cannot be repeated: there every choice runs with its
    prompt. Two forward passes in any case, since sharded weights are gathered in each; in evaluation mode.

    Args:
        model (`nn.Module`): a causal language model.
        prompts (`list[list[int]]`): token ids of the B prompts.
        choices (`list[list[list[int]]]`): token ids of the C choices of each, none of them empty.
        pad_id (`int`): any token.
        temperature (`float`): divides the logits.
        device (`torch.device`): where the model reads; offloaded weights lie elsewhere.

    Returns:
        `torch.Tensor` of shape `(B, C)`, float32.

    Raises:
        `ValueError`: a model without a cache, which may not heed the attention mask either.
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
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding on the left moves no position

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
