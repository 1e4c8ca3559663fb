"""Shared credit: every role gets the team's outcome."""

import torch

from .groups import as_outcomes, team_outcome


def shared_credit(joint: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Every role is rewarded with the team's outcome R, the baseline of all the papers.

        r_thinker = mean_k R_k        r_solver = R

    Args:
        joint (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`):
            Outcome of each answer that read the thought: +1 right, -1 wrong, NaN unscorable.

    Returns:
        `dict[str, torch.Tensor]`: `"thinker"` of shape `(P, G)`, `"solver"` of the shape of `joint`. A thought whose
        answers are all unscorable gets NaN.

    Raises:
        `ValueError`: `joint` is of another shape.
    """
    return {"thinker": team_outcome(as_outcomes(joint)), "solver": joint}
