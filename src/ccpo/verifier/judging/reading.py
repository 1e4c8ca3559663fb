r"""
Read a normalised text as a form.

The reading depends on what is outside all brackets: separators of a list, unions, relations, brackets and units. A
text without a reading gives `None`, such as numbers side by side or a value with "about".

Each reader returns `None` if the text is not of its kind, and `()` if it is of its kind but cannot be judged.
"""

import re
from functools import lru_cache

from . import units
from .forms import (
    Assign,
    Based,
    Clock,
    Either,
    Expr,
    Group,
    Items,
    Letters,
    Matrix,
    Measure,
    Option,
    Percent,
    Ratio,
    Union,
    Words,
)  # fmt: skip
from .quantities import read_compound, read_quantity
from .relations import NAME, read_all, read_relation
from .scan import CLOSE, OPEN, split, tokens
from .sets import REALS, intersect, is_region, read_difference

MAX_DEPTH = 6  # how deeply brackets may be nested
MAX_WORDS = 8  # how many words an answer in words may have

_LABEL = re.compile(
    rf"\A{OPEN}(?:the )?(?:(?:final|correct) )?(?:answer|option|choice)(?: is)?{CLOSE} ?[:=]? ?(?=.)", re.I
)
_NEGATIVE = re.compile(rf"\A{OPEN}(?:negative|minus){CLOSE} ?(?=[0-9.\\])", re.I)
_OPENING = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
_CLOCK = re.compile(rf"([0-9]{{1,2}}) ?: ?([0-9]{{2}})(?: ?: ?([0-9]{{2}}))?(?: ?{OPEN}([ap])m{CLOSE})?")
_HOUR = re.compile(rf"([0-9]{{1,2}}) ?{OPEN}([ap])m{CLOSE}")
_BASED = re.compile(
    rf"(-?)\(?({OPEN}?)([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?){CLOSE}?\)?"
    rf"(?: ?_ ?\{{? ?\(?(?:([0-9]{{1,2}})|{OPEN}([a-z]+){CLOSE})\)? ?\}}?"
    rf"| \(? ?{OPEN}(?:in )?base{CLOSE} ?-?([0-9]{{1,2}})\)?)"
)
_OPTION = re.compile(r"\(? ?([A-J]) ?[).:](?: |(?=\S)|\Z)(.*)", re.DOTALL)
_OPTIONS = re.compile(r"\([A-J]\)(?:(?: ?,)?(?: and)? ?\([A-J]\))+")
_OTHER_OPTION = re.compile(r"(?:^|[\s(])[A-J] ?[).:](?:\s|\Z)")
_MATRIX = re.compile(r"\\begin\{[pbB]?(?:small)?matrix\}(.*)\\end\{[pbB]?(?:small)?matrix\}", re.DOTALL)
_CASES = re.compile(
    r"\\begin\{(?:cases|aligned?\*?|gathered|split|array)\}(?:\{[^{}]*\})?(.*)\\end\{(?:cases|aligned?\*?|gathered|split|array)\}",
    re.DOTALL,
)
_SIDE_BY_SIDE = re.compile(
    r"[0-9.] +[0-9.]|[0-9] *\\frac\{[0-9]+\}\{[0-9]+\}|\\frac\{[0-9]+\}\{[0-9]+\} *(?:[0-9]|\\frac)|\} +[0-9]"
)
_THREES = re.compile(r"-?[1-9][0-9]{2}(?:,[0-9]{3})+")


@lru_cache(maxsize=4096)
def read(text, depth=0):
    """The form of a normalised text, or `None` if it has none."""
    text = re.sub(r"\s+", " ", text).strip()
    if not text or depth > MAX_DEPTH:
        return None
    if depth == 0:
        text = _NEGATIVE.sub("-", _LABEL.sub("", text))
    if depth == 0 and (option := _read_option(text, depth)) is not None:
        return option or None
    if tokens(text) is None:
        return None
    for reader in (
        _read_literal,
        _read_clock,
        _read_based,
        _read_list,
        _read_difference,
        _read_union,
        _relation,
        _read_brackets,
        _read_sign,
        _read_quantity,
        _read_words,
    ):
        form = reader(text, depth)
        if form is not None:
            return form if form != () else None
    return _read_expression(text)


def _relation(text, depth):
    return read_relation(text, read, depth)


def _read_difference(text, depth):
    return read_difference(text, read, depth)


def _read_all(texts, depth):
    return read_all(read, texts, depth)


def _read_literal(text, depth):
    """Read a Python list of strings, as `str()` writes it."""
    if re.fullmatch(r"\[ ?(['\"]).*\1 ?\]", text):
        inner = re.sub(rf"['\"]|(?<=[{OPEN}])'|'(?=[{CLOSE}])", "", text[1:-1])
        return read(inner, depth + 1) or ()
    return None


def _read_clock(text, depth):
    if match := _CLOCK.fullmatch(text):
        hour, *rest = (int(group) for group in match.groups()[:3] if group)
        half = f"{match[4]}m" if match[4] else ""
        if hour <= (12 if half else 24) and all(value < 60 for value in rest):
            plain = None if half else Ratio(tuple(Expr(str(value)) for value in (hour, *rest)))
            return Clock((hour, *rest, *[0] * (2 - len(rest))), half, plain)
    if match := _HOUR.fullmatch(text):
        return Clock((int(match[1]), 0, 0), f"{match[2]}m", None) if int(match[1]) <= 12 else ()
    parts, between = split(text, {":"})
    if between and not text.startswith(OPEN):
        if all(parts) and re.fullmatch(rf"[^{OPEN}A-Z]*", text):
            forms = tuple(read(part, depth + 1) for part in parts)
            return Ratio(forms) if all(isinstance(form, (Expr, Measure)) for form in forms) else None
        head, _, tail = text.partition(":")
        if NAME.fullmatch(head.strip()) and head.startswith(OPEN):
            return read(tail, depth + 1)
    return None


def _read_based(text, depth):
    match = _BASED.fullmatch(text)
    if not match:
        return None
    base = int(match[4] or match[6] or 0) or units.number_word(match[5] or "")
    digits = match[3].lower()
    if not base or not 2 <= base <= 36 or not digits[0].isalnum() or not re.search("[0-9]", match[3]):
        return None
    if any(int(digit, 36) >= base for digit in digits.replace(".", "")):
        return ()
    return Based(match[1] + (digits.lstrip("0") or "0"), base)


def _read_option(text, depth):
    match = _OPTION.fullmatch(text)
    if not match or (text.startswith("(") and ")" not in text[:6]) or (match[0][1:2] == ":" and match[0][2:3] != " "):
        return None
    rest = match[2].strip()
    if not rest:
        return Option(match[1], None)
    if _OPTIONS.fullmatch(text):  # several letters and nothing else are a list
        return None
    if _OTHER_OPTION.search(rest) or re.match(r"[,;/|&]|(?:and|or)\b", rest):
        return ()
    content = read(rest, depth + 1)
    if content is None or " or " in f" {rest} " or re.fullmatch("[A-Ja-j]", rest):  # `D) A` names two
        return ()
    return Option(match[1], content)


def _read_list(text, depth):
    if depth == 0 and (match := _THREES.fullmatch(text)):
        return Either((Expr(text.replace(",", "")), Items(tuple(Expr(part) for part in text.split(",")))))
    if match := _CASES.fullmatch(text):
        rows = [row.replace("&", " ").strip() for row in re.split(r"\\\\", match[1])]
        if any("&" in row for row in re.split(r"\\\\", match[1].replace("&=", "="))):
            return ()
        return read(" , ".join(row.strip(" ,") for row in rows if row), depth + 1) or ()
    parts, between = split(text, {",", ";", "and", "or"})
    if not between:
        return None
    if any(part.strip() in (f"{OPEN}both{CLOSE}", f"{OPEN}either{CLOSE}") for part in parts):
        return ()
    kept = [part.strip() for part in parts if part.strip()]
    if ";" in between and "," in between:
        kept = [part.strip() for part in split(text, {";"})[0]]
    empty = [index for index, part in enumerate(parts) if not part.strip()]
    if any(between[index] == "," and between[index - 1] == "," for index in empty if 0 < index < len(between)):
        return ()
    if not kept:
        return ()
    if between[-1] not in (",", ";") and not parts[-1].strip():
        return ()
    if len(between) >= 1 and set(between) <= {"and", ","} and len(kept) == 2 and "and" in between:
        if whole := read_compound(" ".join(kept)):
            return whole
        if mixed := re.fullmatch(r"(-?[0-9]+) and \\frac\{([0-9]+)\}\{([0-9]+)\}", text):
            return Expr(rf"{mixed[1]}+\frac{{{mixed[2]}}}{{{mixed[3]}}}") if not text.startswith("-") else ()
    if "or" in between or "and" in between:  # x < 2 or x > 5 is a union, x > 2 and x < 5 an intersection
        regions = [read(part, depth + 1) for part in kept]
        if regions and all(isinstance(form, Assign) and is_region(form.values[0]) for form in regions):
            if len({form.name for form in regions}) == 1:
                if set(between) == {"or"}:
                    return Assign(regions[0].name, (Union(tuple(form.values[0] for form in regions)),))
                return intersect(regions) or ()
    found = _list_of(kept, depth) or ()
    if set(between) == {"or"} and isinstance(found, Items) and len(set(found.items)) == 1:  # the same value twice
        return found.items[0]
    return found


def _list_of(parts, depth):
    forms = _read_all(parts, depth)
    if forms is None:
        return None
    if len(forms) == 1:
        return forms[0]
    if any(isinstance(form, (Words, Measure)) for form in forms):
        forms = _share_unit(forms)
    names = [form.name if isinstance(form, Assign) else None for form in forms]
    if names[0] and not any(names[1:]):  # n = 2, 3, 4
        if isinstance(forms[0].values[0], (Expr, Percent)) and len(forms[0].values) == 1:
            return Assign(names[0], (Items((forms[0].values[0], *forms[1:])),))
    if all(names) and len(set(names)) == 1 and all(len(form.values) == 1 for form in forms):  # x = 2 or x = 5
        return Assign(names[0], (Items(tuple(form.values[0] for form in forms)),))
    flat = []
    for form in forms:
        flat += form.items if isinstance(form, Items) else [form]
    return Items(tuple(flat))


def _share_unit(forms):
    """Give the unit at the end to all values, as in `2, 3 and 4 cm`."""
    last = forms[-1]
    if isinstance(last, Measure) and len(last.parts) == 1 and all(isinstance(form, Expr) for form in forms[:-1]):
        _, multiplier, unit = last.parts[0]
        if multiplier == 1:
            return tuple(Measure(((form, 1, unit),)) for form in forms[:-1]) + (last,)
    return forms


def _read_union(text, depth):
    parts, between = split(text, {r"\cup"})
    if not between:
        return None
    forms = _read_all(parts, depth)
    if forms is None:
        return ()
    if all(isinstance(form, Group) and form.opening == r"\{" for form in forms):
        return Group(r"\{", r"\}", tuple(dict.fromkeys(item for form in forms for item in form.items)))
    if isinstance(forms[0], Assign):  # x \in A \cup B
        return Assign(forms[0].name, (Union((forms[0].values[0], *forms[1:])),)) if len(forms[0].values) == 1 else ()
    flat = []
    for form in forms:
        flat += form.parts if isinstance(form, Union) else [form]
    return Union(tuple(flat))


def _read_brackets(text, depth):
    if match := _MATRIX.fullmatch(text):
        if r"\begin" in match[1]:
            return None
        rows = [_read_all(row.split("&"), depth) for row in re.split(r"\\\\", match[1]) if row.strip()]
        if not rows or None in rows or len({len(row) for row in rows}) > 1:
            return ()
        return Matrix(tuple(rows))
    found = tokens(text)
    opening, closing = found[0][0], found[-1][0]
    if opening not in _OPENING or any(depth_ == 0 and end < len(text) for token, _, end, depth_ in found[1:]):
        return None
    if closing not in (")", "]", r"\}", r"\rangle") or ((opening in "([") != (closing in ")]")):
        return None
    inner = text[found[0][2] : found[-1][1]].strip()
    if not inner:
        return Group(opening, closing, ()) if opening == r"\{" else ()
    parts, between = split(inner, {",", ";"})
    if not between and opening != r"\{":
        if opening == "(" and closing == ")" or (opening, closing) == ("[", "]"):
            return read(inner, depth + 1) or ()
        return () if opening != r"\langle" else None
    if opening == r"\{" and (r"\mid" in inner or "|" in inner or " : " in inner):
        return None
    forms = _read_all(parts, depth)
    if forms is None:
        return ()
    if opening == r"\{":
        flat = []
        for form in forms:
            flat += form.items if isinstance(form, Items) else [form]
        return Group(opening, closing, tuple(dict.fromkeys(flat)))
    return Group("(" if opening == r"\langle" else opening, ")" if closing == r"\rangle" else closing, forms)


def _read_sign(text, depth):
    r"""Read `a \pm b` as two values."""
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text) or r"\pmod" in text:
        return None
    plus = re.sub(r"\\pm(?![a-zA-Z])", "+", re.sub(r"\\mp(?![a-zA-Z])", "-", text))
    minus = re.sub(r"\\pm(?![a-zA-Z])", "-", re.sub(r"\\mp(?![a-zA-Z])", "+", text))
    forms = _read_all([re.sub(r"\A\s*\+\s*", "", plus), minus], depth)
    return Items(forms) if forms else ()


def _read_quantity(text, depth):
    return read_quantity(text, read, depth)


def _read_words(text, depth):
    if OPEN not in text:
        if re.fullmatch(r"[A-Z]{2,5}", text):
            return Letters(text)
        return None
    plain = re.sub(rf"[{OPEN}{CLOSE}\"!?*]", " ", text)
    plain = " ".join(plain.replace(".", " ").split()).lower()
    if re.fullmatch(rf"{OPEN}[A-Z]{{2,5}}{CLOSE}", text):
        return Letters(text[1:-1])
    if (value := units.number_word(plain)) is not None:
        return Expr(str(value))
    if plain in ("all real numbers", "all reals", "the real numbers", "real numbers"):
        return REALS
    if not re.fullmatch(r"[a-z][a-z0-9' \-/]*", plain) or len(plain.split()) > MAX_WORDS:
        return ()
    if re.search(r"[0-9]", plain) and not re.fullmatch(r"[a-z' \-]+ [0-9]{1,4}(?:st|nd|rd|th)?", plain):
        return ()
    return Words(re.sub(r"\A(?:the|a|an) (?=\w)", "", plain))


def _read_expression(text):
    if text == r"\ldots":
        return Words("...")
    if text in (r"\mathbb{R}",):
        return REALS
    if text == r"\emptyset":
        return Group(r"\{", r"\}", ())
    if re.search(r"[0-9] ?_|! ?!", text):  # 5_{100} is not 5; the grammar reads 29!! as the factorial of 29!
        return None
    told = re.sub(r"\\lim ?_ ?\{[^{}]*\}", "", text)
    if re.search(r"\\ldots|[0-9)}\]] ?'|\\(?:to|Rightarrow|rightarrow|implies|mid|not|cancel)(?![a-zA-Z])", told):
        return None
    if (
        OPEN in text
        or CLOSE in text
        or _SIDE_BY_SIDE.search(re.sub(r"\\begin.*?\\end\{\w+\}", "", text))
        or '"' in text
    ):
        return None
    text = re.sub(r"\A\+\s*", "", text)
    return Expr(text.strip()) if re.search(r"[0-9A-Za-z]", text) else None
