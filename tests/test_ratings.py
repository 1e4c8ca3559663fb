import json
import math
import random
import signal
from contextlib import contextmanager

import pytest
import torch

from ccpo.ratings import (
    MAX_RATING_TOKENS,
    PAIRS,
    RATING_PREFIX,
    build_rating_messages,
    parse_rating,
    parse_shares,
    rating_choices,
    shares_from_log_probs,
)

SHARES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
ECHO = ", ".join(f"[{t}, {s}]" for t, s in PAIRS)  # the nine pairs as the prompt lists them
EPISODE = {"problem": "What is 1 + 1?", "thought": "Add.", "answer": r"\boxed{2}"}


def test_constants():
    assert [t for t, _ in PAIRS] == SHARES  # exact: 0.7 is the literal 0.7
    assert [s for _, s in PAIRS] == SHARES[::-1]
    assert MAX_RATING_TOKENS == 512


VALID = [
    # JSON
    ('{"outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"outcome": "wrong", "pair": [0.7, 0.3]}', "wrong", 0.7),
    ('{"outcome": "incorrect", "pair": [0.3, 0.7]}', "wrong", 0.3),
    ('{"outcome": " CORRECT\\t ", "pair": [0.1, 0.9]}'.replace("\\t", "\t"), "correct", 0.1),
    ('{"outcome": "InCorrect", "pair": [0.9, 0.1]}', "wrong", 0.9),
    ('{"pair": [0.7, 0.3], "outcome": "correct"}', "correct", 0.7),
    ('{"outcome":"correct","pair":[0.70,0.300]}', "correct", 0.7),
    ('{"outcome": "correct", "pair": [0.7, 0.30000000000000004]}', "correct", 0.7),
    ('{"outcome": "correct", "pair": [0.7999999999999999, 0.2]}', "correct", 0.8),
    ('{"outcome": "correct", "pair": [7e-1, 3E-01]}', "correct", 0.7),
    ('{\n  "outcome" : "correct",\n  "pair" : [\n    0.6,\n    0.4\n  ]\n}', "correct", 0.6),
    ('```json\n{"outcome": "correct", "pair": [0.7, 0.3]}\n```', "correct", 0.7),
    ('Here is my rating:\n```\n{"outcome": "correct", "pair": [0.2, 0.8]}\n```\nThanks.', "correct", 0.2),
    ('I rate {"outcome": "correct", "pair": [0.7, 0.3]}. The wrong one would be 0.1, 0.9.', "correct", 0.7),
    ('The plan [0, 1) {x} \\frac{1}{2}: {"outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('An open { and then {"outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('An open [ { ( and then {"outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('\ufeff{"outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    # extra keys are ignored, whatever they hold
    ('{"outcome": "correct", "pair": [0.7, 0.3], "why": "the set {1, 2} isn\'t wrong"}', "correct", 0.7),
    ('{"why": "they wrote \\"pair\\": [0.1, 0.9]}", "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"why": "$\\sqrt{2}$ is wrong\n0.1, 0.9", "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"list": [[0.9, 0.1], [0.8, 0.2]], "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"a": {"b": [{"c": null}, {}]}, "outcome": "correct", "pair": [0.7, 0.3], "n": NaN}', "correct", 0.7),
    ('{"eg": {"outcome": "wrong", "pair": [0.1, 0.9]}, "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"outcome": "correct", "pair": [0.7, 0.3], "eg": [{"outcome": "wrong", "pair": [0.1, 0.9]}]}', "correct", 0.7),
    ('{"type": "pair", "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"type": "outcome", "also": ["pair"], "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"n": ' + "9" * 100_000 + ', "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"deep": ' + "[" * 10_000 + "]" * 10_000 + ', "outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"outcome": "correct", "pair": [0.7, 0.3],}', "correct", 0.7),  # a trailing comma
    ('{"rating": {"outcome": "correct", "pair": [0.7, 0.3]}}', "correct", 0.7),  # wrapped
    ('[{"outcome": "correct", "pair": [0.7, 0.3]}]', "correct", 0.7),
    # several objects: the readable ones must agree
    ('{"outcome": "correct", "pair": [0.7, 0.3]} {"pair": [0.70, 0.30], "outcome": "correct"}', "correct", 0.7),
    ('{"outcome": "wrong", "pair": [0.3, 0.7]} {"outcome": "incorrect", "pair": [0.3, 0.7]}', "wrong", 0.3),
    ('{"outcome": "correct", "pair": [T, S]} {"outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"x": {"r": {"outcome": "correct", "pair": [0.7, 0.3]}}, "y": {"outcome": "correct"}}', "correct", 0.7),
    # JSON that misses a key or is no JSON: read as text
    ('The answer is correct. {"pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"verdict": "correct", "shares": [0.7, 0.3]}', "correct", 0.7),
    ('{"Outcome": "correct", "Pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"outcome": "correct", "pair": [0.7, 0.3]', "correct", 0.7),  # cut off
    ("{'outcome': 'correct', 'pair': [0.7, 0.3]}", "correct", 0.7),
    ("{outcome: correct, pair: (0.7, 0.3)}", "correct", 0.7),
    ('{\\"outcome\\": \\"correct\\", \\"pair\\": [0.7, 0.3]}', "correct", 0.7),
    ('{"oops {"outcome": "correct", "pair": [0.7, 0.3]}', "correct", 0.7),
    ('{"x": ["outcome": "correct", "pair": 5]} pair: 0.7, 0.3', "correct", 0.7),  # a key in a list is no key
    ('{"outcome": "correct"], "pair": [T, S]} pair: 0.7, 0.3', "correct", 0.7),  # brackets that do not match
    ('{] "outcome": "correct", "pair": [T, S]} pair: 0.7, 0.3', "correct", 0.7),
    ('{"pair": 5] {"outcome": "correct"} pair: 0.7, 0.3', "correct", 0.7),
    # plain text
    ("The answer is correct. pair: 0.7, 0.3", "correct", 0.7),
    ("outcome: wrong\npair: 0.7, 0.3", "wrong", 0.7),
    ("Incorrect. [0.7, 0.3]", "wrong", 0.7),
    ("correct (0.7, 0.3)", "correct", 0.7),
    ("Correct! 70% / 30%", "correct", 0.7),
    ("CORRECT 70/30 %", "correct", 0.7),
    ("correct: 70/30%", "correct", 0.7),
    ("correct, 70\\%/30\\%", "correct", 0.7),
    ("correct, 70.0% , 30.00 %.", "correct", 0.7),
    ("correct, 70% and 30%", "correct", 0.7),
    ("wrong; 0.2/0.8", "wrong", 0.2),
    ("0.7 and 0.3, since it was correct", "correct", 0.7),
    ("correct .7,.3", "correct", 0.7),
    ("correct 0.7 ,\n 0.3.", "correct", 0.7),
    ("**Outcome:** correct\n**Pair:** **0.7, 0.3**", "correct", 0.7),
    ("outcome = correct; pair = $0.7, 0.3$", "correct", 0.7),
    ("The answer is not correct. pair: 0.7, 0.3", "wrong", 0.7),
    ("The answer isn't quite correct: 0.7, 0.3", "wrong", 0.7),
    ("That isn’t a correct answer. 0.7, 0.3", "wrong", 0.7),
    ("The answer is not wrong. pair: 0.7, 0.3", "correct", 0.7),
    ("Not only correct but short. pair: 0.7, 0.3", "correct", 0.7),
    ("No: correct. pair: 0.7, 0.3", "correct", 0.7),
    ("It is correct, yes, correct: 0.7, 0.3, I repeat: 70%/30%", "correct", 0.7),
    ("Incorrectly or not, correctness aside, correct_answer: it is correct. 0.7, 0.3", "correct", 0.7),
    ("2 steps, 5 lines, 12/3 = 4; correct; 0.7, 0.3", "correct", 0.7),
    ("1. correct\n2. 0.7, 0.3\n3. done", "correct", 0.7),
    # an echo, then an explicit answer
    (f"Correct. Allowed pairs: {ECHO}\npair: 0.7, 0.3", "correct", 0.7),
    (f"Allowed: {ECHO}. Outcome: correct. Pair: [0.7, 0.3]", "correct", 0.7),
    (f"Correct. {ECHO} {{'pair': [0.7, 0.3]}}", "correct", 0.7),
    (f"Correct. {ECHO} **Pair**: 70% / 30%", "correct", 0.7),
    ("Correct. Of 0.9, 0.1, 0.8, 0.2, 0.7, 0.3 I take pair: 0.8, 0.2", "correct", 0.8),
    ("The outcome may be correct or wrong. Outcome: wrong. Pair: 0.2, 0.8", "wrong", 0.2),
    ("Pair: 0.2, 0.8. The thinker's idea seemed correct to me, but outcome is wrong", "wrong", 0.2),
    ("The correct answer is 5, so outcome: not correct. pair is 0.2, 0.8", "wrong", 0.2),
]


@pytest.mark.parametrize(("text", "outcome", "share"), VALID, ids=[text[:50] for text, *_ in VALID])
def test_valid(text, outcome, share):
    assert parse_rating(text, outcome) == share
    # the other verdict makes the same rating invalid
    assert parse_rating(text, "wrong" if outcome == "correct" else "correct") is None


INVALID = [  # whatever the verdict
    "",
    "   \n",
    "{}",
    "[]",
    "null",
    "0.7, 0.3",  # no outcome
    "correct",  # no pair
    '{"outcome": "correct"}',
    '{"pair": [0.7, 0.3]}',
    # JSON whose values cannot be right settles the matter: no second reading as text
    '{"outcome": "correct", "pair": [0.75, 0.25]}',
    '{"outcome": "correct", "pair": [0.7, 0.2]}',
    '{"outcome": "correct", "pair": [0.3, 0.3]}',
    '{"outcome": "correct", "pair": [1, 0]}',
    '{"outcome": "correct", "pair": [1.0, 0.0]}',
    '{"outcome": "correct", "pair": [0.7001, 0.2999]}',
    '{"outcome": "correct", "pair": [-0.7, -0.3]}',
    '{"outcome": "correct", "pair": [7, 3]}',
    '{"outcome": "correct", "pair": [70, 30]}',
    '{"outcome": "correct", "pair": [0.7]}',
    '{"outcome": "correct", "pair": [0.7, 0.3, 0.0]}',
    '{"outcome": "correct", "pair": []}',
    '{"outcome": "correct", "pair": 0.7}',
    '{"outcome": "correct", "pair": "0.7, 0.3"}',
    '{"outcome": "correct", "pair": ["0.7", "0.3"]}',
    '{"outcome": "correct", "pair": [[0.7, 0.3]]}',
    '{"outcome": "correct", "pair": [true, false]}',
    '{"outcome": "correct", "pair": [NaN, NaN]}',
    '{"outcome": "correct", "pair": [Infinity, 0.3]}',
    '{"outcome": "correct", "pair": [1e400, -1e400]}',
    '{"outcome": "correct", "pair": {"thinker": 0.7, "solver": 0.3}}',
    '{"outcome": "correct", "pair": null} pair: 0.7, 0.3',
    '{"outcome": "correct", "pair": [T, S]} outcome: correct, pair: 0.7, 0.3',
    '{"outcome": true, "pair": [0.7, 0.3]}',
    '{"outcome": ["correct"], "pair": [0.7, 0.3]}',
    '{"outcome": "right", "pair": [0.7, 0.3]}',
    '{"outcome": "", "pair": [0.7, 0.3]}',
    '{"outcome": "not correct", "pair": [0.7, 0.3]}',
    '{"outcome": "correct" or "wrong", "pair": [0.7, 0.3]}',
    '{"outcome": "correct", "pair": [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]}',
    '{"outcome": "correct", "pair": ' + f"[{ECHO}]" + "}",
    '{"outcome": "correct", "pair": [' + "1" * 100_000 + ", 0.3]}",
    '{"outcome": "correct", "outcome": "wrong", "pair": [0.7, 0.3]}',
    '{"outcome": "correct", "outcome": "correct", "outcome": "correct", "pair": [0.7, 0.3]}',
    '{"outcome": "correct", "pair": [0.7, 0.3], "pair": [0.7, 0.3]}',
    # objects that disagree
    '{"outcome": "correct", "pair": [0.7, 0.3]} {"outcome": "correct", "pair": [0.6, 0.4]}',
    '{"outcome": "correct", "pair": [0.7, 0.3]} {"outcome": "wrong", "pair": [0.7, 0.3]}',
    '{"a": {"outcome": "correct", "pair": [0.7, 0.3]}, "b": {"outcome": "correct", "pair": [0.6, 0.4]}}',
    # echoes
    f"correct. {ECHO}",
    f"correct. pair: {ECHO}",
    f"outcome: correct. pair: one of {ECHO}",
    "correct. 0.9, 0.1, 0.8, 0.2",
    "correct. pair: 0.9, 0.1, 0.8, 0.2",
    "correct. pair: 0.9, 0.1, 0.8, 0.2 and so 0.7, 0.3",
    "correct. 0.9, 0.1, 0.8, 0.2. I choose 0.7, 0.3",  # no key: not clear enough
    "correct. pair: 0.9, 0.1 or 0.8, 0.2",
    "correct. pair: 0.9, 0.1; pair: 0.8, 0.2",
    "correct. from (0.9, 0.1) to (0.1, 0.9)",
    "correct, 0.7/0.3/0.7",
    # text that contradicts itself
    "outcome: correct or wrong. pair: 0.7, 0.3",
    "correct | wrong: 0.7, 0.3",
    "outcome: correct. outcome: wrong. pair: 0.7, 0.3",
    "The answer is correct. The answer is incorrect. pair: 0.7, 0.3",
    "correct. pair: 0.75, 0.25 (so about 0.7, 0.3)",
    # no outcome word, or no pair
    "correctly done: 0.7, 0.3",
    "the correctness: 0.7, 0.3",
    "partially-correct: 0.7, 0.3",
    "correct-ish: 0.7, 0.3",
    "correct_answer 0.7, 0.3",
    "correct: 10.7, 0.35",
    "correct: 10.7, 0.3",
    "correct: 0.7, 0.35",
    "correct: 0.7, 0.3.1",
    "correct: 1.0.7, 0.3",
    "correct: -0.7, 0.3",
    "correct: 0.7, -0.3",
    "correct: 0.7 - 0.3",
    "correct: 0.7 0.3",
    "correct: 0.75, 0.25",
    "correct: 70, 30",
    "correct: 70/30",
    "correct: 70%/30",
    "correct: 0.7%/0.3",
    "correct: 0.7%/0.3%",
    "correct: 7/3",
    "correct: x0.7, 0.3",
    "correct: 0.7, 0.3x",
    "correct: 0.7 and0.3 0.7and 0.3",
    "correct: 0.7\u200f, 0.3",  # a right-to-left mark
    "correct: ٠.٧, ٠.٣",
    "correct: 0,7, 0,3",
]


@pytest.mark.parametrize("text", INVALID, ids=[text[:50] for text in INVALID])
def test_invalid(text):
    assert parse_rating(text, "correct") is None
    assert parse_rating(text, "wrong") is None


def test_arguments():
    assert parse_rating(None, "correct") is None
    for outcome in ("incorrect", "Correct", "", None, 1.0, True, ["correct"]):
        with pytest.raises(ValueError, match='"correct" or "wrong"'):
            parse_rating('{"outcome": "correct", "pair": [0.7, 0.3]}', outcome)
    for text in (b"correct: 0.7, 0.3", 0.7, ["correct: 0.7, 0.3"]):
        with pytest.raises(TypeError, match="`text` must be"):
            parse_rating(text, "correct")


FORMATS = [
    '{{"outcome": "{word}", "pair": [{t}, {s}]}}',
    '```json\n{{"pair": [{t}, {s}], "outcome": "{word}", "why": "0.5, 0.5 {{\\\\frac}}"}}\n```',
    "The answer is {word}. pair: {t}, {s}",
    "{word} [{t}, {s}]",
    "{word} ({t}, {s})",
    "{word}: {t}/{s}",
    "{word}: {t} and {s}",
    "{word}: {tp}% / {sp}%",
    "{word}: {tp}/{sp} %",
    "{word}: {t:.2f},{s:.2f}",
    "{echo}\noutcome: {word}, pair: {t}, {s}",
]


@pytest.mark.parametrize("template", FORMATS)
@pytest.mark.parametrize(("word", "outcome"), [("correct", "correct"), ("wrong", "wrong"), ("incorrect", "wrong")])
def test_round_trip(template, word, outcome):
    for t, s in PAIRS:
        tp, sp = round(100 * t), round(100 * s)
        text = template.format(word=word, t=t, s=s, tp=tp, sp=sp, echo=ECHO)
        assert parse_rating(text, outcome) == t
        assert parse_rating(text, "wrong" if outcome == "correct" else "correct") is None


@pytest.mark.parametrize("outcome", ["correct", "wrong"])
def test_rating_choices(outcome):
    prefix, choices = rating_choices(outcome)
    assert prefix == RATING_PREFIX % outcome
    assert len(choices) == len(set(choices)) == 9
    assert len({len(choice) for choice in choices}) == 1
    for choice, pair in zip(choices, PAIRS, strict=True):
        assert parse_rating(prefix + choice, outcome) == pair[0]
        assert json.loads(prefix + choice) == {"outcome": outcome, "pair": list(pair)}
    with pytest.raises(ValueError, match='"correct" or "wrong"'):
        rating_choices("incorrect")


def test_parse_shares():
    right, wrong = '{"outcome": "correct", "pair": [0.7, 0.3]}', '{"outcome": "wrong", "pair": [0.2, 0.8]}'
    shares = parse_shares(
        [right, wrong, right, wrong, right, right, None, "?"],
        ["correct", "wrong", "wrong", "correct", None, math.nan, "correct", "wrong"],
    )
    assert shares[:2] == [0.7, 0.2]
    assert all(math.isnan(share) for share in shares[2:]) and len(shares) == 8
    assert parse_shares([], []) == []
    with pytest.raises(ValueError, match="same length, got 1 and 2"):
        parse_shares([right], ["correct", "wrong"])
    with pytest.raises(ValueError, match='"correct" or "wrong"'):
        parse_shares([right], [1.0])


# The object reader against `json`, which reads the same objects another way.
def _random_value(rng, depth):
    kind = rng.randrange(9 if depth else 7)
    if kind == 7:
        return [_random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(["a", "b", "{", '"', "pair", "x"]): _random_value(rng, depth - 1) for _ in range(3)}
    return rng.choice([None, True, 1.5, -7, "correct", "wrong", "a\\b", '"}', "{[", "\n é", "pair", "outcome", ""])


def test_objects_agree_with_json():
    rng, seen = random.Random(0), set()
    for _ in range(3000):
        pair, word = rng.choice([*map(list, PAIRS), [0.75, 0.25], [0.7], "0.7, 0.3"]), rng.choice(["correct", "wrong"])
        fields = [("outcome", word), ("pair", pair)] + [(key, _random_value(rng, 3)) for key in "xyz"]
        rng.shuffle(fields)
        text = json.dumps(dict(fields), indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)
        text = rng.choice(["", "Right: ", "{x} ", '"} ']) + text + rng.choice(["", " wrong", "\n```", " {"])
        expected = pair[0] if tuple(pair) in PAIRS and word == "correct" else None
        assert parse_rating(text, "correct") == expected, text
        seen.add(expected)
    assert seen == {None, *SHARES}


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


@pytest.mark.parametrize("role", ["thinker", "solver"])
@pytest.mark.parametrize(
    ("outcome", "quantity", "other"), [("correct", "credit", "blame"), ("wrong", "blame", "credit")]
)
def test_rating_messages(role, outcome, quantity, other):
    messages = build_rating_messages(role=role, outcome=outcome, **EPISODE)
    assert len(messages) == 1 and messages[0]["role"] == "user"
    content = messages[0]["content"]
    for text in EPISODE.values():
        assert content.count(text) == 1
    assert content.startswith(f"You were the {role.capitalize()} of")
    assert quantity in content and other not in content
    assert f'{{"outcome": "{outcome}", "pair": [T, S]}}' in content
    assert ECHO in content
    assert "first number is the Thinker's share" in content and "second the Solver's" in content
    # a copy of the prompt is no rating, whole or in part; a copy followed by an object is one
    for copy in (content, *content.splitlines()):
        assert parse_rating(copy, outcome) is None
    prefix, choices = rating_choices(outcome)
    assert parse_rating(content + "\n" + prefix + choices[2], outcome) == 0.7


def test_rating_messages_keep_texts_as_they_are():
    episode = {"problem": "Let {outcome} = {x}.", "thought": "{pairs} %s", "answer": r"\boxed{\frac{1}{2}} {role}"}
    content = build_rating_messages(role="solver", outcome="wrong", **episode)[0]["content"]
    assert all(text in content for text in episode.values())


def test_rating_messages_keep_the_end():
    answer = "A" + "x" * 5000 + r" so \boxed{42}."
    thought = "B" + "y" * 5000 + " the end"
    build = {"role": "thinker", "outcome": "correct", "problem": "P?", "thought": thought, "answer": answer}

    whole = build_rating_messages(**build)[0]["content"]
    assert answer in whole and thought in whole and "…" not in whole

    exact = build_rating_messages(**build, max_answer_chars=len(answer), max_thought_chars=len(thought))[0]["content"]
    assert exact == whole

    cut = build_rating_messages(**build, max_answer_chars=15, max_thought_chars=9)[0]["content"]
    # 15 = the "…" and the last 14 of `… so \boxed{42}.`; 9 = the "…" and the last 8
    assert "\n" + "…" + answer[-14:] + "\n" in cut and r"\boxed{42}." in cut
    assert "\n… the end\n" in cut and cut.count("…") == 2

    least = build_rating_messages(**build, max_answer_chars=1)[0]["content"]
    assert "answer\n…\n" in least and "boxed" not in least


def test_rating_messages_arguments():
    with pytest.raises(ValueError, match='`role` must be "thinker" or "solver"'):
        build_rating_messages(role="judge", outcome="correct", **EPISODE)
    with pytest.raises(ValueError, match='"correct" or "wrong"'):
        build_rating_messages(role="solver", outcome="incorrect", **EPISODE)
    for name in ("max_answer_chars", "max_thought_chars"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            build_rating_messages(role="solver", outcome="wrong", **EPISODE, **{name: 0})


@pytest.mark.parametrize("expectation", [True, False])
def test_one_hot_log_probs(expectation):
    log_probs = torch.full((9, 9), -torch.inf).fill_diagonal_(0.0)
    assert torch.allclose(shares_from_log_probs(log_probs, expectation=expectation), torch.tensor(SHARES))


def test_expectation():
    # p = (1/2, 1/4, 1/4, 0, …): 0.45 + 0.2 + 0.175 = 0.825; uniform: 0.5
    log_probs = torch.full((2, 9), -torch.inf)
    log_probs[0, :3] = torch.tensor([0.5, 0.25, 0.25]).log() - 100  # not normalised: only differences count
    log_probs[1] = -3.0
    assert torch.allclose(shares_from_log_probs(log_probs, expectation=True), torch.tensor([0.825, 0.5]))
    # temperature 1/2 squares p: (4, 1, 1)/6 -> (3.6 + 0.8 + 0.7)/6 = 0.85
    assert torch.allclose(
        shares_from_log_probs(log_probs, expectation=True, temperature=0.5), torch.tensor([0.85, 0.5])
    )
    # the slow way
    log_probs = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    slow = []
    for row in log_probs.tolist():
        weights = [math.exp(value / 1.7) for value in row]
        slow.append(sum(weight * t for weight, (t, _) in zip(weights, PAIRS, strict=True)) / sum(weights))
    fast = shares_from_log_probs(log_probs, expectation=True, temperature=1.7)
    assert torch.allclose(fast, torch.tensor(slow), atol=1e-6)
    assert fast.dtype == torch.float32
    assert shares_from_log_probs(log_probs.bfloat16(), expectation=True).dtype == torch.float32


def test_draws_follow_the_probabilities():
    n, p = 40_000, torch.tensor([0.30, 0.20, 0.15, 0.10, 0.10, 0.05, 0.05, 0.05, 0.0])
    for temperature, expected in ((1.0, p), (2.0, p.sqrt() / p.sqrt().sum())):
        drawn = shares_from_log_probs(
            p.log().expand(n, 9),
            expectation=False,
            temperature=temperature,
            generator=torch.Generator().manual_seed(0),
        )
        counts = torch.stack([(drawn == share).sum() for share in torch.tensor(SHARES)])
        assert counts.sum() == n and counts[-1] == 0
        # Hoeffding and a union over nine: P(any frequency off by > eps) <= 18 exp(-2 n eps²) = 1e-9 at eps = 0.0172
        assert (counts / n - expected).abs().max() < math.sqrt(math.log(18 / 1e-9) / (2 * n))


def test_draws_are_reproducible():
    log_probs = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    draws = [
        shares_from_log_probs(log_probs, expectation=False, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("expectation", [True, False])
def test_unknown_log_probs(expectation):
    log_probs = torch.full((5, 9), -torch.inf)
    log_probs[:, 2] = 0.0
    log_probs[1, 5] = torch.nan
    log_probs[2] = -torch.inf
    log_probs[3, 0] = torch.inf
    shares = shares_from_log_probs(log_probs, expectation=expectation)
    assert shares.isnan().tolist() == [False, True, True, True, False]
    assert torch.allclose(shares[[0, 4]], torch.tensor([0.7, 0.7]))
    assert shares_from_log_probs(torch.full((3, 9), torch.nan), expectation=expectation).isnan().all()
    assert shares_from_log_probs(torch.empty(0, 9), expectation=expectation).shape == (0,)


def test_log_probs_arguments():
    for shape in ((9,), (2, 8), (2, 1, 9)):
        with pytest.raises(ValueError, match=r"shape \(n, 9\), got"):
            shares_from_log_probs(torch.zeros(shape), expectation=True)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="`temperature` must be > 0"):
            shares_from_log_probs(torch.zeros(2, 9), expectation=True, temperature=temperature)
