"""
The credit schemes as TRL reward functions.

The same object works with two trainers. [`MultiAgentGRPOTrainer`] reads its `outcome` and calls
[`~CreditAllocator.allocate`] with the outcomes of the global batch. TRL's own `GRPOTrainer` calls it as a reward
function for the first role of a chain. The other roles are then reached through `partners`.
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
