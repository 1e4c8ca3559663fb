"""One adapter for each agent on one base: create, load and merge adapters, and keep the start as a reference."""

import copy
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id, use_adapter

from ..generation.bases import BASE_FILE
from .policies import activate, adapters_of, is_shared, policy_of
from .saving import link_saved, unlink_shared
from .starts import match_dtypes

REFERENCE = "{agent}:ref"  # the name of an adapter as it was at the start; agents' names have no colon


def add_agent_adapters(
    model: PeftModel,
    agents: tuple[str, ...],
    frozen: tuple[str, ...] = (),
    weights: dict[str, tuple[PeftConfig, dict[str, torch.Tensor]]] | None = None,
    fresh: PeftConfig | None = None,
    reference: bool = False,
) -> None:
    """
    Replace all adapters of a model by one for each agent.

    A frozen agent that does not start from an adapter uses the base and gets no adapter.

    Args:
        model (`PeftModel`): The model as TRL prepared it, with the adapter "default".
        agents (`tuple[str, ...]`): The agents of the topology.
        frozen (`tuple[str, ...]`): The agents that are not trained.
        weights (`dict`, *optional*):
            Maps each agent that starts from an adapter to the configuration and the weights of that adapter.
        fresh (`PeftConfig`, *optional*): The configuration of the other adapters. Defaults to that of "default".
        reference (`bool`, defaults to `False`):
            Whether a copy of each starting adapter is kept under the name [`REFERENCE`].

    Raises:
        `ValueError`: If an agent has the name of a module of the model, or if weights do not fit their configuration.
    """
    weights = weights or {}
    own = [agent for agent in agents if agent in weights or agent not in frozen]
    places = {part for name, _ in model.named_parameters() for part in name.split(".")} - set(model.peft_config)
    for agent in own:
        if agent in places:
            raise ValueError(
                f"`agent` {agent!r} is also the name of a module of the model, but the agent's adapter is "
                "named after it. Rename the agent."
            )
    model.set_adapter("default")
    for name in [name for name in model.peft_config if name != "default"]:
        model.delete_adapter(name)
    for agent in own:
        config, saved = weights.get(agent, (fresh or model.peft_config["default"], None))
        config = copy.deepcopy(config)
        config.inference_mode = agent in frozen
        _add_adapter(model, agent, config, saved)
        if reference and saved is not None and agent not in frozen:
            config = copy.deepcopy(config)
            config.inference_mode = True
            _add_adapter(model, REFERENCE.format(agent=agent), config, saved)
    model.set_adapter(own[0])
    model.delete_adapter("default")
    activate(model, agents[0], agents)


def _add_adapter(model: PeftModel, name: str, config: PeftConfig, saved: dict[str, torch.Tensor] | None) -> None:
    with warnings.catch_warnings():  # PEFT warns that "a" is a part of "lora_"; dots separate names, so it is harmless
        warnings.filterwarnings("ignore", "Adapter name .* should not be contained in the prefix")
        model.add_adapter(name, config)
    match_dtypes(model, "default", name)
    if saved is None:
        return
    found = set_peft_model_state_dict(model, saved, adapter_name=name).unexpected_keys
    missing = get_peft_model_state_dict(model, adapter_name=name).keys() - saved.keys()
    if found or missing:
        raise ValueError(
            f"The weights of the adapter that {name!r} starts from do not fit its adapter_config.json: "
            f"{sorted(found)} are too many, {sorted(missing)} are missing. Save the adapter again."
        )


class StartReference:
    """
    TRL's `ref_model` for an agent that started from an adapter: the policy as it was at the start.

    TRL's own reference of such a model is a copy of the adapter named "ref". A model can have only one of these.

    Args:
        trainer ([`~trl.GRPOTrainer`]): The trainer, whose model has all adapters.
        agent (`str`): The agent.
    """

    def __init__(self, trainer: GRPOTrainer, agent: str):
        self.trainer, self.adapter = trainer, REFERENCE.format(agent=agent)

    def __call__(self, **inputs: Any) -> Any:
        with use_adapter(self.trainer.accelerator.unwrap_model(self.trainer.model), self.adapter):
            return self.trainer.model(**inputs)


def load_sharded_adapters(model: PeftModel, folder: Path, agents: tuple[str, ...]) -> None:
    """
    Load the adapters that [`save_policies`] wrote into a model that FSDP2 has split over processes.

    This is needed because accelerate saves only the active adapter, without its name. The model is changed in place.

    Raises:
        `ValueError`: If the folder has other weights than the adapter.
    """
    for agent in adapters_of(model, agents):
        saved = load_peft_weights(str(folder / agent), device="cpu")
        place = f".{agent}."
        mine = {f"{n}.".replace(place, ".")[:-1]: p for n, p in model.named_parameters() if place in f"{n}."}
        if mine.keys() != saved.keys():
            raise ValueError(
                f"The weights in {folder / agent} do not fit the agent's adapter. These are only in one of the "
                f"two: {sorted(mine.keys() ^ saved.keys())}."
            )
        for name, parameter in mine.items():
            weight = saved[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                weight = distribute_tensor(weight, parameter.device_mesh, parameter.placements)
            parameter.data.copy_(weight)


def merge_adapters(model: nn.Module, folder: Path, agents: tuple[str, ...], args: Any) -> None:
    """
    Replace saved adapters by whole models, with each adapter merged into its base.

    The adapters are those that [`~ccpo.training.saving.save_policies`] wrote. The base is loaded again from its
    original place. For an agent without an adapter, the base itself is saved.

    Args:
        model (`nn.Module`): The policies.
        folder (`Path`): The folder that holds the agents' folders.
        agents (`tuple[str, ...]`): The agents of the topology.
        args ([`MultiAgentGRPOConfig`]): The configuration.
    """
    plugin = args.deepspeed_plugin
    # With ZeRO-3 the model would be split over the processes, but only one process runs this.
    whole = plugin.zero3_init_context_manager(enable=False) if plugin is not None else nullcontext()
    kwargs = {"revision": (args.model_init_kwargs or {}).get("revision"), "trust_remote_code": args.trust_remote_code}
    with whole:
        for agent in agents[:1] if is_shared(model, agents) else agents:
            policy, own = policy_of(model, agent), folder / agent
            if not isinstance(policy, PeftModel):
                continue
            if (own / "adapter_config.json").is_file():
                merged = AutoPeftModelForCausalLM.from_pretrained(own, dtype=policy.dtype, **kwargs).merge_and_unload()
            else:
                base = get_config_model_id(policy.config)
                merged = AutoModelForCausalLM.from_pretrained(base, dtype=policy.dtype, **kwargs)
            unlink_shared(own)
            merged.save_pretrained(own)
            for file in (*own.glob("adapter_*"), *own.glob(BASE_FILE)):
                file.unlink()
    if is_shared(model, agents):
        link_saved(folder, agents)
