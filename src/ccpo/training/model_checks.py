"""Checks of the models and tokenizers of several agents, before a model is prepared for training."""

from itertools import combinations
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import AutoConfig


def check_weights(models: dict[str, Any], frozen: tuple[str, ...] = (), adapters_only: bool = False) -> None:
    """
    Check that different model objects have no weights in common.

    Args:
        models (`dict`):
            Maps each agent to its model. Ids and folders are loaded later and not checked. Several agents may have
            the same object, which the trainer copies or shares.
        frozen (`tuple[str, ...]`): Agents that are never updated. They may share weights with each other.
        adapters_only (`bool`, defaults to `False`): Whether to check only objects with adapters.

    Raises:
        `ValueError`: If two objects have common weights.
    """
    kind = PeftModel if adapters_only else nn.Module
    objects = {agent: model for agent, model in models.items() if isinstance(model, kind)}
    for (first, one), (second, other) in combinations(objects.items(), 2):
        if first in frozen and second in frozen:
            continue
        if one is not other and {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}:
            raise ValueError(
                f"`model` of {first!r} and {second!r} are two objects with the same weights, so training one "
                "would change the other. Load the model once per agent, or use `policy_sharing='adapters'` "
                "with `peft_config`."
            )


def check_tokens(models: dict[str, Any], tokenizers: dict[str, Any], args: Any) -> None:
    """
    Check that each tokenizer has an end-of-sequence token, and that its model has embeddings for its tokens.

    Tokens that were added later may lack embeddings, as long as neither texts nor training use them.

    Args:
        models (`dict`): Maps each agent to its model.
        tokenizers (`dict`): Maps each agent to its tokenizer.
        args ([`MultiAgentGRPOConfig`]): Says how configurations are loaded.

    Raises:
        `ValueError`: If a tokenizer does not fit its model.
    """
    revision = (args.model_init_kwargs or {}).get("revision")
    for agent, tokenizer in tokenizers.items():
        if tokenizer.eos_token is None:
            raise ValueError(
                f"`processing_class` of agent {agent!r} has no `eos_token`, which ends completions. Set "
                "`tokenizer.eos_token` and pass the tokenizer as `processing_class`."
            )
        config = getattr(models[agent], "config", None) or AutoConfig.from_pretrained(
            models[agent], revision=revision, trust_remote_code=args.trust_remote_code
        )
        rows = getattr(config.get_text_config(), "vocab_size", None)
        if rows is None:
            continue
        special = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
        if beyond := {name: i for name, i in special.items() if i is not None and i >= rows}:
            raise ValueError(
                f"`processing_class` of agent {agent!r} has the ids {beyond}, but its model has embeddings "
                f"only for the ids below {rows}. Pass the model's own tokenizer, call "
                "`model.resize_token_embeddings(len(tokenizer))`, or use one of its tokens, e.g. "
                "`tokenizer.pad_token = tokenizer.eos_token`."
            )
        if tokenizer.vocab_size > rows:
            raise ValueError(
                f"`processing_class` of agent {agent!r} has {tokenizer.vocab_size} tokens, but its model has "
                f"embeddings for only {rows}. Pass the model's own tokenizer: `processing_class` may be a "
                "dict from agents to tokenizers."
            )
