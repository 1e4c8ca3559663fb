"""
The child process that judges pairs of answers.

No text is ever evaluated as code. math-verify's LaTeX grammar (ANTLR) reads expressions. Its reader for plain
expressions, which uses `eval`, is never used, and [`forbid_eval`] makes SymPy refuse `eval`.
"""

import ast
import json
import os
import re
import sys
import time
from functools import lru_cache
from operator import add, mul, sub, truediv

from .compare import Judge
from .notation import normalize
from .reading import read
from .values import build_values

MAX_ANSWER = 2_000  # characters; a longer answer counts as unreadable (the longest in MATH has 159)
MEMORY_LIMIT = 4 * 1024**3  # the address space of a worker in bytes; it needs about 0.1 GiB

# The replies of a worker, one byte each.
READY, ERROR, GOLD_READ, GOLD_UNREADABLE, RIGHT, WRONG = b"R", b"!", b"g", b"?", b"+", b"-"

_NUMERAL = re.compile(r"(?P<integer>[+-]?[0-9]+)|[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_OPERATIONS = dict(zip((ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow), (add, sub, mul, truediv, pow), strict=True))


def forbid_eval():
    """
    Make SymPy refuse to evaluate text as Python code in this process.

    The LaTeX grammar evaluates text, too, by `Number("3.5")`, and so does SymPy with its own formulas, such as
    `"(1+sqrt(5))/2"`. These two are read here instead. A decimal becomes an exact fraction, so that no rounding to a
    fixed number of decimals can make small numbers equal.
    """
    import sympy.parsing.sympy_parser as sympy_parser
    import sympy.physics.units  # noqa: F401 (imported by `simplify`, it reads names: now, while it may)
    from sympy import Integer, Rational, exp, log, sqrt

    def value(node, text):
        match node:
            case ast.Constant():
                return read_arithmetic(ast.get_source_segment(text, node))
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand, text)
            case ast.BinOp() if type(node.op) in _OPERATIONS:
                return _OPERATIONS[type(node.op)](value(node.left, text), value(node.right, text))
            case ast.Call(func=ast.Name(id="sqrt" | "exp" | "log" as name), args=[argument]):
                return {"sqrt": sqrt, "exp": exp, "log": log}[name](value(argument, text))
        raise ValueError("no arithmetic, and text is never evaluated here")

    def read_arithmetic(text, *args, **kwargs):
        text = text.strip()
        if match := _NUMERAL.fullmatch(text):
            return Integer(int(text)) if match["integer"] else Rational(text)
        tree = ast.parse(text, mode="eval").body
        return value(None if isinstance(tree, ast.Constant) else tree, text)

    sympy_parser.parse_expr = sympy_parser.eval_expr = read_arithmetic


def speed_up_grammar():
    """
    Let the LaTeX grammar in this process try ANTLR's SLL prediction first, which is three times as fast.

    It gives the same tree as the full LL prediction, or a syntax error. After an error the LL prediction is used.
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


def visible(gold, answer):
    r"""Replace `\phantom` by its content in both answers if the whole gold answer is one. MATH has such an answer."""
    if "\\phantom" in gold and not normalize(gold):
        return gold.replace("\\phantom", ""), answer.replace("\\phantom", "")
    return gold, answer


def build_judge():
    """Import math-verify. Returns `read_gold(text)`, which gives a form or `None`, and `is_right(gold form, text)`."""
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from math_verify import verify
    from math_verify.parser import parse_latex_cached
    from sympy import Basic, MatrixBase

    forbid_eval()
    speed_up_grammar()
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )

    @lru_cache(maxsize=4096)
    def parse(latex):
        try:
            expression = parse_latex_cached(normalize_latex(latex, normalization))
        except Exception:  # the grammar, SymPy or a lack of memory may raise any exception: the text is unreadable
            return None
        return expression if isinstance(expression, (Basic, MatrixBase)) else None

    judge = Judge(*build_values(parse, lambda gold, answer: verify([gold], [answer], timeout_seconds=None)))

    @lru_cache(maxsize=4096)
    def read_answer(text):
        return read(normalize(text)) if text.strip() and len(text) <= MAX_ANSWER else None

    @lru_cache(maxsize=4096)
    def read_gold(text):
        form = read_answer(text)
        return form if form is not None and judge.is_readable(form) else None

    def is_right(gold, text):
        answer = read_answer(text)
        return answer is not None and judge.same(gold, answer)

    return read_gold, is_right


def main(timeout):
    """
    Judge the pairs on standard input, each line of which is a JSON list `[gold, answer]`.

    A pair has `timeout` seconds, of which the gold answer may take half. The kernel keeps the time: the signal of a
    timer ends the process, even during a long computation in C, and even if the parent process has died.
    """
    import logging
    import resource
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):  # the parent handles Ctrl-C and the end of a job
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for kind, limit in ((resource.RLIMIT_AS, MEMORY_LIMIT), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(hard, limit), hard))
    # Only replies go into the pipe, whatever a library prints.
    replies = os.dup(1)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    try:
        read_gold, is_right = build_judge()
        read_gold(r"\frac{1}{2} + x")  # loads the grammar before the time of a pair begins
    except Exception as error:
        os.write(replies, ERROR + f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:2000])
        return
    os.write(replies, READY)

    for line in sys.stdin.buffer:
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, timeout / 2)
        gold_text, text = visible(*json.loads(line))
        gold = read_gold(gold_text)
        verdict = GOLD_UNREADABLE
        if gold is not None:
            signal.setitimer(signal.ITIMER_REAL, max(timeout - (time.monotonic() - start), 1e-3))
            os.write(replies, GOLD_READ)
            verdict = RIGHT if text == gold_text or is_right(gold, text) else WRONG
        signal.setitimer(signal.ITIMER_REAL, 0)  # before the reply, after which the parent's mind is on the next pair
        os.write(replies, verdict)
