"""Shared credit: every role gets the team's outcome."""

import torch

from .groups import as_outcomes, team_outcome


def shared_credit(joint: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Shared credit: every role is rewarded with the team's outcome R. All papers compare their scheme with this one.

        r_thinker = mean_k R_k        r_solver = R

    Args:
        joint (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`):
            Outcome of each answer, written with a thought: +1 right, -1 wrong, NaN where it cannot be scored. Each of
            the G thoughts may have K answers.

    Returns:
        `dict[str, torch.Tensor]`: the rewards. `"thinker"` has the shape `(P, G)`, `"solver"` the shape of `joint`. A
        thought gets NaN if none of its answers can be scored.

    Raises:
        `TypeError`: if `joint` is not of floating point. `ValueError`: if it has another shape.
    """
    return {"thinker": team_outcome(as_outcomes(joint)), "solver": joint}
