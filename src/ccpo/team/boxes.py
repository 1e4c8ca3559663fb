r"""The boxes of a text, `\boxed{34}`, `\boxed 34` and `\fbox{34}`: found and taken out in linear time."""

import re

MAX_BARE_BOX = 200  # characters of a box without braces
_BOXES = ("\\boxed", "\\fbox")
# `\\` is a line break unless it is a doubled backslash in front of a box; `\{` and `\}` are no grouping.
_BRACES = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
# What `\boxed` without braces takes: everything up to white space, `$`, a closing brace or the end of the formula.
_BARE_ARGUMENT = re.compile(r"(?:[^\s\\${}]+|\\[^\])])*", re.DOTALL)
# Between boxes that are one answer, a separator among them; a name may stand before each, $x = \boxed{1}$ or $x = ...$
_BETWEEN = re.compile(
    r"(?=.*(?:[,;&]|and|or))(?:[\s$,;&]|\b[a-zA-Z](?:_\{?[0-9]\}?)?\s*=|\\[,;:!()\[\] ]|\\\\|\\q?quad|and|or"
    r"|\\(?:text|mbox|textrm|mathrm)\s*\{[\s,]*(?:and|or)?[\s,]*\})+",
    re.DOTALL,
)
MAX_BETWEEN = 60


def group_end(text, start):
    """Index behind the group that opens at `text[start] == "{"`; the text's end where it never closes."""
    depth, position = 0, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 2  # an escaped brace is no brace
            continue
        depth += (char == "{") - (char == "}")
        position += 1
        if depth == 0:
            return position
    return len(text)


def _argument_end(text, position):
    r"""Index behind the argument of the `\boxed` that ends at `position`."""
    while text[position : position + 1].isspace():
        position += 1
    if text.startswith("{", position):
        return group_end(text, position)
    while True:  # e.g. \frac{1}{2}
        position = _BARE_ARGUMENT.match(text, position).end()
        if not text.startswith("{", position):
            return position
        position = group_end(text, position)


def strip_boxed(text: str) -> str:
    r"""
    Remove every `\boxed{…}` and `\fbox{…}` with balanced braces, wherever it stands, in linear time.

    A box that never closes is removed to the end of the text, `\boxed 5` and `\boxed\frac{1}{2}` together with their
    arguments, and the dollar signs that would be left empty with them. A `\boxed` that only the removal of another one
    brings together goes too.

    Args:
        text (`str`): a thought.

    Returns:
        `str`: the text without boxes; the text itself where it has none.
    """
    if not has_boxed(text):
        return text
    kept, position = [], 0
    while position < len(text):
        kept.append(text[position])
        position += 1
        if kept[-1] not in "dx" or not (box := "".join(kept[-6:])).endswith(_BOXES):
            continue
        del kept[-6 if box == _BOXES[0] else -5 :]
        position = _argument_end(text, position)
        for fence in ("$$", "$"):
            if "".join(kept[-len(fence) :]) == fence and text.startswith(fence, position):
                del kept[-len(fence) :]
                position += len(fence)
                break
    return "".join(kept)


def has_boxed(text: str) -> bool:
    r"""Whether the text contains a `\boxed` or an `\fbox`."""
    return any(box in text for box in _BOXES)


def _boxes(text):
    """`(start, end, content)` of every box that closes, by where it begins; in linear time."""
    found, opened, taken = [], [], 0  # opened: the box of every open brace, None for a brace that is no box
    for match in _BRACES.finditer(text) if has_boxed(text) else ():
        token = match.group()
        if token in _BOXES:
            brace = match.end()
            while text[brace : brace + 1].isspace():
                brace += 1
            if text.startswith("{", brace):
                opened.append((match.start(), brace + 1))
                taken = brace + 1
            else:
                argument = text[match.end() : match.end() + MAX_BARE_BOX]
                argument = argument[: _argument_end(argument, 0)]
                if argument.strip():
                    found.append((match.start(), match.end() + len(argument), argument.strip()))
        elif token == "{" and match.start() >= taken:
            opened.append(None)
        elif token == "}" and opened:
            box = opened.pop()
            if box is not None:
                found.append((box[0], match.end(), text[box[1] : match.start()]))
    return sorted(found)


def last_box(text):
    r"""
    What the last box holds, of nested ones the inner, or `None`; boxes with nothing but separators between them are
    one answer, `\boxed{1}, \boxed{2}`. In linear time.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    start, _, content = boxes[-1]
    parts, join = [content], " or "
    for begin, end, content in reversed(boxes[:-1]):
        between = text[end:start]
        if end > start or len(between) > MAX_BETWEEN or not _BETWEEN.fullmatch(between):
            break
        start = begin
        parts.append(content)
        join = join if re.search(r"\bor\b", between) else ", "
    return join.join(reversed(parts))
