"""The configuration of [`MultiAgentGRPOTrainer`]. It checks all of its rules before a model loads."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ..rewards.schemes import ESTIMATORS
from .fields import check_counts, check_scalars, read_mapping
from .numbers import LENGTHS, MAY_BE_NONE, ROLE_NUMBERS, SAMPLING, check_robust, check_sampling, read_number

ROLE_KEYS = (
    "max_completion_length",
    "learning_rate",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "generation_kwargs",
    "trainable",
    "vllm_gpu_memory_utilization",
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_group_port",
)
AGENT_KEYS = ("learning_rate", "trainable", *(key for key in ROLE_KEYS if key.startswith("vllm_")))
EVAL_ARMS = ("without", "ablated", "swapped")
_MAY_BE_PATHS = ("accelerator_config", "fsdp_config", "deepspeed")  # fields that hold a mapping or the path of one
_CHOICES = {
    "policy_sharing": ("separate", "shared", "adapters"),
    "schedule": ("alternate", "joint"),
    "advantage_estimator": ESTIMATORS,
    "removal": ("prompt", "context"),
    # TRL's own fields, which TRL would check only in the first step
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


@dataclass
class MultiAgentGRPOConfig(GRPOConfig):
    r"""
    Configuration of the [`MultiAgentGRPOTrainer`]. It adds the settings of a team to TRL's [`~trl.GRPOConfig`].

    A *role* is a place in the team; an *agent* is a model that plays one or more roles. A *pass* without a role is one
    run of the team from which that role is left out. A *generation batch* is the texts that are written at once.

    Args:
        > Parameters that control the policies

        policy_sharing (`str`, *optional*, defaults to `"separate"`):
            `"separate"`: each agent has a model of its own. `"shared"`: one model plays all roles. `"adapters"`: one
            frozen base model, and a LoRA adapter for each agent.
        role_kwargs (`dict[str, dict]`, *optional*):
            Maps a role or agent to the settings in which it differs from the common ones. A role's setting wins over
            its agent's. Keys: `max_completion_length`, `temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty`,
            `generation_kwargs`; for agents also `learning_rate`, `trainable` (`False`: it plays and is never updated),
            and, with vLLM engines of their own, `vllm_gpu_memory_utilization`, `vllm_server_base_url`,
            `vllm_server_host`, `vllm_server_port`, `vllm_group_port`.
        prefix_caching (`bool`, *optional*, defaults to `False`):
            Whether the common beginning of a batch's prompts, such as few-shot examples, is computed only once, in
            transformers' generation and in the loss. vLLM has a cache of its own.
        merge_adapters (`bool`, *optional*, defaults to `False`):
            Whether `save_model` merges each adapter into its base and writes whole models. Checkpoints keep adapters.

        > Parameters that control the rollout

        num_solves (`int`, *optional*, defaults to `1`):
            K, how many texts of the last role continue each text of the role before it.
        removal (`str`, *optional*, defaults to `"prompt"`):
            How the team runs without a role. `"prompt"`: anew from the prompt. `"context"`: the texts of the roles
            before it are kept, and the roles after it continue them.
        num_solos (`int`, *optional*):
            S, the number of passes without a role: for each prompt (by default `num_generations`), or with `"context"`
            for each kept text (by default 1).
        skip_uninformative_solos (`bool`, *optional*, defaults to `False`):
            Whether to skip the passes without a role if its credit is provably shared credit, which it then gets.
        removal_eval_steps (`int`, *optional*):
            Every this many optimizer steps, also run the team without each role, for the metrics and the completions
            table. The credit of the step does not change. By default only the passes that the credit needs are run.
        eval_arms (`list[str]`, *optional*, defaults to `["without"]`):
            What an evaluation draws besides the team's answers. `"without"`: the team runs without each role in turn.
            `"ablated"`: each role that another reads says nothing, and the others keep their usual prompts.
            `"swapped"`: each such role says what it said about another problem.
        vllm_engine_per_role (`bool`, *optional*, defaults to `True`):
            With `use_vllm` and separate policies: whether each agent has a vLLM engine (or a server) of its own.
            `vllm_gpu_memory_utilization` is for all engines together, in equal parts unless `role_kwargs` says
            otherwise. `False`: one engine gets each agent's weights in turn, so they must have one architecture.

        > Parameters that control the credit

        advantage_estimator (`str`, *optional*, defaults to `"group"`):
            How rewards become advantages, by which the loss weights each text: `"group"`, `"reinforce++"`,
            `"reinforce++-baseline"`, `"counterfactual"` or `"robust"`. The formulas are in
            [`~ccpo.credit.advantages.estimate_advantages`].
        robust_alpha (`float`), robust_c (`float`), robust_blocks (`int`), *optional*, default to `-2.0`, `1.0`, `3`:
            α, c and the number of blocks of the robust mean that `"robust"` subtracts, as in
            [`~ccpo.credit.robust_location`]. It is biased if rewards take only two values.
        scale_rewards (`str` or `bool`, *optional*, defaults to `"none"`):
            As in TRL, with another default: the public recipes do not divide by a standard deviation.

        > Parameters that control the schedule

        schedule (`str`, *optional*, defaults to `"alternate"`):
            `"alternate"`: one agent at a time is trained, for `alternate_period` generation batches. `"joint"`: all
            agents are trained from every generation batch.
        alternate_period (`int`, *optional*, defaults to `10`):
            How many generation batches an agent's turn lasts.
        start_role (`str`, *optional*):
            The agent that is trained first, or one of its roles. Defaults to the first agent that is trained.

    Raises:
        `ValueError`: If a field has a wrong value, or if two fields contradict each other.
    """

    _VALID_DICT_FIELDS = GRPOConfig._VALID_DICT_FIELDS + ["role_kwargs"]

    # Parameters that control the policies
    policy_sharing: str = field(
        default="separate",
        metadata={
            "help": "'separate': each agent has a model of its own; 'shared': one model plays all roles; 'adapters': "
            "one frozen base model, and a LoRA adapter for each agent.",
            "choices": list(_CHOICES["policy_sharing"]),
        },
    )
    role_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Settings of a role or agent that differ from the common ones, e.g. {'<role>': {'top_p': "
            f"0.9}}}}. Keys: {', '.join(ROLE_KEYS)}."
        },
    )
    prefix_caching: bool = field(
        default=False, metadata={"help": "Whether the common beginning of a batch's prompts is computed only once."}
    )
    merge_adapters: bool = field(
        default=False,
        metadata={"help": "Whether save_model merges adapters into their base model. Checkpoints keep adapters."},
    )

    # Parameters that control the rollout
    num_solves: int = field(
        default=1, metadata={"help": "K: how many texts of the last role continue each text of the role before it."}
    )
    removal: str = field(
        default="prompt",
        metadata={
            "help": "How the team runs without one of its roles: 'prompt', anew from the prompt; 'context', keeping "
            "the texts of the roles before that one.",
            "choices": list(_CHOICES["removal"]),
        },
    )
    num_solos: int | None = field(
        default=None,
        metadata={
            "help": "S: answers without a role, per prompt (default `num_generations`) or per kept text (default 1)."
        },
    )
    skip_uninformative_solos: bool = field(
        default=False, metadata={"help": "Skip runs without a role that provably cannot change the credit."}
    )

    removal_eval_steps: int | None = field(
        default=None,
        metadata={"help": "Every this many steps, also run the team without each role, only for metrics."},
    )
    eval_arms: list[str] = field(
        default_factory=lambda: ["without"],
        metadata={"help": f"What an evaluation draws besides the team's answers: any of {list(EVAL_ARMS)}."},
    )

    vllm_engine_per_role: bool = field(
        default=True,
        metadata={
            "help": "With vLLM and separate models: whether each agent has its own engine, or all take turns in one."
        },
    )

    # Parameters that control the credit
    advantage_estimator: str = field(
        default="group",
        metadata={
            "help": "How rewards become advantages, by which the loss weights each text.",
            "choices": list(_CHOICES["advantage_estimator"]),
        },
    )
    robust_alpha: float = field(default=-2.0, metadata={"help": "'robust': shape, from -10 to 2; 2 is the mean."})
    robust_c: float = field(default=1.0, metadata={"help": "'robust': deviation from which outliers count less."})
    robust_blocks: int = field(default=3, metadata={"help": "'robust': number of blocks of a group, odd; 1 is none."})
    scale_rewards: str = field(
        default="none",
        metadata={
            "help": "What std divides advantages: the 'group's, the 'batch's or 'none', as in the public recipes.",
        },
    )

    # Parameters that control the schedule
    schedule: str = field(
        default="alternate",
        metadata={
            "help": "'alternate': one agent at a time is trained, for `alternate_period` generation batches; 'joint': "
            "all agents are trained from every generation batch.",
            "choices": list(_CHOICES["schedule"]),
        },
    )
    alternate_period: int = field(default=10, metadata={"help": "Generation batches in one agent's turn."})
    start_role: str | None = field(
        default=None,
        metadata={
            "help": "The agent, or a role of it, that is trained first. Defaults to the first one that is trained."
        },
    )

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        for name in ("num_solves", "num_solos", "alternate_period", "removal_eval_steps"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        self._read_mappings()
        if not isinstance(self.eval_arms, list | tuple) or not {*map(str, self.eval_arms)} <= {*EVAL_ARMS}:
            raise ValueError(f"`eval_arms` must be a list of {list(EVAL_ARMS)}, got {self.eval_arms!r}.")
        for key in ROLE_NUMBERS:
            may_be_none = key in MAY_BE_NONE["common"]
            setattr(self, key, read_number(key, key, getattr(self, key), may_be_none=may_be_none))
        check_scalars(self)
        check_counts(self)
        if str(self.resume_from_checkpoint).lower() in ("true", "false"):  # the command line gives text
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true"
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):  # TRL sets these, which are deprecated
            new = old.replace("gradient", "activation")
            if getattr(self, new, "not there") is None:
                setattr(self, new, getattr(self, old))
        try:
            super().__post_init__()
        except ValueError as error:
            if "divisible" not in str(error):
                raise
            raise ValueError(
                f"{error} That batch is `per_device_train_batch_size={self.per_device_train_batch_size}` x "
                f"{self.world_size} processes x `steps_per_generation={self.steps_per_generation}` (in "
                f"evaluation, `per_device_eval_batch_size={self.per_device_eval_batch_size}` x processes). It "
                "must hold whole groups (the `num_generations` completions of one prompt). Change one of "
                "these numbers."
            ) from error
        check_sampling("generation_kwargs", self.generation_kwargs, self.use_vllm)
        self._check_role_kwargs()
        if self.advantage_estimator.startswith("reinforce++") and self.scale_rewards != "none":
            raise ValueError(
                f"`advantage_estimator={self.advantage_estimator!r}` already divides by the standard "
                f"deviation of the batch, so `scale_rewards` must be 'none', got {self.scale_rewards!r}."
            )
        if self.advantage_estimator == "counterfactual" and self.scale_rewards != "none":
            raise ValueError(
                "`advantage_estimator='counterfactual'` needs `scale_rewards='none'`, got "
                f"{self.scale_rewards!r}, which would divide only the last role's advantages by a standard "
                "deviation. Set `scale_rewards='none'`, or use `advantage_estimator='group'`."
            )
        check_robust(self)
        if self.multi_objective_aggregation != "sum_then_normalize" and self.advantage_estimator != "group":
            raise ValueError(
                f"`multi_objective_aggregation={self.multi_objective_aggregation!r}` normalises in each "
                f"group, so it needs `advantage_estimator='group'`, got {self.advantage_estimator!r}."
            )
        # With several policies, those of agents whose turn it is not are unused in a step.
        if self.ddp_find_unused_parameters is None and self.policy_sharing != "shared":
            self.ddp_find_unused_parameters = True

    def _read_mappings(self):
        for name in self._VALID_DICT_FIELDS:
            value = getattr(self, name)
            if isinstance(value, list | tuple | set) and name != "role_kwargs":
                raise ValueError(f"`{name}` must be a mapping, got {value!r}. Write it as {{'key': value}}.")
            if isinstance(value, str) and (value.strip().startswith("{") or name not in _MAY_BE_PATHS):
                value = read_mapping(name, value)
                if isinstance(value, str) and not value.startswith("{"):
                    raise ValueError(
                        f"`{name}` must be a mapping, got {value!r}. Write it in braces: {{'key': value}}."
                    )
                setattr(self, name, value)

    def _check_role_kwargs(self):
        if self.role_kwargs is not None and not isinstance(self.role_kwargs, dict):
            raise ValueError(
                f"`role_kwargs` must be a mapping of roles or agents, got {self.role_kwargs!r}. Write it as "
                "{'<role>': {'max_completion_length': 4096}}."
            )
        for role, overrides in (self.role_kwargs or {}).items():
            if not isinstance(overrides, dict):
                raise ValueError(f"`role_kwargs[{role!r}]` must be a mapping, got {overrides!r}.")
            if unknown := sorted(set(overrides) - set(ROLE_KEYS), key=str):
                raise ValueError(
                    f"`role_kwargs[{role!r}]` has the unknown keys {unknown}. Known keys are {list(ROLE_KEYS)}."
                )
            for key in ROLE_NUMBERS.keys() & overrides.keys():
                name, may_be_none = f"role_kwargs[{role!r}][{key!r}]", key in MAY_BE_NONE["role"]
                overrides[key] = read_number(name, key, overrides[key], may_be_none=may_be_none)
            if not isinstance(overrides.get("trainable", True), bool):
                raise ValueError(
                    f"`role_kwargs[{role!r}]['trainable']` must be true or false, got {overrides['trainable']!r}."
                )
            own = overrides.get("generation_kwargs")
            check_sampling(f"role_kwargs[{role!r}]['generation_kwargs']", own, self.use_vllm)
        for role, overrides in (self.role_kwargs or {}).items():
            if self.policy_sharing == "shared" and "learning_rate" in overrides:
                raise ValueError(
                    f"`role_kwargs[{role!r}]['learning_rate']` cannot be set with `policy_sharing='shared'`, "
                    "where all agents have the same weights. Set `learning_rate`, or use 'separate' or "
                    "'adapters'."
                )

    def _entries(self, role: str, agent: str | None) -> list[dict[str, Any]]:
        """The entries of `role_kwargs` for a role: its agent's and its own. Later entries win."""
        return [self.role_kwargs[name] for name in dict.fromkeys((agent, role)) if name in (self.role_kwargs or {})]

    def for_agent(self, agent: str, roles: tuple[str, ...], key: str) -> Any:
        """An agent's value of `key` in `role_kwargs`, or `None`. If it has only one role, that role's entry counts."""
        entries = self._entries(roles[0] if len(roles) == 1 else agent, agent)
        return next((entry[key] for entry in reversed(entries) if key in entry), None)

    def for_role(self, role: str, key: str, agent: str | None = None) -> Any:
        """
        The value of `key` for a role: from its entry in `role_kwargs`, else from its agent's, else the common one.

        `generation_kwargs` are merged key by key. The role's `generation_kwargs` win, then its other settings, then
        both of its agent, then the common `generation_kwargs`, then the common settings.
        """
        entries = self._entries(role, agent)
        if key != "generation_kwargs":
            return next((entry[key] for entry in reversed(entries) if key in entry), getattr(self, key))
        options = dict(self.generation_kwargs or {})
        for entry in entries:
            fields = {LENGTHS[0] if name == "max_completion_length" else name for name in entry}
            fields |= set(LENGTHS) if LENGTHS[0] in fields else set()
            options = {name: value for name, value in options.items() if name not in fields}
            options |= entry.get(key) or {}
        return options

    def sampling_of(self, role: str, agent: str | None = None) -> dict[str, Any]:
        """A role's sampling settings as options of [`~transformers.GenerationConfig`], without special tokens."""
        fields = {name: self.for_role(role, name, agent) for name in SAMPLING}
        limit = self.for_role(role, "max_completion_length", agent)
        return {**fields, "max_new_tokens": limit, **self.for_role(role, "generation_kwargs", agent)}
