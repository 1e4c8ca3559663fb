"""Where an answer stands: one reader for the verifier and for the leak guard."""

import random

import pytest

from ccpo.team.answers import DEFAULT_READER, AnswerReader, gold_answer, reader_of
from ccpo.team.prompts import build_solver_messages
from ccpo.team.rollout import Episodes, Texts
from ccpo.team.topology import ThinkSolve
from ccpo.verifier.math_verifier import MathVerifier


@pytest.mark.parametrize(
    ("text", "answer", "left"),
    [
        ("So \\boxed{34}.", "34", "So ."),
        ("So \\boxed 34 then", "34", "So  then"),
        ("\\fbox{34}", "34", ""),
        ("We add.\n#### 34\nDone.", "34", "We add.\n\nDone."),
        ("Then the answer is 34. Check it.", "34", "Then . Check it."),
        ("Answer: $34$", "34", ""),
        ("Add. **Final Answer: 34**", "34", "Add. "),
        ("**Final Answer**\n\n34", "34", ""),
        ("<answer>34</answer> ok", "34", " ok"),
        ("Answer: B", "B", ""),
        ("The answer is 34, since 2*17 = 34.", "34", ", since 2*17 = 34."),
        ("\\boxed{1}, \\boxed{2} \\text{ and } \\boxed{3}", "1, 2, 3", ",  \\text{ and } "),
        ("\\boxed{1} so \\boxed{2}", "2", " so "),
        ("Answer: 1\nAnswer: 2", "2", "\n"),
        ("\\boxed{1}\nAnswer: 2", "1", "\n"),
        ("34", "34", "34"),  # no mark: the verifier reads it for want of one, the guard leaves it
        ("The share is 35%.", "35%", "The share is 35%."),
    ],
)
def test_places(text, answer, left):
    assert DEFAULT_READER.extract(text) == answer
    assert DEFAULT_READER.strip(text) == left
    assert DEFAULT_READER.has(text) == (left != text)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is between 3 and 4, so we refine it.",
        "The answer must be even; look at both cases.",
        "To find the answer: add them and then divide.",
        "We need the answer in feet.",
        "The answer depends on n.",
        "#### Step 1: add\nThen we go on.",
        "#### Conclusion\nThis follows from the lemma.",
        "The answer is not 34",
    ],
)
def test_talk_of_an_answer_is_no_place(text):
    assert DEFAULT_READER.strip(text) == text and not DEFAULT_READER.has(text)
    assert DEFAULT_READER.extract(text) is None


PIECES = [
    *(
        "answer",
        "Answer",
        ":",
        " ",
        " is ",
        "5",
        "34",
        "\n",
        "####",
        "#### ",
        "<answer>",
        "</answer>",
        "**",
        "$",
        "The ",
    ),
    *("final ", "\\boxed{", "}", "\\boxed", "\\fbox{", "ans", "wer", "##", "because", " or ", "=", "."),
]


@pytest.mark.parametrize("reader", [DEFAULT_READER, AnswerReader("wer(.+)")], ids=["default", "own"])
def test_nothing_is_left_after_the_guard(reader):
    rng = random.Random(0)
    for _ in range(5_000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(16)))
        clean = reader.strip(text)
        assert not reader.has(clean) and reader.strip(clean) == clean, text
        if not reader.has(text):
            assert clean == text


@pytest.mark.timeout(120)  # it takes seconds; quadratic time would be minutes
@pytest.mark.parametrize(
    "text",
    [
        "\\boxed" * 20_000,
        "\\boxed{" * 20_000,
        "{" * 200_000,
        "1" * 200_000,
        " " * 200_000,
        "answer: " * 15_000,
        "answer:" + "\n" * 200_000,
        "final answer" + " " * 200_000,
        "the answer is $" * 10_000,
        "<answer>" * 20_000,
        "#### 5\n" * 15_000,
        "$" * 200_000,
        "\\boxed{1}, " * 15_000,
        "*" * 200_000 + "answer: 5",
        "The " * 50_000 + "is 5",
        "answer: 5 " * 100_000,
        ("ans" * 8 + "answer: 5" + "wer: 5" * 8 + " ") * 3_000,
    ],
    ids=range(17),
)
def test_reading_takes_linear_time(text):
    DEFAULT_READER.extract(text)
    assert not DEFAULT_READER.has(DEFAULT_READER.strip(text))
    gold_answer(text)


def test_a_pattern_of_one_s_own():
    reader = AnswerReader(r"RESULT = (.+)")
    assert reader.extract("RESULT = 3\nRESULT = 34\nAnswer: 5") == "34"
    assert reader.extract("Answer: 34") is None and reader.extract("34") is None
    assert reader.extract("\\boxed{34}") == "34"
    thought = "Plan. RESULT = 34\nAnswer: 5 \\boxed{6}"
    assert reader.strip(thought) == "Plan. \nAnswer: 5 "
    for pattern, message in [("(", "got '\\('"), ("a", "one group, got 0"), ("(a)(b)", "got 2"), ("(a*)", "empty")]:
        with pytest.raises(ValueError, match=f"`pattern` must.*{message}"):
            AnswerReader(pattern)


def test_the_guard_uses_the_outcome_function_s_reader():
    own = MathVerifier(num_workers=1, answer_pattern=r"RESULT = (.+)")
    assert reader_of(own) == AnswerReader(r"RESULT = (.+)") and reader_of(print) is DEFAULT_READER
    thoughts = ["Answer: 5", "RESULT = 5"]
    for reader, leaked in (DEFAULT_READER, [True, False]), (own.reader, [False, True]):
        said = {"thinker": Texts([], thoughts, [0, 1])}
        episodes = Episodes(ThinkSolve(), ["p", "p"], (1, 1), said=said, reader=reader)
        assert episodes.leaked == leaked
        views = [episodes.view("thinker", thought) for thought in thoughts]
        assert [thought in build_solver_messages("p", thought, reader=reader) for thought in thoughts] == [
            not leak for leak in leaked
        ]
        assert [view == thought for view, thought in zip(views, thoughts, strict=True)] == [
            not leak for leak in leaked
        ]


@pytest.mark.parametrize("pattern", [r"(?s).*RESULT = (.+)", r"(?:\w+\s?)+!(.)"])
def test_a_pattern_that_takes_too_long_is_refused(pattern):
    with pytest.raises(
        ValueError, match="takes over 5 s to search a text of 100,000 characters, got .* Remove parts that match"
    ):
        AnswerReader(pattern)


@pytest.mark.parametrize("pattern", [r"RESULT = (.+)", r"^Antwort:\s*(.+)$", r"<ans>(.*?)</ans>", r"\[\[([^\]]+)\]\]"])
def test_usual_patterns_are_quick_enough(pattern):
    assert AnswerReader(pattern).pattern == pattern
