"""
The default task: two-step arithmetic with tiny policies, for which nothing is downloaded.

A problem is `(a+b)*c`. The second step needs the result of the first one. Each kind of team divides the work in its
own way, see [`topology`]. The policies are warm-started: they first learn from demonstrations, of which some are
wrong. After that a team is right only sometimes, but knows enough that reinforcement learning can improve it.
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
