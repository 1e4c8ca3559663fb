"""How a role is asked for its rating, and a rating as a choice among nine."""

import json
import math

import pytest
import torch

from ccpo.ratings import (
    PAIRS,
    RATING_PREFIX,
    build_rating_messages,
    check_rating_prompt,
    fill_rating_prompt,
    parse_rating,
    rating_choices,
    rating_question,
    shares_from_log_probs,
)

SHARES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
ECHO = ", ".join(f"[{t}, {s}]" for t, s in PAIRS)  # the nine pairs as the prompt lists them
EPISODE = {"problem": "What is 1 + 1?", "thought": "Add.", "answer": r"\boxed{2}"}


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


THINK_SOLVE = """You were the {Role} of a team of two. The Thinker read the problem and wrote a plan; the Solver read
both and wrote the answer. The answer has been checked: it is correct.

### Problem
What is 1 + 1?

### The Thinker's plan
Add.

### The Solver's answer
2

### Your rating
The answer is correct, so the credit is to be divided: the more a role did to bring it about, the more it gets.
Choose one of these nine pairs. The first number is the Thinker's share of the credit, the second the Solver's.
[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.5, 0.5], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.1, 0.9]
Reply with one JSON object and nothing else, your two numbers in place of T and S:
{"outcome": "correct", "pair": [T, S]}"""


@pytest.mark.parametrize("role", ["thinker", "solver"])
def test_the_question_of_think_solve_to_the_byte(role):
    """What models are asked in the published team; a run's ratings rest on it."""
    expected = THINK_SOLVE.replace("{Role}", role.capitalize())
    assert rating_question(role, "What is 1 + 1?", {"thinker": "Add.", "solver": "2"}, "correct") == expected
    build = {"problem": "What is 1 + 1?", "thought": "Add.", "answer": "2", "outcome": "correct"}
    assert build_rating_messages(role=role, **build) == [{"role": "user", "content": expected}]


@pytest.mark.parametrize(
    ("names", "titles", "letters"),
    [
        (("planner", "writer"), ("Planner", "Writer"), ("P", "W")),
        (("critic", "co-writer"), ("Critic", "Co writer"), ("X", "Y")),  # of one letter
        (("first_draft", "e1"), ("First draft", "E1"), ("F", "E")),
    ],
)
def test_another_team_of_two_is_asked_the_same_with_its_names(names, titles, letters):
    expected = THINK_SOLVE.replace("{Role}", titles[1]).replace("Thinker", titles[0]).replace("Solver", titles[1])
    expected = expected.replace("T and S", "{} and {}".format(*letters)).replace("[T, S]", "[{}, {}]".format(*letters))
    question = rating_question(names[1], "What is 1 + 1?", dict(zip(names, ("Add.", "2"), strict=True)), "correct")
    assert question == expected
    assert all(parse_rating(copy, "correct") is None for copy in (question, *question.splitlines()))


TEXTS = {"planner": "First {role} %s.", "critic": r"No \boxed{\frac{1}{2}}!", "writer": "So {problem} 2."}


@pytest.mark.parametrize(
    ("outcome", "quantity", "other"), [("correct", "credit", "blame"), ("wrong", "blame", "credit")]
)
def test_the_question_of_three_roles(outcome, quantity, other):
    question = rating_question("critic", "Is {x} = {outcome}?", TEXTS, outcome)
    assert question.startswith("You were the critic of a team of 3, who spoke in this order: planner, critic, writer.")
    assert quantity in question and other not in question and f"it is {outcome}" in question
    for text in ("Is {x} = {outcome}?", *(f"### {name}\n{text}\n" for name, text in TEXTS.items())):
        assert question.count(text) == 1
    assert question.index("### planner") < question.index("### critic") < question.index("### writer")
    form = f'{{"outcome": "{outcome}", "shares": {{"planner": ?, "critic": ?, "writer": ?}}}}'
    assert question.endswith("\n" + form)
    assert all(number in question for number in map(str, SHARES))


def test_questions_that_cannot_be():
    with pytest.raises(ValueError, match=r"`role` must be one of \['planner', 'critic', 'writer'\], got 'judge'"):
        rating_question("judge", "?", TEXTS, "correct")
    with pytest.raises(ValueError, match='"correct" or "wrong"'):
        rating_question("critic", "?", TEXTS, "incorrect")
    with pytest.raises(ValueError, match="`roles` must be at least two different names"):
        rating_question("critic", "?", {"critic": "No."}, "correct")


def test_templates_of_a_user():
    template = "{role}|{outcome}|{problem}|{critic}|{planner}|{writer}|{transcript}|{thought}|{x}"
    transcript = "\n\n".join(f"### {name}\n{text}" for name, text in TEXTS.items())
    parts = ["critic", "wrong", "{planner}?", TEXTS["critic"], TEXTS["planner"], TEXTS["writer"], transcript]
    filled = fill_rating_prompt(template, "critic", "{planner}?", TEXTS, "wrong")
    assert filled == "|".join([*parts, "{thought}", "{x}"])
    pair = {"planner": "{answer}", "writer": "b"}  # in one pass: what a text holds stays
    filled = fill_rating_prompt("{thought}|{answer}|{planner}|{writer}|{role}", "writer", "?", pair, "wrong")
    assert filled == "{answer}|b|{answer}|b|writer"
    odd = {"answer": "a", "thought": "b"}  # a role's name means its text
    assert fill_rating_prompt("{answer}|{thought}", "answer", "?", odd, "wrong") == "a|b"


def test_templates_that_cannot_be():
    roles = ("planner", "critic", "writer")
    for template in ("{outcome}", "{role} {outcome}", "{transcript}", "{critic} and {x}"):
        check_rating_prompt(template)
        check_rating_prompt(template, roles)
    for template in ("{thought}", "{answer}"):
        check_rating_prompt(template)
        check_rating_prompt(template, roles[:2])
        check_rating_prompt(template, (*roles, "thought", "answer"))
        with pytest.raises(
            ValueError, match=f"`rating_prompt` has {template}, which stand for the two texts of a team of"
        ):
            check_rating_prompt("{role} " + template, roles)
    check_rating_prompt("{editor}")  # whose roles are not known yet
    with pytest.raises(
        ValueError, match=r"one of \{outcome\}, .*, \{planner\}, \{critic\}, \{writer\}, got '\{editor\}'"
    ):
        check_rating_prompt("{editor}", roles)
    for template in ("Rate it.", '{"outcome"}', "{}", "{1}", "{role}", "{problem} {role}"):  # of no episode
        with pytest.raises(
            ValueError,
            match=r"`rating_prompt` must contain at least one of \{outcome\}, "
            r".*\{transcript\}",
        ):
            check_rating_prompt(template)


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
