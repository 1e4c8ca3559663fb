"""Shared credit as a reward function."""

from ..credit import shared_credit
from .base import CreditAllocator


class SharedCredit(CreditAllocator):
    """Shared credit as a reward function: see [`~ccpo.credit.shared_credit`]. Takes outcomes of any real value."""

    __name__ = "shared_credit"
    strict_outcomes = False

    def allocate(self, joint, solo=None, thinker_share=None, solver_share=None):
        return shared_credit(joint)
