"""
Measure how good a team is and whether its roles help.

An *arm* is a way to answer, such as the whole team or the team without one role. Arms are compared on the same
problems, with intervals.
"""

from .accuracy import Proportion, TeamEvaluation, evaluate_team, paired_difference
from .results import ArmResult, BenchmarkResult
from .suite import evaluate
from .tables import to_markdown
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
    "to_markdown",
]
