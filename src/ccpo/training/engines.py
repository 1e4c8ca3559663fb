"""vLLM for several roles, through TRL's `VLLMGeneration`: which engine a role uses, and when it gets its weights."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from trl.trainer import grpo_trainer

from .policies import RolePolicies

if TYPE_CHECKING:
    from trl.generation.vllm_generation import VLLMGeneration

    from .trainer import MultiAgentGRPOTrainer

logger = logging.getLogger(__name__)

MAX_SEQUENCES = 1024
SERVER_KEYS = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_group_port")


def has_engine_per_role(args: Any, roles: tuple[str, ...]) -> bool:
    """Whether every role has an engine: separate policies, unless one engine gets each role's weights in turn."""
    return len(roles) > 1 and args.policy_sharing == "separate" and args.vllm_engine_per_role


def engine_settings(args: Any, role: str, roles: tuple[str, ...]) -> dict[str, Any]:
    """
    What is a role's engine's alone: its server and ports, or its share of the GPU's memory.

    `vllm_gpu_memory_utilization` is for all engines together, in equal parts unless `role_kwargs` says otherwise.
    """
    settings = {name: args.for_role(role, name) for name in SERVER_KEYS}
    share = (args.role_kwargs or {}).get(role, {}).get("vllm_gpu_memory_utilization")
    settings["vllm_gpu_memory_utilization"] = args.vllm_gpu_memory_utilization / len(roles) if share is None else share
    return settings


def engine_kwargs(args: Any, role: str, roles: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of `VLLMGeneration` in which a role's engine differs from TRL's, which is for one role's rows."""
    own = has_engine_per_role(args, roles)
    settings = engine_settings(args, role, roles) if own else {}
    rows = args.per_device_train_batch_size * args.vllm_tensor_parallel_size * args.steps_per_generation  # TRL's
    calls = args.num_solves  # each answer, or its rating
    if not own or role != "thinker":  # joint and solo answers go out together
        calls += -(-(args.num_solos or args.num_generations) // args.num_generations)
    if args.policy_sharing == "shared":  # both roles' ratings, too
        calls = max(calls, 2 * args.num_solves)
    settings = {name.removeprefix("vllm_"): value for name, value in settings.items()}
    # vLLM reserves memory by this number, and has no more tokens than 4096 in a batch: what exceeds it queues.
    return settings | {"max_num_seqs": max(rows, min(rows * calls, MAX_SEQUENCES))}


@contextmanager
def as_first_engine(args: Any, roles: tuple[str, ...]) -> Iterator[None]:
    """TRL builds its one engine inside `GRPOTrainer.__init__`: meanwhile, with the first role's arguments."""
    build = grpo_trainer.VLLMGeneration
    if len(roles) > 1:
        grpo_trainer.VLLMGeneration = lambda **kwargs: build(**{**kwargs, **engine_kwargs(args, roles[0], roles)})
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = build


class RoleEngines:
    """
    The engines of all roles, and whose weights each holds.

    Weights are pushed when a role is to generate and its engine holds older ones, or another role's.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): the trainer, whose `vllm_generation` is the first role's engine.

    Attributes:
        pushes (`dict[str, int]`): how often each role's weights were pushed.
    """

    def __init__(self, trainer: MultiAgentGRPOTrainer):
        self.trainer = trainer
        self.pushes = dict.fromkeys(trainer.roles, 0)
        self._changed = set(trainer.roles)  # whose weights moved since they were pushed
        self._held: dict[int, str] = {}  # engine -> whose weights it has
        first = trainer.vllm_generation
        self.engines = dict.fromkeys(trainer.roles, first)
        if has_engine_per_role(trainer.args, trainer.roles):
            for role in trainer.roles[1:]:
                self.engines[role] = self._build_like(first, role)
                self._check_log_probs(role)
        elif trainer.args.vllm_mode == "server" and trainer.args.policy_sharing == "separate":
            dtypes = {role: str(self._policy(role).dtype) for role in trainer.roles}
            if len(set(dtypes.values())) > 1:
                raise ValueError(
                    f"`vllm_engine_per_role=False` sends one server each role's weights in one dtype, but the models "
                    f"have {dtypes}. Load them in one dtype."
                )

    def _build_like(self, first: VLLMGeneration, role: str) -> VLLMGeneration:
        """An engine with the arguments that TRL gave the first one, but for what is the role's."""
        kwargs = {name: getattr(first, name) for name in inspect.signature(type(first)).parameters}
        kwargs |= {"model": self._policy(role), "processing_class": self.trainer.tokenizers[role]}
        return type(first)(**kwargs | engine_kwargs(self.trainer.args, role, self.trainer.roles))

    def _check_log_probs(self, role: str) -> None:
        """Warn, as TRL does of the first role's server, of one whose log-probabilities are of another distribution."""
        corrects = self.trainer.args.vllm_mode == "server" and self.trainer.args.vllm_importance_sampling_correction
        if corrects and self.trainer.accelerator.is_main_process:
            mode = self.engines[role].vllm_client.get_server_info()["model_config"]["logprobs_mode"]
            if mode != "processed_logprobs":
                logger.warning(
                    "The vLLM server of role %r runs with `--logprobs-mode %s`, which biases the importance sampling "
                    "correction. Restart it with `--logprobs-mode processed_logprobs`, or set "
                    "`vllm_importance_sampling_correction=False`.",
                    role,
                    mode,
                )

    def _policy(self, role: str) -> nn.Module:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return model.policies[role] if isinstance(model, RolePolicies) else model

    def mark_changed(self, roles: set[str]) -> None:
        """An optimizer step moves these roles."""
        self._changed |= set(self.trainer.roles) if self.trainer.args.policy_sharing == "shared" else roles

    def prepare(self, role: str, settings: dict[str, Any]) -> VLLMGeneration:
        """The role's engine with the role's sampling `settings` and newest weights."""
        engine, shared = self.engines[role], self.trainer.args.policy_sharing == "shared"
        engine.model, engine.processing_class = self._policy(role), self.trainer.tokenizers[role]
        vars(engine).update(settings)
        owner = self.trainer.roles[0] if shared else role
        asleep = getattr(engine, "_llm_weights_sleeping", False)  # without any weights
        if asleep or self._held.get(id(engine)) != owner or owner in self._changed:
            with _base_kept(engine.model):
                engine.sync_weights()
            self.pushes[owner] += 1
            self._held[id(engine)] = owner
            self._changed.discard(owner)
        return engine


@contextmanager
def _base_kept(model: nn.Module) -> Iterator[None]:
    """
    Keep the base of an adapter to the bit: to push, TRL has PEFT add the adapter to it and subtract it again.

    A copy of the adapted layers waits in the CPU's memory meanwhile. Under ZeRO-3 PEFT works on gathered copies, which
    are thrown away.
    """
    kept = []
    if isinstance(model, PeftModel):
        bases = [layer.get_base_layer() for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        for parameter in {id(p): p for base in bases for p in base.parameters(recurse=False)}.values():
            if parameter.is_floating_point() and not hasattr(parameter, "ds_tensor"):
                kept.append((parameter, parameter.detach().to("cpu", copy=True)))
    yield
    for parameter, values in kept:
        parameter.data.copy_(values)
