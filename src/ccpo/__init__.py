"""Credit for cooperating language models: CCPO, SEPO and shared credit on TRL's GRPOTrainer."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "MultiAgentGRPOConfig": "training.config",
    "OpenAIGenerator": "generation",
    "TransformersGenerator": "generation",
    "CounterfactualCredit": "rewards",
    "CreditAllocator": "rewards",
    "SelfEvaluatedCredit": "rewards",
    "SharedCredit": "rewards",
    "Role": "team.topology",
    "Solo": "team.topology",
    "ThinkSolve": "team.topology",
    "Topology": "team.topology",
    "MultiAgentGRPOTrainer": "training.trainer",
    "MathVerifier": "verifier",
}
__all__ = [
    "CounterfactualCredit",
    "CreditAllocator",
    "MathVerifier",
    "MultiAgentGRPOConfig",
    "MultiAgentGRPOTrainer",
    "OpenAIGenerator",
    "Role",
    "SelfEvaluatedCredit",
    "SharedCredit",
    "Solo",
    "ThinkSolve",
    "Topology",
    "TransformersGenerator",
]

if TYPE_CHECKING:
    from .generation import OpenAIGenerator, TransformersGenerator
    from .rewards import CounterfactualCredit, CreditAllocator, SelfEvaluatedCredit, SharedCredit
    from .team.topology import Role, Solo, ThinkSolve, Topology
    from .training.config import MultiAgentGRPOConfig
    from .training.trainer import MultiAgentGRPOTrainer
    from .verifier import MathVerifier


def __getattr__(name: str):
    """Import a public name when it is first used, so that `ccpo.credit` alone costs no TRL import."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
