"""
The two halves of [`MathVerifier`] that need no process management: finding the answer in a text, and judging one pair.

The first half is imported by `verifier.py` and needs the standard library only. The second half, [`main`], runs in a child
interpreter that is given this *file*, not the package, so that a worker never imports `ccpo` or torch.

No text is ever evaluated: answers are read by math-verify's LaTeX grammar (ANTLR). math-verify's other reader, for plain
expressions, calls SymPy's `parse_expr`, which calls `eval`; it is never used, and [`forbid_eval`] makes SymPy refuse it.
"""

import json
import os
import re
import sys
import time
from functools import lru_cache


MAX_TEXT = 100_000  # characters of a text, counted from its end, in which a box is looked for
MAX_PROSE = 4_000  # characters of an unboxed text, counted from its end, in which "answer is $...$" is looked for
MAX_ANSWER = 2_000  # characters of an answer; a longer one counts as unparsable (the longest in MATH has 159)
MAX_BARE = 200  # characters of a prediction that may be a bare answer
MEMORY_LIMIT = 4 * 1024**3  # bytes of address space of a worker, which needs about 0.1 GiB

# What a worker writes, a byte each.
READY, ERROR, GOLD_READ, GOLD_UNREADABLE, RIGHT, WRONG = b"R", b"!", b"g", b"?", b"+", b"-"

# `\\` is a line break unless it is a doubled backslash in front of a box; `\{` and `\}` are no grouping.
_BRACES = re.compile(r"\\boxed\s*\{|\\\\(?!boxed)|\\[{}]|[{}]")
_ENVIRONMENT = re.compile(
    r"\$\$(?P<display>(?:\\.|[^$\\])+)\$\$|\$(?P<inline>(?:\\.|[^$\\])+)\$"
    r"|\\\((?P<paren>.+?)\\\)|\\\[(?P<bracket>.+?)\\\]",
    re.DOTALL,
)
_INTEGER = re.compile(r"-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3}){1,9}|[0-9]{1,30})")
_NUMERAL = re.compile(r"(?P<integer>[+-]?[0-9]+)|[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\,)\s*(?=[0-9]{3}(?![0-9]))")  # 1,\!200  1{,}200  1\,200
_TRAILING = re.compile(r"(?<!\\)[.,;:]\s*\Z")
_TEXT_COMMAND = re.compile(r"\\(?:text\w*|mbox|math[a-z]+|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_TRAILING_WORDS = re.compile(r"(?:\s+[A-Za-z]+\.?){1,3}\Z")
_PROSE = re.compile(r"(?!(?:and|or)\s)\b[A-Za-z]{2,}\s+[A-Za-z0-9]")


def last_box(text):
    r"""
    Content of the last balanced `\boxed{...}` of a text, in linear time.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str` or `None`: What is inside the braces, or `None` without a balanced box. Of nested boxes, the inner one.
    """
    if "\\boxed" not in text:
        return None
    opened, best = [], None  # opened: where the content of every open brace begins, None for a brace that is no box
    for match in _BRACES.finditer(text):
        token = match.group()
        if token[-1] == "{" and token != "\\{":
            opened.append(match.end() if token != "{" else None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, match.start())
    return None if best is None else text[best[0] : best[1]]


def _clean(text):
    return _THOUSANDS.sub("", _TRAILING.sub("", text.strip()).strip())


def _unwrap(text):
    """Returns `(answer, is_prose)`: `$x$` gives x, and a text with such environments among others is prose."""
    text = _clean(text)
    match = _ENVIRONMENT.search(text)
    if match is None:
        return text, False
    if match.span() == (0, len(text)):
        return _clean(next(group for group in match.groups() if group is not None)), False
    return text, True


def extract_gold(text):
    r"""
    The answer in a reference text: after a closing `#### `, else in the last balanced box, else the text itself.

    Args:
        text (`str`):
            `72`, `$\frac{1}{2}$`, a GSM8K solution, a solution with `\boxed{}`, or prose with LaTeX environments.

    Returns:
        `tuple[str, bool]`: The answer as LaTeX, and whether it is prose in which math-verify has to find one.
    """
    text = text[-MAX_TEXT:]
    last_line = text.rpartition("####")[2].strip() if "####" in text else ""
    if last_line and "\n" not in last_line:  # "####" is a heading too, in solutions written as Markdown
        text = last_line
    box = last_box(text)
    return _unwrap(text[-MAX_PROSE:]) if box is None else (_clean(box)[-MAX_PROSE:], False)


def extract_prediction(text):
    r"""
    The answer in a completion: the last balanced box; without a box, the whole text if it is a bare answer; else the end of
    the text, for math-verify to find an anchored answer in ("the final answer is $5$").

    Args:
        text (`str`):
            What the model wrote.

    Returns:
        `tuple[str, bool]`: As in [`extract_gold`]. The answer is empty where there is none.
    """
    text = text[-MAX_TEXT:]
    box = last_box(text)
    if box is not None:
        return _clean(box)[-MAX_PROSE:], False
    answer, is_prose = _unwrap(text) if len(text) <= MAX_BARE else (text, True)
    if (
        not is_prose
        and "\n" not in answer
        and not _PROSE.search(_TRAILING_WORDS.sub("", _TEXT_COMMAND.sub("0", answer)))
    ):
        return answer, False
    # Every anchor of math-verify holds this word: without it the regular expressions need not run.
    tail = text[-MAX_PROSE:]
    return (tail, True) if "answer" in tail.lower() else ("", False)


def plain_integer(answer, is_prose):
    """The value of an answer such as `-5` or `1,200`, which needs no grammar to compare; `None` for any other."""
    return int(answer.replace(",", "")) if not is_prose and _INTEGER.fullmatch(answer) else None


def forbid_eval():
    """
    Makes SymPy refuse, in this process, to evaluate text as Python code.

    Even the LaTeX grammar gets there: it makes numbers by `Number("3.5")`, which SymPy passes to `parse_expr` and so to `eval`.
    Numerals are read here instead, to the same objects.
    """
    import sympy.parsing.sympy_parser as sympy_parser
    from sympy import Float, Integer

    def read_numeral(text, *args, **kwargs):
        if match := _NUMERAL.fullmatch(text.strip()):
            return Integer(int(text)) if match["integer"] else Float(text)
        raise ValueError("not a numeral, and text is never evaluated here")

    def refuse(*args, **kwargs):
        raise ValueError("text is never evaluated here")

    sympy_parser.parse_expr = read_numeral
    sympy_parser.eval_expr = refuse


def speed_up_grammar():
    """
    Lets the LaTeX grammar try ANTLR's fast prediction mode first, three times as fast, in this process.

    ANTLR's rule: SLL gives the same tree as the full LL mode or reports a syntax error, and then LL decides.
    """
    from antlr4.atn.ParserATNSimulator import ParserATNSimulator
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

    mode = PredictionMode.LL
    initialize, parse = ParserATNSimulator.__init__, _Latex2Sympy.parse

    def initialize_with_mode(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        self.predictionMode = mode

    def parse_in_two_stages(self, text):
        nonlocal mode
        try:
            mode = PredictionMode.SLL
            return parse(self, text)
        except Exception:  # the grammar raises bare exceptions
            mode = PredictionMode.LL
            return parse(self, text)

    ParserATNSimulator.__init__ = initialize_with_mode
    _Latex2Sympy.parse = parse_in_two_stages


def build_judge():
    """
    Imports math-verify and returns `read(text, is_prose, is_gold)` and `equal(gold, prediction)`.

    `read` returns a SymPy object, or `None` if the text has no readable answer. The settings of math-verify are those of
    TRL's `accuracy_reward`, but for one: a prediction is normalised like a gold answer, so that `\\frac12` and `2\\sqrt3`,
    which are LaTeX, are read.
    """
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.parser import parse_latex_cached
    from sympy import Basic, MatrixBase, Number, Symbol, nan, zoo

    forbid_eval()
    speed_up_grammar()
    normalizations = [
        NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="none")
        for units in (True, False)  # without units second: "a + b + c" ends in a unit of speed
    ]
    gold_prose = LatexExtractionConfig(boxed_match_priority=-1)
    prediction_prose = LatexExtractionConfig(
        boxed_match_priority=-1,
        try_extract_without_anchor=False,
        normalization_config=NormalizationConfig(units=True),
    )

    @lru_cache(maxsize=4096)
    def read_latex(text):
        for normalization in normalizations:
            try:
                expression = parse_latex_cached(normalize_latex(text, normalization))
            except Exception:  # the grammar raises bare exceptions, and SymPy any of its own: the text is unreadable
                continue
            if isinstance(expression, (Basic, MatrixBase)):
                return expression
        return None

    def is_defined(gold):
        """Whether a gold answer has a value. One that cannot be computed in time ends the worker here, not at a pair."""
        if isinstance(gold, Number):
            return gold not in (nan, zoo)
        if isinstance(gold, Symbol):
            return True
        try:
            value = gold.doit()
            return value not in (nan, zoo) and value.evalf() is not nan
        except Exception:  # many readable objects (relations, sets) have no numeric value
            return True

    @lru_cache(maxsize=4096)
    def read(text, is_prose, is_gold):
        if not text.strip() or (not is_prose and len(text) > MAX_ANSWER):
            return None
        if is_prose:
            config = gold_prose if is_gold else prediction_prose
            found = parse(
                text,
                extraction_config=[config],
                fallback_mode="no_fallback",
                extraction_mode="any_match" if is_gold else "first_match",
                parsing_timeout=None,  # signals are main's business
            )
            expression = found[0] if found and isinstance(found[0], (Basic, MatrixBase)) else None
        else:
            expression = read_latex(text)
        return expression if expression is None or not is_gold or is_defined(expression) else None

    def equal(gold, prediction):
        return verify([gold], [prediction], timeout_seconds=None)

    return read, equal


def main(timeout):
    """
    Answers the pairs on standard input, a JSON list `[gold, gold_is_prose, prediction, prediction_is_prose]` a line.

    Time is kept by the kernel: a timer whose signal has its default action ends the process, even inside one of SymPy's long
    C-level computations, and even if the parent is gone. The parent reads the exit status. A gold answer may take half of
    the time, so that its prediction keeps the other half.

    Args:
        timeout (`float`):
            Seconds for a pair.
    """
    import logging
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for kind, limit in ((resource.RLIMIT_AS, MEMORY_LIMIT), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(hard, limit), hard))
    # The replies keep the pipe to themselves, whatever a library prints.
    replies = os.dup(1)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    try:
        read, equal = build_judge()
        read(r"\frac{1}{2} + x", False, True)  # loads the grammar, outside any pair's time
    except Exception as error:
        os.write(replies, ERROR + f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:2000])
        return
    os.write(replies, READY)

    for line in sys.stdin.buffer:
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, timeout / 2)
        gold_text, gold_is_prose, text, is_prose = json.loads(line)
        gold = read(gold_text, gold_is_prose, True)
        if gold is None:
            verdict = GOLD_UNREADABLE
        else:
            signal.setitimer(signal.ITIMER_REAL, max(timeout - (time.monotonic() - start), 1e-3))
            os.write(replies, GOLD_READ)
            if (gold_text, gold_is_prose) == (text, is_prose):
                verdict = RIGHT
            else:
                prediction = read(text, is_prose, False)
                verdict = RIGHT if prediction is not None and equal(gold, prediction) else WRONG
        signal.setitimer(signal.ITIMER_REAL, 0)  # before the reply: afterwards the parent's mind is on the next pair
        os.write(replies, verdict)


if __name__ == "__main__":
    main(float(sys.argv[2]))
