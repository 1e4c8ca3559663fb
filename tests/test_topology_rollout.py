"""Who reads whom, the wiring of one pass of the team, and which rows answer alone."""

import copy
import dataclasses
import itertools
from collections import Counter

import pytest

from ccpo.team.prompts import (
    SOLO_PROMPT,
    SOLVER_PROMPT,
    THINKER_PROMPT,
    build_solo_messages,
    build_solver_messages,
    build_thinker_messages,
)
from ccpo.team.rollout import Episodes, assign_solos, run_episodes, run_solver
from ccpo.team.topology import Role, Solo, ThinkSolve, Topology

# ---- Topology ----


def test_roles_speak_in_order_and_read_what_they_read():
    topology = Topology((Role("a"), Role("b", reads=("a",)), Role("c", reads=("b", "a")), Role("d")))
    heard = []

    def speak(role, read):
        heard.append((role.name, dict(read)))
        return role.name.upper()

    assert topology.role_names == ("a", "b", "c", "d")
    assert topology.run(speak) == {"a": "A", "b": "B", "c": "C", "d": "D"}
    assert heard == [("a", {}), ("b", {"a": "A"}), ("c", {"b": "B", "a": "A"}), ("d", {})]


def test_the_topologies_at_hand():
    assert ThinkSolve().role_names == ("thinker", "solver")
    assert ThinkSolve().roles[1].reads == ("thinker",)
    assert Solo().role_names == ("solver",)
    defaults = ThinkSolve()
    assert (defaults.thinker_prompt, defaults.solver_prompt) == (THINKER_PROMPT, SOLVER_PROMPT)
    assert defaults.solo_prompt == SOLO_PROMPT


@pytest.mark.parametrize("data", [Role("a"), ThinkSolve(), Solo()])
def test_a_topology_is_frozen_data(data):
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.roles = ()
    assert copy.deepcopy(data) == data
    assert hash(copy.deepcopy(data)) == hash(data)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"thinker_prompt": "Think."}, r"`thinker_prompt` must contain \{problem\}, got 'Think.'"),
        ({"solver_prompt": "{thought}"}, r"`solver_prompt` must contain \{problem\}, got '\{thought\}'"),
        ({"solver_prompt": "{problem}"}, r"`solver_prompt` must contain \{thought\}, got '\{problem\}'"),
        ({"solo_prompt": "{thought}"}, r"`solo_prompt` must contain \{problem\}, got '\{thought\}'"),
    ],
)
def test_a_template_without_its_field_is_an_error(kwargs, match):
    with pytest.raises(ValueError, match=match):
        ThinkSolve(**kwargs)


# ---- One pass ----


class Recorder:
    """A generator that keeps what it was asked and numbers what it says."""

    def __init__(self, name, suffix=""):
        self.name, self.suffix, self.calls = name, suffix, []

    def __call__(self, prompts):
        self.calls.append(copy.deepcopy(prompts))
        return [f"{self.name}{i}{self.suffix}" for i in range(len(prompts))]


PROMPTS = [f"What is ${i}+1$? Put the answer in \\boxed{{}}." for i in range(3)]
CHATS = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}] for text in PROMPTS]


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS], ids=["text", "chat"])
def test_every_prompt_reaches_its_role_in_order(prompts):
    thinker, solver = Recorder("t", " $\\boxed{7}$"), Recorder("s")
    before = copy.deepcopy(prompts)
    episodes = run_episodes(
        ThinkSolve(), prompts, {"thinker": thinker, "solver": solver}, num_solves=2, solo_rows=[2, 0, 0, 1]
    )
    asked = [build_thinker_messages(prompt) for prompt in prompts]
    joint = [build_solver_messages(prompts[i], f"t{i} ") for i in (0, 0, 1, 1, 2, 2)]
    solo = [build_solo_messages(prompts[i]) for i in (2, 0, 0, 1)]
    assert thinker.calls == [asked]
    assert solver.calls == [joint + solo]  # one call
    assert episodes.prompts == prompts == before
    assert episodes.thoughts == [f"t{i} $\\boxed{{7}}$" for i in range(3)]  # what the Thinker really wrote
    assert episodes.views == ["t0 ", "t1 ", "t2 "]
    assert episodes.leaked == [True] * 3
    assert episodes.answers == [f"s{i}" for i in range(6)]  # 2i and 2i + 1 answer thought i
    assert episodes.solos == [f"s{i}" for i in range(6, 10)]
    assert episodes.solo_rows == [2, 0, 0, 1]
    assert episodes.role_prompts == {"thinker": asked, "solver": joint}


def test_without_solos_and_with_one_answer():
    thinker, solver = Recorder("t"), Recorder("s")
    episodes = run_episodes(ThinkSolve(), PROMPTS, {"thinker": thinker, "solver": solver})
    assert solver.calls == [[build_solver_messages(prompt, f"t{i}") for i, prompt in enumerate(PROMPTS)]]
    assert (episodes.answers, episodes.solos, episodes.solo_rows) == (["s0", "s1", "s2"], [], [])
    assert episodes.leaked == [False] * 3
    assert episodes.views == episodes.thoughts


def test_the_topology_s_own_templates_are_used():
    topology = ThinkSolve(
        thinker_prompt="T {problem}", solver_prompt="S {thought} {problem}", solo_prompt="A {problem}"
    )
    thinker, solver = Recorder("t"), Recorder("s")
    run_episodes(topology, ["p", "q"], {"thinker": thinker, "solver": solver}, solo_rows=(1,))
    assert thinker.calls == [["T p", "T q"]]
    assert solver.calls == [["S t0 p", "S t1 q", "A q"]]


def test_a_generator_may_serve_both_roles_and_others_may_be_there():
    both = Recorder("x")
    episodes = run_episodes(ThinkSolve(), ["p"], {"thinker": both, "solver": both, "critic": None})
    assert len(both.calls) == 2
    assert (episodes.thoughts, episodes.answers) == (["x0"], ["x0"])


def test_the_solver_s_half_alone():
    solver = Recorder("s")
    episodes = run_solver(ThinkSolve(), ["p", "q"], ["a", "b \\boxed{1}"], solver, num_solves=1, solo_rows=[1, 1])
    joint = [build_solver_messages("p", "a"), build_solver_messages("q", "b ")]
    assert solver.calls == [[*joint, build_solo_messages("q"), build_solo_messages("q")]]
    assert episodes == Episodes(
        prompts=["p", "q"],
        thoughts=["a", "b \\boxed{1}"],
        answers=["s0", "s1"],
        solos=["s2", "s3"],
        solo_rows=[1, 1],
        role_prompts={"solver": joint},
    )
    with pytest.raises(ValueError):
        run_solver(ThinkSolve(), ["p", "q"], ["a"], solver)


@pytest.mark.parametrize(
    ("generators", "match"),
    [
        ({"thinker": Recorder("t")}, r"no generator for the roles \['solver'\]; it has \['thinker'\]"),
        ({"solver": Recorder("s"), "critic": None}, r"roles \['thinker'\]; it has \['critic', 'solver'\]"),
        ({}, r"`generate` has no generator for the roles \['thinker', 'solver'\]; it has \[\]"),
    ],
)
def test_a_missing_generator_is_an_error(generators, match):
    with pytest.raises(ValueError, match=match):
        run_episodes(ThinkSolve(), ["p"], generators)
    assert all(not g.calls for g in generators.values() if g)  # before anything is generated


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ("thinker", "The thinker's generator returned 2 completions for 3 prompts"),
        ("solver", "The solver's generator returned 4 completions for 5 prompts"),
    ],
)
def test_a_lost_completion_is_an_error(broken, match):
    generators = {"thinker": Recorder("t"), "solver": Recorder("s")}
    whole = generators[broken]
    generators[broken] = lambda prompts: whole(prompts)[:-1]
    with pytest.raises(ValueError, match=match):
        run_episodes(ThinkSolve(), PROMPTS, generators, solo_rows=[0, 1])


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (None, "The thinker's generator returned None. It gets a list of prompts and has to return the list"),
        ("abc", "The thinker's generator returned 'abc'"),
        (["a", None, "c"], "The thinker's generator returned something else than texts.* got None"),
        (["a", 5, "c"], "got 5"),
    ],
    ids=str,
)
def test_a_generator_that_returns_something_else(returned, match):
    with pytest.raises(TypeError, match=match):
        run_episodes(ThinkSolve(), PROMPTS, {"thinker": lambda prompts: returned, "solver": Recorder("s")})


def test_a_generator_may_return_messages():
    messages = [[{"role": "assistant", "content": f"m{i}"}] for i in range(3)]
    episodes = run_episodes(ThinkSolve(), PROMPTS, {"thinker": lambda prompts: messages, "solver": Recorder("s")})
    assert episodes.thoughts == ["m0", "m1", "m2"]


# ---- Solos ----


def split_batches():
    """Every (rows, processes, group, S) with whole groups, though a group may be split over processes."""
    for rows, processes, group in itertools.product(range(1, 13), range(1, 7), range(1, 13)):
        if rows * processes % group == 0:
            for solos in {1, 2, max(1, group // 2), max(1, group - 1), group, group + 1, 2 * group, 3 * group + 2}:
                yield rows, processes, group, solos


def test_every_prompt_gets_its_solos_wherever_its_rows_are():
    combinations = list(split_batches())
    assert len(combinations) > 1000
    assert any(rows % group and group % rows for rows, _, group, _ in combinations)  # groups across a boundary
    for rows, processes, group, solos in combinations:
        local, valid = assign_solos(rows, processes, group, solos)
        case = (rows, processes, group, solos)
        assert len(local) == processes, case
        size = len(local[0])
        assert size >= 1 and all(len(own) == size for own in local), case
        assert len(valid) == processes * size, case
        assert all(0 <= row < rows for own in local for row in own), case
        answered = [
            (rank * rows + row) // group
            for (rank, row), counts in zip(
                ((rank, row) for rank, own in enumerate(local) for row in own), valid, strict=True
            )
            if counts
        ]
        assert answered == sorted(answered), case
        assert Counter(answered) == dict.fromkeys(range(rows * processes // group), solos), case


def test_no_process_has_more_solos_than_the_busiest_one_needs():
    for rows, processes, group, solos in split_batches():
        local, valid = assign_solos(rows, processes, group, solos)
        size = len(local[0])
        assert any(all(valid[rank * size : (rank + 1) * size]) for rank in range(processes))


def test_as_many_solos_as_rows_is_a_solo_for_each_row():
    for rows, processes, group, _ in split_batches():
        local, valid = assign_solos(rows, processes, group, group)
        assert local == [list(range(rows))] * processes
        assert all(valid)


def test_solos_by_hand():
    # W = 2 processes of 3 rows, G = 3, S = 1: the last row of each group answers, one per process.
    assert assign_solos(3, 2, 3, 1) == ([[2], [2]], [True, True])
    # G = 2 over rows 0 1 | 2 3 | 4 5 of processes (0 1 2) and (3 4 5), S = 1: rows 1 | 3 | 5, that is [1] and [0, 2].
    # The first process answers once more, which does not count.
    assert assign_solos(3, 2, 2, 1) == ([[1, 0], [0, 2]], [True, False, True, True])
    # One prompt on two processes, S = 1: its last row answers, and the first process runs along.
    assert assign_solos(2, 2, 4, 1) == ([[0], [1]], [False, True])
    # S = 3 of G = 2: rows 0 and 1 answer once and twice.
    assert assign_solos(2, 1, 2, 3) == ([[0, 1, 1]], [True] * 3)
    # None: a process still runs along, since sharded generation is a collective.
    assert assign_solos(2, 2, 2, 0) == ([[0], [0]], [False, False])


@pytest.mark.parametrize(("rows", "processes", "group"), [(3, 1, 2), (3, 2, 4), (1, 1, 2)])
def test_solos_of_a_broken_group_are_an_error(rows, processes, group):
    with pytest.raises(ValueError, match=f"multiple of `group`, got {rows} x {processes} and {group}"):
        assign_solos(rows, processes, group, 1)
