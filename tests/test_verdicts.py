"""Verdicts on the kinds of answers that graders get wrong: see verdict_pairs.py."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from verdict_pairs import RIGHT, RIGHT_TEXTS, WRONG, WRONG_TEXTS

from ccpo.team.answers import DEFAULT_READER, gold_answer
from ccpo.verifier.judging import notation, units, values
from ccpo.verifier.judging.forms import Expr, Items, Measure, Percent, Words
from ccpo.verifier.judging.reading import read
from ccpo.verifier.math_verifier import MathVerifier

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "math_pairs.jsonl"


@pytest.fixture(scope="module")
def verifier():
    return MathVerifier(num_workers=2)


def wrongly_judged(verifier, pairs, expected):
    scores = verifier.score(gold=[gold for gold, _ in pairs], prediction=[text for _, text in pairs])
    return [pair for pair, score in zip(pairs, scores, strict=True) if score != expected]


@pytest.mark.parametrize(("boxed", "texts", "expected"), [(RIGHT, RIGHT_TEXTS, 1.0), (WRONG, WRONG_TEXTS, -1.0)])
def test_answers_of_every_kind(verifier, boxed, texts, expected):
    pairs = [(gold, rf"\boxed{{{answer}}}") for gold, answers in boxed.items() for answer in answers]
    pairs += [(gold, text) for gold, answers in texts.items() for text in answers]
    assert len(pairs) > 500
    assert wrongly_judged(verifier, pairs, expected) == []


def judge(pairs):
    """Verdicts of the judge alone, without the worker's pipes and timers; it changes SymPy for its whole process."""
    from ccpo.verifier.judging.worker import build_judge, visible

    read_gold, is_right = build_judge()
    verdicts = []
    for pair in pairs:
        gold_text, text = visible(*pair)
        gold = read_gold(gold_text)
        verdicts.append(gold is not None and (text == gold_text or is_right(gold, text)))
    return verdicts


def test_the_judge_alone():
    """In a child that coverage follows, as it cannot follow workers that end by a signal."""
    boxed = [
        (gold, answer, same)
        for same, table in ((True, RIGHT), (False, WRONG))
        for gold in table
        for answer in table[gold]
    ]
    pairs = [(gold_answer(gold), DEFAULT_READER.extract(rf"\boxed{{{answer}}}") or "") for gold, answer, _ in boxed]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        verdicts = pool.submit(judge, pairs).result()
    assert [case for case, verdict in zip(boxed, verdicts, strict=True) if verdict != case[2]] == []


def test_hard_pairs(verifier):
    if not CASES.exists():
        pytest.skip(f"{CASES} is not there")
    rows = [json.loads(line) for line in CASES.open(encoding="utf-8")]
    scores = verifier.score(gold=[row["gold"] for row in rows], prediction=[row["prediction"] for row in rows])
    wrong = [(row, score) for row, score in zip(rows, scores, strict=True) if score != row["expected"]]
    assert [row for row, score in wrong if score == 1.0] == []
    assert len(wrong) <= 8 * len(rows) / 222, wrong


@pytest.mark.parametrize(
    ("rule", "text", "result"),
    [
        (notation.signs, "√½−2²∞≤", r"\sqrt \frac{1}{2}-2^{2}\infty \le "),
        (notation.signs, "５\u200b６", "56"),
        (notation.spaces, r"\left( 1,\!000 \;\right)", "( 1000   )"),
        (notation.exponents, "1e-05 and e-5", r"1 \times 10^{-5} and e-5"),
        (notation.digit_groups, "1 250 000", "1250000"),
        (notation.digit_groups, "1,250.75", "1250.75"),
        (notation.digit_groups, "(20,100)", "(20,100)"),
        (notation.digit_groups, "101,103", "101,103"),
        (notation.digit_groups, "3 4", "3 4"),
        (notation.repeating, r"0.\overline{27}", r"\frac{27}{99}"),
        (notation.repeating, r"0.1666\ldots", r"\frac{15}{90}"),
        (notation.mixed_numbers, r"-3\frac{1}{4}", r"-\frac{13}{4}"),
        (notation.mixed_numbers, r"3\frac{5}{4}", r"3\frac{5}{4}"),
        (
            notation.arguments,
            r"\frac12 \sqrt3 \frac 3 8 {5 \over 8}",
            r"\frac{1}{2} \sqrt{3} \frac{3}{8} \frac{5 }{ 8}",
        ),
        (notation.relations, r"x \leq 3 != 4", r"x \le  3 \ne  4"),
        (notation.ending, "{73}.", "73"),
    ],
)
def test_one_rule_of_notation(rule, text, result):
    assert rule(text) == result


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("7", Expr("7")),
        ("35%", Percent(Expr("35"))),
        (r"12 \text{ cm}", Measure(((Expr("12"), 1, units.parse_unit("cm")),))),
        ("2 and 3", Items((Expr("2"), Expr("3")))),
        (r"\text{The East}", Words("east")),
        ("3 4", None),
        (r"7 \text{ maybe}", None),
        ("(7", None),
        ("", None),
    ],
)
def test_what_a_text_is_read_as(text, form):
    assert read(notation.normalize(text)) == form


@pytest.mark.parametrize(
    "phrase",
    ["maybe", "or so", "million apples", "not apples", "squared", "tenths", "halves", "times", "wrong answers", "x"],
)
def test_what_is_no_unit(phrase):
    assert units.parse_unit(phrase) is None


def test_units_have_a_size_and_a_dimension():
    assert units.parse_unit("sq. inches") == units.parse_unit("in^2") == units.parse_unit("square inch")
    assert units.parse_unit("mph") == units.parse_unit("miles per hour") == units.parse_unit("mi/h")
    assert units.parse_unit("apples") != units.parse_unit("pears")
    assert units.number_word("twenty-four") == 24 and units.number_word("no") is None


@pytest.mark.parametrize(
    ("exact", "decimal", "same"),
    [
        (r"\frac{1}{3}", "0.333333", True),
        (r"\frac{2}{3}", "0.666667", True),
        (r"\frac{1}{3}", "0.33333", False),
        (r"\frac{1}{3}", "0.333334", False),
        (r"\frac{1}{10000000}", "0.000000", False),
        (r"\frac{1}{300000}", "0.000003", False),
        (r"\frac{1}{300000}", r"3.33333 \times 10^{-6}", True),
        ("123456.75", "123456.7", False),
        ("0.0000002", "0.0000004", False),
    ],
)
def test_a_decimal_stands_for_what_it_is_rounded_from(exact, decimal, same):
    assert values.same_numbers(values.numeral(exact), values.numeral(decimal)) is same


@pytest.mark.parametrize("text", ["\\", "1,\\", r"\{1,\\", "]", "\ue000", "5 \ue001 \\"])
def test_what_is_no_latex_is_read_as_nothing_and_kills_no_worker(text):
    assert read(text) is None and read(notation.normalize(text)) in (None, Expr("1"), Expr("5"))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r"\{1, 2\} \cap \{2\}", r"\{2\}"),
        (r"\{1, 2\} \setminus \{2\}", r"\{1\}"),
        (r"\mathbb{R} \setminus \{2, 1\}", r"(-\infty, 1) \cup (1, 2) \cup (2, \infty)"),
        (r"\mathbb{R} \setminus (-1, 2]", r"(-\infty, -1] \cup (2, \infty)"),
        (r"\{1, x\} \cap \{2\}", ""),
        (r"[0, 2] \setminus \{2\}", ""),
    ],
)
def test_sets_are_worked_out_where_their_elements_are_numbers(text, form):
    assert read(notation.normalize(text)) == read(notation.normalize(form))
