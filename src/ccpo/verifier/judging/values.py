"""
Decide whether two expressions have the same value.

Exact numbers are compared first, then values with many digits. If this does not decide, math-verify does.
"""

import random
import re
from fractions import Fraction
from functools import lru_cache

from .scan import CLOSE, OPEN

DIGITS = 50  # how many digits a numeric comparison uses
MAX_EXPONENT = 400
_INTEGER = r"-?\s?[0-9]+"
_PLAIN = re.compile(r"(-?) ?(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))")
_FRACTION = re.compile(rf"(-?) ?\\frac ?\{{ ?({_INTEGER}) ?\}} ?\{{ ?({_INTEGER}) ?\}}|({_INTEGER}) ?/ ?([0-9]+)")
_SCIENTIFIC = re.compile(r"(.*?)(?: ?(?:\\times|\\cdot|\*) ?)?10 ?\^ ?(?:\{ ?([-+]?[0-9]{1,4}) ?\}|([0-9]))")


class Numeral:
    """
    An exact number as it is written.

    It has a value, the number of its decimals if it is a decimal, and the length of its period if it is a repeating
    decimal, which is written as a fraction over nines and zeros.
    """

    def __init__(self, value, decimals=None, digits=0, period=0):
        self.value, self.decimals, self.digits, self.period = value, decimals, digits, period


@lru_cache(maxsize=8192)
def numeral(text):
    """Read a plain number: an integer, a decimal, a fraction or scientific notation. `None` for any other text."""
    if text.startswith("(") and text.endswith(")") and "(" not in text[1:] and ")" not in text[:-1]:
        text = text[1:-1]
    text = text.strip()
    if len(text) > 1000:
        return None
    if match := _PLAIN.fullmatch(text):
        whole, part = match[2] or "0", match[3] if match[2] else match[4]
        value = Fraction(int(whole + (part or "")), 10 ** len(part or ""))
        digits = len((whole + (part or "")).lstrip("0"))
        return Numeral(-value if match[1] else value, len(part) if part else None, digits)
    if match := _FRACTION.fullmatch(text):
        top, bottom = (
            int(group.replace(" ", "")) for group in ((match[2], match[3]) if match[2] else (match[4], match[5]))
        )
        period = len(str(bottom)) if re.fullmatch("9+0*", str(bottom)) else 0
        return Numeral(Fraction(-top if match[1] else top, bottom), period=period) if bottom else None
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = int(match[2] or match[3])
        head = match[1].strip()
        if abs(exponent) > MAX_EXPONENT or (
            head and (head[-1] in "^_({" or not re.search(r"\\times|\\cdot|\*", text))
        ):
            return None
        mantissa = Numeral(Fraction(-1 if head == "-" else 1)) if head in ("", "-") else numeral(head)
        if mantissa is None:
            return None
        decimals = None if mantissa.decimals is None else mantissa.decimals - exponent
        return Numeral(mantissa.value * Fraction(10) ** exponent, decimals, mantissa.digits)
    return None


def is_constant(text):
    """Whether an expression has no variable. e and i are not variables."""
    bare = re.sub(
        rf"\\(?:frac|sqrt|pi|cdot|times|%|binom|ln|log|sin|cos|tan|infty)(?![a-z])|{OPEN}[^{CLOSE}]*{CLOSE}", "", text
    )
    return not re.search(r"[a-df-hj-zA-Z\\]", bare)


def is_rounding(exact, decimal):
    """
    Whether a decimal is an exact value that was rounded or cut, and is long enough to count as this value.

    It must have seven digits, or six decimals if the value is not small. The comparison is relative, so that a small
    value is not taken for zero.
    """
    if decimal.decimals is None or not exact or not decimal.value:
        return False
    enough = decimal.digits >= 7 or (
        decimal.decimals >= 6 and (decimal.digits >= 6 or (decimal.digits >= 4 and abs(exact) >= Fraction(1, 1000)))
    )
    step = Fraction(10) ** -decimal.decimals
    error = abs(exact) - abs(decimal.value)
    if (exact > 0) != (decimal.value > 0):
        return False
    return (enough and -step / 2 <= error < step) or (
        decimal.digits >= 15 and abs(error) <= abs(exact) * Fraction(1, 10**13)
    )


def same_numbers(first, second):
    """Whether two numerals are equal, or one is the other rounded. Decimals may be rounded to six or more decimals."""
    if first.value == second.value:
        return True
    for exact, decimal in (first, second), (second, first):
        ends = exact.decimals is not None or exact.value.denominator == 1
        if exact.period and exact.period == decimal.decimals:  # 0.142857 may be 0.\overline{142857} without its bar
            continue
        if (not ends or (decimal.decimals or 0) >= 6) and is_rounding(exact.value, decimal):
            return True
    return False


def build_values(parse, verify):
    """
    Build the functions that compare expressions.

    Args:
        parse (`Callable`): Turns LaTeX into a SymPy object, or `None`.
        verify (`Callable`): math-verify's comparison of two SymPy objects.

    Returns:
        `tuple`: The functions `is_defined(latex)`, `equal(gold, answer)` and `same_relation(gold, answer)`.
    """
    from sympy import Expr, I, Rational, nan, oo, zoo

    number_points = random.Random(0)
    points = [Rational(number_points.randint(11, 399), number_points.choice((101, 103, 107, 109))) for _ in range(64)]

    @lru_cache(maxsize=4096)
    def value(latex):
        """The SymPy object with all operations carried out, or `None` if it has no value."""
        found = parse(latex)
        if found is None:
            return None
        try:
            done = found.doit()
        except Exception:  # SymPy's relations and sets have no value
            return found
        if not isinstance(done, Expr):
            return found
        if done in (nan, zoo) or (done.is_number and done.evalf(5) in (nan, zoo)):
            return None
        return done

    def is_defined(latex):
        return numeral(latex) is not None or value(latex) is not None

    def fraction(expression):
        return Fraction(int(expression.p), int(expression.q)) if expression.is_Rational else None

    def approximate(expression, names, shift):
        at = {
            name: points[(index + 7 * shift) % 64] * (-1) ** ((index + shift) % (2 + shift))
            for index, name in enumerate(names)
        }
        number = expression.subs(at).evalf(DIGITS)
        real, imaginary = number.as_real_imag()
        if not (real.is_Float or real.is_Integer or real.is_Rational) or not (
            imaginary.is_number and imaginary.is_comparable
        ):
            raise ValueError("no number")
        return number

    def near(first, second):
        if first == second:
            return True
        size = max(abs(first), abs(second))
        return bool(abs(first - second) <= size * Rational(1, 10 ** (DIGITS - 15)))

    def compare(first, second):
        """`True` or `False` if numbers decide, else `None`."""
        if first == second:
            return True
        if not (isinstance(first, Expr) and isinstance(second, Expr)):
            return None
        exact = fraction(first), fraction(second)
        if None not in exact:
            return exact[0] == exact[1]
        if first in (oo, -oo) or second in (oo, -oo):
            return False
        names = sorted(first.free_symbols | second.free_symbols, key=str)
        try:
            for shift in range(4 if names else 1):
                if not near(approximate(first, names, shift), approximate(second, names, shift)):
                    return False
        except Exception:  # infinite sums or functions without a value; SymPy may raise any exception
            return None
        return True

    def imaginary(expression):
        """Take the letter i for the imaginary unit if it is the only letter."""
        names = expression.free_symbols if isinstance(expression, Expr) else ()
        return expression.subs(dict.fromkeys(names, I)) if [name.name for name in names] == ["i"] else expression

    def is_same(first, second):
        found = compare(first, second)
        return bool(verify(first, second)) if found is None else found

    @lru_cache(maxsize=4096)
    def equal(gold, answer):
        if gold == answer:
            return True
        numerals = numeral(gold), numeral(answer)
        if None not in numerals:
            return same_numbers(*numerals)
        objects = value(gold), value(answer)
        if None in objects:
            return False
        if is_same(*objects) or is_same(*map(imaginary, objects)):
            return True
        for decimal, other in (numerals[0], objects[1]), (numerals[1], objects[0]):
            if decimal is not None and decimal.decimals and isinstance(other, Expr) and other.is_number:
                number = other.evalf(DIGITS)
                if number.is_Float and is_rounding(Fraction(str(number)), decimal):
                    return True
        return False

    def same_relation(gold, answer):
        """Whether two equations or inequalities have the same sign, and sides in proportion."""
        if gold == answer:
            return True
        if len(gold.signs) != 1 or len(answer.signs) != 1:
            return False
        sides = [value(side) for side in (*gold.sides, *answer.sides)]
        if any(not isinstance(side, Expr) for side in sides):
            return False
        first, second = sides[0] - sides[1], sides[2] - sides[3]
        swap = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
        if compare(first, second) and gold.signs == answer.signs:
            return True
        if compare(first, -second) and swap.get(gold.signs[0], gold.signs[0]) == answer.signs[0]:
            return True
        try:
            names = sorted(first.free_symbols | second.free_symbols, key=str)
            ratios = [approximate(first, names, shift) / approximate(second, names, shift) for shift in range(4)]
            if not names or not all(near(ratios[0], ratio) for ratio in ratios[1:]):
                return False
            sign = answer.signs[0] if ratios[0] > 0 else swap.get(answer.signs[0], answer.signs[0])
            return gold.signs[0] == sign
        except Exception:  # SymPy may raise any exception; the two count as different then
            return False

    return is_defined, equal, same_relation
