"""Where the tokens and the time of a step go, by arm."""

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
    What tokens and time are counted for: each role's texts, passes without a role, ratings, verdicts, updates.

    A chain is seen without each role, if only in evaluation; another team without those that a scheme asks for.
    """
    names = [f"rollout/{name}" for name in topology.role_names]
    turns = (topology.role_names, *map(topology.roles_of, topology.agents))
    asked = {name for credit in allocators for turn in turns for name in credit.evidence(topology, turn).removals}
    seen_without = [name for name in topology.role_names if topology.is_chain or name in asked]
    names += [f"rollout/without_{name}" for name in seen_without if topology.removable(name)]
    return (*map(topology.label, names), RATING, VERIFY, UPDATE)


class StepClock(TrainerCallback):
    """
    Tokens of all processes and seconds of this one per arm, logged at the end of every optimizer step as
    `<arm>_tokens` and `<arm>_seconds`.

    An arm inside another's time counts for itself only. From the last loss to the end of the step is `update`, too.

    Args:
        metrics (`dict[str, dict[str, list]]`): the trainer's metrics; those of `"train"` get the figures.
        accelerator ([`~accelerate.Accelerator`]): sums the tokens.
        arms (`tuple[str, ...]`): [`arms_of`] the team.

    Attributes:
        tokens (`dict[str, dict[str, int | torch.Tensor]]`): of this process, in the current step (`"train"`) or an
            evaluation's current batch (`"eval"`).
        seconds (`dict[str, float]`): of the current step.
    """

    def __init__(self, metrics: dict, accelerator: Accelerator, arms: tuple[str, ...]):
        self.metrics, self.accelerator, self.arms = metrics, accelerator, arms
        self.tokens: dict[str, dict[str, int | torch.Tensor]] = {"train": defaultdict(int), "eval": defaultdict(int)}
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0  # seconds that arms inside the current one took
        self._loss_done: float | None = None

    @contextmanager
    def measure(self, arm: str) -> Iterator[None]:
        """Count what happens inside for `arm`."""
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
        """Divide an arm's seconds among others in the proportion of `parts`."""
        spent, total = self.seconds.pop(arm, 0.0), sum(parts.values())
        for name, part in parts.items():
            self.seconds[name] += spent * (part / total if total else 1 / len(parts))

    def total_tokens(self, mode: str) -> dict[str, int]:
        """Tokens of each arm over all processes since the last call; a collective call."""
        own = torch.tensor([int(self.tokens[mode][arm]) for arm in self.arms], device=self.accelerator.device)
        self.tokens[mode].clear()
        return dict(zip(self.arms, self.accelerator.reduce(own, reduction="sum").tolist(), strict=True))

    def on_step_begin(self, args, state, control, **kwargs):
        self.tokens["train"].clear()  # of a step that failed
        self.seconds.clear()  # of an evaluation, too

    def on_step_end(self, args, state, control, **kwargs):
        tokens_by_arm = self.total_tokens("train")  # an accelerator has finished the optimizer's step then
        if self._loss_done is not None:
            self.seconds[UPDATE] += time.perf_counter() - self._loss_done
            self._loss_done = None
        for arm, tokens in tokens_by_arm.items():
            self.metrics["train"][f"{arm}_tokens"].append(tokens)
            self.metrics["train"][f"{arm}_seconds"].append(self.seconds[arm])
        self.seconds.clear()
