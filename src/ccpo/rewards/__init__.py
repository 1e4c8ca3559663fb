"""
The credit allocators as TRL reward functions.

The same object serves two masters. [`MultiAgentGRPOTrainer`] reads its `outcome` and calls
[`~CreditAllocator.allocate`] with the outcomes of the global batch. TRL's own `GRPOTrainer` calls it as a reward
function of a chain's first role; the other roles are then reached through `partners`.
"""

from .base import CreditAllocator
from .contextual import ContextualCredit
from .counterfactual import CounterfactualCredit
from .cross_improvement import CrossImprovementCredit
from .evidence import Evidence, TeamOutcomes
from .metrics import credit_metrics, shares_metrics
from .self_evaluated import SelfEvaluatedCredit
from .shared import SharedCredit
from .vote import VoteCredit

__all__ = [
    "ContextualCredit",
    "CounterfactualCredit",
    "CreditAllocator",
    "CrossImprovementCredit",
    "Evidence",
    "SelfEvaluatedCredit",
    "SharedCredit",
    "TeamOutcomes",
    "VoteCredit",
    "credit_metrics",
    "shares_metrics",
]
