"""Decide whether an answer is right, and whether two answers are equal."""

from .clusters import cluster_answers, plurality
from .math_verifier import MathVerifier

__all__ = ["MathVerifier", "cluster_answers", "plurality"]
