"""CCPO as a reward function."""

from ..credit import counterfactual_credit, shared_credit
from ..credit.groups import check_coefficient
from .base import CreditAllocator


class CounterfactualCredit(CreditAllocator):
    """
    CCPO as a reward function: see [`~ccpo.credit.counterfactual_credit`].

    Args:
        outcome, partner, topology: as for [`CreditAllocator`].
        coef (`float`, defaults to 0.2): λ.
        bonus (`str`, defaults to `"event"`): `"event"` or `"difference"`.
        baseline (`str`, defaults to `"group"`): `"group"` or `"paired"`.
    """

    __name__ = "counterfactual_credit"

    def __init__(self, outcome=None, *, coef=0.2, bonus="event", baseline="group", partner=None, topology=None):
        super().__init__(outcome, partner=partner, topology=topology)
        check_coefficient("coef", coef)
        if bonus not in ("event", "difference"):
            raise ValueError(f"`bonus` must be 'event' or 'difference', got {bonus!r}.")
        if baseline not in ("group", "paired"):
            raise ValueError(f"`baseline` must be 'group' or 'paired', got {baseline!r}.")
        self.coef, self.bonus, self.baseline = coef, bonus, baseline

    def needs_solo(self, roles):
        return "thinker" in roles and self.coef > 0

    def allocate(self, joint, solo=None, thinker_share=None, solver_share=None):
        if solo is None:  # nobody's credit asked for them: the Solver's is the outcome
            return shared_credit(joint)
        return counterfactual_credit(joint, solo, coef=self.coef, bonus=self.bonus, baseline=self.baseline)
