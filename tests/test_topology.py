"""Teams as data: what a topology says of itself, how it is written and read, and which teams are refused."""

import copy
import dataclasses
import json
import pickle

import pytest
import yaml

from ccpo.team.base import Topology
from ccpo.team.prompts import CRITIQUE_PROMPT, REWRITE_PROMPT, SOLO_PROMPT, SOLVER_PROMPT, THINKER_PROMPT
from ccpo.team.topology import AnswerCritiqueRewrite, Chain, Role, Solo, ThinkSolve, Vote, make_topology

# Two helpers of one reader, a reader of readers; agent x plays two roles; d answers.
DIAMOND = Topology(
    (
        Role("a", agent="x"),
        Role("b", reads=("a",)),
        Role("c", reads=("a",), branches=2, agent="x", states_answer=True),
        Role("d", reads=("b", "c"), branches=3),
    )
)
# A judge in the middle whose text is judged too; the outcome is the mean of two.
MEAN = Topology(
    (Role("a", judged=True), Role("b", reads=("a",), judged=True), Role("c", reads=("a", "b"))),
    answer="mean",
    answer_roles=("b", "c"),
)
TEAMS = {
    "solo": Solo(),
    "solo with a prompt": Solo(prompt="A {problem}"),
    "think_solve": ThinkSolve(),
    "own words": ThinkSolve(thinker_prompt="T {problem}", solver_prompt="S {problem} {thought} \\boxed{}"),
    "chain": Chain(["planner", "critic", "writer"]),
    "chain of one": Chain(["a"]),
    "chain with a branch": Chain(["a", {"name": "b", "branches": 2, "agent": "x"}]),
    "vote": Vote(3),
    "one voter": Vote(1, prompt="V {problem}", agent="x"),
    "answer_critique_rewrite": AnswerCritiqueRewrite(),
    "own critique": AnswerCritiqueRewrite(critique_prompt="C {problem} {answer}"),
    "diamond": DIAMOND,
    "mean": MEAN,
    "own vote": Topology((Role("a", judged=True), Role("b", judged=True)), answer="vote"),
}
every_team = pytest.mark.parametrize("team", TEAMS.values(), ids=TEAMS.keys())


# ---- What a team says of itself ----


def test_the_topologies_at_hand():
    assert ThinkSolve().role_names == ("thinker", "solver")
    assert ThinkSolve().roles[1].reads == ("thinker",)
    assert Solo().role_names == ("solver",) and Solo().prompts == {}
    assert Solo(prompt="A {problem}").prompts == {"solver_prompt": "A {problem}"}
    with pytest.raises(ValueError, match="`prompt` of role 'solver' must contain {problem}"):
        Solo(prompt="A")
    defaults = ThinkSolve()
    assert (defaults.thinker_prompt, defaults.solver_prompt) == (THINKER_PROMPT, SOLVER_PROMPT)
    assert defaults.solo_prompt == SOLO_PROMPT
    assert defaults["thinker"].prompt == THINKER_PROMPT
    assert defaults["solver"].prompt == SOLVER_PROMPT.replace("{thought}", "{thinker}")
    assert defaults["solver"].prompt_without == {"thinker": SOLO_PROMPT}
    assert defaults.prompts == {
        "thinker_prompt": THINKER_PROMPT,
        "solver_prompt": SOLVER_PROMPT,
        "solo_prompt": SOLO_PROMPT,
    }


@every_team
def test_a_topology_is_frozen_data(team):
    for data in (team, team.roles[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            data.name = ()
        for twin in (copy.deepcopy(data), copy.copy(data), pickle.loads(pickle.dumps(data))):
            assert twin == data and type(twin) is type(data)
            assert hash(twin) == hash(data)
    twin = copy.deepcopy(team)
    assert (twin.levels, twin.agents, twin.judged) == (team.levels, team.agents, team.judged)


def test_teams_differ_by_what_they_are():
    assert len(set(TEAMS.values())) == len(TEAMS)
    one, other = (Topology((Role("a"), Role("b", ("a",), prompt_without={"a": f"{w} {{problem}}"}))) for w in "xy")
    assert one != other  # by a prompt that only a removal uses
    assert Vote(3) != Vote(3, agent="x") and Vote(3) != Vote(2)


def test_roles_agents_and_levels():
    assert DIAMOND.role_names == ("a", "b", "c", "d")
    assert DIAMOND.agents == ("x", "b", "d")  # in the order in which they first speak
    assert DIAMOND.roles_of("x") == ("a", "c") and DIAMOND.roles_of("b") == ("b",) and DIAMOND.roles_of("a") == ()
    assert [DIAMOND.agent_of(name) for name in "abcd"] == ["x", "b", "x", "d"]
    assert DIAMOND.levels == {"a": 0, "b": 1, "c": 1, "d": 2}
    with pytest.raises(ValueError):
        DIAMOND["e"]
    skipping = Topology((Role("a"), Role("b"), Role("c", reads=("b",)), Role("d", reads=("a", "c"))))
    assert skipping.levels == {"a": 0, "b": 0, "c": 1, "d": 2}  # the longest way, not the shortest
    assert set(Vote(4).levels.values()) == {0}


def test_who_is_judged_and_what_is_a_chain():
    judged = {name: team.judged for name, team in TEAMS.items()}
    assert judged["diamond"] == ("d",) and judged["mean"] == ("a", "b", "c")
    assert judged["vote"] == ("voter_1", "voter_2", "voter_3")
    chains = [name for name, team in TEAMS.items() if team.is_chain]
    assert chains == [name for name in TEAMS if "vote" not in name and "critique" not in name and name != "mean"]
    watched = Topology((Role("a", judged=True), Role("b", reads=("a",))))
    assert watched.judged == ("a", "b") and not watched.is_chain
    assert [name for name, team in TEAMS.items() if team.is_solo] == ["solo", "solo with a prompt"]


def test_who_states_an_answer_and_who_passes_the_guard():
    assert [DIAMOND.guarded(name) for name in "abcd"] == [True, True, False, False]
    assert [DIAMOND.answers(name) for name in "abcd"] == [False, False, True, True]
    assert [MEAN.guarded(name) for name in "abc"] == [True, True, False]  # b is judged, and its reader is guarded
    assert not any(Vote(2).guarded(name) for name in ("voter_1", "voter_2"))
    team = AnswerCritiqueRewrite()
    assert [name for name in team.role_names if team.guarded(name)] == ["critique_a", "critique_b"]
    assert [name for name in team.role_names if not team.answers(name)] == ["critique_a", "critique_b"]


def test_branches():
    assert ThinkSolve().branches() == (1, 1) and ThinkSolve().branches(4) == (1, 4)
    assert DIAMOND.branches() == DIAMOND.branches(1) == (1, 1, 2, 3)
    assert AnswerCritiqueRewrite().branches(2) == (1, 1, 1, 1, 1, 2)
    with pytest.raises(
        ValueError, match=r"`num_solves=2` sets the `branches` of the last role, but 'd' has `branches=3`"
    ):
        DIAMOND.branches(2)
    with pytest.raises(
        ValueError, match="`num_solves=2` .*, but 'solver' has no role before it. Set only one of the two"
    ):
        Solo().branches(2)
    with pytest.raises(
        ValueError,
        match="`num_solves=2` does not work with `answer='vote'`, where each voter speaks once. Set `num_solves` to 1",
    ):
        Vote(3).branches(2)


def test_labels():
    """Think-Solve keeps the words that it has always had; another team's are its roles' names."""
    label = ThinkSolve().label
    assert [label(name) for name in ("thinker", "solver", "without_thinker")] == [
        "thought",
        "joint_answer",
        "solo_answer",
    ]
    assert [label(f"rollout/{arm}") for arm in ("thinker", "solver", "without_thinker")] == [
        "rollout/thought",
        "rollout/joint",
        "rollout/solo",
    ]
    assert label("credit/without_thinker_accuracy") == "credit/solo_accuracy"
    assert label("credit/thinker/help_rate") == "credit/help_rate"
    assert Chain(["thinker", "solver"]).label("rollout/thinker") == "rollout/thinker"


# ---- Without a role ----


def test_without_by_hand():
    (solver,) = ThinkSolve().without("thinker")
    assert (solver.name, solver.reads, solver.prompt) == ("solver", (), SOLO_PROMPT)
    # b and c both read a; d reads both, and is asked as before.
    b, c, d = DIAMOND.without("a")
    assert [role.reads for role in (b, c, d)] == [(), (), ("b", "c")]
    assert b.prompt == DIAMOND["b"].prompt_without["a"] and d.prompt == DIAMOND["d"].prompt
    a, c, d = DIAMOND.without("b")
    assert (a, c) == (DIAMOND["a"], DIAMOND["c"])
    assert d.reads == ("c",) and d.prompt == DIAMOND["d"].prompt_without["b"]
    assert (c.branches, d.branches) == (2, 3)  # whoever runs it lets each speak once
    # Nobody but c reads b, which nobody but it reads a: both stay silent.
    chain = Chain(["a", "b", "c", "d"])
    assert [role.name for role in chain.without("c")] == ["d"]
    assert [role.name for role in chain.without("b")] == ["c", "d"]
    assert [role.name for role in chain.without("a")] == ["b", "c", "d"]


def test_without_keeps_who_is_judged_or_read_elsewhere():
    team = Topology(
        (
            Role("a", judged=True),
            Role("b"),
            Role("c", reads=("a", "b")),
            Role("d", reads=("b",)),
            Role("e", reads=("c", "d")),
        )
    )
    assert [role.name for role in team.without("c")] == ["a", "b", "d", "e"]
    assert [role.name for role in team.without("d")] == ["a", "b", "c", "e"]
    assert [role.name for role in team.without("b")] == ["a", "c", "d", "e"]


def test_removable():
    assert [DIAMOND.removable(name) for name in "abcd"] == [True, True, True, False]
    assert [MEAN.removable(name) for name in "abc"] == [True, False, False]
    worded = Topology(
        (Role("a"), Role("b"), Role("c", ("a", "b"), prompt="{problem}{a}{b}", prompt_without={"b": "{problem}{a}"}))
    )
    assert [worded.removable(name) for name in "abc"] == [False, True, False]
    assert not any(map(Vote(3).removable, Vote(3).role_names))


@pytest.mark.parametrize(
    ("team", "removed", "message"),
    [
        (DIAMOND, "e", r"`removed` must be one of the roles \['a', 'b', 'c', 'd'\], got 'e'"),
        (DIAMOND, "d", "The role 'd' cannot be left out, because it gives the team's answer"),
        (MEAN, "b", "The role 'b' cannot be left out, because it gives the team's answer"),
        (Vote(2), "voter_2", "The role 'voter_2' cannot be left out, because it gives the team's answer"),
        (
            AnswerCritiqueRewrite(),
            "critique_a",
            r"Role 'rewrite_b' reads 'critique_a' and has no prompt for when 'critique_a' is left out. Set "
            r"`prompt_without={'critique_a': ",
        ),
    ],
)
def test_a_team_that_cannot_be_without(team, removed, message):
    with pytest.raises(ValueError, match=message):
        team.without(removed)


# ---- The shipped kinds ----


def test_chain_by_names():
    chain = Chain(["planner", "critic", "writer"])
    assert [role.reads for role in chain.roles] == [(), ("planner",), ("critic",)]
    assert chain.agents == chain.role_names == ("planner", "critic", "writer")
    mixed = Chain(["a", {"name": "b", "agent": "x"}, Role("c", reads=("a", "b"), branches=2), "d"])
    assert [role.reads for role in mixed.roles] == [(), ("a",), ("a", "b"), ("c",)]
    assert mixed.agents == ("a", "x", "c", "d") and mixed.branches() == (1, 1, 2, 1)


def test_a_chain_of_two_with_think_solve_s_prompts_is_think_solve():
    solver = Role(
        "solver", prompt=SOLVER_PROMPT.replace("{thought}", "{thinker}"), prompt_without={"thinker": SOLO_PROMPT}
    )
    chain = Chain([Role("thinker", prompt=THINKER_PROMPT), solver])
    assert chain.roles == ThinkSolve().roles
    assert chain.without("thinker") == ThinkSolve().without("thinker")


def test_vote():
    team = Vote(3)
    assert team.role_names == team.agents == team.answer_roles == ("voter_1", "voter_2", "voter_3")
    assert {(role.prompt, role.judged, role.states_answer, role.reads) for role in team.roles} == {
        (SOLO_PROMPT, True, True, ())
    }
    assert Vote(2, prompt="{problem}?", agent="x").agents == ("x",)
    assert Vote(2, prompt="{problem}?")["voter_2"].prompt == "{problem}?"
    for number in (0, -1, True, 2.0, "3"):
        with pytest.raises(ValueError, match=f"`num_voters` must be an integer of at least 1, got {number!r}"):
            Vote(number)
    with pytest.raises(ValueError, match=r"`prompt` of role 'voter_1' must contain \{problem\}, got 'V'"):
        Vote(2, prompt="V")


def test_answer_critique_rewrite():
    team = AnswerCritiqueRewrite()
    assert team.agents == ("a", "b") and team.answer == "mean" and team.answer_roles == ("rewrite_a", "rewrite_b")
    assert team.judged == ("answer_a", "answer_b", "rewrite_a", "rewrite_b")
    assert {role.name: role.reads for role in team.roles} == {
        "answer_a": (),
        "answer_b": (),
        "critique_a": ("answer_b",),
        "critique_b": ("answer_a",),
        "rewrite_a": ("answer_a", "critique_b"),
        "rewrite_b": ("answer_b", "critique_a"),
    }
    assert team.levels == {name: i // 2 for i, name in enumerate(team.role_names)}
    assert all(team.agent_of(name) == name[-1] for name in team.role_names)
    assert team["critique_a"].prompt == CRITIQUE_PROMPT.replace("{answer}", "{answer_b}")
    assert team["rewrite_a"].prompt == REWRITE_PROMPT.replace("{answer}", "{answer_a}").replace(
        "{critique}", "{critique_b}"
    )


# ---- Default prompts ----


def test_default_prompts():
    chain = Chain(["idea_giver", "fact-checker", "writer"])
    idea, check, write = (role.prompt for role in chain.roles)
    assert idea.startswith("You are the Idea giver of a team. ") and check.startswith("You are the Fact checker of a ")
    assert "do not state the final answer" in idea and "do not state the final answer" in check
    assert write.startswith("{problem}\n\nThe Fact checker of your team wrote this:\n{fact-checker}\n\n")
    assert write.endswith("Write the solution step by step and put the final answer within \\boxed{}.")
    assert "{idea_giver}" in check and "{idea_giver}" not in write
    assert "may contain mistakes" in check and "may contain mistakes" not in idea
    assert chain["writer"].prompt_without == {
        "fact-checker": "{problem}\n\nWrite the solution step by step and put the final answer within \\boxed{}."
    }
    judged = Topology((Role("a", judged=True), Role("b", states_answer=True), Role("c", ("a", "b"))))
    assert all("\\boxed" in role.prompt for role in judged.roles)
    assert "{b}" in judged["c"].prompt_without["a"] and "{a}" not in judged["c"].prompt_without["a"]


def test_a_given_prompt_keeps_its_words_and_has_no_default_without():
    own = Topology((Role("a"), Role("b", ("a",), prompt="{problem} {a} {x} \\boxed{}")))
    assert own["b"].prompt == "{problem} {a} {x} \\boxed{}" and own["b"].prompt_without == {}
    without = Topology((Role("a"), Role("b", ("a",), prompt_without={"a": "Alone: {problem}"})))
    assert without["b"].prompt_without == {"a": "Alone: {problem}"} and "{a}" in without["b"].prompt
    assert without.prompts.keys() == {"a_prompt", "b_prompt", "b_prompt_without_a"}


# ---- Plain values ----


@every_team
def test_round_trip(team):
    values = team.to_dict()
    assert make_topology(values) == team and type(make_topology(values)) is type(team)
    assert make_topology(json.loads(json.dumps(values))) == team
    again = make_topology(yaml.safe_load(yaml.safe_dump(values)))
    assert again == team and hash(again) == hash(team) and again.to_dict() == values
    assert make_topology(team) is team


def test_plain_values_leave_out_what_is_usual():
    (a, c) = (DIAMOND.to_dict()["roles"][i] for i in (0, 2))
    assert a.keys() == {"name", "agent", "prompt"}
    assert c.keys() == {"name", "reads", "agent", "prompt", "prompt_without", "branches", "states_answer"}
    assert DIAMOND.to_dict().keys() == {"kind", "roles"}
    assert MEAN.to_dict()["answer_roles"] == ["b", "c"]
    assert Solo().to_dict() == {"kind": "solo"} and Vote(2).to_dict().keys() == {"kind", "num_voters", "prompt"}


def test_yaml_as_a_user_writes_it():
    team = make_topology(
        yaml.safe_load(
            """
            roles:
              - {name: planner, prompt: "Plan. {problem}"}
              - {name: critic, reads: [planner], agent: x, prompt: }
              - name: writer
                reads: [planner, critic]
                agent: x
                branches: 2
                prompt: 'Write {"a": \\boxed{}}. {problem} {planner} {critic}'
                prompt_without:
                  critic: "Write. {problem} {planner}"
            """
        )
    )
    assert type(team) is Topology and team.role_names == ("planner", "critic", "writer") and team.is_chain
    assert team.agents == ("planner", "x") and team.branches() == (1, 1, 2)
    assert "{planner}" in team["critic"].prompt  # nothing written: the default
    assert team.removable("critic") and not team.removable("planner")
    assert make_topology("think_solve") == ThinkSolve() and make_topology({"kind": "solo"}) == Solo()
    assert make_topology({"kind": "vote", "num_voters": 5}) == Vote(5)
    assert make_topology({"kind": "chain", "roles": ["a", "b"]}) == Chain(["a", "b"])
    assert make_topology("answer_critique_rewrite") == AnswerCritiqueRewrite()


def test_a_shipped_team_with_another_argument():
    """`dataclasses.replace` makes the roles anew: none of them is given twice."""
    assert dataclasses.replace(Vote(3), num_voters=2).role_names == ("voter_1", "voter_2")
    assert dataclasses.replace(Vote(2), prompt="Q {problem}").roles[1].prompt == "Q {problem}"
    solo = dataclasses.replace(ThinkSolve(), solo_prompt="alone {problem}")
    assert solo.roles[1].prompt_without == {"thinker": "alone {problem}"} and solo.answer_roles == ("solver",)
    changed = dataclasses.replace(AnswerCritiqueRewrite(), answer_prompt="A {problem}")
    assert changed["answer_b"].prompt == "A {problem}" and changed.answer_roles == ("rewrite_a", "rewrite_b")
    for make in (ThinkSolve, Vote, AnswerCritiqueRewrite, Solo):
        with pytest.raises(TypeError, match="unexpected keyword argument 'roles'"):
            make(roles=(Role("other"),))
