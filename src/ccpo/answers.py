"""Where the answer stands in a text, and the text of a completion; standard library only."""

import re
from collections.abc import Mapping, Sequence

MAX_TEXT = 100_000  # characters of a text, counted from its end, in which a box is looked for
MAX_PROSE = 4_000  # characters of an unboxed text, counted from its end, in which "answer is $...$" is looked for
MAX_BARE = 200  # characters of a prediction that may be a bare answer

# `\\` is a line break unless it is a doubled backslash in front of a box; `\{` and `\}` are no grouping.
_BRACES = re.compile(r"\\boxed\s*\{|\\\\(?!boxed)|\\[{}]|[{}]")
_ENVIRONMENT = re.compile(
    r"\$\$((?:\\.|[^$\\])+)\$\$|\$((?:\\.|[^$\\])+)\$|(?<!\\)\\\((.+?)\\\)|(?<!\\)\\\[(.+?)\\\]", re.DOTALL
)
_INTEGER = re.compile(r"-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3}){1,9}|[0-9]{1,30})")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\,)\s*(?=[0-9]{3}(?![0-9]))")  # 1,\!200  1{,}200  1\,200
_TRAILING = re.compile(r"(?<!\\)[.,;:]\Z")
# A text is prose if a word is followed by another word or a number, commands and up to three words at its end aside.
_COMMAND = re.compile(r"\\(?:text\w*|mbox|math[a-z]+|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_LAST_WORDS = re.compile(r"(?:\s+[A-Za-z]+\.?){1,3}\Z")
_TEXT_PARTS = ("text", "output_text")  # of a multimodal message; "thinking", "image_url", "refusal" are none
_PROSE = re.compile(r"(?!(?:and|or)\s)\b[A-Za-z]{2,}\s+[A-Za-z0-9]")


def last_box(text):
    r"""Content of the last balanced `\boxed{...}`, of nested ones the inner, or `None`; in linear time."""
    opened, best = [], None  # opened: where the content of every open brace begins, None for a brace that is no box
    for match in _BRACES.finditer(text) if "\\boxed" in text else ():
        token = match.group()
        if token == "{" or token.startswith("\\boxed"):
            opened.append(match.end() if token != "{" else None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, match.start())
    return None if best is None else text[best[0] : best[1]]


def _clean(text):
    return _THOUSANDS.sub("", _TRAILING.sub("", text.strip()).strip())


def _unwrap(text):
    """Returns `(answer, is_prose)`: `$x$` gives x, and a text with such environments among others is prose."""
    text = _clean(text)
    match = _ENVIRONMENT.search(text)
    if match is None or match.span() != (0, len(text)):
        return text, match is not None
    return _clean(match.group(match.lastindex)), False


def extract_gold(text):
    r"""
    The answer in a reference text: after a closing `####`, else in the last balanced box, else the text itself.

    Args:
        text (`str`):
            `72`, `$\frac{1}{2}$`, a GSM8K solution, a solution with `\boxed{}`, or prose with `$...$` in it.

    Returns:
        `tuple[str, bool]`: The answer as LaTeX, and whether it is prose in which math-verify has to find one.
    """
    text = text[-MAX_TEXT:]
    last_line = text.rpartition("####")[2].strip() if "####" in text else ""
    if last_line and "\n" not in last_line:  # "####" is a heading too, in solutions written as Markdown
        text = last_line
    box = last_box(text)
    return _unwrap(text[-MAX_PROSE:]) if box is None else (_clean(box)[-MAX_PROSE:], False)


def extract_prediction(text):
    r"""
    The answer in a completion: the last balanced box; without one, the whole text if it is a bare answer; else the end
    of the text, for math-verify to find an anchored answer in ("the final answer is $5$").

    Args:
        text (`str`):
            What the model wrote.

    Returns:
        `tuple[str, bool]`: As in [`extract_gold`]. The answer is empty where there is none.
    """
    text = text[-MAX_TEXT:]
    box = last_box(text)
    if box is not None:
        return _clean(box)[-MAX_PROSE:], False
    if len(text) <= MAX_BARE:
        answer, is_prose = _unwrap(text)
        if not (is_prose or "\n" in answer or _PROSE.search(_LAST_WORDS.sub("", _COMMAND.sub("0", answer)))):
            return answer, False
    # Every anchor of math-verify holds this word: without it the regular expressions need not run.
    tail = text[-MAX_PROSE:]
    return (tail, True) if "answer" in tail.lower() else ("", False)


def completion_text(completion):
    """
    The text that a model wrote in a completion.

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
        raise TypeError(f"A message's content must be a text or a list of parts, got {content!r:.100}.")
    texts = []
    for part in parts:
        if isinstance(part, Mapping):
            part = part.get("text") if part.get("type") in (None, *_TEXT_PARTS) else None
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)


def plain_integer(answer, is_prose):
    """The value of an answer such as `-5` or `1,200`, which needs no grammar to compare; `None` for any other."""
    return int(answer.replace(",", "")) if not is_prose and _INTEGER.fullmatch(answer) else None
