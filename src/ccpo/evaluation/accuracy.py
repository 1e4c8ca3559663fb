"""Measure the accuracy of a team, and of the team without each role, on held-out problems."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..calls import unanswered
from ..rewards.metrics import is_right
from ..team.answers import reader_of
from ..team.problems import check_problems
from ..team.rollout import Passes, run_team
from ..team.topology import ThinkSolve, make_topology
from .judging import judge_team, judge_texts
from .statistics import estimate


@dataclass(frozen=True)
class Proportion:
    """
    The share of trials that succeeded, with its 95 % Wilson interval.

    Args:
        successes (`int` or `float`): How many succeeded. Not whole if an answer of several texts is partly right.
        total (`int`): The number of trials.
    """

    successes: float
    total: int

    @property
    def value(self) -> float:
        """The share, from 0 to 1. NaN if there are no trials."""
        return self.successes / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval (Wilson, 1927). (0, 1) if there are no trials."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.value
        center, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class TeamEvaluation:
    """
    The result of [`evaluate_team`].

    Args:
        joint ([`Proportion`]): The right answers of the team, among those that can be scored.
        solo ([`Proportion`], *optional*): The right answers of the team without its first role.
        leak ([`Proportion`]): The texts that stated an answer although their role must not.
        unscorable (`int`): The number of problems whose gold answer could not be read.
        no_answer ([`Proportion`], *optional*):
            The answers in which no answer was found. `None` if the outcome function has no `extract`.
        without (`dict[str, Proportion]`): For each role that can be removed, the right answers of the team without it.
        right (`tuple[float, ...]`):
            For each problem 1 if the team is right and 0 if it is wrong. NaN if it cannot be scored.
        right_without (`dict[str, tuple[float, ...]]`): The same for the team without each role that can be removed.
        cut (`dict[str, Proportion]`):
            For each role that reads others, the prompts in which their texts were cut to fit. Passes without a role
            count, too.
    """

    joint: Proportion
    solo: Proportion | None
    leak: Proportion
    unscorable: int = 0
    no_answer: Proportion | None = None
    without: dict[str, Proportion] = field(default_factory=dict)
    right: tuple[float, ...] = ()
    right_without: dict[str, tuple[float, ...]] = field(default_factory=dict)
    cut: dict[str, Proportion] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Values and intervals, ready for JSON."""
        parts = {"joint": self.joint, "solo": self.solo, "leak": self.leak, "no_answer": self.no_answer}
        if len(self.without) > 1:  # with one it is the same as `solo`
            parts |= {f"without_{role}": share for role, share in self.without.items()}
        parts |= {f"{role}_cut": share for role, share in self.cut.items() if share.successes}
        return {
            name: part and {**asdict(part), "value": part.value, "interval": part.interval}
            for name, part in parts.items()
        } | {"unscorable": self.unscorable}


def evaluate_team(
    dataset: Dataset,
    generate: dict[str, Callable],
    outcome: Callable,
    *,
    topology: Any = None,
    batch_size: int = 64,
) -> TeamEvaluation:
    """
    Evaluate a team once on each problem, and once without each role that can be removed.

    [`evaluate`] does more: several samples for each problem, more arms, and saved samples.

    Args:
        dataset ([`~datasets.Dataset`]): The problems, with the column `prompt` and the columns that `outcome` reads.
        generate (`dict[str, Callable]`): Maps each role to its generator, e.g. a [`TransformersGenerator`].
        outcome (`Callable`):
            A TRL reward function, asynchronous or not. Its value is positive if an answer is right.
        topology (*optional*):
            The team, in any form that [`~ccpo.team.topology.make_topology`] takes. Defaults to [`ThinkSolve`].
        batch_size (`int`, defaults to 64): How many problems are answered at once.

    Returns:
        [`TeamEvaluation`]

    Raises:
        `ValueError`: If an argument is wrong, or if a problem alone does not fit into the context of a model. This is
            checked before anything is generated.
    """
    topology = ThinkSolve() if topology is None else make_topology(topology)
    _check(dataset, batch_size)
    removable = [name for name in topology.role_names if topology.is_chain and topology.removable(name)]
    last = topology.role_names[-1]
    right: list[float] = []
    without: dict[str, list[float]] = {name: [] for name in removable}
    no_answer, leaked, reader = [], [], reader_of(outcome)
    cut: dict[str, list[bool]] = {role.name: [] for role in topology.roles if role.reads}
    check_problems("dataset", list(dataset["prompt"]), topology, generate)
    for start in tqdm(range(0, len(dataset), batch_size), desc="Evaluating", leave=False):
        rows = dataset[start : start + batch_size]
        prompts = rows.pop("prompt")
        passes = {name: Passes(tuple(range(len(prompts)))) for name in removable}
        ones = [1] * len(topology.roles)
        episodes = run_team(topology, prompts, generate, branches=ones, removals=passes, reader=reader)
        leaked += episodes.leaked
        for name, seen in cut.items():
            seen += episodes.cuts(name)
        answers = {name: episodes.said[name].texts for name in topology.answer_roles}
        parts = [*answers.values(), *(episodes.without[name][last].texts for name in removable)]
        values = judge_texts(outcome, prompts, rows, parts)
        for part in answers.values():
            no_answer += unanswered(outcome, part) or []
        own = dict(zip(answers, values, strict=False))
        right += judge_team(topology, outcome, answers, own).tolist()
        for name, alone in zip(removable, values[len(answers) :], strict=True):
            without[name] += is_right(alone).tolist()

    def share(values: list[float]) -> Proportion:
        scored = [value for value in values if not math.isnan(value)]
        total = sum(scored)
        return Proportion(int(total) if float(total).is_integer() else total, len(scored))

    removed = {name: share(values) for name, values in without.items()}
    return TeamEvaluation(
        joint=share(right),
        solo=removed.get(topology.role_names[0]),
        leak=Proportion(sum(leaked), len(leaked)),
        unscorable=sum(map(math.isnan, right)),
        no_answer=Proportion(sum(no_answer), len(no_answer)) if hasattr(outcome, "extract") else None,
        without=removed,
        right=tuple(right),
        right_without={name: tuple(values) for name, values in without.items()},
        cut={name: Proportion(sum(seen), len(seen)) for name, seen in cut.items()},
    )


def _check(dataset: Any, batch_size: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"`dataset` must be a datasets.Dataset, got {type(dataset).__name__}. Make one with "
            "Dataset.from_list(rows), or load it with ccpo.data.load_problems."
        )
    if "prompt" not in dataset.column_names:
        raise ValueError(
            f"`dataset` has no column 'prompt'. Its columns are {dataset.column_names}. Rename one, e.g. with "
            "ccpo.data.load_problems(..., problem_column=..., solution_column=...)."
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer of at least 1, got {batch_size!r}. Set it to 1 or more.")


def paired_difference(
    before: TeamEvaluation, after: TeamEvaluation, without: str | None = None
) -> tuple[float, tuple[float, float]]:
    """
    The change in accuracy between two evaluations of the same problems, with its 95 % bootstrap interval.

    The interval is that of [`~ccpo.evaluation.statistics.estimate`].

    Args:
        before, after ([`TeamEvaluation`]): Two evaluations of the same problems in the same order.
        without (`str`, *optional*): A role. The team without this role is compared. By default the whole team is.

    Returns:
        `tuple[float, tuple[float, float]]`: The mean difference and its interval. NaN if nothing can be scored.

    Raises:
        `ValueError`: If the numbers of problems differ.
    """
    if len(before.right) != len(after.right):
        raise ValueError(
            f"`before` has {len(before.right)} problems but `after` has {len(after.right)}. To be compared, they "
            "must be of the same problems."
        )
    earlier, later = (found.right if without is None else found.right_without[without] for found in (before, after))
    difference = torch.tensor(later, dtype=torch.float64) - torch.tensor(earlier, dtype=torch.float64)
    found = estimate(difference)
    return found.value, found.interval
