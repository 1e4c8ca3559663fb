"""Prefix caching: compute the common beginning of a batch's rows, such as few-shot examples, only once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import DynamicCache, DynamicLayer

_KNOWN = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "return_dict"}
SHORTEST = 8  # tokens; a shorter prefix is not worth a pass of its own


def common_prefix(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """
    Count the tokens with which all rows begin.

    Args:
        ids (`torch.Tensor` of shape `(B, T)`): The token ids.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens and 0 for padding. Rows may be padded on the left.

    Returns:
        `int`: The number of common tokens. 0 if there is only one row.
    """
    if len(ids) < 2:
        return 0
    lead = mask.argmax(dim=1)
    columns = torch.arange(ids.size(1), device=ids.device)
    places = (columns + lead[:, None]).clamp(max=ids.size(1) - 1)  # (B, T): a row's tokens from its first one
    inside = (columns + lead[:, None] < ids.size(1)) & mask.gather(1, places).bool()
    rows = ids.gather(1, places)
    same = (inside & (rows == rows[:1])).all(dim=0)
    return int(same.cumprod(dim=0).sum())


def prefix_first(ids: torch.Tensor, mask: torch.Tensor, keep: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Move the padding on the left of each row behind the rows' common beginning, so that a cache can begin with it.

    Args:
        ids (`torch.Tensor` of shape `(B, T)`): The token ids.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens and 0 for padding.
        keep (`int`, defaults to 1): How many tokens at the end of each row must stay in the last columns.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The ids and the mask, of the same shape.
    """
    length = min(common_prefix(ids, mask), int(mask.sum(dim=1).min()) - keep)
    if length < SHORTEST:
        return ids, mask
    lead = mask.argmax(dim=1, keepdim=True)
    columns = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    places = torch.where(
        columns < length, columns + lead, torch.where(columns < length + lead, columns - length, columns)
    )
    return ids.gather(1, places), mask.gather(1, places)


def cache_common_prefix(model: nn.Module) -> RemovableHandle:
    """
    Change a model so that it computes the common beginning of a batch's rows only once.

    This holds for generation and for training. The decoder computes the prefix as one row, and all rows continue its
    keys and values, through which gradients flow. Without dropout the results are the same up to rounding. Positions
    are counted from the first token of each row.

    The input of the model's head is made contiguous in memory. If it were not, torch would multiply it with a frozen
    head row by row, and in bfloat16 copy the head for each row.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model that is not split over processes. It is changed in place. With PEFT, pass the base
            model, which holds the adapters.

    Returns:
        [`~torch.utils.hooks.RemovableHandle`]: The handle of the hook on the head.

    Raises:
        `ValueError`: If a layer of the model does not have full attention.
    """
    kinds = sorted({type(layer).__name__ for layer in DynamicCache(config=model.config).layers})
    if kinds not in ([], [DynamicLayer.__name__]):
        raise ValueError(
            "`prefix_caching` needs a model with full attention in every layer, but the cache of "
            f"{type(model).__name__} has layers of the kind {kinds}. Set `prefix_caching=False`."
        )
    decoder = model.get_decoder()
    names = tuple(signature(decoder.forward).parameters)
    decoder.forward = partial(_read_prefix_once, decoder.forward, names, model.config)
    model.generate = partial(_generate, model.generate)
    return model.get_output_embeddings().register_forward_pre_hook(_side_by_side)


def _side_by_side(head: nn.Module, given: tuple) -> tuple:
    return tuple(hidden.contiguous() for hidden in given)


@contextmanager
def caching_common_prefix(model: nn.Module) -> Iterator[None]:
    """Apply [`cache_common_prefix`] to a model within this context."""
    decoder = model.get_decoder()
    before = vars(decoder).get("forward"), vars(model).get("generate")
    hook = cache_common_prefix(model)
    try:
        yield
    finally:
        hook.remove()
        for module, name, value in zip((decoder, model), ("forward", "generate"), before, strict=True):
            if value is None:
                delattr(module, name)
            else:
                setattr(module, name, value)


def _generate(generate: Callable, *args: Any, **options: Any) -> Any:
    """Call `generate` with the padding behind the prefix, unless another input has a value for each token."""
    ids, mask = options.get("input_ids"), options.get("attention_mask")
    others = (options.get(name) for name in ("inputs_embeds", "position_ids", "token_type_ids", "past_key_values"))
    if args or ids is None or mask is None or any(other is not None for other in others):
        return generate(*args, **options)
    options["input_ids"], options["attention_mask"] = prefix_first(ids, mask)
    drawn = generate(**options)
    sequences = drawn if isinstance(drawn, torch.Tensor) else drawn.sequences
    rows = ids.repeat_interleave(len(sequences) // len(ids), dim=0)  # the prompts as they were given
    sequences = torch.cat([rows, sequences[:, ids.size(1) :]], dim=1)
    if isinstance(drawn, torch.Tensor):
        return sequences
    drawn.sequences = sequences
    return drawn


def _reads_whole(config: Any, options: dict[str, Any]) -> bool:
    """Whether a pass must run unchanged, because the prefix cannot be shared or other outputs are asked for."""
    ids, mask, cache = (options.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
    if ids is None or len(ids) < 2 or (cache is not None and cache.get_seq_length()):
        return True
    if any(value not in (None, False) for name, value in options.items() if name not in _KNOWN):
        return True
    if config.output_hidden_states or getattr(config, "output_attentions", False):  # these are of whole rows
        return True
    if mask is None:
        return options.get("position_ids") is not None
    if mask.shape != ids.shape or (options.get("use_cache") and not mask[:, 0].all()):  # a cache keeps its columns
        return True
    places = options.get("position_ids")
    return places is not None and not (places == mask.cumsum(dim=1) - 1)[mask.bool()].all()


def _read_prefix_once(forward: Callable, names: tuple[str, ...], config: Any, *args: Any, **options: Any) -> Any:
    """The decoder's `forward`, with the same arguments and results. `names` are the names of its arguments."""
    options = dict(zip(names, args, strict=False)) | options
    if _reads_whole(config, options):
        return forward(**options)
    ids, mask, cache = (options.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
    mask = torch.ones_like(ids) if mask is None else mask
    length = min(common_prefix(ids, mask), ids.size(1) - 1)
    if length < SHORTEST:
        return forward(**options)

    lead, columns = mask.argmax(dim=1, keepdim=True), torch.arange(ids.size(1), device=ids.device)
    own = {"attention_mask": None, "position_ids": None, "past_key_values": None, "use_cache": True}
    begun = forward(**{**options, **own, "input_ids": ids[:1].gather(1, lead[:1] + columns[None, :length])})
    cache = DynamicCache() if cache is None else cache
    for i, layer in enumerate(begun.past_key_values.layers):
        keys, values = (states.expand(len(ids), -1, -1, -1) for states in (layer.keys, layer.values))
        cache.update(keys, values, i)
    of_prefix = columns < lead + length  # (B, T), the prefix and the padding before it
    rest = mask.masked_fill(of_prefix, 0)[:, length:]
    seen = torch.cat([mask.new_ones(len(ids), length), rest], dim=1)
    own = {"attention_mask": seen, "position_ids": (seen.cumsum(dim=1) - 1)[:, length:], "past_key_values": cache}
    gone_on = forward(**{**options, **own, "input_ids": ids[:, length:]})
    copied = begun.last_hidden_state[0][(columns - lead).clamp(0, length - 1)]  # (B, T, H)
    hidden = nn.functional.pad(gone_on.last_hidden_state, (0, 0, length, 0))
    gone_on.last_hidden_state = torch.where(of_prefix.unsqueeze(-1), copied, hidden)
    if not options.get("use_cache"):  # the caller did not ask for a cache
        gone_on.past_key_values = None
    return gone_on
