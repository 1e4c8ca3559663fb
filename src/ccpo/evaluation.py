"""Accuracy of a team and of its Solver alone on held-out problems, with intervals."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from .calls import call_outcome, unanswered
from .team.answers import reader_of
from .team.rollout import run_episodes
from .team.topology import ThinkSolve


@dataclass(frozen=True)
class Proportion:
    """
    A share of `total` trials with its 95 % Wilson interval.

    Args:
        successes (`int`): trials that succeeded.
        total (`int`): trials.
    """

    successes: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN of no trials."""
        return self.successes / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval (Wilson, 1927); (0, 1) of no trials."""
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
    How a team did.

    Args:
        joint ([`Proportion`]): right team answers among the scorable.
        solo ([`Proportion`]): right answers of the Solver alone.
        leak ([`Proportion`]): thoughts that contained a box.
        unscorable (`int`): problems whose gold answer the outcome function could not read.
        no_answer ([`Proportion`], *optional*):
            team answers in which the outcome function's `extract`, if it has one, found no answer.
    """

    joint: Proportion
    solo: Proportion
    leak: Proportion
    unscorable: int = 0
    no_answer: Proportion | None = None

    def to_dict(self) -> dict[str, Any]:
        """Values and intervals, ready for JSON."""
        parts = {"joint": self.joint, "solo": self.solo, "leak": self.leak, "no_answer": self.no_answer}
        return {
            name: part and {**asdict(part), "value": part.value, "interval": part.interval}
            for name, part in parts.items()
        } | {"unscorable": self.unscorable}


def evaluate_team(
    dataset: Dataset,
    generate: dict[str, Callable],
    outcome: Callable,
    *,
    topology: ThinkSolve | None = None,
    batch_size: int = 64,
) -> TeamEvaluation:
    """
    One joint and one solo answer per problem.

    Args:
        dataset ([`~datasets.Dataset`]): columns `prompt` and what `outcome` reads.
        generate (`dict[str, Callable]`): a generator per role, e.g. [`TransformersGenerator`].
        outcome (`Callable`): a TRL reward function, positive where an answer is right; asynchronous or not.
        topology ([`ThinkSolve`], *optional*): the prompts' templates.
        batch_size (`int`, defaults to 64): problems at once.

    Returns:
        [`TeamEvaluation`]
    """
    topology = ThinkSolve() if topology is None else topology
    joint, solo, no_answer, leaked, reader = [], [], [], 0, reader_of(outcome)
    for start in tqdm(range(0, len(dataset), batch_size), desc="Evaluating", leave=False):
        rows = dataset[start : start + batch_size]
        prompts = rows.pop("prompt")
        episodes = run_episodes(topology, prompts, generate, solo_rows=range(len(prompts)), reader=reader)
        leaked += sum(episodes.leaked)
        columns = {name: values * 2 for name, values in rows.items()}
        texts = episodes.answers + episodes.solos
        if not isinstance(prompts[0], str):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        outcomes = call_outcome(outcome, len(texts), prompts=prompts * 2, completions=texts, **columns)
        no_answer += unanswered(outcome, episodes.answers) or []
        joint += outcomes[: len(prompts)]
        solo += outcomes[len(prompts) :]

    def right(values: list[float]) -> Proportion:
        scored = [value for value in values if not math.isnan(value)]
        return Proportion(sum(value > 0 for value in scored), len(scored))

    return TeamEvaluation(
        joint=right(joint),
        solo=right(solo),
        leak=Proportion(leaked, len(dataset)),
        unscorable=sum(map(math.isnan, joint)),
        no_answer=Proportion(sum(no_answer), len(joint)) if hasattr(outcome, "extract") else None,
    )
