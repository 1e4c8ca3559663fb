"""
Teams that vote on the arithmetic task. Each voter answers alone, like Think-Solve's Solver without a thought.

A single model alone has the demonstrations of a voter.
"""

from .family import Family, Part
from .think_solve import SOLO_PROMPT, write_answer

FAMILY = Family(
    kind="vote",
    arguments={"prompt": SOLO_PROMPT},
    parts={"voter": Part(write_answer, steps=60)},
    common_steps=450,
)
SOLO_FAMILY = Family(
    kind="solo",
    arguments={"prompt": SOLO_PROMPT},
    parts={"solver": Part(write_answer, steps=60)},
    common_steps=450,
)
