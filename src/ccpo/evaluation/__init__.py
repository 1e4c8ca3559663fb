"""How good a team is: its accuracy, with intervals."""

from .accuracy import Proportion, TeamEvaluation, evaluate_team, paired_difference

__all__ = ["Proportion", "TeamEvaluation", "evaluate_team", "paired_difference"]
