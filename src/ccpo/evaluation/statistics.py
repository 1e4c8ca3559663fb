"""Estimates over problems: avg@k, pass@k, intervals, and paired differences with their significance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

RESAMPLES = 9_999
_AT_ONCE = 2**20  # how many random numbers are drawn at once


def avg_at_k(right: torch.Tensor) -> torch.Tensor:
    """
    avg@k: the share of a problem's samples that are right.

    Args:
        right (`torch.Tensor` of shape `(P, k)`):
            How much of each sample is right, from 0 to 1. NaN if it cannot be scored.

    Returns:
        `torch.Tensor` of shape `(P,)`: the shares. NaN if no sample can be scored.
    """
    return right.nanmean(dim=1)


def pass_at_k(right: torch.Tensor, k: int) -> torch.Tensor:
    """
    pass@k: the chance that at least one of k samples of a problem is right, estimated from n samples.

        pass@k = 1 - C(n - c, k) / C(n, k)        c right among n scorable

    The estimate is unbiased. It is equation 1 of Chen et al., 2021
    ([arXiv 2107.03374](https://huggingface.co/papers/2107.03374)). A sample that is only partly right counts as wrong.

    Args:
        right (`torch.Tensor` of shape `(P, n)`):
            How much of each sample is right, from 0 to 1. NaN if it cannot be scored.
        k (`int`): From 1 to n.

    Returns:
        `torch.Tensor` of shape `(P,)`: the chances. NaN if fewer than k samples can be scored.

    Raises:
        `ValueError`: If k is not from 1 to n.
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
        value (`float`): The mean. NaN if there are no problems.
        interval (`tuple[float, float]`): The 2.5 % and the 97.5 % quantile of the resampled means.
        problems (`int`): The number of problems.
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
    The difference of two arms on the same problems.

    Args:
        value, interval, problems: As for [`Estimate`].
        p (`float`): The p-value of the two-sided sign-flip test of no difference.
        stands (`bool`): Whether it is significant at 5 % after Holm's correction over all differences.
    """

    p: float = math.nan
    stands: bool = False


def estimate(values: torch.Tensor, *, seed: int = 0) -> Estimate:
    """
    Compute a mean over problems and its bootstrap interval. Equal seeds give the same resamples.

    Args:
        values (`torch.Tensor` of shape `(P,)`): A value for each problem. NaN is left out.
        seed (`int`, defaults to 0): The seed of the resamples.
    """
    values = values[~values.isnan()].double().numpy()
    if len(values) < 2:  # every resample of one value is that value
        value = float(values[0]) if len(values) else math.nan
        return Estimate(value, (value, value), len(values))
    low, high = np.quantile(_resamples(len(values), seed) @ values / len(values), (0.025, 0.975))
    return Estimate(float(values.mean()), (float(low), float(high)), len(values))


@lru_cache(maxsize=2)
def _resamples(size: int, seed: int) -> np.ndarray:
    """How often each of `size` problems is in each resample, of shape `(RESAMPLES, size)`."""
    rng, counts = np.random.default_rng(seed), np.empty((RESAMPLES, size), dtype=np.float32)
    rows = max(1, _AT_ONCE // max(size, 1))
    for start in range(0, RESAMPLES, rows):
        part = counts[start : start + rows]
        drawn = rng.integers(size, size=part.shape) + size * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return counts


def sign_flip_p(differences: torch.Tensor, *, seed: int = 0) -> float:
    """
    The two-sided p-value of the sign-flip test of no difference between two arms.

    If there were no difference, the difference on each problem would have either sign with equal chance. p is the
    share of sign flips whose mean is at least as far from 0 as the observed one. If n problems differ and n is at most
    13, all 2^n flips are used, and p is exact: at least 2 / 2^n. Otherwise p is taken over 9,999 random flips and the
    observed signs: at least 1 / 10,000. If no problem differs, p is 1.

    Args:
        differences (`torch.Tensor` of shape `(P,)`): The difference on each problem. NaN is left out.
        seed (`int`, defaults to 0): The seed of the random flips.

    Returns:
        `float`: p.
    """
    values = differences[~differences.isnan()].double().numpy()
    values = values[values != 0]  # 0 has no sign
    least = abs(values.sum()) * (1 - 1e-9)  # allows for rounding
    if 2 ** len(values) <= RESAMPLES:
        bits = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ values) >= least))
    rng = np.random.default_rng(seed)
    rows, reached = max(1, _AT_ONCE // len(values)), 0
    for start in range(0, RESAMPLES, rows):
        signs = 2 * rng.integers(2, size=(min(rows, RESAMPLES - start), len(values))) - 1
        reached += np.sum(np.abs(signs @ values) >= least)
    return float((reached + 1) / (RESAMPLES + 1))  # the observed signs are one of the flips


def holm(p_values: Mapping[str, float], level: float = 0.05) -> dict[str, bool]:
    """
    Holm's correction (Holm, 1979): decide which of m hypotheses are rejected.

    The smallest p is compared with level / m, the next one with level / (m - 1), and so on, until one is above its
    limit.

    Args:
        p_values (`Mapping[str, float]`): The p-value of each hypothesis. NaN is never rejected and not counted in m.
        level (`float`, defaults to 0.05): The chance of any false rejection.

    Returns:
        `dict[str, bool]`: Maps each hypothesis to whether it is rejected.
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
    Compute paired differences between arms, and which of them are significant after Holm's correction.

    Args:
        pairs (`Mapping[str, tuple]`): Maps a name to the values of two arms on the same problems, each `(P,)`.
        seed (`int`, defaults to 0): The seed of resamples and flips.

    Returns:
        `dict[str, Difference]`: The first arm minus the second, over the problems that can be scored for both.

    Raises:
        `ValueError`: If two arms have different numbers of problems.
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
