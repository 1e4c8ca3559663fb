"""Describe in plain values what samples depend on: generators, the weights of their models, and outcome functions."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from zlib import crc32

from peft import PeftModel

from ..generation import OpenAIGenerator, TransformersGenerator, VLLMGenerator
from ..generation.bases import BASE_FILE, find_base, read_adapter
from ..team.answers import reader_of
from .loading import Player
from .team import Team

# Fields of a generator that are left out, because its samples do not depend on them or because they are secret.
_LEFT_OUT = {"api_key", "seed", "max_concurrency", "max_retries", "timeout", "model", "processing_class"}
_CHUNK, _CHUNKS = 1 << 16, 16  # of a long file, so many bytes are read at about so many places
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*config.json", "tokenizer*.json", "chat_template*", BASE_FILE)
_WHERE = {"token", "cache_dir", "local_files_only"}  # of `model_init_kwargs`: where the model comes from


def describe_team(team: Team, known: dict[int, Any] | None = None) -> dict[str, Any]:
    """
    Describe a team: its topology, its generators and its outcome function.

    Args:
        team ([`Team`]): The team.
        known (`dict`, *optional*):
            Maps the `id` of each generator to its description, so that several teams can share them.
    """
    known = {} if known is None else known
    generators = {role: team.generate[role] for role in team.topology.role_names}
    known |= {id(g): describe_generator(g) for g in generators.values() if id(g) not in known}
    return {
        "topology": team.topology.to_dict(),
        "generators": {role: known[id(generate)] for role, generate in generators.items()},
        "outcome": describe_outcome(team.outcome),
    }


def describe_generator(generate: Callable) -> dict[str, Any]:
    """
    Describe a generator: its kind, model and options.

    A local model has a checksum under `weights`, so that another model in the same folder is noticed. A user's own
    callable is described only by its name.
    """
    name = getattr(generate, "__qualname__", type(generate).__qualname__)
    if not isinstance(generate, OpenAIGenerator | TransformersGenerator | VLLMGenerator):
        return {"kind": name}
    options = {f.name: getattr(generate, f.name) for f in fields(generate) if f.init and f.name not in _LEFT_OUT}
    tokenizer = getattr(generate, "processing_class", None)
    model = generate.model
    if "model_init_kwargs" in options:
        given = (model.shared.options if isinstance(model, Player) else options["model_init_kwargs"]) or {}
        options["model_init_kwargs"] = {key: given[key] for key in given if key not in _WHERE} or None
    if "base_url" in options:
        options["base_url"] = options["base_url"] or os.environ.get("OPENAI_BASE_URL")
    return {"kind": name, **_describe_model(model), **options, **_describe_tokenizer(tokenizer)}


def describe_outcome(outcome: Callable) -> dict[str, Any]:
    """Describe an outcome function: its name, and the pattern by which it finds answers."""
    name = getattr(outcome, "__name__", type(outcome).__name__)
    return {"name": name, "answer_pattern": reader_of(outcome).pattern}


def identity(value: Any) -> Any:
    """A description without the paths of models that have a checksum, because a folder may be moved or renamed."""
    if isinstance(value, Mapping):
        moved = {"model", "tokenizer", "base"} if "weights" in value else set()
        return {key: identity(item) for key, item in value.items() if key not in moved}
    return [identity(item) for item in value] if isinstance(value, list | tuple) else value


def find_difference(was: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two descriptions differ, e.g. `generators.writer.top_p`, with both values."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in {**was, **now}:
            found = find_difference(was.get(key), now.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    return None if was == now else (name, was, now)


def plain(value: Any) -> Any:
    """The value as JSON can represent it. Everything else becomes text."""
    return json.loads(json.dumps(value, default=str))


def _describe_model(model: Any) -> dict[str, Any]:
    if isinstance(model, Player):
        weights = {"model": model.name_or_path, "base": model.shared.base}
        return weights | _checksums(weights.values())
    if isinstance(model, str):
        base = (read_adapter(model) or {}).get("base_model_name_or_path") or find_base(model)
        return {"model": model} | _checksums([model, base])
    named = getattr(model, "name_or_path", "") or type(model).__name__
    found = {"model": named, "weights": [sum(p.double().sum().item() for p in model.parameters())]}
    if isinstance(model, PeftModel):
        found |= {"adapters": list(model.active_adapters), "adapters_enabled": model.get_model_status().enabled}
    config = getattr(model, "generation_config", None)
    if config is None:
        return found
    return {**found, "generation_config": config.to_diff_dict() | {"transformers_version": None}}


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Describe a tokenizer by its name. An object also has a checksum of its rules, template and vocabulary."""
    if tokenizer is None or isinstance(tokenizer, str):
        return {} if tokenizer is None else {"tokenizer": tokenizer}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    rules = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    template, special = getattr(tokenizer, "chat_template", None), getattr(tokenizer, "special_tokens_map", None)
    vocabulary = sorted(tokenizer.get_vocab().items()) if hasattr(tokenizer, "get_vocab") else None
    found = crc32(repr((rules, template, special, vocabulary)).encode("utf-8", "replace"))
    return {"tokenizer": getattr(tokenizer, "name_or_path", None), "tokenizer_checksum": found}


def _checksums(names: Any) -> dict[str, Any]:
    folders = list(dict.fromkeys(name for name in names if Path(name).is_dir()))
    return {"weights": [checksum(Path(name)) for name in folders]} if folders else {}


def checksum(folder: Path) -> int:
    """A checksum of a model's folder: of the names and sizes of its files, and of some parts of each."""
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern) if file.is_file()})
    found = 0
    for file in files:
        size = file.stat().st_size
        found = crc32(f"{file.name} {size}".encode(), found)
        step = max(_CHUNK, size // _CHUNKS)
        with open(file, "rb") as stream:
            for start in range(0, size, step):
                stream.seek(start)
                found = crc32(stream.read(_CHUNK), found)
    return found
