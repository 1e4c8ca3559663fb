"""Give numbers one spelling: e-notation, digit groups, repeating decimals and mixed numbers."""

import re

_BLANK_GROUPS = re.compile(
    r"(?<![0-9.,\\])(?<![0-9] )[1-9][0-9]{0,2}(?:(?: [0-9]{3})+|(?:'[0-9]{3})+)(?![0-9']| [0-9])"
)
_COMMA_GROUPS = re.compile(
    r"(?<![0-9.,])(?:[1-9][0-9]?(?:,[0-9]{3})+|[1-9][0-9]{2}(?:,[0-9]{3})+(?=\.[0-9]))(?![0-9,])"
)
_NUMERAL = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"


def exponents(text):
    """Rewrite scientific notation as calculators and JSON write it: `1e-05`, `2.5E8`."""
    return re.sub(
        rf"(?<![0-9A-Za-z.\\])({_NUMERAL})[eE]([+-]?)0*([0-9]{{1,4}})(?![0-9A-Za-z.^_(\\])",
        lambda m: rf"{m[1]} \times 10^{{{'-' if m[2] == '-' else ''}{m[3]}}}",
        text,
    )


def digit_groups(text):
    """
    Remove the separators in `1 250 000`, `1'250'000` and `1,250.75`.

    Commas in brackets, `(20,100)`, and between equal groups of three, `101,103`, may separate a list, so they stay.
    """
    text = _BLANK_GROUPS.sub(lambda m: re.sub("[ ']", "", m.group()), text)
    depth, parts = 0, []
    for part in re.split(r"(\\[{}]|[()\[\]])", text):
        depth += (part in ("(", "[", r"\{")) - (part in (")", "]", r"\}"))
        parts.append(part if depth else _COMMA_GROUPS.sub(lambda m: m.group().replace(",", ""), part))
    return "".join(parts)


def repeating(text):
    r"""Turn `0.\overline{27}`, `0.(3)` and `0.333\ldots` into fractions."""
    text = re.sub(
        r"(?<![0-9.])([0-9]*)\.([0-9]{0,20})(?:\\(?:overline|bar|dot)\s*\{?\s*([0-9]{1,20})\s*\}?|\(([0-9]{1,20})\))(?![0-9])",
        lambda m: _fraction(m[1], m[2], m[3] or m[4]),
        text,
    )

    def dotted(match):
        whole, digits = match[1], match[2]
        for size in range(1, 7):
            head, block = digits[:-size], digits[-size:]
            repeats = 1
            while head.endswith(block):
                head, repeats = head[:-size], repeats + 1
            if repeats * size >= 3 and repeats >= 2 and len(head) <= 4 and set(block) != {"0"}:
                return _fraction(whole, head, block)
        return match.group()

    return re.sub(r"(?<![0-9.])([0-9]*)\.([0-9]{3,40})\s?\\ldots(?! ?[0-9,])", dotted, text)


def _fraction(whole, head, block):
    """A fraction that is not reduced: the nines and zeros of its denominator show the length of the period."""
    bottom = (10 ** len(block) - 1) * 10 ** len(head)
    top = int((whole or "0") + head) * (10 ** len(block) - 1) + int(block)
    return rf"\frac{{{top}}}{{{bottom}}}"


def mixed_numbers(text):
    r"""Turn `3\frac{1}{4}` and `3 1/4`, with their sign, into one number, if the fraction is below 1."""

    def mixed(match):
        whole, top, bottom = int(match[2]), int(match[3] or match[5]), int(match[4] or match[6])
        if not 0 < top < bottom:
            return match.group()
        return rf"{match[1]}\frac{{{whole * bottom + top}}}{{{bottom}}}"

    return re.sub(
        r"(?<![0-9.,^_}])(?<![0-9] )(-?\s?)([0-9]{1,9})(?:\s?\\frac\{([0-9]{1,9})\}\{([0-9]{1,9})\}"
        r"|[ -]([0-9]{1,9})/([0-9]{1,9})(?![0-9/.]))",
        mixed,
        text,
    )
