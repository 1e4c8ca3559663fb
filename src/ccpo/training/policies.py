"""Agent -> weights: separate models in one container, one shared model, or one LoRA adapter per agent."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.trainer_utils import TrainerMemoryTracker
from trl import GRPOTrainer

from ..quiet import patient_bars


class AgentPolicies(nn.Module):
    """
    Several policies as one module, so that one optimizer and one (DDP, DeepSpeed, FSDP) wrapper hold them all.

    `forward` is the active agent's. Whatever else is asked of it (`config`, `generate`, `dtype`, …) the active agent's
    model answers, so that TRL finds a model where it expects one.

    Args:
        policies (`dict[str, PreTrainedModel]`): a model per agent.
    """

    def __init__(self, policies: dict[str, nn.Module]):
        super().__init__()
        self.policies = nn.ModuleDict(policies)
        self.active_agent = next(iter(policies))

        # FSDP wraps what these name, in all policies.
        names = (getattr(policy, "_no_split_modules", None) or () for policy in policies.values())
        self._no_split_modules = sorted({name for names_of_one in names for name in names_of_one})

    def forward(self, *args, **kwargs):
        return self.policies[self.active_agent](*args, **kwargs)

    def generate(self, *args, **kwargs):  # a method of its own, since FSDP wraps the one that it finds
        return self.policies[self.active_agent].generate(*args, **kwargs)

    def tie_weights(self, *args, **kwargs):
        for policy in self.policies.values():
            policy.tie_weights(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "policies" or name.startswith("_"):  # not built yet, or private to nn.Module and wrappers
                raise
            return getattr(self.policies[self.active_agent], name)

    @property
    def is_activation_checkpointing(self) -> bool:
        return any(_checkpointing(policy, "is_{}") for policy in self.policies.values())

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **kwargs):
        for policy in self.policies.values():
            _checkpointing(policy, "{}_enable")(activation_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_disable(self):
        for policy in self.policies.values():
            _checkpointing(policy, "{}_disable")()

    # The names that TRL 1.16 calls, and transformers before 5.23.
    is_gradient_checkpointing = is_activation_checkpointing
    gradient_checkpointing_disable = activation_checkpointing_disable

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, **kwargs):
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)


def _checkpointing(policy: nn.Module, name: str) -> Any:
    """An attribute about the checkpointing of activations, which transformers before 5.23 called that of gradients."""
    new = name.format("activation_checkpointing")
    return getattr(policy, new if hasattr(policy, new) else name.format("gradient_checkpointing"))


def activate(model: nn.Module, agent: str, agents: tuple[str, ...]) -> None:
    """
    Make the model the agent's: switch the container or the adapter; a shared model is every agent's already. An agent
    without an adapter plays the base.

    PEFT's `set_adapter` switches the gradients of the other adapters off, and DDP and the optimizer must keep all, so
    every trained agent's adapter stays trainable. Which agent moves is decided by who gets a gradient.
    """
    if isinstance(model, AgentPolicies):
        model.active_agent = agent
    elif adapters := adapters_of(model, agents):
        frozen = [name for name in adapters if model.peft_config[name].inference_mode]
        if len(adapters) < len(agents):
            getattr(model.base_model, "enable_adapter_layers" if agent in adapters else "disable_adapter_layers")()
        if agent in adapters:
            model.set_adapter(agent, inference_mode=agent in frozen)
        model.set_requires_grad([name for name in adapters if name not in frozen], requires_grad=True)


def adapters_of(model: nn.Module, agents: tuple[str, ...]) -> list[str]:
    """The agents that have an adapter of their own on the one base; none where there are no such adapters."""
    return [agent for agent in agents if agent in model.peft_config] if isinstance(model, PeftModel) else []


@contextmanager
def all_trainable(model: nn.Module, agents: tuple[str, ...]) -> Iterator[None]:
    """
    Every adapter of the agents with its gradient on, as [`activate`] leaves those of trained agents; frozen ones are
    off again afterwards.

    To save, `Trainer` gathers of adapters under ZeRO-3 only what has a gradient, and PEFT would write another agent's
    weights for those that it misses.
    """
    adapters = adapters_of(model, agents)
    frozen = [agent for agent in adapters if model.peft_config[agent].inference_mode]
    if adapters:
        model.set_requires_grad(adapters, requires_grad=True)
    yield
    if frozen:
        model.set_requires_grad(frozen, requires_grad=False)


def is_shared(model: nn.Module, agents: tuple[str, ...]) -> bool:
    """Whether the agents are one model without anything of their own."""
    return len(agents) > 1 and not isinstance(model, AgentPolicies) and not adapters_of(model, agents)


def policy_of(model: nn.Module, agent: str) -> nn.Module:
    """The agent's model; the one model where agents share it or have adapters on it."""
    return model.policies[agent] if isinstance(model, AgentPolicies) else model


def parameter_agents(model: nn.Module, agents: tuple[str, ...]) -> Iterator[tuple[torch.Tensor, str | None]]:
    """Each parameter with the agent that it belongs to; `None` for weights that several share."""
    own = adapters_of(model, agents)
    only = agents[0] if len(agents) == 1 else None
    for name, parameter in model.named_parameters():
        if isinstance(model, AgentPolicies):
            yield parameter, name.split(".")[1]  # "policies.<agent>.…"
        else:
            yield parameter, next((agent for agent in own if f".{agent}." in f".{name}."), only)


def split_param_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, agents: tuple[str, ...], learning_rates: dict[str, float]
) -> None:
    """
    Give every agent its own parameter groups, each with the agent's name and its learning rate; in place.

    Args:
        optimizer (`torch.optim.Optimizer`): the optimizer as `Trainer` made it, before its first step.
        model (`nn.Module`): the policies.
        agents (`tuple[str, ...]`): the topology's agents.
        learning_rates (`dict[str, float]`): of the agents that have one of their own.

    Raises:
        `ValueError`: an optimizer that does not hold every trained agent's parameters, or holds others.
    """
    owner = {id(parameter): agent for parameter, agent in parameter_agents(model, agents) if parameter.requires_grad}
    if any(id(parameter) not in owner for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("`optimizers` holds parameters that are not trainable parameters of the policies.")
    groups = []
    for group in optimizer.param_groups:
        for agent in dict.fromkeys(owner[id(parameter)] for parameter in group["params"]):
            places = [i for i, parameter in enumerate(group["params"]) if owner[id(parameter)] == agent]
            lr = learning_rates.get(agent, group["lr"])
            kept = copy.deepcopy({name: value for name, value in group.items() if name != "params"})
            listed = {name: [group[name][i] for i in places] for name in ("params", "param_names") if name in group}
            groups.append({**kept, **listed, "agent": agent, "lr": lr})
    held = {group["agent"] for group in groups}
    if missing := [agent for agent in dict.fromkeys(owner.values()) if agent not in held]:
        raise ValueError(
            f"`optimizers` holds no parameter of the agents {missing}. Build it from all policies, or leave it out "
            "and let the trainer build it."
        )
    optimizer.param_groups[:] = groups


class PolicySetup(GRPOTrainer):
    """
    Makes one of several policies ready as TRL and transformers make their one model ready: by being a trainer of it.

    [`~trl.GRPOTrainer`] and [`~transformers.Trainer`] do much to "the model" when they are built (adapter, reference,
    head, pad token, dropout, tags, device) and when training starts (special tokens, NEFTune, Liger, checkpointing of
    activations). A setup is such a trainer, within the accelerator of the one that trains. It never trains itself. The
    first policy is built by the trainer itself: [`of_first`] is its setup.

    Overrides:

    - `create_accelerator_and_postprocess`: takes the accelerator, of which a process has one;
    - `_inner_training_loop`: does nothing, so that `train` is what comes before.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): the trainer of all policies, built.
        source (`dict`): `model`, `peft_config` and `quantization_config`, as in TRL.
        tokenizer (`PreTrainedTokenizerBase`): the agent's.
        settings (`dict`): arguments that are the agent's own.

    Raises:
        What `GRPOTrainer.__init__` raises of a model that it cannot train.
    """

    def __init__(self, trainer: GRPOTrainer, source: dict[str, Any], tokenizer: Any, settings: dict[str, Any]):
        self._trainer, self._tag_names = trainer, trainer._tag_names
        # The engines and all that is written or sent anywhere are the one trainer's.
        silent = {"use_vllm": False, "push_to_hub": False, "log_completions": False, "report_to": []}
        silent["skip_memory_metrics"] = True
        with replaced(trainer.args, **settings, **silent), patient_bars():
            super().__init__(
                **source,
                reward_funcs=[_judge_nothing] * len(trainer.reward_funcs),
                args=trainer.args,
                train_dataset=trainer.train_dataset,
                eval_dataset=trainer.eval_dataset,
                processing_class=tokenizer,
            )

    @classmethod
    def of_first(cls, trainer: GRPOTrainer) -> "PolicySetup":
        """The setup of the policy with which `GRPOTrainer.__init__` has just built the trainer."""
        setup = cls.__new__(cls)
        vars(setup).update(vars(trainer), _memory_tracker=TrainerMemoryTracker(skip_memory_metrics=True))
        return setup

    def create_accelerator_and_postprocess(self) -> None:
        for name in ("accelerator", "gather_function", "is_deepspeed_enabled", "is_fsdp_enabled"):
            setattr(self, name, getattr(self._trainer, name))

    def _inner_training_loop(self, *args, **kwargs) -> None:
        pass

    @contextmanager
    def started(self) -> Iterator[None]:
        """The policy as at the start of a training, and at its end again as before."""
        self.train()
        try:
            yield
        finally:
            if self.neftune_noise_alpha is not None:
                self.neftune_hook_handle.remove()


def _judge_nothing(prompts, completions, **kwargs) -> list[None]:
    """A reward function of a trainer that never trains."""
    return [None] * len(completions)


@contextmanager
def replaced(args: Any, **values: Any) -> Iterator[None]:
    """Arguments with other values for a while."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)
