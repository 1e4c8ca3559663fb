"""Read the answer of an OpenAI-compatible endpoint: its text, why it has none, or an error inside HTTP 200."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..team.completions import completion_text

# Endpoints give the status of an error as a number, or in the words of OpenAI, Anthropic or Google.
_STATUS_OF_WORD = {
    "rate_limit": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "quota": 429,
    "timeout": 504,
    "deadline_exceeded": 504,
    "overloaded": 503,
    "unavailable": 503,
    "server_error": 500,
    "internal": 500,
    "api_error": 500,
    "authentication": 401,
    "unauthenticated": 401,
    "api_key": 401,
    "permission": 403,
    "not_found": 404,
    "context_length": 400,
    "invalid": 400,
    "unsupported": 400,
}


@dataclass(frozen=True)
class Reply:
    """
    One answer of an endpoint.

    Args:
        text (`str`): What the model answered, without its reasoning.
        tokens (`int`, *optional*): The number of tokens of the completion, if the endpoint reports it.
        why_empty (`str`, *optional*): The reason, if the text is empty.
        truncated (`bool`, *optional*): Whether the text was cut at the longest length, if the endpoint reports it.
        prompt_tokens (`int`, *optional*): The number of tokens of the prompt, if the endpoint reports it.
    """

    text: str
    tokens: int | None
    why_empty: str | None
    truncated: bool | None = None
    prompt_tokens: int | None = None


def read_json(text: str) -> Any:
    """The value of a JSON text. A text that is not JSON, or nested too deeply, is returned as it is."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return text


def _choice(body: Any) -> Mapping | None:
    choices = body.get("choices") if isinstance(body, Mapping) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else None


def error_of(body: Any) -> Any:
    """The error in a body, or `None` if there is none. A body without an answer is an error as a whole."""
    if isinstance(body, list) and len(body) == 1:  # Google's form
        body = body[0]
    choice = _choice(body)
    error = body.get("error") if isinstance(body, Mapping) else None
    return error or (body if choice is None else choice.get("error")) or None


def error_status(body: Any) -> int | None:
    """The HTTP status that the error in a body names; `None` if there is no error, or if it names none."""
    error = error_of(body)
    if isinstance(error, Mapping):
        said = [error.get(key) for key in ("code", "status", "status_code", "type")]
    else:  # an error in words; TGI names its type beside it
        said = [body.get("error_type"), error] if isinstance(body, Mapping) else []
    for value in said:
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) == 3 else value
        if isinstance(number, int | float) and 400 <= number < 600:
            return int(number)
    words = " ".join(re.sub(r"[\W_]+", "_", value.lower()) for value in said if isinstance(value, str))
    return next((status for word, status in _STATUS_OF_WORD.items() if word in words), None)


def read_reply(body: Any, *, chat: bool) -> Reply | None:
    """
    Read the answer of the chat endpoint, or of the completions endpoint.

    Args:
        body (`Any`): The JSON value.
        chat (`bool`): Whether it is the answer of the chat endpoint.

    Returns:
        [`Reply`], or `None` if it is an error or has another form.
    """
    choice = _choice(body)
    if choice is None or error_of(body):
        return None
    finish, said = choice.get("finish_reason"), choice.get("message" if chat else "text")
    if said is None and isinstance(finish, str):  # a content filter may leave the text out, but gives a reason
        said = {} if chat else ""
    message = said if chat else {"content": said}
    if said is None or not isinstance(message, Mapping):
        return None
    try:
        text = completion_text({**message, "role": "assistant"})
        text = text.encode("utf-8", "replace").decode()  # tokenizers cannot read half a surrogate pair
    except TypeError:
        return None
    truncated = finish == "length" if isinstance(finish, str) else None
    why_empty = None if text.strip() else _why_empty(message, finish)
    return Reply(text, _count(body, "completion_tokens"), why_empty, truncated, _count(body, "prompt_tokens"))


def _count(body: Mapping, name: str) -> int | None:
    """A number in the body's `usage`, or `None` if it is not given."""
    usage = body.get("usage")
    tokens = usage.get(name) if isinstance(usage, Mapping) else None
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0 else None


def join_chunks(chunks: Iterable, watch: Callable[[str], bool]) -> dict[str, Any]:
    """
    Join the chunks of a stream into one answer. The stream is closed when `watch` returns `True`.

    Args:
        chunks (`Iterable`): The stream of the `openai` client, of either endpoint.
        watch (`Callable`): Takes each piece of the text. Returns whether the answer ends.

    Returns:
        `dict`: The body that the endpoint would have sent without streaming.
    """
    message, finish, usage, text, some = {}, None, None, "", False
    for chunk in chunks:
        body = chunk.model_dump()
        usage = body.get("usage") or usage
        if (choice := _choice(body)) is None:
            continue
        some, finish = True, choice.get("finish_reason") or finish
        delta = choice.get("delta")
        delta = delta if isinstance(delta, Mapping) else {"content": choice.get("text")}
        message |= {name: value for name, value in delta.items() if name not in ("content", "role") and value}
        if piece := delta.get("content"):
            text += piece
            if watch(piece):
                finish = "stop"
                chunks.close()
                break
    choice = {"finish_reason": finish, "message": {**message, "content": text}, "text": text}
    return {"choices": [choice] if some else [], "usage": usage}


def _why_empty(message: Mapping, finish: Any) -> str:
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details"))
    if message.get("refusal"):
        return "refused by the model"
    if finish == "content_filter":
        return "taken out by a content filter"
    if finish == "length":
        return "cut at the limit while still thinking" if thought else "cut at the limit before any text"
    if message.get("tool_calls") or message.get("function_call"):
        return "a tool call"
    return "thoughts without an answer" if thought else f"no content (finish_reason {finish!r:.40})"
