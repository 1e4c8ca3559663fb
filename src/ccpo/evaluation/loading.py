"""Generators for the agents of a team: from saved folders or model ids, a base with several adapters loaded once."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..generation import TransformersGenerator, VLLMGenerator
from ..generation.bases import BASE_FILE, find_base, read_adapter
from ..generation.local import HUB
from ..team.topology import Topology, make_topology

TEAM_FILE = "team.json"  # beside the agents' folders: who speaks, with which prompts, sampled how
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
BACKENDS = ("transformers", "vllm")


# ---- What a run saved ----


def read_team(folder: str | Path) -> tuple[Topology, dict[str, dict[str, Any]], str | None]:
    """
    A saved team's topology, how each role was sampled, and where its answers stand.

    Raises:
        `ValueError`: no such folder, or no readable team in it.
    """
    folder = Path(folder)
    file = folder / TEAM_FILE
    if not file.is_file():
        checkpoints = sorted(folder.glob(f"checkpoint-*/{TEAM_FILE}"), key=lambda path: len(str(path)))
        hint = f" There is one in {checkpoints[-1].parent}." if checkpoints else ""
        raise ValueError(
            f"{folder} has no {TEAM_FILE}. Either it is not the folder of a trained team, or saving it was "
            f"interrupted.{hint} Give the run's `output_dir` or one of its complete checkpoints, or name "
            "models and a topology (`Team.from_models`; on the command line `--models` and `--topology`)."
        )
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        run = saved.pop("run", None) or {}
        topology = make_topology(saved)
        sampling = {role: dict(options) for role, options in run.get("sampling", {}).items()}
        pattern = run.get("answer_pattern")
        known = [name for name, field in TransformersGenerator.__dataclass_fields__.items() if field.init]
        if unknown := sorted({name for options in sampling.values() for name in options} - {*known}):
            raise ValueError(f"`sampling` has {unknown}, which are not arguments of TransformersGenerator")
        if not isinstance(pattern, str | None):
            raise TypeError(f"`answer_pattern` must be a text, got {pattern!r}")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read as a team ({error}). Save the team again.") from error
    return topology, sampling, pattern


def find_folders(folder: str | Path, topology: Topology, but: set[str]) -> dict[str, str]:
    """
    Each agent's folder in that of a run; of one role, it is the run's own.

    Args:
        folder (`str` or `Path`): the run's.
        topology ([`Topology`]): whose agents.
        but (`set[str]`): agents that need none.

    Raises:
        `ValueError`: an agent without a folder, or a model that is not whole.
    """
    folders = {}
    for agent in topology.agents:
        if agent in but:
            continue
        own = Path(folder) if topology.is_solo else Path(folder) / agent
        if not own.is_dir():
            raise ValueError(
                f"{folder} has no folder of the agent {agent!r}. Saving it was interrupted, or the folder was "
                "deleted. Save the team again, or give a generator for the agent in `generate`."
            )
        if defect := find_defect(own):
            raise ValueError(f"The model of the agent {agent!r} is incomplete: {defect}. Save the team again.")
        folders[agent] = str(own)
    return folders


def find_defect(folder: Path) -> str | None:
    """What a folder lacks to be loaded as a model, or an adapter; `None` if nothing can be seen to be missing."""
    for file in sorted({*folder.glob("*config.json"), *folder.glob("tokenizer*.json")}):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"{file} is incomplete, or not JSON ({error})"
    if not any(file.is_file() for name in TOKENIZER_FILES for file in folder.glob(name)):
        return f"{folder} has no tokenizer"
    if (folder / BASE_FILE).is_file():
        return None
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        return f"{folder} has neither config.json nor adapter_config.json"
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights:
        return f"{folder} has no weights"
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index} cannot be read"
        if missing := sorted(shards - {file.name for file in weights}):
            return f"{index} names {missing}, which are missing"
    return next((defect for file in sorted(folder.glob("*.safetensors")) if (defect := _cut_short(file))), None)


def _cut_short(file: Path) -> str | None:
    """A safetensors file begins with where each tensor ends, so that its size is known."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length < size else None
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError):
            return f"{file} has {size} bytes and no readable header"
    whole = 8 + length + max(ends, default=0)
    return None if size == whole else f"{file} has {size} bytes instead of {whole}"


# ---- Models of several agents ----


class SharedModel:
    """
    A model that several agents play, each with an adapter of its own or with none; loaded when the first one speaks.

    Args:
        base (`str`): id or folder.
        adapters (`dict[str, str]`): agent -> folder of its adapter.
        options (`dict`): of `AutoModelForCausalLM.from_pretrained`.
    """

    def __init__(self, base: str, adapters: dict[str, str], options: dict):
        self.base, self.adapters, self.options = base, adapters, options

    @cached_property
    def model(self) -> Any:
        tokenizer = next(iter(self.adapters.values()), self.base)  # of no use here, but loaded
        model = TransformersGenerator(self.base, tokenizer, model_init_kwargs=self.options)._load()[0]
        for agent, folder in self.adapters.items():
            if isinstance(model, PeftModel):
                model.load_adapter(folder, agent)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=agent)
        return model


class Player:
    """
    A [`SharedModel`] as one agent plays it, for [`TransformersGenerator`]: its adapter is on, or none is.

    Args:
        shared ([`SharedModel`]): the model.
        agent (`str`): whose.
        name (`str`): folder or id of the agent's model.
        tokenizer_options (`dict`): how its tokenizer is loaded.
    """

    def __init__(self, shared: SharedModel, agent: str, name: str, tokenizer_options: dict[str, Any]):
        self.shared, self.agent, self.name_or_path = shared, agent, name
        self.tokenizer_options = tokenizer_options

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "shared":
            raise AttributeError(name)
        model = self.shared.model
        return getattr(model.get_base_model() if isinstance(model, PeftModel) else model, name)

    @contextmanager
    def _playing(self) -> Iterator[Any]:
        model = self.shared.model
        if not isinstance(model, PeftModel):
            yield model
        elif self.agent in self.shared.adapters:
            model.set_adapter(self.agent)
            yield model.get_base_model()
        else:
            with model.disable_adapter():
                yield model.get_base_model()

    def generate(self, *args: Any, **options: Any) -> Any:
        with self._playing() as model:
            return model.generate(*args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self._playing() as model:
            return model(*args, **options)


def make_generators(
    topology: Topology,
    models: Mapping[str, str],
    given: Mapping[str, Callable],
    sampling: Mapping[str, Mapping[str, Any]],
    *,
    backend: str = "transformers",
    seed: int | None = None,
    **overrides: Any,
) -> dict[str, Callable]:
    """
    A generator for each role. Roles of one model that are sampled alike have the same one, and its calls.

    Args:
        topology ([`Topology`]): who speaks.
        models (`Mapping[str, str]`): agent -> id or folder of its model.
        given (`Mapping[str, Callable]`): role or agent -> a generator in place of a model.
        sampling (`Mapping`): role -> arguments of its generator.
        backend (`str`): `"transformers"`, or `"vllm"` for its offline engine.
        seed (`int`, *optional*): of the samples, one for the team.
        overrides: arguments of every generator.

    Raises:
        `ValueError`: a generator of nobody, an agent with neither model nor generator, or an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {list(BACKENDS)}, got {backend!r}.")
    if unknown := sorted({*given, *models} - {*topology.role_names, *topology.agents}):
        raise ValueError(
            f"{unknown} are not roles or agents of the team. Its roles are {list(topology.role_names)}, its "
            f"agents {list(topology.agents)}."
        )
    named = {role: given.get(role, given.get(topology.agent_of(role))) for role in topology.role_names}
    agents = [topology.agent_of(role) for role in topology.role_names if named[role] is None]
    if missing := sorted({agent for agent in agents if agent not in models}):
        raise ValueError(f"The agents {missing} have no model. Name one for each, or give generators in `generate`.")
    init = overrides.pop("model_init_kwargs", None) or {}
    load = _players if backend == "transformers" else _engines
    playing = load({agent: models[agent] for agent in dict.fromkeys(agents)}, init)
    made: dict[str, Callable] = {}
    generators = {}
    for role, generate in named.items():
        if generate is not None:
            generators[role] = generate
            continue
        options = {**sampling.get(role, {}), **overrides}
        if backend == "vllm":  # whose engine keeps prefixes by itself: `enable_prefix_caching` of `model_init_kwargs`
            options.pop("prefix_caching", None)
        who, make = playing[topology.agent_of(role)]
        key = repr((who, sorted(options.items(), key=str)))
        if key not in made:  # agents that are alike would draw alike from one seed
            made[key] = make(seed=None if seed is None else 1000 * seed + len(made), **options)
        generators[role] = made[key]
    return generators


def _bases(models: Mapping[str, str]) -> dict[str, tuple[str, dict | None]]:
    """Agent -> the base that it plays, and its adapter's configuration; `None` of a whole model."""
    found = {}
    for agent, name in models.items():
        adapter = read_adapter(name)
        found[agent] = (adapter["base_model_name_or_path"] if adapter else find_base(name), adapter)
    return found


def _players(models: Mapping[str, str], init: dict) -> dict[str, tuple[Any, Callable]]:
    """Agent -> which weights it speaks with, and what makes a generator of them."""
    bases, shared, playing = _bases(models), {}, {}
    for agent, (base, _) in bases.items():
        if base not in shared:
            own = {a: models[a] for a, (b, adapter) in bases.items() if b == base and adapter}
            shared[base] = SharedModel(base, own, init)
        adapter = models[agent] if agent in shared[base].adapters else None
        options = {name: value for name, value in init.items() if name in HUB}
        player = Player(shared[base], agent, models[agent], options)
        playing[agent] = (base, adapter), partial(TransformersGenerator, player, models[agent])
    return playing


def _engines(models: Mapping[str, str], init: dict) -> dict[str, tuple[Any, Callable]]:
    """As [`_players`], with vLLM: an engine for each base, which share the device's memory."""
    bases, playing = _bases(models), {}
    for agent, (base, adapter) in bases.items():
        ranks = [own["r"] for b, own in bases.values() if b == base and own]
        options = {"gpu_memory_utilization": 0.9 / len({base for base, _ in bases.values()}), **init}
        make = partial(VLLMGenerator, models[agent], lora_rank=max(ranks, default=None), model_init_kwargs=options)
        playing[agent] = (base, models[agent] if adapter else None), make
    return playing
