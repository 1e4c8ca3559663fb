"""History normalisation: measure rewards against the mean and spread of earlier batches."""

import dataclasses
import math
from numbers import Real

import torch

from .counterfactual import solo_baseline
from .groups import as_outcomes, check_coefficient, check_floating, team_outcome


@dataclasses.dataclass
class RunningStatistics:
    """
    Running mean μ and variance V over batches, and the number of outcomes behind them.

        the first batch:  μ = m, V = v          later:  μ <- d μ + (1 - d) m,   V <- d V + (1 - d) v
    """

    mean: float = 0.0
    var: float = 0.0
    count: int = 0

    def update(self, x: torch.Tensor, decay: float) -> None:
        """Take in a batch by its mean and population variance, NaN left out; an all-NaN batch changes nothing."""
        known = x[~x.isnan()]
        if known.numel() == 0:
            return
        m, v = known.mean().item(), known.var(correction=0).item()
        d = decay if self.count else 0.0
        self.mean, self.var = d * self.mean + (1 - d) * m, d * self.var + (1 - d) * v
        self.count += known.numel()

    def std(self, eps: float) -> float:
        """sqrt(V) if V > eps, else 1."""
        return math.sqrt(self.var) if self.var > eps else 1.0

    def normalize(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        """z = (x - μ) / (σ + eps)"""
        return (x - self.mean) / (self.std(eps) + eps)


class HistoryNormalizer:
    """
    Normalise rewards by running statistics of earlier batches, for teams of two and for votes.

        z = (x - μ) / (σ + eps)     μ, σ of earlier batches     σ = sqrt(V) if V > eps, else 1

    This is the first version of CCPO ([arXiv 2603.21563v1](https://huggingface.co/papers/2603.21563)). A batch is
    normalised by the statistics of the batches before it. Then it is added to them, unless `update=False`. Outcomes
    are given as everywhere, +1 right and -1 wrong. They are turned into the paper's 1 and 0 first, which halves every
    difference Delta.

    Args:
        decay (`float`, defaults to 0.99): d, the weight of the past, from 0 to 1.
        alpha (`float`, defaults to 1.0): α, the slope of the tanh.
        eta (`float`, defaults to 1.0): η, the slope of the gate g, which mixes the second role's two rewards.
        eps (`float`, defaults to 1e-6): ε, a small number that avoids a division by 0.
        min_samples (`int`, defaults to 10):
            How many outcomes of earlier batches are needed before anything is normalised. At least 1.

    Raises:
        `ValueError`: if an argument is out of range.
    """

    def __init__(
        self, decay: float = 0.99, alpha: float = 1.0, eta: float = 1.0, eps: float = 1e-6, min_samples: int = 10
    ) -> None:
        check_coefficient("decay", decay, upper=1)
        for name, value in (("alpha", alpha), ("eta", eta)):
            check_coefficient(name, value)
        if not (isinstance(eps, Real) and not isinstance(eps, bool) and math.isfinite(eps) and eps > 0):
            raise ValueError(f"`eps` must be a finite number above 0, got {eps!r}.")
        if not isinstance(min_samples, int) or isinstance(min_samples, bool) or min_samples < 1:
            raise ValueError(
                "`min_samples` must be an integer of at least 1, because the first batch has no history, got "
                f"{min_samples!r}."
            )
        self.decay, self.alpha, self.eta, self.eps, self.min_samples = decay, alpha, eta, eps, min_samples
        self.statistics = {name: RunningStatistics() for name in ("delta", "joint", "solo", "vote_delta")}

    def __repr__(self) -> str:
        names = ("decay", "alpha", "eta", "eps", "min_samples")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def _ready(self, *names: str) -> bool:
        return all(self.statistics[name].count >= self.min_samples for name in names)

    def pair(
        self, joint: torch.Tensor, b: torch.Tensor, solo: torch.Tensor, *, update: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Rewards for a team of two. Give the batch of all processes, because the statistics are taken over it.

            r_1 = tanh(α z_Delta)                         Delta = R_joint - b
            r_2 = g z_joint + (1 - g) z_solo              g = sigmoid(clip(η μ_Delta / (σ_Delta + ε), -20, 20))

        R_joint of a text of the first role is the mean over the texts that continue it. z_solo is of the text's b:
        with one b for a prompt it is constant in a group and vanishes under the group estimator. Until the history
        has `min_samples`: r_1 = Delta, r_2 = R_joint, of outcomes 1 and 0.

        Args:
            joint (`torch.Tensor` of shape `(P, N_2)` or `(P, N_1, K)`):
                Outcomes of the second role's texts, +1, -1 or NaN; K = N_2 / N_1 of them continue a text of the first.
            b (`torch.Tensor` of shape `(P, N_1)`):
                The team without the first role, [`~ccpo.credit.removal_baseline`] of outcomes +1 and -1.
            solo (`torch.Tensor` of shape `(P, …)`):
                The outcomes that b rests on, one by one: R_solo, of which the statistics are. Both roles need them.
            update (`bool`, defaults to `True`):
                Whether this batch enters the statistics, after its rewards. `False` in evaluation. Call once with
                `True` for each generation batch.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: r_1 of shape `(P, N_1)` and r_2 of the shape of `joint`. NaN where an
            outcome or the b that is needed is unscorable.

        Raises:
            `TypeError`: not floating-point tensors. `ValueError`: shapes that do not fit.
        """
        for name, x in (("joint", joint), ("b", b), ("solo", solo)):
            check_floating(name, x)
        fits = b.ndim == 2 and joint.ndim in (2, 3) and joint.shape[0] == b.shape[0] and b.shape[1] > 0
        if not fits or (joint.shape[1] % b.shape[1] if joint.ndim == 2 else joint.shape[1] != b.shape[1]):
            raise ValueError(
                "`joint` must have shape (P, N_2) or (P, N_1, K) and `b` (P, N_1), where N_1 divides N_2, got "
                f"{tuple(joint.shape)} and {tuple(b.shape)}."
            )
        outcome, b, alone = ((x.double() + 1) / 2 for x in (joint, b, solo))  # in {0, 1}
        outcome = outcome.reshape(*b.shape, joint.shape[2] if joint.ndim == 3 else joint.shape[1] // b.shape[1])
        delta, stats = team_outcome(outcome) - b, self.statistics
        first, second = delta, outcome
        if self._ready("delta", "joint", "solo"):
            z_delta, z_joint, z_solo = (
                stats[name].normalize(x, self.eps) for name, x in (("delta", delta), ("joint", outcome), ("solo", b))
            )
            slope = self.eta * stats["delta"].mean / (stats["delta"].std(self.eps) + self.eps)
            gate = 1 / (1 + math.exp(-max(-20.0, min(20.0, slope))))
            first, second = torch.tanh(self.alpha * z_delta), gate * z_joint + (1 - gate) * z_solo.unsqueeze(-1)
        if update:
            for name, x in (("delta", delta), ("joint", outcome), ("solo", alone)):
                stats[name].update(x, self.decay)
        return first.to(joint.dtype), second.reshape(joint.shape).to(joint.dtype)

    def think_solve(
        self, joint: torch.Tensor, solo: torch.Tensor, *, baseline: str = "group", update: bool = True
    ) -> dict[str, torch.Tensor]:
        """
        [`pair`] for a team of Thinker and Solver.

        Args:
            joint (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`): outcomes, +1, -1 or NaN; see
                [`~ccpo.credit.counterfactual_credit`].
            solo (`torch.Tensor` of shape `(P, S)`): outcomes without the Thinker.
            baseline (`str`, defaults to `"group"`): `"group"` or `"paired"`.
            update (`bool`, defaults to `True`): `False` in evaluation, which never changes the statistics.

        Returns:
            `dict[str, torch.Tensor]`: `"thinker"` of shape `(P, G)`, `"solver"` of the shape of `joint`.

        Raises:
            What [`~ccpo.credit.counterfactual_credit`] raises for the shapes and `baseline`.
        """
        shape = tuple(as_outcomes(joint).shape[:2])  # (P, G)
        check_floating("solo", solo)
        b = solo_baseline(solo.double(), shape, baseline)
        return dict(zip(("thinker", "solver"), self.pair(joint, b, solo, update=update), strict=True))

    def votes(self, delta: torch.Tensor, *, update: bool = True) -> torch.Tensor:
        """
        Rewards for voters. All voters share the same statistics.

            r_k = tanh(α z_Delta_k)          until the history has `min_samples`: r_k = Delta_k, of outcomes 1 and 0

        Args:
            delta (`torch.Tensor` of shape `(P, G, n)`):
                `vote_credit(own, clusters, mode="marginal")` of the global batch, of outcomes +1 and -1.
            update (`bool`, defaults to `True`): as for [`pair`].

        Returns:
            `torch.Tensor` of shape `(P, G, n)`, NaN where `delta` is.

        Raises:
            `TypeError`: not a floating-point tensor. `ValueError`: another shape.
        """
        check_floating("delta", delta)
        if delta.ndim != 3:
            raise ValueError(f"`delta` must have shape (P, G, n), got {tuple(delta.shape)}.")
        halved, stats = delta.double() / 2, self.statistics["vote_delta"]  # of outcomes 1 and 0
        reward = halved
        if self._ready("vote_delta"):
            reward = torch.tanh(self.alpha * stats.normalize(halved, self.eps))
        if update:
            stats.update(halved, self.decay)
        return reward.to(delta.dtype)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The statistics as plain numbers, which can be saved as JSON without loss."""
        return {name: dataclasses.asdict(stats) for name, stats in self.statistics.items()}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Load the statistics from a `state_dict`. Raises a `ValueError` if its keys are not the expected ones."""
        if set(state) != set(self.statistics):
            raise ValueError(f"`state` must have the keys {sorted(self.statistics)}, got {sorted(state)}.")
        numbers = [field.name for field in dataclasses.fields(RunningStatistics)]
        for name, values in state.items():
            if set(values) != set(numbers):
                raise ValueError(f"`state[{name!r}]` must have the numbers {numbers}, got {dict(values)!r}.")
        self.statistics = {name: RunningStatistics(**state[name]) for name in self.statistics}
