r"""
The team Think-Solve on word problems. A prompt is a list of examples, which a language model continues.

The Thinker continues with the calculation, ` 5 + 4`, and the Solver with its result, ` = 9`. A text begins with a
space, like the model's tokens, so a prompt does not end with one.
"""

from typing import Any

from ccpo.team.topology import Topology, make_topology

# Each example has a problem, a calculation and a result. None of these calculations is held out.
EXAMPLES = (
    ("Sam has 5 pens and finds 4. How many now?", "5 + 4", "9"),
    ("Ann has 9 cups and breaks 3. How many are left?", "9 - 3", "6"),
    ("Tom has 3 bags with 6 nuts each. How many nuts?", "3 * 6", "18"),
)


def _prompt(line: str, asked: str) -> str:
    lines = [line.format(problem=problem, work=work, result=result) for problem, work, result in EXAMPLES]
    return "\n".join([*lines, asked])


THINKER_PROMPT = _prompt("{problem} {work}", "{problem}")
SOLVER_PROMPT = _prompt("{problem} {work} = {result}", "{problem}{thought}")
SOLO_PROMPT = _prompt("{problem} {result}", "{problem}")
SINGLE_PROMPT = _prompt("{problem} {work} = {result}", "{problem}")  # for a single model that writes both parts
PROMPTS = {
    "think_solve": {"thinker_prompt": THINKER_PROMPT, "solver_prompt": SOLVER_PROMPT, "solo_prompt": SOLO_PROMPT},
    "solo": {"prompt": SINGLE_PROMPT},
}

# An answer is a number alone on a line, or the number at the end of an equation. So the leak guard turns the thought
# `5 + 4 = 9` into `5 + 4`, and removes `9` completely.
ANSWER_PATTERN = r"(?:^| ?=) *(-?\d+) *$"


def topology(given: Any = "think_solve") -> Topology:
    """
    Make a team with this task's prompts.

    Args:
        given (`Topology`, `str` or `Mapping`, defaults to `"think_solve"`):
            The team, in any form that [`~ccpo.team.topology.make_topology`] takes. Think-Solve, and a model alone,
            which also writes the calculation, get the prompts of this module unless they have their own. Other teams
            are returned as they are.

    Returns:
        [`~ccpo.team.topology.Topology`]

    Raises:
        `ValueError`: As [`~ccpo.team.topology.make_topology`].
    """
    values = {"kind": given} if isinstance(given, str) else given
    if isinstance(values, dict) and values.get("kind") in PROMPTS:
        return make_topology({**PROMPTS[values["kind"]], **values})
    return make_topology(given)
