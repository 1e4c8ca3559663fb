"""The text of a completion, wherever it comes from; standard library only."""

from collections.abc import Mapping, Sequence

_TEXT_PARTS = ("text", "output_text")  # of a multimodal message; "thinking", "image_url", "refusal" are none


def completion_text(completion):
    """
    Get the text that a model wrote from a completion.

    - A text is itself; of a conversation, the text of the *last assistant message* counts. What a tool or a user says
      after it is not the model's, and what the assistant said before it is not its answer. A message without `role` is
      the assistant's.
    - A message's text is its `content`: a text, or the text parts of a list of parts, joined; images, refusals and
      thinking parts have none. `reasoning_content`, beside it, is never the answer.
    - No message, no content or no text part: `""`.

    Args:
        completion (`str`, `dict` or `list[dict]`):
            A text, a message or a conversation.

    Returns:
        `str`: The text. Raises a `TypeError` for anything else.
    """
    if isinstance(completion, str):
        return completion
    messages = [completion] if isinstance(completion, Mapping) else completion
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        raise TypeError(f"A completion must be a text or a list of messages, got {completion!r:.100}.")
    for message in reversed(messages):
        if message.get("role", "assistant") == "assistant":
            return _content_text(message.get("content"))
    return ""


def _content_text(content):
    """The text of a message's content: `None`, a text, a part, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, Sequence):
        raise TypeError(f"The `content` of a message must be a text or a list of parts, got {content!r:.100}.")
    texts = []
    for part in parts:
        if isinstance(part, Mapping):
            part = part.get("text") if part.get("type") in (None, *_TEXT_PARTS) else None
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)
