"""
A chain of three roles on the arithmetic task: prompts and demonstrations.

The planner says which pair to add (`7+12`). The adder adds this pair (`7+12=19`). The solver multiplies the sum
(`19*4=\\boxed{76}`), like Think-Solve's Solver. Some plans name the wrong pair, say nothing useful or leak an answer.
An adder that ignores the plan, or has none, often adds the wrong pair.
"""

import random
import re

from ccpo.team.topology import Role

from .family import Family, Part, pick
from .policies import REMARKS
from .think_solve import SOLO_PROMPT, stated_sum, write_answer, write_leak

PLANNER_PROMPT = "{problem} Plan: "
ADDER_PROMPT = "{problem} Plan: {planner} Sum: "
ADDER_PROMPT_WITHOUT_PLAN = "{problem} Sum: "
CHAIN_SOLVER_PROMPT = "{problem} Sum: {adder} Answer: "
WORDS = (" Plan: ", " Sum: ")

# The shares of the kinds of demonstrations: what a planner writes; what an adder does with a plan that names a pair,
# and what it writes without one; what a solver does with a sum, and how it guesses without one.
PLAN_SHARES = {"right": 0.55, "wrong_pair": 0.2, "remark": 0.15, "leak": 0.1}
SUM_SHARES = {"follow": 0.85, "own": 0.15}
OWN_SUM_SHARES = {"right": 0.3, "wrong_pair": 0.4, "remark": 0.3}
ANSWER_SHARES = {"work": 0.65, "copy": 0.15, "guess": 0.2}
GUESS_SHARES = {"right": 0.25, "wrong_pair": 0.35, "only_sum": 0.2, "only_product": 0.2}


def write_plan(rng: random.Random, a: int, b: int, c: int) -> str:
    """Write a plan for (a + b) * c: the right or a wrong pair to add, a remark, or a leak of an answer."""
    kind = pick(rng, PLAN_SHARES)
    if kind == "remark":
        return rng.choice(REMARKS)
    if kind == "leak":
        return write_leak(rng, a, b, c)
    return f"{a}+{b if kind == 'right' else c}"


def write_sum(rng: random.Random, a: int, b: int, c: int, plan: str | None) -> str:
    """Write the sum that the plan names, a sum of the writer's own choice, or a remark. `plan` may be `None`."""
    pair = re.fullmatch(r"(\d+)\+(\d+)", plan or "")
    if pair and pick(rng, SUM_SHARES) == "follow":
        first, second = map(int, pair.groups())
    else:
        kind = pick(rng, OWN_SUM_SHARES)
        if kind == "remark":
            return rng.choice(REMARKS)
        first, second = a, b if kind == "right" else c
    return f"{first}+{second}={first + second}"


def write_product(rng: random.Random, a: int, b: int, c: int, text: str | None) -> str:
    """Write an answer, from the sum in `text` if there is one. `text` may be `None`."""
    return write_answer(rng, a, b, c, stated_sum(text), GUESS_SHARES, ANSWER_SHARES)


FAMILY = Family(
    kind="chain",
    arguments={
        "roles": (
            Role("planner", prompt=PLANNER_PROMPT),
            Role(
                "adder",
                reads=("planner",),
                prompt=ADDER_PROMPT,
                prompt_without={"planner": ADDER_PROMPT_WITHOUT_PLAN},
            ),
            Role("solver", reads=("adder",), prompt=CHAIN_SOLVER_PROMPT, prompt_without={"adder": SOLO_PROMPT}),
        )
    },
    parts={
        "planner": Part(write_plan, steps=40),
        "adder": Part(write_sum, steps=80),
        "solver": Part(write_product, steps=120),
    },
    words=WORDS,
    common_steps=1300,
    without_share=0.3,
)
