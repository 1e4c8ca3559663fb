"""Compute the results of an evaluation from its samples: each arm, and its difference to the joint team."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..credit import vote_outcome
from ..rewards.metrics import is_right
from ..verifier.clusters import cluster_answers
from .arms import JOINT, VOTES, Arm
from .statistics import Difference, Estimate, avg_at_k, compare, estimate, pass_at_k

WITHIN = 0.05  # self-consistency has equal cost if its tokens differ by at most this share from the joint team's


@dataclass(frozen=True)
class ArmResult:
    """
    The result of one arm on one benchmark.

    Attributes:
        right (`torch.Tensor` of shape `(P, k)`):
            How much of each answer is right, from 0 to 1. NaN if it cannot be scored. Self-consistency has one column,
            for the result of the vote.
        avg ([`Estimate`]): avg@k over the problems.
        passes (`dict[int, Estimate]`): pass@1, pass@2, pass@4, … and pass@k.
        maj ([`Estimate`], *optional*):
            maj@k. `None` if a sample has several answers, or if the outcome function cannot compare answers.
        rates (`dict[str, float]`):
            Means over samples, NaN if unknown: `leak` (texts that stated an answer although their role must not),
            `no_answer` (answers in which none was found), `truncated` (samples with a text that was cut at its longest
            length) and `unscorable`.
        tokens (`float`):
            The tokens that one sample of a problem generates, for self-consistency all its votes. NaN if unknown.
    """

    right: torch.Tensor = field(repr=False)
    avg: Estimate
    passes: dict[int, Estimate]
    maj: Estimate | None
    rates: dict[str, float]
    tokens: float


@dataclass(frozen=True)
class BenchmarkResult:
    """
    The results of all arms on one benchmark.

    Attributes:
        k (`int`): The number of samples for each problem.
        arms (`dict[str, ArmResult]`): Maps each arm to its result.
        differences (`dict[str, Difference]`):
            Maps each other arm to the joint team's result minus its own. Holm's correction is over all of them.
        help (`dict[str, Estimate]`):
            For each arm, the chance that a sample of the team is right and one of the arm is wrong.
        hurt (`dict[str, Estimate]`): The chance of the opposite.
        left_out (`dict[str, str]`): Maps each arm that was left out to the reason.
        token_ratio (`float`): The tokens of self-consistency divided by the joint team's. NaN without that arm.
    """

    k: int
    arms: dict[str, ArmResult]
    differences: dict[str, Difference]
    help: dict[str, Estimate]
    hurt: dict[str, Estimate]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def token_ratio(self) -> float:
        return self.arms[VOTES].tokens / self.arms[JOINT].tokens if VOTES in self.arms else math.nan

    @property
    def equal_cost(self) -> bool:
        """Whether the tokens of self-consistency differ by at most 5 % from the joint team's."""
        return abs(self.token_ratio - 1) <= WITHIN


def summarize(
    rows: Mapping[str, Sequence[dict]],
    arms: Mapping[str, Arm],
    problems: int,
    k: int,
    outcome: Callable,
    *,
    seed: int = 0,
    left_out: Mapping[str, str] | None = None,
) -> BenchmarkResult:
    """
    Compute the result of a benchmark from its samples.

    Args:
        rows (`Mapping[str, list[dict]]`): Maps each arm to its samples.
        arms (`Mapping[str, Arm]`): The arms.
        problems (`int`): P, the number of problems.
        k (`int`): The number of samples for each problem.
        outcome (`Callable`): The outcome function. maj@k needs its methods `extract` and `equal`.
        seed (`int`, defaults to 0): The seed of the bootstrap.
        left_out (`Mapping[str, str]`, *optional*): Maps each arm that was left out to the reason.
    """
    found = {name: _arm(arms[name], own, problems, outcome, seed) for name, own in rows.items()}
    joint = found[JOINT].right
    pairs, help_, hurt = {}, {}, {}
    for name, arm in found.items():
        if name == JOINT:
            continue
        pairs[name] = (avg_at_k(joint), avg_at_k(arm.right))
        if arms[name].reads:  # compared sample by sample, because these have texts in common
            first, second = joint, arm.right
        else:  # compared over all pairs of samples
            first, second = (values.unsqueeze(1) for values in pairs[name])
        help_[name] = estimate((first * (1 - second)).nanmean(dim=1), seed=seed)
        hurt[name] = estimate(((1 - first) * second).nanmean(dim=1), seed=seed)
    return BenchmarkResult(k, found, compare(pairs, seed=seed), help_, hurt, dict(left_out or {}))


def _arm(arm: Arm, rows: Sequence[dict], problems: int, outcome: Callable, seed: int) -> ArmResult:
    by_problem: list[list[dict]] = [[] for _ in range(problems)]
    for row in rows:
        by_problem[row["problem"]].append(row)
    several = arm.team.topology.answer == "mean"  # a sample has several answers, and none is the team's alone
    majority = None if several else majority_right(by_problem, outcome)
    if arm.name == VOTES:  # one answer for each problem, that of the vote
        right = majority.unsqueeze(1)
    else:
        right = torch.tensor([[_number(row["right"]) for row in group] for group in by_problem], dtype=torch.float64)
    own_k = right.shape[1]
    tokens = [row["tokens"] for row in rows]
    return ArmResult(
        right=right,
        avg=estimate(avg_at_k(right), seed=seed),
        passes={n: estimate(pass_at_k(right, n), seed=seed) for n in _powers(own_k)},
        maj=None if majority is None else estimate(majority, seed=seed),
        rates={
            "leak": _rate(rows, "leaked"),
            "no_answer": _rate(rows, "no_answer"),
            "truncated": _rate(rows, "truncated"),
            "unscorable": sum(row["right"] is None for row in rows) / len(rows),
        },
        tokens=math.nan if None in tokens else sum(tokens) / problems / own_k,
    )


def can_compare(outcome: Callable) -> bool:
    """Whether an outcome function can compare answers."""
    return all(callable(getattr(outcome, name, None)) for name in ("extract", "equal"))


def majority_right(by_problem: Sequence[Sequence[dict]], outcome: Callable) -> torch.Tensor | None:
    """
    How much of the majority vote of each problem's samples is right.

    It is the share of right answers in the largest cluster of equal answers. If several clusters are largest, it is
    their mean. It is 0 if no sample has an answer.

    Args:
        by_problem (`list[list[dict]]`): The samples of each problem, with `answer` and `outcome`.
        outcome (`Callable`): The outcome function, which compares answers.

    Returns:
        `torch.Tensor` of shape `(P,)`, or `None` if the outcome function cannot compare answers. NaN if the answer
        cannot be scored.
    """
    if not can_compare(outcome):
        return None
    found = torch.full((len(by_problem),), math.nan, dtype=torch.float64)
    for size in sorted({len(group) for group in by_problem}):
        places = [i for i, group in enumerate(by_problem) if len(group) == size]
        texts = [[row["answer"] for row in by_problem[i]] for i in places]
        own = torch.tensor([[_number(row["outcome"]) for row in by_problem[i]] for i in places], dtype=torch.float64)
        clusters = cluster_answers(texts, outcome)
        found[places] = vote_outcome(is_right(own).unsqueeze(1), clusters.unsqueeze(1)).clamp(min=0).squeeze(1)
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _rate(rows: Sequence[dict], name: str) -> float:
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) / len(known) if known else math.nan


def _powers(k: int) -> list[int]:
    return [*(2**n for n in range(k.bit_length()) if 2**n < k), k]
