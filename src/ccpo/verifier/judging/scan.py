"""Split a text at signs that are outside all brackets."""

import re

OPEN, CLOSE = "\ue000", "\ue001"  # put around words; private-use characters, which are removed from answers

_SCAN = re.compile(
    rf"{OPEN}[^{CLOSE}]*{CLOSE}|\\begin\s*\{{[a-z]+\*?\}}(?:\s*\{{[^{{}}]*\}})?|\\end\s*\{{[a-z]+\*?\}}|\\[a-zA-Z]+|\\.|[{{}}()\[\]]"
    r"|and(?= )|or(?= )|.",
    re.DOTALL,
)


def tokens(text):
    """`(token, start, end, depth)` for each token of the text, or `None` if a bracket is not closed."""
    depth, found = 0, []
    braces = 0
    for match in _SCAN.finditer(text):
        token = match.group()
        if token in ("(", "[", "{", r"\{", r"\langle") or token.startswith(r"\begin"):
            depth += 1
            braces += token == "{"
            found.append((token, match.start(), match.end(), depth - 1))
            continue
        if token in (")", "]", "}", r"\}", r"\rangle") or token.startswith(r"\end"):
            depth -= 1
            braces -= token == "}"
            if depth < 0 or braces < 0:
                return None
        found.append((token, match.start(), match.end(), depth))
    return None if depth or braces else found


def split(text, separators):
    """Split the text at separators that are outside all brackets. Returns the parts and the separators."""
    found = tokens(text)
    if found is None:
        return None, None
    parts, between, start = [], [], 0
    for token, begin, end, depth in found:
        if depth == 0 and token in separators and (token not in ("and", "or") or text[begin - 1 : begin] in (" ", "")):
            parts.append(text[start:begin])
            between.append(token)
            start = end
    return [*parts, text[start:]], between
