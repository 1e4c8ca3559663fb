"""The rules for the numbers that a run, a role or its sampler may set."""

import contextlib
import logging
import math
from numbers import Integral, Real
from typing import Any

from .fields import check_generation_keys

logger = logging.getLogger(__name__)

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
LENGTHS = ("max_new_tokens", "max_tokens")  # names of `max_completion_length` in `generation_kwargs`
# For each field with a number that a role may have of its own: its type, its rule, and the rule in words.
ROLE_NUMBERS = {
    "max_completion_length": (int, lambda x: x >= 1, "an integer of at least 1"),
    "learning_rate": (float, lambda x: x >= 0, "a finite number >= 0"),
    "temperature": (float, lambda x: x > 0, "a finite number > 0"),
    "top_p": (float, lambda x: 0 < x <= 1, "a number in (0, 1]; 1 switches it off"),
    "top_k": (int, lambda x: x >= 0, "an integer >= 0; 0 switches it off"),
    "min_p": (float, lambda x: 0 <= x <= 1, "None or a number in [0, 1]; None switches it off"),
    "repetition_penalty": (float, lambda x: x > 0, "a finite number > 0; 1 switches it off"),
    "vllm_gpu_memory_utilization": (float, lambda x: 0 < x <= 1, "a number in (0, 1]"),
    "vllm_server_port": (int, lambda x: 0 < x < 65536, "a port, 1 to 65535"),
    "vllm_group_port": (int, lambda x: 0 < x < 65536, "a port, 1 to 65535"),
}
MAY_BE_NONE = {"common": ("min_p", "max_completion_length"), "role": ("min_p",)}  # in TRL, None means no limit
_IN_GENERATION_KWARGS = tuple(name for name in SAMPLING if name != "top_k")  # vLLM switches top_k off by -1


def read_number(name: str, key: str, value: Any, *, may_be_none: bool) -> Any:
    """
    Read a number, and check it by its rule in `ROLE_NUMBERS`.

    Args:
        name (`str`): The name of the value, for the message.
        key (`str`): The key of its rule.
        value: The number, the number as text (YAML reads 1e-6 as text), or `None`.
        may_be_none (`bool`): Whether `None` is allowed.

    Raises:
        `ValueError`: If the value breaks the rule.
    """
    kind, allowed, words = ROLE_NUMBERS[key]
    if value is None and may_be_none:
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = kind(value)
    number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and allowed(value)):
        raise ValueError(f"`{name}` must be {words}, got {value!r}.")
    return kind(value)  # transformers does not accept the integer 2 as a temperature


def check_sampling(name: str, options: Any, use_vllm: bool) -> None:
    """
    Check sampling options, in place.

    Options that replace a field of the configuration must keep its rule. The others belong to the sampler.
    """
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"`{name}` must be a mapping, got {options!r}.")
    for key in options or {}:
        rule = "max_completion_length" if key in LENGTHS else key
        if rule == "max_completion_length" or key in _IN_GENERATION_KWARGS:
            options[key] = read_number(f"{name}[{key!r}]", rule, options[key], may_be_none=True)
    check_generation_keys(name, options or {}, use_vllm)


def check_robust(args: Any) -> None:
    """Raise a `ValueError` if the numbers of `advantage_estimator='robust'` are wrong, or are set without it."""
    names = ("robust_alpha", "robust_c", "robust_blocks")
    if args.advantage_estimator != "robust":
        for name in (name for name in names if getattr(args, name) != getattr(type(args), name)):
            raise ValueError(
                f"`{name}={getattr(args, name)!r}` works only with `advantage_estimator='robust'`, got "
                f"{args.advantage_estimator!r}. Leave it out, or set that estimator."
            )
        return
    if not -10 <= args.robust_alpha <= 2:
        raise ValueError(f"`robust_alpha` must be a number in [-10, 2], got {args.robust_alpha!r}.")
    if not (math.isfinite(args.robust_c) and args.robust_c > 0):
        raise ValueError(f"`robust_c` must be a finite number above 0, got {args.robust_c!r}.")
    blocks, groups = args.robust_blocks, {"num_generations": args.num_generations}
    if args.eval_strategy != "no" and args.num_generations_eval is not None:
        groups["num_generations_eval"] = args.num_generations_eval
    field, size = min(groups.items(), key=lambda item: item[1])
    if not isinstance(blocks, int) or blocks < 1 or blocks % 2 == 0 or blocks > size:
        raise ValueError(f"`robust_blocks` must be an odd number from 1 to `{field}={size}`, got {blocks!r}.")
    if args.scale_rewards != "none":
        raise ValueError(
            "`advantage_estimator='robust'` already divides by the standard deviation of the group, so "
            f"`scale_rewards` must be 'none', got {args.scale_rewards!r}."
        )
    logger.warning(
        "`advantage_estimator='robust'` is biased if rewards have only two values, such as right and wrong: "
        "it moves the baseline towards the more frequent value (docs/credit/are.md has the numbers)."
    )
