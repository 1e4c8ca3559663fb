"""Agents that start from an existing adapter: a folder that a run saved, or a `PeftModel`."""

import copy
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import nn
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file
from trl.trainer.utils import create_model_from_path, get_config_model_id

# Fields that say where an adapter comes from and by which versions it was made. They do not change the adapter.
_NOT_THE_ADAPTER = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
)
_QUIET = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


@dataclass(frozen=True)
class Start:
    """
    An existing adapter from which an agent starts.

    Attributes:
        base (`str` or `PreTrainedModel`): The base model of the adapter.
        config (`PeftConfig`): The configuration of the adapter.
        source (`str` or `PeftModel`): The folder or id with its weights, or the object that holds it.
        name (`str`): The name of the adapter in that object.
    """

    base: Any
    config: PeftConfig
    source: Any
    name: str = "default"

    @property
    def origin(self) -> str:
        """Where the adapter comes from, in words."""
        if isinstance(self.source, str):
            return self.source
        return f"an object on {get_config_model_id(self.base.config) or 'a base in memory'}"

    @property
    def is_trainable(self) -> bool:
        """Whether the adapter may be trained. In an object it may not if it was loaded for inference or frozen."""
        if isinstance(self.source, str):
            return True
        on = [name for name, parameter in self.source.named_parameters() if parameter.requires_grad]
        # Only the active adapter of an object has gradients.
        return any(f".{self.name}." in f"{name}." for name in on) or bool(on and not self.config.inference_mode)


# ---- Read what was given ----


def read_start(agent: str, model: Any, peft_config: PeftConfig | None = None) -> Start | None:
    """
    Find the adapter from which an agent starts. No model is loaded.

    Args:
        agent (`str`): The agent.
        model (`str`, `PreTrainedModel` or `PeftModel`): Its model, as given to the trainer.
        peft_config (`PeftConfig`, *optional*): As given to the trainer. It must agree with the adapter.

    Returns:
        [`Start`], or `None` if the model has no adapter.

    Raises:
        `ValueError`: If the adapter cannot be read or trained, if `peft_config` differs from it, or if an object has
            several adapters and none has the agent's name.
    """
    where = f"`model` of {agent!r}"
    if isinstance(model, PeftModel):
        names = list(model.peft_config)
        name = next((name for name in (agent, "default") if name in names), names[0])
        if name not in (agent, "default") and len(names) > 1:
            raise ValueError(
                f"{where} has the adapters {names}, but none is named {agent!r} or 'default'. Rename the "
                "agent's own adapter, or give a folder with one adapter."
            )
        start = Start(model.get_base_model(), model.peft_config[name], model, name)
    elif isinstance(model, str) and _has_adapter(model):
        try:
            config = PeftConfig.from_pretrained(model)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{where}: the adapter in {model!r} could not be read ({error}). Save it again."
            ) from error
        if not config.base_model_name_or_path:
            raise ValueError(
                f"{where}: the adapter in {model!r} does not name its base model. Set "
                "`base_model_name_or_path` in its adapter_config.json, or give a PeftModel."
            )
        start = Start(config.base_model_name_or_path, config, model)
    else:
        return None
    if start.config.is_prompt_learning and isinstance(model, str):
        raise ValueError(
            f"{where}: {model!r} has an adapter of the kind {start.config.peft_type.value}, which PEFT cannot "
            "continue to train. Start from its base model, with `peft_config`."
        )
    if isinstance(peft_config, PeftConfig) and (differ := differences(peft_config, start.config)):
        raise _differs(agent, differ)
    return start


def _has_adapter(model: str) -> bool:
    try:
        return find_adapter_config_file(model) is not None
    except OSError:  # neither a folder nor a valid id
        return False


def read_starts(models: dict[str, Any], sharing: str, peft_config: PeftConfig | None) -> dict[str, Start]:
    """
    Find the adapters from which agents start.

    Args:
        models (`dict`): Maps each agent to its model, as given to the trainer.
        sharing (`str`): The field `policy_sharing`. With `"adapters"` all adapters must have the same base.
        peft_config (`PeftConfig`, *optional*): As given to the trainer.

    Returns:
        `dict[str, Start]`: Maps each agent that starts from an adapter to it.

    Raises:
        `ValueError`: If an adapter cannot be used, or if adapters do not fit together.
    """
    found = {agent: read_start(agent, model, peft_config) for agent, model in models.items()}
    starts = {agent: start for agent, start in found.items() if start is not None}
    if sharing != "adapters":
        return starts
    bases = {agent: starts[agent].base if agent in starts else model for agent, model in models.items()}
    names = {agent: _name(base) for agent, base in bases.items()}
    first = next(iter(bases))
    if any(bases[agent] is not bases[first] and (not names[agent] or names[agent] != names[first]) for agent in bases):
        raise ValueError(
            "`policy_sharing='adapters'` has one base model for all agents, but `model` gives several: "
            f"{ {agent: name or 'an object from nowhere' for agent, name in names.items()} }. Give one base, "
            "or set `policy_sharing='separate'`."
        )
    kinds = {agent: start.config.peft_type.value for agent, start in starts.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"`policy_sharing='adapters'` needs adapters of the same kind on the base, got {kinds}. Use 'separate'."
        )
    loaded = next((model for model in bases.values() if isinstance(model, nn.Module)), None)
    if loaded is not None:  # use a base that is already loaded
        starts = {agent: replace(start, base=loaded) for agent, start in starts.items()}
    return starts


def config_of_fresh(starts: dict[str, Start], fresh: list[str]) -> PeftConfig | None:
    """
    The configuration of new adapters if none was given: that of the saved adapters of the other agents.

    Raises:
        `ValueError`: If the saved adapters have different configurations.
    """
    configs = [start.config for start in starts.values()]
    if not configs:
        return None
    for agent, start in starts.items() if fresh else ():
        if differ := differences(configs[0], start.config):
            raise ValueError(
                f"`peft_config` is needed (got None): {fresh} start without an adapter. They could take the "
                f"settings of the saved adapters, but these differ: that of {agent!r} in {differ}. Pass it."
            )
    return copy.deepcopy(configs[0])


def differences(given: PeftConfig, saved: PeftConfig) -> dict[str, tuple]:
    """
    Maps each field in which two configurations differ to its two values.

    `target_modules` given in words, such as `"all-linear"`, is not compared, because only the model gives its meaning.
    """
    one, two = ({name: _plain(value) for name, value in vars(config).items()} for config in (given, saved))
    if type(given) is not type(saved):
        return {"peft_type": (one["peft_type"], two["peft_type"])}
    ignored = {*_NOT_THE_ADAPTER, *(("target_modules",) if _in_words(given) or _in_words(saved) else ())}
    return {name: (one[name], two.get(name)) for name in one if name not in ignored and one[name] != two.get(name)}


def _in_words(config: PeftConfig) -> bool:
    """Whether PEFT must look into the model to know which modules are meant."""
    return getattr(config, "target_modules", None) in (None, "all-linear")


def _plain(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | list | tuple) else value


def _differs(agent: str, differ: dict[str, tuple]) -> ValueError:
    return ValueError(
        f"`peft_config` differs from the adapter that {agent!r} starts from (given, saved): {differ}. Leave "
        "`peft_config` out, and the saved settings are used. Or start from the base model."
    )


def _name(base: Any) -> str:
    name = base if isinstance(base, str) else get_config_model_id(getattr(base, "config", None))
    return os.path.realpath(name) if os.path.isdir(name) else name


def tokenizer_folder(start: Start | None) -> str | None:
    """The folder or id of an adapter if it contains a tokenizer, else `None`."""
    if start is None or not isinstance(start.source, str):
        return None
    return start.source if cached_file(start.source, "tokenizer_config.json", **_QUIET) is not None else None


# ---- Load ----


def load_start(start: Start, args: Any, quantization_config: Any, peft_config: PeftConfig | None) -> PeftModel:
    """
    Load an adapter on its base for training, under the name "default", which [`~trl.GRPOTrainer`] expects.

    Args:
        start ([`Start`]): The adapter. An object is changed in place.
        args ([`MultiAgentGRPOConfig`]): Says how models are loaded.
        quantization_config (*optional*): The quantisation of the base.
        peft_config (`PeftConfig`, *optional*): As given to the trainer, to compare what only the model can tell.

    Returns:
        `PeftModel`

    Raises:
        `ValueError`: If `target_modules` of `peft_config`, given in words, means other modules than the adapter has.
    """
    if isinstance(start.source, PeftModel):
        model = _as_default(start.source, start.name)
    else:
        base, plugin = start.base, args.deepspeed_plugin
        if isinstance(base, str):
            kwargs = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
            kwargs.setdefault("revision", start.config.revision or "main")
            kwargs |= {} if quantization_config is None else {"quantization_config": quantization_config}
            if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):  # as in TRL
                kwargs["device_map"] = None
            base = create_model_from_path(base, **kwargs)
        quantized = getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False)
        # As in TRL: with ZeRO-3 all parameters of a module must have the same dtype.
        autocast = quantized or plugin is None or plugin.zero_stage != 3
        model = PeftModel.from_pretrained(base, start.source, is_trainable=True, autocast_adapter_dtype=autocast)
    if peft_config is not None and _in_words(peft_config):
        probe = copy.deepcopy(peft_config)
        model.add_adapter("ref", probe)  # PEFT replaces the words by the names of modules
        model.delete_adapter("ref")
        if differ := differences(probe, start.config):
            raise _differs("the agent", differ)
    return model


def _as_default(model: PeftModel, name: str) -> PeftModel:
    """Keep only one adapter of an object, and name it "default"."""
    if name != "default":
        weights = get_peft_model_state_dict(model, adapter_name=name)
        if "default" in model.peft_config:
            model.delete_adapter("default")
        inference = model.peft_config[name].inference_mode
        model.add_adapter("default", copy.deepcopy(model.peft_config[name]))
        match_dtypes(model, name, "default")
        set_peft_model_state_dict(model, weights, adapter_name="default")
        model.set_adapter("default", inference_mode=inference)
    for other in [other for other in model.peft_config if other != "default"]:
        model.delete_adapter(other)
    return model


def weights_of(start: Start) -> dict[str, torch.Tensor]:
    """The weights of the adapter. Their names do not contain the adapter's name."""
    if isinstance(start.source, str):
        return load_peft_weights(start.source, device="cpu")
    state = get_peft_model_state_dict(start.source, adapter_name=start.name)
    return {name: weight.detach().clone() for name, weight in state.items()}


def match_dtypes(model: PeftModel, one: str, other: str) -> None:
    """Give the parameters of one adapter the dtypes of another's. TRL chose those for QLoRA and ZeRO-3."""
    dtypes = {name: p.dtype for name, p in model.named_parameters() if f".{one}." in f"{name}."}
    first = next(iter(dtypes.values()), None)
    for name, parameter in model.named_parameters():
        if f".{other}." in f"{name}.":
            like = f"{name}.".replace(f".{other}.", f".{one}.")[:-1]
            parameter.data = parameter.data.to(dtypes.get(like, first))
