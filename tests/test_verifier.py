"""MathVerifier: verdicts, data sets, hostile input, time, processes."""

import copy
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from ccpo.team import answers
from ccpo.verifier import pool as pool_module
from ccpo.verifier.judging import worker
from ccpo.verifier.math_verifier import MathVerifier

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SOURCE = str(Path(pool_module.__file__).resolve().parents[1])
NAN = math.nan
BOOTSTRAP = pool_module._BOOTSTRAP
HALF = r"\frac{1}{2}"  # a gold answer that needs a worker, unlike a plain integer
TOWER = "9^{9^{9^{9}}}"
PARENTHESES = "1+(" * 150 + "1" + ")" * 150  # half a minute for the grammar
RADICALS = r"\sqrt{2+" * 40 + "2" + "}" * 40

# Gold answers of GSM8K test and MATH500 that are not accepted as their own prediction, with reasons: there are none.
EXCEPTIONS = {}

# What we score otherwise than TRL's `accuracy_reward` (its 0 and 1 as -1 and +1), and why.
# gold, completion, ours, TRL's
DIFFERENCES = [
    (r"$\frac{1}{2}$", r"\boxed{\frac12}", 1.0, -1.0),  # `\frac12` is LaTeX: predictions are normalised as golds are
    (r"$2\sqrt{3}$", r"\boxed{2\sqrt3}", 1.0, -1.0),
    (r"$7$", r"\boxed{7\text{ hours}.}", 1.0, -1.0),  # the full stop of the sentence
    (r"$\frac{1}{20000}$", r"\boxed{\frac{1}{20,\!000}}", 1.0, -1.0),  # thousands
    (HALF, r"\boxed{\frac{1}{2}} so \boxed{\frac{1}{", 1.0, -1.0),  # the last *balanced* box
    (HALF, HALF, 1.0, -1.0),  # a bare answer, which TRL wants boxed or anchored
    ("(3, 4)", r"\boxed{(3, 4)}", 1.0, -1.0),  # a gold answer as LaTeX, which TRL wants in $
    (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", 1.0, None),
    (r"$\frac{1}{0}$", r"\boxed{3}", None, -1.0),  # a gold answer without a value cannot be matched: unscorable
]


@pytest.fixture(scope="module")
def verifier():
    return MathVerifier(num_workers=2)


def one(verifier, gold, prediction):
    [score] = verifier.score(gold=[gold], prediction=[prediction])
    return score


def same(scores, expected):
    return len(scores) == len(expected) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(scores, expected, strict=True)
    )


def pids(verifier):
    return [member.process.pid for member in verifier._pool.workers]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def fractions(n, shift=0):
    golds = [f"\\frac{{{index}}}{{{index + 7}}}" for index in range(shift, shift + n)]
    predictions = [gold if index % 2 else f"\\boxed{{{gold} + 0}}" for index, gold in enumerate(golds)]
    predictions[::3] = [f"\\boxed{{{gold} + 1}}" for gold in golds[::3]]
    return golds, predictions, [-1.0 if index % 3 == 0 else 1.0 for index in range(n)]


# --- Verdicts -----------------------------------------------------------------


RIGHT_PAIRS = [
    ("72", "72"),
    ("72", r"So she has \boxed{72} apples."),
    ("72", "72 apples"),
    ("72", "72."),
    ("-5", r"\boxed{-5}"),
    ("1,200", "1200"),
    ("1,200", r"\boxed{1{,}200}"),
    ("1200", r"\boxed{1,\!200}"),
    ("10,\\!080", "10080"),
    ("1000000", r"\boxed{1\,000\,000}"),
    (HALF, "1/2"),
    (HALF, "0.5"),
    (HALF, r"\boxed{\dfrac{1}{2}}"),
    (HALF, r"$\frac{2}{4}$"),
    (r"\frac12", r"\boxed{\frac{1}{2}}"),
    ("0.333333", r"\boxed{\frac{1}{3}}"),
    ("10\\%", "10"),
    ("10\\%", "0.1"),
    ("80 \\%", r"\boxed{80\%}"),
    ("[0,1)", "[0, 1)"),
    ("(2,\\infty)", r"\boxed{(2, +\infty)}"),
    ("(0,9) \\cup (9,36)", r"\boxed{(0,9)\cup(9,36)}"),
    ("x \\in [-2,7]", "[-2,7]"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
    ("\\{1,2\\}", r"\boxed{\{2, 1\}}"),
    ("1, 2", r"\boxed{2,1}"),
    ("1 \\pm \\sqrt{19}", r"\boxed{1+\sqrt{19}, 1-\sqrt{19}}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{Evelyn}", r"\boxed{\text{evelyn}}"),
    (r"\text{(C)}", r"\boxed{C}"),
    ("x=5", "5"),
    ("5", "$x = 5$"),
    ("a + b + c", "c + b + a"),
    ("90^\\circ", r"\boxed{90}"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"\$18.90", "18.9"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}"),
    ("(x+1)^2", r"\boxed{x^2 + 2x + 1}"),
    # How a gold answer may be given.
    ("She sold 24 and 48.\n#### 72", r"\boxed{72}"),
    ("#### Step 2\n\nso the sum is $\\boxed{72}$.", r"\boxed{72}"),
    ("#### not this\n#### 1,234", "1234"),
    ("Thus $\\boxed{72}$.\n#### Remark\nThis is\nknown.", "72"),
    (r"First $\boxed{1}$, then $x = \boxed{\frac{1}{2}}$.", "1/2"),
    ("$72$", "72"),
    (r"\(\frac{1}{2}\)", "0.5"),
    (r"\[\frac{1}{2}\]", "0.5"),
    ("The answer is $\\frac{1}{2}$.", "0.5"),
    # How a prediction may be given.
    ("5", r"\boxed{1}, no: \boxed{5} it is"),
    ("5", r"$\boxed{5}$. I checked \boxed{5"),
    ("5", r"\boxed{\boxed{5}}"),
    ("5", "\\boxed\n {5}"),
    ("5", "\\\\boxed{5}"),
    ("5", r"\boxed{ $5$ }"),
    ("5", "The final answer is $5$. I hope it is correct."),
    (HALF, r"Therefore, the answer is \[\frac{1}{2}\]"),
]

WRONG_PAIRS = [
    ("72", "73"),
    ("72", r"\boxed{73}"),
    ("72", r"72 it is, or \boxed{27}"),
    ("5", ""),
    ("5", " \n"),
    ("5", r"\boxed{}"),
    ("5", r"\boxed{5"),
    ("5", r"\boxed{5} no, \boxed{6}"),
    ("5", "so x = 5"),  # prose without an anchor
    ("5", "I get $5$"),
    ("5", "5\n6"),
    (HALF, r"\boxed{\frac{1}{3}}"),
    (HALF, r"\boxed{\frac{1}{"),
    (HALF, r"\boxed{\frac{}{}}"),
    (HALF, "the answer is not known"),
    ("[0,1)", "(0,1)"),
    ("1, 2", r"\boxed{1}"),
    (r"\text{Evelyn}", "Briana"),
    ("3", "5 or 3"),
    ("x + 1", r"\boxed{x - 1}"),
    ("-5", "5"),
    ("5", "5!"),
]

UNSCORABLE = [
    None,
    "",
    "  ",
    "\\frac{",
    "x +",
    "{" * 3,
    "#### ",
    r"\frac{1}{0}",
    r"\frac{0}{0}",
    r"\boxed{}",
    "$",
    "9" * 5000,
    "\ud800",
]


@pytest.mark.parametrize(("pairs", "expected"), [(RIGHT_PAIRS, 1.0), (WRONG_PAIRS, -1.0)], ids=["right", "wrong"])
def test_verdicts(verifier, pairs, expected):
    scores = verifier.score(gold=[gold for gold, _ in pairs], prediction=[text for _, text in pairs])
    assert [pair for pair, score in zip(pairs, scores, strict=True) if score != expected] == []
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize("prediction", ["5", "same"])
def test_an_unreadable_gold_answer_is_nan_even_for_the_same_text(verifier, prediction):
    predictions = [(gold or "") if prediction == "same" else prediction for gold in UNSCORABLE]
    scores = verifier.score(gold=UNSCORABLE, prediction=predictions)
    assert [gold for gold, score in zip(UNSCORABLE, scores, strict=True) if not math.isnan(score)] == []


def test_an_equation_that_names_no_value_is_not_its_right_side(verifier):
    assert one(verifier, "5", r"\boxed{2x + 3 = 5}") == -1.0
    assert one(verifier, "2x + 3 = 5", r"\boxed{5}") == -1.0
    assert one(verifier, "5", r"\boxed{2 + 3 = 5}") == 1.0


def test_any_sequence_of_texts(verifier):
    from datasets import Dataset

    rows = Dataset.from_dict({"gold": ["5", HALF], "answer": [r"\boxed{5}", "0.4"]})
    assert verifier.score(gold=rows["gold"], prediction=rows["answer"]) == [1.0, -1.0]
    assert verifier.score(gold=("5",), prediction=("5",)) == [1.0]


def test_extract_and_equal(verifier):
    assert verifier.extract(r"so \boxed{x = 5}.") == "x = 5"
    assert verifier.extract("Answer: 34 apples") == "34 apples"
    assert verifier.extract("I am not sure.") is None
    assert verifier.extract("") is None
    for first, second, same_value in [
        ("0.5", r"\frac12", True),
        ("2, 3", "3, 2", True),
        ("5", "6", False),
        ("x +", "x +", False),
    ]:
        assert verifier.equal(first, second) is verifier.equal(second, first) is same_value


def test_a_prompt_of_one_s_own_says_where_the_answer_stands(verifier):
    own = MathVerifier(num_workers=1, answer_pattern=r"RESULT = (.+)")
    assert own.score(gold=["34"] * 4, prediction=["RESULT = 34", "Answer: 34", "34", r"RESULT = 35 \boxed{34}"]) == [
        1.0,
        -1.0,
        -1.0,
        -1.0,
    ]
    thought = "Plan. RESULT = 34\nAnswer: 3"
    assert own.reader.strip(thought) == "Plan. \nAnswer: 3"
    assert pickle.loads(pickle.dumps(own)).reader == own.reader
    for pattern, message in [
        ("(", "regular expression, got '\\('"),
        ("a", "exactly one group, got 0"),
        ("(a)(b)", "got 2"),
        ("(a*)", "empty text"),
    ]:
        with pytest.raises(ValueError, match=f"`answer_pattern` must.*{message}"):
            MathVerifier(answer_pattern=pattern)


def test_order_and_repeated_pairs(verifier):
    gold = [HALF, "5", None, HALF, "x +", HALF, "5"] * 30
    prediction = ["0.5", "5", "5", "0.4", "x +", "0.5", "6"] * 30
    assert same(verifier.score(gold=gold, prediction=prediction), [1.0, 1.0, NAN, -1.0, NAN, 1.0, -1.0] * 30)
    assert verifier.score(gold=[], prediction=[]) == []


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} and {more}", r"\frac{1}{2}"),
        (r"a } stray \boxed{1} { brace \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\{b}}", r"a \\{b}"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{", None),
        (r"\boxed 5", "5"),
        (r"\boxed\frac{1}{2}.", r"\frac{1}{2}."),
        (r"\fbox{5}", "5"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{1} so \boxed{2}", "2"),
        (r"\boxed{1} \boxed{2}", "2"),
        ("5", None),
        ("", None),
    ],
)
def test_last_box(text, box):
    assert answers.last_box(text) == box


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("-0", 0), ("007", 7), ("1,200", 1200), ("-1,200,000", -1200000)]
)
def test_plain_integers_are_read_as_by_the_grammar(verifier, text, value):
    assert answers.plain_integer(text) == value
    assert one(verifier, text, rf"\boxed{{{value}+0}}") == 1.0  # a sum is no plain integer: this goes to a worker


@pytest.mark.parametrize("text", ["5.0", "1,20", "101,103", "0,111", "1,2", "5%", "", "x", "٣", "9" * 31])
def test_others_are_no_plain_integers(text):
    assert answers.plain_integer(text) is None
    assert answers.plain_integer(None) is None


# --- Data sets and TRL --------------------------------------------------------


def load(name):
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open() as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("name", ["gsm8k_test", "math500"])
@pytest.mark.parametrize("form", ["itself", "boxed", "whole"])
def test_every_gold_answer_is_accepted_as_its_own_prediction(verifier, name, form):
    whole = [row["answer"] for row in load(name)]
    golds = [answer.rpartition("####")[2].strip() for answer in whole]
    predictions = [f"Thus the answer is $\\boxed{{{gold}}}$." for gold in golds] if form == "boxed" else golds
    if form == "whole":
        golds = predictions = whole
    scores = verifier.score(gold=golds, prediction=predictions)
    assert {gold for gold, score in zip(golds, scores, strict=True) if score != 1.0} == set(EXCEPTIONS.get(name, ()))


def as_trl(gold, completion):
    from trl.rewards import accuracy_reward

    [reward] = accuracy_reward([[{"role": "assistant", "content": completion}]], [gold])
    return None if reward is None else 2 * reward - 1


@pytest.mark.parametrize(("gold", "completion", "ours", "theirs"), DIFFERENCES)
def test_known_differences_from_trl(verifier, gold, completion, ours, theirs):
    score = one(verifier, gold, completion)
    assert (None if math.isnan(score) else score) == ours
    assert as_trl(gold, completion) == theirs


def test_verdicts_are_those_of_trl_otherwise(verifier):
    rng = random.Random(0)
    golds, completions = [], []
    for row in rng.sample(load("math_train"), 300):
        gold = row["answer"].strip()
        digits = [match.start() for match in re.finditer(r"\d", gold)]
        answer = gold
        if digits and rng.random() < 0.5:
            place = rng.choice(digits)
            answer = gold[:place] + rng.choice("123456789") + gold[place + 1 :]
        golds.append(gold)
        completions.append(f"Adding up, {row['problem'][:200]}\nThe answer is $\\boxed{{{answer}}}$.")
    ours = verifier.score(gold=golds, prediction=completions)
    # TRL does not read `\frac12`, `\sqrt3` and a full stop in a prediction: see DIFFERENCES.
    tolerated = re.compile(r"\\[dt]?frac\s*(?:\d|\{[^{}]*\}\s*\d)|\\sqrt\s*\d|\.\}\$\.\Z")
    different = [
        (gold, completion[-60:])
        for gold, completion, score in zip(golds, completions, ours, strict=True)
        if not tolerated.search(completion) and score != as_trl(f"${gold}$", completion)
    ]
    assert different == []
    assert 100 < ours.count(1.0) < 250


# --- Reward function ----------------------------------------------------------


def test_is_a_trl_reward_function(verifier):
    assert verifier.__name__ == "math_verifier"
    completions = [
        [{"role": "assistant", "content": r"\boxed{5}"}],
        [{"role": "assistant", "content": "5"}, {"role": "assistant", "content": r"\boxed{6}"}],
        r"\boxed{5}",
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed"}, {"type": "text", "text": "{5}"}]}],
        [],
    ]
    rewards = verifier(
        prompts=["p"] * 6, completions=completions, completion_ids=[[1]] * 6, solution=["5", "5", None, "5", "5", "5"]
    )
    assert same(rewards, [1.0, -1.0, NAN, -1.0, 1.0, -1.0])


def test_arguments_are_checked(verifier):
    with pytest.raises(TypeError):
        verifier.score(["5"], ["5"])
    with pytest.raises(ValueError, match="must have the same length, got 2 and 1"):
        verifier.score(gold=["5", "6"], prediction=["5"])
    with pytest.raises(ValueError, match="gold must be a list of strings, got str"):
        verifier.score(gold="5", prediction=["5"])
    with pytest.raises(ValueError, match="gold must be a list of strings, got int 5"):
        verifier.score(gold=[5], prediction=["5"])
    with pytest.raises(ValueError, match="prediction must be a list of strings, got NoneType"):
        verifier.score(gold=["5"], prediction=[None])
    with pytest.raises(ValueError, match="no `solution`"):
        verifier(prompts=["p"], completions=["5"])
    with pytest.raises(ValueError, match="no `completions`"):
        verifier(prompts=["p"], solution=["5"])
    for timeout in (0, -1.0, NAN, math.inf):
        with pytest.raises(ValueError, match="timeout must be a positive"):
            MathVerifier(timeout=timeout)
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        MathVerifier(num_workers=0)


def test_default_number_of_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert MathVerifier()._pool.num_workers == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert MathVerifier()._pool.num_workers == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "128")
    assert MathVerifier()._pool.num_workers == 1
    assert MathVerifier(num_workers=3)._pool.num_workers == 3


# --- Hostile text -------------------------------------------------------------


def test_text_is_never_evaluated(verifier, tmp_path):
    mark = tmp_path / "mark"
    code = f"__import__('os').system('touch {mark}')"
    texts = [
        code,
        f"\\boxed{{{code}}}",
        f"\\text{{{code}}}",
        f"${code}$",
        f"1 + {code}",
        f"#### {code}",
        f'f"{{{code}}}"',
    ]
    texts += [f"open('{mark}','w')", f"\\boxed{{\\operatorname{{{code}}}(1)}}", f"The final answer is {code}. I hope"]
    scores = verifier.score(gold=texts + ["5", HALF] * len(texts), prediction=texts + [t for t in texts for _ in "ab"])
    assert len(scores) == 3 * len(texts)
    assert not mark.exists()
    assert one(verifier, HALF, "0.5") == 1.0


@pytest.fixture
def judge(monkeypatch):
    """The worker's inner half in this process; what it replaces in SymPy and ANTLR is put back."""
    import sympy.parsing.sympy_parser as sympy_parser
    from antlr4.atn.ParserATNSimulator import ParserATNSimulator
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

    for owner, name in (
        (sympy_parser, "parse_expr"),
        (sympy_parser, "eval_expr"),
        (ParserATNSimulator, "__init__"),
        (_Latex2Sympy, "parse"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return worker.build_judge


def test_sympy_refuses_to_evaluate_in_a_worker(judge, tmp_path):
    import sympy
    from math_verify import parse

    judge()
    for text in (f"open('{tmp_path / 'mark'}', 'w')", "x + 1", "pi", "1 if 1 else 2", "(1).real", "True"):
        with pytest.raises((ValueError, sympy.SympifyError)):
            sympy.sympify(text)
    # math-verify's reader for expressions; the fallback for its regular expressions is a number in the text.
    assert sympy.Integer(14) not in parse("so it is 2*(3+4)", fallback_mode="no_fallback", parsing_timeout=None)
    assert sympy.sympify("-12") == sympy.Integer(-12)
    assert sympy.sympify("-(((-6+sqrt(128))/2))") == 3 - sympy.sqrt(128) / 2  # SymPy's own: nsimplify writes such text
    assert sympy.sympify(".50") == sympy.Rational(1, 2)  # decimals are exact: nothing is rounded to six places
    assert not (tmp_path / "mark").exists()


def test_the_quick_grammar_reads_what_the_full_one_reads(judge):
    import sympy
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from math_verify.parser import parse_latex_cached

    config = NormalizationConfig(units=True, malformed_operators=True, nits=True, boxed="none")
    golds = sorted({row["answer"] for row in load("math500") if answers.plain_integer(row["answer"]) is None})
    full = {gold: sympy.srepr(parse_latex_cached.__wrapped__(normalize_latex(gold, config))) for gold in golds}
    read_gold, is_right = judge()
    quick = {gold: sympy.srepr(parse_latex_cached.__wrapped__(normalize_latex(gold, config))) for gold in golds}
    decimals = {gold for gold in golds if re.search(r"\.\d", gold)}  # exact fractions in a worker
    assert {gold for gold in golds if full[gold] != quick[gold]} == decimals
    assert is_right(read_gold(HALF), "0.5") and not is_right(read_gold(HALF), "0.4")
    assert read_gold("x +") is None and read_gold("9" * 3000) is None


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10_000 + "5" + "}" * 10_000,
        "\\boxed{" * 10_000 + "(" * 10_000,
        "\\boxed{" + r"\sqrt{" * 300 + "5" + "}" * 301,
        "\\boxed{\ud800\udfff}",
        "\x00",
        "\\boxed{" + "{" * 2_000_000,
        "{}" * 1_000_000 + "\\boxed{7}" + "\\boxed{" * 1000,
        "\\boxed" + " " * 1_000_000,
        "\\" * 1_000_001,
        "\\boxed{" + "9" * 1_000_000 + "}",
        "\\boxed{" + "9" * 1_990 + "}",
        "\\boxed{1e999999999}",
        "answer " * 200_000 + "$" * 200_001,
        "the answer is " * 100 + "\\(" * 100_000,
        "#### a" * 200_000,
    ],
    ids=range(15),
)
def test_odd_text_does_no_harm(verifier, text):
    start = time.monotonic()
    before, as_prediction, as_gold, after = verifier.score(
        gold=[HALF, HALF, text, HALF], prediction=["0.5", text, "5", "0.5"]
    )
    assert (before, as_prediction, after) == (1.0, -1.0, 1.0)
    assert math.isnan(as_gold) or as_gold == -1.0
    assert time.monotonic() - start < 40


# --- Time ---------------------------------------------------------------------


def test_hanging_pairs_are_bounded_and_the_others_are_scored(caplog):
    verifier = MathVerifier(timeout=2.0, num_workers=2)
    one(verifier, HALF, "0.5")
    golds, predictions, expected = fractions(20)
    for hanging in (TOWER, PARENTHESES):
        golds[3:3] = [HALF, hanging, "5"]
        predictions[3:3] = [f"\\boxed{{{hanging}}}", "5", "6"]
        expected[3:3] = [-1.0, NAN, -1.0]
    start = time.monotonic()
    with caplog.at_level("WARNING", logger="ccpo.verifier.pool"):
        scores = verifier.score(gold=golds, prediction=predictions)
    assert same(scores, expected), scores
    assert time.monotonic() - start < 4 * (2.0 + pool_module.GRACE_SECONDS) + 30
    # As predictions both take too long; as gold answers they may be found unreadable before that.
    assert re.search(
        r"[234] of 24 different pairs of answers took longer than 2 s; 0 workers ended for other reasons", caplog.text
    )


def test_nested_radicals_and_the_hanging_gold_answer_itself():
    verifier = MathVerifier(timeout=1.0, num_workers=2)
    start = time.monotonic()
    scores = verifier.score(gold=["5", RADICALS, TOWER], prediction=[f"\\boxed{{{RADICALS}}}", "5", TOWER])
    assert scores[0] == -1.0 and scores[1] != 1.0 and math.isnan(scores[2])
    assert one(verifier, HALF, "0.5") == 1.0
    assert time.monotonic() - start < 40


def test_memory_is_bounded():
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    verifier = MathVerifier(num_workers=1)
    one(verifier, HALF, "0.5")
    limits = Path(f"/proc/{pids(verifier)[0]}/limits").read_text()
    assert re.search(rf"Max address space\s+{worker.MEMORY_LIMIT}\s", limits)


def test_a_stopped_worker_is_killed_by_the_parent(monkeypatch):
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 0.5)
    verifier = MathVerifier(timeout=1.0, num_workers=1)
    one(verifier, HALF, "0.5")
    [pid] = pids(verifier)
    os.kill(pid, signal.SIGSTOP)
    first, second = verifier.score(gold=[HALF, HALF], prediction=["0.5", "0.25"])
    assert math.isnan(first) and second == -1.0  # nothing is known of the first: its gold answer was never read
    assert not is_running(pid)


# --- Processes ----------------------------------------------------------------


def test_killed_workers_are_replaced(caplog):
    verifier = MathVerifier(num_workers=2)
    golds, predictions, expected = fractions(60)
    # Both workers are to be up: a quick first one may do all the work while the other starts.
    assert wait_until(
        lambda: (
            verifier.score(gold=golds, prediction=predictions) == expected
            and [member.ready for member in verifier._pool.workers] == [True, True]
        )
    )
    old = pids(verifier)
    for pid in old:  # stopped first, so that the kill surely hits pairs under way
        os.kill(pid, signal.SIGSTOP)
    results = []
    thread = threading.Thread(target=lambda: results.extend(verifier.score(gold=golds, prediction=predictions)))
    with caplog.at_level("WARNING", logger="ccpo.verifier.pool"):
        thread.start()
        assert wait_until(lambda: all(member.jobs for member in list(verifier._pool.workers)))
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        thread.join(60)
    assert results == expected
    assert not set(old) & set(pids(verifier)) and not any(map(is_running, old))
    assert "2 workers ended" in caplog.text
    for pid in pids(verifier):  # while idle
        os.kill(pid, signal.SIGKILL)
    assert verifier.score(gold=golds, prediction=predictions) == expected


@pytest.mark.parametrize(
    ("timed_out", "crashes", "gold_read", "settled", "score"),
    [
        (True, 0, True, 1, -1.0),
        (True, 0, False, 1, NAN),
        (False, 0, True, 0, None),  # a first crash: tried again
        (False, 1, True, 1, -1.0),
        (False, 1, False, 1, NAN),
    ],
)
def test_who_is_at_fault_when_a_worker_dies(timed_out, crashes, gold_read, settled, score):
    job = pool_module.Job(b"", gold_read=gold_read, crashes=crashes)
    other = pool_module.Job(b"")
    jobs = deque([job, other])
    assert pool_module._settle(jobs, timed_out) == settled
    assert list(jobs) == ([other] if settled else [job, other])
    assert job.score == score or math.isnan(job.score) == math.isnan(score)
    assert other.score is None and (settled or not job.gold_read)
    assert pool_module._settle(deque(), timed_out) == 0


def test_a_worker_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(pool_module, "_BOOTSTRAP", "raise SystemExit")
    with pytest.raises(RuntimeError, match="it ended while it was starting"):
        one(MathVerifier(num_workers=1), HALF, "0.5")
    missing = "import sys\nsys.modules['math_verify'] = None\n"
    monkeypatch.setattr(pool_module, "_BOOTSTRAP", missing + BOOTSTRAP)
    with pytest.raises(RuntimeError, match="cannot start a worker process: ModuleNotFoundError.*math_verify"):
        one(MathVerifier(num_workers=1), HALF, "0.5")


def test_replies_of_an_interrupted_call_are_not_taken_for_the_next(verifier, monkeypatch):
    golds, predictions, expected = fractions(40)
    assert verifier.score(gold=golds, prediction=predictions) == expected
    receive = pool_module._Worker.receive

    def interrupt(self, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool_module._Worker, "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verifier.score(gold=golds, prediction=[HALF] * 40)
    monkeypatch.setattr(pool_module._Worker, "receive", receive)
    assert verifier.score(gold=golds, prediction=predictions) == expected


def test_from_threads_at_once(verifier):
    results = {}

    def run(index):
        golds, predictions, expected = fractions(20, shift=5 * index)
        results[index] = verifier.score(gold=golds, prediction=predictions) == expected

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == dict.fromkeys(range(6), True)


def score_and_send(verifier, connection):
    golds, predictions, expected = fractions(6)
    connection.send(verifier.score(gold=golds, prediction=predictions) == expected)


def in_daemon(verifier, method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=score_and_send, args=(verifier, theirs), daemon=True)
    process.start()
    assert ours.poll(60)
    result = ours.recv()
    process.join(60)
    return result


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_daemonic_process(verifier, method):
    one(verifier, HALF, "0.5")
    before = pids(verifier)
    assert in_daemon(verifier, method)
    assert pids(verifier) == before and all(map(is_running, before))  # the child had workers of its own
    golds, predictions, expected = fractions(20)
    assert verifier.score(gold=golds, prediction=predictions) == expected


def test_forked_while_a_thread_is_scoring():
    verifier = MathVerifier(timeout=3.0, num_workers=1)
    one(verifier, HALF, "0.5")
    results = []
    thread = threading.Thread(target=lambda: results.append(one(verifier, HALF, f"\\boxed{{{PARENTHESES}}}")))
    thread.start()
    assert wait_until(verifier._pool.lock.locked)
    assert in_daemon(verifier, "fork")
    thread.join(60)
    assert results == [-1.0]


class Scored:
    """A data set whose rows are scored where they are loaded."""

    def __init__(self, verifier):
        self.verifier = verifier

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return one(self.verifier, HALF, "0.5" if index % 2 else "0.25")


def test_in_a_torch_data_worker(verifier):
    torch_data = pytest.importorskip("torch.utils.data")
    loader = torch_data.DataLoader(Scored(verifier), batch_size=4, num_workers=1)
    assert [batch.tolist() for batch in loader] == [[-1.0, 1.0, -1.0, 1.0]]


@pytest.mark.parametrize("duplicate", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "copy"])
def test_pickling_leaves_the_workers_behind(duplicate):
    verifier = MathVerifier(timeout=4.0, num_workers=1)
    one(verifier, HALF, "0.5")
    other = duplicate(verifier)
    assert (other.timeout, other.num_workers, other.__name__) == (4.0, 1, "math_verifier")
    assert pids(other) == [] and len(pids(verifier)) == 1
    assert one(other, HALF, "0.5") == 1.0


def test_workers_end_with_their_verifier():
    verifier = MathVerifier(num_workers=1)
    one(verifier, HALF, "0.5")
    [pid] = pids(verifier)
    del verifier
    assert wait_until(lambda: not is_running(pid))


SCRIPT = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
from ccpo.verifier.math_verifier import MathVerifier
verifier = MathVerifier(timeout=2.0, num_workers=1)
verifier.score(gold=["1/2"], prediction=["0.5"])
print(*[member.process.pid for member in verifier._pool.workers], flush=True)
if sys.argv[2] == "hang":
    verifier.score(gold=["1/2"], prediction=["\\\\boxed{" + sys.argv[3] + "}"])
if sys.argv[2] == "idle":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["exit", "idle", "hang"])
def test_no_worker_outlives_its_parent(end, tmp_path):
    # Modules of the folder that a script is run from must not shadow those that a worker needs.
    for name in ("antlr4", "math_verify", "sympy"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('shadowed')")
    command = [sys.executable, "-c", SCRIPT, SOURCE, end, TOWER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        pid = int(process.stdout.readline())
        if end == "exit":
            assert process.wait(60) == 0
        else:
            assert is_running(pid)
            time.sleep(0.5)  # into the computation
            process.kill()
    assert wait_until(lambda: not is_running(pid), 20)


def test_a_worker_imports_neither_torch_nor_the_package(verifier):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    one(verifier, HALF, "0.5")
    maps = Path(f"/proc/{pids(verifier)[0]}/maps").read_text()
    assert "torch" not in maps and "numpy" not in maps
