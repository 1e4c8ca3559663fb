"""[`evaluate`]: a team against its arms, on benchmarks, with intervals; interrupted, it goes on where it was."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..calls import call_outcome, unanswered
from ..credit import vote_outcome
from ..rewards.metrics import is_right
from ..team.answers import reader_of
from ..verifier.clusters import cluster_answers
from .arms import JOINT, SINGLE, VOTES, Arm, build_arms
from .benchmarks import load_benchmark
from .samples import Samples, make_row, read_answer
from .statistics import Difference, Estimate, avg_at_k, compare, estimate, pass_at_k
from .team import Team


@dataclass(frozen=True)
class ArmResult:
    """
    How one arm did on one benchmark.

    Attributes:
        avg, pass_k, maj ([`Estimate`]): avg@k, pass@k and maj@k over the problems.
        right (`torch.Tensor` of shape `(P, k)`): 1 right, 0 wrong, NaN unscorable.
        rates (`dict[str, float]`): of samples: `leak`, `no_answer`, `truncated`, `unscorable`; NaN where unknown.
        tokens (`float`): generated for each problem, over its k samples (or its votes) divided by k; NaN unknown.
    """

    avg: Estimate
    pass_k: Estimate
    maj: Estimate | None
    right: torch.Tensor = field(repr=False)
    rates: dict[str, float] = field(default_factory=dict)
    tokens: float = math.nan


@dataclass(frozen=True)
class BenchmarkResult:
    """
    One benchmark: its arms by name, and the joint arm less each other one, Holm-corrected together.

    Attributes:
        arms (`dict[str, ArmResult]`), differences (`dict[str, Difference]`): by the arm's name.
        help, hurt (`dict[str, Estimate]`):
            For each arm, the chance that a joint sample is right and the arm's wrong, and the other way round.
    """

    arms: dict[str, ArmResult]
    differences: dict[str, Difference]
    help: dict[str, Estimate]
    hurt: dict[str, Estimate]


def evaluate(
    team: Team | str | Path,
    benchmarks: Mapping[str, Dataset] | Sequence[Any] | str,
    *,
    output_dir: str | Path,
    k: int = 1,
    arms: Sequence[str] | None = None,
    single: Team | None = None,
    swaps: Mapping[str, Callable] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    max_problems: int | None = None,
    conversational: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, BenchmarkResult]:
    """
    Evaluate a team and its arms on benchmarks, k samples for each problem.

    Every batch of an arm is kept when it is drawn. Called again with the same settings, what is kept is not drawn
    again. With [`TransformersGenerator`] a batch has a seed of its own, so that an evaluation that was interrupted
    ends in the same table as one that was not.

    Args:
        team ([`Team`], `str` or `Path`): the team, or a run's folder.
        benchmarks: name -> problems in TRL's columns; or benchmarks, see [`~ccpo.evaluation.benchmarks`].
        output_dir (`str` or `Path`): gets `settings.json` and `samples/`, a parquet file for each batch.
        k (`int`, defaults to 1): samples for each problem.
        arms, single, swaps: see [`~ccpo.evaluation.arms.build_arms`].
        batch_size (`int`, defaults to 64): problems at once, each k times.
        seed (`int`, defaults to 0): of the samples, and of the bootstrap.
        max_problems (`int`, *optional*): the first problems of each benchmark only.
        conversational (`bool`, defaults to `True`): whether benchmarks by name are chat messages.
        settings (`Mapping`, *optional*): what else the samples depend on, kept beside them: models, sampling.

    Returns:
        `dict[str, BenchmarkResult]`: benchmark -> result.

    Raises:
        `ValueError`: an unknown benchmark or arm, `k` or `batch_size` below 1, or a folder of other settings.
    """
    for name, value in (
        ("k", k),
        ("batch_size", batch_size),
        ("max_problems", 1 if max_problems is None else max_problems),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    if not isinstance(team, Team):
        team, settings = Team.from_pretrained(team, seed=seed), {"team": str(team), **(settings or {})}
    problems = _load(benchmarks, conversational)
    problems = {
        name: data if max_problems is None else data.select(range(min(max_problems, len(data))))
        for name, data in problems.items()
    }
    chosen = build_arms(team, arms, single=single, swaps=swaps)
    samples = Samples(
        output_dir,
        {
            "topology": team.topology.to_dict(),
            "k": k,
            "batch_size": batch_size,
            "seed": seed,
            "benchmarks": {name: len(data) for name, data in problems.items()},
            "problems": {name: crc32(repr(list(data["prompt"])).encode()) for name, data in problems.items()},
            **(settings or {}),
        },
    )
    results = {}
    with tqdm(total=sum(map(len, problems.values())) * k * len(chosen), desc="Evaluating", unit="sample") as bar:
        for name, data in problems.items():
            drawn = {
                arm.name: _Draws(samples, name, data, team, (k, batch_size, seed), bar) for arm in chosen.values()
            }
            for arm in chosen.values():
                bar.set_postfix_str(f"{name}, {arm.name}")
                votes = _votes(drawn, len(data)) if arm.name == VOTES else None
                drawn[arm.name].draw(arm, drawn[JOINT], votes)
            results[name] = _result({name: d.rows for name, d in drawn.items()}, len(data), k, team.outcome, seed)
    return results


def _load(benchmarks: Any, conversational: bool) -> dict[str, Dataset]:
    if isinstance(benchmarks, Mapping):
        return dict(benchmarks)
    given = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
    if not given:
        raise ValueError("`benchmarks` is empty. Name one.")
    return dict(load_benchmark(benchmark, conversational=conversational) for benchmark in given)


class _Draws:
    """The samples of one arm on one benchmark."""

    def __init__(self, samples: Samples, name: str, data: Dataset, team: Team, sizes: tuple[int, int, int], bar: tqdm):
        self.samples, self.name, self.data, self.team = samples, name, data, team
        (self.k, self.batch_size, self.seed), self.bar = sizes, bar
        self.batches: list[list[dict]] = []

    @property
    def rows(self) -> list[dict]:
        return [row for batch in self.batches for row in batch]

    def draw(self, arm: Arm, joint: "_Draws", votes: list[int] | None) -> None:
        for start in range(0, len(self.data), self.batch_size):
            batch = start // self.batch_size
            rows = self.samples.read(self.name, arm.name, batch)
            if rows is None:
                data = self.data[start : start + self.batch_size]
                places = range(len(data["prompt"]))
                numbers = [self.k if votes is None else votes[start + i] for i in places]
                index = [i for i in places for _ in range(numbers[i])]
                said = [read_answer(row) for row in joint.batches[batch]] if arm.reads_joint else None
                rows = self._judged(arm, data, index, said, start, batch)
                self.samples.write(self.name, arm.name, batch, rows)
            self.batches.append(rows)
            self.bar.update(min(self.batch_size, len(self.data) - start) * self.k)

    def _judged(self, arm: Arm, data: dict, index: list[int], said, start: int, batch: int) -> list[dict]:
        if not index:
            return []
        generators = list({id(g): g for team in arm.teams for g in team.generate.values()}.values())
        for i, generate in enumerate(generators):
            if hasattr(generate, "reseed"):
                generate.reseed(crc32(f"{self.seed}/{self.name}/{arm.name}/{batch}/{i}".encode()))
        prompts = [data["prompt"][i] for i in index]
        answers = arm.draw(prompts, said)
        outcome, texts = self.team.outcome, [answer.text for answer in answers]
        chat = not isinstance(prompts[0], str)
        completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        columns = {name: [values[i] for i in index] for name, values in data.items() if name != "prompt"}
        outcomes = call_outcome(outcome, len(texts), prompts=prompts, completions=completions, **columns)
        missing, reader = unanswered(outcome, texts) or [None] * len(texts), reader_of(outcome)
        topology = arm.teams[0].topology
        guarded = [role for role in topology.role_names if topology.guarded(role)]
        rows, seen = [], {}
        for n, (i, answer) in enumerate(zip(index, answers, strict=True)):
            sample = seen[i] = seen.get(i, -1) + 1
            rows.append(
                make_row(
                    answer,
                    benchmark=self.name,
                    arm=arm.name,
                    problem=start + i,
                    sample=sample,
                    prompt=json.dumps(data["prompt"][i]),
                    solution=data["solution"][i] if "solution" in data else None,
                    outcome=outcomes[n],
                    no_answer=missing[n],
                    leaked=any(reader.has(answer.texts[role]) for role in guarded) if guarded else None,
                )
            )
        return rows


def _votes(drawn: dict[str, _Draws], problems: int) -> list[int]:
    """
    How many answers of the single policy each problem gets, so that they have the joint team's tokens.

    Both are known as means over all problems. The number is one of the two whole ones around their ratio, spread
    evenly over the problems, so that their mean is the ratio.

    Raises:
        `ValueError`: a generator that does not tell its tokens, or a single answer that is longer than the team's.
    """
    means = {}
    for name in (JOINT, SINGLE):
        tokens = [row["tokens"] for row in drawn[name].rows]
        if None in tokens:
            raise ValueError(f"`{VOTES}` needs the tokens of the arm {name!r}, which its generator does not tell.")
        means[name] = sum(tokens) / len(tokens)
    ratio = means[JOINT] / max(means[SINGLE], 1e-9)
    if ratio < 1:
        raise ValueError(
            f"`{VOTES}` needs a single policy with no more tokens than the team; it has {means[SINGLE]:.0f} for an "
            f"answer and the team {means[JOINT]:.0f}. Lower its `max_new_tokens`, or leave the arm out."
        )
    return [math.floor((i + 1) * ratio) - math.floor(i * ratio) for i in range(problems)]


def _result(rows: dict[str, list[dict]], problems: int, k: int, outcome: Callable, seed: int) -> BenchmarkResult:
    arms = {name: _arm(name, own, problems, k, outcome, seed) for name, own in rows.items()}
    joint = arms[JOINT]
    others = {name: arm for name, arm in arms.items() if name != JOINT}
    means = {name: arm.right.nanmean(dim=1) for name, arm in arms.items()}
    return (
        BenchmarkResult(
            arms,
            compare({name: (means[JOINT], means[name]) for name in others}, seed=seed),
            {name: estimate(means[JOINT] * (1 - means[name]), seed=seed) for name in others},
            {name: estimate((1 - means[JOINT]) * means[name], seed=seed) for name in others},
        )
        if joint.right.numel()
        else BenchmarkResult(arms, {}, {}, {})
    )


def _arm(name: str, rows: list[dict], problems: int, k: int, outcome: Callable, seed: int) -> ArmResult:
    by_problem: list[list[dict]] = [[] for _ in range(problems)]
    for row in rows:
        by_problem[row["problem"]].append(row)
    own = [[math.nan if row["outcome"] is None else row["outcome"] for row in group] for group in by_problem]
    votes = _majority(by_problem, own, outcome)
    if name == VOTES:  # one answer for each problem, the vote's
        right = votes.unsqueeze(1)
    else:
        right = is_right(torch.tensor(own, dtype=torch.float64).view(problems, k))

    def rate(field_name: str) -> float:
        known = [row[field_name] for row in rows if row[field_name] is not None]
        return sum(known) / len(known) if known else math.nan

    tokens = [row["tokens"] for row in rows]
    return ArmResult(
        avg=estimate(avg_at_k(right), seed=seed),
        pass_k=estimate(pass_at_k(right, right.shape[1]), seed=seed),
        maj=estimate(votes, seed=seed) if votes is not None else None,
        right=right,
        rates={
            "leak": rate("leaked"),
            "no_answer": rate("no_answer"),
            "truncated": rate("truncated"),
            "unscorable": sum(row["outcome"] is None for row in rows) / max(1, len(rows)),
        },
        tokens=math.nan if None in tokens else sum(tokens) / problems / (1 if name == VOTES else k),
    )


def _majority(by_problem: list[list[dict]], own: list[list[float]], outcome: Callable) -> torch.Tensor | None:
    """How right the vote of a problem's samples is, `(P,)`; `None` where answers cannot be compared."""
    if not all(callable(getattr(outcome, name, None)) for name in ("extract", "equal")):
        return None
    found = torch.full((len(own),), math.nan, dtype=torch.float64)
    for size in {len(group) for group in own}:
        places = [i for i, group in enumerate(own) if len(group) == size]
        if size == 0:
            continue
        clusters = cluster_answers([[row["answer"] for row in by_problem[i]] for i in places], outcome).unsqueeze(1)
        right = is_right(torch.tensor([own[i] for i in places], dtype=torch.float64)).unsqueeze(1)
        found[places] = vote_outcome(right, clusters).clamp(min=0).squeeze(1)
    return found
