"""
Think-Solve on the embedded task: prompts and demonstrations.

The Thinker can do the first step (`7+12=19`), the Solver the second (`19*4=\\boxed{76}`). Some thoughts add the wrong
pair, say nothing useful or leak an answer; some answers copy the number of the thought or ignore it.
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

# Shares of the demonstrations: what a Thinker writes, and what a Solver does with a thought that holds a number. With
# no number to use (a remark, a leak that was removed, no thought at all) the Solver can only guess.
THOUGHT_SHARES = {"right": 0.5, "wrong_pair": 0.22, "remark": 0.18, "leak": 0.1}
ANSWER_SHARES = {"work": 0.5, "copy": 0.2, "guess": 0.3}
GUESS_SHARES = {"right": 0.55, "only_sum": 0.25, "only_product": 0.2}
SOLO_SHARE = 0.3  # of the Solver's demonstrations: the problem alone


def write_leak(rng: random.Random, a: int, b: int, c: int) -> str:
    """A text that states an answer, right or half way, which the leak guard takes out."""
    return f"\\boxed{{{rng.choice([a + b, (a + b) * c])}}}"


def write_thought(rng: random.Random, a: int, b: int, c: int) -> str:
    """The first step of (a + b) * c: the right sum or that of a wrong pair; or a remark, or a leak of an answer."""
    kind = pick(rng, THOUGHT_SHARES)
    if kind == "right":
        return f"{a}+{b}={a + b}"
    if kind == "wrong_pair":
        return f"{a}+{c}={a + c}"
    return rng.choice(REMARKS) if kind == "remark" else write_leak(rng, a, b, c)


def stated_sum(text: str | None) -> int | None:
    """What a text says that the first step gives; `None` where it says nothing, or where there is no text."""
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
    """An answer; `number` is what its writer has read that the first step gives. To guess is to do that step in one's
    head, with the right pair or a wrong one, and carry on, or to stop half way: at the sum, or at a product that
    forgets the sum."""
    kind = "guess" if number is None else pick(rng, answers)
    if kind == "guess":
        kind = pick(rng, guesses)
        number = a + c if kind == "wrong_pair" else a + b
    if kind in ("work", "right", "wrong_pair"):
        return write_work(number, c)
    return f"\\boxed{{{b * c if kind == 'only_product' else number}}}"


def write_work(number: int, c: int) -> str:
    """The second step, carried out: the answer."""
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
