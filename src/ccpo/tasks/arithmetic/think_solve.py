"""
The team Think-Solve on the arithmetic task: prompts and demonstrations.

The Thinker does the first step (`7+12=19`), and the Solver the second (`19*4=\\boxed{76}`). Some thoughts add the
wrong pair, say nothing useful or leak an answer. Some answers copy the number of the thought or ignore it.
"""

import random
import re
from collections.abc import Mapping

from .family import Family, Part, pick
from .policies import REMARKS

THINKER_PROMPT = "{problem} Thought: "
SOLVER_PROMPT = "{problem} Thought: {thought} Answer: "
SOLO_PROMPT = "{problem} Answer: "
ROLES = ("thinker", "solver")

# The shares of the kinds of demonstrations: what a Thinker writes, and what a Solver does with a thought that has a
# number. Without a number (a remark, a leak that was removed, no thought at all) the Solver can only guess.
THOUGHT_SHARES = {"right": 0.5, "wrong_pair": 0.22, "remark": 0.18, "leak": 0.1}
ANSWER_SHARES = {"work": 0.5, "copy": 0.2, "guess": 0.3}
GUESS_SHARES = {"right": 0.55, "only_sum": 0.25, "only_product": 0.2}
SOLO_SHARE = 0.3  # the share of the Solver's demonstrations in which it reads only the problem


def write_leak(rng: random.Random, a: int, b: int, c: int) -> str:
    """Write a text that states an answer, the right one or an unfinished one. The leak guard removes it."""
    return f"\\boxed{{{rng.choice([a + b, (a + b) * c])}}}"


def write_thought(rng: random.Random, a: int, b: int, c: int) -> str:
    """Write the first step of (a + b) * c: the right sum, the sum of a wrong pair, a remark, or a leak."""
    kind = pick(rng, THOUGHT_SHARES)
    if kind == "right":
        return f"{a}+{b}={a + b}"
    if kind == "wrong_pair":
        return f"{a}+{c}={a + c}"
    return rng.choice(REMARKS) if kind == "remark" else write_leak(rng, a, b, c)


def stated_sum(text: str | None) -> int | None:
    """The result of the first step that a text states, or `None` if it states none or there is no text."""
    match = re.search(r"\d+\+\d+=(\d+)", text or "")
    return int(match[1]) if match else None


def write_answer(
    rng: random.Random,
    a: int,
    b: int,
    c: int,
    number: int | None = None,
    guesses: Mapping[str, float] = GUESS_SHARES,
    answers: Mapping[str, float] = ANSWER_SHARES,
) -> str:
    """Write an answer. `number` is the result of the first step that the writer has read, or `None`. A guess does this
    step with the right or a wrong pair and goes on, or stops half way: at the sum, or at a product without the
    sum."""
    kind = "guess" if number is None else pick(rng, answers)
    if kind == "guess":
        kind = pick(rng, guesses)
        number = a + c if kind == "wrong_pair" else a + b
    if kind in ("work", "right", "wrong_pair"):
        return write_work(number, c)
    return f"\\boxed{{{b * c if kind == 'only_product' else number}}}"


def write_work(number: int, c: int) -> str:
    """Write the second step and its result, which is the answer."""
    return f"{number}*{c}=\\boxed{{{number * c}}}"


FAMILY = Family(
    kind="think_solve",
    arguments={"thinker_prompt": THINKER_PROMPT, "solver_prompt": SOLVER_PROMPT, "solo_prompt": SOLO_PROMPT},
    parts={
        "thinker": Part(write_thought, steps=300),
        "solver": Part(lambda rng, a, b, c, thought: write_answer(rng, a, b, c, stated_sum(thought)), steps=600),
    },
    without_share=SOLO_SHARE,
)
