"""
The credit allocators as TRL reward functions.

The same object serves two masters. [`MultiAgentGRPOTrainer`] reads its `outcome` and calls
[`~CreditAllocator.allocate`] with tensors of the global batch. TRL's own `GRPOTrainer` calls it as a reward function
of a single Thinker, whose Solver is then reached through `partner`.
"""

from .base import CreditAllocator
from .counterfactual import CounterfactualCredit
from .metrics import credit_metrics, rating_metrics, shares_metrics
from .self_evaluated import SelfEvaluatedCredit
from .shared import SharedCredit

__all__ = [
    "CounterfactualCredit",
    "CreditAllocator",
    "SelfEvaluatedCredit",
    "SharedCredit",
    "credit_metrics",
    "rating_metrics",
    "shares_metrics",
]
