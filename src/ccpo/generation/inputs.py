"""Checks and encoding of prompts that all generators share."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig

logger = logging.getLogger(__name__)

_OF_TRANSFORMERS = frozenset(vars(GenerationConfig()))

# What a template raises itself, and what its expressions raise if a message has another form than they expect.
_REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

TEXT_FOR_A_CHAT_MODEL = (
    "%s has a chat template, but was given plain texts, so the template is not used. Chat models often give "
    'no answer then. Give messages, [{"role": "user", "content": text}], as prompts. For a base model, plain '
    "texts are right."
)


def check_prompts(prompts) -> list:
    if isinstance(prompts, (str, Mapping)):
        raise TypeError(f"prompts must be a list of prompts, got one {type(prompts).__name__}. Pass [prompt].")
    prompts = list(prompts)
    if prompts and all(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError("prompts must be a list of prompts, got the messages of one conversation. Pass [messages].")
    for i, prompt in enumerate(prompts):
        is_chat = isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt)
        if not isinstance(prompt, str) and not (prompt and is_chat):
            raise TypeError(f"prompts[{i}] must be a text or a non-empty list of messages, got {prompt!r:.100}.")
    return prompts


def check_range(name: str, value, low, high=float("inf"), *, whole: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        kind = "an integer" if whole else "a number"
        raise ValueError(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r}.")


def check_known_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for an option that transformers' `GenerationConfig` does not know and would ignore."""
    for key in options:
        if key not in _OF_TRANSFORMERS:
            raise ValueError(
                f"`{name}` has the key {key!r}, which is not an option of transformers' GenerationConfig and "
                "would be ignored. "
                + ("Write 'stop_strings'." if key == "stop" else "Check its spelling, or leave it out.")
            )


def context_length(config: Any) -> int | None:
    """The most tokens that prompt and completion may have together, by the model's configuration, or `None`."""
    config = config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if length and rope.get("rope_type", rope.get("type")) == "yarn":  # the length may not include its `factor`
        begun = rope.get("original_max_position_embeddings") or length
        length = max(length, int(begun * (rope.get("factor") or 1)))
    return length or None


def fold_system(prompt: Any) -> Any:
    """
    Move the text of each system message in front of the next user message, with a blank line between them.

    A text, and a conversation in which no user message follows a system message, are returned unchanged.
    """
    if isinstance(prompt, str):
        return prompt
    kept: list = []
    held: list[str] = []
    for message in prompt:
        role, content = message.get("role"), message.get("content")
        if role == "system" and isinstance(content, str):
            held += [content] if content.strip() else []
        elif role == "user" and isinstance(content, str):
            kept.append({**message, "content": "\n\n".join([*held, content])})
            held = []
        else:
            kept.append(message)
    return prompt if held else kept


def render_prompts(
    prompts: list,
    render: Callable[[list], Any],
    who: str,
    said: set[str],
    where: Callable[[int], str] | None = None,
) -> Any:
    """
    Apply a chat template to prompts.

    Some templates, such as Gemma's, refuse a system message. Its text is then moved into the next user message. This
    is logged once.

    Args:
        prompts (`list`): Texts or conversations.
        render (`Callable`): Applies the template to a list of prompts.
        who (`str`): Whose template it is, for messages, e.g. `"role 'a'"`.
        said (`set[str]`): For whom it has been logged. `who` is added.
        where (`Callable`, *optional*): Maps the index of a prompt to its name in the error.

    Returns:
        What `render` returns for all the prompts.

    Raises:
        `ValueError`: If the template refuses a conversation in both forms.
    """
    try:
        return render(prompts)
    except _REFUSALS:
        where = where or (lambda i: f"prompts[{i}], {prompts[i]!r:.100}")
        taken = [_taken(prompt, render, who, where(i)) for i, prompt in enumerate(prompts)]
    if taken != prompts and who not in said:
        said.add(who)
        logger.warning(
            "The chat template of %s refuses a system message. Its text is put before the user's, with a "
            "blank line between.",
            who,
        )
    return render(taken)


def _taken(prompt: Any, render: Callable[[list], Any], who: str, where: str) -> Any:
    """The prompt as it is, or with its system messages moved, whichever the template accepts."""
    refusal = None  # the error for the prompt as it is, which says more than the one for its other form
    for form in (prompt, fold_system(prompt)):
        try:
            render([form])
            return form
        except _REFUSALS as error:
            refusal = refusal or error
    if isinstance(prompt, str):
        raise refusal
    raise ValueError(
        f"The chat template of {who} cannot render {where} ({type(refusal).__name__}: {refusal}). Set another "
        "template as `tokenizer.chat_template`, change the messages, or give text prompts."
    ) from refusal


def check_chat_template(prompts: list, tokenizer: Any, template_kwargs: Mapping | None = None) -> None:
    """Raise a `ValueError` if a prompt is a conversation and there is no chat template."""
    if tokenizer.chat_template or (template_kwargs or {}).get("chat_template"):
        return
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(
                f"prompts[{i}] is a conversation, but the tokenizer has no chat template. Pass text prompts, "
                'or chat_template_kwargs={"chat_template": ...}.'
            )


def encode_prompts(
    prompts: list, tokenizer: Any, who: str, said: set[str], template_kwargs: Mapping | None = None
) -> list[list[int]]:
    """
    Turn prompts into token ids. The chat template is applied to conversations and not to texts.

    If the last message of a conversation is the assistant's, it is continued.

    Args:
        prompts (`list`): Texts or conversations.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer, with its chat template.
        who (`str`), said (`set[str]`): As for [`render_prompts`].
        template_kwargs (`Mapping`, *optional*): Options of `apply_chat_template`.

    Returns:
        `list[list[int]]`: The token ids of each prompt.
    """

    def render(batch: list) -> list[list[int]]:
        rows = []
        for prompt in batch:
            if isinstance(prompt, str):
                rows.append(list(tokenizer(prompt)["input_ids"]))
                continue
            continued = prompt[-1]["role"] == "assistant"
            options = {"add_generation_prompt": not continued, "continue_final_message": continued}
            options |= {"tokenize": True, "return_dict": True, **(template_kwargs or {})}
            rows.append(list(tokenizer.apply_chat_template(prompt, **options)["input_ids"]))
        return rows

    return render_prompts(prompts, render, who, said)


def check_lengths(rows: list[list[int]], room: int, limit: int | None, limit_name: str) -> None:
    """
    Check that prompts have tokens and leave enough room in the model's context.

    Args:
        rows (`list[list[int]]`): The token ids of the prompts.
        room (`int`): How many tokens may follow each prompt.
        limit (`int`, *optional*): The size of the context, in tokens; `None` if unknown.
        limit_name (`str`): The option that sets it, for the message.

    Raises:
        `ValueError`: If a prompt has no tokens or is too long.
    """
    for i, ids in enumerate(rows):
        if not ids:
            raise ValueError(f"prompts[{i}] has no tokens, so the model has nothing to continue. Remove it.")
        if limit is not None and len(ids) + room > limit:
            raise ValueError(
                f"prompts[{i}] has {len(ids)} tokens. With the {room} that may follow, it exceeds the model's "
                f"limit of {limit} (`{limit_name}`). Shorten the prompt, lower `max_new_tokens`, or use a "
                "model with a longer context."
            )
