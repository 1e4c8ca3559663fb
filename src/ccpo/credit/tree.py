"""The tree of texts in a chain: each text continues one text of the role before it."""

import math
from collections.abc import Sequence

import torch

from .groups import check_floating


def tree_sizes(leaves: int, branches: Sequence[int], name: str = "outcome") -> tuple[int, ...]:
    """
    How many texts of each role there are for one prompt.

        N_1 = G = N_n / (b_2 · … · b_n)          N_j = N_{j-1} · b_j

    Args:
        leaves (`int`): N_n, the last axis of the outcomes.
        branches (`Sequence[int]` of length n): (1, b_2, …, b_n).
        name (`str`, defaults to `"outcome"`): name of the argument that has the leaves, for the error.

    Returns:
        `tuple[int, ...]`: (N_1, …, N_n).

    Raises:
        `ValueError`: if there are no branches, if one is below 1, if the first is not 1, or if their product does not
        divide `leaves`.
    """
    branches = tuple(branches)
    if not branches or any(not isinstance(b, int) or isinstance(b, bool) or b < 1 for b in branches):
        raise ValueError(f"`branches` must be whole numbers of at least 1, one for each role, got {branches}.")
    if branches[0] != 1:
        raise ValueError(
            f"`branches` must begin with 1, because the first role has one text per rollout, got {branches}. "
            "Set the number of its texts with `num_generations`."
        )
    below = math.prod(branches)
    if leaves == 0 or leaves % below:
        raise ValueError(
            f"The last axis of `{name}` must be a multiple of {below}, the product of `branches` = "
            f"{branches}, got {leaves}. Give one outcome for each text of the last role."
        )
    return tuple(leaves // math.prod(branches[j + 1 :]) for j in range(len(branches)))


def text_values(outcome: torch.Tensor, *, branches: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """
    The value of each text: the mean outcome of the leaves below it.

        v_j = mean of R over the leaves below the text, unscorable ones left out

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R, the outcome of each text of the last role, NaN where unscorable. The leaves below a text are neighbours.
        branches (`Sequence[int]` of length n):
            (1, b_2, …, b_n): how many texts of role j continue one text of role j-1. G is N_n / (b_2 · … · b_n).

    Returns:
        `tuple[torch.Tensor, ...]`: for each role j a tensor of shape `(P, N_j)`; the last is `outcome`. NaN where no
        leaf below the text can be scored.

    Raises:
        `TypeError`: if `outcome` is not of floating point. `ValueError`: if it has another shape, or if the branches
        do not fit it.
    """
    check_floating("outcome", outcome)
    if outcome.ndim != 2:
        raise ValueError(f"`outcome` must have shape (P, N), got {tuple(outcome.shape)}.")
    sizes = tree_sizes(outcome.shape[1], branches)
    return tuple(outcome.reshape(len(outcome), size, -1).nanmean(dim=-1) for size in sizes)  # (P, N_j) each


def sibling_baseline(values: torch.Tensor, siblings: int) -> torch.Tensor:
    """
    The mean value of each text's siblings, the text itself left out.

        b_m = mean of v over the texts that continue the same text, without m and without unscorable ones

    Args:
        values (`torch.Tensor` of shape `(P, N)`):
            v, the value of each text. NaN where it cannot be scored.
        siblings (`int`):
            How many neighbouring texts continue one text, itself counted: b_j, and N_1 = G for the first role.

    Returns:
        `torch.Tensor` of shape `(P, N)`. NaN where no sibling can be scored, or there is none.

    Raises:
        `TypeError`: if `values` is not of floating point. `ValueError`: if it has another shape, or if N is not a
        multiple of `siblings`.
    """
    check_floating("values", values)
    if values.ndim != 2:
        raise ValueError(f"`values` must have shape (P, N), got {tuple(values.shape)}.")
    if siblings < 1 or values.shape[1] % siblings:
        raise ValueError(
            f"`siblings` must be at least 1 and divide the last axis of `values`, {values.shape[1]}, got {siblings}."
        )
    groups = values.reshape(len(values), values.shape[1] // siblings, 1, siblings)
    itself = torch.eye(siblings, dtype=torch.bool, device=values.device)
    others = groups.expand(-1, -1, siblings, -1).masked_fill(itself, torch.nan)  # (P, N / siblings, text, sibling)
    return others.nanmean(dim=-1).reshape(values.shape)
