"""Checks and means that all credit schemes use. A group is an axis of a tensor; NaN marks what cannot be scored."""

import math
from numbers import Real

import torch


def check_floating(name: str, value: torch.Tensor) -> None:
    """Raise a `TypeError` if the argument is not a floating-point tensor, the only kind that can hold NaN."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor (NaN marks what cannot be scored), got {kind}.")


def as_outcomes(outcome: torch.Tensor, name: str = "joint") -> torch.Tensor:
    """
    Check a tensor of outcomes, and add the axis K if it is missing.

    Args:
        outcome (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`):
            Outcomes, NaN where unscorable; `(P, G)` stands for K = 1.
        name (`str`):
            Name of the argument, for the error.

    Returns:
        `torch.Tensor` of shape `(P, G, K)`.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: another number of dimensions.
    """
    check_floating(name, outcome)
    if outcome.ndim not in (2, 3):
        raise ValueError(f"`{name}` must have shape (P, G) or (P, G, K), got {tuple(outcome.shape)}.")
    return outcome.unsqueeze(-1) if outcome.ndim == 2 else outcome  # (P, G, K)


def team_outcome(joint: torch.Tensor) -> torch.Tensor:
    """
    The outcome of each thought: the mean over those of its K answers that can be scored, NaN if none can.

    Args:
        joint (`torch.Tensor` of shape `(P, G, K)`): outcomes of the answers.

    Returns:
        `torch.Tensor` of shape `(P, G)`.
    """
    return torch.nanmean(joint, dim=-1)  # (P, G)


def check_coefficient(name: str, value: float, upper: float = math.inf) -> None:
    """Raise a `ValueError` if a coefficient is not a finite number from 0 to `upper`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and 0 <= value <= upper):
        bound = "a finite number >= 0" if upper == math.inf else f"between 0 and {upper:g}"
        raise ValueError(f"`{name}` must be {bound}, got {value!r}. Use 0 to switch this term off.")
