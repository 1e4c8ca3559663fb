"""A run as a recipe: what was told to it, in the plain values that `ccpo train --config` reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

import torch
from transformers.trainer_pt_utils import AcceleratorConfig

from ..credit import HistoryNormalizer
from ..rewards import CreditAllocator
from ..rewards.schemes import SCHEMES
from ..team.topology import Topology
from ..verifier.math_verifier import MathVerifier

# Of the machine, or of this one run; and what follows from other fields, or is another name of one.
_NOT_RECIPE = ("output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "deepspeed", "fsdp", "fsdp_config")
_NOT_RECIPE += ("debug", "local_rank", "ddp_find_unused_parameters", "generation_batch_size", "disable_tqdm")
_NOT_RECIPE += ("activation_checkpointing", "activation_checkpointing_kwargs")  # TRL's names are those of gradients
_WORDS = {
    "shared": "Every role gets the outcome of the team's answer.",
    "ccpo": "A role gets the outcome of the team's answer, and a bonus: that against the team's without the role.",
    "sepo": "A role gets the outcome of the team's answer, and a bonus: the share in it that the roles give it.",
    "vote": "A voter is judged by what the vote's outcome would be without it.",
    "dacr": "An agent gets the outcome of its rewrite, and what its critique did for its partner's.",
    "c3": "A text is compared with the texts that continue the same one: its outcome less the mean of theirs.",
}


def recipe_of(
    topology: Topology, allocators: Sequence[CreditAllocator], args: Any, told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    The team, the credit, and what differs from the defaults, in plain values; no tokens.

    Args:
        topology ([`Topology`]): who speaks.
        allocators (`list[CreditAllocator]`): how credit is divided. Several, or one of a user's own, have no field.
        args ([`MultiAgentGRPOConfig`]): the configuration.
        told (`Mapping[str, Any]`, *optional*): the command's other fields, which name the dataset and the models.
    """
    recipe = dict(told or {})
    recipe.setdefault("topology", topology.to_dict())
    recipe |= {name: value for name, value in credit_of(allocators).items() if name not in recipe}
    recipe |= {"policy_sharing": args.policy_sharing, "schedule": args.schedule}
    values = args.to_dict()  # tokens are masked there
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = values.get(field.name)
        if field.init and value != default and field.name not in _NOT_RECIPE:
            if not field.name.endswith("_token"):
                recipe.setdefault(field.name, value)
    if _set(recipe.get("accelerator_config")) == _set(AcceleratorConfig().to_dict()):
        recipe.pop("accelerator_config", None)
    if recipe.get("report_to") == []:
        recipe["report_to"] = "none"
    plain = {name: _plain(value) for name, value in recipe.items()}
    return {name: value for name, value in plain.items() if value is not None or recipe[name] is None}


def _set(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is set of accelerate's options; a trainer that is built takes `use_configured_state` out."""
    return {name: value for name, value in (options or {}).items() if value and name != "use_configured_state"}


def credit_of(allocators: Sequence[CreditAllocator]) -> dict[str, Any]:
    """The fields that make the allocator: `credit`, its settings, where answers stand. For your own there are none."""
    name = scheme_of(allocators)
    if name is None:
        return {}
    (allocator,) = allocators
    no_field = (*inspect.signature(CreditAllocator).parameters, *allocator.drop_in_fields)
    settings = inspect.signature(type(allocator)).parameters
    settings = {setting: getattr(allocator, setting) for setting in settings if setting not in no_field}
    if isinstance(history := settings.get("history"), HistoryNormalizer):
        names = inspect.signature(HistoryNormalizer).parameters
        settings["history"] = {setting: getattr(history, setting) for setting in names}
    if type(allocator.outcome) is MathVerifier:
        settings |= {"verifier_timeout": allocator.outcome.timeout}
        settings |= {"answer_pattern": allocator.outcome.reader.pattern}
    if settings.get("history") is False:
        del settings["history"]
    return {"credit": name, **{setting: value for setting, value in settings.items() if value is not None}}


def scheme_of(allocators: Sequence[CreditAllocator]) -> str | None:
    """What `credit` calls the allocator; `None` of several, or of one that the command does not know."""
    names = [name for name, cls in SCHEMES.items() for allocator in allocators if type(allocator) is cls]
    return names[0] if len(names) == len(allocators) == 1 else None


def credit_in_words(allocators: Sequence[CreditAllocator], names: Sequence[str]) -> str:
    """How credit is divided: a sentence for a scheme of ours, the name of any other, and what judges an answer."""
    scheme = scheme_of(allocators)
    words = _WORDS[scheme] if scheme else f"A recipe has no fields for it: {', '.join(names)}."
    judge = allocators[0].outcome
    return f"{words} An answer is judged by `{getattr(judge, '__name__', type(judge).__name__)}`."


def _plain(value: Any) -> Any:
    """A value as YAML has it; `None` of what it cannot hold, tokens left out."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        items = {str(key): _plain(item) for key, item in value.items() if not str(key).endswith("token")}
        return {key: item for key, item in items.items() if item is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value if isinstance(value, bool | int | float | str) else None
