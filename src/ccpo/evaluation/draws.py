"""Generate the samples of one arm on one benchmark batch by batch, or read those that are saved."""

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
FINEST = 8  # parts of the last batch of votes; each corrects the number of tokens of the parts before it


@dataclass(frozen=True)
class Sizes:
    """The size of an evaluation: `k` samples for each problem, `batch_size` problems at once, and the seed."""

    k: int
    batch_size: int
    seed: int


@dataclass
class Draws:
    """
    The samples of an arm on a benchmark.

    Args:
        samples ([`Samples`]): The folder in which they are saved.
        name (`str`): The name of the benchmark.
        data ([`~datasets.Dataset`]): The problems of the benchmark.
        arm ([`Arm`]): The arm.
        sizes ([`Sizes`]): How many samples there are.
        settings (`Mapping`): What else the samples depend on, such as the description of the arm's team.
        fine (`bool`, defaults to `False`): Whether the last problems are drawn in smaller batches.

    Attributes:
        rows (`list[dict]`): For each sample the values that the tables need.
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
            tail = max(0, problems - size) // size * size  # the start of the batch in which the last `size` begin
            starts += range(tail, problems, max(1, min(size, problems) // FINEST))
        starts = sorted(set(starts))
        self.spans = list(zip(starts, [*starts[1:], problems], strict=True))
        common = {"benchmark": self.name, "arm": self.arm.name, **vars(self.sizes), **self.settings}
        self.common = plain(identity(common))
        self.prompts = list(self.data["prompt"])

    def settings_of(self, batch: int) -> dict[str, Any]:
        """The settings on which the samples of a batch depend."""
        start, end = self.spans[batch]
        columns = self.data.with_format("arrow")[start:end].to_pydict()  # all, because the outcome gets them
        gold = columns.pop("solution", None)
        others = sorted((name, values) for name, values in columns.items() if name != "prompt")
        checksum = crc32(repr((self.prompts[start:end], gold, *others)).encode("utf-8", "replace"))
        return {**self.common, "problems": f"rows {start} to {end - 1}, checksum {checksum}"}

    def kept(self) -> list[int | None]:
        """The number of saved samples of each batch; `None` if a batch is not saved."""
        return [
            self.samples.count(self.name, self.arm.name, batch, self.settings_of(batch))
            for batch in range(len(self.spans))
        ]

    def draw(self, batch: int, numbers: list[int], joint: "Draws | None", bar: tqdm) -> None:
        """
        Generate and save a batch, unless it is saved already.

        Endpoints may fail in the middle of a batch. So a batch is saved in parts then, each of as many samples as
        there may be open requests.

        Args:
            batch (`int`): The index of the batch.
            numbers (`list[int]`): For each of its problems the number of samples.
            joint ([`Draws`] or `None`): The samples of the joint team, which some arms read.
            bar (`tqdm`): The progress bar.
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
        """The answers of some samples, given as pairs (problem, sample). The arm has k samples of each problem."""
        size, k, batches = self.sizes.batch_size, self.sizes.k, {}
        found = []
        for problem, sample in places:
            batch = problem // size
            if batch not in batches:
                batches[batch] = self.samples.read(self.name, self.arm.name, batch)
            found.append(read_answer(batches[batch][(problem - batch * size) * k + sample]))
        return found

    def other_problem(self, problem: int) -> int | None:
        """The next problem with another prompt, or `None` if there is none. The first problem follows the last."""
        total = len(self.prompts)
        order = ((problem + n) % total for n in range(1, total))
        return next((i for i in order if self.prompts[i] != self.prompts[problem]), None)

    def _said(self, places: list[tuple[int, int]], joint: "Draws | None") -> Said | None:
        if self.arm.reads is None:
            return None
        others = [(self.other_problem(i), n) for i, n in places] if self.arm.reads == "other" else []
        return Said(joint.answers(places), joint.answers(others))

    def _judged(self, batch: int, places: list[tuple[int, int]], joint: "Draws | None", before: int) -> list[dict]:
        """Generate and judge some samples of a batch, of which `before` others exist already. Returns their rows."""
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
        """Give each batch its own seed, so that it does not depend on whether earlier ones were generated or read."""
        for i, generate in enumerate(self._generators()):
            if hasattr(generate, "reseed"):
                generate.reseed(crc32(f"{self.sizes.seed}/{self.name}/{self.arm.name}/{where}/{i}".encode()))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def _leaked(topology: Topology, answer: TeamAnswer, reader: Any) -> float | None:
    guarded = [reader.has(answer.texts[role]) for role in topology.role_names if topology.guarded(role)]
    return sum(guarded) / len(guarded) if guarded else None


# ---- How many votes have a given number of tokens ----


def tokens_of(draws: Draws) -> list[list[int]] | None:
    """The number of tokens of each sample, by problem; `None` if a generator does not report it."""
    counts: list[list[int]] = [[] for _ in range(len(draws.data))]
    for row in draws.rows:
        if row["tokens"] is None:
            return None
        counts[row["problem"]].append(row["tokens"])
    return counts


def mean_tokens(draws: Draws) -> float | None:
    """The mean number of tokens of a sample; `None` if a generator does not report it."""
    counts = tokens_of(draws)
    return None if counts is None else sum(map(sum, counts)) / max(1, sum(map(len, counts)))


def votes_of(votes: Draws, batch: int, joint: Draws, single: Draws) -> list[int]:
    """
    The number of votes for each problem of a batch, so that all votes so far have as many tokens as the joint team.

    The tokens of the joint team are those of one sample, the mean over its k samples. If earlier batches had too many
    tokens, this one gets fewer votes, and the other way round. Each problem gets at least one.

    Args:
        votes ([`Draws`]): The votes, with all batches before this one.
        batch (`int`): The index of the batch.
        joint ([`Draws`]), single ([`Draws`]): The complete samples of the joint team and of the single model.

    Returns:
        `list[int]`: The number of votes for each problem.
    """
    start, end = votes.spans[batch]
    wanted = sum(sum(counts) / len(counts) for counts in tokens_of(joint)[:end])
    so_far = sum(row["tokens"] for row in votes.rows)
    number = max(end - start, math.floor((wanted - so_far) / mean_tokens(single) + 0.5))
    size = end - start
    return [(i + 1) * number // size - i * number // size for i in range(size)]
