"""
The credit schemes as pure functions: from outcomes, which are tensors, to a reward or an advantage for each text.

Words and symbols that are used in all of them: a *prompt* is a problem, of which a batch has P. The first role writes
G texts about each, its *group*. A text may be continued by several texts of the next role, which form a tree; the
texts of the last role are its *leaves*. An *outcome* is +1 where an answer is right and -1 where it is wrong. It is
NaN where it cannot be scored, e.g. because the reference answer cannot be read.
"""

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
