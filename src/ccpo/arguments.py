"""Command-line arguments of the examples: what to train on, and which credit."""

from dataclasses import dataclass, field

from trl import ScriptArguments

from .rewards import CounterfactualCredit, CreditAllocator, SelfEvaluatedCredit, SharedCredit
from .verifier import MathVerifier

SCHEMES = {"shared": SharedCredit, "ccpo": CounterfactualCredit, "sepo": SelfEvaluatedCredit}


@dataclass
class TeamArguments(ScriptArguments):
    """
    Arguments of `examples/train_ccpo.py` beside [`MultiAgentGRPOConfig`] and [`~trl.ModelConfig`].

    Args:
        dataset_name (`str`, *optional*): Hub name or local json/jsonl/parquet/csv file. Without it, the embedded task.
        problem_column (`str`), solution_column (`str`): the columns that state the problem and its gold answer.
        eval_dataset_name (`str`, *optional*): another dataset to evaluate on; defaults to the test split of the same.
        max_train_rows (`int`, *optional*): train on the first rows only.
        num_eval_problems (`int`, defaults to 0): held-out problems of the evaluation before and after training.
        eval_temperature, eval_top_p (`float`, *optional*): sampling in that evaluation; default to those in training.
        eval_batch_size (`int`, defaults to 256): problems at once in that evaluation.
        thinker_model, solver_model (`str`, *optional*): a model per role; default to `model_name_or_path`.
        conversational (`bool`, defaults to `True`): whether prompts are chat messages.
        credit (`str`, defaults to `"ccpo"`): `"shared"`, `"ccpo"` or `"sepo"`.
        coef, bonus, baseline: CCPO's, see [`CounterfactualCredit`].
        self_weight, credit_coef, blame_coef, center, rating_mode, rating_expectation, rating_prompt,
        rating_max_tokens:
            SEPO's, see [`SelfEvaluatedCredit`].
        verifier_timeout (`float`, defaults to 5): seconds per pair.
        answer_pattern (`str`, *optional*): where the answer stands, see [`MathVerifier`]; for a prompt of your own.
        warm_start_steps (`int`, *optional*): supervised steps of the embedded task's policies.
    """

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
    thinker_model: str | None = field(default=None, metadata={"help": "The Thinker's model."})
    solver_model: str | None = field(default=None, metadata={"help": "The Solver's model."})
    conversational: bool = field(default=True, metadata={"help": "Whether prompts are chat messages."})
    credit: str = field(default="ccpo", metadata={"help": "Credit scheme.", "choices": list(SCHEMES)})
    coef: float = field(default=0.2, metadata={"help": "CCPO: λ, weight of the counterfactual bonus."})
    bonus: str = field(default="event", metadata={"help": "CCPO: 'event' or 'difference'."})
    baseline: str = field(default="group", metadata={"help": "CCPO: 'group' or 'paired'."})
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
        metadata={"help": "SEPO: template with {role}, {problem}, {thought}, {answer}, {outcome} instead of ours."},
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
        if self.credit not in SCHEMES:
            raise ValueError(f"`credit` must be one of {list(SCHEMES)}, got {self.credit!r}.")
        self.make_credit()  # so that a bad coefficient is found before anything loads

    def make_credit(self, **kwargs) -> CreditAllocator:
        """The allocator that these arguments describe."""
        names = {
            "shared": (),
            "ccpo": ("coef", "bonus", "baseline"),
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
        }[self.credit]
        settings = {name: getattr(self, name) for name in names}
        outcome = MathVerifier(timeout=self.verifier_timeout, answer_pattern=self.answer_pattern)
        return SCHEMES[self.credit](outcome, **settings, **kwargs)
