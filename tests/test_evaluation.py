"""Accuracy of a team and of its Solver alone, with intervals."""

import asyncio
import math
import re

import pytest
from datasets import Dataset

from ccpo import AnswerCritiqueRewrite, Chain, MathVerifier, ThinkSolve, Vote
from ccpo.evaluation import Proportion, TeamEvaluation, evaluate_team, paired_difference

Z = 1.959964


def score_bound(successes, total, side):
    """The Wilson bound by its definition, bisected: the p from which the share is z of p's standard errors away."""
    share = successes / total
    low, high = (0.0, share) if side < 0 else (share, 1.0)
    for _ in range(200):
        p = (low + high) / 2
        rejected = abs(share - p) > Z * math.sqrt(p * (1 - p) / total)
        if rejected == (side < 0):
            low = p
        else:
            high = p
    return (low + high) / 2


def test_wilson_by_hand():
    # 8 of 10: p = 0.8, z^2 = 3.841459, z^2/2n = 0.192073, centre 0.992073,
    # spread z sqrt(0.16/10 + 3.841459/400) = 1.959964 x 0.160011 = 0.313616, scale 1.384146
    # low = 0.678457 / 1.384146 = 0.490163, high = 1.305689 / 1.384146 = 0.943317
    low, high = Proportion(8, 10).interval
    assert low == pytest.approx(0.490163, abs=2e-6) and high == pytest.approx(0.943317, abs=2e-6)


@pytest.mark.parametrize(
    ("successes", "total"),
    [(0, 1), (1, 1), (0, 50), (50, 50), (1, 2), (13, 500), (250, 500), (499, 500), (3, 100_000)],
)
def test_wilson_is_the_inverted_score_test(successes, total):
    low, high = Proportion(successes, total).interval
    assert 0 <= low <= successes / total <= high + 1e-12 and high <= 1
    assert low == pytest.approx(score_bound(successes, total, -1), abs=1e-9)
    assert high == pytest.approx(score_bound(successes, total, +1), abs=1e-9)


def test_no_trials():
    empty = Proportion(0, 0)
    assert math.isnan(empty.value) and empty.interval == (0.0, 1.0)


def test_proportion_as_text():
    assert str(Proportion(8, 10)) == "0.800 [0.490, 0.943]"


class Recorder:
    """A generator that answers with a function of its prompt and keeps what it was asked."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, prompts, **kwargs):
        self.calls.append(list(prompts))
        return [self.answer(prompt if isinstance(prompt, str) else prompt[-1]["content"]) for prompt in prompts]


TOPOLOGY = ThinkSolve(thinker_prompt="T:{problem}", solver_prompt="J:{problem}:{thought}", solo_prompt="S:{problem}")


def think(prompt):
    problem = prompt.removeprefix("T:")
    return f"plan {problem}" + (" \\boxed{9}" if int(problem) % 5 == 0 else "")


def solve(prompt):
    """With the plan right for every even problem, alone for every fourth."""
    kind, problem, *_ = prompt.split(":")
    right = int(problem) % (2 if kind == "J" else 4) == 0
    return f"\\boxed{{{int(problem) + (0 if right else 1)}}}"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluate_team_counts(chat, batch_size):
    texts = [str(i) for i in range(10)]
    prompts = [[{"role": "user", "content": text}] for text in texts] if chat else texts
    dataset = Dataset.from_dict({"prompt": prompts, "solution": texts})
    generate = {"thinker": Recorder(think), "solver": Recorder(solve)}
    result = evaluate_team(dataset, generate, MathVerifier(num_workers=1), topology=TOPOLOGY, batch_size=batch_size)
    assert result.joint == Proportion(5, 10)  # 0 2 4 6 8
    assert result.solo == Proportion(3, 10)  # 0 4 8
    assert result.leak == Proportion(2, 10)  # 0 5
    assert result.unscorable == 0
    assert len(generate["thinker"].calls) == math.ceil(10 / batch_size)
    asked = [p if isinstance(p, str) else p[-1]["content"] for call in generate["solver"].calls for p in call]
    assert sorted(asked) == sorted(
        [f"J:{i}:plan {i}" + " " * (i % 5 == 0) for i in range(10)] + [f"S:{i}" for i in range(10)]
    )


@pytest.mark.parametrize(
    ("dataset", "kwargs", "match"),
    [
        (
            [{"prompt": "1"}],
            {},
            r"`dataset` must be a datasets.Dataset, got list. Make one with Dataset.from_list\(rows\)",
        ),
        (
            Dataset.from_dict({"question": ["1"]}),
            {},
            r"`dataset` has no column 'prompt'. Its columns are \['question'\]. Rename",
        ),
        (
            Dataset.from_dict({"prompt": ["1"]}),
            {"batch_size": 0},
            "`batch_size` must be an integer of at least 1, got 0",
        ),
        (Dataset.from_dict({"prompt": ["1"]}), {"topology": "votes"}, "`topology` must be one of the kinds"),
    ],
)
def test_what_cannot_be_evaluated(dataset, kwargs, match):
    with pytest.raises(ValueError, match=match):
        evaluate_team(dataset, {}, MathVerifier(num_workers=1), **{"topology": TOPOLOGY, **kwargs})


def test_a_team_of_plain_values():
    generate = dict.fromkeys(("voter_1", "voter_2"), Recorder(lambda p: r"\boxed{1}"))
    dataset = Dataset.from_dict({"prompt": ["1", "2"], "solution": ["1", "2"]})
    team = {"kind": "vote", "num_voters": 2}
    assert evaluate_team(dataset, generate, MathVerifier(num_workers=1), topology=team).joint == Proportion(1, 2)


def test_the_outcome_gets_each_answer_with_its_own_row():
    dataset = Dataset.from_dict({"prompt": ["1", "2"], "gold": ["a", "b"]})
    seen = []

    def outcome(prompts, completions, gold):
        seen.extend(zip(prompts, completions, gold, strict=True))
        return [1.0] * len(prompts)

    generate = {"thinker": Recorder(lambda p: "plan"), "solver": Recorder(lambda p: f"<{p}>")}
    evaluate_team(dataset, generate, outcome, topology=TOPOLOGY)
    assert sorted(seen) == [
        ("1", "<J:1:plan>", "a"),
        ("1", "<S:1>", "a"),
        ("2", "<J:2:plan>", "b"),
        ("2", "<S:2>", "b"),
    ]


def test_unscorable_problems_are_counted_apart():
    dataset = Dataset.from_dict({"prompt": ["1", "2", "3", "4"]})

    def outcome(prompts, completions):
        return [{"1": None, "2": float("nan"), "3": 1.0, "4": -1.0}[prompt] for prompt in prompts]

    generate = {"thinker": Recorder(lambda p: "plan"), "solver": Recorder(lambda p: "x")}
    result = evaluate_team(dataset, generate, outcome, topology=TOPOLOGY)
    assert result.joint == result.solo == Proportion(1, 2)
    assert result.unscorable == 2 and result.leak == Proportion(0, 4)


def test_to_dict():
    dataset = Dataset.from_dict({"prompt": ["1"], "solution": ["1"]})
    generate = {"thinker": Recorder(lambda p: "plan"), "solver": Recorder(lambda p: "\\boxed{1}")}
    content = evaluate_team(dataset, generate, MathVerifier(num_workers=1)).to_dict()
    assert content["joint"] == {"successes": 1, "total": 1, "value": 1.0, "interval": Proportion(1, 1).interval}
    assert set(content) == {"joint", "solo", "leak", "no_answer", "unscorable"}
    assert content["no_answer"]["value"] == 0.0


def test_no_answer_found_is_told_from_wrong():
    """Team answers alone count, by the outcome function's own reader; without one nothing is claimed."""
    dataset = Dataset.from_dict({"prompt": ["1", "2", "3", "4"], "solution": ["1", "2", "3", "4"]})
    joint = {"1": "\\boxed{1}", "2": "\\boxed{7}", "3": "It must be three, I am sure.", "4": ""}
    answers = lambda p: joint[p[2]] if p.startswith("J") else ""  # noqa: E731
    generate = {"thinker": Recorder(lambda p: "plan"), "solver": Recorder(answers)}
    result = evaluate_team(dataset, generate, MathVerifier(num_workers=1), topology=TOPOLOGY)
    assert result.joint == Proportion(1, 4) and result.no_answer == Proportion(2, 4)
    other = evaluate_team(dataset, generate, lambda **_: [1.0] * 8, topology=TOPOLOGY)
    assert other.no_answer is None and other.to_dict()["no_answer"] is None


def test_asynchronous_outcome_and_generators():
    dataset = Dataset.from_dict({"prompt": ["1", "2", "3"], "solution": ["1", "2", "3"]})
    verifier = MathVerifier(num_workers=1)

    async def outcome(prompts, completions, solution):
        await asyncio.sleep(0)
        return verifier(completions=completions, solution=solution)

    class Solver:
        async def __call__(self, prompts):
            await asyncio.sleep(0)
            return [solve(prompt) for prompt in prompts]

    async def thinker(prompts):
        return [think(prompt) for prompt in prompts]

    def evaluate():
        return evaluate_team(dataset, {"thinker": thinker, "solver": Solver()}, outcome, topology=TOPOLOGY)

    async def in_a_notebook():
        return evaluate()

    assert evaluate() == asyncio.run(in_a_notebook())
    assert evaluate().joint == Proportion(1, 3)


# ---- Other teams ----


def test_a_chain_is_seen_without_each_role():
    topology = Chain(["first", "second", "third"])
    dataset = Dataset.from_dict({"prompt": [str(i) for i in range(6)], "solution": [str(i) for i in range(6)]})
    asked = {name: [] for name in topology.role_names}

    def speaker(name):
        def speak(prompts):
            asked[name].append(len(prompts))
            number = [re.search(r"\d", prompt)[0] for prompt in prompts]
            # Right for even numbers with the second's help, always wrong without it.
            if name != "third":
                return [f"{name} helps" for _ in number]
            helped = ["second helps" in prompt for prompt in prompts]
            return [
                f"\\boxed{{{n}}}" if h and int(n) % 2 == 0 else "\\boxed{77}"
                for n, h in zip(number, helped, strict=True)
            ]

        return speak

    generate = {name: speaker(name) for name in topology.role_names}
    result = evaluate_team(dataset, generate, MathVerifier(num_workers=1), topology=topology, batch_size=4)
    assert result.joint == Proportion(3, 6) and result.right == (1, 0, 1, 0, 1, 0)
    assert result.without == {"first": Proportion(3, 6), "second": Proportion(0, 6)}
    assert result.solo == result.without["first"]
    assert set(result.to_dict()) >= {"without_first", "without_second"}
    # Batches of 4 and 2. Only the second reads the first, which has nobody to speak to without it.
    assert asked == {"first": [4, 2], "second": [8, 4], "third": [12, 6]}


def test_a_vote_and_a_mean_of_two_answers():
    dataset = Dataset.from_dict({"prompt": ["0", "1", "2"], "solution": ["0", "1", "2"]})
    said = {"voter_1": "012", "voter_2": "099", "voter_3": "088"}
    generate = {name: lambda prompts, w=w: [f"\\boxed{{{c}}}" for c in w[: len(prompts)]] for name, w in said.items()}
    result = evaluate_team(dataset, generate, MathVerifier(num_workers=1), topology=Vote(3))
    assert result.right == pytest.approx((1, 1 / 3, 1 / 3))  # three ways to answer: a tie of three
    assert result.joint.total == 3 and result.joint.value == pytest.approx(5 / 9) and result.solo is None
    topology = AnswerCritiqueRewrite()
    answer = {"rewrite_a": "012", "rewrite_b": "999"}
    said = {name: answer.get(name, "xyz") for name in topology.role_names}
    generate = {name: lambda prompts, w=w: [f"\\boxed{{{c}}}" for c in w[: len(prompts)]] for name, w in said.items()}
    result = evaluate_team(dataset, generate, MathVerifier(num_workers=1), topology=topology)
    assert result.right == (0.5, 0.5, 0.5) and result.joint == Proportion(1.5, 3)


def test_paired_difference_of_the_same_problems():
    def team(*right):
        return TeamEvaluation(Proportion(0, 1), None, Proportion(0, 0), right=right)

    before, after = team(*[0.0] * 50, *[1.0] * 50, math.nan), team(*[1.0] * 40, *[0.0] * 10, *[1.0] * 51)
    value, (low, high) = paired_difference(before, after)
    assert value == 0.4
    spread = 1.96 * math.sqrt(0.4 * 0.6 / 100)  # of 100 differences, 40 of them 1
    assert low == pytest.approx(0.4 - spread, abs=0.015) and high == pytest.approx(0.4 + spread, abs=0.015)
    assert paired_difference(before, after) == (value, (low, high))
    assert paired_difference(after, before)[0] == -0.4
    assert math.isnan(paired_difference(team(math.nan), team(1.0))[0])
    with pytest.raises(ValueError, match="`before` has 101 problems but `after` has 1"):
        paired_difference(before, team(1.0))
