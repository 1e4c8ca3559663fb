"""
The team that answers, criticises and rewrites, on the arithmetic task: prompts and demonstrations.

An answer is like that of Think-Solve's Solver alone. A critique repeats the first step and says whether the answer is
right (`7+12=19 wrong`). Some critiques add the wrong pair, say nothing useful or leak an answer. A rewrite follows the
critique, keeps the answer, or guesses again.
"""

import random

from .family import Family, Part, pick
from .policies import REMARKS
from .think_solve import SOLO_PROMPT, stated_sum, write_answer, write_leak, write_work

ANSWER_PROMPT = SOLO_PROMPT
CRITIQUE_PROMPT = "{problem} Answer: {answer} Check: "
REWRITE_PROMPT = "{problem} Answer: {answer} Check: {critique} Answer: "
WORDS = (" Check: ", " right", " wrong")

# The shares of the kinds of demonstrations: how an answer is guessed; what a critic writes; what a rewrite does with a
# critique that has a sum, and with one that has none.
GUESS_SHARES = {"right": 0.45, "wrong_pair": 0.25, "only_sum": 0.15, "only_product": 0.15}
CRITIQUE_SHARES = {"right": 0.5, "wrong_pair": 0.22, "remark": 0.18, "leak": 0.1}
REWRITE_SHARES = {"follow": 0.55, "keep": 0.25, "guess": 0.2}
BLIND_SHARES = {"keep": 0.6, "guess": 0.4}


def guess_answer(rng: random.Random, a: int, b: int, c: int) -> str:
    """Write an answer, right or wrong by the shares in `GUESS_SHARES`."""
    return write_answer(rng, a, b, c, guesses=GUESS_SHARES)


def write_critique(rng: random.Random, a: int, b: int, c: int, answer: str) -> str:
    """Write a sum, of the right or a wrong pair, and whether `answer` follows from it; or a remark, or a leak."""
    kind = pick(rng, CRITIQUE_SHARES)
    if kind == "remark":
        return rng.choice(REMARKS)
    if kind == "leak":
        return write_leak(rng, a, b, c)
    other = b if kind == "right" else c
    verdict = "right" if answer == write_work(a + other, c) else "wrong"
    return f"{a}+{other}={a + other} {verdict}"


def write_rewrite(rng: random.Random, a: int, b: int, c: int, answer: str, critique: str) -> str:
    """Write the own `answer` again, the one that follows from the sum in the `critique`, or a new guess."""
    number = stated_sum(critique)
    kind = pick(rng, BLIND_SHARES if number is None else REWRITE_SHARES)
    if kind == "keep":
        return answer
    return write_work(number, c) if kind == "follow" else guess_answer(rng, a, b, c)


FAMILY = Family(
    kind="answer_critique_rewrite",
    arguments={
        "answer_prompt": ANSWER_PROMPT,
        "critique_prompt": CRITIQUE_PROMPT,
        "rewrite_prompt": REWRITE_PROMPT,
    },
    parts={
        "answer": Part(guess_answer, steps=40),
        "critique": Part(write_critique, steps=40),
        "rewrite": Part(write_rewrite, steps=40),
    },
    words=WORDS,
    common_steps=1000,
)
