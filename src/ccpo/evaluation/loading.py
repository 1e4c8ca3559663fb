"""
Make generators for the roles of a team from saved folders or model ids.

If several agents have adapters on one base, the base is loaded only once.
"""

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

TEAM_FILE = "team.json"  # holds the topology with its prompts, and how each role is sampled
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
BACKENDS = ("transformers", "vllm")


# ---- What a run saved ----


def read_team(folder: str | Path) -> tuple[Topology, dict[str, dict[str, Any]], str | None]:
    """
    Read `team.json` in the folder of a saved team.

    Args:
        folder (`str` or `Path`): The folder.

    Returns:
        `tuple[Topology, dict[str, dict], str | None]`: The topology, for each role the arguments of its generator, and
        the `answer_pattern` of the run's verifier.

    Raises:
        `ValueError`: If the folder has no such file, or if it cannot be read.
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
    Find the folder of each agent in the folder of a run. For a team of one role it is the same folder.

    Args:
        folder (`str` or `Path`): The folder of the run.
        topology ([`Topology`]): The team.
        but (`set[str]`): Agents that need no model.

    Returns:
        `dict[str, str]`: Maps each other agent to its folder.

    Raises:
        `ValueError`: If an agent has no folder, or if its model is incomplete.
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
    """What is missing in the folder of a model or an adapter, or `None` if it looks complete."""
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
    """The defect of a safetensors file whose size is wrong. Its header says where each tensor ends."""
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
    A base model that several agents use, each with its own adapter or with none. It is loaded at the first use.

    Args:
        base (`str`): The id or folder of the base.
        adapters (`dict[str, str]`): Maps agents to the folders of their adapters.
        options (`dict`): Options of `AutoModelForCausalLM.from_pretrained`.
    """

    def __init__(self, base: str, adapters: dict[str, str], options: dict):
        self.base, self.adapters, self.options = base, adapters, options

    @cached_property
    def model(self) -> Any:
        tokenizer = next(iter(self.adapters.values()), self.base)  # not used here, but `_load` loads one
        model = TransformersGenerator(self.base, tokenizer, model_init_kwargs=self.options)._load()[0]
        for agent, folder in self.adapters.items():
            if isinstance(model, PeftModel):
                model.load_adapter(folder, agent)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=agent)
        return model


class Player:
    """
    A [`SharedModel`] as one agent uses it: with this agent's adapter, or with none. For [`TransformersGenerator`].

    Args:
        shared ([`SharedModel`]): The model.
        agent (`str`): The agent.
        name (`str`): The folder or id of the agent's model.
        tokenizer_options (`dict`): Options for loading its tokenizer.
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
    Make a generator for each role. Roles with the same model and the same settings share one.

    Args:
        topology ([`Topology`]): The team.
        models (`Mapping[str, str]`): Maps each agent to the id or folder of its model.
        given (`Mapping[str, Callable]`): Maps a role or agent to a generator that is used instead of a model.
        sampling (`Mapping`): Maps each role to the arguments of its generator.
        backend (`str`, defaults to `"transformers"`): `"transformers"`, or `"vllm"` for vLLM's offline engine.
        seed (`int`, *optional*): A seed for the samples of the whole team.
        overrides: Arguments of all generators, which win over `sampling`.

    Returns:
        `dict[str, Callable]`: Maps each role to its generator.

    Raises:
        `ValueError`: If `given` or `models` names an unknown role or agent, if an agent has neither a model nor a
            generator, or if the backend is unknown.
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
        if backend == "vllm":  # vLLM caches prefixes itself, see `enable_prefix_caching` in `model_init_kwargs`
            options.pop("prefix_caching", None)
        who, make = playing[topology.agent_of(role)]
        key = repr((who, sorted(options.items(), key=str)))
        if key not in made:  # each gets another seed, so that equal agents do not draw equal texts
            made[key] = make(seed=None if seed is None else 1000 * seed + len(made), **options)
        generators[role] = made[key]
    return generators


def _bases(models: Mapping[str, str]) -> dict[str, tuple[str, dict | None]]:
    """Maps each agent to its base and the configuration of its adapter, which is `None` without an adapter."""
    found = {}
    for agent, name in models.items():
        adapter = read_adapter(name)
        found[agent] = (adapter["base_model_name_or_path"] if adapter else find_base(name), adapter)
    return found


def _players(models: Mapping[str, str], init: dict) -> dict[str, tuple[Any, Callable]]:
    """Maps each agent to a value that identifies its weights, and to a function that makes its generator."""
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
    """Like [`_players`], for vLLM. There is one engine for each base, and they share the memory of the device."""
    bases, playing = _bases(models), {}
    for agent, (base, adapter) in bases.items():
        ranks = [own["r"] for b, own in bases.values() if b == base and own]
        options = {"gpu_memory_utilization": 0.9 / len({base for base, _ in bases.values()}), **init}
        make = partial(VLLMGenerator, models[agent], lora_rank=max(ranks, default=None), model_init_kwargs=options)
        playing[agent] = (base, models[agent] if adapter else None), make
    return playing
