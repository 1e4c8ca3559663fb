"""C3: a text against its siblings, which continue the same transcript."""

from collections.abc import Sequence

import torch

from .tree import sibling_baseline, text_values


def contextual_credit(outcome: torch.Tensor, *, branches: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """
    C3, contextual counterfactual credit ([arXiv 2603.06859](https://huggingface.co/papers/2603.06859)), of a chain.

        A = v - mean of the siblings' v, itself left out

    v is the mean outcome of the leaves below the text ([`~ccpo.credit.text_values`]). The siblings are the texts that
    continue the same text; those of the first role are all G texts of the prompt. These are advantages, not rewards:
    no group mean and no std follows. For two roles, with v_i = mean_k R_ik:

        A_i = v_i - mean_{j≠i} v_j  (first)          A_ik = R_ik - mean_{l≠k} R_il  (last)

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R, the outcome of each text of the last role: +1 right, -1 wrong, NaN unscorable.
        branches (`Sequence[int]` of length n):
            (1, b_2, …, b_n). With one role, or with all 1, this is leave-one-out GRPO for the first role.

    Returns:
        `tuple[torch.Tensor, ...]`: for each role j its advantages, shape `(P, N_j)`, never NaN. 0 for an unscorable
        text, one without siblings, and one of whose siblings none is scorable.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: another shape, or branches that do not fit it.
    """
    values = text_values(outcome, branches=branches)
    siblings = (values[0].shape[1], *tuple(branches)[1:])  # those of the first role are the prompt's G texts
    return tuple((v - sibling_baseline(v, s)).nan_to_num(nan=0.0) for v, s in zip(values, siblings, strict=True))
