"""Shared credit as a reward function."""

from .base import CreditAllocator


class SharedCredit(CreditAllocator):
    """
    Shared credit as a reward function: every text gets the team's outcome. See [`~ccpo.credit.shared_credit`].
    Outcomes may have any real value.
    """

    __name__ = "shared_credit"
    strict_outcomes = False

    def allocate(self, outcomes):
        return outcomes.values
