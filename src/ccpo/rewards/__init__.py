"""
The credit schemes as TRL reward functions.

A *credit allocator* is one object that works with two trainers. [`MultiAgentGRPOTrainer`] reads its `outcome`, the
function that judges answers, and calls [`~CreditAllocator.allocate`] with the outcomes of the batch of all processes.
TRL's own `GRPOTrainer` calls it as a reward function and trains the first role of a chain. Generators given as
`partners` then write the texts of the other roles.
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
