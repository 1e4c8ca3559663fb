"""Count the tokens and the time of a training step, by arm: each role's texts, ratings, verdicts and updates."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from ..rewards import CreditAllocator
from ..team.topology import Topology

RATING, VERIFY, UPDATE = "rollout/rating", "rollout/verify", "rollout/update"


def arms_of(topology: Topology, allocators: Sequence[CreditAllocator] = ()) -> tuple[str, ...]:
    """
    The arms for which tokens and time are counted.

    They are the texts of each role, passes without a role, ratings, verdicts and updates. A chain has passes without
    each role, at least in evaluations. Other teams have those for which a scheme asks.
    """
    names = [f"rollout/{name}" for name in topology.role_names]
    turns = (topology.role_names, *map(topology.roles_of, topology.agents))
    asked = {name for credit in allocators for turn in turns for name in credit.evidence(topology, turn).removals}
    seen_without = [name for name in topology.role_names if topology.is_chain or name in asked]
    names += [f"rollout/without_{name}" for name in seen_without if topology.removable(name)]
    return (*map(topology.label, names), RATING, VERIFY, UPDATE)


class StepClock(TrainerCallback):
    """
    Logs the tokens and the seconds of each arm at the end of each optimizer step.

    `<arm>_tokens` are those of all processes, and `<arm>_seconds` those of this process. The time of an arm inside
    another one is not counted for the outer one. The time from the last loss to the end of the step is `update`, too.

    Args:
        metrics (`dict[str, dict[str, list]]`): The metrics of the trainer. Those of `"train"` get the numbers.
        accelerator ([`~accelerate.Accelerator`]): Sums the tokens of all processes.
        arms (`tuple[str, ...]`): The arms, from [`arms_of`].

    Attributes:
        tokens (`dict[str, dict[str, int | torch.Tensor]]`):
            The tokens of this process, in the current step (`"train"`) or the current batch of an evaluation
            (`"eval"`).
        seconds (`dict[str, float]`): The seconds of the current step.
    """

    def __init__(self, metrics: dict, accelerator: Accelerator, arms: tuple[str, ...]):
        self.metrics, self.accelerator, self.arms = metrics, accelerator, arms
        self.tokens: dict[str, dict[str, int | torch.Tensor]] = {"train": defaultdict(int), "eval": defaultdict(int)}
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0  # seconds of the arms inside the current one
        self._loss_done: float | None = None

    @contextmanager
    def measure(self, arm: str) -> Iterator[None]:
        """Count the time of this context for `arm`."""
        outer, self._inner = self._inner, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[arm] += spent - self._inner
            self._inner = outer + spent
            self._loss_done = time.perf_counter()

    def split(self, arm: str, parts: dict[str, float]) -> None:
        """Divide the seconds of an arm among others, in proportion to `parts`."""
        spent, total = self.seconds.pop(arm, 0.0), sum(parts.values())
        for name, part in parts.items():
            self.seconds[name] += spent * (part / total if total else 1 / len(parts))

    def total_tokens(self, mode: str) -> dict[str, int]:
        """The tokens of each arm since the last call, over all processes. All processes must call this together."""
        own = torch.tensor([int(self.tokens[mode][arm]) for arm in self.arms], device=self.accelerator.device)
        self.tokens[mode].clear()
        return dict(zip(self.arms, self.accelerator.reduce(own, reduction="sum").tolist(), strict=True))

    def on_step_begin(self, args, state, control, **kwargs):
        self.tokens["train"].clear()  # a step may have failed
        self.seconds.clear()  # there may have been an evaluation

    def on_step_end(self, args, state, control, **kwargs):
        tokens_by_arm = self.total_tokens("train")  # this also waits until the optimizer's step is done
        if self._loss_done is not None:
            self.seconds[UPDATE] += time.perf_counter() - self._loss_done
            self._loss_done = None
        for arm, tokens in tokens_by_arm.items():
            self.metrics["train"][f"{arm}_tokens"].append(tokens)
            self.metrics["train"][f"{arm}_seconds"].append(self.seconds[arm])
        self.seconds.clear()
