"""[`Task`]: the definition of an embedded task as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from ccpo.team.topology import Topology


@dataclass(frozen=True)
class Task:
    """
    A task that needs no dataset.

    Args:
        topology (`Callable`): Takes the value of `topology` in a recipe. Returns the team with the task's prompts.
        build_dataset (`Callable`): Takes a split, `"train"` or `"test"`, and options. Returns the problems.
        options (`tuple[str, ...]`): The options of `build_dataset` that `task_kwargs` may set for both splits.
        build_models (`Callable`, *optional*):
            Makes models for agents that have none. Takes the team, a folder and a seed, and returns a mapping from
            agents to folders. Without it, a recipe must name a model.
        answer_pattern (`str`, *optional*): The pattern that finds answers, see [`~ccpo.MathVerifier`].
        single_prompt (`str`, *optional*):
            The prompt of a single model that is compared with the team. By default it is asked like the role that
            answers, without the other roles.
    """

    topology: Callable[[Any], Topology]
    build_dataset: Callable[..., Dataset]
    options: tuple[str, ...] = ()
    build_models: Callable[..., Mapping[str, str]] | None = None
    answer_pattern: str | None = field(default=None)
    single_prompt: str | None = None
