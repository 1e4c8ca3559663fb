r"""
Think-Solve on word problems: prompts of examples, a line each, which a language model goes on with.

The Thinker goes on with the calculation, ` 5 + 4`, the Solver with its result, ` = 9`. Texts begin with their own
blank, as the model's tokens do, so that a prompt ends without one.
"""

from typing import Any

from ccpo.team.topology import Topology, make_topology

# Problem, calculation, result. None of these calculations is held out.
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
SINGLE_PROMPT = _prompt("{problem} {work} = {result}", "{problem}")  # one policy that writes both parts
PROMPTS = {
    "think_solve": {"thinker_prompt": THINKER_PROMPT, "solver_prompt": SOLVER_PROMPT, "solo_prompt": SOLO_PROMPT},
    "solo": {"prompt": SINGLE_PROMPT},
}

# A number that is a line by itself, or what an equation ends with. Hence the leak guard leaves `5 + 4` of the thought
# `5 + 4 = 9`, and nothing of `9`.
ANSWER_PATTERN = r"(?:^| ?=) *(-?\d+) *$"


def topology(given: Any = "think_solve") -> Topology:
    """
    A team with this task's prompts.

    Args:
        given (`Topology`, `str` or `Mapping`, defaults to `"think_solve"`):
            What [`~ccpo.team.topology.make_topology`] takes. Think-Solve and a policy alone, which writes the
            calculation, too, get the prompts of this module where they give none; any other team is taken as it is.

    Returns:
        [`~ccpo.team.topology.Topology`]

    Raises:
        `ValueError`: what [`~ccpo.team.topology.make_topology`] raises.
    """
    values = {"kind": given} if isinstance(given, str) else given
    if isinstance(values, dict) and values.get("kind") in PROMPTS:
        return make_topology({**PROMPTS[values["kind"]], **values})
    return make_topology(given)
