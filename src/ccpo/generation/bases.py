"""
Folders that name a base model instead of holding weights.

If agents have adapters on one base, an agent may also play the base itself. Its folder has no weights then, but a file
that names the base.
"""

import json
from pathlib import Path
from typing import Any

BASE_FILE = "ccpo_base.json"
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
