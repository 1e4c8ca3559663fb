"""Whether an answer is right, and whether two answers are equal."""

from .math_verifier import MathVerifier

__all__ = ["MathVerifier"]
