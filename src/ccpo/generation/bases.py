"""Where a model is loaded from: a folder without weights names its base; and whole, whatever shards the others."""

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
    """Write into an agent's folder which base it played: an id or a folder, `None` for an object from nowhere."""
    (folder / BASE_FILE).write_text(json.dumps({_KEY: base}, indent=2) + "\n", encoding="utf-8")


def find_base(model: Any) -> Any:
    """
    What is to be loaded for a model: the base that its folder names, else itself.

    Args:
        model (`str` or any object): as given.

    Raises:
        `ValueError`: the folder's file names no base.
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
    The configuration of the PEFT adapter that a folder holds; `None` of anything else.

    Raises:
        `ValueError`: a configuration that cannot be read, or names no base.
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
    Load a frozen model whole on every process. ZeRO-3 would shard it at birth, with no engine to gather it. For FSDP,
    transformers 5.17 would leave zeros on all processes but the first, to which nobody sends the weights.
    """
    config, efficient = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(FSDP_LOADING, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if efficient is not None:
            os.environ[FSDP_LOADING] = efficient
