"""The samples of one arm on one benchmark: drawn batch by batch, or read where they are drawn already."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from datasets import Dataset
from tqdm.auto import tqdm

from ..calls import unanswered
from ..team.answers import reader_of
from ..team.topology import Topology
from .arms import Arm, Said
from .description import identity, plain
from .judging import judge_team, judge_texts
from .samples import Samples, make_row, read_answer
from .team import TeamAnswer

LIGHT = ("problem", "sample", "answer", "outcome", "right", "no_answer", "leaked", "truncated", "tokens")
FINEST = 8  # parts of the last batch of votes: each makes up for what those before it missed


@dataclass(frozen=True)
class Sizes:
    """How much is drawn: `k` samples for each problem, `batch_size` problems at once, and the seed of all."""

    k: int
    batch_size: int
    seed: int


@dataclass
class Draws:
    """
    The samples of an arm on a benchmark.

    Args:
        samples ([`Samples`]): where they are kept.
        name (`str`), data ([`~datasets.Dataset`]): the benchmark.
        arm ([`Arm`]): who answers.
        sizes ([`Sizes`]): how many.
        settings (`Mapping`): what else they depend on, the description of the arm's team among it.
        fine (`bool`): whether the last problems are drawn in parts of a batch.

    Attributes:
        rows (`list[dict]`): of each sample, what the tables need.
    """

    samples: Samples
    name: str
    data: Dataset
    arm: Arm
    sizes: Sizes
    settings: Mapping[str, Any] = field(default_factory=dict)
    fine: bool = False
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self):
        size, problems = self.sizes.batch_size, len(self.data)
        starts = list(range(0, problems, size))
        if self.fine:
            tail = max(0, problems - size) // size * size  # where the last `batch_size` problems begin, or before
            starts += range(tail, problems, max(1, min(size, problems) // FINEST))
        starts = sorted(set(starts))
        self.spans = list(zip(starts, [*starts[1:], problems], strict=True))
        common = {"benchmark": self.name, "arm": self.arm.name, **vars(self.sizes), **self.settings}
        self.common = plain(identity(common))
        self.prompts = list(self.data["prompt"])

    def settings_of(self, batch: int) -> dict[str, Any]:
        """What a batch's samples depend on."""
        start, end = self.spans[batch]
        columns = self.data.with_format("arrow")[start:end].to_pydict()  # all of them: the outcome gets them
        gold = columns.pop("solution", None)
        others = sorted((name, values) for name, values in columns.items() if name != "prompt")
        checksum = crc32(repr((self.prompts[start:end], gold, *others)).encode("utf-8", "replace"))
        return {**self.common, "problems": f"rows {start} to {end - 1}, checksum {checksum}"}

    def kept(self) -> list[int | None]:
        """How many samples of each batch are drawn already; `None` of one that is not."""
        return [
            self.samples.count(self.name, self.arm.name, batch, self.settings_of(batch))
            for batch in range(len(self.spans))
        ]

    def draw(self, batch: int, numbers: list[int], joint: "Draws | None", bar: tqdm) -> None:
        """
        Draw a batch, unless it is kept, `numbers[i]` samples of its i-th problem; what is drawn is kept. Of endpoints,
        which may fail on the way, as many samples are kept at a time as have requests in flight.
        """
        place, part = (self.name, self.arm.name, batch), (self.name, f"{self.arm.name}.part", batch)
        settings = self.settings_of(batch)
        if self.samples.count(*place, settings) is None:
            start, _ = self.spans[batch]
            places = [(start + i, n) for i, number in enumerate(numbers) for n in range(number)]
            rows = [] if self.samples.count(*part, settings) is None else self.samples.read(*part)
            bar.update(len(rows))
            step = min((g.max_concurrency for g in self._generators() if hasattr(g, "max_concurrency")), default=None)
            while len(rows) < len(places):
                new = self._judged(batch, places[len(rows) :][:step], joint, len(rows))
                rows += new
                if len(rows) < len(places):
                    self.samples.write(*part, settings, rows)
                bar.update(len(new))
            self.samples.write(*place, settings, rows)
            self.samples.file(*part).unlink(missing_ok=True)
        self.rows += self.samples.read(*place, LIGHT)

    def answers(self, places: list[tuple[int, int]]) -> list[TeamAnswer]:
        """What was said in some samples, given as (problem, sample), of an arm with k samples of each problem."""
        size, k, batches = self.sizes.batch_size, self.sizes.k, {}
        found = []
        for problem, sample in places:
            batch = problem // size
            if batch not in batches:
                batches[batch] = self.samples.read(self.name, self.arm.name, batch)
            found.append(read_answer(batches[batch][(problem - batch * size) * k + sample]))
        return found

    def other_problem(self, problem: int) -> int | None:
        """The next problem with another prompt; the first ones follow the last. `None` if there is none."""
        total = len(self.prompts)
        order = ((problem + n) % total for n in range(1, total))
        return next((i for i in order if self.prompts[i] != self.prompts[problem]), None)

    def _said(self, places: list[tuple[int, int]], joint: "Draws | None") -> Said | None:
        if self.arm.reads is None:
            return None
        others = [(self.other_problem(i), n) for i, n in places] if self.arm.reads == "other" else []
        return Said(joint.answers(places), joint.answers(others))

    def _judged(self, batch: int, places: list[tuple[int, int]], joint: "Draws | None", before: int) -> list[dict]:
        """The rows of some places of a batch, with `before` others of it drawn."""
        start, end = self.spans[batch]
        said = self._said(places, joint)
        self._reseed(f"{batch}+{before}" if before else f"{batch}")
        prompts = [self.prompts[i] for i, _ in places]
        answers = self.arm.draw(prompts, said)
        team, data = self.arm.team, self.data[start:end]
        columns = {c: [values[i - start] for i, _ in places] for c, values in data.items() if c != "prompt"}
        texts = {role: [answer.texts[role] for answer in answers] for role in team.topology.answer_roles}
        own = dict(zip(texts, judge_texts(team.outcome, prompts, columns, list(texts.values())), strict=True))
        right = judge_team(team.topology, team.outcome, texts, own).tolist()
        missing = [unanswered(team.outcome, part) for part in texts.values()]
        return [
            make_row(
                answer,
                benchmark=self.name,
                arm=self.arm.name,
                problem=problem,
                sample=sample,
                prompt=json.dumps(self.prompts[problem]),
                solution=None if "solution" not in columns else _text(columns["solution"][n]),
                outcome=own[answer.role][n].item(),
                right=right[n],
                no_answer=None if None in missing else sum(part[n] for part in missing) / len(missing),
                leaked=_leaked(team.topology, answer, reader_of(team.outcome)),
            )
            for n, ((problem, sample), answer) in enumerate(zip(places, answers, strict=True))
        ]

    def _generators(self) -> list[Any]:
        return list({id(g): g for g in self.arm.team.generate.values()}.values())

    def _reseed(self, where: str) -> None:
        """Every batch begins at a seed of its own, so that what comes after one that is kept is the same."""
        for i, generate in enumerate(self._generators()):
            if hasattr(generate, "reseed"):
                generate.reseed(crc32(f"{self.sizes.seed}/{self.name}/{self.arm.name}/{where}/{i}".encode()))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def _leaked(topology: Topology, answer: TeamAnswer, reader: Any) -> float | None:
    guarded = [reader.has(answer.texts[role]) for role in topology.role_names if topology.guarded(role)]
    return sum(guarded) / len(guarded) if guarded else None


# ---- As many votes as make a given number of tokens ----


def tokens_of(draws: Draws) -> list[list[int]] | None:
    """Tokens of the samples of each problem; `None` where a generator does not tell."""
    counts: list[list[int]] = [[] for _ in range(len(draws.data))]
    for row in draws.rows:
        if row["tokens"] is None:
            return None
        counts[row["problem"]].append(row["tokens"])
    return counts


def mean_tokens(draws: Draws) -> float | None:
    """Tokens of a sample; `None` where a generator does not tell."""
    counts = tokens_of(draws)
    return None if counts is None else sum(map(sum, counts)) / max(1, sum(map(len, counts)))


def votes_of(votes: Draws, batch: int, joint: Draws, single: Draws) -> list[int]:
    """
    How many answers of the single policy each problem of a batch gets, for all so far to have the joint team's tokens.

    The joint team's are those of one sample, its mean over the k. What earlier batches had too much or too little,
    this one has less or more. Every problem gets an answer.

    Args:
        votes ([`Draws`]): with the batches before.
        batch (`int`): which one.
        joint, single ([`Draws`]): complete.
    """
    start, end = votes.spans[batch]
    wanted = sum(sum(counts) / len(counts) for counts in tokens_of(joint)[:end])
    so_far = sum(row["tokens"] for row in votes.rows)
    number = max(end - start, math.floor((wanted - so_far) / mean_tokens(single) + 0.5))
    size = end - start
    return [(i + 1) * number // size - i * number // size for i in range(size)]
