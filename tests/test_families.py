"""Every family of teams and schemes in the trainer: reductions, credit by hand, and each combination once."""

import itertools
import logging
import math

import pandas as pd
import pytest
import torch
from conftest import digit_outcome
from peft import LoraConfig
from test_trainer import Spy, mixed_outcome, train
from trl import GRPOConfig, GRPOTrainer

from ccpo import (
    AnswerCritiqueRewrite,
    Chain,
    ContextualCredit,
    CounterfactualCredit,
    CrossImprovementCredit,
    MultiAgentGRPOTrainer,
    Role,
    SelfEvaluatedCredit,
    SharedCredit,
    ThinkSolve,
    Topology,
    Vote,
    VoteCredit,
)
from ccpo.rewards import Evidence


class Letters:
    """Right by the length of the text; the answer is its first character."""

    __name__ = "letters"

    def __call__(self, prompts, completions, **kwargs):
        return mixed_outcome(prompts, completions, **kwargs)

    def extract(self, text):
        return text[:1].lower() or None

    def equal(self, first, second):
        return first == second


def four_roles() -> Topology:
    """Four roles, two agents, and texts that are read by others than the next."""
    return Topology(
        (
            Role("planner", agent="first", prompt="P {problem}"),
            Role(
                "critic",
                reads=("planner",),
                agent="second",
                prompt="C {problem} {planner}",
                prompt_without={"planner": "c {problem}"},
                branches=2,
            ),
            Role(
                "coder",
                reads=("planner", "critic"),
                agent="first",
                prompt="K {problem} {planner} {critic}",
                prompt_without={"planner": "k {problem} {critic}", "critic": "k {problem} {planner}"},
            ),
            Role(
                "writer",
                reads=("coder",),
                agent="second",
                prompt="W {problem} {coder}",
                prompt_without={"coder": "w {problem}"},
            ),
        )
    )


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def agents_models(topology, model_dirs) -> dict[str, str]:
    return {agent: model_dirs[kind] for agent, kind in zip(topology.agents, itertools.cycle(model_dirs), strict=False)}


# ---- Reductions ----


def test_a_chain_of_two_with_think_solves_prompts_is_think_solve_to_the_bit(model_dirs, chat_dataset, make_config):
    shipped = ThinkSolve()
    solver = shipped.roles[1]
    chain = Chain(
        [
            Role("planner", prompt=shipped.thinker_prompt),
            Role(
                "writer",
                prompt=solver.prompt.replace("{thinker}", "{planner}"),
                prompt_without={"planner": shipped.solo_prompt},
            ),
        ]
    )
    args = {"num_solves": 2, "max_steps": 3, "schedule": "alternate", "alternate_period": 1}
    trainers = []
    for topology in (shipped, chain):
        models = dict(zip(topology.agents, model_dirs.values(), strict=True))
        credit = CounterfactualCredit(mixed_outcome)
        trainers.append(train(models, credit, make_config(**args), chat_dataset, topology=topology)[0])
    mine, theirs = map(weights_of, trainers)
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name.replace(".thinker.", ".planner.").replace(".solver.", ".writer.")]), (
            name
        )
    (ours, others) = ([row for row in t.state.log_history if "loss" in row] for t in trainers)
    for one, two in zip(ours, others, strict=True):
        assert one.get("credit/solo_accuracy") == two.get("credit/without_planner_accuracy")
        assert one["rollout/joint_tokens"] == two["rollout/writer_tokens"]
        assert one["rollout/solo_tokens"] == two["rollout/without_planner_tokens"]


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_a_vote_of_one_is_stock_grpo(coef, model_dirs, text_dataset, make_config):
    """R - R(nobody) is R + 1: after the group's mean, 1 + λ times the advantages. With λ = 0, TRL's weights."""
    settings = {"max_steps": 4, "learning_rate": 1e-3}
    outcome = Letters()
    vote, _ = train(
        model_dirs["qwen3"],
        VoteCredit(outcome, coef=coef),
        make_config(schedule="joint", **settings),
        text_dataset,
        topology=Vote(1, prompt="{problem}"),
    )
    moved = False
    for rollout, _, advantages, _ in vote.seen:
        team = rollout.outcomes[0].team
        shared = (team - team.nanmean(dim=1, keepdim=True)).nan_to_num(0)
        torch.testing.assert_close(advantages["voter_1"], (1 + coef) * shared)
        moved |= bool(shared.abs().max() > 0)
    assert moved
    if coef == 0:
        stock_args = make_config(GRPOConfig, scale_rewards="none", **settings)
        stock, _ = train(model_dirs["qwen3"], outcome, stock_args, text_dataset, cls=GRPOTrainer)
        theirs = weights_of(stock)
        for name, weight in weights_of(vote).items():
            assert torch.equal(weight, theirs[name]), name


def test_coefficient_0_is_shared_credit_for_any_chain(model_dirs, chat_dataset, make_config):
    weights = []
    for credit in (SharedCredit(mixed_outcome), CounterfactualCredit(mixed_outcome, coef=0)):
        topology = Chain(["first", "second", "third"])
        args = make_config(schedule="joint", num_solves=2)
        models = agents_models(topology, model_dirs)
        weights.append(weights_of(train(models, credit, args, chat_dataset, topology=topology)[0]))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_contextual_credit_of_one_answer_a_thought_is_leave_one_out(model_dirs, chat_dataset, make_config):
    """K = 1 and a frozen Solver: A_i = R_i - mean of the others' R."""
    args = make_config(schedule="joint", role_kwargs={"solver": {"trainable": False}}, max_steps=3)
    trainer, _ = train(model_dirs["qwen3"], ContextualCredit(digit_outcome), args, chat_dataset)
    for rollout, _, advantages, _ in trainer.seen:
        team = rollout.outcomes[0].team
        others = (team.sum(dim=1, keepdim=True) - team) / (team.shape[1] - 1)
        torch.testing.assert_close(advantages["thinker"], team - others)
        assert set(advantages) == {"thinker"}


# ---- Credit by hand, from what a run has recorded ----


def test_contextual_credit_in_a_run(model_dirs, chat_dataset, make_config):
    """G x K: a thought against the prompt's other thoughts, an answer against the other answers to its thought."""
    args = make_config(schedule="joint", num_solves=2, max_steps=3)
    trainer, _ = train(model_dirs["qwen3"], ContextualCredit(digit_outcome), args, chat_dataset)
    for rollout, _, advantages, _ in trainer.seen:
        team = rollout.outcomes[0].team.view(-1, 4, 2)  # (P, G, K), +1 and -1 only
        for p, thoughts in enumerate(team.tolist()):
            values = [sum(answers) / 2 for answers in thoughts]
            for i, answers in enumerate(thoughts):
                others = [value for j, value in enumerate(values) if j != i]
                assert advantages["thinker"][p, i].item() == pytest.approx(values[i] - sum(others) / 3, abs=1e-6)
                for k in range(2):
                    assert advantages["solver"][p, 2 * i + k].item() == answers[k] - answers[1 - k]
    assert trainer._clock.seconds is not None and not trainer.seen[0][0].episodes.without  # no solos drawn


def test_cross_improvement_in_a_run(model_dirs, chat_dataset, make_config):
    topology = AnswerCritiqueRewrite()
    args = make_config(schedule="joint", max_steps=2)
    models = agents_models(topology, model_dirs)
    trainer, _ = train(models, CrossImprovementCredit(digit_outcome), args, chat_dataset, topology=topology)
    for rollout, rewards, _, _ in trainer.seen:
        own = rollout.outcomes[0].own
        torch.testing.assert_close(rollout.outcomes[0].team, (own["rewrite_a"] + own["rewrite_b"]) / 2)
        for agent, other in (("a", "b"), ("b", "a")):
            delta = own[f"rewrite_{other}"] - own[f"answer_{other}"]
            for kind in ("answer", "critique", "rewrite"):
                expected = own[f"rewrite_{agent}"] + 0.5 * delta
                torch.testing.assert_close(rewards[f"{kind}_{agent}"][..., 0], expected)


# Two agents for three voters, and prompts of their own.
OWN_VOTE = Topology(
    (
        Role("careful", agent="one", prompt="C {problem}", judged=True),
        Role("quick", agent="one", prompt="Q {problem}", judged=True),
        Role("other", agent="two", prompt="{problem}", judged=True),
    ),
    answer="vote",
    answer_roles=("other", "careful", "quick"),
)


@pytest.mark.parametrize("topology", [Vote(3, agent="voter"), OWN_VOTE], ids=["shipped", "own"])
def test_votes_in_a_run(topology, model_dirs, chat_dataset, make_config):
    """Leave-one-out by counting letters, the slow way; the table shows a text of a largest cluster, the earliest."""
    args = make_config(schedule="joint", max_steps=3, log_completions=True, num_completions_to_print=0)
    credit = VoteCredit(Letters(), mode="marginal")
    trainer, _ = train(model_dirs["qwen3"], credit, args, chat_dataset, topology=topology)

    def vote(ballots):
        said = [(letter, outcome) for letter, outcome in ballots if letter is not None]
        if not said:
            return -1.0
        counts = {letter: sum(other == letter for other, _ in said) for letter, _ in said}
        winners = [letter for letter, count in counts.items() if count == max(counts.values())]
        means = [sum(o for other, o in said if other == w) / counts[w] for w in winners]
        return sum(means) / len(means)

    checked, shown_places = 0, set()
    for step, (rollout, rewards, _, _) in enumerate(trainer.seen, start=1):
        seen = rollout.outcomes[0]
        table = pd.read_parquet(f"{args.output_dir}/completions/completions_{step:05d}.parquet")
        for g in range(4):
            texts = [rollout.episodes.said[name].texts[g] for name in topology.role_names]
            letters = [Letters().extract(text) for text in texts]
            sizes = [letters.count(letter) if letter is not None else 0 for letter in letters]
            shown_places.add(sizes.index(max(sizes)))
            assert table[table["answer_role"][g]][g] == texts[sizes.index(max(sizes))]
            outcomes = [seen.own[name][0, g].item() for name in topology.role_names]
            if any(outcome != outcome for outcome in outcomes):
                continue
            ballots = [(Letters().extract(text), outcome) for text, outcome in zip(texts, outcomes, strict=True)]
            assert seen.team[0, g].item() == pytest.approx(vote(ballots))
            for k, name in enumerate(topology.role_names):
                expected = vote(ballots) - vote(ballots[:k] + ballots[k + 1 :])
                assert rewards[name][0, g, 0].item() == pytest.approx(expected)
                checked += 1
    assert checked > 9 and 0 in shown_places


class WithoutB(SharedCredit):
    """Shared credit that looks at the team without b."""

    def evidence(self, topology, roles):
        return Evidence(removals=("b",))


@pytest.mark.parametrize("removal", ["prompt", "context"])
def test_a_mean_of_two_answers_without_a_role(removal, model_dirs, chat_dataset, make_config):
    """Passes are valued by the team's rule; a, which speaks before b, stays as it spoke in a context."""
    team = Topology(
        (
            Role("a", prompt="A {problem}", judged=True),
            Role("b", ("a",), prompt="B {problem} {a}", branches=2),
            Role("c", ("b",), prompt="C {problem} {b}", prompt_without={"b": "c {problem}"}, judged=True),
        ),
        answer="mean",
        answer_roles=("a", "c"),
    )
    args = make_config(policy_sharing="shared", schedule="joint", removal=removal, num_solos=2, max_steps=3)
    trainer, _ = train(model_dirs["qwen3"], WithoutB(mixed_outcome), args, chat_dataset, topology=team)
    for step, (rollout, _, _, _) in enumerate(trainer.seen, start=1):
        seen, said = rollout.outcomes[0], rollout.episodes.without["b"]
        judged = {
            role: torch.tensor([float(o or "nan") for o in mixed_outcome(None, texts.texts)])
            for role, texts in said.items()
        }
        if removal == "context":
            assert set(said) == {"c"}
            before = seen.own["a"].unsqueeze(-1)  # (1, 4, 1)
            expected = (before + judged["c"].view(1, 4, 2)) / 2
            right = ((before > 0) + 0.0 + (judged["c"].view(1, 4, 2) > 0)) / 2
        else:
            assert set(said) == {"a", "c"}
            expected = ((judged["a"] + judged["c"]) / 2).view(1, 2)
            right = (((judged["a"] > 0) + 0.0 + (judged["c"] > 0)) / 2).view(1, 2)
        torch.testing.assert_close(seen.without["b"], expected, equal_nan=True)
        row = trainer.state.log_history[step - 1]
        accuracy = right[~expected.isnan()].mean().item()
        assert row["credit/without_b_accuracy"] == pytest.approx(accuracy, nan_ok=True)
        spoken = row["rollout/verify_tokens"] - row["rollout/a_tokens"] - row["rollout/c_tokens"]
        assert row["rollout/without_b_tokens"] == spoken > 0 and "rollout/without_a_tokens" not in row
        assert row["rollout/without_b_seconds"] > 0
    assert not expected.isnan().all()


def test_a_team_is_not_seen_without_who_answers(model_dirs, chat_dataset, make_config):
    class Without(SharedCredit):
        def evidence(self, topology, roles):
            return Evidence(removals=topology.role_names[:1])

    with pytest.raises(ValueError, match="'voter_1' cannot be left out, .* Remove it from the `removals`"):
        MultiAgentGRPOTrainer("nowhere", Without(Letters()), make_config(), chat_dataset, topology=Vote(2))


def test_rewards_of_one_role_are_added_with_their_weights(model_dirs, chat_dataset, make_config):
    def length(prompts, completions, **kwargs):
        assert len(kwargs["solution"]) == len(completions) == len(kwargs["completion_ids"])
        return [float(len(completion[-1]["content"])) for completion in completions]

    args = make_config(schedule="joint", num_solves=2, max_steps=2)
    trainer, _ = train(
        model_dirs["qwen3"],
        SharedCredit(digit_outcome),
        args,
        chat_dataset,
        role_rewards={"solver": [(length, 0.5)]},
    )
    for rollout, rewards, advantages, _ in trainer.seen:
        lengths = torch.tensor([[float(len(text)) for text in rollout.episodes.said["solver"].texts]])
        total = rollout.outcomes[0].team + 0.5 * lengths
        torch.testing.assert_close(rewards["solver"][..., 1], lengths)
        torch.testing.assert_close(advantages["solver"], total - total.mean(dim=1, keepdim=True))
        assert rewards["thinker"].shape[-1] == 1
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert row["solver/rewards/length/mean"] > 0 and "thinker/rewards/length/mean" not in row


def test_rewards_of_one_role_beside_a_removal_estimator(model_dirs, chat_dataset, make_config):
    """The team without the role says nothing of them: they are held against their own mean in the group."""

    def letters(prompts, completions, log_metric, **kwargs):
        values = [float(len(set(completion[-1]["content"]))) for completion in completions]
        log_metric("letters", sum(values) / len(values))
        return values

    settings = {"advantage_estimator": "counterfactual", "scale_rewards": "none", "schedule": "joint"}
    trainer, _ = train(
        model_dirs["qwen3"],
        CounterfactualCredit(mixed_outcome),
        make_config(**settings, max_steps=2),
        chat_dataset,
        role_rewards={"thinker": [(letters, 0.25)]},
    )
    for rollout, _, advantages, _ in trainer.seen:
        own = torch.tensor([[float(len(set(text))) for text in rollout.episodes.said["thinker"].texts]])
        seen = rollout.outcomes[0]
        baseline = seen.without["thinker"].nanmean(dim=1, keepdim=True)
        expected = (seen.values["thinker"] - baseline).nan_to_num(nan=0.0) + 0.25 * (own - own.mean())
        torch.testing.assert_close(advantages["thinker"], expected)
    assert trainer.state.log_history[0]["letters"] > 0


def test_rewards_of_one_role_that_would_do_nothing(model_dirs, chat_dataset, make_config):
    given = {"role_rewards": {"thinker": [lambda completions, **kwargs: [0.0] * len(completions)]}}
    with pytest.raises(ValueError, match="`role_rewards` .* `contextual_credit` gives finished advantages"):
        args = make_config(num_solves=2, scale_rewards="none")
        MultiAgentGRPOTrainer(model_dirs["qwen3"], ContextualCredit(digit_outcome), args, chat_dataset, **given)
    with pytest.raises(ValueError, match="`role_rewards` names 'thinker', but its agent 'thinker' is not trained"):
        args = make_config(role_kwargs={"thinker": {"trainable": False}})
        MultiAgentGRPOTrainer(model_dirs["qwen3"], digit_outcome, args, chat_dataset, **given)


@pytest.mark.parametrize(
    "given",
    [{"nobody": [len]}, {"solver": ["len"]}, {"solver": [(len, "much")]}, {"solver": [(len, math.nan)]}, [len]],
)
def test_rewards_of_one_role_that_cannot_be(given, model_dirs, chat_dataset, make_config):
    with pytest.raises(ValueError, match="`role_rewards"):
        MultiAgentGRPOTrainer(model_dirs["qwen3"], digit_outcome, make_config(), chat_dataset, role_rewards=given)


# ---- What a scheme says is looked at ----


class OfOnesOwn(SharedCredit):
    """Credit by a function of the values."""

    __name__ = "of_ones_own"

    def __init__(self, make):
        super().__init__(mixed_outcome)
        self.make = make

    def allocate(self, outcomes):
        return self.make(outcomes.values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda v: {role: value.T for role, value in v.items()},
            r"'thinker' .* shape \(1, 4\), .*\(4, 1\)",
        ),
        (lambda v: {"thinker": v["thinker"]}, "'solver' a floating-point tensor .* got None"),
        (lambda v: {role: value.tolist() for role, value in v.items()}, r"'thinker' .* got \[\["),
        (lambda v: {role: (value > 0).long() for role, value in v.items()}, "got torch.int64 of shape"),
        (lambda v: {role: value / 0 for role, value in v.items()}, "returned an infinite credit for role 'thinker'"),
        (lambda v: None, "must return a mapping from roles to tensors, got None"),
    ],
)
def test_credit_that_is_none(make, message, model_dirs, chat_dataset, make_config):
    trainer = MultiAgentGRPOTrainer(model_dirs["qwen3"], OfOnesOwn(make), make_config(max_steps=1), chat_dataset)
    with pytest.raises(ValueError, match=f"`allocate` of `of_ones_own`.*{message}"):
        trainer.train()


def test_what_one_function_cannot_score_is_no_difference(model_dirs, chat_dataset, make_config):
    """A = v - b of two functions, the first of which scores the passes without the Thinker alone."""

    def right(completions, **kwargs):
        return [1.0] * len(completions)

    args = make_config(advantage_estimator="counterfactual", scale_rewards="none", schedule="joint", max_steps=1)
    trainer = MultiAgentGRPOTrainer(
        model_dirs["qwen3"], [SharedCredit(right), SharedCredit(mixed_outcome)], args, chat_dataset
    )
    roll_out = trainer._roll_out

    def blind(*given):  # to what the team says
        rollout = roll_out(*given)
        rollout.outcomes[0].own["solver"].fill_(math.nan)
        return rollout

    trainer._roll_out = blind
    seen, log = [], trainer._log_rollout
    trainer._log_rollout = lambda *given: (seen.append(given), log(*given))
    trainer.train()
    ((rollout, _, advantages),) = seen
    scored = rollout.outcomes[1]
    expected = (scored.values["thinker"] - scored.without["thinker"].nanmean(dim=1, keepdim=True)).nan_to_num(nan=0.0)
    torch.testing.assert_close(advantages["thinker"], expected)


def test_rewards_that_nothing_can_be_trained_on(model_dirs, chat_dataset, make_config):
    def endless(completions, **kwargs):
        return [float("inf")] * len(completions)

    given, message = (
        {"solver": endless},
        "returned inf.*, which cannot be used for training. Return one number",
    )
    with pytest.raises(
        ValueError, match=rf"`role_rewards\['solver'\]` \(endless\) {message}, or None, per completion"
    ):
        train(model_dirs["qwen3"], SharedCredit(digit_outcome), make_config(), chat_dataset, role_rewards=given)
    with pytest.raises(
        ValueError, match="`outcome` of `shared_credit` returned inf, which cannot be used for training"
    ):
        train(model_dirs["qwen3"], SharedCredit(endless), make_config(), chat_dataset)


# ---- A placebo is announced ----


def test_a_placebo_is_announced_once_and_can_be_left_out(model_dirs, chat_dataset, make_config, caplog):
    """What is left out draws nothing without the Thinker, and is shared credit to the bit."""
    weights = {}
    for name, credit, skips in (
        ("shared", SharedCredit(mixed_outcome), False),
        ("skips", CounterfactualCredit(mixed_outcome), True),
        ("draws", CounterfactualCredit(mixed_outcome), False),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            args = make_config(schedule="joint", skip_uninformative_solos=skips, max_steps=3)
            trainer, _ = train(model_dirs["qwen3"], credit, args, chat_dataset)
        said = [
            record.getMessage() for record in caplog.records if "is shared credit up to a factor" in record.message
        ]
        assert len(said) == (name != "shared")
        if said:
            assert "thinker: 1" in said[0] and "num_solves" in said[0]
            assert ("1.1 where" in said[0]) == (name == "draws")
        assert all(bool(rollout.episodes.without) == (name == "draws") for rollout, _, _, _ in trainer.seen)
        weights[name] = weights_of(trainer)
    assert all(torch.equal(weight, weights["skips"][name]) for name, weight in weights["shared"].items())
    assert any(not torch.equal(weight, weights["draws"][name]) for name, weight in weights["shared"].items())


def test_in_context_the_first_role_has_its_passes_of_the_prompt(model_dirs, chat_dataset, make_config):
    args = make_config(schedule="joint", removal="context", num_solos=2, max_steps=1)
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(mixed_outcome), args, chat_dataset)
    ((rollout, _, _, _),) = trainer.seen
    assert rollout.outcomes[0].without["thinker"].shape == (1, 2)


# ---- Every pair of (family, sharing, schedule, estimator) once ----

FAMILIES = {
    "c3": (ThinkSolve, ContextualCredit, {"num_solves": 2}),
    "ccpo": (ThinkSolve, CounterfactualCredit, {}),
    "history": (ThinkSolve, lambda outcome: CounterfactualCredit(outcome, history=True), {"num_solves": 2}),
    "vote": (lambda: Vote(3), VoteCredit, {}),
    "dacr": (AnswerCritiqueRewrite, CrossImprovementCredit, {}),
    "chain": (lambda: Chain(["first", "second", "third"]), CounterfactualCredit, {"removal": "context"}),
    "four": (four_roles, CounterfactualCredit, {}),
    "sepo": (
        lambda: Chain(["first", "second", "third"]),
        lambda outcome: SelfEvaluatedCredit(
            outcome, rating_mode="constrained", rating_prompt="{role} {outcome} {transcript}"
        ),
        {},
    ),
}
ONLY = {"c3": ("group",)}
NO_REMOVAL = ("sepo", "vote", "dacr", "history")
ROWS = [
    # family, sharing, schedule, estimator
    ("c3", "separate", "joint", "group"),
    ("c3", "adapters", "alternate", "group"),
    ("c3", "shared", "joint", "group"),
    ("ccpo", "separate", "alternate", "robust"),
    ("ccpo", "adapters", "joint", "counterfactual"),
    ("ccpo", "shared", "joint", "reinforce++"),
    ("ccpo", "shared", "alternate", "reinforce++-baseline"),
    ("ccpo", "adapters", "alternate", "group"),
    ("history", "separate", "joint", "reinforce++"),
    ("history", "adapters", "alternate", "reinforce++"),
    ("history", "shared", "alternate", "robust"),
    ("history", "separate", "alternate", "group"),
    ("history", "shared", "joint", "reinforce++-baseline"),
    ("vote", "separate", "alternate", "group"),
    ("vote", "adapters", "joint", "reinforce++"),
    ("vote", "shared", "joint", "robust"),
    ("vote", "separate", "joint", "reinforce++-baseline"),
    ("dacr", "separate", "joint", "robust"),
    ("dacr", "adapters", "alternate", "reinforce++-baseline"),
    ("dacr", "shared", "alternate", "group"),
    ("dacr", "separate", "alternate", "reinforce++"),
    ("chain", "separate", "alternate", "counterfactual"),
    ("chain", "adapters", "joint", "robust"),
    ("chain", "shared", "alternate", "reinforce++"),
    ("chain", "adapters", "joint", "reinforce++-baseline"),
    ("chain", "shared", "joint", "group"),
    ("four", "separate", "joint", "reinforce++"),
    ("four", "adapters", "alternate", "robust"),
    ("four", "shared", "joint", "counterfactual"),
    ("four", "separate", "alternate", "reinforce++-baseline"),
    ("four", "adapters", "joint", "group"),
    ("sepo", "separate", "joint", "group"),
    ("sepo", "adapters", "alternate", "reinforce++"),
    ("sepo", "shared", "joint", "reinforce++-baseline"),
    ("sepo", "shared", "alternate", "robust"),
]


def test_every_pair_of_settings_stands_in_a_row():
    axes = (
        tuple(FAMILIES),
        ("separate", "adapters", "shared"),
        ("joint", "alternate"),
        ("group", "reinforce++", "reinforce++-baseline", "counterfactual", "robust"),
    )
    missing = []
    for (i, first), (j, second) in itertools.combinations(enumerate(axes), 2):
        for pair in itertools.product(first, second):
            if (i, j) == (0, 3):
                family, estimator = pair
                if estimator not in ONLY.get(family, axes[3]) or (
                    estimator == "counterfactual" and family in NO_REMOVAL
                ):
                    continue
            if not any((row[i], row[j]) == pair for row in ROWS):
                missing.append(pair)
    assert not missing


@pytest.mark.parametrize(("family", "sharing", "schedule", "estimator"), ROWS)
def test_a_combination_moves_who_is_in_turn_and_nobody_else(
    family, sharing, schedule, estimator, model_dirs, chat_dataset, make_config
):
    make, credit, settings = FAMILIES[family]
    topology = make()
    args = make_config(
        policy_sharing=sharing,
        schedule=schedule,
        alternate_period=1,
        advantage_estimator=estimator,
        max_steps=2,
        learning_rate=1e-2,
        **settings,
    )
    model = agents_models(topology, model_dirs) if sharing == "separate" else model_dirs["qwen3"]
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if sharing == "adapters" else None
    snapshots = []

    class Watching(Spy):
        def training_step(self, *args, **kwargs):
            before = weights_of(self)
            loss = super().training_step(*args, **kwargs)
            snapshots.append((set(self._moved_agents), before))
            return loss

    trainer, _ = train(model, credit(Letters()), args, chat_dataset, Watching, topology=topology, peft_config=lora)
    snapshots.append((set(), weights_of(trainer)))
    for step, ((in_turn, before), (_, after)) in enumerate(itertools.pairwise(snapshots)):
        assert in_turn == (set(topology.agents) if schedule == "joint" else {topology.agents[step]})
        for name, weight in before.items():
            agent = next((agent for agent in topology.agents if f".{agent}." in f".{name}."), None)
            if sharing != "shared" and agent not in in_turn:
                assert torch.equal(weight, after[name]), name
    for rollout, rewards, advantages, _ in trainer.seen:
        leaves = rollout.outcomes[0].team.shape
        for role, values in advantages.items():
            assert values.shape == rewards[role].shape[:2] and not values.isnan().any()
            assert leaves[1] % values.shape[1] == 0
    rows = [row for row in trainer.state.log_history if "loss" in row]
    for role in topology.role_names:
        assert any(f"credit/{role}/within_group_correlation" in row for row in rows) == any(
            role in advantages for _, _, advantages, _ in trainer.seen
        )
        assert all(f"rollout/{role}_tokens" in row or topology.kind == "think_solve" for row in rows)
