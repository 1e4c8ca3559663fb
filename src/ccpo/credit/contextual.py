"""C3: compare a text with its siblings, the other texts that continue the same texts."""

from collections.abc import Sequence

import torch

from .tree import sibling_baseline, text_values


def contextual_credit(outcome: torch.Tensor, *, branches: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """
    C3, contextual counterfactual credit: each text's value minus the mean value of its siblings.

        A = v - mean of the siblings' v, itself left out

    The paper is [arXiv 2603.06859](https://huggingface.co/papers/2603.06859). It is for chains, in which each role
    continues the texts of the one before. v, a text's value, is the mean outcome of the leaves below it
    ([`~ccpo.credit.text_values`]). Its siblings are the other texts that continue the same text; those of the first
    role are all G texts of the prompt. The results are advantages, not rewards: no group mean is subtracted from them
    and nothing divides them. For two roles, with v_i = mean_k R_ik:

        A_i = v_i - mean_{j≠i} v_j  (first)          A_ik = R_ik - mean_{l≠k} R_il  (last)

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R, the outcome of each text of the last role: +1 right, -1 wrong, NaN where it cannot be scored.
        branches (`Sequence[int]` of length n):
            (1, b_2, …, b_n): how many texts of each role continue one text of the role before it. With one role, or if
            all are 1, this is leave-one-out GRPO for the first role.

    Returns:
        `tuple[torch.Tensor, ...]`: for each role j its advantages, shape `(P, N_j)`, never NaN. A text gets 0 if it
        cannot be scored, or if it has no sibling that can.

    Raises:
        `TypeError`: if `outcome` is not of floating point. `ValueError`: if it has another shape, or if the branches
        do not fit it.
    """
    values = text_values(outcome, branches=branches)
    siblings = (values[0].shape[1], *tuple(branches)[1:])  # those of the first role are the prompt's G texts
    return tuple((v - sibling_baseline(v, s)).nan_to_num(nan=0.0) for v, s in zip(values, siblings, strict=True))
