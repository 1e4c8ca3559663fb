"""DACR as a reward function."""

import torch

from ..credit import cross_improvement_credit
from ..credit.groups import check_coefficient
from .base import CreditAllocator


class CrossImprovementCredit(CreditAllocator):
    """
    DACR as a reward function: see [`~ccpo.credit.cross_improvement_credit`].

    Args:
        outcome, topology: as for [`CreditAllocator`].
        gamma (`float`, defaults to 0.5): γ, the weight of what an agent's critique did for its partner.
        mode (`str`, defaults to `"total"`):
            `"total"`: all texts of an agent share one reward. `"segment"`: each text has its own.
    """

    __name__ = "cross_improvement_credit"
    teams = "answer_critique_rewrite"
    branching = False  # each rewrite is held against one answer

    def __init__(self, outcome=None, *, gamma=0.5, mode="total", topology=None):
        super().__init__(outcome, topology=topology)
        check_coefficient("gamma", gamma)
        if mode not in ("total", "segment"):
            raise ValueError(f"`mode` must be 'total' or 'segment', got {mode!r}.")
        self.gamma, self.mode = gamma, mode

    def allocate(self, outcomes):
        answers, rewrites = (
            torch.stack([outcomes.own[f"{kind}_{agent}"] for agent in ("a", "b")], dim=-1)
            for kind in ("answer", "rewrite")
        )
        return cross_improvement_credit(answers, rewrites, gamma=self.gamma, mode=self.mode)
