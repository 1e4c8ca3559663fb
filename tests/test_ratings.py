import json
import math
import random

import pytest

from ccpo.ratings import MAX_RATING_TOKENS, PAIRS, parse_rating, parse_shares

SHARES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
ECHO = ", ".join(f"[{t}, {s}]" for t, s in PAIRS)  # the nine pairs as the prompt lists them


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
