"""
Voting on the embedded task: every voter answers alone, as Think-Solve's Solver does without a thought. And one policy
alone, which is demonstrated what a voter is.
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
