"""Turn a cell of a dataset into a prompt or a gold answer. The error for any other cell says what to do."""

import math
import re
from datetime import date
from decimal import Decimal
from numbers import Integral, Number
from typing import Any

_ANSWERING = ("assistant", "tool")  # messages of these roles after the problem are its solution

_MESSAGES_AS_TEXT = re.compile(
    r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:"""
    r"""|\s*[\[{].*?["'](?:role|from)["']\s*:\s*["'](?:system|developer|user|human|assistant|gpt)["']""",
    re.DOTALL,
)


def final_answer(solution: str) -> str:
    """The text after the last `####`, which is the answer in GSM8K's solutions. A text without `####` is unchanged."""
    return solution.rsplit("####", 1)[-1].strip()


def only(value: Any) -> Any:
    """The item of a list that has only one. Any other value is returned as it is."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def kind(value: Any) -> str:
    """What a cell holds, in the words of an error message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    name = type(value).__name__
    return "null" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _name_a_field(value: dict, column: str) -> str:
    names = [f"{column}.{name}" for name in sorted(value)]
    return f"holds several fields. Name one of them, with a dot: {names}."


def read_gold(value: Any, column: str) -> str | None:
    """
    Read the gold answer in a cell, as text.

    Args:
        value:
            A text, of which the part after GSM8K's `####` counts (see [`final_answer`]); a number, which is written
            without an exponent; or a list with one of these. Null and NaN mean that there is no answer.
        column (`str`): The column of the cell, for the message.

    Returns:
        `str` or `None`: The answer, or `None` if there is none.

    Raises:
        `ValueError`: If the cell holds anything else.
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
    Read the prompt in a cell. The assistant's messages after the last user message are removed as the solution.

    Args:
        value: A text, chat messages whose contents are texts, or a list with one text.
        column (`str`): The column of the cell, for the message.
        conversational (`bool`): Whether to return chat messages or text.

    Returns:
        `tuple[str | list[dict] | None, bool]`: The prompt, which is `None` for null, and whether messages were
        removed.

    Raises:
        `ValueError`: If the cell holds anything else.
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
    """Whether a prompt is only white space. Null is not empty: it is reported as another mistake."""
    text = prompt[-1]["content"] if isinstance(prompt, list) else prompt
    return text is not None and not text.strip()
