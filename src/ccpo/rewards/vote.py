"""Leave-one-out credit for voters as a reward function."""

import torch

from ..credit import vote_credit
from ..credit.groups import check_coefficient
from .base import CreditAllocator
from .history import read_history


class VoteCredit(CreditAllocator):
    """
    Credit for a team of voters: what the vote would lose without each of them. See [`~ccpo.credit.vote_credit`].

    Args:
        outcome, topology: as for [`CreditAllocator`]. `outcome` must have `extract` and `equal`, as [`MathVerifier`]
        does. coef (`float`, defaults to 0.2): λ, the weight of Δ in the mode `"team"`.
        mode (`str`, defaults to `"team"`): `"team"` rewards with R + λ·Δ, `"marginal"` with Δ.
        history ([`~ccpo.credit.HistoryNormalizer`] or `bool`, defaults to `False`):
            Normalise Δ by running statistics of earlier batches. The reward is then tanh(α·z).
    """

    __name__ = "vote_credit"
    teams = "vote"

    def __init__(self, outcome=None, *, coef=0.2, mode="team", history=False, topology=None):
        super().__init__(outcome, topology=topology)
        check_coefficient("coef", coef)
        if mode not in ("team", "marginal"):
            raise ValueError(f"`mode` must be 'team' or 'marginal', got {mode!r}.")
        self.coef, self.mode, self.history = coef, mode, read_history(history)

    def allocate(self, outcomes):
        voters = outcomes.topology.answer_roles
        own = torch.stack([outcomes.own[name] for name in voters], dim=-1)  # (P, G, n)
        if self.history is None:
            credit = vote_credit(own, outcomes.clusters, coef=self.coef, mode=self.mode)
        else:
            delta = vote_credit(own, outcomes.clusters, mode="marginal")
            credit = self.history.votes(delta, update=outcomes.training)
        return dict(zip(voters, credit.unbind(dim=-1), strict=True))

    def state_dict(self):
        return {} if self.history is None else {"history": self.history.state_dict()}

    def load_state_dict(self, state):
        if self.history is not None:
            self.history.load_state_dict(state["history"])
