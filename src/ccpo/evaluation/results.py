"""What samples say: how each arm did, and how much better the joint team is than each other arm."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..credit import vote_outcome
from ..rewards.metrics import is_right
from ..verifier.clusters import cluster_answers
from .arms import JOINT, VOTES, Arm
from .statistics import Difference, Estimate, avg_at_k, compare, estimate, pass_at_k

WITHIN = 0.05  # of the joint team's tokens, for self-consistency to be of equal cost


@dataclass(frozen=True)
class ArmResult:
    """
    How one arm did on one benchmark.

    Attributes:
        right (`torch.Tensor` of shape `(P, k)`):
            How much of each answer is right, NaN unscorable; of self-consistency `(P, 1)`, the vote's.
        avg ([`Estimate`]): avg@k over the problems.
        passes (`dict[int, Estimate]`): pass@1, pass@2, pass@4, … and pass@k.
        maj ([`Estimate`], *optional*): maj@k, where a sample is one answer and the outcome function can compare them.
        rates (`dict[str, float]`):
            Means over samples, NaN where unknown: `leak` (texts that pass the leak guard and stated an answer),
            `no_answer` (answers in which none was found), `truncated` (a text was cut at the limit), `unscorable`.
        tokens (`float`): generated for each problem by one sample, of self-consistency by its votes; NaN unknown.
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
    One benchmark: its arms by name, and the joint arm less each other one, Holm-corrected together.

    Attributes:
        k (`int`): samples for each problem.
        arms (`dict[str, ArmResult]`), differences (`dict[str, Difference]`): by the arm's name.
        help, hurt (`dict[str, Estimate]`):
            For each arm, the chance that a joint sample is right and the arm's wrong, and the other way round.
        left_out (`dict[str, str]`): arm -> why it could not be.
        token_ratio (`float`): tokens of self-consistency over the joint team's; NaN without that arm.
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
        """Whether self-consistency has the joint team's tokens within 5 %."""
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
    The result of a benchmark's samples.

    Args:
        rows (`Mapping[str, list[dict]]`): arm -> its samples.
        arms (`Mapping[str, Arm]`): the arms.
        problems (`int`), k (`int`): P, and samples for each.
        outcome (`Callable`): with `extract` and `equal` there is maj@k.
        seed (`int`, defaults to 0): of the bootstrap.
        left_out (`Mapping[str, str]`, *optional*): arm -> why it is not there.
    """
    found = {name: _arm(arms[name], own, problems, outcome, seed) for name, own in rows.items()}
    joint = found[JOINT].right
    pairs, help_, hurt = {}, {}, {}
    for name, arm in found.items():
        if name == JOINT:
            continue
        pairs[name] = (avg_at_k(joint), avg_at_k(arm.right))
        if arms[name].reads:  # sample by sample: they have texts in common
            first, second = joint, arm.right
        else:  # all pairs of samples
            first, second = (values.unsqueeze(1) for values in pairs[name])
        help_[name] = estimate((first * (1 - second)).nanmean(dim=1), seed=seed)
        hurt[name] = estimate(((1 - first) * second).nanmean(dim=1), seed=seed)
    return BenchmarkResult(k, found, compare(pairs, seed=seed), help_, hurt, dict(left_out or {}))


def _arm(arm: Arm, rows: Sequence[dict], problems: int, outcome: Callable, seed: int) -> ArmResult:
    by_problem: list[list[dict]] = [[] for _ in range(problems)]
    for row in rows:
        by_problem[row["problem"]].append(row)
    several = arm.team.topology.answer == "mean"  # a sample is of several answers, of which none is the team's
    majority = None if several else majority_right(by_problem, outcome)
    if arm.name == VOTES:  # one answer for each problem, the vote's
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
    """Whether an outcome function can tell which answers are equal."""
    return all(callable(getattr(outcome, name, None)) for name in ("extract", "equal"))


def majority_right(by_problem: Sequence[Sequence[dict]], outcome: Callable) -> torch.Tensor | None:
    """
    How right the vote of each problem's samples is, by the rule of a vote: the mean outcome of the largest cluster of
    equal answers, of several largest their mean; 0 where nobody answers.

    Args:
        by_problem (`list[list[dict]]`): the samples of each problem, with `answer` and `outcome`.
        outcome (`Callable`): says which answers are equal.

    Returns:
        `torch.Tensor` of shape `(P,)`, NaN unscorable; `None` where the outcome function cannot compare answers.
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
