"""The wiring of one pass of the team: what each role is asked, in which calls, and what is kept of it."""

import copy
from collections import Counter
from contextlib import contextmanager

import pytest

from ccpo.team.answers import AnswerReader
from ccpo.team.prompts import build_messages, build_solo_messages, build_solver_messages, build_thinker_messages
from ccpo.team.rollout import Passes, Texts, build_role_prompt, run_team
from ccpo.team.topology import AnswerCritiqueRewrite, Chain, Role, Solo, ThinkSolve, Topology, Vote


class Recorder:
    """A generator that keeps what it was asked and numbers what it says."""

    def __init__(self, name, suffix=""):
        self.name, self.suffix, self.calls = name, suffix, []

    def __call__(self, prompts):
        self.calls.append(copy.deepcopy(prompts))
        return [f"{self.name}{i}{self.suffix}" for i in range(len(prompts))]


PROMPTS = [f"What is ${i}+1$? Put the answer in \\boxed{{}}." for i in range(3)]
CHATS = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}] for text in PROMPTS]


def alone(*rows):
    """Passes of these rows without the Thinker."""
    return {"thinker": Passes(rows)}


# ---- Think-Solve ----


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS], ids=["text", "chat"])
def test_every_prompt_reaches_its_role_in_order(prompts):
    thinker, solver = Recorder("t", " $\\boxed{7}$"), Recorder("s")
    before = copy.deepcopy(prompts)
    generate = {"thinker": thinker, "solver": solver}
    episodes = run_team(ThinkSolve(), prompts, generate, branches=(1, 2), removals=alone(2, 0, 0, 1))
    asked = [build_thinker_messages(prompt) for prompt in prompts]
    joint = [build_solver_messages(prompts[i], f"t{i} ") for i in (0, 0, 1, 1, 2, 2)]
    solo = [build_solo_messages(prompts[i]) for i in (2, 0, 0, 1)]
    assert thinker.calls == [asked]
    assert solver.calls == [joint + solo]  # one call
    assert episodes.prompts == prompts == before
    thoughts = [f"t{i} $\\boxed{{7}}$" for i in range(3)]  # what the Thinker really wrote
    assert [episodes.view("thinker", thought) for thought in thoughts] == ["t0 ", "t1 ", "t2 "]
    assert episodes.leaked == [True] * 3
    answers = [f"s{i}" for i in range(6)]  # 2i and 2i + 1 answer thought i
    assert episodes.answers == answers
    assert episodes.said == {
        "thinker": Texts(asked, thoughts, [0, 1, 2]),
        "solver": Texts(joint, answers, [0, 0, 1, 1, 2, 2]),
    }
    assert episodes.without == {
        "thinker": {"solver": Texts(solo, [f"s{i}" for i in range(6, 10)], [2, 0, 0, 1], start=6)}
    }
    assert episodes.passes == alone(2, 0, 0, 1)


def test_without_solos_and_with_one_answer():
    thinker, solver = Recorder("t"), Recorder("s")
    episodes = run_team(ThinkSolve(), PROMPTS, {"thinker": thinker, "solver": solver})
    assert solver.calls == [[build_solver_messages(prompt, f"t{i}") for i, prompt in enumerate(PROMPTS)]]
    assert (episodes.answers, episodes.without, episodes.passes) == (["s0", "s1", "s2"], {}, {})
    assert episodes.leaked == [False] * 3
    thoughts = episodes.said["thinker"].texts
    assert [episodes.view("thinker", thought) for thought in thoughts] == thoughts


def test_the_topology_s_own_templates_are_used():
    topology = ThinkSolve(
        thinker_prompt="T {problem}", solver_prompt="S {thought} {problem}", solo_prompt="A {problem}"
    )
    thinker, solver = Recorder("t"), Recorder("s")
    run_team(topology, ["p", "q"], {"thinker": thinker, "solver": solver}, removals=alone(1))
    assert thinker.calls == [["T p", "T q"]]
    assert solver.calls == [["S t0 p", "S t1 q", "A q"]]


def test_a_generator_may_serve_both_roles_and_others_may_be_there():
    both = Recorder("x")
    episodes = run_team(ThinkSolve(), ["p"], {"thinker": both, "solver": both, "critic": None})
    assert len(both.calls) == 2
    assert (episodes.said["thinker"].texts, episodes.answers) == (["x0"], ["x0"])
    assert [said.start for said in episodes.said.values()] == [0, 1]


def test_the_solver_s_half_alone():
    solver = Recorder("s")
    thoughts = ["a", "b \\boxed{1}"]
    episodes = run_team(
        ThinkSolve(), ["p", "q"], {"solver": solver}, given={"thinker": thoughts}, removals=alone(1, 1)
    )
    joint = [build_solver_messages("p", "a"), build_solver_messages("q", "b ")]
    solo = [build_solo_messages("q"), build_solo_messages("q")]
    assert solver.calls == [joint + solo]
    assert episodes.said == {"thinker": Texts([], thoughts, [0, 1]), "solver": Texts(joint, ["s0", "s1"], [0, 1])}
    assert episodes.without == {"thinker": {"solver": Texts(solo, ["s2", "s3"], [1, 1], start=2)}}
    assert episodes.leaked == [False, True]
    for texts in (["a"], ["a", "b", "c"]):
        with pytest.raises(
            ValueError,
            match=rf"`given\['thinker'\]` must have 2 texts, one for each that the role would write, got {len(texts)}",
        ):
            run_team(ThinkSolve(), ["p", "q"], {"solver": solver}, given={"thinker": texts})


# ---- What generators must return ----


@pytest.mark.parametrize(
    ("generators", "match"),
    [
        ({"thinker": Recorder("t")}, r"no generator for the roles \['solver'\]. It has generators for \['thinker'\]"),
        (
            {"solver": Recorder("s"), "critic": None},
            r"roles \['thinker'\]. It has generators for \['critic', 'solver'\]",
        ),
        ({}, r"`generate` has no generator for the roles \['thinker', 'solver'\]. It has generators for \[\]"),
    ],
)
def test_a_missing_generator_is_an_error(generators, match):
    with pytest.raises(ValueError, match=match):
        run_team(ThinkSolve(), ["p"], generators)
    assert all(not g.calls for g in generators.values() if g)  # before anything is generated


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (
            "thinker",
            "The generator of role 'thinker' returned 2 completions for 3 prompts. It must return one per prompt",
        ),
        (
            "solver",
            "The generator of role 'solver' returned 4 completions for 5 prompts. It must return one per prompt",
        ),
    ],
)
def test_a_lost_completion_is_an_error(broken, match):
    generators = {"thinker": Recorder("t"), "solver": Recorder("s")}
    whole = generators[broken]
    generators[broken] = lambda prompts: whole(prompts)[:-1]
    with pytest.raises(ValueError, match=match):
        run_team(ThinkSolve(), PROMPTS, generators, removals=alone(0, 1))


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (None, "The generator of role 'thinker' returned None. It must take a list of prompts and return a list"),
        ("abc", "The generator of role 'thinker' returned 'abc'"),
        (["a", None, "c"], "The generator of role 'thinker' returned items that are not texts.* got None"),
        (["a", 5, "c"], "got 5"),
    ],
    ids=str,
)
def test_a_generator_that_returns_something_else(returned, match):
    with pytest.raises(TypeError, match=match):
        run_team(ThinkSolve(), PROMPTS, {"thinker": lambda prompts: returned, "solver": Recorder("s")})


def test_a_generator_may_return_messages():
    messages = [[{"role": "assistant", "content": f"m{i}"}] for i in range(3)]
    episodes = run_team(ThinkSolve(), PROMPTS, {"thinker": lambda prompts: messages, "solver": Recorder("s")})
    assert episodes.said["thinker"].texts == ["m0", "m1", "m2"]


# ---- Any team ----


def test_roles_speak_in_order_and_read_what_they_read():
    heard = []

    def speaker(name):
        def generate(prompts):
            heard.append((name, prompts))
            return [name.upper()] * len(prompts)

        return generate

    templates = {"a": "{problem}", "b": "{problem} {a}", "c": "{problem} {b} {a}", "d": "{problem} {c}"}
    reads = {"a": (), "b": ("a",), "c": ("b", "a"), "d": ("c",)}
    topology = Topology(tuple(Role(name, reads[name], prompt=text) for name, text in templates.items()))
    episodes = run_team(topology, ["p"], {name: speaker(name) for name in templates})
    assert topology.role_names == ("a", "b", "c", "d")
    assert {name: said.texts for name, said in episodes.said.items()} == {
        "a": ["A"],
        "b": ["B"],
        "c": ["C"],
        "d": ["D"],
    }
    assert heard == [("a", ["p"]), ("b", ["p A"]), ("c", ["p B A"]), ("d", ["p C"])]


def test_one_role_is_asked_the_dataset_s_prompts():
    solver = Recorder("s")
    episodes = run_team(Solo(), CHATS, {"solver": solver})
    assert solver.calls == [CHATS] and episodes.answers == ["s0", "s1", "s2"] and episodes.leaked == []


def test_fields_in_problems_and_texts_are_not_filled():
    """One pass: what a problem or a text says in braces stays, and so do a template's other braces."""
    topology = ThinkSolve(solver_prompt='{"a": 1} {problem} | {thought} \\boxed{}')
    role = topology["solver"]
    read = {"thinker": "{problem} {thinker} {solver}"}
    asked = build_role_prompt(topology, role, "Why {thinker} and {solver}, {}?", read)
    assert asked == '{"a": 1} Why {thinker} and {solver}, {}? | {problem} {thinker} {solver} \\boxed{}'
    heard = Recorder("x", " {problem}")
    run_team(topology, ["{thinker}"], {"thinker": heard, "solver": heard})
    assert heard.calls[1] == ['{"a": 1} {thinker} | x0 {problem} \\boxed{}']


def test_who_states_no_answer_is_not_asked_for_one():
    """The sentence that asks for a box stays with those who are to write one."""
    topology = Chain(["planner", Role("critic", states_answer=True), "writer"])
    for name, asks in (("planner", False), ("critic", True), ("writer", True)):
        role = topology[name]
        read = dict.fromkeys(role.reads, "x")
        asked = build_role_prompt(topology, role, PROMPTS[0], read)
        assert ("Put the answer in" in asked) is asks
        plain = build_messages if asks else lambda text, prompt, **f: build_thinker_messages(prompt, text, **f)
        assert asked == plain(role.prompt, PROMPTS[0], **read)


TEXT = "It is \\boxed{7}.\n#### 7"


@pytest.mark.parametrize(("role", "passes"), [({}, False), ({"states_answer": True}, True), ({"judged": True}, False)])
def test_the_leak_guard_goes_by_role(role, passes):
    """A text passes as it is where its role states an answer; being judged does not matter."""
    topology = Topology((Role("a", **role), Role("b", ("a",), prompt="{problem} {a}")))
    reader = Recorder("r")
    episodes = run_team(topology, ["p"], {"a": lambda prompts: [TEXT], "b": reader})
    assert episodes.said["a"].texts == [TEXT]
    assert episodes.view("a", TEXT) in reader.calls[0][0]
    assert ("7" in reader.calls[0][0]) is passes and (episodes.view("a", TEXT) == TEXT) is passes
    assert episodes.leaked == ([] if passes else [True])


def test_leaks_are_counted_of_guarded_roles_alone():
    """Answers pass, rewrites are read by nobody; of the critiques the second states an answer."""
    team = AnswerCritiqueRewrite()
    says = {"answer_a": "\\boxed{1}", "answer_b": "\\boxed{2}", "critique_a": "x", "critique_b": "no, \\boxed{3}"}
    says |= {"rewrite_a": "\\boxed{4}", "rewrite_b": "\\boxed{5}"}
    generate = {name: lambda prompts, text=text: [text] * len(prompts) for name, text in says.items()}
    episodes = run_team(team, ["p"], generate)
    assert episodes.leaked == [False, True]
    assert "\\boxed{1}" in episodes.said["critique_b"].prompts[0]
    (asked,) = episodes.said["rewrite_a"].prompts
    assert "\\boxed{1}" in asked and "no, " in asked and "3" not in asked


def test_the_guard_reads_as_the_verifier_does():
    topology = Chain([Role("a", prompt="{problem}"), Role("b", prompt="{problem} {a}")])
    heard, reader = Recorder("r"), AnswerReader(r"RESULT = (.+)")
    text = "RESULT = 7\nand \\boxed{8}"
    episodes = run_team(topology, ["p"], {"a": lambda prompts: [text], "b": heard}, reader=reader)
    assert heard.calls == [["p " + reader.strip(text)]] and "RESULT = 7" not in heard.calls[0][0]
    assert episodes.leaked == [True]


# ---- Calls ----


def count_calls(topology, generators, **kwargs):
    """How many calls each of the generators gets, and what `around` was told of them."""
    told = []

    @contextmanager
    def around(generate, parts):
        told.append((generate.name, parts, [len(call) for call in generate.calls]))
        yield
        assert len(generate.calls[-1]) == sum(count for _, count in parts)

    episodes = run_team(topology, ["p", "q"], generators, around=around, **kwargs)
    return Counter(name for name, _, _ in told), told, episodes


def test_calls_of_dacr():
    """Two agents of separate weights make six calls, one shared policy three."""
    team = AnswerCritiqueRewrite()
    two = {"a": Recorder("a"), "b": Recorder("b")}
    calls, told, _ = count_calls(team, {name: two[team.agent_of(name)] for name in team.role_names})
    assert calls == {"a": 3, "b": 3} and len(told) == 6
    assert {len(call) for agent in two.values() for call in agent.calls} == {2}
    one = Recorder("x")
    calls, told, episodes = count_calls(team, dict.fromkeys(team.role_names, one))
    assert calls == {"x": 3}
    kinds = ("answer", "critique", "rewrite")
    assert [parts for _, parts, _ in told] == [[(f"rollout/{k}_a", 2), (f"rollout/{k}_b", 2)] for k in kinds]
    assert [said.start for said in episodes.said.values()] == [0, 2, 4, 6, 8, 10]


def test_calls_of_think_solve():
    """Two, with the solos in the Solver's; of one policy, too."""
    for generators in (
        {"thinker": Recorder("t"), "solver": Recorder("s")},
        dict.fromkeys(("thinker", "solver"), Recorder("x")),
    ):
        _, told, _ = count_calls(ThinkSolve(), generators, branches=(1, 3), removals=alone(0, 1, 1))
        assert [parts for _, parts, _ in told] == [
            [("rollout/thought", 2)],
            [("rollout/joint", 6), ("rollout/solo", 3)],
        ]


def test_a_removal_goes_out_with_its_role_s_level():
    """Without a, b begins, yet it waits for the level that it has in the whole team: no call is added."""
    topology, names = Chain(["a", "b", "c"]), ("a", "b", "c")
    removals = {"a": Passes((0, 1, 1)), "b": Passes((1,))}
    generators = {name: Recorder(name) for name in names}
    calls, told, episodes = count_calls(topology, generators, removals=removals)
    assert calls == {"a": 1, "b": 1, "c": 1}
    assert [parts for _, parts, _ in told] == [
        [("rollout/a", 2)],
        [("rollout/b", 2), ("rollout/without_a", 3)],
        [("rollout/c", 2), ("rollout/without_a", 3), ("rollout/without_b", 1)],
    ]
    assert set(episodes.without["a"]) == {"b", "c"} and set(episodes.without["b"]) == {"c"}
    one = Recorder("x")
    calls, _, _ = count_calls(topology, dict.fromkeys(names, one), removals=removals)
    assert calls == {"x": 3}


def test_calls_of_a_vote_and_of_mixed_policies():
    one = Recorder("x")
    assert count_calls(Vote(5), dict.fromkeys(Vote(5).role_names, one))[0] == {"x": 1}
    # a and b of one policy on one level, c of it on the next: b with a, and c alone.
    team = Topology((Role("a"), Role("b"), Role("c", ("a",)), Role("d", ("b", "c"))))
    x, y = Recorder("x"), Recorder("y")
    calls, told, _ = count_calls(team, {"a": x, "b": x, "c": x, "d": y})
    assert calls == {"x": 2, "y": 1} and [name for name, _, _ in told] == ["x", "x", "y"]
