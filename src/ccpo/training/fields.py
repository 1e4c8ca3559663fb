"""Check the types of configuration fields, because YAML and Python may give values of any type."""

import contextlib
import json
import re
import types
from datetime import date
from numbers import Integral, Number
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ..generation.inputs import check_known_options
from ..generation.stops import check_stops

_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_OTHER_RESULTS = {
    "num_return_sequences": "`num_generations` sets how many completions a prompt gets",
    "n": "`num_generations` sets how many completions a prompt gets",
    "return_dict_in_generate": "the trainer needs the plain token ids",
}
_COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "num_generations",
    "num_generations_eval",
)
_NOT_NEGATIVE = ("beta", "epsilon", "epsilon_high")


class _MappingLoader(yaml.SafeLoader):
    """Reads YAML from the command line, with `1e-6` as a number and `None` as null."""


_EXPONENT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
_MappingLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_MappingLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None$"), ["N"])


def read_mapping(name: str, text: str, parsed: bool = False) -> dict[str, Any] | str:
    """
    Read a mapping from the command line, in JSON or in YAML such as `{a: {temperature: 0.8}}`.

    Args:
        name (`str`): The name of the field, for the message.
        text (`str`): The text.
        parsed (`bool`, defaults to `False`): Whether to read JSON, too. Otherwise TRL reads it later.

    Returns:
        `dict` or `str`: The mapping, or the text if it is JSON for TRL or no mapping.

    Raises:
        `ValueError`: If the text is neither JSON nor YAML.
    """
    with contextlib.suppress(ValueError):
        given = json.loads(text)
        if parsed:
            return given
        return text.strip() if isinstance(given, dict) else text
    try:
        value = yaml.load(text, _MappingLoader)
    except yaml.YAMLError as error:
        raise ValueError(
            f"`{name}` must be a mapping in JSON or YAML, got {text!r}. Check its braces and quotes. ({error})"
        ) from error
    return value if isinstance(value, dict) else text


def check_scalars(arguments: Any) -> None:
    """
    Check the fields of a dataclass that hold a single text, number or truth value.

    Args:
        arguments (dataclass):
            The arguments. Fields with other annotations are not checked. Text is accepted for a number, because the
            parser of the command line reads it.

    Raises:
        `ValueError`: If such a field holds a list, a mapping or a value of another kind.
    """
    for name, hint in get_type_hints(type(arguments)).items():
        kinds = set(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)) - {type(None)}
        value = getattr(arguments, name, None)
        if value is None or not kinds <= _WORDS.keys():
            continue
        if isinstance(value, list | tuple | set | dict):
            wrong = True
        elif isinstance(value, bool):
            wrong = not kinds & {bool, str}  # some of TRL's fields accept both
        elif isinstance(value, date):  # what YAML makes of 2024-01-31
            wrong = True
        elif isinstance(value, Number):
            wrong = kinds == {str} or (kinds == {int} and not float(value).is_integer())
        else:
            wrong = isinstance(value, str) and kinds == {bool}
        if wrong:
            words = " or ".join(word for kind, word in _WORDS.items() if kind in kinds)
            quoted = " Put it in quotes." if isinstance(value, Number | date) and kinds == {str} else ""
            raise ValueError(f"`{name}` must be {words}, got {value!r}.{quoted}")


def check_counts(args: Any) -> None:
    """Raise a `ValueError` if a batch size or a number of repetitions is below 1, or if a weight is negative."""
    for name in _COUNTS:
        value = getattr(args, name)
        if isinstance(value, Integral) and value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    for name in _NOT_NEGATIVE:
        value = getattr(args, name)
        if isinstance(value, Number) and not value >= 0:
            raise ValueError(f"`{name}` must be a number >= 0, got {value!r}.")


def check_generation_keys(name: str, options: dict[str, Any], use_vllm: bool) -> None:
    """
    Check the keys of `generation_kwargs`. With vLLM, `stop_strings` is renamed to `stop`, in place.

    Raises:
        `ValueError`: If a key would be ignored by transformers, or would change what generation returns.
    """
    for key in ("stop_strings", "stop") if use_vllm else ("stop_strings",):
        check_stops(name, options, key)
    if use_vllm and "stop_strings" in options:
        if "stop" in options:
            raise ValueError(f"`{name}` has both 'stop_strings' and 'stop', which mean the same. Leave one out.")
        options["stop"] = options.pop("stop_strings")
    for key in options:
        if key in _OTHER_RESULTS:
            raise ValueError(f"`{name}[{key!r}]` cannot be set: {_OTHER_RESULTS[key]}. Leave it out.")
    if not use_vllm:
        check_known_options(name, options)
