"""
The embedded default: two-step arithmetic and tiny warm-started policies, with nothing to download.

A problem is `(a+b)*c`. Its two steps depend on each other, and every team shares the work in its own way, see
[`topology`]. The policies learn their facts by supervised training on demonstrations that are honest but imperfect: a
warm-started team is right some of the time and knows more than it shows, which is what reinforcement learning needs.
"""

from .family import Family, Part
from .policies import REMARKS, build_policy, build_tokenizer
from .problems import FACTORS, TERMS, build_dataset
from .teams import FAMILIES, demonstrations, family_of, topology
from .think_solve import (
    ANSWER_SHARES,
    GUESS_SHARES,
    ROLES,
    SOLO_PROMPT,
    SOLO_SHARE,
    SOLVER_PROMPT,
    THINKER_PROMPT,
    THOUGHT_SHARES,
)
from .warm import warm_start, warm_start_team

__all__ = [
    "ANSWER_SHARES",
    "FACTORS",
    "FAMILIES",
    "Family",
    "GUESS_SHARES",
    "Part",
    "REMARKS",
    "ROLES",
    "SOLO_PROMPT",
    "SOLO_SHARE",
    "SOLVER_PROMPT",
    "TERMS",
    "THINKER_PROMPT",
    "THOUGHT_SHARES",
    "build_dataset",
    "build_policy",
    "build_tokenizer",
    "demonstrations",
    "family_of",
    "topology",
    "warm_start",
    "warm_start_team",
]
