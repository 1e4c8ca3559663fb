"""The warm start of the embedded task's teams: a common start, and from there each agent on all its roles."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from test_arithmetic import loss
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo.tasks import arithmetic
from ccpo.tasks.arithmetic import dacr, warm


def weights(path):
    return AutoModelForCausalLM.from_pretrained(path).state_dict()


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def warmed(tmp_path_factory):
    team = arithmetic.topology("answer_critique_rewrite")
    return team, arithmetic.warm_start_team(team, tmp_path_factory.mktemp("warm"), 3, steps=40, disable_tqdm=True)


@pytest.fixture
def trainings(monkeypatch):
    """What is trained, in its order: (name, demonstrations, weights to start from, learning rate)."""
    seen = []

    def train(name, path, rows, family, seed, changes, start=None):
        seen.append((name, rows, start, changes.get("learning_rate")))
        return f"weights of {name}"

    monkeypatch.setattr(warm, "_train", train)
    return seen


def asked(rows):
    """How many demonstrations of each role, by the words of its prompt."""
    return Counter(" ".join(word for word in row["prompt"].split() if word.endswith(":")) for row in rows)


def test_what_each_training_gets(trainings, tmp_path):
    paths = arithmetic.warm_start_team(arithmetic.topology("answer_critique_rewrite"), tmp_path, 3, steps=9)
    assert paths == {agent: str(tmp_path / agent) for agent in "ab"}
    names, rows, starts, rates = zip(*trainings, strict=True)
    assert names == ("shared", "a", "b")
    assert starts == (None, "weights of shared", "weights of shared") and rates == (1.2e-3, 5e-4, 5e-4)
    for each in rows:  # a third of 9 steps of 16 for each of the three roles
        assert asked(each) == {"Answer:": 48, "Answer: Check:": 48, "Answer: Check: Answer:": 48}
    assert len({str(each.to_list()) for each in rows}) == 3


def test_steps_are_the_family_s_unless_they_are_given(trainings, tmp_path):
    arithmetic.warm_start_team(arithmetic.topology({"kind": "vote", "agent": "voter"}), tmp_path)
    arithmetic.warm_start_team(arithmetic.topology(), tmp_path)
    arithmetic.warm_start(tmp_path, thinker_steps=2, solver_steps=1)
    arithmetic.warm_start_team(arithmetic.topology(), tmp_path, steps=1, shared=True)
    vote, think = (arithmetic.FAMILIES[kind] for kind in ("vote", "think_solve"))
    own = vote.parts["voter"].steps  # of three voters that are one agent
    steps = [(name, len(rows) / (32 if name in ("thinker", "solver") else 16)) for name, rows, *_ in trainings]
    assert steps[:2] == [("shared", vote.common_steps), ("voter", own)]
    assert steps[2:] == [("thinker", 300), ("solver", 600), ("thinker", 2), ("solver", 1), ("shared", 1)]
    assert [part.steps for part in think.parts.values()] == [300, 600]
    assert [start for _, _, start, _ in trainings[2:]] == [None] * 5


def test_a_policy_alone_starts_as_a_voter_does(trainings, tmp_path):
    alone, vote = arithmetic.topology("solo"), arithmetic.topology({"kind": "vote", "num_voters": 1})
    assert alone.prompts == {"solver_prompt": vote.prompt}
    assert arithmetic.warm_start_team(alone, tmp_path, 3) == {"solver": str(tmp_path / "solver")}
    arithmetic.warm_start_team(vote, tmp_path, 3)
    seen = [(name, asked(rows), start, rate) for name, rows, start, rate in trainings]
    assert seen[0] == seen[2] and seen[1][1:] == seen[3][1:]
    assert [name for name, *_ in seen] == ["shared", "solver", "shared", "voter_1"]


def test_an_agent_learns_all_its_roles(warmed):
    team, paths = warmed
    tokenizer = arithmetic.build_tokenizer(dacr.WORDS)
    assert list(paths) == ["a", "b"]
    untrained = arithmetic.build_policy(tokenizer, 3)
    for agent, path in paths.items():
        model, loaded = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        assert model.dtype == torch.float32
        assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.padding_side == "left"
        for role in team.roles_of(agent):
            assert loss(model, loaded, role, team) < 0.6 * loss(untrained, tokenizer, role, team)
    assert not same(weights(paths["a"]), weights(paths["b"]))


def test_warm_start_is_deterministic_and_agents_go_on_from_a_common_start(tmp_path, monkeypatch):
    team = arithmetic.topology({"kind": "vote", "num_voters": 2})
    options = {"steps": 2, "disable_tqdm": True}
    first, again, other = (
        arithmetic.warm_start_team(team, tmp_path / name, seed, **options)
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert list(first) == ["voter_1", "voter_2"]
    for agent in team.agents:
        assert same(weights(first[agent]), weights(again[agent]))
        assert not same(weights(first[agent]), weights(other[agent]))
        assert not same(weights(first[agent]), weights(tmp_path / "first" / "shared"))
    assert not same(weights(first["voter_1"]), weights(first["voter_2"]))
    monkeypatch.setattr(warm, "OWN_LEARNING_RATE", 0.0)
    common = arithmetic.warm_start_team(team, tmp_path / "common", 5, **options)
    assert all(same(weights(path), weights(tmp_path / "common" / "shared")) for path in common.values())
    still = arithmetic.warm_start_team(team, tmp_path / "still", 5, learning_rate=0.0, **options)
    start = arithmetic.build_policy(arithmetic.build_tokenizer(), 5).state_dict()
    assert all(same(weights(path), start) for path in [*still.values(), tmp_path / "still" / "shared"])


def test_what_is_trained_next_may_have_another_precision(tmp_path):
    warm.warm_start(tmp_path, thinker_steps=1, solver_steps=1, disable_tqdm=True)
    assert Accelerator(mixed_precision="bf16", cpu=True).mixed_precision == "bf16"
    AcceleratorState._reset_state()


def test_one_policy_for_all_agents(trainings, tmp_path):
    team = arithmetic.topology("chain")
    paths = arithmetic.warm_start_team(team, tmp_path, steps=2, shared=True)
    assert paths == dict.fromkeys(team.agents, str(tmp_path / "shared"))
    (name, rows, start, _), *others = trainings
    assert (name, start, others) == ("shared", None, [])
    assert asked(rows).keys() == {"Plan:", "Plan: Sum:", "Sum:", "Sum: Answer:", "Answer:"}


def test_think_solve_by_the_team_s_way_is_the_same(trainings, tmp_path):
    plain = arithmetic.warm_start(tmp_path, 2, thinker_steps=3, solver_steps=3)
    assert arithmetic.warm_start_team(arithmetic.topology(), tmp_path, 2, steps=3) == plain
    assert list(plain) == ["thinker", "solver"]
    first, second = ([(name, rows.to_list(), *rest) for name, rows, *rest in trainings[i : i + 2]] for i in (0, 2))
    assert first == second
    assert [rows for _, rows, *_ in first] == [arithmetic.demonstrations(r, 96, 2).to_list() for r in arithmetic.ROLES]


def test_roles_are_mixed_by_the_steps_that_they_take():
    team = arithmetic.topology("chain")
    rows = warm._mixed(team, team.role_names, 1000, 0)
    asked = Counter("Plan" if row["prompt"].endswith(" Plan: ") else row["prompt"].split(" ")[-2] for row in rows)
    parts = arithmetic.FAMILIES["chain"].parts
    total = sum(part.steps for part in parts.values())
    for role, word in (("planner", "Plan"), ("adder", "Sum:"), ("solver", "Answer:")):
        assert asked[word] == pytest.approx(1000 * parts[role].steps / total, abs=1)
    assert asked.total() == 1000
