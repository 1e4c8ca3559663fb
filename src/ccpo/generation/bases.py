"""
Where a model is loaded from.

A folder may name a base model instead of holding weights: an agent may play the base of other agents' adapters. Models
of generators are loaded whole, even if training splits its models over processes.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.integrations import deepspeed

BASE_FILE = "ccpo_base.json"
FSDP_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # the first process loads a model and sends it to the others
_KEY = "base_model_name_or_path"  # as in adapter_config.json


def name_base(folder: Path, base: str | None) -> None:
    """Write the name of the base (an id or a folder) into an agent's folder; `None` if the base has no name."""
    (folder / BASE_FILE).write_text(json.dumps({_KEY: base}, indent=2) + "\n", encoding="utf-8")


def find_base(model: Any) -> Any:
    """
    The model to load: the base that the model's folder names, or else the model itself.

    Args:
        model (`str` or any object): The model as given.

    Raises:
        `ValueError`: If the folder has the file for it, but the file names no base.
    """
    if not isinstance(model, str) or not (file := Path(model) / BASE_FILE).is_file():
        return model
    try:
        base = json.loads(file.read_text(encoding="utf-8"))[_KEY]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{str(file)!r} names no base model, but the agent of this folder is the base model without an "
            f"adapter, so the folder has no weights. Set `{_KEY}` in the file to a model id or a folder, or "
            "give the base model itself."
        )
    return base


def read_adapter(model: Any) -> dict[str, Any] | None:
    """
    The configuration of the PEFT adapter in a folder; `None` if there is no adapter.

    Args:
        model (`str` or any object): The model as given.

    Raises:
        `ValueError`: If the configuration cannot be read, or names no base.
    """
    file = Path(model) / "adapter_config.json" if isinstance(model, str) else None
    if file is None or not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config[_KEY], str) and config[_KEY]:
            return config
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{str(file)!r} does not name the base model of the adapter. Set `{_KEY}` in it, or save the adapter again."
    )


@contextmanager
def unsharded_loading() -> Iterator[None]:
    """
    Load a frozen model whole on every process, within this context.

    ZeRO-3 would split the model when it is created, and no DeepSpeed engine could gather it. With FSDP, transformers
    5.17 would load the weights only on the first process and leave zeros on the others.
    """
    config, efficient = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(FSDP_LOADING, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if efficient is not None:
            os.environ[FSDP_LOADING] = efficient
