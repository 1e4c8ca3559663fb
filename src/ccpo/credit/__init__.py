"""Credit schemes as pure functions of tensors: one scheme a file."""

from .contextual import contextual_credit
from .counterfactual import chain_counterfactual_credit, counterfactual_credit, removal_baseline, solo_baseline
from .cross_improvement import cross_improvement_credit
from .history import HistoryNormalizer
from .robust import robust_advantages, robust_location
from .self_evaluated import chain_self_evaluated_credit, self_evaluated_credit
from .shared import shared_credit
from .tree import sibling_baseline, text_values
from .vote import vote_credit, vote_outcome

__all__ = [
    "HistoryNormalizer",
    "chain_counterfactual_credit",
    "chain_self_evaluated_credit",
    "contextual_credit",
    "counterfactual_credit",
    "cross_improvement_credit",
    "removal_baseline",
    "robust_advantages",
    "robust_location",
    "self_evaluated_credit",
    "shared_credit",
    "sibling_baseline",
    "solo_baseline",
    "text_values",
    "vote_credit",
    "vote_outcome",
]
