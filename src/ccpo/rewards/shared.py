"""Shared credit as a reward function."""

from .base import CreditAllocator


class SharedCredit(CreditAllocator):
    """
    Shared credit: every text is rewarded with the outcome of the team. See [`~ccpo.credit.shared_credit`].

    Outcomes may be any finite numbers. The scheme is defined for all teams.

    Args:
        outcome, partner, partners, topology: As for [`CreditAllocator`].
    """

    __name__ = "shared_credit"
    strict_outcomes = False

    def allocate(self, outcomes):
        return outcomes.values
