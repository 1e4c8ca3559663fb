"""[`MultiAgentGRPOTrainer`]: TRL's GRPO for several roles."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType, gather, set_seed
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.trainer.utils import disable_dropout_in_model, get_callable_name

from ..credit import solo_baseline
from ..credit.advantages import correlation, estimate_advantages
from ..rewards import CreditAllocator, SharedCredit
from ..team.topology import ThinkSolve, Topology
from .checkpoint_mixin import CheckpointMixin
from .checkpoints import describe
from .checks import check_arguments, check_episode_arguments, check_modeless_optimizer, load_tokenizers, models_by_role
from .clock import StepClock
from .collection import Rollout, collect, log_rollout
from .config import SAMPLING, MultiAgentGRPOConfig
from .engines import RoleEngines, as_first_engine
from .input_checks import check_objects, datasets_by_name
from .policies import PolicySetup, RolePolicies, activate, add_role_adapters, replaced, split_param_groups


class MultiAgentGRPOTrainer(CheckpointMixin, GRPOTrainer):
    """
    Trainer for several cooperating policies with TRL's GRPO ([`~trl.GRPOTrainer`]).

    Every generation batch is one pass of the team through the topology. The outcome function judges the team's
    answers, the allocator turns outcomes into rewards per role, and the roles in turn are updated with TRL's loss.

    Overrides, each of which calls `super()` and edits the result:

    - `_generate_and_score_completions`: the team's pass, then TRL's method once per role in turn, with the role's
      completions replayed through `rollout_func` and its rewards in place of `_calculate_rewards`;
    - `_calculate_rewards`: the role's credit, while TRL's method scores a role;
    - `compute_loss`: TRL's, once per role in turn; `training_step`: TRL's, with its time counted;
    - `create_optimizer`: parameter groups per role; `create_scheduler`, which follows once the optimizer is the one
      that steps: the hook that keeps a role out of turn from moving;
    - `train`: TRL's, with every policy made ready for it, and the checkpoint's half; `save_model` and what saves and
      loads checkpoints: see [`~ccpo.training.checkpoint_mixin.CheckpointMixin`].

    With [`Solo`] all but the last are TRL's own.

    Args:
        model (`str`, `PreTrainedModel` or `dict[str, str | PreTrainedModel]`):
            One model for all roles, or one per role with `policy_sharing="separate"`, which loads (or copies) a single
            model once per role.
        reward_funcs ([`CreditAllocator`], `Callable` or a list of them):
            The allocator. A plain TRL reward function judges the team's answer, and every role gets its value (shared
            credit). Several are summed with `reward_weights`, as in TRL.
        args ([`MultiAgentGRPOConfig`], *optional*):
            Configuration.
        train_dataset, eval_dataset ([`~datasets.Dataset`]):
            As in TRL: the column `prompt` (text or chat messages) states the problem; the other columns are passed on
            to the reward functions.
        processing_class (`PreTrainedTokenizerBase` or `dict[str, PreTrainedTokenizerBase]`, *optional*):
            Tokenizer, or one per role. Loaded with the model if not given.
        peft_config (`PeftConfig`, *optional*):
            LoRA configuration, one adapter per role on one base with `policy_sharing="adapters"`.
        topology ([`Topology`], *optional*):
            Defaults to [`ThinkSolve`].
        reward_processing_classes, callbacks, optimizers, quantization_config:
            As in TRL.
        tools, rollout_func, environment_factory:
            As in TRL, with `topology=Solo()`; refused with several roles.

    Raises:
        `ValueError`: arguments that cannot be right, before a model loads.
    """

    _tag_names = ["trl", "grpo", "ccpo"]

    def __init__(
        self,
        model,
        reward_funcs: CreditAllocator | Callable | list | None = None,
        args: MultiAgentGRPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | dict[str, PreTrainedTokenizerBase] | None = None,
        reward_processing_classes=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
        topology: Topology | None = None,
        tools: list[Callable] | None = None,
        rollout_func: Callable | None = None,
        environment_factory: Callable | dict[str, Callable] | None = None,
    ):
        check_objects(args, reward_funcs, topology, environment_factory)
        args = MultiAgentGRPOConfig("ccpo-output") if args is None else args
        self.topology = ThinkSolve() if topology is None else topology
        self.roles = self.topology.role_names
        reward_funcs = [] if reward_funcs is None else reward_funcs
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.allocators = [f if isinstance(f, CreditAllocator) else SharedCredit(f) for f in reward_funcs]
        self._credit = [describe(allocator) for allocator in self.allocators]  # as it is at the start
        episode = {"tools": tools, "rollout_func": rollout_func, "environment_factory": environment_factory}
        check_episode_arguments(episode, self.roles)
        if len(self.roles) > 1 and callable(getattr(optimizers[0], "eval", None)):
            check_modeless_optimizer(f"optimizers=({type(optimizers[0]).__name__}, ...)", args)
        models = models_by_role(model, args.policy_sharing, self.roles)
        check_arguments(models, self.allocators, args, train_dataset, self.topology, peft_config, eval_dataset)
        datasets = datasets_by_name(train_dataset, eval_dataset)
        tokenizers = load_tokenizers(models, processing_class, args, datasets)

        # A single object is copied before TRL changes it.
        sources = {
            role: copy.deepcopy(models[role]) if models[role] is models[self.roles[0]] else models[role]
            for role in (self.roles[1:] if args.policy_sharing == "separate" else ())
        }
        first = self.roles[0]
        own = {"temperature": args.for_role(first, "temperature")}
        with as_first_engine(args, self.roles), replaced(args, **own):
            super().__init__(
                model=models[first],
                reward_funcs=[allocator.outcome for allocator in self.allocators],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizers[first],
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                **episode,
            )
        for i, credit in enumerate(reward_funcs):
            if isinstance(credit, CreditAllocator):
                self.reward_func_names[i] = get_callable_name(credit)
        self.tokenizers = tokenizers
        self._replay = None  # what TRL's method scores next: (samples, rewards)
        self._moved_roles: set[str] = set()  # roles that a loss of the current optimizer step touched
        self._held_optimizer = None  # the one with the hooks that hold roles out of turn
        self._held_gradients: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._held_settings: list[tuple[dict, dict]] = []
        self._step_ends = False  # whether the last loss completed an optimizer step's gradient
        self._init_checkpoints()
        self._clock = StepClock(self._metrics, self.accelerator)
        self._setups = {first: PolicySetup.of_first(self)} if sources else {}
        for role, source in sources.items():
            self._setups[role] = PolicySetup(self, role, source, tokenizers[role], peft_config, quantization_config)
        if len(self.roles) > 1:
            self.add_callback(self._clock)
            self._init_roles()

    def _init_roles(self) -> None:
        """One module of all policies, and each role's own settings."""
        args = self.args
        if self._setups:
            training = self.model.training
            self.model = self.model_wrapped = RolePolicies({role: setup.model for role, setup in self._setups.items()})
            self.model.train(training)
            self.neftune_noise_alpha = None  # the setups see to it
        elif args.policy_sharing == "adapters":
            set_seed(args.seed)
            add_role_adapters(self.model, self.roles)
            if args.disable_dropout:
                disable_dropout_in_model(self.model)
            set_seed(args.seed, device_specific=True)
        if self.is_fsdp_enabled:  # accelerate does not mark them, and generation must keep the processes in step
            for module in self.model.modules():
                if isinstance(module, PreTrainedModel):
                    module._is_fsdp_managed_module = True
        self.callback_handler.model = self.model
        self.rollout_func = self._replay_samples
        if self.use_vllm:
            self.engines = RoleEngines(self)
            set_seed(args.seed, device_specific=True)  # an engine's start sets the process's seed
        self._role_state = {role: self._settings(role, self._setups.get(role, self)) for role in self.roles}
        rows = args.generation_batch_size * args.num_solves
        self._logs |= {key: deque(maxlen=rows) for key in ("prompt", "completion", "advantages")}
        self._logs |= {key: defaultdict(lambda: deque(maxlen=rows)) for key in ("rewards", "extra")}
        self._empty_logs = copy.deepcopy(self._logs)

    def _settings(self, role: str, trainer: GRPOTrainer) -> dict[str, Any]:
        """The attributes in which TRL keeps what is one model's, as this role has them; `trainer` made it ready."""
        answers = 1 if role == "thinker" else self.args.num_solves
        made = ("eos_token_ids", "ref_model", "router_aux_loss_coef", "aux_loss_enabled")
        settings = {
            **{name: getattr(trainer, name) for name in made},
            **{name: self.args.for_role(role, name) for name in (*SAMPLING, "max_completion_length")},
            "processing_class": self.tokenizers[role],
            "_tokenizer": self.tokenizers[role],
            "num_generations": self.num_generations * answers,
            "num_generations_eval": self.num_generations_eval * answers,
        }
        if self.use_vllm:
            own = {"_engine_kwargs": self.args.for_role(role, "generation_kwargs")}
            return settings | own | {"vllm_generation": self.engines.engines[role]}
        generation_kwargs = {**trainer.generation_kwargs, **self.args.sampling_of(role)}
        return settings | {
            "generation_kwargs": generation_kwargs,
            "generation_config": GenerationConfig(**generation_kwargs, disable_compile=True),
        }

    def train(self, *args, **kwargs):
        if not self._setups:
            return super().train(*args, **kwargs)
        with ExitStack() as stack:
            for setup in self._setups.values():
                stack.enter_context(setup.started())
            # What `Trainer` does to its model again goes to the one that its tokenizer belongs to.
            self._activate(self.roles[0])
            stack.enter_context(replaced(self.args, use_liger_kernel=False))
            return super().train(*args, **kwargs)

    # ---- Roles and turns ----

    def _activate(self, role: str) -> None:
        activate(self.model, role, self.roles)

    @contextmanager
    def as_role(self, role: str) -> Iterator[None]:
        """
        Be the trainer of one role: its policy, tokenizer, generation settings and reference; metrics get its name.

        The policy stays the role's afterwards, since the backward pass comes later.
        """
        self._activate(role)
        pending = set(self._pending_metrics)  # what outcome functions log is the team's
        saved = {name: getattr(self, name, None) for name in self._role_state[role]}
        metrics, self._metrics = self._metrics, {"train": defaultdict(list), "eval": defaultdict(list)}
        vars(self).update(self._role_state[role])
        # TRL's mark that its engine has the newest weights: `engines` sees to that.
        self._last_loaded_step = self.state.global_step
        try:
            yield
        finally:
            vars(self).update(saved)
            role_metrics, self._metrics = self._metrics, metrics
            for mode, values in role_metrics.items():
                for name, value in values.items():
                    if name == "num_tokens":
                        metrics[mode][name] = value
                    elif name.startswith("credit/") or name in pending:
                        metrics[mode][name].extend(value)
                    else:
                        metrics[mode][f"{role}/{name}"].extend(value)

    def roles_in_turn(self) -> tuple[str, ...]:
        """The roles trained from the current generation batch; all of them in evaluation."""
        if not self.model.training or self.args.schedule == "joint":
            return self.roles
        start = self.roles.index(self.args.start_role) if self.args.start_role else 0
        batch = self._step // (self.args.steps_per_generation * self.num_iterations)
        return (self.roles[(start + batch // self.args.alternate_period) % len(self.roles)],)

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if len(self.roles) > 1 and not any("role" in group for group in optimizer.param_groups):
            split_param_groups(optimizer, self.model, self.args, self.roles)
        return optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        inner = self.optimizer
        while hasattr(inner, "optimizer"):  # accelerate's wrapper, ZeRO's, then the one that steps
            inner = inner.optimizer
        if len(self.roles) > 1 and inner is not self._held_optimizer:
            inner.register_step_pre_hook(self._hold_roles_out_of_turn)
            inner.register_step_post_hook(self._release_roles)
            self._held_optimizer = inner
        return scheduler

    def _hold_roles_out_of_turn(self, optimizer, args, kwargs) -> None:
        """
        Take the gradient away from every role that no loss of this optimizer step touched.

        Under ZeRO such a gradient is zeros, not None, and AdamW would decay weights and moments with it. An optimizer
        passes a parameter without a gradient over, on every backend. What it counts in the group is put back.
        """
        if not self._moved_roles:
            return  # no training step: `torch.distributed.checkpoint` takes one to set the moments up
        for group in optimizer.param_groups:
            if group.get("role") is not None and group["role"] not in self._moved_roles:
                self._held_settings.append((group, {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}))
                for parameter in group["params"]:
                    self._held_gradients.append((parameter, parameter.grad))
                    parameter.grad = None

    def _release_roles(self, optimizer, args, kwargs) -> None:
        """Give the gradients back: with its optimizer on the CPU, ZeRO writes into the same ones in every step."""
        for parameter, gradient in self._held_gradients:
            parameter.grad = gradient
        for group, settings in self._held_settings:
            for name in group.keys() - settings.keys() - {"params"}:  # what the step has begun to count
                del group[name]
            group.update(settings)
        self._held_gradients.clear()
        self._held_settings.clear()
        if self.use_vllm:
            self.engines.mark_changed(self._moved_roles)

    # ---- Rollout, outcome and credit ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if len(self.roles) == 1:
            return self._estimate_solo(super()._generate_and_score_completions(inputs))
        in_turn = self.roles_in_turn()
        rollout = self._roll_out(inputs, in_turn)
        self._forget_order_of_modules()
        rewards = self._allocate(rollout)
        batch, table = {}, {}
        for role in self.roles:
            rows = [{"prompt": prompt} for prompt in rollout.episodes.role_prompts[role]]
            self._replay = (rollout.samples[role], rewards[role].flatten(0, 1))
            # TRL logs the role's rows into a copy: the table is ours.
            logs, self._logs = self._logs, copy.deepcopy(self._empty_logs)
            with self.as_role(role):
                if role in in_turn:
                    output = super()._generate_and_score_completions(rows)
                    table[role] = self._set_advantages(output, role, rewards[role], rollout)
                    batch |= {f"{role}/{name}": _by_episode(x, len(inputs)) for name, x in output.items()}
                else:  # its lengths belong into the metrics all the same
                    self._generate([row["prompt"] for row in rows])
            self._replay, self._logs = None, logs
        self._log_rollout(rollout, rewards, table)
        return batch

    def _replay_samples(self, prompts: list, trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's `rollout_func`: the completions that the team's pass has drawn already."""
        prompt_ids, completion_ids, log_probs = zip(*self._replay[0], strict=True)
        sampled = None if log_probs[0] is None else list(log_probs)
        return {"prompt_ids": list(prompt_ids), "completion_ids": list(completion_ids), "logprobs": sampled}

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._replay is not None:
            return self._replay[1]  # the role's credit, gathered already
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    def _roll_out(self, inputs: list[dict[str, Any]], in_turn: tuple[str, ...]) -> Rollout:
        return collect(self, inputs, in_turn)

    def _allocate(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """Rewards `(P, N, F)` of each role over the global batch, a column per allocator."""
        columns = [
            allocator.allocate(
                rollout.joint[..., f],
                None if rollout.solo is None else rollout.solo[..., f],
                **rollout.shares.get(f, {}),
            )
            for f, allocator in enumerate(self.allocators)
        ]
        return {role: torch.stack([credit[role].flatten(1) for credit in columns], dim=-1) for role in self.roles}

    def _combine(self, rewards: torch.Tensor) -> torch.Tensor:
        """The weighted sum over the last axis, as TRL does it: NaN only where every column is."""
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=-1)
        return total.masked_fill(rewards.isnan().all(dim=-1), torch.nan)

    def _set_advantages(self, output: dict, role: str, rewards: torch.Tensor, rollout: Rollout) -> torch.Tensor:
        """
        The estimator's advantages in place of TRL's, which are `"group"`'s.

        Returns:
            `torch.Tensor` of shape `(P, N)`: the role's advantages over the global batch.
        """
        estimator = self.args.advantage_estimator
        joint, thinks = rollout.joint, role == "thinker"
        shared = self._combine(joint.nanmean(dim=2) if thinks else joint.flatten(1, 2))  # (P, N)
        advantages = gather(output["advantages"]).view(shared.shape)
        if estimator.startswith("reinforce++"):
            advantages = estimate_advantages(self._combine(rewards), estimator)
        elif estimator == "counterfactual" and thinks:
            baseline = torch.stack(
                [
                    solo_baseline(rollout.solo[..., f], shared.shape, getattr(allocator, "baseline", "group"))
                    for f, allocator in enumerate(self.allocators)
                ],
                dim=-1,
            )
            advantages = estimate_advantages(shared, estimator, baseline=self._combine(baseline))
        output["advantages"] = self._local(advantages)
        reference = estimate_advantages(
            shared, "group" if estimator == "counterfactual" else estimator, scale_rewards=self.scale_rewards
        )
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][f"credit/{role}/shared_correlation"].append(correlation(advantages, reference))
        return advantages

    def _local(self, values: torch.Tensor) -> torch.Tensor:
        """This process's part of values over the global batch, `(P, N)` -> `(P * N / W,)`."""
        return values.reshape(self.accelerator.num_processes, -1)[self.accelerator.process_index].clone()

    def _estimate_solo(self, output: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One role: TRL's output, with the advantages of another estimator where one is asked for."""
        if self.args.advantage_estimator != "group":
            group = self.num_generations if self.model.training else self.num_generations_eval
            rewards = self._combine(self._rewards_per_func).view(-1, group)
            advantages = estimate_advantages(rewards, self.args.advantage_estimator)
            output["advantages"] = self._local(advantages)
            logged = list(self._logs["advantages"])[: -advantages.numel()] + advantages.flatten().tolist()
            self._logs["advantages"].clear()
            self._logs["advantages"].extend(logged)
        return output

    # ---- Logging and saving ----

    def _log_rollout(self, rollout: Rollout, rewards: dict, advantages: dict) -> None:
        log_rollout(self, rollout, rewards, advantages)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if len(self.roles) == 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        by_role = _by_role(inputs)
        if torch.is_grad_enabled():
            if self._step_ends:  # the last call completed an optimizer step's gradient
                self._moved_roles.clear()
                self._drop_last_gradients()
            self._moved_roles |= set(by_role)
            self._step_ends = self.accelerator.sync_gradients
        total = torch.zeros((), device=self.accelerator.device)
        for i, (role, role_inputs) in enumerate(by_role.items(), start=1):
            if torch.is_grad_enabled():
                self._clock.tokens["train"]["update"] += role_inputs["completion_mask"].sum()
            with self.as_role(role):
                loss = super().compute_loss(model, role_inputs, return_outputs, num_items_in_batch)
            if i < len(by_role) and torch.is_grad_enabled():
                self._backward(loss)
            total = loss + total.detach()
        return total  # `Trainer` runs the backward pass of the last role

    def training_step(self, model, inputs, num_items_in_batch=None):
        with self._clock.measure("update"):
            return super().training_step(model, inputs, num_items_in_batch)

    def _drop_last_gradients(self) -> None:
        """
        Zero what ZeRO-3 keeps of the last step's gradients.

        It overwrites them in a step's first backward pass and adds to them in the others, and a role's first backward
        pass need not be the step's.
        """
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        buffer = getattr(getattr(engine, "optimizer", None), "grad_partitions_flat_buffer", None)
        if buffer is not None:
            buffer.zero_()

    def _forget_order_of_modules(self) -> None:
        """
        Make ZeRO-3 learn anew in which order the modules read their weights.

        It fetches ahead in the order of the last pass, which ended in the LM head when a policy generated or rated.
        TRL's losses use the head's weights without the module: the backward pass would find them gone.
        """
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        offload = getattr(getattr(engine, "optimizer", None), "parameter_offload", None)
        coordinator = getattr(offload, "param_coordinator", None)
        if coordinator is not None and not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def _backward(self, loss: torch.Tensor) -> None:
        """Backward pass of a role that is not the last of its batch; DeepSpeed steps after the last."""
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        state, sync = self.accelerator.gradient_state, self.accelerator.sync_gradients
        if deepspeed:
            state._set_sync_gradients(False)
        with torch.autocast(self.accelerator.device.type, enabled=False):
            self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
        if deepspeed:
            state._set_sync_gradients(sync)


def _by_episode(value: torch.Tensor, rows: int) -> torch.Tensor:
    """`(n·K, …)` -> `(n, K, …)`, so that TRL's shuffling and splitting keep an episode together."""
    return value if value.ndim == 0 else value.view(rows, -1, *value.shape[1:])


def _by_role(inputs: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """`{"role/name": (n, K, …)}` -> `{"role": {"name": (n·K, …)}}`."""
    by_role: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in inputs.items():
        role, name = key.split("/", 1)
        by_role.setdefault(role, {})[name] = value if value.ndim == 0 else value.flatten(0, 1)
    return by_role
