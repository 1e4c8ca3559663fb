"""What can be known to be wrong of several models before any is prepared: their weights, and their tokenizers."""

from itertools import combinations
from typing import Any

from torch import nn
from transformers import AutoConfig


def check_weights(models: dict[str, Any], peft_config: Any) -> None:
    """
    Refuse model objects that have nothing to train, or that have weights in common.

    Args:
        models (`dict`): per role; ids and folders are loaded later, and are neither. One object of several roles is
            one model, which the trainer copies or shares.
        peft_config (`PeftConfig`, *optional*): brings the weights to train.

    Raises:
        `ValueError`: with the roles.
    """
    objects = {role: model for role, model in models.items() if isinstance(model, nn.Module)}
    for role, model in objects.items() if peft_config is None else ():
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"`model` of role {role!r} is a {type(model).__name__} without a weight to train: all are frozen. "
                "Load an adapter with `is_trainable=True`, unfreeze the weights, or pass `peft_config`."
            )
    for (first, one), (second, other) in combinations(objects.items(), 2):
        if one is not other and {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}:
            raise ValueError(
                f"`model` of the roles {first!r} and {second!r} are two objects on the same weights, which both roles "
                "would move. Load the model once per role, or use `policy_sharing='adapters'` with `peft_config`."
            )


def check_tokens(models: dict[str, Any], tokenizers: dict[str, Any], args: Any) -> None:
    """
    Refuse a tokenizer that has no end, or whose ids have no row in its model's embeddings.

    Its tokens added later may be more than the rows, as long as neither text nor training uses them.

    Args:
        models (`dict`), tokenizers (`dict`): per role.
        args ([`MultiAgentGRPOConfig`]): how configurations are loaded.

    Raises:
        `ValueError`: with the role and the numbers.
    """
    revision = (args.model_init_kwargs or {}).get("revision")
    for role, tokenizer in tokenizers.items():
        if tokenizer.eos_token is None:
            raise ValueError(
                f"`processing_class` of role {role!r} has no `eos_token`, with which completions end. Set "
                "`tokenizer.eos_token` and pass the tokenizer as `processing_class`."
            )
        config = getattr(models[role], "config", None) or AutoConfig.from_pretrained(
            models[role], revision=revision, trust_remote_code=args.trust_remote_code
        )
        rows = getattr(config.get_text_config(), "vocab_size", None)
        if rows is None:
            continue
        special = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
        if beyond := {name: i for name, i in special.items() if i is not None and i >= rows}:
            raise ValueError(
                f"`processing_class` of role {role!r} has the ids {beyond}, and its model has {rows} rows of "
                "embeddings. Pass the model's own tokenizer, call `model.resize_token_embeddings(len(tokenizer))`, "
                "or use one of its tokens, e.g. `tokenizer.pad_token = tokenizer.eos_token`."
            )
        if tokenizer.vocab_size > rows:
            raise ValueError(
                f"`processing_class` of role {role!r} has {tokenizer.vocab_size} tokens, and its model has {rows} "
                "rows of embeddings. Pass the model's own tokenizer: `processing_class` may be a dict of the roles."
            )
