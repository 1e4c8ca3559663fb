"""What an embedded task is, as data."""

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
        topology (`Callable`): what `topology` of a recipe holds -> the team, with the task's prompts.
        build_dataset (`Callable`): a split, `"train"` or `"test"`, and options -> its problems.
        options (`tuple[str, ...]`): the options that `build_dataset` has for both splits, in `task_kwargs`.
        build_models (`Callable`, *optional*):
            Makes the models of agents for which none is named: team, folder, seed -> agent -> folder. Without it, one
            has to be named.
        answer_pattern (`str`, *optional*): where answers stand, see [`~ccpo.MathVerifier`].
        single_prompt (`str`, *optional*): what a single policy is asked; by default as the team asks the role that
            answers, alone.
    """

    topology: Callable[[Any], Topology]
    build_dataset: Callable[..., Dataset]
    options: tuple[str, ...] = ()
    build_models: Callable[..., Mapping[str, str]] | None = None
    answer_pattern: str | None = field(default=None)
    single_prompt: str | None = None
