"""C3 as a reward function."""

from ..credit import contextual_credit
from .base import CreditAllocator


class ContextualCredit(CreditAllocator):
    """
    C3, contextual counterfactual credit: compares each text with the other texts that continue the same text.

    The formula is that of [`~ccpo.credit.contextual_credit`]. C3 returns advantages, which go to the loss unchanged.
    It is defined for chains of several roles. Set `num_solves` to at least 2, so that the last role writes several
    texts to compare.

    Args:
        outcome, partner, partners, topology: As for [`CreditAllocator`].
    """

    __name__ = "contextual_credit"
    teams = "chain"
    gives_advantages = True

    def allocate(self, outcomes):
        credit = contextual_credit(outcomes.team, branches=outcomes.branches)
        return dict(zip(outcomes.topology.role_names, credit, strict=True))
