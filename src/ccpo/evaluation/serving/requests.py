"""Read the body of a request to `/v1/chat/completions`. A field that is not supported is refused by its name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...team.prompts import Prompt, whole_characters
from .errors import RequestError
from .sampling import Sampling

# OpenAI's fields that a team does not support, with the values that are accepted because they ask for nothing.
_ASK_NOTHING: dict[str, tuple] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # there are no tools
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
_HONOURED = {
    *("model", "messages", "n", "stream", "stream_options", "stop", "seed", "temperature", "top_p"),
    *("max_tokens", "max_completion_tokens", "user"),
}
_MOST_STOPS = 4  # OpenAI's limit
_LEAST_TEMPERATURE = 1e-6  # the lowest above 0; with a much lower one, logits would exceed float32


@dataclass(frozen=True)
class ChatRequest:
    """
    One request.

    Args:
        problem (`str` or `list[dict]`): The problem for the team.
        n (`int`): The number of answers.
        stream (`bool`): Whether answers are sent while they are written.
        include_usage (`bool`): Whether the stream ends with the numbers of tokens.
        sampling ([`Sampling`]): How the team is sampled.
    """

    problem: Prompt
    n: int
    stream: bool
    include_usage: bool
    sampling: Sampling


def read_request(body: bytes, model: str, *, text: bool, most: int) -> ChatRequest:
    """
    Read the body of a request.

    Args:
        body (`bytes`): The body, in JSON.
        model (`str`): The name of the team.
        text (`bool`): Whether the team reads plain text instead of chat messages.
        most (`int`): The most answers to one request.

    Raises:
        [`RequestError`]: If the body is not a valid request, or if a field is unknown or not supported.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("The body is not JSON. Send an object with `model` and `messages`.") from None
    if not isinstance(fields, dict):
        raise RequestError(f"The body must be an object with `model` and `messages`, got a {type(fields).__name__}.")
    fields = {name: value for name, value in fields.items() if value is not None}
    if not isinstance(fields.get("model"), str):
        raise RequestError(f"`model` must be {model!r}, the team's name, got {_show(fields, 'model')}.", param="model")
    if fields["model"] != model:
        raise unknown_model(fields["model"], model)
    _refuse_others(fields)
    stream, options = _flag(fields, "stream"), fields.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        message = f"`stream_options` may only have `include_usage`, got {_show(fields, 'stream_options')}."
        raise RequestError(message, param="stream_options")
    if options and not stream:
        raise RequestError("`stream_options` needs `stream: true`.", param="stream_options")
    if options.get("include_obfuscation"):
        raise RequestError("`include_obfuscation` is not supported. Leave it out.", param="stream_options")
    if not isinstance(fields.get("user", ""), str):
        raise RequestError("`user` must be a text.", param="user")
    sampling = Sampling(
        temperature=_temperature(fields),
        top_p=_number(fields, "top_p", 0, 1, above=True),
        seed=_number(fields, "seed", -(2**63), 2**64 - 1, whole=True),
        max_tokens=_number(fields, "max_tokens", 1, whole=True),
        max_completion_tokens=_number(fields, "max_completion_tokens", 1, whole=True),
        stop=_stops(fields),
    )
    problem = _problem(fields.get("messages"), text)
    n = _number(fields, "n", 1, most, whole=True) or 1
    return ChatRequest(problem, n, stream, _flag(options, "include_usage"), sampling)


def unknown_model(asked: str, model: str) -> RequestError:
    """The error for a model that this server does not have."""
    message = f"The model {asked[:100]!r} does not exist. The team is {model!r}."
    return RequestError(message, 404, param="model", code="model_not_found")


def _refuse_others(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _HONOURED:
            continue
        if name not in _ASK_NOTHING:
            known = ", ".join(sorted(_HONOURED))
            message = f"Unknown field {name[:100]!r}. This server knows {known}."
            raise RequestError(message, param=name[:100], code="unknown_parameter")
        if not any(value == nothing and type(value) in (type(nothing), float) for nothing in _ASK_NOTHING[name]):
            message = f"`{name}` is not supported, because a team has no such thing. Leave it out."
            raise RequestError(message, param=name, code="unsupported_parameter")


def _show(fields: Mapping[str, Any], name: str) -> str:
    return f"{fields[name]!r:.100}" if name in fields else "none"


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"`{name}` must be true or false, got {value!r:.100}.", param=name)
    return bool(value)


def _number(
    fields: Mapping[str, Any],
    name: str,
    low: float,
    high: float | None = None,
    *,
    whole: bool = False,
    above: bool = False,
) -> Any:
    """Read a number from `low` (or above it, with `above`) to `high`; `None` if the field is not set."""
    value = fields.get(name)
    if value is None:
        return None
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not (value > low if above else value >= low) or (high is not None and value > high):
        kind = "an integer" if whole else "a number"
        span = f"{'above' if above else 'of at least'} {low}" + ("" if high is None else f" and at most {high}")
        raise RequestError(f"`{name}` must be {kind} {span}, got {value!r:.100}.", param=name)
    return value


def _temperature(fields: Mapping[str, Any]) -> float | None:
    value = _number(fields, "temperature", 0, 2)
    if value is not None and 0 < value < _LEAST_TEMPERATURE:
        message = f"`temperature` must be 0 (greedy decoding), or at least {_LEAST_TEMPERATURE}, got {value}."
        raise RequestError(message, param="temperature")
    return value


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stops = fields.get("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        message = (
            f"`stop` must be a text or a list of at most {_MOST_STOPS} texts, none of them empty, got "
            f"{_show(fields, 'stop')}."
        )
        raise RequestError(message, param="stop")
    return tuple(whole_characters(stop) for stop in stops)


def _problem(messages: Any, text: bool) -> Prompt:
    """The problem for the team: the messages, or the text of the only message if the team reads plain text."""
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"`messages` must be a list of messages, got {messages!r:.100}.", param="messages")
    turns = [_message(i, message) for i, message in enumerate(messages)]
    if turns[-1]["role"] != "user":
        message = (
            f"The last of `messages` must be the user's, got {turns[-1]['role']!r}. A team cannot continue an answer."
        )
        raise RequestError(message, param="messages")
    if not text:
        return turns
    if len(turns) > 1:
        message = (
            "This team reads plain text, without a chat template, so it cannot read earlier turns or system "
            f"messages, got {len(turns)} messages. Put everything into one user message."
        )
        raise RequestError(message, param="messages")
    return turns[0]["content"]


def _message(i: int, message: Any) -> dict[str, str]:
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        raise RequestError(f"`{where}` must be an object with `role` and `content`.", param=where)
    role = message.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        wanted = "'system', 'developer', 'user' or 'assistant'"
        raise RequestError(f"`{where}.role` must be {wanted}, got {role!r:.100}.", param=f"{where}.role")
    # A client may send back an earlier answer. Roles do not read its reasoning and its empty lists.
    own = {"role", "content"} | ({"reasoning_content"} if role == "assistant" else set())
    for name, value in message.items():
        if name not in own and value not in (None, []) and (name, value) != ("type", "text"):
            remedy = "A message has `role` and `content`. Leave it out."
            raise RequestError(f"`{where}.{name[:100]}` is not supported. {remedy}", param=f"{where}.{name[:100]}")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise RequestError(f"`{where}.content` may have only parts of text.", param=f"{where}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str) or (role == "user" and not content.strip()):
        raise RequestError(f"`{where}.content` must be a text, got {content!r:.100}.", param=f"{where}.content")
    return {"role": "system" if role == "developer" else role, "content": whole_characters(content)}
