"""How good a team is, and whether its roles help: accuracy, arms, intervals."""

from .accuracy import Proportion, TeamEvaluation, evaluate_team, paired_difference
from .suite import ArmResult, BenchmarkResult, evaluate
from .team import Team, TeamAnswer

__all__ = [
    "ArmResult",
    "BenchmarkResult",
    "Proportion",
    "Team",
    "TeamAnswer",
    "TeamEvaluation",
    "evaluate",
    "evaluate_team",
    "paired_difference",
]
