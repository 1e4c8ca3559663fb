"""Build the question by which a role is asked for its rating."""

import re
from collections.abc import Mapping, Sequence

from ..team.prompts import fill
from .choices import SHARE_CHOICES, SHARES_END, SHARES_PREFIX
from .scale import PAIRS, check_outcome, check_roles

PAIR_PROMPT = """You were the {role} of a team of two. The {first} read the problem and wrote a plan; the {second} read
both and wrote the answer. The answer has been checked: it is {outcome}.

### Problem
{problem}

### The {first}'s plan
{thought}

### The {second}'s answer
{answer}

### Your rating
The answer is {outcome}, so the {quantity} is to be divided: the more a role did to bring it about, the more it gets.
Choose one of these nine pairs. The first number is the {first}'s share of the {quantity}, the second the {second}'s.
{pairs}
Reply with one JSON object and nothing else, your two numbers in place of {one} and {two}:
{{"outcome": "{outcome}", "pair": [{one}, {two}]}}"""
RATING_PROMPT = fill(PAIR_PROMPT, first="Thinker", second="Solver", one="T", two="S")
SHARES_PROMPT = """You were the {role} of a team of {count}, who spoke in this order: {order}.
What the {last} wrote is the team's answer. It has been checked: it is {outcome}.

### Problem
{problem}

{transcript}

### Your rating
The answer is {outcome}, so the {quantity} is to be divided: the more a role did to bring it about, the more it gets.
Give every role its share of the {quantity}, one of these nine numbers. They need not add up to 1.
{numbers}
Reply with one JSON object and nothing else, your numbers in place of the question marks:
{form}"""

FIELDS = ("role", "problem", "outcome", "transcript")  # a user's template may have these and the roles' names
PAIR_FIELDS = ("thought", "answer")  # the two texts of a team of two
_FIELD = re.compile(r"\{[A-Za-z][\w-]*\}")


def rating_question(role: str, problem: str, texts: Mapping[str, str], outcome: str) -> str:
    """
    The package's question to a role, which asks for a rating of an answer that has been judged.

    In a team of two it asks for a pair, in larger teams for a share for each role. It shows the form of the reply with
    letters or question marks in place of numbers. So it suggests no rating, and a copy of it is not a valid one.

    Args:
        role (`str`): The role that is asked.
        problem (`str`): The problem.
        texts (`Mapping[str, str]`): What each role wrote, in the order in which they spoke; at least two.
        outcome (`str`): The verdict, `"correct"` (credit is divided) or `"wrong"` (blame is divided).

    Returns:
        `str`: The question.

    Raises:
        `ValueError`: If `outcome` or a role's name is not allowed, or if `role` is not one of the roles.
    """
    check_outcome(outcome)
    names = check_roles(tuple(texts))
    if role not in names:
        raise ValueError(f"`role` must be one of {list(names)}, got {role!r}.")
    common = {"outcome": outcome, "quantity": "credit" if outcome == "correct" else "blame", "problem": problem}
    if len(names) > 2:
        form = ", ".join(f'"{name}": ?' for name in names)
        return SHARES_PROMPT.format(
            role=role,
            count=len(names),
            order=", ".join(names),
            last=names[-1],
            transcript=transcript(texts),
            numbers=", ".join(SHARE_CHOICES),
            form=SHARES_PREFIX % outcome + form + SHARES_END,
            **common,
        )
    titles = {name: name.replace("_", " ").replace("-", " ").capitalize() for name in names}
    first, second = titles.values()
    one, two = (first[0], second[0]) if first[0] != second[0] else ("X", "Y")
    return PAIR_PROMPT.format(
        role=titles[role],
        first=first,
        second=second,
        one=one,
        two=two,
        thought=texts[names[0]],
        answer=texts[names[1]],
        pairs=", ".join(f"[{t}, {s}]" for t, s in PAIRS),
        **common,
    )


def transcript(texts: Mapping[str, str]) -> str:
    """All texts in the order in which they were written, each under the name of its role."""
    return "\n\n".join(f"### {name}\n{text}" for name, text in texts.items())


def check_rating_prompt(template: str, roles: Sequence[str] | None = None) -> None:
    """
    Check a user's template for the question.

    Args:
        template (`str`): The template.
        roles (`Sequence[str]`, *optional*):
            Names of the roles. If they are not known yet, any field may be the name of a role.

    Raises:
        `ValueError`: If the template shows neither the verdict nor any text, or if it has `{thought}` or `{answer}`
            and there are more than two roles.
    """
    names = [f"{{{name}}}" for name in (*FIELDS[2:], *PAIR_FIELDS)]
    if roles is not None:
        stale = [f"{{{name}}}" for name in PAIR_FIELDS if len(roles) > 2 and name not in roles]
        names = [name for name in names if name not in stale] + [f"{{{role}}}" for role in roles]
        if used := [name for name in stale if name in str(template)]:
            raise ValueError(
                f"`rating_prompt` has {', '.join(used)}, which stand for the two texts of a team of two, but "
                f"this team has the roles {list(roles)}. Use {{transcript}}, or the names of the roles in "
                "braces."
            )
    fields = set(_FIELD.findall(str(template)))
    if not isinstance(template, str) or not (
        fields & {*names} or (roles is None and fields - {"{role}", "{problem}"})
    ):
        what = ", ".join(names) + ("" if roles is not None else ", or a role's name in braces")
        raise ValueError(f"`rating_prompt` must contain at least one of {what}, got {template!r}. Add one.")


def fill_rating_prompt(template: str, role: str, problem: str, texts: Mapping[str, str], outcome: str) -> str:
    """Fill in a user's template. In a team of two, `{thought}` and `{answer}` stand for the two texts."""
    pair = dict(zip(PAIR_FIELDS, texts.values(), strict=True)) if len(texts) == 2 else {}
    fields = {"role": role, "problem": problem, "outcome": outcome, "transcript": transcript(texts)}
    return fill(template, **{**pair, **texts, **fields})


def keep_end(text: str, name: str, limit: int) -> str:
    """Cut a text to its last `limit` characters, of which the first is then "…". A shorter text stays as it is."""
    if limit < 1:
        raise ValueError(f"`{name}` must be at least 1, got {limit}.")
    return text if len(text) <= limit else "…" + text[len(text) - limit + 1 :]


def build_rating_messages(
    *,
    role: str,
    problem: str,
    thought: str,
    answer: str,
    outcome: str,
    max_thought_chars: int = 12_000,
    max_answer_chars: int = 16_000,
) -> list[dict[str, str]]:
    """
    The prompt that asks the Thinker or the Solver for a rating: one user message with [`rating_question`].

    A text that is too long is cut at its beginning, because an answer is usually at the end.

    Args:
        role (`str`): The role that is asked, `"thinker"` or `"solver"`.
        problem (`str`), thought (`str`), answer (`str`): The problem, and what the two roles wrote about it.
        outcome (`str`): The verdict, `"correct"` (credit is divided) or `"wrong"` (blame is divided).
        max_thought_chars (`int`, defaults to 12,000), max_answer_chars (`int`, defaults to 16,000):
            The longest thought and answer, in characters.

    Returns:
        `list[dict[str, str]]`: The message.

    Raises:
        `ValueError`: If `role` or `outcome` is unknown, or if a limit is below 1.
    """
    check_outcome(outcome)
    if role not in ("thinker", "solver"):
        raise ValueError(f'`role` must be "thinker" or "solver", got {role!r}.')
    texts = {
        "thinker": keep_end(thought, "max_thought_chars", max_thought_chars),
        "solver": keep_end(answer, "max_answer_chars", max_answer_chars),
    }
    return [{"role": "user", "content": rating_question(role, problem, texts, outcome)}]
