"""C3: compare a text with its siblings, which continue the same transcript."""

from collections.abc import Sequence

import torch

from .tree import sibling_baseline, text_values


def contextual_credit(outcome: torch.Tensor, *, branches: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """
    C3, contextual counterfactual credit, for a chain ([arXiv 2603.06859](https://huggingface.co/papers/2603.06859)).

        A = v - mean of the siblings' v, the text itself left out

    v is the mean outcome of the leaves below the text ([`~ccpo.credit.text_values`]). The siblings are the texts that
    continue the same text. For the first role they are all G texts of the prompt. The results are advantages, not
    rewards: no group mean is subtracted afterwards, and nothing is divided by a std. For two roles, with
    v_i = mean_k R_ik:

        A_i = v_i - mean_{j≠i} v_j  (first)          A_ik = R_ik - mean_{l≠k} R_il  (last)

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R, the outcome of each text of the last role: +1 right, -1 wrong, NaN unscorable.
        branches (`Sequence[int]` of length n):
            (1, b_2, …, b_n). With one role, or if all are 1, this is leave-one-out GRPO for the first role.

    Returns:
        `tuple[torch.Tensor, ...]`: the advantages of each role j, of shape `(P, N_j)`, never NaN. 0 for a text that is
        unscorable, that has no siblings, or whose siblings are all unscorable.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: a wrong shape, or branches that do not fit it.
    """
    values = text_values(outcome, branches=branches)
    siblings = (values[0].shape[1], *tuple(branches)[1:])  # those of the first role are the prompt's G texts
    return tuple((v - sibling_baseline(v, s)).nan_to_num(nan=0.0) for v, s in zip(values, siblings, strict=True))
