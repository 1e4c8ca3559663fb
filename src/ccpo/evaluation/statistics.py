"""Estimates over problems: avg@k, pass@k, intervals, paired differences, and which of them stand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

RESAMPLES = 9_999
_AT_ONCE = 2**20  # numbers drawn at once


def avg_at_k(right: torch.Tensor) -> torch.Tensor:
    """
    The share of a problem's samples that are right.

    Args:
        right (`torch.Tensor` of shape `(P, k)`): 1 right, 0 wrong, between them in part; NaN unscorable.

    Returns:
        `torch.Tensor` of shape `(P,)`: NaN where no sample is scorable.
    """
    return right.nanmean(dim=1)


def pass_at_k(right: torch.Tensor, k: int) -> torch.Tensor:
    """
    The chance that one of k samples of a problem is right, estimated without bias from n >= k of them.

        pass@k = 1 - C(n - c, k) / C(n, k)        c right among n scorable

    Chen et al., 2021 ([arXiv 2107.03374](https://huggingface.co/papers/2107.03374), equation 1). A sample that is
    right in part counts where it is wholly right.

    Args:
        right (`torch.Tensor` of shape `(P, n)`): 1 right, less is wrong; NaN unscorable.
        k (`int`): at least 1.

    Returns:
        `torch.Tensor` of shape `(P,)`: NaN where fewer than k samples are scorable.

    Raises:
        `ValueError`: k is not in 1 … n.
    """
    if not 1 <= k <= right.shape[1]:
        raise ValueError(f"`k` must be from 1 to the number of samples, {right.shape[1]}, got {k}.")
    scorable, correct = (~right.isnan()).sum(dim=1).tolist(), (right == 1).sum(dim=1).tolist()
    chances = [
        1 - math.comb(n - c, k) / math.comb(n, k) if n >= k else math.nan
        for n, c in zip(scorable, correct, strict=True)
    ]
    return torch.tensor(chances, dtype=right.dtype)


@dataclass(frozen=True)
class Estimate:
    """
    A mean over problems with its 95 % bootstrap interval.

    Args:
        value (`float`): the mean; NaN of no problems.
        interval (`tuple[float, float]`): the 2.5 and the 97.5 % quantile of the resampled means.
        problems (`int`): how many problems it rests on.
    """

    value: float
    interval: tuple[float, float]
    problems: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Difference(Estimate):
    """
    How much higher one arm is than another on the same problems.

    Args:
        value, interval, problems: as for [`Estimate`].
        p (`float`): of the two-sided sign-flip test of no difference.
        stands (`bool`): whether it is still significant at 5 % among all differences, by Holm's correction.
    """

    p: float = math.nan
    stands: bool = False


def estimate(values: torch.Tensor, *, seed: int = 0) -> Estimate:
    """
    The mean over problems, with a bootstrap over problems, always the same resamples.

    Args:
        values (`torch.Tensor` of shape `(P,)`): one for each problem; NaN is left out.
        seed (`int`, defaults to 0): of the resamples.
    """
    values = values[~values.isnan()].double().numpy()
    if len(values) < 2:  # one resamples to itself
        value = float(values[0]) if len(values) else math.nan
        return Estimate(value, (value, value), len(values))
    low, high = np.quantile(_resamples(len(values), seed) @ values / len(values), (0.025, 0.975))
    return Estimate(float(values.mean()), (float(low), float(high)), len(values))


@lru_cache(maxsize=2)
def _resamples(size: int, seed: int) -> np.ndarray:
    """How often each of `size` problems is in each resample, `(RESAMPLES, size)`."""
    rng, counts = np.random.default_rng(seed), np.empty((RESAMPLES, size), dtype=np.float32)
    rows = max(1, _AT_ONCE // max(size, 1))
    for start in range(0, RESAMPLES, rows):
        part = counts[start : start + rows]
        drawn = rng.integers(size, size=part.shape) + size * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return counts


def sign_flip_p(differences: torch.Tensor, *, seed: int = 0) -> float:
    """
    Two-sided p-value of no difference between two arms that answered the same problems.

    Without a difference each problem's is as likely with the other sign. p is the share of the flips whose mean is at
    least as far from 0, on either side, as the one observed; 1 where no problem differs. Of up to 13 problems that
    differ, n, it is over all flips, and exact: p is at least 2 / 2^n, the observed one and its mirror image. Of more,
    it is over 9,999 flips at random and the observed one: at least 1 / 10,000.

    Args:
        differences (`torch.Tensor` of shape `(P,)`): one for each problem; NaN is left out.
        seed (`int`, defaults to 0): of the flips.
    """
    values = differences[~differences.isnan()].double().numpy()
    values = values[values != 0]  # whose sign says nothing
    least = abs(values.sum()) * (1 - 1e-9)  # as far, but for rounding
    if 2 ** len(values) <= RESAMPLES:
        bits = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ values) >= least))
    rng = np.random.default_rng(seed)
    rows, reached = max(1, _AT_ONCE // len(values)), 0
    for start in range(0, RESAMPLES, rows):
        signs = 2 * rng.integers(2, size=(min(rows, RESAMPLES - start), len(values))) - 1
        reached += np.sum(np.abs(signs @ values) >= least)
    return float((reached + 1) / (RESAMPLES + 1))  # the observed is one of them


def holm(p_values: Mapping[str, float], level: float = 0.05) -> dict[str, bool]:
    """
    Which of several hypotheses are rejected at a level for all together (Holm, 1979).

    The smallest p is held against level / m, the next against level / (m - 1), and so on, until one is not below.

    Args:
        p_values (`Mapping[str, float]`): by name; NaN is never rejected, and does not count.
        level (`float`, defaults to 0.05): chance of any false rejection.
    """
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    rejected = dict.fromkeys(p_values, False)
    for i, (p, name) in enumerate(known):
        if p > level / (len(known) - i):
            break
        rejected[name] = True
    return rejected


def compare(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, seed: int = 0) -> dict[str, Difference]:
    """
    Paired differences between arms, and which of them stand together.

    Args:
        pairs (`Mapping[str, tuple]`): name -> values of two arms for the same problems, each `(P,)`.
        seed (`int`, defaults to 0): of resamples and flips.

    Returns:
        `dict[str, Difference]`: the first less the second, over the problems that both could score.

    Raises:
        `ValueError`: two arms of different numbers of problems.
    """
    found = {}
    for name, (first, second) in pairs.items():
        if first.shape != second.shape:
            raise ValueError(
                f"{name!r} compares an arm of {len(first)} problems with one of {len(second)}. Both must have the "
                "same problems."
            )
        delta = first - second
        mean = estimate(delta, seed=seed)
        p = sign_flip_p(delta, seed=seed) if mean.problems else math.nan
        found[name] = Difference(mean.value, mean.interval, mean.problems, p)
    stands = holm({name: difference.p for name, difference in found.items()})
    return {name: Difference(d.value, d.interval, d.problems, d.p, stands[name]) for name, d in found.items()}
