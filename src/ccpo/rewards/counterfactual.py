"""CCPO as a reward function."""

import math

from ..credit import chain_counterfactual_credit, removal_baseline
from ..credit.groups import check_coefficient
from .base import CreditAllocator
from .evidence import Evidence, TeamOutcomes
from .history import read_history


class CounterfactualCredit(CreditAllocator):
    """
    CCPO: compares the team's outcome with the outcome of the team without a role.

    The formulas are those of [`~ccpo.credit.counterfactual_credit`] for teams of two, and of
    [`~ccpo.credit.chain_counterfactual_credit`] for any chain. The last role, whose text is the answer, gets the
    outcome alone.

    Args:
        outcome, partner, partners, topology: As for [`CreditAllocator`].
        coef (`float`, defaults to 0.2): λ, the weight of the bonus. At least 0; with 0 this is shared credit.
        bonus (`str`, defaults to `"event"`):
            What is added to the outcome of a role that is not the last. `"event"`: λ if the team is mostly right with
            the role and mostly wrong without it, and -λ in the opposite case. `"difference"`: λ times half the
            difference of the two outcomes.
        baseline (`str`, defaults to `"group"`):
            How the outcome without the role is taken. `"group"`: the mean over all passes of the prompt. `"paired"`:
            one pass for each text. A pass is one run of the team without the role.
        history ([`~ccpo.credit.HistoryNormalizer`] or `bool`, defaults to `False`):
            Use the rewards of the paper's first version, which are normalised by running statistics of earlier
            batches. `True` means the defaults of [`~ccpo.credit.HistoryNormalizer`]. Only for teams of two; `coef` and
            `bonus` are then ignored.

    Raises:
        `ValueError`: If an argument is out of range or unknown.
    """

    __name__ = "counterfactual_credit"
    teams = "chain"

    def __init__(
        self,
        outcome=None,
        *,
        coef=0.2,
        bonus="event",
        baseline="group",
        history=False,
        partner=None,
        partners=None,
        topology=None,
    ):
        super().__init__(outcome, partner=partner, partners=partners, topology=topology)
        check_coefficient("coef", coef)
        if bonus not in ("event", "difference"):
            raise ValueError(f"`bonus` must be 'event' or 'difference', got {bonus!r}.")
        if baseline not in ("group", "paired"):
            raise ValueError(f"`baseline` must be 'group' or 'paired', got {baseline!r}.")
        self.coef, self.bonus, self.baseline, self.history = coef, bonus, baseline, read_history(history)

    def refuses(self, topology):
        if self.history is not None and len(topology.roles) != 2:
            return (
                f"`history` works only in teams of two roles, but the team has {len(topology.roles)}: "
                f"{list(topology.role_names)}. Leave `history` out."
            )
        return super().refuses(topology)

    def evidence(self, topology, roles):
        if self.history is not None:
            return Evidence(topology.role_names[:1])  # the last role's reward depends on these passes, too
        return Evidence(tuple(name for name in topology.role_names[:-1] if name in roles and self.coef > 0))

    def find_placebos(self, topology, branches, args):
        """
        The roles whose bonus only scales their advantages; see [`CreditAllocator.find_placebos`].

        If the baseline is the same for all texts of a group, the estimator removes it together with the group's mean.
        The bonus `"difference"` is then a factor on the outcome. So is `"event"` if outcomes have only two values.
        """
        if args.advantage_estimator not in ("group", "reinforce++-baseline") or self.baseline != "group":
            return {}
        names, found = topology.role_names, {}
        if self.history is not None:
            one_leaf = math.prod(branches[1:]) == 1
            return dict.fromkeys(names, "one that depends on the prompt and the history") if one_leaf else {}
        for k, name in enumerate(names[:-1]):
            one_leaf = math.prod(branches[k + 1 :]) == 1  # each text leads to one answer
            in_context = args.removal == "context" and k > 0
            if self.coef > 0 and not in_context and (one_leaf or self.bonus == "difference"):
                found[name] = self._factor(args)
        return found

    def _factor(self, args) -> str:
        factor = f"{1 + self.coef / 2:g}"
        if args.scale_rewards == "group":
            return f"1: the {factor} is divided out again by the standard deviation of the group"
        if self.bonus == "event":
            factor += " where the team without it is mostly right or mostly wrong, else 1"
        if args.scale_rewards == "batch" or args.advantage_estimator == "reinforce++-baseline":
            factor += "; then divided by the standard deviation of the batch, which contains it, too"
        return factor

    def allocate(self, outcomes):
        names = outcomes.topology.role_names
        if self.history is not None and not outcomes.without:  # the passes were skipped: they carry no information
            return outcomes.values
        if self.history is not None:
            first, last = names
            solo, b = outcomes.without[first], self.removal_baseline(outcomes, first)
            credit = self.history.pair(outcomes.values[last], b, solo, update=outcomes.training)
            return dict(zip(names, credit, strict=True))
        baselines = [self.removal_baseline(outcomes, name) for name in names[:-1]]
        credit = chain_counterfactual_credit(
            outcomes.team, baselines, branches=outcomes.branches, coef=self.coef, bonus=self.bonus
        )
        return dict(zip(names, credit, strict=True))

    def removal_baseline(self, outcomes: TeamOutcomes, role: str):
        """The baseline b of each text of a role, of shape `(P, N_k)`; `None` if the team was not run without it."""
        if role not in outcomes.without:
            return None
        return removal_baseline(outcomes.without[role], outcomes.values[role].shape[1], self.baseline)

    def state_dict(self):
        return {} if self.history is None else {"history": self.history.state_dict()}

    def load_state_dict(self, state):
        if self.history is not None:
            self.history.load_state_dict(state["history"])
