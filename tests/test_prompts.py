r"""The leak guard, the `\boxed{}` sentence that the Thinker must not get, and the roles' prompts."""

import copy
import json
import random
from pathlib import Path

import pytest

from ccpo.team.prompts import (
    SOLO_PROMPT,
    SOLVER_PROMPT,
    THINKER_PROMPT,
    build_messages,
    build_solo_messages,
    build_solver_messages,
    build_thinker_messages,
    fill,
    has_boxed,
    problem_text,
    strip_answer_instruction,
    strip_boxed,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


# ---- The leak guard ----

LEAKS = [
    # where it stands
    (r"\boxed{5}", ""),
    (r"The answer is $\boxed{5}$.", "The answer is ."),
    (r"So $$\boxed{5}$$ it is.", "So  it is."),
    (r"Mid \boxed{5} sentence.", "Mid  sentence."),
    ("A line.\n\\boxed{5}\nAnother.", "A line.\n\nAnother."),
    (r"$x = \boxed{5}$", "$x = $"),
    (r"\[ \boxed{5} \]", r"\[  \]"),
    (r"\(\boxed{5}\)", r"\(\)"),
    # balanced braces
    (r"\boxed{\frac{1}{2}} end", " end"),
    (r"\boxed{\frac{\sqrt{2}}{\frac{1}{3}}}", ""),
    (r"a \boxed{{}{{}}} b", "a  b"),
    (r"{a \boxed{5} b}", "{a  b}"),
    (r"\text{so \boxed{5} holds}", r"\text{so  holds}"),
    # escaped braces are no braces
    (r"\boxed{\{1, 2\}} end", " end"),
    (r"\boxed{\}5} end", " end"),
    (r"\boxed{\{5} end", " end"),
    (r"\boxed{a\\} end", " end"),  # an escaped backslash, then the brace that closes
    # never closed: to the end
    (r"a \boxed{5 and more", "a "),
    (r"a \boxed{\frac{1}{2} and more", "a "),
    (r"a \boxed{", "a "),
    ("a \\boxed{5\\", "a "),
    # several, nested
    (r"\boxed{1} or \boxed{2}", " or "),
    (r"$\boxed{1}$ or $\boxed{2}$ or \boxed{3}.", " or  or ."),
    (r"$\boxed{1}\boxed{2}$", ""),
    (r"\boxed{\boxed{5}} end", " end"),
    (r"\boxed{a \boxed{b} c} d", " d"),
    # white space before the brace
    (r"a \boxed {5} b", "a  b"),
    ("a \\boxed\n{5} b", "a  b"),
    # without braces
    (r"a \boxed 5 b", "a  b"),
    (r"$\boxed 5$", ""),
    (r"\boxed 12, then", " then"),
    (r"a \boxed\frac{1}{2} b", "a  b"),
    (r"a \boxed\text{five apples} b", "a  b"),
    (r"a \boxed{5", "a "),
    (r"a \boxed\boxed{5} b", "a  b"),
    (r"a \boxed\{5\} b", "a  b"),
    (r"a \boxed \$5 b", "a  b"),
    (r"a \boxed x^{2} b", "a  b"),
    (r"\[\boxed 5\] b", r"\[\] b"),
    (r"{\boxed 5} b", "{} b"),
    (r"a \boxed", "a "),
    (r"a \boxed  ", "a "),
    # its removal joins another one
    (r"\bo\boxed{1}xed{5} b", " b"),
    (r"\boxe\boxed{1}d{5} b", " b"),
    (r"\\boxed{1}boxed{5} b", " b"),
    (r"\bo$\boxed{1}$xed{5} b", " b"),
    (r"\box\box\boxed{1}ed{2}ed{3} b", " b"),
    # no box
    ("", ""),
    ("Plain text with $x$ and {braces} and \\frac{1}{2}.", "Plain text with $x$ and {braces} and \\frac{1}{2}."),
    (r"\framebox{5} \Boxed{5} boxed{5} \box ed{5}", r"\framebox{5} \Boxed{5} boxed{5} \box ed{5}"),
    ("  spaces $$ stay \n\n", "  spaces $$ stay \n\n"),
]


@pytest.mark.parametrize(("text", "clean"), LEAKS)
def test_leak_guard(text, clean):
    assert strip_boxed(text) == clean
    assert strip_boxed(clean) == clean
    assert has_boxed(text) == ("\\boxed" in text)


PIECES = (
    r"\boxed \boxed{ \boxed{5} \box \bo xed ed{7} oxed{ d{ \ \\ { } {} \{ \} \] \frac{1}{2} b o x e d $ $$ . 5 plan"
).split() + [" ", "\n"]


def test_no_box_survives_and_nothing_else_changes():
    rng = random.Random(0)
    with_box = 0
    for _ in range(20_000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(14)))
        clean = strip_boxed(text)
        assert "\\boxed" not in clean, text
        assert not has_boxed(clean)
        assert strip_boxed(clean) == clean
        with_box += has_boxed(text)
        if has_boxed(text):
            assert len(clean) < len(text)
        else:
            assert clean == text
    assert 5_000 < with_box < 19_000


def balanced(rng: random.Random, depth: int = 0) -> str:
    """LaTeX whose unescaped braces are balanced."""
    parts = []
    for _ in range(rng.randrange(4)):
        atom = rng.choice(["5", "x", " ", r"\{", r"\}", r"\\", r"\pi", "$", "\n", "\\boxed{1}", "{"])
        parts.append("{" + (balanced(rng, depth + 1) if depth < 4 else "") + "}" if atom == "{" else atom)
    return "".join(parts)


def test_a_balanced_box_goes_and_its_surroundings_stay():
    rng = random.Random(1)
    words = ["so ", "{a} ", "$x$ ", r"\frac{1}{2} ", "}", "{", ". ", "\n", "é ", r"\] "]
    for _ in range(5_000):
        around = ["".join(rng.choice(words) for _ in range(rng.randrange(4))) + " " for _ in range(3)]
        boxes = ["\\boxed{" + balanced(rng) + "}" for _ in range(2)]
        text = around[0] + boxes[0] + around[1] + boxes[1] + around[2]
        assert strip_boxed(text) == "".join(around), text


MEGABYTES = {
    "many": "\\boxed{1} " * 100_000,
    "open": "\\boxed{" * 140_000,
    "nested": "\\boxed{" * 120_000 + "}" * 120_000,
    "bare": "\\boxed" * 160_000,
    "joined": "\\box" * 100_000 + "\\boxed{}" + "ed{}" * 100_000,
    "braces": "\\boxed" + "{" * 1_000_000,
    "groups": "\\boxed" + "{}a" * 300_000,
    "backslashes": "\\boxed{" + "\\" * 1_000_000,
    "spaces": "\\boxed" + " " * 1_000_000,
    "dollars": "$" * 500_000 + "\\boxed{}" + "$" * 500_000,
}


@pytest.mark.timeout(120)  # it takes a fraction of a second; quadratic time would be hours
@pytest.mark.parametrize("text", MEGABYTES.values(), ids=MEGABYTES.keys())
def test_leak_guard_takes_linear_time(text):
    assert "\\boxed" not in strip_boxed(text)


# ---- The sentence that asks for a boxed answer ----

SUFFIXES = [
    "Let's think step by step and output the final answer within \\boxed{}.",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Please reason step by step, and put your final answer within \\boxed{}",
    "Put your final answer within \\boxed{}.",
    "Remember to put your final answer within \\boxed{}.",
    "Make sure to enclose your final answer in \\boxed{}.",
    "Present the answer in LaTex format: \\boxed{Your answer}",
    "Your final answer should be within $\\boxed{}$.",
    "The final answer must be given in \\boxed{...}.",
    "Return your final response within \\boxed{}.",
    "You must put your answer inside \\boxed{} .",
    "Think carefully; then write the final answer inside \\boxed{answer}!",
    "At the end, output the final answer in \\boxed{}, for example \\boxed{5}.",
    "Let\u2019s solve it step by step and write the result in $$\\boxed{}$$",
    # GSM8K
    'Let\'s think step by step and output the final answer after "####".',
    "Please put the final answer after ####.",
    "Answer: \\boxed{}",
]

PROBLEMS = [
    "What is $1+1$?",
    "Find $x$ such that $x^2=4$ and $x>0$.",
    "Compute $f(1.5)$ if $f(x)=x!y$",  # no stop at the end
    "Janet has 3 apples. She buys 4 more. How many apples does she have?",
    "Let $S=\\{1,2\\}$.\n\n[asy]\ndraw((0,0)--(1,1));\n[/asy]\nWrite $|S|$ in words",
    "Solve for $x$: $2x=6$. Express your answer as a fraction.",
    "Put the answers in order: $1.5$, $0.5$.",
    '  Who said "yes!"?',
]


@pytest.mark.parametrize("join", [" ", "\n", "\n\n", "  \n"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_instruction_goes_and_the_problem_stays(suffix, join):
    for problem in PROBLEMS:
        assert strip_answer_instruction(problem + join + suffix) == problem
        assert strip_answer_instruction(problem + join + suffix + "\n") == problem


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix[-1] in ".!"])
def test_the_instruction_goes_from_the_front_and_the_middle(suffix):
    assert strip_answer_instruction(f"{suffix}\n\nWhat is $1+1$?") == "What is $1+1$?"
    assert strip_answer_instruction(f"{suffix} What is $1+1$?") == "What is $1+1$?"
    assert strip_answer_instruction(f"Let $x=1$. {suffix} What is $x$?\nHm?") == "Let $x=1$. What is $x$?\nHm?"


@pytest.mark.parametrize(
    ("problem", "clean"),
    [
        ("Find $x$ and put it in \\boxed{}.", "Find $x$."),
        ("Let $x+2=5$. Solve for $x$ and put the answer in \\boxed{}.", "Let $x+2=5$. Solve for $x$."),
        ("Let $x=2$. Express $x^2$ in \\boxed{}.", "Let $x=2$. Express $x^2$."),
        (
            "Let $x=2$. Write $x^2$ in terms of $y$, then give the answer in \\boxed{}.",
            "Let $x=2$. Write $x^2$ in terms of $y$.",
        ),
        ("Find $x$; your answer should be in \\boxed{}.", "Find $x$."),
        ("Find $x$ (put your final answer in \\boxed{}).", "Find $x$."),
        ("Report the sum of 1 and 2 within $\\boxed{}$.", "Report the sum of 1 and 2."),
        ("What is $1+1$, in \\boxed{}?", "What is $1+1$?"),
        ("How many? Answer in \\boxed{}.", "How many?"),
        ("Within \\boxed{}, give the value of $x$.", "give the value of $x$."),
        (
            "Solve the following problem and put the final answer in \\boxed{}: What is 2+2?\nThink hard.",
            "What is 2+2?\nThink hard.",
        ),
        (
            "Return your final response within \\boxed{} and only include the letter (A or B).\nQ?",
            "Return your final response and only include the letter (A or B).\nQ?",
        ),
    ],
)
def test_a_question_in_the_same_sentence_stays(problem, clean):
    assert strip_answer_instruction(problem) == clean


QUESTIONS = [
    "Solve for $x$",
    "Write $0.5$ as a fraction",
    "Express $y$ in terms of $z$",
    "Give the number of primes below 10",
    "Report the value of $f(3)$",
    "State the sum of the roots",
    "Show how many of them are even",
    "Place the numbers 3, 1, 2 in order",
    "What is the product of $a$ and $b$",
    "Put 5 apples into 2 bags, how many ways",
]
INSTRUCTIONS = [
    " and put your final answer within \\boxed{}.",
    ", and give the answer in \\boxed{}.",
    "; output the final answer in \\boxed{}",
    " in \\boxed{}.",
    " (put the answer in \\boxed{}).",
    ". Put the answer in \\boxed{}.",
    '. Output the final answer after "####".',
]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_never_vanishes(question, instruction):
    for context in ("", "Let $2x=y+z=3$. ", "A bag holds marbles.\n"):
        clean = strip_answer_instruction(context + question + instruction)
        assert clean.rstrip(".") == context + question


@pytest.mark.parametrize(
    "problem",
    [
        "What is $1+1$?",
        "Write the solution step by step and put the final answer in words.",  # no box
        "",
        "  spaces stay  \n",
        # a box of the problem's own
        "Which digit stands for $\\boxed{A}$ in $\\boxed{A}5 + 5 = 40$?",
        "Evaluate:\n\\boxed{3}",
        "#### Problem 1\nWhat is $1+1$?",
        # nothing but the instruction: better kept than empty
        "Put the answer in \\boxed{}.",
        "\\boxed{}",
    ],
)
def test_other_problems_stay_as_they_are(problem):
    assert strip_answer_instruction(problem) == problem


def read(name: str, field: str) -> list[str]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)[field] for line in lines]


@pytest.mark.parametrize(("name", "field"), [("math500.jsonl", "problem"), ("gsm8k_test.jsonl", "question")])
def test_real_problems_survive_unchanged(name, field):
    problems = read(name, field)
    for number, problem in enumerate(problems):
        assert strip_answer_instruction(problem) == problem
        for offset in range(3 if len(problems) > 500 else len(SUFFIXES)):
            suffix = SUFFIXES[(number + offset) % len(SUFFIXES)]
            for join in (" ", "\n", "\n\n"):
                assert strip_answer_instruction(problem + join + suffix).strip() == problem.strip()


@pytest.mark.parametrize(
    "text",
    [
        "." * 50_000 + "x \\boxed{}",
        "x \\boxed{}" + " put" * 200_000,
        "x" + " and" * 200_000 + " \\boxed{}",
        "in \\boxed{}, " * 20_000,
        "in \\boxed{}\n" * 20_000,
        " " * 500_000 + "\\boxed{}",
        "$" * 300_000 + "\\boxed{}" + "$" * 300_000,
        ".)))" * 100_000 + ")" * 100_000 + "\\boxed",
    ],
    ids=["dots", "behind", "and", "boxes", "lines", "spaces", "dollars", "brackets"],
)
@pytest.mark.timeout(120)  # it takes a fraction of a second; quadratic time would be minutes to hours
def test_stripping_the_instruction_takes_linear_time(text):
    assert len(strip_answer_instruction(text)) <= len(text)


# ---- Templates and messages ----


def test_fill_leaves_the_texts_alone():
    assert fill("{problem}|{thought}", problem="{thought}", thought="{problem}") == "{thought}|{problem}"
    assert fill("{a}{a}", a="{}") == "{}{}"
    assert fill("{other} {{a}} {a", a="1") == "{other} {1} {a"
    assert fill("{a}", a=r"\1 \g<0> \boxed{5}") == r"\1 \g<0> \boxed{5}"
    assert fill("{a}\\boxed{}", a="{0} {1!r} %s") == "{0} {1!r} %s\\boxed{}"


TRICKY = "Let $S=\\{x\\}$, {problem} {thought} {0}. What is $|S|$?"
SYSTEM = {"role": "system", "content": "You are kind."}


@pytest.mark.parametrize("template", [THINKER_PROMPT, SOLVER_PROMPT, SOLO_PROMPT])
def test_problems_with_braces_and_field_names_arrive_verbatim(template):
    thought = "Use {problem}: \\{1\\} {thought}"
    text = build_messages(template, TRICKY, thought=thought)
    assert text.count(TRICKY) == 1
    assert (thought in text) == (template is SOLVER_PROMPT)
    assert build_messages(template, [SYSTEM, {"role": "user", "content": TRICKY}], thought=thought) == [
        SYSTEM,
        {"role": "user", "content": text},
    ]


PROMPT = "What is $1+1$? Let's think step by step and output the final answer within \\boxed{}."
CHAT = [SYSTEM, {"role": "user", "content": PROMPT, "name": "ann"}]


def test_thinker_text():
    assert build_thinker_messages(PROMPT) == THINKER_PROMPT.replace("{problem}", "What is $1+1$?")
    assert build_thinker_messages(PROMPT, "Plan: {problem}") == "Plan: What is $1+1$?"
    assert "boxed" not in THINKER_PROMPT


def test_solver_text():
    text = build_solver_messages(PROMPT, "Add. $\\boxed{2}$ Done.")
    assert text == SOLVER_PROMPT.replace("{problem}", PROMPT).replace("{thought}", "Add.  Done.")
    assert build_solver_messages("Q", "T", "{thought}/{problem}") == "T/Q"


def test_solo_text():
    assert build_solo_messages(PROMPT) == SOLO_PROMPT.replace("{problem}", PROMPT)
    assert build_solo_messages("Q", "<{problem}>") == "<Q>"


@pytest.mark.parametrize(
    "build",
    [build_thinker_messages, lambda prompt: build_solver_messages(prompt, "Add. \\boxed{2}"), build_solo_messages],
    ids=["thinker", "solver", "solo"],
)
def test_messages_are_the_dataset_s_with_the_problem_replaced(build):
    before = copy.deepcopy(CHAT)
    messages = build(CHAT)
    assert messages == [SYSTEM, {"role": "user", "content": build(PROMPT), "name": "ann"}]
    messages[1]["content"] = "edited by the caller"
    assert CHAT == before


def test_earlier_and_later_messages_stay():
    shots = [
        {"role": "user", "content": "What is $2+2$?"},
        {"role": "assistant", "content": "\\boxed{4}"},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "Well,"},  # a prefill
    ]
    assert problem_text(shots) == PROMPT
    messages = build_solo_messages(shots)
    assert messages[:2] == shots[:2]
    assert messages[2]["content"] == build_solo_messages(PROMPT)
    assert messages[3:] == shots[3:]


def test_the_thinker_s_system_message_loses_the_sentence_too():
    system = {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."}
    kind = {"role": "system", "content": f"You are kind. {system['content']}"}
    empty = {"role": "system", "content": ""}
    user = {"role": "user", "content": "What is $1+1$?"}
    asked = {"role": "user", "content": build_thinker_messages("What is $1+1$?")}
    assert build_thinker_messages([kind, user]) == [{"role": "system", "content": "You are kind."}, asked]
    assert build_thinker_messages([system, user]) == [asked]
    assert build_thinker_messages([empty, user]) == [empty, asked]
    assert build_solver_messages([system, user], "t")[0] == system
    assert kind["content"].endswith("\\boxed{}.")


def test_few_shot_turns_show_the_thinker_no_answers():
    shots = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "What is $2+2$? Put the answer in \\boxed{}."},
        {"role": "assistant", "content": "Two and two make \\boxed{4}.", "name": "bob"},
        {"role": "user", "content": "What is $3+3$?"},
        {"role": "assistant", "content": "$\\boxed{6}$"},  # says nothing else: it goes with its question
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "\\boxed{"},  # a prefill
    ]
    before = copy.deepcopy(shots)
    assert build_thinker_messages(shots) == [
        shots[0],
        {"role": "user", "content": "What is $2+2$?"},
        {"role": "assistant", "content": "Two and two make .", "name": "bob"},
        {"role": "user", "content": build_thinker_messages(PROMPT)},
    ]
    assert shots == before
    for build in (build_solo_messages, lambda prompt: build_solver_messages(prompt, "t")):
        assert [m for i, m in enumerate(build(shots)) if i != 5] == [m for i, m in enumerate(shots) if i != 5]
    parts = {"role": "assistant", "content": [{"type": "text", "text": "\\boxed{4}"}]}
    empty = {"role": "assistant", "content": ""}
    user = {"role": "user", "content": "Q"}
    assert build_thinker_messages([user, parts, user, empty, user])[:4] == [user, parts, user, empty]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_thinker_is_never_asked_for_a_boxed_answer(suffix):
    for problem in PROBLEMS:
        text = build_thinker_messages(f"{problem} {suffix}")
        assert not has_boxed(text) and "####" not in text
        assert problem in text
        (message,) = build_thinker_messages([{"role": "user", "content": f"{problem}\n{suffix}"}])
        assert message["content"] == text


@pytest.mark.parametrize("thought", [text for text, _ in LEAKS])
def test_the_solver_never_sees_a_box_of_the_thought(thought):
    boxes = build_solver_messages("What is $1+1$?", "").count("\\boxed")
    text = build_solver_messages("What is $1+1$?", thought)
    assert text.count("\\boxed") == boxes == 1  # the template's own
    assert build_solver_messages([{"role": "user", "content": "What is $1+1$?"}], thought)[0]["content"] == text


def test_problem_text():
    assert problem_text("Q") == "Q"
    assert problem_text([{"role": "user", "content": "Q"}]) == "Q"
    assert problem_text([SYSTEM, {"role": "user", "content": "A"}, {"role": "user", "content": "B"}]) == "B"


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [SYSTEM],
        [{"role": "assistant", "content": "odd one"}],
        [{"content": "odd one"}],
        [{"role": "user"}],
        [{"role": "user", "content": "first"}, {"role": "user", "content": [{"type": "text", "text": "odd one"}]}],
    ],
)
def test_a_prompt_without_a_problem_is_an_error(prompt):
    for build in (problem_text, build_thinker_messages, build_solo_messages):
        with pytest.raises(
            ValueError, match=r"`prompt` has no user message whose content is a text: \[.*last user message"
        ):
            build(prompt)
