"""
Train several language models that solve problems as a team, with TRL's `GRPOTrainer`.

A team's answer is judged as a whole. A credit scheme turns this one judgement into a reward for each member: shared
credit, CCPO, SEPO, C3, votes, or DACR.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "MultiAgentGRPOConfig": "training.config",
    "OpenAIGenerator": "generation",
    "TransformersGenerator": "generation",
    "VLLMGenerator": "generation",
    "ContextualCredit": "rewards",
    "CounterfactualCredit": "rewards",
    "CreditAllocator": "rewards",
    "CrossImprovementCredit": "rewards",
    "SelfEvaluatedCredit": "rewards",
    "SharedCredit": "rewards",
    "VoteCredit": "rewards",
    "AnswerCritiqueRewrite": "team.topology",
    "Chain": "team.topology",
    "Role": "team.topology",
    "Solo": "team.topology",
    "ThinkSolve": "team.topology",
    "Topology": "team.topology",
    "Vote": "team.topology",
    "MultiAgentGRPOTrainer": "training.trainer",
    "MathVerifier": "verifier",
}
__all__ = [
    "AnswerCritiqueRewrite",
    "Chain",
    "ContextualCredit",
    "CounterfactualCredit",
    "CreditAllocator",
    "CrossImprovementCredit",
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
    "VLLMGenerator",
    "Vote",
    "VoteCredit",
]

if TYPE_CHECKING:
    from .generation import OpenAIGenerator, TransformersGenerator, VLLMGenerator
    from .rewards import (
        ContextualCredit,
        CounterfactualCredit,
        CreditAllocator,
        CrossImprovementCredit,
        SelfEvaluatedCredit,
        SharedCredit,
        VoteCredit,
    )
    from .team.topology import AnswerCritiqueRewrite, Chain, Role, Solo, ThinkSolve, Topology, Vote
    from .training.config import MultiAgentGRPOConfig
    from .training.trainer import MultiAgentGRPOTrainer
    from .verifier import MathVerifier


def __getattr__(name: str):
    """Import a public name when it is first used, so that `ccpo.credit` alone costs no TRL import."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
