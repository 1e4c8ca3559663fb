"""[`MultiAgentGRPOTrainer`] trains several roles together with TRL's GRPO."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.trainer.utils import disable_dropout_in_model, get_callable_name

from ..quiet import name_accelerator_to_deepspeed, patient_bars
from ..rewards import CreditAllocator, SharedCredit
from ..team.topology import ThinkSolve, Topology
from .adapters import REFERENCE, StartReference, add_agent_adapters
from .advantages import AdvantagesMixin
from .arms_mixin import ArmsMixin
from .batches import by_episode, by_role
from .checkpoint_mixin import CheckpointMixin
from .checkpoints import describe
from .checks import check_arguments, check_episode_arguments, check_modeless_optimizer, load_tokenizers
from .clock import UPDATE, StepClock, arms_of
from .collection import CollectionMixin
from .config import SAMPLING, MultiAgentGRPOConfig
from .credit_checks import announce_placebos
from .engines import AgentEngines, as_first_engine
from .input_checks import check_objects, datasets_by_name
from .models import AgentModels, read_models
from .policies import AgentPolicies, PolicySetup, activate, policy_of, replaced
from .prompt_checks import check_prompts
from .sampling_mixin import SamplingMixin, stops_of
from .table import TableMixin
from .turns import TurnsMixin


class MultiAgentGRPOTrainer(
    CheckpointMixin, TurnsMixin, CollectionMixin, ArmsMixin, AdvantagesMixin, TableMixin, SamplingMixin, GRPOTrainer
):
    """
    Trains several language models that solve problems as a team, with TRL's GRPO ([`~trl.GRPOTrainer`]).

    A *role* is a place in the team; an *agent* is a model that plays one or more roles. For each batch, all roles
    write their texts in the order of the topology. The outcome function judges the team's answers, and the credit
    allocator turns these outcomes into a reward for each text. TRL's loss then updates the agents whose turn it is.

    The trainer overrides these methods. Each calls `super()` and edits the result:

    - `_generate_and_score_completions`: lets the team write, then calls TRL's method once for each trained role. That
      call gets the role's completions through `rollout_func`.
    - `_calculate_rewards`: returns the role's credit during such a call.
    - `compute_loss`: calls TRL's method once for each trained role. `training_step`: measures the time.
    - `train`: prepares every policy first.

    The rest is in mixins: [`CheckpointMixin`] saves and resumes, [`TurnsMixin`] says whose turn it is,
    [`CollectionMixin`] runs the team, [`ArmsMixin`] runs an evaluation's other arms, [`AdvantagesMixin`] turns
    rewards into advantages, [`TableMixin`] keeps the completions table, and [`SamplingMixin`] handles stop strings and
    prefix caching. With [`Solo`], a team of one role, all but the last do as TRL does.

    Args:
        model (`str`, `PreTrainedModel`, `PeftModel` or a `dict` of these):
            One model for all agents, or a mapping from each agent to its model. With `policy_sharing="separate"` a
            single model is loaded or copied for each agent. An agent has the name of its role unless the topology says
            otherwise. With `"separate"` and `"adapters"`, the folder of a saved adapter or a `PeftModel` may be given.
        reward_funcs ([`CreditAllocator`], `Callable` or a list of them):
            The credit allocator. A plain TRL reward function judges the team's answer, and each role gets its value as
            its reward (shared credit). Several are summed with `reward_weights`, as in TRL.
        args ([`MultiAgentGRPOConfig`], *optional*):
            The configuration. Its default has the output folder `"ccpo-output"`.
        train_dataset, eval_dataset ([`~datasets.Dataset`]):
            As in TRL. The column `prompt` (text or chat messages) states the problem. The reward functions get the
            other columns.
        processing_class (`PreTrainedTokenizerBase` or `dict[str, PreTrainedTokenizerBase]`, *optional*):
            One tokenizer for all agents, or a mapping from agents to tokenizers. Loaded with the model by default.
        peft_config (`PeftConfig`, *optional*):
            The LoRA configuration of new adapters. With `policy_sharing="adapters"` each agent has an adapter on one
            base. An agent that starts from a saved adapter keeps the configuration of that adapter.
        topology ([`Topology`], *optional*):
            The team: its roles, and who reads whose texts. Defaults to [`ThinkSolve`].
        role_rewards (`dict[str, list]`, *optional*):
            Maps a role to TRL reward functions that judge the role's own text, such as its length. Their values are
            added to the role's credit. Each item is a function, or a pair of a function and its weight. They get the
            arguments that TRL gives to reward functions, except `log_extra`.
        reward_processing_classes, callbacks, optimizers, quantization_config:
            As in TRL.
        tools, rollout_func, environment_factory:
            As in TRL, but only with `topology=Solo()`.

    Raises:
        `ValueError`: If arguments are wrong or do not fit together. This is checked before a model loads.
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
        role_rewards: dict[str, list] | None = None,
    ):
        name_accelerator_to_deepspeed()
        check_objects(args, reward_funcs, topology, environment_factory)
        args = MultiAgentGRPOConfig("ccpo-output") if args is None else args
        self.topology = ThinkSolve() if topology is None else topology
        self.roles, self.agents = self.topology.role_names, self.topology.agents
        self.branches = self.topology.branches(args.num_solves)
        reward_funcs = [] if reward_funcs is None else reward_funcs
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.allocators = [f if isinstance(f, CreditAllocator) else SharedCredit(f) for f in reward_funcs]
        self._credit = [describe(allocator) for allocator in self.allocators]  # as it is at the start
        episode = {"tools": tools, "rollout_func": rollout_func, "environment_factory": environment_factory}
        check_episode_arguments(episode, self.topology)
        if len(self.agents) > 1 and callable(getattr(optimizers[0], "eval", None)):
            check_modeless_optimizer(f"optimizers=({type(optimizers[0]).__name__}, ...)", args)
        given = read_models(model, args, self.topology, peft_config, quantization_config)
        self.trained_agents = given.trained
        self._init_role_rewards(role_rewards)
        own = given.models, self.allocators, args, train_dataset, self.topology, given.peft_config, eval_dataset
        check_arguments(*own, given)
        self._origins = given.origins()
        datasets = datasets_by_name(train_dataset, eval_dataset)
        tokenizers = load_tokenizers(given, processing_class, datasets)
        asked = datasets if rollout_func is None and environment_factory is None else {}
        self.folded = check_prompts(asked, given.models, tokenizers, args, self.topology)

        saved_adapters = given.saved_adapters()
        first, *others = self.agents if args.policy_sharing == "separate" else self.agents[:1]
        sources = {agent: given.source(agent) for agent in (*others, first)}  # a single object is changed in place
        with as_first_engine(self.topology, args), replaced(args, **given.settings(first)), patient_bars():
            super().__init__(
                **sources[first],
                reward_funcs=[allocator.outcome for allocator in self.allocators],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizers[first],
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                **episode,
            )
        for i, credit in enumerate(reward_funcs):
            if isinstance(credit, CreditAllocator):
                self.reward_func_names[i] = get_callable_name(credit)
        self.tokenizers, self._replay = tokenizers, None  # what TRL's method scores next: (samples, rewards)
        self._init_turns()
        self._init_checkpoints()
        self._clock = StepClock(self._metrics, self.accelerator, arms_of(self.topology, self.allocators))
        if self.accelerator.is_main_process:
            announce_placebos(self.allocators, self.topology, args, self.trained_agents, self._role_rewards)
        self.beta = args.beta  # of a frozen agent, TRL was to build no reference
        self._setups = {first: PolicySetup.of_first(self)} if others else {}
        for agent in others:
            self._setups[agent] = PolicySetup(self, sources[agent], tokenizers[agent], given.settings(agent))
        if not self.topology.is_solo:
            self.add_callback(self._clock)
            self._init_team(given, saved_adapters)
        self._init_sampling()
        self._init_table()

    def _init_team(self, given: AgentModels, saved_adapters: dict[str, tuple]) -> None:
        """Put all policies into one module, and collect the settings of each role."""
        args = self.args
        if self._setups:
            training = self.model.training
            policies = {agent: setup.model for agent, setup in self._setups.items()}
            self.model = self.model_wrapped = AgentPolicies(policies)
            self.model.train(training)
            self.neftune_noise_alpha = None  # the setups see to it
            for agent in given.frozen:
                policies[agent].requires_grad_(False)
        elif args.policy_sharing == "adapters":
            set_seed(args.seed)
            options = {"fresh": given.peft_config if saved_adapters else None, "reference": args.beta != 0}
            add_agent_adapters(self.model, self.agents, given.frozen, saved_adapters, **options)
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
            self.engines = AgentEngines(
                self.vllm_generation,
                self.topology,
                args,
                self.tokenizers,
                lambda agent: policy_of(self.accelerator.unwrap_model(self.model), agent),
                self.accelerator.is_main_process,
            )
            set_seed(args.seed, device_specific=True)  # an engine's start sets the process's seed
        self._role_state = {role: self._settings(role) for role in self.roles}

    def _texts_per_row(self, role: str) -> int:
        return math.prod(self.branches[: self.roles.index(role) + 1])

    def _settings(self, role: str) -> dict[str, Any]:
        """The values of this role for the attributes in which TRL keeps what belongs to one model or one role."""
        args, agent, texts = self.args, self.topology.agent_of(role), self._texts_per_row(role)
        trainer = self._setups.get(agent, self)  # which made its policy ready
        made = ("eos_token_ids", "ref_model", "router_aux_loss_coef", "aux_loss_enabled")
        reference = REFERENCE.format(agent=agent) in getattr(self.model, "peft_config", ())
        settings = {
            **{name: getattr(trainer, name) for name in made},
            **({"ref_model": StartReference(self, agent)} if reference else {}),
            **{name: args.for_role(role, name, agent) for name in (*SAMPLING, "max_completion_length")},
            "processing_class": self.tokenizers[agent],
            "_tokenizer": self.tokenizers[agent],
            "stop_strings": stops_of(args.for_role(role, "generation_kwargs", agent)),
            "num_generations": self.num_generations * texts,
            "num_generations_eval": self.num_generations_eval * texts,
            **self._rewards_of(role),
        }
        if self.use_vllm:
            own = {"_engine_kwargs": args.for_role(role, "generation_kwargs", agent)}
            return settings | own | {"vllm_generation": self.engines.engines[agent]}
        generation_kwargs = {**trainer.generation_kwargs, **args.sampling_of(role, agent)}
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
            self.activate_role(self.roles[0])
            stack.enter_context(replaced(self.args, use_liger_kernel=False))
            return super().train(*args, **kwargs)

    # ---- Be one role ----

    def activate_role(self, role: str) -> None:
        """Make `self.model` the policy of the role's agent."""
        activate(self.model, self.topology.agent_of(role), self.agents)

    @contextmanager
    def as_role(self, role: str) -> Iterator[None]:
        """
        Be the trainer of one role, with its policy, tokenizer, settings and reference; metrics get its name.

        The role's policy stays active afterwards, because the backward pass comes later.
        """
        self.activate_role(role)
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

    # ---- Roll out, allocate, let TRL score ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if self.topology.is_solo:
            return self._estimate_solo(super()._generate_and_score_completions(self._ask_alone(inputs)))
        in_turn = self.roles_in_turn()
        rollout = self._roll_out(inputs, in_turn)
        self._forget_order_of_modules()
        rewards = self._allocate(rollout, inputs)
        batch, table = {}, {}
        for role in self.roles:
            rows = [{"prompt": prompt} for prompt in rollout.episodes.said[role].prompts]
            self._replay = (rollout.samples[role], rewards[role].flatten(0, 1))
            # TRL logs the role's rows into a copy: the table is ours.
            logs, self._logs = self._logs, copy.deepcopy(self._empty_logs)
            with self.as_role(role):
                if role in in_turn:
                    output = super()._generate_and_score_completions(rows)
                    table[role] = self._set_advantages(output, role, rewards[role], rollout)
                    batch |= {f"{role}/{name}": by_episode(x, len(inputs)) for name, x in output.items()}
                else:  # its lengths belong into the metrics all the same
                    self._generate([row["prompt"] for row in rows])
            self._replay, self._logs = None, logs
        self._log_rollout(rollout, rewards, table)
        return batch

    def _replay_samples(self, prompts: list, trainer: GRPOTrainer) -> dict[str, list]:
        """Return the completions that the role has already written. TRL calls this as its `rollout_func`."""
        prompt_ids, completion_ids, log_probs = zip(*self._replay[0], strict=True)
        sampled = None if log_probs[0] is None else list(log_probs)
        completion_ids = self._with_ends(list(prompt_ids), list(completion_ids))
        return {"prompt_ids": list(prompt_ids), "completion_ids": completion_ids, "logprobs": sampled}

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._replay is not None:
            return self._replay[1]  # the role's credit, gathered already
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    # ---- Let TRL lose ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.topology.is_solo:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batches = by_role(inputs)
        if torch.is_grad_enabled():
            self._begin_loss(set(batches))
        total = torch.zeros((), device=self.accelerator.device)
        for i, (role, role_inputs) in enumerate(batches.items(), start=1):
            if torch.is_grad_enabled():
                self._clock.tokens["train"][UPDATE] += role_inputs["completion_mask"].sum()
            with self.as_role(role):
                loss = super().compute_loss(model, role_inputs, return_outputs, num_items_in_batch)
            if i < len(batches) and torch.is_grad_enabled():
                self._backward(loss)
            total = loss + total.detach()
        return total  # `Trainer` runs the backward pass of the last role

    def training_step(self, model, inputs, num_items_in_batch=None):
        with self._clock.measure(UPDATE):
            return super().training_step(model, inputs, num_items_in_batch)
