"""CCPO as a reward function."""

import math

from ..credit import chain_counterfactual_credit, removal_baseline
from ..credit.groups import check_coefficient
from .base import CreditAllocator
from .evidence import Evidence, TeamOutcomes
from .history import read_history


class CounterfactualCredit(CreditAllocator):
    """
    CCPO as a reward function: see [`~ccpo.credit.counterfactual_credit`] and, for any chain,
    [`~ccpo.credit.chain_counterfactual_credit`].

    Args:
        outcome, partner, partners, topology: as for [`CreditAllocator`].
        coef (`float`, defaults to 0.2): λ.
        bonus (`str`, defaults to `"event"`): `"event"` or `"difference"`.
        baseline (`str`, defaults to `"group"`): `"group"` or `"paired"`.
        history ([`~ccpo.credit.HistoryNormalizer`] or `bool`, defaults to `False`):
            Rewards of the paper's first version instead, normalised by running statistics of earlier batches: for
            teams of two. `coef` and `bonus` have no part in them.
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
            return Evidence(topology.role_names[:1])  # the last role's reward has a part of them, too
        return Evidence(tuple(name for name in topology.role_names[:-1] if name in roles and self.coef > 0))

    def find_placebos(self, topology, branches, args):
        """
        A baseline that is constant in a group has been subtracted with the group's mean already. What is left of a
        bonus is a factor: with two-valued outcomes for `"event"`, and always for `"difference"`.
        """
        if args.advantage_estimator not in ("group", "reinforce++-baseline") or self.baseline != "group":
            return {}
        names, found = topology.role_names, {}
        if self.history is not None:
            one_leaf = math.prod(branches[1:]) == 1
            return dict.fromkeys(names, "one that depends on the prompt and the history") if one_leaf else {}
        for k, name in enumerate(names[:-1]):
            one_leaf = math.prod(branches[k + 1 :]) == 1  # below a text
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
        if self.history is not None and not outcomes.without:  # left out of this step, as uninformative
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
        """b of each of a role's texts, `(P, N_k)`; `None` where the team was not seen without it."""
        if role not in outcomes.without:
            return None
        return removal_baseline(outcomes.without[role], outcomes.values[role].shape[1], self.baseline)

    def state_dict(self):
        return {} if self.history is None else {"history": self.history.state_dict()}

    def load_state_dict(self, state):
        if self.history is not None:
            self.history.load_state_dict(state["history"])
