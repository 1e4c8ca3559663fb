"""Role -> weights: separate models in one container, one shared model, or one LoRA adapter per role."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path, disable_dropout_in_model, get_config_model_id


class RolePolicies(nn.Module):
    """
    Several policies as one module, so that one optimizer and one (DDP, DeepSpeed, FSDP) wrapper hold them all.

    `forward` is the active role's. Whatever else is asked of it (`config`, `generate`, `dtype`, …) the active role's
    model answers, so that TRL finds a model where it expects one.

    Args:
        policies (`dict[str, PreTrainedModel]`): a model per role.
    """

    def __init__(self, policies: dict[str, nn.Module]):
        super().__init__()
        self.policies = nn.ModuleDict(policies)
        self.active_role = next(iter(policies))

        # FSDP wraps what these name, in all policies.
        names = (getattr(policy, "_no_split_modules", None) or () for policy in policies.values())
        self._no_split_modules = sorted({name for names_of_one in names for name in names_of_one})

    def forward(self, *args, **kwargs):
        return self.policies[self.active_role](*args, **kwargs)

    def generate(self, *args, **kwargs):  # a method of its own, since FSDP wraps the one that it finds
        return self.policies[self.active_role].generate(*args, **kwargs)

    def tie_weights(self, *args, **kwargs):
        for policy in self.policies.values():
            policy.tie_weights(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "policies" or name.startswith("_"):  # not built yet, or private to nn.Module and wrappers
                raise
            return getattr(self.policies[self.active_role], name)

    @property
    def is_activation_checkpointing(self) -> bool:
        return any(policy.is_activation_checkpointing for policy in self.policies.values())

    def activation_checkpointing_enable(self, *args, **kwargs):
        for policy in self.policies.values():
            policy.activation_checkpointing_enable(*args, **kwargs)

    def activation_checkpointing_disable(self):
        for policy in self.policies.values():
            policy.activation_checkpointing_disable()

    # The names that TRL 1.16 calls.
    is_gradient_checkpointing = is_activation_checkpointing
    gradient_checkpointing_disable = activation_checkpointing_disable

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, **kwargs):
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)


def activate(model: nn.Module, role: str, roles: tuple[str, ...]) -> None:
    """
    Make the model the role's: switch the container or the adapter; a shared model is every role's already.

    PEFT's `set_adapter` switches the gradients of the other adapters off, and DDP and the optimizer must keep both, so
    every role's adapter stays trainable. Which role moves is decided by who gets a gradient.
    """
    if isinstance(model, RolePolicies):
        model.active_role = role
    elif isinstance(model, PeftModel) and role in model.peft_config:
        model.set_adapter(role)
        model.set_requires_grad(list(roles), requires_grad=True)


def parameter_roles(model: nn.Module, roles: tuple[str, ...]) -> Iterator[tuple[torch.Tensor, str | None]]:
    """Each parameter with the role it belongs to; `None` for weights that all roles share."""
    for name, parameter in model.named_parameters():
        if isinstance(model, RolePolicies):
            yield parameter, name.split(".")[1]  # "policies.<role>.…"
        else:
            yield parameter, next((role for role in roles if f".{role}." in f".{name}."), None)


def split_param_groups(optimizer: torch.optim.Optimizer, model: nn.Module, args: Any, roles: tuple[str, ...]) -> None:
    """
    Give every role its own parameter groups, each with the role's name and, if `role_kwargs` has one, its
    learning rate; in place.

    Args:
        optimizer (`torch.optim.Optimizer`): the optimizer as `Trainer` made it, before its first step.
        model (`nn.Module`): the policies.
        args ([`MultiAgentGRPOConfig`]): for the learning rates.
        roles (`tuple[str, ...]`): the topology's roles.

    Raises:
        `ValueError`: an optimizer that does not hold every role's parameters, or holds others.
    """
    owner = {id(parameter): role for parameter, role in parameter_roles(model, roles) if parameter.requires_grad}
    if any(id(parameter) not in owner for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("`optimizers` holds parameters that are not trainable parameters of the policies.")
    groups = []
    for group in optimizer.param_groups:
        for role in dict.fromkeys(owner[id(parameter)] for parameter in group["params"]):
            mine = [parameter for parameter in group["params"] if owner[id(parameter)] == role]
            lr = (args.role_kwargs or {}).get(role, {}).get("learning_rate", group["lr"])
            groups.append({**group, "params": mine, "role": role, "lr": lr})
    held = {group["role"] for group in groups}
    if missing := [role for role in dict.fromkeys(owner.values()) if role not in held]:
        raise ValueError(
            f"`optimizers` holds no parameter of the roles {missing}. Build it from all policies, or leave it out and "
            "let the trainer build it."
        )
    optimizer.param_groups[:] = groups


def build_policy(
    model: Any, args: Any, tokenizer: Any, peft_config: Any = None, quantization_config: Any = None
) -> nn.Module:
    """
    A further policy, made ready as `GRPOTrainer.__init__` makes its one model ready.

    Args:
        model (`str` or `PreTrainedModel`): an id, a folder or an object.
        args ([`MultiAgentGRPOConfig`]): configuration.
        tokenizer (`PreTrainedTokenizerBase`): the role's tokenizer.
        peft_config (`PeftConfig`, *optional*): LoRA.
        quantization_config (`BitsAndBytesConfig`, *optional*): used when loading from an id.

    Returns:
        `PreTrainedModel` or `PeftModel`.
    """
    if isinstance(model, str):
        kwargs = _init_kwargs(args)
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        model = create_model_from_path(model, **kwargs)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if peft_config is not None and not isinstance(model, PeftModel):
        zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
        model = get_peft_model(model, copy.deepcopy(peft_config), autocast_adapter_dtype=not zero3)
    if isinstance(model, PeftModel) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.disable_dropout:
        disable_dropout_in_model(model)
    return model


def build_reference(policy: nn.Module, args: Any) -> nn.Module | None:
    """The frozen reference of a further policy, as `GRPOTrainer.__init__` builds its own; `None` if it needs none."""
    if args.beta == 0 or isinstance(policy, PeftModel):  # an adapter's reference is its base
        return None
    kwargs = {"dtype": policy.dtype, "attn_implementation": policy.config._attn_implementation, **_init_kwargs(args)}
    reference = create_model_from_path(get_config_model_id(policy.config), **kwargs)
    if args.disable_dropout:
        disable_dropout_in_model(reference)
    return reference


def prepare_reference(reference: nn.Module, accelerator: Any) -> nn.Module:
    """Place or shard a reference as TRL does."""
    if accelerator.state.deepspeed_plugin is not None:
        return prepare_deepspeed(reference, accelerator)
    if getattr(accelerator.state, "fsdp_plugin", None) is not None:
        return prepare_fsdp(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)


def _init_kwargs(args: Any) -> dict[str, Any]:
    kwargs = dict(args.model_init_kwargs or {})
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    return kwargs


def add_role_adapters(model: PeftModel, roles: tuple[str, ...]) -> None:
    """Replace the adapter that TRL made, "default", by one of the same kind and dtype per role."""
    dtypes = {name: p.dtype for name, p in model.named_parameters() if ".default." in f"{name}."}
    for role in roles:
        model.add_adapter(role, copy.deepcopy(model.peft_config["default"]))
        for name, dtype in dtypes.items():
            parameter = model.get_parameter(name.replace(".default", f".{role}"))
            parameter.data = parameter.data.to(dtype)  # TRL's choice for QLoRA and ZeRO-3
    model.set_adapter(roles[0])
    model.delete_adapter("default")


def save_policies(
    model: nn.Module, output_dir: Path, tokenizers: dict[str, Any], state_dict: dict | None = None
) -> None:
    """
    Write `output_dir/<role>` for every role: weights or adapter, configuration and tokenizer.

    Args:
        model (`nn.Module`): the policies.
        output_dir (`Path`): where to.
        tokenizers (`dict[str, PreTrainedTokenizerBase]`): per role.
        state_dict (`dict`, *optional*): the gathered weights, where a backend shards them.
    """
    roles = tuple(tokenizers)
    if isinstance(model, PeftModel) and roles[0] in model.peft_config:
        model.save_pretrained(output_dir, state_dict=state_dict, selected_adapters=list(roles))  # a folder per adapter
    else:
        for role in roles:
            policy, weights = model, state_dict
            if isinstance(model, RolePolicies):
                policy, prefix = model.policies[role], f"policies.{role}."
                if state_dict is not None:
                    weights = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            if weights is not None:  # gathered, tied weights are two tensors
                tied = getattr(policy, "all_tied_weights_keys", {})
                weights = {name: weight for name, weight in weights.items() if name not in tied}
            policy.save_pretrained(output_dir / role, state_dict=weights)
    for role, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(output_dir / role)


def load_policies(model: nn.Module, folder: Path, roles: tuple[str, ...]) -> None:
    """Load what [`save_policies`] wrote into policies that are neither wrapped nor sharded; in place, bit for bit."""
    for role in roles:
        policy = model.policies[role] if isinstance(model, RolePolicies) else model
        if isinstance(policy, PeftModel):
            adapter = role if role in policy.peft_config else policy.active_adapter
            weights = load_peft_weights(str(folder / role), device="cpu")
            set_peft_model_state_dict(policy, weights, adapter_name=adapter)
        else:
            saved = type(policy).from_pretrained(folder / role, dtype=policy.dtype)
            policy.load_state_dict(saved.state_dict())


def load_sharded_adapters(model: PeftModel, folder: Path, roles: tuple[str, ...]) -> None:
    """
    Load the adapters that [`save_policies`] wrote into a model sharded by FSDP2; in place, bit for bit.

    accelerate keeps the active adapter only, under no name.

    Raises:
        `ValueError`: the folder has other weights than the adapter.
    """
    for role in roles:
        saved = load_peft_weights(str(folder / role), device="cpu")
        mine = {
            name.replace(f".{role}", "", 1): p for name, p in model.named_parameters() if f".{role}." in f"{name}."
        }
        if mine.keys() != saved.keys():
            raise ValueError(f"{folder / role} has other adapter weights: {sorted(mine.keys() ^ saved.keys())}.")
        for name, parameter in mine.items():
            weight = saved[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                weight = distribute_tensor(weight, parameter.device_mesh, parameter.placements)
            parameter.data.copy_(weight)


def merge_adapter(folder: Path, args: Any, dtype: torch.dtype) -> None:
    """
    Replace the adapter in a folder by the model that it makes of its base, which is loaded from where it came from.

    Args:
        folder (`Path`): a role's folder, as [`save_policies`] wrote it.
        args ([`MultiAgentGRPOConfig`]): configuration.
        dtype (`torch.dtype`): of the merged weights.
    """
    plugin = args.deepspeed_plugin
    # A model loaded under ZeRO-3 would be sharded over the processes, and this is one process.
    whole = plugin.zero3_init_context_manager(enable=False) if plugin is not None else nullcontext()
    kwargs = {"revision": (args.model_init_kwargs or {}).get("revision"), "trust_remote_code": args.trust_remote_code}
    with whole:
        model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype, **kwargs).merge_and_unload()
    model.save_pretrained(folder)
    for file in folder.glob("adapter_*"):
        file.unlink()
