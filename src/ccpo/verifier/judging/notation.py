r"""
Give signs, fonts, spaces and numerals that can be written in many ways one spelling, in LaTeX.

Each rule is one function. Words are put between `OPEN` and `CLOSE`, whether they were in `\text{}` or not. So `12 cm`
and `12\,\mathrm{cm}` become the same text, and no word is taken for a product of letters. Answers are short
(`MAX_ANSWER`).
"""

import re
import unicodedata

from .numerals import digit_groups, exponents, mixed_numbers, repeating
from .scan import CLOSE, OPEN

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ",
    "•": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
    "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ", "Ω": r"\Omega ", "Δ": r"\Delta ",
    "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≦": r"\le ", "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "⌀": r"\emptyset ",
    "°": r"^\circ ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}",
    "ℂ": r"\mathbb{C}",
    "€": r"\euro ", "£": r"\pounds ", "¥": r"\yen ", "‰": r"\permille ", "√": r"\sqrt ", "∛": r"\sqrt[3]",
    "⟨": r"\langle ",
    "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "…": r"\ldots ", "⋯": r"\ldots ", "≡": r"\equiv ",
    "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "℃": r"^\circ C", "℉": r"^\circ F",
    "，": ",", "；": ";", "：": ":",
    "（": "(", "）": ")", "。": ".", "、": ",", "∖": r"\setminus ", "✓": "", "✔": "", "✅": "", "¢": r"\cents ",
}  # fmt: skip
_FRACTIONS = {char: unicodedata.normalize("NFKC", char).split("⁄") for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_SIGNS |= {char: rf"\frac{{{top}}}{{{bottom}}}" for char, (top, bottom) in _FRACTIONS.items()}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\ue000\ue001]")

_THOUSANDS = re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\,|\{\\,\})\s*(?=[0-9]{3}(?![0-9]))")  # 1,\!200  1{,}200  1\,200
_LAYOUT = re.compile(
    r"\\(?:left|right) ?\.|\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle"
    r"|scriptstyle|limits|nolimits|bf|rm|it|sf|tt"
    r"|normalsize|large|Large|huge|boldmath|mathstrut|strut|centering|checkmark|blacksquare|qed|nonumber|notag|hfill)(?![a-zA-Z])\s?"
    r"|\\(?:(?:[hv]space|label)\*?\s*\{[^{}]*\}|[hv]?phantom\s*(?:\{[^{}]*\}|.))"
)
_SPACE = re.compile(
    r"(\\\\)|\\[,;:!> \n]|\\(?:quad|qquad|enspace|thinspace|medspace|thickspace|space)(?![a-zA-Z])"
    r"|~|[\s\u2000-\u200a]+"
)
_ROW_SKIP = re.compile(r"\\\\\s*\[[0-9.\s]*(?:pt|em|ex|mm|cm|in)\]|\\cr(?![a-zA-Z])")
_ARTICLE = re.compile(r"\A\s*(?:an?|the)\s+(?=(?!and\b)[a-z]{3})", re.IGNORECASE)
_COLOUR = re.compile(r"\\(?:textcolor|color|colorbox)\s*\{[^{}]*\}\s*")
_FONT = re.compile(
    r"\\(?P<command>text(?:bf|it|rm|sf|tt|normal|up|sl|sc|md)?|[mhf]box|boxed|emph|underline|uline|math(?:bf|rm|it|sf|tt|normal|bfit)"
    r"|boldsymbol|bm|pmb|operatorname\*?|ensuremath|mathop|textsuperscript)\s*\{(?P<content>[^{}]*)\}"
)
_FONT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|mbox|math(?:bf|rm|it|sf))\s*(?=\{)")
_FUNCTIONS = frozenset(
    """sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh log ln lg exp lim max min gcd lcm det mod sup
    inf arg deg dim ker""".split()
)
# Letters in a row that are taken for a product of variables, not for a word.
_VARIABLES = re.compile(r"[abcd]{3,4}|[xyzwt]{3,4}|[pqrst]{3}|[klmn]{3}|[uvw]{3}|[ijk]{3}")
_MERIDIEM = re.compile(
    r"(?<=[0-9])\s*(?:\\(?:text\w*|mbox|mathrm)\s*\{\s*([ap])\.?\s?m\.?\s*\}|([ap])\.?\s?m\b\.?)", re.IGNORECASE
)
_SHORT_WORDS = frozenset({"no", "on", "up", "if", "of", "to", "so", "we", "is", "it"})
_ARRAY = re.compile(
    r"[\[(]\s*\\begin\{(?:array|matrix|smallmatrix)\}(?:\s*\{[^{}]*\})?(.*?)\\end\{(?:array|matrix|smallmatrix)\}\s*[\])]",
    re.DOTALL,
)
_NEXT_WORD = re.compile(rf"\s+(?:{OPEN}|[A-Za-z]{{3,}})")
_SHORT_UNITS = frozenset("mgshLl")  # units if they follow a number, such as `\\text{ m}`
_CODES = frozenset({"usd", "eur", "gbp", "mph", "rmb"})
_SEPARATORS = frozenset({"and", "or"})
_COMMAND = re.compile(r"\\[a-zA-Z]+\*?|\\.")
_RUN = re.compile(
    rf"{OPEN}[^{CLOSE}]*{CLOSE}|\\[a-zA-Z]+\*?(?:\s*\{{(?:[A-Za-z]*matrix|cases|array|aligned?\*?|gathered|split)\}})?"
    r"|\\mathbb\s*\{[A-Z]\}|[A-Za-z]{3,}(?:-[A-Za-z]{3,}|'s)*|[A-Za-z]+"
)
_ATOM = r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|[0-9A-Za-z]|\\[a-zA-Z]+)"
_ANGLE = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\^\s*(?:\{[0-9]\}|[0-9]))?)\s*[({]?\s*([0-9]+(?:\.[0-9]+)?)\s*"
    r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))\s*[)}]?"
)
_DEGREES = re.compile(
    r"(?:\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))|\\(?:degree|textdegree)(?![a-zA-Z])"
    r"|(?<=[0-9])\^\{?o\}?(?![a-zA-Z]))\s*(?:\\?([CF])(?![a-zA-Z]))?"
)


def signs(text):
    """Replace Unicode signs by LaTeX, and digits and letters of other widths and fonts by plain ones."""
    text = _INVISIBLE.sub("", text)
    if text.isascii():
        return text
    text = _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m.group()).replace('−', '-')}}}", text)
    text = _LOWERED.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m.group())}}}", text)
    text = _SIGN.sub(lambda m: _SIGNS[m.group()], text)
    return _SIGN.sub(lambda m: _SIGNS[m.group()], unicodedata.normalize("NFKC", text))


def spaces(text):
    r"""Replace dollar signs of mathematics, layout and all kinds of space by one space; join digits of thousands."""
    text = _ROW_SKIP.sub(r"\\\\ ", text)
    text = re.sub(r"\\[()\[\]]|\$\$|(?<!\\)\$(?!\s*[0-9.])|(?<!\\)\$(?=[^$]*\$)|\*\*|__(?=\w)", " ", text)
    text = _THOUSANDS.sub("", text)
    text = re.sub(r"(?<!\\)\\\Z", "", text)  # the backslash of a space that was at the end
    text = _LAYOUT.sub(" ", text).replace(r"\{,\}", ",").replace("{:}", ":").replace("{,}", ",")
    return _SPACE.sub(lambda m: m[1] or " ", text).strip()


def _quote(word):
    return f" {OPEN}{word}{CLOSE} "


def _plain(content):
    """Read the content of `\\text{…}`: single letters stay letters, two or more in a row are words."""

    def word(match):
        run = match.group()
        if run.startswith((OPEN, "\\")) or len(run) == 1:
            return run
        return f" {run} " if run.lower() in _SEPARATORS else _quote(run)

    return _RUN.sub(word, _ARTICLE.sub("", content))


def fonts(text):
    r"""Replace `\mathbf{x}`, `\text{…}`, `\color{red}{5}` and the like by their content, and mark its words."""
    text = _COLOUR.sub("", text)
    for _ in range(32):  # from the inside out

        def content(match):
            inner = match["content"]
            if inner.strip() in _SHORT_UNITS and match["command"] in ("text", "mbox", "mathrm", "textrm"):
                if re.search(r"[0-9}]\s*\Z", match.string[: match.start()]):
                    return _quote(inner.strip())
            if match["command"].startswith("operatorname") and inner.strip() in _FUNCTIONS:
                return f"\\{inner.strip()} "
            plain = _plain(inner)
            return f" {plain}" if match.string[match.start() - 1 : match.start()].isalpha() else plain

        text, count = _FONT.subn(content, text)
        if not count:
            break
    return _FONT_COMMAND.sub("", text)  # those around groups, such as \mathrm{\frac{1}{2}}


def words(text):
    """Mark words without `\\text`: three or more letters in a row, or two that cannot be a product of variables."""

    def word(match):
        run = match.group()
        if run.startswith((OPEN, "\\")):
            return run
        lower = run.lower()
        if lower in _SEPARATORS:
            return f" {run} "
        if lower in _FUNCTIONS:
            return f"\\{lower} "
        if lower in ("pi", "infty", "infinity", "sqrt", "theta"):
            return rf"\{'infty' if lower == 'infinity' else lower} "
        if lower in _SHORT_WORDS and (text.strip() == run or _NEXT_WORD.match(text, match.end())):
            return _quote(run)
        if len(run) < 3 or _VARIABLES.fullmatch(run) or (run.isupper() and is_mixed and lower not in _CODES):
            return run
        return _quote(run)

    is_mixed = not text.replace(" ", "").isalpha()  # then capitals are points, as in \triangle ABC

    return _RUN.sub(word, text)


def join_words(text):
    """Join neighbouring words into one phrase. `p.m.` is a word, and the dot of an abbreviation is removed."""
    text = re.sub(rf"{CLOSE}\s?\.(?=\s*(?:{OPEN}|\Z))", CLOSE, text)
    text = re.sub(rf"{CLOSE}[\s]*{OPEN}", " ", text)
    text = re.sub(rf"{OPEN}\s+", OPEN, re.sub(rf"\s+{CLOSE}", CLOSE, text))
    return re.sub(r"\s+", " ", text).strip()


def meridiem(text):
    r"""Turn `p.m.`, `PM` or `\text{ pm}` after a digit into one word."""
    return _MERIDIEM.sub(lambda m: _quote((m[1] or m[2]).lower() + "m"), text)


def percent(text):
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    return re.sub(
        rf"{OPEN}(?:percent|percentage(?: points?)?|pct|per cent)\.?{CLOSE}|\b(?:percent|per cent|pct)\b\.?",
        r"\\%",
        text,
        flags=re.IGNORECASE,
    )


def degrees(text):
    """A degree sign after a value is a unit, and after a function's argument an angle. Elsewhere it is removed."""
    text = _ANGLE.sub(r"\1{(\2\\pi /180)}", text)
    return _DEGREES.sub(_degree, text)


def _degree(match):
    scale = {"C": "celsius", "F": "fahrenheit"}.get(match[1], "degrees")
    inside = re.match(r"\s*(?:[-+*/^)\]\\]|\}[\s}]*[^\s},.;])", match.string[match.end() :])
    return " " if inside and scale == "degrees" else _quote(scale)


def relations(text):
    text = re.sub(r"\\(?:leqslant|leqq|leq|le)(?![a-zA-Z])|<=|=<", r"\\le ", text)
    text = re.sub(r"\\(?:geqslant|geqq|geq|ge)(?![a-zA-Z])|>=|=>", r"\\ge ", text)
    text = re.sub(r"\\(?:neq|ne|not\s*=)(?![a-zA-Z])|!=", r"\\ne ", text)
    text = re.sub(r"\\lt(?![a-zA-Z])|&lt;", "<", re.sub(r"\\gt(?![a-zA-Z])|&gt;", ">", text))
    return re.sub(r"\\(?:approx|simeq|approxeq|doteq)(?![a-zA-Z])|\A\s*\\sim(?![a-zA-Z])", r"\\approx ", text)


def synonyms(text):
    r"""Replace other names of a command, and other delimiters."""
    text = re.sub(r"\\(?:[dtc]frac)(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset ", text)
    text = re.sub(r"\\(?:dots[cbmio]?|cdots|ldots)(?![a-zA-Z])|\.\.\.+", r"\\ldots ", text)
    text = re.sub(r"\\(?:lbrace|lbrack)(?![a-zA-Z])", lambda m: r"\{" if "brace" in m.group() else "[", text)
    text = re.sub(r"\\(?:rbrace|rbrack)(?![a-zA-Z])", lambda m: r"\}" if "brace" in m.group() else "]", text)
    text = re.sub(r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|", text)
    text = re.sub(r"\\(?:colon|ratio)(?![a-zA-Z])", ":", text)
    text = re.sub(r"\\(?:land|wedge)(?![a-zA-Z])", " and ", re.sub(r"\\(?:lor|vee)(?![a-zA-Z])", " or ", text))
    text = re.sub(r"\\mathbb\s*R(?![a-zA-Z])|\\R(?![a-zA-Z])|\\Reals(?![a-zA-Z])", r"\\mathbb{R}", text)
    text = re.sub(r"\\(?:imath|jmath)(?![a-zA-Z])", lambda m: m.group()[1], text)
    text = re.sub(
        r"\\(?:wide)?(?:hat|vec)\s*(?:\{\s*(?:\\math[a-z]+\s*)?\{?([ijk])\}?\s*\}|([ijk])(?![a-zA-Z]))",
        r"\1\2",
        text,
    )
    text = re.sub(r"\\vec\s*\{\s*([a-zA-Z])\s*\}", r" \1 ", text)
    text = re.sub(r"\\lg(?![a-zA-Z])", r"\\log_{10}", text).replace(r"\&", " and ")
    text = re.sub(r"([\[\]])(\s*[^][(){},\s][^][(){},]*,\s*[^][(){},\s][^][(){},]*)([\[\]])", _interval, text)
    text = re.sub(r"\\(?:bigcup)(?![a-zA-Z])", r"\\cup ", text)
    return re.sub(r"(?<![a-zA-Z\\])U(?=\s*[\[(])(?<=[\])] U)", r"\\cup ", text)


def _interval(match):
    """Turn `]1, 2[` into `(1, 2)`."""
    return f"{'(' if match[1] == ']' else '['}{match[2]}{')' if match[3] == '[' else ']'}"


def matrices(text):
    """Turn an array in brackets into a matrix."""
    return _ARRAY.sub(r"\\begin{bmatrix}\1\\end{bmatrix}", text)


def arguments(text):
    r"""Add the braces in `\frac12`, `\frac 3 8`, `{5 \over 8}`, `\sqrt3` and `\sqrt(3)`."""
    text = re.sub(r"\{([^{}]*?)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(rf"\\frac\s*({_ATOM})\s*({_ATOM})", lambda m: rf"\frac{_braced(m[1])}{_braced(m[2])}", text)
    text = re.sub(rf"\\[dt]?binom\s*({_ATOM})\s*({_ATOM})", lambda m: rf"\binom{_braced(m[1])}{_braced(m[2])}", text)
    text = re.sub(r"\{([^{}]*?)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}", text)
    text = re.sub(
        r"\\log\s*_\s*(?:\{([^{}]*)\}|([0-9a-z]))\s*([0-9]+(?:\.[0-9]+)?)(?![0-9.])", r"\\log_{\1\2}{(\3)}", text
    )
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt(\s*\[[^\]]*\])?\s*([0-9]+|[a-zA-Z]|\\pi)", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\^\s*\(([-+0-9a-zA-Z/]*)\)", r"^{\1}", text)
    return re.sub(r"\^\s*(-[0-9]+|[0-9]{2,})", r"^{\1}", text.replace("**", "^"))


def _braced(atom):
    return atom if atom.startswith("{") else f"{{{atom}}}"


def ending(text):
    """Remove punctuation at the end of a sentence, and braces around the whole text."""
    while True:
        before = text
        text = re.sub(r"(?<!\\)(?:\s*[.,;:])+\s*\Z", "", text).strip()
        if text.startswith("{") and text.endswith("}") and _closes(text):
            text = text[1:-1].strip()
        if text == before:
            return text


def _closes(text):
    """Whether the first brace of the text is closed by the last one."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text):
        depth += (match.group() == "{") - (match.group() == "}")
        if depth == 0 and match.group() == "}":
            return match.end() == len(text)
    return False


RULES = (
    signs, spaces, percent, matrices, synonyms, relations, meridiem, fonts, words, degrees, join_words,
    percent, arguments, exponents, digit_groups, repeating, mixed_numbers, ending,
)  # fmt: skip


def normalize(text):
    """The text in the spelling that [`~ccpo.verifier.judging.reading`] reads."""
    for rule in RULES:
        text = rule(text)
    return text
