"""Embedded tasks, whose problems and policies need no dataset and no Hub, and models that are built by name."""

from . import arithmetic, wordproblems
from .task import Task
from .tiny import TINY, build_tiny_model

TASKS = {
    "arithmetic": Task(arithmetic.topology, arithmetic.build_dataset, build_models=arithmetic.warm_start_team),
    "wordproblems": Task(
        wordproblems.topology,
        wordproblems.build_dataset,
        options=("two_steps", "terms", "factors"),
        answer_pattern=wordproblems.ANSWER_PATTERN,
        single_prompt=wordproblems.SINGLE_PROMPT,
    ),
}
# Names that `model_name_or_path` may have besides ids and folders, and the functions that build these models.
MODELS = {TINY: build_tiny_model, wordproblems.PACKAGE: wordproblems.build_smollm2}

__all__ = ["MODELS", "TASKS", "TINY", "Task", "arithmetic", "build_tiny_model", "wordproblems"]
