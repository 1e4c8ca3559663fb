"""Convert forms for a comparison: to a total, to a time of day, or to values without names."""

import re
from fractions import Fraction

from .forms import Assign, Expr, Relation
from .values import is_constant, numeral

NEVER = Relation(("0", "1"), ("=", "="))


def plain(text):
    return re.sub("['\\s-]", "", text)


def same_name(first, second):
    first, second = first.lower(), second.lower()
    return (
        first == second
        or {first, second} == {"y", "f(x)"}
        or "(" not in first + second
        and max(len(first), len(second)) > 3
        and min(len(first), len(second)) == 1
    )


def as_relation(form):
    """Turn an assignment into a relation if its value has variables; else into one that equals no other."""
    if isinstance(form, Assign) and len(form.values) == 1 and isinstance(form.values[0], Expr) and form.name:
        if is_constant(form.values[0].latex):  # x = 4 is solved, 2x + 3 = 11 is not
            return NEVER
        name = "y" if "(" in form.name else form.name
        return Relation((name, form.values[0].latex), ("=",))
    return form if isinstance(form, Relation) else NEVER


def on_24_hours(clock):
    hour, *rest = clock.time
    if clock.half:
        return hour % 12 + 12 * (clock.half == "pm"), *rest
    return (hour, *rest) if hour > 12 else None


def scaled(part, with_unit):
    value, multiplier, unit = part
    factor = multiplier * (unit[0] if with_unit and unit else 1)
    number = numeral(value.latex)
    if factor == 1:
        return value
    if number is not None:
        product = number.value * factor
        return Expr(rf"\frac{{{product.numerator}}}{{{product.denominator}}}")
    factor = Fraction(factor)
    return Expr(rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} \cdot ({value.latex})")


def total(parts, with_unit):
    values = [scaled(part, with_unit) for part in parts]
    if len(values) == 1:
        return values[0]
    numbers = [numeral(value.latex) for value in values]
    if None in numbers:
        return None
    amount = sum(number.value for number in numbers)
    return Expr(rf"\frac{{{amount.numerator}}}{{{amount.denominator}}}")


def are_assignments(items):
    return all(isinstance(item, Assign) and item.name for item in items)


def values_of(items):
    if not are_assignments(items):
        return items
    return tuple(item.values[0] for item in items)
