"""C3 as a reward function."""

from ..credit import contextual_credit
from .base import CreditAllocator


class ContextualCredit(CreditAllocator):
    """
    C3 as a reward function: a text is compared with others that continue the same transcript. See
    [`~ccpo.credit.contextual_credit`].

    It gives advantages, which go to the loss as they are.

    Args:
        outcome, partner, partners, topology: as for [`CreditAllocator`].
    """

    __name__ = "contextual_credit"
    teams = "chain"
    gives_advantages = True

    def allocate(self, outcomes):
        credit = contextual_credit(outcomes.team, branches=outcomes.branches)
        return dict(zip(outcomes.topology.role_names, credit, strict=True))
