"""
Judging a pair of answers, in a child interpreter that is given this *file*, not the package: a worker imports neither
`ccpo` nor torch.

No text is ever evaluated. Answers are read by math-verify's LaTeX grammar (ANTLR), never by its reader for plain
expressions, which ends in `eval`; and [`forbid_eval`] makes SymPy refuse it.
"""

import ast
import json
import os
import re
import sys
import time
from functools import lru_cache
from operator import add, mul, sub, truediv

MAX_ANSWER = 2_000  # characters of an answer; a longer one counts as unreadable (the longest in MATH has 159)
MEMORY_LIMIT = 4 * 1024**3  # bytes of address space of a worker, which needs about 0.1 GiB

# What a worker writes, a byte each.
READY, ERROR, GOLD_READ, GOLD_UNREADABLE, RIGHT, WRONG = b"R", b"!", b"g", b"?", b"+", b"-"

_NUMERAL = re.compile(r"(?P<integer>[+-]?[0-9]+)|[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_OPERATIONS = dict(zip((ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow), (add, sub, mul, truediv, pow), strict=True))


def forbid_eval():
    """
    Makes SymPy refuse, in this process, to evaluate text as Python code.

    Even the LaTeX grammar gets there, by `Number("3.5")`, and so does SymPy, by arithmetic of its own making, such as
    `"(1+sqrt(5))/2"`. Both are read here instead, to the same objects.
    """
    import sympy.parsing.sympy_parser as sympy_parser
    import sympy.physics.units  # noqa: F401 (imported by `simplify`, it reads names: now, while it may)
    from sympy import Float, Integer, exp, log, sqrt

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
            return Integer(int(text)) if match["integer"] else Float(text)
        tree = ast.parse(text, mode="eval").body
        return value(None if isinstance(tree, ast.Constant) else tree, text)

    sympy_parser.parse_expr = sympy_parser.eval_expr = read_arithmetic


def speed_up_grammar():
    """
    Lets the LaTeX grammar try ANTLR's SLL prediction first, three times as fast, in this process.

    By ANTLR's rule it gives the same tree as the full LL prediction or reports a syntax error; then LL decides.
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
    Imports math-verify; returns `read(text, is_prose, is_gold)`, a SymPy object or `None`, and `equal(gold, answer)`.

    The settings are those of TRL's `accuracy_reward`, but for one: predictions are normalised like gold answers, so
    that `\\frac12` and `2\\sqrt3`, which are LaTeX, are read.
    """
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.parser import parse_latex_cached
    from sympy import Basic, MatrixBase, Number, Symbol, nan, zoo

    forbid_eval()
    speed_up_grammar()
    normalizations = [
        NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="none")
        for units in (True, False)  # "a + b + c" ends in a unit, it seems: where nothing can be read, units stay
    ]
    gold_prose = LatexExtractionConfig(boxed_match_priority=-1)
    answer_prose = LatexExtractionConfig(
        boxed_match_priority=-1, try_extract_without_anchor=False, normalization_config=NormalizationConfig(units=True)
    )

    def read_prose(text, is_gold):
        config, mode = ([gold_prose], "any_match") if is_gold else ([answer_prose], "first_match")
        return parse(text, config, fallback_mode="no_fallback", extraction_mode=mode, parsing_timeout=None)

    @lru_cache(maxsize=4096)
    def read_latex(text):
        for normalization in normalizations:
            try:
                expression = parse_latex_cached(normalize_latex(text, normalization))
            except Exception:  # bare ones of the grammar, any of SymPy's, no memory: the text is unreadable
                continue
            if isinstance(expression, (Basic, MatrixBase)):
                return [expression]
        return []

    def is_defined(gold):
        """Whether a gold answer has a value. One that takes too long ends the worker now, while the gold is read."""
        if isinstance(gold, (Number, Symbol)):
            return gold not in (nan, zoo)
        try:
            value = gold.doit()
            return value not in (nan, zoo) and value.evalf() is not nan
        except Exception:  # many readable objects (relations, sets) have no numeric value
            return True

    @lru_cache(maxsize=4096)
    def read(text, is_prose, is_gold):
        if not text.strip() or (not is_prose and len(text) > MAX_ANSWER):
            return None
        found = read_prose(text, is_gold) if is_prose else read_latex(text)
        return found[0] if found and (not is_gold or is_defined(found[0])) else None

    def equal(gold, answer):
        return verify([gold], [answer], timeout_seconds=None)

    return read, equal


def main(timeout):
    """
    Judges the pairs on standard input, a JSON list `[gold, gold_is_prose, answer, answer_is_prose]` a line.

    The kernel keeps the time, `timeout` seconds for a pair: a timer whose signal has its default action ends the
    process, even inside a long C-level computation, even if the parent is gone. A gold answer may take half of it.
    """
    import logging
    import resource
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and the end of a job are the parent's business
        signal.signal(number, signal.SIG_IGN)
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
        verdict = GOLD_UNREADABLE
        if gold is not None:
            signal.setitimer(signal.ITIMER_REAL, max(timeout - (time.monotonic() - start), 1e-3))
            os.write(replies, GOLD_READ)
            same = (gold_text, gold_is_prose) == (text, is_prose)
            answer = None if same else read(text, is_prose, False)
            verdict = RIGHT if same or (answer is not None and equal(gold, answer)) else WRONG
        signal.setitimer(signal.ITIMER_REAL, 0)  # before the reply, after which the parent's mind is on the next pair
        os.write(replies, verdict)


if __name__ == "__main__":
    main(float(sys.argv[2]))
