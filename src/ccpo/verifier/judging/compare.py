"""
Decide whether two forms are the same answer.

A form is the structure of an answer, see `forms`. There is a function for each kind of form. Whatever none of them
finds equal is not equal.
"""

from . import units
from .conversions import are_assignments, as_relation, on_24_hours, plain, same_name, scaled, total, values_of
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
    Relation,
    Union,
    Words,
)  # fmt: skip
from .values import numeral


class Judge:
    """
    Compares forms.

    Args:
        is_defined (`Callable`): Whether the grammar can read an expression, and the expression has a value.
        equal (`Callable`): Whether two expressions have the same value.
        same_relation (`Callable`): Whether two relations are the same.
    """

    def __init__(self, is_defined, equal, same_relation):
        self.is_defined, self.equal_latex, self.same_relation = is_defined, equal, same_relation

    def is_readable(self, form):
        """Whether every expression in the form can be read."""
        match form:
            case Expr(latex):
                return self.is_defined(latex)
            case Words() | Letters() | Based() | Clock():
                return True
            case Option(_, content):
                return content is None or self.is_readable(content)
            case Percent(value):
                return self.is_readable(value)
            case Measure(parts):
                return all(self.is_readable(value) for value, *_ in parts)
            case Relation(sides):
                return all(map(self.is_defined, sides))
            case Ratio(children) | Items(children) | Union(children) | Assign(_, children) | Group(_, _, children):
                return all(map(self.is_readable, children))
            case Either(readings):
                return any(map(self.is_readable, readings))
            case Matrix(rows):
                return all(self.is_readable(item) for row in rows for item in row)
        return False

    def same(self, gold, answer):
        """Whether the answer is the gold answer."""
        if gold == answer:
            return True
        if isinstance(gold, Either):
            return any(self.same(reading, answer) for reading in gold.readings)
        if isinstance(answer, Either):
            return any(self.same(gold, reading) for reading in answer.readings)
        if isinstance(gold, Assign) or isinstance(answer, Assign):
            return self._same_assigned(gold, answer)
        if isinstance(gold, Option) or isinstance(answer, Option):
            return self._same_option(gold, answer)
        if isinstance(gold, Clock) or isinstance(answer, Clock):
            return self._same_time(gold, answer)
        if isinstance(gold, Letters) or isinstance(answer, Letters):
            return self._same_letters(gold, answer)
        if isinstance(gold, Based) or isinstance(answer, Based):
            return self._same_based(gold, answer)
        for kinds, method in (
            ((Percent,), self._same_percent),
            ((Measure,), self._same_measure),
            ((Ratio,), self._same_ratio),
            ((Matrix,), self._same_matrix),
            ((Union,), self._same_union),
            ((Group, Items), self._same_items),
        ):
            if isinstance(gold, kinds) or isinstance(answer, kinds):
                return method(gold, answer)
        match gold, answer:
            case Expr(first), Expr(second):
                return self.equal_latex(first, second)
            case Words(first), Words(second):
                return plain(first) == plain(second)
            case Relation(), Relation():
                return self.same_relation(gold, answer)
        return False

    def _value(self, form):
        """The value of a form as an exact fraction, or `None` if it has none."""
        number = numeral(form.latex) if isinstance(form, Expr) else None
        return None if number is None else number.value

    def _same_all(self, golds, answers):
        return len(golds) == len(answers) and all(map(self.same, golds, answers))

    def _same_unordered(self, golds, answers):
        left = list(answers)
        if len(golds) != len(left):
            return False
        for gold in golds:
            for index, answer in enumerate(left):
                if self.same(gold, answer):
                    del left[index]
                    break
            else:
                return False
        return True

    def _same_assigned(self, gold, answer):
        names = [form.name if isinstance(form, Assign) else "" for form in (gold, answer)]
        if all(names) and not same_name(*names):
            return False
        if isinstance(gold, Relation) or isinstance(answer, Relation):
            return self.same_relation(*map(as_relation, (gold, answer)))
        values = [form.values if isinstance(form, Assign) else (form,) for form in (gold, answer)]
        if any(isinstance(form, Assign) and not form.name and not self._agree(form.values) for form in (gold, answer)):
            return False
        if not self._agree(values[0]) or not self._agree(values[1]):
            return False
        return any(self.same(value, values[1][0]) for value in values[0])

    def _agree(self, values):
        return all(self.same(values[0], value) for value in values[1:])

    def _same_option(self, gold, answer):
        if isinstance(gold, Option) and isinstance(answer, Option):
            if gold.letter != answer.letter:
                return False
            return None in (gold.content, answer.content) or self.same(gold.content, answer.content)
        option, other = (gold, answer) if isinstance(gold, Option) else (answer, gold)
        if isinstance(other, Expr) and len(other.latex) == 1 and other.latex.isalpha():
            return other.latex.upper() == option.letter
        if option.content is None:
            return False
        return self.same(option.content, other) if option is gold else self.same(other, option.content)

    def _same_time(self, gold, answer):
        if isinstance(gold, Clock) and isinstance(answer, Clock):
            if gold.half == answer.half:
                return gold.time == answer.time
            return "" in (gold.half, answer.half) and on_24_hours(gold) == on_24_hours(answer)
        if isinstance(gold, Clock):
            return False
        return answer.plain is not None and self.same(gold, answer.plain)

    def _same_letters(self, gold, answer):
        texts = []
        for form in (gold, answer):
            match form:
                case Letters(text) | Expr(text) if text.isalpha():
                    texts.append(text.upper())
                case Words(text):
                    texts.append(text.upper())
                case Items(items) if all(isinstance(item, Expr) and len(item.latex) == 1 for item in items):
                    texts.append("".join(item.latex for item in items).upper())
                case _:
                    return False
        first, second = texts
        # BD and DB are the same two options (or the same segment), but HT and TH are different sequences.
        options = len(first) == 2 and set(first) <= set("ABCDEFGH")
        return first == second or (options and sorted(first) == sorted(second))

    def _same_based(self, gold, answer):
        if isinstance(gold, Based) and isinstance(answer, Based):
            return gold == answer
        based, other = (gold, answer) if isinstance(gold, Based) else (answer, gold)
        if based is answer and based.base != 10:  # a number without a base is decimal, so 12_3 is not 12
            return False
        text = (
            other.latex.replace(" ", "") if isinstance(other, Expr) else other.text if isinstance(other, Words) else ""
        )
        return text.lower() == based.digits

    def _same_percent(self, gold, answer):
        if isinstance(gold, Percent) and isinstance(answer, Percent):
            return self.same(gold.value, answer.value)
        percent, other = (gold, answer) if isinstance(gold, Percent) else (answer, gold)
        if not isinstance(other, Expr):
            return False
        share = Expr(rf"\frac{{{percent.value.latex}}}{{100}}")
        number = self._value(percent.value)
        if number is not None:
            number /= 100
            share = Expr(rf"\frac{{{number.numerator}}}{{{number.denominator}}}")
        same = (lambda a, b: self.same(a, b)) if percent is gold else (lambda a, b: self.same(b, a))
        if same(share, other):
            return True
        # The percent sign may be missing. A number without it that is below 1 is taken as the share itself.
        bare = self._value(other)
        left_out = percent is gold or (bare is not None and abs(bare) >= 1)
        return left_out and same(percent.value, other)

    def _same_measure(self, gold, answer):
        measures = [form if isinstance(form, Measure) else Measure(((form, 1, None),)) for form in (gold, answer)]
        if any(not isinstance(value, Expr) for measure in measures for value, *_ in measure.parts):
            return False
        golds, answers = (measure.parts for measure in measures)
        dimensions = [parts[0][2][1] if parts[0][2] else None for parts in (golds, answers)]
        if None in dimensions:  # one of the two has no unit
            if len(golds) > 1 or len(answers) > 1:
                return False
            pair = [scaled(parts[0], False) for parts in (golds, answers)]
            angle, other = pair if dimensions[0] else pair[::-1]
            if (("angle", 1),) in dimensions and r"\pi" in other.latex and numeral(angle.latex):
                return False  # 3.14159265^\circ is not \pi
            return self.same(*pair)
        if not units.same_dimension(*dimensions):
            return False
        if len(golds) == len(answers) and [p[2] for p in golds] == [p[2] for p in answers]:
            return all(self.same(scaled(a, False), scaled(b, False)) for a, b in zip(golds, answers, strict=True))
        with_unit = dimensions[0] == dimensions[1]
        totals = [total(parts, with_unit) for parts in (golds, answers)]
        return None not in totals and self.same(*totals)

    def _same_ratio(self, gold, answer):
        if isinstance(gold, Ratio) and isinstance(answer, Ratio):
            if len(gold.parts) != len(answer.parts):
                return False
            if self._same_all(gold.parts, answer.parts):
                return True
            numbers = [[self._value(part) for part in form.parts] for form in (gold, answer)]
            if None in numbers[0] + numbers[1] or 0 in numbers[0] + numbers[1]:
                return False
            return len({a / b for a, b in zip(*numbers, strict=True)}) == 1
        ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
        if len(ratio.parts) != 2 or not all(isinstance(part, Expr) for part in ratio.parts):
            return False
        number = self._value(other)
        if number is not None and number.denominator == 1:
            return False
        quotient = Expr(rf"\frac{{{ratio.parts[0].latex}}}{{{ratio.parts[1].latex}}}")
        return self.same(quotient, other) if ratio is gold else self.same(other, quotient)

    def _same_matrix(self, gold, answer):
        rows = []
        for form in (gold, answer):
            match form:
                case Matrix():
                    rows.append(form.rows)
                case Group("(", ")", items) | Group("[", "]", items) | Items(items):
                    rows.append(tuple((item,) for item in items))
                case _:
                    return False
        if isinstance(gold, Matrix) != isinstance(answer, Matrix):
            rows = [tuple((item,) for item in form[0]) if len(form) == 1 else form for form in rows]
        return self._same_all(*([item for row in form for item in row] for form in rows)) and [*map(len, rows[0])] == [
            *map(len, rows[1])
        ]

    def _same_union(self, gold, answer):
        parts = [form.parts if isinstance(form, Union) else (form,) for form in (gold, answer)]
        if any(isinstance(part, (Items, Expr)) for part in parts[0] + parts[1]):
            return False
        return self._same_unordered(*(self._merge(part) for part in parts))

    def _merge(self, parts):
        """Join neighbouring intervals that touch in a closed end."""
        parts, changed = list(parts), True
        while changed:
            changed = False
            for first in parts:
                for second in parts:
                    if first is second or not all(
                        isinstance(p, Group) and len(p.items) == 2 and p.opening in "([" for p in (first, second)
                    ):
                        continue
                    touching = self.same(first.items[1], second.items[0]) and (
                        first.closing == "]" or second.opening == "["
                    )
                    if touching:
                        parts = [part for part in parts if part is not first and part is not second]
                        parts.append(Group(first.opening, second.closing, (first.items[0], second.items[1])))
                        changed = True
                        break
                if changed:
                    break
        return parts

    def _same_items(self, gold, answer):
        match gold, answer:
            case Items(first), Items(second):
                if are_assignments(first) != are_assignments(second):
                    return self._same_all(values_of(first), values_of(second))
                return self._same_unordered(first, second)
            case Group(r"\{", _, first), Group(r"\{", _, second):
                return self._same_unordered(first, second)
            case Group(opening, closing, first), Group(other_opening, other_closing, second):
                return (opening, closing) == (other_opening, other_closing) and self._same_all(first, second)
            case (Group(r"\{", _, first), Items(second)) | (Items(first), Group(r"\{", _, second)):
                return self._same_unordered(first, second)
            case (Group("(", ")", first), Items(second)) | (Items(first), Group("(", ")", second)):
                return self._same_all(values_of(first), values_of(second))
            case (Group(r"\{", _, (item,)), other):
                return self.same(item, other)
            case (other, Group(r"\{", _, (item,))):
                return self.same(other, item)
            case (Group(r"\{", _, ()), Words(text)) | (Words(text), Group(r"\{", _, ())):
                return text in ("empty set", "no solution", "no solutions", "empty")
        return False
