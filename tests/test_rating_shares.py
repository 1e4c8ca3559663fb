"""A rating of more than two roles: one share for each, in one object."""

import json
import random

import pytest

from ccpo.ratings import (
    SHARE_CHOICES,
    SHARES_END,
    parse_rating,
    parse_role_shares,
    rating_question,
    role_share_prefix,
)
from ccpo.ratings.objects import read_objects, read_outcome, read_pair

ROLES = ("planner", "critic", "writer")
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
BODY = '"shares": {"planner": 0.4, "critic": 0.1, "writer": 0.5}'
READ = {"planner": 0.4, "critic": 0.1, "writer": 0.5}

VALID = [
    f'{{"outcome": "correct", {BODY}}}',
    f'{{{BODY}, "outcome": "correct"}}',
    '{"outcome":"correct","shares":{"planner":0.4,"critic":0.1,"writer":0.5}}',
    '{"outcome": "correct", "shares": {"writer": 0.5, "planner": 0.4, "critic": 0.1}}',
    '{"outcome": " CORRECT ", "shares": {"planner": .4, "critic": 0.100, "writer": 5e-1}}',
    '{"outcome": "correct", "shares": {"planner": 40%, "critic": 10 %, "writer": 50\\%}}',
    '{"outcome": "correct", "shares": {"planner": 0.4, "critic": 10%, "writer": 0.49999999999999994}}',
    '{\n  "outcome" : "correct",\n  "shares" : {\n    "planner" : 0.4,\n    "critic":0.1 ,\n    "writer": 0.5\n  }\n}',
    '{"outcome": "correct", "shares": {"planner": 0.4, "critic": 0.1, "writer": 0.5,},}',  # trailing commas
    f'```json\n{{"outcome": "correct", {BODY}}}\n```',
    f'I rate {{"outcome": "correct", {BODY}}}. The critic, 0.9, was wrong.',
    f'The plan [0, 1) {{x}} \\frac{{1}}{{2}}: {{"outcome": "correct", {BODY}}}',
    f'An open {{ and [ and then {{"outcome": "correct", {BODY}}}',
    f'\ufeff\ud800{{"outcome": "correct", {BODY}}}\x00',
    f'{{"rating": {{"outcome": "correct", {BODY}}}}}',
    f'[{{"outcome": "correct", {BODY}}}]',
    # other keys, whatever they hold
    f'{{"why": "$\\sqrt{{2}}$ is wrong\n0.1", "outcome": "correct", {BODY}, "sum": 1.0, "n": NaN}}',
    f'{{"why": "they wrote \\"shares\\": {{}}", "outcome": "correct", {BODY}}}',
    f'{{"pair": [0.7, 0.3], "outcome": "correct", {BODY}}}',
    f'{{"planner": 0.9, "outcome": "correct", {BODY}}}',
    f'{{"eg": {{"outcome": "wrong", {BODY}}}, "outcome": "correct", {BODY}}}',
    f'{{"n": {"9" * 100_000}, "outcome": "correct", {BODY}}}',
    f'{{"deep": {"[" * 10_000 + "]" * 10_000}, "outcome": "correct", {BODY}}}',
    # several objects: the readable ones must agree
    f'{{"outcome": "correct", {BODY}}} {{"outcome": "correct", {BODY}}}',
    f'{{"outcome": "correct", "shares": {{"planner": ?, "critic": ?, "writer": ?}}}} {{"outcome": "correct", {BODY}}}',
]


@pytest.mark.parametrize("text", VALID, ids=[text[:50] for text in VALID])
def test_valid(text):
    shares = parse_role_shares(text, "correct", ROLES)
    assert shares == READ and tuple(shares) == ROLES
    assert parse_role_shares(text, "wrong", ROLES) is None


def test_incorrect_means_wrong():
    for word in ("wrong", "incorrect", "InCorrect"):
        assert parse_role_shares(f'{{"outcome": "{word}", {BODY}}}', "wrong", ROLES) == READ


INVALID_SHARES = [
    '{"planner": 0.4, "critic": 0.1}',  # missing
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5, "editor": 0.1}',  # unknown
    '{"planner": 0.4, "critic": 0.1, "Writer": 0.5}',
    '{"planner": 0.4, "critic": 0.1, " writer": 0.5}',
    '{"planner": 0.4, "critic": 0.1, "critic": 0.1}',  # twice
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5, "writer": 0.5}',
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5, "writer": 0.3}',
    '{"planner": 0.4, "critic": 0.1, "writer": 0.55}',  # not allowed
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5001}',
    '{"planner": 0.4, "critic": 0, "writer": 0.5}',
    '{"planner": 0.4, "critic": 0.1, "writer": 1}',
    '{"planner": 0.4, "critic": 0.1, "writer": 5}',
    '{"planner": 0.4, "critic": 0.1, "writer": 50}',
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5%}',
    '{"planner": 0.4, "critic": 0.1, "writer": -0.5}',
    '{"planner": 0.4, "critic": 0.1, "writer": "0.5"}',
    '{"planner": 0.4, "critic": 0.1, "writer": null}',
    '{"planner": 0.4, "critic": 0.1, "writer": true}',
    '{"planner": 0.4, "critic": 0.1, "writer": NaN}',
    '{"planner": 0.4, "critic": 0.1, "writer": Infinity}',
    '{"planner": 0.4, "critic": 0.1, "writer": 1e400}',
    '{"planner": 0.4, "critic": 0.1, "writer": ' + "1" * 100_000 + "}",
    '{"planner": 0.4, "critic": 0.1, "writer": [0.5]}',
    '{"planner": 0.4, "critic": 0.1, "writer": {"share": 0.5}}',
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5 or 0.4}',
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5,, }',
    '{"planner": 0.4 "critic": 0.1, "writer": 0.5}',
    "{planner: 0.4, critic: 0.1, writer: 0.5}",
    "{'planner': 0.4, 'critic': 0.1, 'writer': 0.5}",
    '{"planner": ?, "critic": ?, "writer": ?}',
    '{"planner": 0.4, "critic": 0.1, "writer": 0.5} / 2',
    '[{"planner": 0.4, "critic": 0.1, "writer": 0.5}]',
    "[0.4, 0.1, 0.5]",
    '"planner: 0.4, critic: 0.1, writer: 0.5"',
    "{}",
    "{,}",
    "null",
    "0.5",
    "",
]
INVALID = [
    "",
    "{}",
    "correct",
    "correct. planner: 0.4, critic: 0.1, writer: 0.5",  # text is no rating
    f"correct {{{BODY}}}",
    f"{{{BODY}}}",
    '{"outcome": "correct"}',
    f'{{"outcome": "correct", "shares": {{}}, {BODY}}}',
    f'{{"outcome": "correct", "outcome": "correct", {BODY}}}',
    f'{{"outcome": true, {BODY}}}',
    f'{{"outcome": "right", {BODY}}}',
    f'{{"outcome": "correct" or "wrong", {BODY}}}',
    f'{{"Outcome": "correct", {BODY}}}',
    f'{{"outcome": "correct", "rating": {{{BODY}}}}}',
    f'{{"outcome": "correct", {BODY}',  # cut off
    f'{{"outcome": "correct", {BODY[:-1]}',
    f'{{"outcome": "correct"], {BODY}}}',  # brackets that do not match
    # objects that disagree
    f'{{"outcome": "correct", {BODY}}} {{"outcome": "wrong", {BODY}}}',
    f'{{"outcome": "correct", {BODY}}} {{"outcome": "correct", {BODY.replace("0.5", "0.6")}}}',
]
INVALID += [f'{{"outcome": "correct", "shares": {shares}}}' for shares in INVALID_SHARES]
INVALID += [f'{{"shares": {shares}, "outcome": "correct"}}' for shares in INVALID_SHARES]


@pytest.mark.parametrize("text", INVALID, ids=[text[:70] for text in INVALID])
def test_invalid(text):
    assert parse_role_shares(text, "correct", ROLES) is None
    assert parse_role_shares(text, "wrong", ROLES) is None


def test_arguments():
    text = VALID[0]
    assert parse_role_shares(None, "correct", ROLES) is None
    assert parse_role_shares(text, "correct", list(ROLES)) == READ
    for outcome in ("incorrect", "", None, 1.0):
        with pytest.raises(ValueError, match='"correct" or "wrong"'):
            parse_role_shares(text, outcome, ROLES)
    for reply in (b"{}", 0.5, [text]):
        with pytest.raises(TypeError, match="`text` must be"):
            parse_role_shares(reply, "correct", ROLES)
    for roles in ((), ("planner",), "planner", ("planner", "planner"), ("planner", 'a"b'), ("planner", ""), (1, 2)):
        with pytest.raises(ValueError, match="`roles` must be at least two different names"):
            parse_role_shares(text, "correct", roles)


# ---- Against `json`, which reads the same objects another way ----


def slowly(text, outcome, roles):
    """The rating in the text's one object, by the words of its definition."""
    fields = json.loads(text, object_pairs_hook=lambda pairs: ("object", pairs))[1]
    outcomes, shares = ([value for key, value in fields if key == name] for name in ("outcome", "shares"))
    if len(outcomes) != 1 or outcomes[0] != outcome or len(shares) != 1 or not isinstance(shares[0], tuple):
        return None
    entries = shares[0][1]
    if sorted(key for key, _ in entries) != sorted(roles):
        return None
    if not all(isinstance(value, float) and value in SHARES for _, value in entries):
        return None
    return dict(entries)


def random_entries(rng, roles):
    entries = [(role, rng.choice(SHARES)) for role in roles]
    rng.shuffle(entries)
    if rng.random() < 0.5:  # damage it
        place = rng.randrange(len(entries))
        damage = rng.randrange(4)
        if damage == 0:
            del entries[place]
        elif damage == 1:
            entries.insert(place, (rng.choice([*roles, "editor", "outcome", "shares"]), rng.choice(SHARES)))
        else:
            wrong = [0.0, 1.0, 0.55, -0.4, 4, "0.4", None, True, [0.4], {"a": 0.4}, {}, 1e300]
            entries[place] = (entries[place][0], rng.choice(wrong))
    return entries


def test_objects_agree_with_json():
    rng, valid = random.Random(0), 0
    for _ in range(4000):
        roles = rng.sample(["planner", "critic", "writer", "editor-2", "x_1", "pair", "shares"], rng.randint(2, 6))
        entries = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in random_entries(rng, roles))
        fields = [f'"outcome": "{rng.choice(["correct", "correct", "wrong"])}"', f'"shares": {{{entries}}}']
        more = ['"a": {"b": [{"c": null}, {}]}', '"shares ": {}', f'"eg": {{"shares": {{{entries}}}}}', '"x": "}"']
        fields += rng.sample(more, rng.randrange(3)) + (['"outcome": "correct"'] if rng.random() < 0.1 else [])
        rng.shuffle(fields)
        text = "{" + ", ".join(fields) + "}"
        expected = slowly(text, "correct", roles)
        around = rng.choice(["", "Right: ", "{x} ", '"} ']), rng.choice(["", " wrong", "\n```", " {"])
        assert parse_role_shares(around[0] + text + around[1], "correct", roles) == expected, text
        valid += expected is not None
    assert 500 < valid < 3500


def test_two_roles_are_read_as_leniently_as_a_pair():
    """What makes a pair's object readable or not makes that of two shares so."""
    rng, valid = random.Random(1), 0
    numbers = ["0.7", ".7", "0.70", "7e-1", "70%", "0.75", "-0.7", "7", '"0.7"', "null", "1e400", "0.7000000000000001"]
    frames = ["%s", "```json\n%s\n```", "{ [ %s", "{x} %s {y", '{"r": %s}', "%s %s", "[%s]", '"%s', "%s]"]
    tails = ["}", ",}", ', "why": "}"}', "", "]", ', "outcome": "correct"}']
    for _ in range(3000):
        first, frame, tail = rng.choice(numbers), rng.choice(frames), rng.choice(tails)
        second = "30%" if first == "70%" else "0.3"
        head, gap = '{"outcome": "correct",', rng.choice(["", " ", "\n\t"])
        pair = f'{head}"pair"{gap}:{gap}[{gap}{first}{gap},{gap}{second}{gap}]{gap}{tail}'
        shares = f'{head}"shares"{gap}:{gap}{{"a":{gap}{first}{gap},{gap}"b":{second}{gap}}}{gap}{tail}'
        text = frame.replace("%s", pair)
        objects = read_objects(text, {"outcome": read_outcome, "pair": read_pair})  # else it is read as plain text
        one = parse_rating(text, "correct") if objects else None
        both = parse_role_shares(frame.replace("%s", shares), "correct", ("a", "b"))
        assert both == (None if one is None else {"a": 0.7, "b": 0.3}), (frame, pair, shares)
        valid += both is not None
    assert valid > 200


# ---- The constrained reply ----


@pytest.mark.parametrize("outcome", ["correct", "wrong"])
def test_chosen_numbers_make_a_rating(outcome):
    rng = random.Random(2)
    assert [float(number) for number in SHARE_CHOICES] == list(SHARES)
    for _ in range(200):
        roles = rng.sample(["planner", "critic", "writer", "editor-2", "x_1"], rng.randint(2, 5))
        chosen, prefix = [], ""
        for _ in roles:
            longer = role_share_prefix(outcome, roles, chosen)
            assert longer.startswith(prefix) and longer.endswith('": ')
            assert parse_role_shares(longer, outcome, roles) is None
            chosen.append(rng.choice(SHARE_CHOICES))
            prefix = longer + chosen[-1]
        shares = dict(zip(roles, map(float, chosen), strict=True))
        assert json.loads(prefix + SHARES_END) == {"outcome": outcome, "shares": shares}
        assert parse_role_shares(prefix + SHARES_END, outcome, roles) == shares


def test_prefixes_by_hand():
    assert role_share_prefix("correct", ROLES, []) == '{"outcome": "correct", "shares": {"planner": '
    expected = '{"outcome": "wrong", "shares": {"planner": 0.4, "critic": '
    assert role_share_prefix("wrong", ROLES, ["0.4"]) == expected
    with pytest.raises(
        ValueError, match=r"`chosen` must have fewer numbers than there are roles \(3\), got \['0.4', '0.1', '0"
    ):
        role_share_prefix("wrong", ROLES, ["0.4", "0.1", "0.5"])
    with pytest.raises(ValueError, match='"correct" or "wrong"'):
        role_share_prefix("right", ROLES, [])


@pytest.mark.parametrize("outcome", ["correct", "wrong"])
def test_a_copy_of_the_question_is_no_rating(outcome):
    texts = {"planner": "Add.", "critic": "Yes.", "writer": "2"}
    question = rating_question("critic", "What is 1 + 1?", texts, outcome)
    for copy in (question, *question.splitlines(), question[question.index("Reply with") :]):
        assert parse_role_shares(copy, outcome, ROLES) is None
    reply = f'{{"outcome": "{outcome}", {BODY}}}'
    assert parse_role_shares(question + "\n" + reply, outcome, ROLES) == READ
