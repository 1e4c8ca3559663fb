"""Command-line arguments of `ccpo train`: what to train on, which credit, which prompts, how models are loaded."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from .credit import HistoryNormalizer
from .rewards import CreditAllocator
from .rewards.schemes import SCHEMES
from .tasks import TASKS
from .team.think_solve_arguments import ThinkSolveArguments
from .team.topology import Topology, make_topology
from .training.config import MultiAgentGRPOConfig
from .training.fields import check_scalars, read_mapping
from .verifier.math_verifier import MathVerifier

_SETTINGS = {  # of each scheme
    "shared": (),
    "c3": (),
    "ccpo": ("coef", "bonus", "baseline", "history"),
    "vote": ("coef", "mode", "history"),
    "dacr": ("gamma", "mode"),
    "sepo": (
        "self_weight",
        "credit_coef",
        "blame_coef",
        "center",
        "rating_mode",
        "rating_expectation",
        "rating_prompt",
        "rating_max_tokens",
    ),
}
_OF_A_DATASET = (
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "problem_column",
    "solution_column",
    "eval_dataset_name",
    "max_train_rows",
    "conversational",
)
_AT_LEAST = {"max_train_rows": 1, "num_eval_problems": 0, "eval_batch_size": 1, "warm_start_steps": 0}
_OF_LORA = (*(f.name for f in dataclasses.fields(ModelConfig) if f.name.startswith("lora_")), "use_rslora", "use_dora")
_OF_4_BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


def _refuse_idle(arguments: Any, names: tuple[str, ...], why: str) -> None:
    """Refuse fields that were set and would change nothing."""
    defaults = {f.name: f.default for f in dataclasses.fields(arguments)}
    for name in names:
        if getattr(arguments, name) != defaults[name]:
            raise ValueError(f"`{name}={getattr(arguments, name)!r}` has no effect {why}, or leave it out.")


@dataclass
class TeamArguments(ThinkSolveArguments, ScriptArguments):
    """
    Arguments of `ccpo train` beside [`MultiAgentGRPOConfig`] and [`~trl.ModelConfig`]. Those of
    Think-Solve alone stand in [`~ccpo.team.think_solve_arguments.ThinkSolveArguments`].

    Args:
        dataset_name (`str`, *optional*): what [`~ccpo.data.load_problems`] loads. Without it, an embedded task.
        task (`str`, defaults to `"arithmetic"`): which embedded task, of [`~ccpo.tasks.TASKS`].
        task_kwargs (`dict`, *optional*): options of its problems, such as `{two_steps: 0.5}` of word problems.
        problem_column (`str`), solution_column (`str`): the columns that state the problem and its gold answer.
        eval_dataset_name (`str`, *optional*): another dataset to evaluate on; defaults to the test split of the same.
        max_train_rows (`int`, *optional*): train on the first rows only.
        num_eval_problems (`int`, defaults to 0): held-out problems of the evaluation before and after training.
        eval_temperature, eval_top_p (`float`, *optional*): sampling in that evaluation; default to those in training.
        eval_batch_size (`int`, defaults to 256): problems at once in that evaluation.
        final_arms (`list[str]`, *optional*):
            After training, also evaluate these arms, see [`~ccpo.evaluation.arms.build_arms`], and say which roles
            help. `single` is the model with which the answering agent started.
        conversational (`bool`, defaults to `True`): whether prompts are chat messages.
        topology (`str` or `dict`, *optional*):
            The team, see [`~ccpo.team.topology.make_topology`]: a kind, or a mapping with `roles`. Defaults to
            Think-Solve.
        models (`dict[str, str]`, *optional*): agent -> model; the others have `model_name_or_path`.
        credit (`str`, defaults to `"ccpo"`): `"shared"`, `"ccpo"`, `"sepo"`, `"c3"`, `"vote"` or `"dacr"`.
        coef, bonus, baseline: CCPO's, see [`CounterfactualCredit`]; `coef` also [`VoteCredit`]'s.
        mode (`str`, *optional*): that of [`VoteCredit`] or [`CrossImprovementCredit`]. gamma: the latter's.
        history (`bool` or `dict`, *optional*):
            History normalisation of CCPO and of votes: `true`, or options of [`~ccpo.credit.HistoryNormalizer`].
        self_weight, credit_coef, blame_coef, center, rating_mode, rating_expectation, rating_prompt,
        rating_max_tokens:
            SEPO's, see [`SelfEvaluatedCredit`].
        verifier_timeout (`float`, defaults to 5): seconds per pair.
        answer_pattern (`str`, *optional*): where the answer stands, see [`MathVerifier`]; for a prompt of your own.
        warm_start_steps (`int`, *optional*): supervised steps of the embedded task's policies.
    """

    task: str = field(default="arithmetic", metadata={"help": "The embedded task.", "choices": list(TASKS)})
    task_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the embedded task's problems, e.g. {'two_steps': 0.5}."}
    )
    problem_column: str = field(default="question", metadata={"help": "Column that states the problem."})
    solution_column: str = field(default="answer", metadata={"help": "Column of the gold answer."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Dataset to evaluate on."})
    max_train_rows: int | None = field(default=None, metadata={"help": "Train on the first rows only."})
    num_eval_problems: int = field(
        default=0, metadata={"help": "Held-out problems of the evaluation before and after training; 0 = none."}
    )
    eval_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of that evaluation. Defaults to that in training."}
    )
    eval_top_p: float | None = field(
        default=None, metadata={"help": "Top-p of that evaluation. Defaults to that in training."}
    )
    eval_batch_size: int = field(default=256, metadata={"help": "Problems at once in that evaluation."})
    final_arms: list[str] | None = field(
        default=None, metadata={"help": "Arms of an evaluation after training, e.g. without_<role> swapped_<role>."}
    )
    conversational: bool = field(default=True, metadata={"help": "Whether prompts are chat messages."})
    topology: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "The team: 'think_solve', 'solo', 'vote', 'answer_critique_rewrite', or a mapping."},
    )
    models: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Agent -> model, e.g. {'a': 'Qwen/Qwen2.5-1.5B-Instruct'}."}
    )
    credit: str = field(default="ccpo", metadata={"help": "Credit scheme.", "choices": list(SCHEMES)})
    coef: float = field(default=0.2, metadata={"help": "CCPO, vote: λ, weight of the bonus, or of Δ."})
    bonus: str = field(default="event", metadata={"help": "CCPO: 'event' or 'difference'."})
    baseline: str = field(default="group", metadata={"help": "CCPO: 'group' or 'paired'."})
    mode: str | None = field(
        default=None,
        metadata={"help": "Vote: 'team' (default), 'marginal'. DACR: 'total' (default), 'segment'."},
    )
    gamma: float = field(default=0.5, metadata={"help": "DACR: γ, weight of what a critique did for the partner."})
    history: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "CCPO, vote: normalise by earlier batches: true, or options as {decay: 0.99}."},
    )
    self_weight: float = field(default=0.3, metadata={"help": "SEPO: η, weight of a role's opinion of itself."})
    credit_coef: float = field(default=0.2, metadata={"help": "SEPO: λ, weight of the credit where right."})
    blame_coef: float = field(default=0.2, metadata={"help": "SEPO: μ, weight of the blame where wrong."})
    center: bool = field(default=True, metadata={"help": "SEPO: whether the group's mean is the reference."})
    rating_mode: str = field(default="generate", metadata={"help": "SEPO: 'generate' or 'constrained'."})
    rating_expectation: bool = field(
        default=False, metadata={"help": "SEPO: the mean over the nine pairs instead of a draw (constrained)."}
    )
    rating_prompt: str | None = field(
        default=None,
        metadata={
            "help": "SEPO: template with {role}, {problem}, {outcome}, and {transcript} or a {<role>} for each role, "
            "instead of ours."
        },
    )
    rating_max_tokens: int = field(default=512, metadata={"help": "SEPO: longest free-text rating."})
    verifier_timeout: float = field(default=5.0, metadata={"help": "Seconds that the verifier may take per pair."})
    answer_pattern: str | None = field(
        default=None,
        metadata={"help": "Regular expression whose one group is the answer, e.g. 'RESULT = (.+)', instead of ours."},
    )
    warm_start_steps: int | None = field(
        default=None, metadata={"help": "Supervised steps of the embedded task's policies."}
    )

    def __post_init__(self):
        check_scalars(self)
        if self.credit not in SCHEMES:
            raise ValueError(f"`credit` must be one of {list(SCHEMES)}, got {self.credit!r}.")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
        if self.eval_temperature is not None and not 0 <= self.eval_temperature < float("inf"):
            raise ValueError(f"`eval_temperature` must be a finite number >= 0, got {self.eval_temperature!r}.")
        if self.eval_top_p is not None and not 0 < self.eval_top_p <= 1:
            raise ValueError(f"`eval_top_p` must be a number in (0, 1], got {self.eval_top_p!r}.")
        if self.dataset_streaming:
            raise ValueError(
                "`dataset_streaming=True` is not supported: the rows are read and checked before a model loads. Set "
                "it to False; `max_train_rows` or a split such as 'train[:1000]' takes a part."
            )
        if self.ignore_bias_buffers:
            raise ValueError("`ignore_bias_buffers=True` is TRL's for DPO and has no effect here. Set it to False.")
        if self.dataset_name is None:
            _refuse_idle(self, _OF_A_DATASET, "on the embedded task. Set `dataset_name`")
        else:
            of_a_task = ("task", "task_kwargs", "warm_start_steps")
            _refuse_idle(self, of_a_task, "with `dataset_name`: only an embedded task has one. Unset that")
        for scheme in sorted(set(SCHEMES) - {self.credit}):
            others = tuple(name for name in _SETTINGS[scheme] if name not in _SETTINGS[self.credit])
            _refuse_idle(self, others, f"with `credit={self.credit!r}`. Set `credit={scheme!r}`")
        for name in ("topology", "models", "history", "task_kwargs"):
            value = getattr(self, name)
            if isinstance(value, str) and value.lstrip().startswith("{"):
                setattr(self, name, read_mapping(name, value, parsed=True))
        if self.models is not None and not isinstance(self.models, dict):
            raise ValueError(f"`models` must map agents to models, got {self.models!r}.")
        self._check_task()
        if self.final_arms and not self.num_eval_problems:
            raise ValueError(f"`final_arms={self.final_arms!r}` needs problems. Set `num_eval_problems`.")
        self.make_credit()  # so that a bad coefficient is found before anything loads
        if self.dataset_name is not None or self.topology is None:  # the embedded task completes a team itself
            self.make_topology()

    def _check_task(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {list(TASKS)}, got {self.task!r}.")
        known = TASKS[self.task].options
        if self.task_kwargs is not None and not (
            isinstance(self.task_kwargs, dict) and {*self.task_kwargs} <= {*known}
        ):
            raise ValueError(
                f"`task_kwargs` must be a mapping with keys of {list(known)} with `task={self.task!r}`, got "
                f"{self.task_kwargs!r}."
            )
        if self.warm_start_steps is not None and TASKS[self.task].build_models is None:
            raise ValueError(
                f"`warm_start_steps={self.warm_start_steps}` has no effect with `task={self.task!r}`, which has no "
                "warm start. Leave it out."
            )

    def make_topology(self, make: Callable[[Any], Topology] = make_topology) -> Topology:
        """
        The team that these arguments describe, with the prompts that were given.

        Args:
            make (`Callable`): makes a team of what `topology` holds, as a task does with prompts of its own.
        """
        return self.with_prompts(make("think_solve" if self.topology is None else self.topology))

    def models_of(self, topology: Topology) -> dict[str, str]:
        """The models that were named, by agent."""
        given = {**(self.models or {}), **self.named_models()}
        if unknown := [agent for agent in given if agent not in topology.agents]:
            raise ValueError(
                f"`models`, or a field for one agent's model, names {unknown}; the team's agents are "
                f"{list(topology.agents)}."
            )
        return given

    def make_credit(self, **kwargs) -> CreditAllocator:
        """The allocator that these arguments describe."""
        settings = {name: getattr(self, name) for name in _SETTINGS[self.credit]}
        if settings.get("mode", "") is None:
            del settings["mode"]
        if isinstance(self.history, dict) and "history" in settings:
            known = inspect.signature(HistoryNormalizer).parameters
            if unknown := [key for key in self.history if key not in known]:
                raise ValueError(f"`history` has the keys {unknown}; it may have {list(known)}.")
            settings["history"] = HistoryNormalizer(**self.history)
        elif str(self.history).lower() in ("true", "false"):  # as text from the command line
            settings["history"] = str(self.history).lower() == "true"
        pattern = self.answer_pattern
        if pattern is None and self.dataset_name is None:
            pattern = TASKS[self.task].answer_pattern
        outcome = MathVerifier(timeout=self.verifier_timeout, answer_pattern=pattern)
        return SCHEMES[self.credit](outcome, **settings, **kwargs)


def told_by(*arguments: Any) -> dict[str, Any]:
    """The fields of these dataclasses that differ from their defaults, as a recipe has them."""
    told = {}
    for given in arguments:
        for f in dataclasses.fields(given):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if f.init and getattr(given, f.name) != default:
                told[f.name] = getattr(given, f.name)
    return told


def read_model_config(model: ModelConfig, args: MultiAgentGRPOConfig) -> dict[str, Any]:
    """
    What the fields of [`~trl.ModelConfig`] mean for the trainer; how models are loaded goes to `args`.

    Args:
        model ([`~trl.ModelConfig`]): the fields.
        args ([`MultiAgentGRPOConfig`]): gets `model_init_kwargs`.

    Returns:
        `dict`: the trainer's `peft_config` and `quantization_config`.

    Raises:
        `ValueError`: a field that would change nothing, or a quantization that cannot be.
    """
    check_scalars(model)
    if not model.use_peft:
        _refuse_idle(model, _OF_LORA, "without LoRA. Set `use_peft=True`")
    if model.lora_task_type != "CAUSAL_LM":
        raise ValueError(f"`lora_task_type` must be 'CAUSAL_LM', got {model.lora_task_type!r}: roles write text.")
    for name in ("lora_r", "lora_alpha"):
        if getattr(model, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(model, name)}.")
    if not 0 <= model.lora_dropout < 1:
        raise ValueError(f"`lora_dropout` must be a number in [0, 1), got {model.lora_dropout}.")
    if not model.load_in_4bit:
        _refuse_idle(model, _OF_4_BIT, "without 4-bit weights. Set `load_in_4bit=True`")
    if model.load_in_4bit or model.load_in_8bit:
        _check_quantization("load_in_4bit" if model.load_in_4bit else "load_in_8bit", model)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
        **(args.model_init_kwargs or {}),
    }
    return {"peft_config": get_peft_config(model), "quantization_config": get_quantization_config(model)}


def _check_quantization(name: str, model: ModelConfig) -> None:
    if not model.use_peft:
        raise ValueError(f"`{name}=True` freezes the weights, and there is no adapter to train. Set `use_peft=True`.")
    if model.dtype == "auto":
        raise ValueError(f"`{name}=True` computes in `dtype`, got 'auto'. Set it, e.g. to 'bfloat16'.")
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"`{name}=True` needs the package bitsandbytes, which is not installed. Install it (pip install "
            f"bitsandbytes), or set `{name}=False`."
        )
