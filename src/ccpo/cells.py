"""What a cell of a dataset becomes: a prompt or a gold answer; everything else is refused with its remedy."""

import math
import re
from datetime import date
from decimal import Decimal
from numbers import Integral, Number
from typing import Any

_ANSWERING = ("assistant", "tool")  # whose turns behind the problem are its solution

_MESSAGES_AS_TEXT = re.compile(
    r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:"""
    r"""|\s*[\[{].*?["'](?:role|from)["']\s*:\s*["'](?:system|developer|user|human|assistant|gpt)["']""",
    re.DOTALL,
)


def final_answer(solution: str) -> str:
    """The gold answer of a solution in GSM8K's form, what follows the last `####`; any other text as it is."""
    return solution.rsplit("####", 1)[-1].strip()


def only(value: Any) -> Any:
    """The one item of a list of one."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def kind(value: Any) -> str:
    """What a cell holds, for an error."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    name = type(value).__name__
    return "null" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _name_a_field(value: dict, column: str) -> str:
    names = [f"{column}.{name}" for name in sorted(value)]
    return f"holds several fields. Name one of them, with a dot: {names}."


def read_gold(value: Any, column: str) -> str | None:
    """
    The gold answer that a cell holds, as text.

    Args:
        value: a text (after GSM8K's `####`, see [`final_answer`]), a number, written out without an exponent, a list
            of one of these, or null or NaN for a missing answer.
        column (`str`): the cell's column, for the remedy.

    Returns:
        `str`, or `None` for a missing answer.

    Raises:
        `ValueError`: anything else, with the remedy.
    """
    value = only(value)
    if value is None or isinstance(value, str):
        return value and final_answer(value)
    if isinstance(value, Number) and not isinstance(value, bool | complex):
        if isinstance(value, Integral):
            return str(int(value))
        if math.isnan(value):
            return None
        if math.isfinite(value):
            return str(int(value)) if value == int(value) else format(Decimal(str(value)), "f")
    if isinstance(value, dict):
        raise ValueError(_name_a_field(value, column))
    if isinstance(value, list):
        raise ValueError(f"holds {kind(value)}, {value!r:.80}. Give one answer: text or a number.")
    if isinstance(value, date):
        raise ValueError(
            f"holds {kind(value)}, {value!r:.80}, where a text is expected. Write a text. (In a json file, a "
            "text that looks like a date is read as a date; in a csv file it stays a text.)"
        )
    raise ValueError(f"holds {kind(value)}, {value!r:.80}. Give text or a number.")


def read_prompt(value: Any, column: str, conversational: bool = True) -> tuple[str | list[dict] | None, bool]:
    """
    The prompt that a cell holds. An assistant's turn behind the last user's is the solution, and is cut off.

    Args:
        value: a text, chat messages whose contents are texts, or a list of one text.
        column (`str`): the cell's column, for the remedy.
        conversational (`bool`): whether the prompt is to be chat messages or text.

    Returns:
        `tuple`: the prompt, `None` for null, and whether turns were cut off.

    Raises:
        `ValueError`: anything else, with the remedy.
    """
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        value = only(value)
    if isinstance(value, str) and _MESSAGES_AS_TEXT.match(value):
        raise ValueError(
            f"holds chat messages written as one text, {value!r:.80}. Parse them first, e.g. with json.loads in "
            "dataset.map."
        )
    if value is None or isinstance(value, str):
        return ([{"role": "user", "content": value}] if conversational and value is not None else value), False
    if isinstance(value, dict) and "content" not in value:
        raise ValueError(_name_a_field(value, column))
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not any(isinstance(message, dict) for message in messages):
        raise ValueError(f"holds {kind(value)}, {value!r:.80}. Give one text, or a list of chat messages.")
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"holds {message!r:.80} where a message is expected, whose `role` and `content` are both "
                "texts. Convert the messages first (trl.maybe_convert_to_chatml converts `from` and `value`)."
            )
    kept = [{"role": message["role"], "content": message["content"]} for message in messages]
    while kept and kept[-1]["role"] in _ANSWERING:
        kept.pop()
    if not kept or kept[-1]["role"] != "user":
        roles = [message["role"] for message in messages]
        raise ValueError(
            f"holds messages of the roles {roles}. Before the assistant's answer, the last message must be the "
            "user's, which states the problem."
        )
    if not conversational and len(kept) > 1:
        raise ValueError(
            f"holds {len(kept)} messages, which cannot be written as one text. Set `conversational=True`."
        )
    return (kept if conversational else kept[0]["content"]), len(kept) < len(messages)


def is_empty(prompt: str | list[dict] | None) -> bool:
    """Whether a prompt states no problem but white space; null is another fault."""
    text = prompt[-1]["content"] if isinstance(prompt, list) else prompt
    return text is not None and not text.strip()
