"""
A chain of three on the embedded task: prompts and demonstrations.

The planner says which pair to add (`7+12`), the adder adds what the plan says (`7+12=19`), the solver multiplies that
(`19*4=\\boxed{76}`), as Think-Solve's Solver does with a thought. Some plans name the wrong pair, say nothing useful
or leak an answer; an adder that goes its own way, or has no plan to go by, often takes the wrong pair.
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

# Shares of the demonstrations: what a planner writes; what an adder does with a plan that names a pair, and what it
# writes by itself; what a solver does with a sum, and how it guesses without one.
PLAN_SHARES = {"right": 0.55, "wrong_pair": 0.2, "remark": 0.15, "leak": 0.1}
SUM_SHARES = {"follow": 0.85, "own": 0.15}
OWN_SUM_SHARES = {"right": 0.3, "wrong_pair": 0.4, "remark": 0.3}
ANSWER_SHARES = {"work": 0.65, "copy": 0.15, "guess": 0.2}
GUESS_SHARES = {"right": 0.25, "wrong_pair": 0.35, "only_sum": 0.2, "only_product": 0.2}


def write_plan(rng: random.Random, a: int, b: int, c: int) -> str:
    """A plan for (a + b) * c: the right pair to add or a wrong one; or a remark, or a leak of an answer."""
    kind = pick(rng, PLAN_SHARES)
    if kind == "remark":
        return rng.choice(REMARKS)
    if kind == "leak":
        return write_leak(rng, a, b, c)
    return f"{a}+{b if kind == 'right' else c}"


def write_sum(rng: random.Random, a: int, b: int, c: int, plan: str | None) -> str:
    """The sum that the plan names, or one of its writer's own choice, or a remark; `plan` is `None` without one."""
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
    """An answer, from the sum that `text` states if it states one; `None` is no text."""
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
