"""Replies that were never meant as ratings, or meant to break what reads them."""

import random
import re
import signal
import time
from contextlib import contextmanager

import pytest
from test_ratings import SHARES, VALID

from ccpo.ratings import parse_rating, parse_role_shares

TOKENS = [
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    ":",
    ",",
    " ",
    "\n",
    "```",
    "```json",
    "outcome",
    "pair",
    '"outcome": ',
    '"pair": ',
]
TOKENS += [
    "correct",
    "wrong",
    "incorrect",
    '"correct"',
    "not ",
    "0.7",
    "0.3",
    ".9",
    "0.1",
    "[0.7, 0.3]",
    "70%",
    "30%",
    "/",
]
TOKENS += [
    " and ",
    "e5",
    "-",
    "1" * 50,
    "NaN",
    "null",
    "true",
    "\ud800",
    "\x00",
    "\u200f",
    "é",
    "…",
    '{"outcome": "correct"',
]


def test_fuzz_never_raises():
    rng, seen = random.Random(1), set()
    for _ in range(20_000):
        text = "".join(rng.choices(TOKENS, k=rng.randrange(30)))
        for outcome in ("correct", "wrong"):
            seen.add(parse_rating(text, outcome))
    assert seen <= {None, *SHARES}
    assert {0.7, 0.3} <= seen  # the tokens do make ratings


def test_fuzz_one_damaged_character():
    rng = random.Random(2)
    for text, outcome, _ in VALID:
        text = text[:300]
        for _ in range(20):
            i = rng.randrange(len(text))
            damaged = text[:i] + rng.choice(["", *'{}[]":,\\x7.', "\ud800"]) + text[i + 1 :]
            assert parse_rating(damaged, outcome) in {None, *SHARES}


@contextmanager
def watchdog(seconds):
    """Ends what hangs: a linear reader needs seconds for the inputs below, a quadratic one many minutes to days."""

    def ring(*_):
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


RATING = '{"outcome": "correct", "pair": [0.7, 0.3]}'
MEGABYTES = 5_000_000
REPEATED = [
    "{",
    "}",
    "[",
    "]",
    '"',
    '\\"',
    '{"',
    '{"a":',
    '{"a":[',
    "{[",
    "0.7, 0.3",
    "0.7, 0.3 ",
    "0.7,",
    "pair: 0.7, 0.3;",
]
REPEATED += [
    RATING[:-1] + ', "x":',
    '"pair": [',
    '{"pair": ',
    "1",
    "1.",
    "1e",
    "0.7 and ",
    "70% / 30% ",
    "correct ",
    "not ",
]
REPEATED += [" ", "\n", "\\", "```json\n", "\ud800", "\x00", "-", "%"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the watchdog needs SIGALRM")
@pytest.mark.parametrize("unit", REPEATED, ids=repr)
def test_megabytes(unit):
    size = MEGABYTES if unit in ("{", '"', "0.7, 0.3") else 2_000_000
    text = (unit * (size // len(unit) + 1))[:size]
    with watchdog(90):
        assert parse_rating(text, "wrong") is None


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the watchdog needs SIGALRM")
@pytest.mark.parametrize(
    ("text", "share"),
    [
        ('{"' + '\\"' * 1_000_000, None),  # a string that never ends
        ('{"outcome"' + " " * MEGABYTES + ": 1", None),
        ('{"pair": [' + "7" * MEGABYTES, None),
        ("correct 0.7" + " " * MEGABYTES + ", 0.3", 0.7),
        ("correct 0.7" + " " * MEGABYTES + "; 0.3", None),
        (("0.7" + " " * 99) * 50_000, None),
        ("{" * 10_000, None),
        ("[" * 10_000 + "]" * 10_000, None),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, None),
        ('{"a":' * 10_000 + RATING + "}" * 10_000, 0.7),
        ('{"outcome": "correct", "pair": ' + "[" * 10_000 + "]" * 10_000 + "}", None),
        (RATING[:-1] + ', "x": ' + '{"a":' * 300_000 + "1" + "}" * 300_000 + "}", 0.7),
        ((RATING[:-1] + ', "x": ') * 100_000 + RATING + "}" * 100_000, 0.7),
        (RATING * 100_000, 0.7),
        ("{" * 1_000_000 + RATING, 0.7),
        ("correct " + "9" * 100_000 + ", " + "9" * 100_000 + " pair: 0.7, 0.3", 0.7),
        ("correct 0." + "7" * 100_000 + ", 0." + "3" * 100_000, None),
        ("correct: 0.7" + "0" * 100_000 + ", 0.3", 0.7),  # long, but still the number 0.7
        ("\ud800" + RATING + "\udfff", 0.7),
        ("\x00" + RATING + "\x00", 0.7),
        ("\u200f\u202e" + RATING, 0.7),
        ("```json```" + RATING + "```````", 0.7),
    ],
    ids=range(22),
)
def test_hostile_texts(text, share):
    with watchdog(90):
        assert parse_rating(text, "correct") == share


# ---- Shares of three roles ----

ROLES = ("planner", "critic", "writer")
BODY = '"shares": {"planner": 0.4, "critic": 0.1, "writer": 0.5}'
OF_ROLES = f'{{"outcome": "correct", {BODY}}}'
READ = {"planner": 0.4, "critic": 0.1, "writer": 0.5}
ROLE_TOKENS = ["{", "}", "{", "}", "[", "]", '"', ",", ", ", ":", " ", "\\", "0.4", "0.55", ".1", "4e-1", "40%"]
ROLE_TOKENS += [
    '"outcome": "correct"',
    '"outcome": "wrong"',
    '"outcome": ',
    '"shares": {',
    '"shares": ',
    "?",
    "1" * 50,
]
ENTRIES = ['"planner": 0.4', '"critic": 0.1', '"writer": 0.5', '"planner": ', '"editor": 0.1']
ROLE_TOKENS += [*ENTRIES, "1" * 50, "NaN", "null", "\ud800", "\x00"]


def allowed(shares):
    return shares is None or (tuple(shares) == ROLES and set(shares.values()) <= set(SHARES))


def test_fuzz_of_shares_never_raises():
    rng, read = random.Random(3), 0
    for _ in range(20_000):
        inside = ", ".join(rng.choices(ENTRIES, k=rng.randrange(2, 5)))
        middle = rng.choice([f'"shares": {{{inside}}}', BODY, "".join(rng.choices(ROLE_TOKENS, k=rng.randrange(15)))])
        parts = [*rng.choices(ROLE_TOKENS, k=rng.randrange(4)), '{"outcome": "correct", ', middle, "}"]
        text = "".join(parts + rng.choices(ROLE_TOKENS, k=rng.randrange(4)))
        for outcome in ("correct", "wrong"):
            shares = parse_role_shares(text, outcome, ROLES)
            assert allowed(shares), text
            read += shares is not None
    assert read > 1000  # the tokens do make ratings


def test_fuzz_of_shares_with_one_damaged_character():
    rng = random.Random(4)
    for _ in range(5000):
        i = rng.randrange(len(OF_ROLES))
        damaged = OF_ROLES[:i] + rng.choice(["", *'{}[]":,\\x7.%', "\ud800"]) + OF_ROLES[i + 1 :]
        assert allowed(parse_role_shares(damaged, "correct", ROLES))


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ('{"outcome": "correct", "shares": {"planner": ' + "7" * 1_000_000, None),
        ('{"outcome": "correct", "shares": {"planner": 0.' + "4" * 1_000_000 + "}}", None),
        (OF_ROLES.replace("0.4", "0.4" + "0" * 1_000_000), READ),  # long, but still the number 0.4
        (OF_ROLES.replace("0.4", "0.4e" + "0" * 1_000_000), READ),
        (OF_ROLES.replace("0.4", "4e-" + "9" * 1_000_000), None),
        (OF_ROLES.replace(" ", " " * 100_000), READ),
        ("{" * 10_000 + OF_ROLES, READ),
        ('{"a":' * 10_000 + OF_ROLES + "}" * 10_000, READ),
        ('{"outcome": "correct", "shares": ' * 10_000 + OF_ROLES + "}" * 10_000, None),  # the outermost one counts
        ('{"outcome": "correct", "shares": ' + '{"planner": ' * 10_000 + "0.4" + "}" * 10_001, None),
        (OF_ROLES[:-1] + ', "x": ' + "[" * 10_000 + "]" * 10_000 + "}", READ),
        ((OF_ROLES[:-1] + ', "x": ') * 10_000 + OF_ROLES + "}" * 10_000, READ),
        (OF_ROLES * 10_000, READ),
        ("\ud800" + OF_ROLES + "\udfff", READ),
        (OF_ROLES.replace("planner", "plan\ud800er"), None),
        (OF_ROLES.replace("planner", "planner\x00"), None),
        ("\x00\u200f" + OF_ROLES, READ),
    ],
    ids=range(17),
)
def test_hostile_shares(text, shares):
    assert parse_role_shares(text, "correct", ROLES) == shares


def seconds(function, text):
    """The process's time, the least of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function(text)
        times.append(time.process_time() - start)
    return min(times)


def grows_linearly(function, build, size=2_000):
    """
    Eight times the text takes about eight times as long, and 64 times where time is quadratic: below 24, and three
    tries, as others use this machine too. Texts are long enough to take milliseconds, or as long as can be.
    """
    while size < 250_000 and seconds(function, build(size)) < 2e-3:
        size *= 2
    ratios = []
    while len(ratios) < 3 and min(ratios, default=99) > 24:
        ratios.append(seconds(function, build(8 * size)) / max(seconds(function, build(size)), 5e-4))
    return min(ratios) <= 24


SHARE_UNITS = ["{", '"', '{"', '{"a":[', '"shares": {', '"shares": ', '"shares": {"', '{"shares": {"planner": ']
SHARE_UNITS += ['"outcome": "', '{"outcome": "correct", "shares": {"planner": 0.4, ', '"shares": {"planner": 0.4, "']
SHARE_UNITS += [
    OF_ROLES,
    OF_ROLES[:-1] + ', "x":',
    '"planner": 0.4, ',
    "1",
    "1.",
    "1e",
    " ",
    "\n",
    "\\",
    "\ud800",
    "%",
]
BEHIND = '{"outcome": "correct", "shares": {"planner": '


@pytest.mark.parametrize("before", ["", BEHIND, BEHIND[:-1] + '"', BEHIND + "0.4"], ids=range(4))
@pytest.mark.parametrize("unit", SHARE_UNITS, ids=repr)
def test_time_grows_with_the_length(unit, before):
    def build(size):
        return before + unit * (size // len(unit))

    assert grows_linearly(lambda text: parse_role_shares(text, "correct", ROLES), build)


def test_growth_tells_linear_from_quadratic():
    assert grows_linearly(re.compile("y+").findall, lambda size: "y" * size)
    assert not grows_linearly(re.compile("y*x").findall, lambda size: "y" * size, size=400)
