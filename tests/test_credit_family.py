"""C3, votes, history, DACR and ARE: hand-worked tables, slow loops, reductions, properties, errors."""

import itertools
import json
import math
import statistics

import pytest
import torch

from ccpo.credit import (
    HistoryNormalizer,
    chain_counterfactual_credit,
    chain_self_evaluated_credit,
    contextual_credit,
    counterfactual_credit,
    cross_improvement_credit,
    removal_baseline,
    robust_advantages,
    robust_location,
    self_evaluated_credit,
    shared_credit,
    sibling_baseline,
    solo_baseline,
    text_values,
    vote_credit,
    vote_outcome,
)
from ccpo.credit.advantages import estimate_advantages

NAN = float("nan")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def same(actual: torch.Tensor, expected) -> None:
    """Bit for bit, NaN equal to NaN."""
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def close(actual: torch.Tensor, expected) -> None:
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def outcomes(*shape, seed=0, unscorable=0.2):
    """Random outcomes in {-1, +1, NaN}."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2, shape, generator=rng).double() * 2 - 1
    return values.masked_fill(torch.rand(shape, generator=rng) < unscorable, NAN)


def mean(values):
    """Of those that are known; NaN if none is."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else NAN


def zero_if_nan(value):
    return 0.0 if math.isnan(value) else value


# ---- The tree ----


def test_text_values_by_hand():
    # G = 2, b_2 = 2, b_3 = 2: 8 leaves. r_2: pairs (1+1)/2 = 1, (1-1)/2 = 0, NaN left out: -1, none known: NaN.
    # r_1: the mean over its leaves, (1+1+1-1)/4 = 1/2, and -1 (one known leaf).
    leaves = tensor([[1, 1, 1, -1, -1, NAN, NAN, NAN]])
    first, second, third = text_values(leaves, branches=(1, 2, 2))
    same(first, [[0.5, -1]])
    same(second, [[1, 0, -1, NAN]])
    same(third, leaves)


def test_a_text_weighs_its_scorable_leaves_alike():
    # b_2 = 2, b_3 = 2, leaves 1 NaN | -1 -1: the mean of the leaves is (1-1-1)/3, that of the texts would be 0.
    close(text_values(tensor([[1, NAN, -1, -1]]), branches=[1, 2, 2])[0], [[-1 / 3]])


def test_sibling_baseline_by_hand():
    # groups of 3: (2, 3, 7) -> (3+7)/2, (2+7)/2, (2+3)/2; (NaN, 1, NaN) -> 1, none, 1
    same(sibling_baseline(tensor([[2, 3, 7, NAN, 1, NAN]]), 3), [[5, 4.5, 2.5, 1, NAN, 1]])
    same(sibling_baseline(tensor([[2, 3]]), 1), [[NAN, NAN]])


@pytest.mark.parametrize(
    ("leaves", "branches", "match"),
    [
        (6, (2, 3), r"`branches` must begin with 1, .*got \(2, 3\).*`num_generations`"),
        (6, (), r"`branches` must be whole numbers of at least 1.*got \(\)"),
        (6, (1, 0), r"`branches` must be whole numbers of at least 1.*got \(1, 0\)"),
        (6, (1, 2.0), r"`branches` must be whole numbers of at least 1.*got \(1, 2.0\)"),
        (6, (1, 2, 2), r"multiple of 4, the product of `branches` = \(1, 2, 2\), got 6"),
        (0, (1,), "got 0"),
    ],
)
def test_branches_that_cannot_be_right(leaves, branches, match):
    with pytest.raises(ValueError, match=match):
        text_values(torch.zeros(2, leaves), branches=branches)


def test_tree_errors():
    with pytest.raises(ValueError, match=r"`outcome` must have shape \(P, N\), got \(2, 3, 4\)"):
        text_values(torch.zeros(2, 3, 4), branches=(1,))
    with pytest.raises(TypeError, match="`outcome` must be a floating-point tensor"):
        text_values(torch.zeros(2, 3, dtype=torch.long), branches=(1,))
    with pytest.raises(ValueError, match=r"`values` must have shape \(P, N\), got \(2,\)"):
        sibling_baseline(torch.zeros(2), 1)
    for siblings in (0, 4):
        with pytest.raises(ValueError, match=f"divide the last axis of `values`, 6, got {siblings}"):
            sibling_baseline(torch.zeros(2, 6), siblings)


# ---- C3 ----


def test_contextual_by_hand():
    # Think-Solve, G = 3, K = 2. v = (1, 0, -1). Thinker: 1 - (0-1)/2, 0 - (1-1)/2, -1 - (1+0)/2.
    # Solver: each answer against the other one: 1 - 1, 1 - 1; 1 - (-1), -1 - 1; 0, 0.
    thinker, solver = contextual_credit(tensor([[1, 1, 1, -1, -1, -1]]), branches=(1, 2))
    same(thinker, [[1.5, 0, -1.5]])
    same(solver, [[0, 0, 2, -2, 0, 0]])


def test_contextual_leaves_the_unscorable_out():
    # v = (1, NaN, -1). Thinker: 1 - (-1), 0 (unscorable), -1 - 1. Solver: 1 has no scorable sibling: 0.
    thinker, solver = contextual_credit(tensor([[1, NAN, NAN, NAN, -1, -1]]), branches=(1, 2))
    same(thinker, [[2, 0, -2]])
    same(solver, [[0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("generations", "branches"), [(4, (1,)), (4, (1, 3)), (3, (1, 2, 3)), (2, (1, 1, 2)), (1, (1, 2))]
)
def test_contextual_against_a_loop_over_paths(generations, branches):
    """Texts named by their path from the root instead of by their place in an axis."""
    choices = [range(generations), *(range(b) for b in branches[1:])]
    leaves = list(itertools.product(*choices))
    outcome = outcomes(5, len(leaves), seed=len(leaves))
    credit = contextual_credit(outcome, branches=branches)
    for row in range(5):
        result = dict(zip(leaves, outcome[row].tolist(), strict=True))
        value = {
            path: mean([r for leaf, r in result.items() if leaf[: len(path)] == path])
            for depth in range(1, len(choices) + 1)
            for path in itertools.product(*choices[:depth])
        }
        for depth, advantage in enumerate(credit, start=1):
            slow = []
            for path in itertools.product(*choices[:depth]):
                others = [v for p, v in value.items() if len(p) == depth and p[:-1] == path[:-1] and p != path]
                slow.append(zero_if_nan(value[path] - mean(others)))
            close(advantage[row], slow)


def test_contextual_with_one_answer_is_leave_one_out_grpo():
    """A_i = R_i - mean of the others = G / (G - 1) times (R_i - group mean)."""
    outcome = outcomes(6, 5, unscorable=0)
    thinker, solver = contextual_credit(outcome, branches=(1, 1))
    close(thinker, (outcome - outcome.mean(dim=1, keepdim=True)) * 5 / 4)
    same(solver, torch.zeros_like(outcome))
    same(contextual_credit(outcome, branches=(1,))[0], thinker)


def test_contextual_properties():
    outcome = outcomes(4, 3 * 2 * 2, seed=3)
    credit = contextual_credit(outcome, branches=(1, 2, 2))
    prompts, thoughts = [2, 0, 3, 1], [2, 0, 1]
    for moved, c in zip(contextual_credit(outcome[prompts], branches=(1, 2, 2)), credit, strict=True):
        same(moved, c[prompts])
    swapped = outcome.unflatten(1, (3, 4))[:, thoughts].flatten(1)
    for moved, c in zip(contextual_credit(swapped, branches=(1, 2, 2)), credit, strict=True):
        close(moved, c.unflatten(1, (3, -1))[:, thoughts].flatten(1))
    for value in (1.0, NAN):
        for c in contextual_credit(torch.full((2, 12), value), branches=(1, 2, 2)):
            same(c, torch.zeros_like(c))
    known = contextual_credit(outcomes(4, 12, unscorable=0), branches=(1, 2, 2))
    for c in known:  # leave-one-out advantages of a group sum to 0
        close(c.sum(dim=1), [0.0] * 4)


# ---- Votes ----

RIGHT, WRONG, OTHER, SILENT = 0, 1, 2, -1
FIVE = {  # Delta on outcomes 1 / 0
    "CCC": (0, 0, 0),  # two right ones remain
    "CCW": (0.5, 0.5, 0),  # without a C: C and W tie, 1 - 1/2; without W: 1 - 1
    "CWW": (0, -0.5, -0.5),  # without C: 0 - 0; without a W: tie, 0 - 1/2
    "CWV": (1 / 3, -1 / 6, -1 / 6),  # all tie: 1/3; without C: 1/3 - 0; without a wrong one: 1/3 - 1/2
    "WWW": (0, 0, 0),
}


def votes(text):
    """(1, 1, n) outcomes on ±1 and clusters of a word such as CWV; a dash abstains, which is wrong."""
    clusters = torch.tensor([[["CWV-".index(letter) if letter != "-" else -1 for letter in text]]])
    return tensor([[[1.0 if letter == "C" else -1.0 for letter in text]]]), clusters


@pytest.mark.parametrize("case", FIVE)
@pytest.mark.parametrize("scale", [1, 2], ids=["1 and 0", "1 and -1"])
def test_five_votes_by_hand(case, scale):
    own, clusters = votes(case)
    own = own if scale == 2 else (own + 1) / 2
    delta = tensor([[FIVE[case]]]) * scale
    close(vote_credit(own, clusters, mode="marginal"), delta)
    reward = vote_outcome(own, clusters).unsqueeze(-1)
    close(vote_credit(own, clusters, coef=0.3), reward + 0.3 * delta)


@pytest.mark.parametrize(
    ("case", "outcome", "delta"),
    [
        ("---", -1, (0, 0, 0)),  # nobody answers: -1
        ("C--", 1, (2, 0, 0)),  # without C nobody answers: 1 - (-1)
        ("W-C", 0, (-1, 0, 1)),  # a tie: (1-1)/2; without W 0 - 1, without C 0 - (-1)
        ("CCWW-", 0, (1, 1, -1, -1, 0)),  # without a C: WW wins, 0 - (-1)
        ("C", 1, (2,)),
        ("W", -1, (0,)),
    ],
)
def test_votes_by_hand(case, outcome, delta):
    own, clusters = votes(case)
    same(vote_outcome(own, clusters), [[outcome]])
    same(vote_credit(own, clusters, mode="marginal"), [[delta]])


def test_the_outcome_of_a_cluster_is_the_mean_of_its_members():
    # equal answers that the verifier judges apart: (1-1)/2 = 0 of the pair beats the single one
    same(vote_outcome(tensor([[[1, -1, 1]]]), torch.tensor([[[4, 4, 9]]])), [[0]])
    # an unscorable member is left out, a cluster of nothing else from the tie
    same(vote_outcome(tensor([[[1, NAN, -1]], [[NAN, 1, -1]]]), torch.tensor([[[0, 0, 1]], [[0, 1, -1]]])), [[1], [1]])
    same(vote_outcome(tensor([[[NAN, NAN, -1]]]), torch.tensor([[[0, 0, 1]]])), [[NAN]])
    # a tie weighs clusters alike, however many of their members are scorable: (1 - 1)/2
    same(vote_outcome(tensor([[[1, NAN, -1, -1]]]), torch.tensor([[[0, 0, 1, 1]]])), [[0]])


def test_an_unscorable_gold_is_nan_whoever_answers():
    own, clusters = torch.full((1, 2, 3), NAN).double(), torch.tensor([[[0, 0, 1], [-1, -1, -1]]])
    same(vote_outcome(own, clusters), [[NAN, NAN]])
    for mode, coef in (("team", 0.2), ("team", 0), ("marginal", 0.2)):
        same(vote_credit(own, clusters, mode=mode, coef=coef), own)


def slow_vote(ballots):
    """Of (cluster, outcome) pairs."""
    ballots = [(cluster, own) for cluster, own in ballots if cluster != SILENT]
    if not ballots:
        return -1.0
    sizes = {cluster: sum(c == cluster for c, _ in ballots) for cluster, _ in ballots}
    winners = [cluster for cluster, size in sizes.items() if size == max(sizes.values())]
    return mean([mean([own for c, own in ballots if c == cluster]) for cluster in winners])


@pytest.mark.parametrize("voters", [1, 2, 3, 5])
def test_votes_against_a_loop(voters):
    rng = torch.Generator().manual_seed(voters)
    clusters = torch.randint(-1, 3, (4, 6, voters), generator=rng)
    own = outcomes(4, 6, voters, seed=voters, unscorable=0)
    outcome, delta = vote_outcome(own, clusters), vote_credit(own, clusters, mode="marginal")
    for p, g in itertools.product(range(4), range(6)):
        ballots = list(zip(clusters[p, g].tolist(), own[p, g].tolist(), strict=True))
        assert outcome[p, g].item() == pytest.approx(slow_vote(ballots), abs=1e-12)
        for k in range(voters):
            without = slow_vote(ballots[:k] + ballots[k + 1 :])
            assert delta[p, g, k].item() == pytest.approx(slow_vote(ballots) - without, abs=1e-12)


@pytest.mark.parametrize("coef", [0, 0.2, 1.5])
def test_one_voter_is_grpo_times_a_factor(coef):
    own = outcomes(5, 4, 1, unscorable=0)
    reward = vote_credit(own, torch.zeros(5, 4, 1, dtype=torch.long), coef=coef).squeeze(-1)
    stock = own.squeeze(-1)
    close(reward - reward.mean(dim=1, keepdim=True), (1 + coef) * (stock - stock.mean(dim=1, keepdim=True)))


def test_votes_with_coefficient_0_are_shared_credit():
    own, clusters = (
        outcomes(3, 4, 3, seed=5),
        torch.randint(-1, 3, (3, 4, 3), generator=torch.Generator().manual_seed(5)),
    )
    reward = vote_credit(own, clusters, coef=0)
    for k in range(3):
        same(reward[..., k], shared_credit(vote_outcome(own, clusters))["solver"])


def test_vote_properties():
    own, clusters = (
        outcomes(3, 4, 5, seed=6),
        torch.randint(-1, 3, (3, 4, 5), generator=torch.Generator().manual_seed(6)),
    )
    credit = vote_credit(own, clusters)
    voters, rollouts, prompts = [3, 1, 4, 0, 2], [2, 0, 3, 1], [1, 2, 0]
    close(vote_credit(own[..., voters], clusters[..., voters]), credit[..., voters])
    same(vote_credit(own[:, rollouts], clusters[:, rollouts]), credit[:, rollouts])
    same(vote_credit(own[prompts], clusters[prompts]), credit[prompts])
    renamed = torch.where(clusters >= 0, 7 - clusters, -1)  # names of clusters mean nothing
    close(vote_credit(own, renamed), credit)


@pytest.mark.parametrize(
    ("own", "clusters", "options", "error", "match"),
    [
        ((2, 3), (2, 3), {}, ValueError, r"`own` must have shape \(P, G, n\) with n >= 1 voters, got \(2, 3\)"),
        ((2, 3, 0), (2, 3, 0), {}, ValueError, r"n >= 1 voters, got \(2, 3, 0\)"),
        (
            (2, 3, 2),
            (2, 3, 1),
            {},
            ValueError,
            r"`clusters` must have the shape of `own`, \(2, 3, 2\), got \(2, 3, 1\)",
        ),
        ((2, 3, 2), (2, 3, 2), {"mode": "mean"}, ValueError, "`mode` must be 'team' or 'marginal', got 'mean'"),
        ((2, 3, 2), (2, 3, 2), {"coef": -1}, ValueError, "`coef` must be a finite number >= 0, got -1"),
    ],
)
def test_vote_errors(own, clusters, options, error, match):
    with pytest.raises(error, match=match):
        vote_credit(torch.zeros(own), torch.zeros(clusters, dtype=torch.long), **options)


def test_vote_dtypes_and_clusters():
    with pytest.raises(TypeError, match="`clusters` must be a tensor of integers .*got torch.float32"):
        vote_outcome(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    with pytest.raises(TypeError, match="`own` must be a floating-point tensor"):
        vote_outcome(torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(1, 1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="`clusters` must be -1 .the voter abstains. or a number >= 0, got -2"):
        vote_outcome(torch.zeros(1, 1, 2), torch.tensor([[[0, -2]]]))


# ---- History ----


def test_history_by_hand():
    normalizer = HistoryNormalizer(decay=0.5, min_samples=4, eps=1e-6)
    # First batch, on 1 / 0: joint 1 1 0 0, solo 1 0 0 0, b = 1/4. No history: Delta = R - b, R_joint.
    joint, solo = tensor([[1, 1, -1, -1]]), tensor([[1, -1, -1, -1]])
    first = normalizer.think_solve(joint, solo)
    same(first["thinker"], [[0.75, 0.75, -0.25, -0.25]])
    same(first["solver"], [[1, 1, 0, 0]])
    # Now μ_Delta = 1/4, V = 1/4 (σ 1/2); μ_joint = 1/2, σ = 1/2; μ_solo = 1/4, V = 3/16.
    # Second batch: joint 1 0 0 0, all solos 0, b = 0: Delta = 1 0 0 0, z_Delta = (3/4)/σ, (-1/4)/σ with σ = 1/2 + ε.
    second = normalizer.think_solve(tensor([[1, -1, -1, -1]]), tensor([[-1, -1, -1, -1]]))
    sigma = 0.5 + 1e-6
    high, low = math.tanh(0.75 / sigma), math.tanh(-0.25 / sigma)
    close(second["thinker"], [[high, low, low, low]])
    g = 1 / (1 + math.exp(-0.25 / sigma))
    z_solo = -0.25 / (math.sqrt(3 / 16) + 1e-6)
    up, down = (g * z / sigma + (1 - g) * z_solo for z in (0.5, -0.5))
    close(second["solver"], [[up, down, down, down]])
    # μ_Delta <- 1/2 · 1/4 + 1/2 · 1/4, V <- 1/2 · 1/4 + 1/2 · 3/16; the solos: μ <- 1/8, V <- 3/32
    state = normalizer.state_dict()
    assert state["delta"] == {"mean": 0.25, "var": 0.21875, "count": 8}
    assert state["joint"] == {"mean": 0.375, "var": 0.21875, "count": 8}
    assert state["solo"] == {"mean": 0.125, "var": 0.09375, "count": 8}


class SlowHistory:
    """The same by lists: all batches are kept, the statistics are worked out anew from them."""

    def __init__(self, decay, eps):
        self.decay, self.eps, self.batches = decay, eps, []

    def z(self, x):
        mu, sigma = self.moments()
        return (x - mu) / (sigma + self.eps)

    def moments(self):
        mu, var = statistics.fmean(self.batches[0]), statistics.pvariance(self.batches[0])
        for batch in self.batches[1:]:
            mu = self.decay * mu + (1 - self.decay) * statistics.fmean(batch)
            var = self.decay * var + (1 - self.decay) * statistics.pvariance(batch)
        return mu, math.sqrt(var) if var > self.eps else 1.0

    def take(self, values):
        values = [v for v in values if not math.isnan(v)]
        if values:
            self.batches.append(values)


@pytest.mark.parametrize("baseline", ["group", "paired"])
def test_history_against_a_loop(baseline):
    normalizer = HistoryNormalizer(decay=0.7, alpha=0.8, eta=3.0, min_samples=1)
    delta, together, alone = (SlowHistory(0.7, 1e-6) for _ in range(3))
    for step in range(4):
        joint, solo = outcomes(3, 4, 2, seed=step), outcomes(3, 4, seed=10 + step)
        if step == 2:  # changes nothing
            joint, solo = torch.full_like(joint, NAN), torch.full_like(solo, NAN)
        credit = normalizer.think_solve(joint, solo, baseline=baseline)
        deltas, rights, solos = [], [], []
        for p, i in itertools.product(range(3), range(4)):
            row = [(r + 1) / 2 for r in joint[p, i].tolist()]
            b = (mean(solo[p].tolist()) + 1) / 2 if baseline == "group" else (solo[p, i].item() + 1) / 2
            deltas.append(mean(row) - b)
            rights += row
            solos.append((solo[p, i].item() + 1) / 2)
            thinker, solver = deltas[-1], row
            if step:
                mu, sigma = delta.moments()
                g = 1 / (1 + math.exp(-3.0 * mu / (sigma + 1e-6)))
                thinker = math.tanh(0.8 * delta.z(deltas[-1]))
                solver = [g * together.z(r) + (1 - g) * alone.z(b) for r in row]
            close(credit["thinker"][p, i], thinker)
            close(credit["solver"][p, i], solver)
        for history, values in ((delta, deltas), (together, rights), (alone, solos)):
            history.take(values)


def test_history_of_votes_by_hand():
    normalizer = HistoryNormalizer(min_samples=3)
    # ±1 outcomes, CCW: Delta 1 1 0, halved 1/2 1/2 0: mean 1/3, variance 1/4 · 2/3 - ... = 1/6 - 1/9 = 1/18
    same(normalizer.votes(tensor([[[1, 1, 0]]])), [[[0.5, 0.5, 0]]])
    z = [(x - 1 / 3) / (math.sqrt(1 / 18) + 1e-6) for x in (0, -0.5)]
    close(normalizer.votes(tensor([[[0, -1, NAN]]])), [[[math.tanh(z[0]), math.tanh(z[1]), NAN]]])
    assert normalizer.state_dict()["vote_delta"]["count"] == 5
    assert normalizer.state_dict()["delta"]["count"] == 0


def test_history_waits_for_enough_outcomes():
    """Nine scorable outcomes are too few, ten are enough; unscorable ones do not count."""
    for scorable, ready in ((9, False), (10, True)):
        normalizer = HistoryNormalizer()
        joint = outcomes(1, 12, unscorable=0)
        joint[0, scorable:] = NAN
        normalizer.think_solve(joint, outcomes(1, 12, seed=1, unscorable=0))
        normalizer.votes(joint.unsqueeze(-1))
        joint, solo = outcomes(1, 4, seed=2, unscorable=0), outcomes(1, 4, seed=3, unscorable=0)
        assert torch.equal(normalizer.think_solve(joint, solo)["solver"], (joint + 1) / 2) != ready
        assert torch.equal(normalizer.votes(joint.unsqueeze(-1)), joint.unsqueeze(-1) / 2) != ready


def test_history_of_constant_outcomes_has_a_std_of_one():
    normalizer = HistoryNormalizer(min_samples=1)
    ones = torch.ones(1, 4, dtype=torch.float64)
    normalizer.think_solve(ones, -ones)  # Delta = 1, V = 0
    # z_Delta = (0 - 1)/(1 + ε); g = sigmoid(1/(1 + ε)); z_joint = (0 - 1)/(1 + ε), z_solo = 0
    credit = normalizer.think_solve(-ones, -ones)
    close(credit["thinker"], [[math.tanh(-1 / (1 + 1e-6))] * 4])
    close(credit["solver"], [[-1 / (1 + 1e-6) / (1 + math.exp(-1 / (1 + 1e-6)))] * 4])


def test_the_gate_is_clipped():
    normalizer = HistoryNormalizer(min_samples=1, eta=1e6)
    ones = torch.ones(1, 4, dtype=torch.float64)
    normalizer.think_solve(ones, -ones)
    # g = sigmoid(20); joint 0, its z = -1/(1 + ε); solo 1, its z = 1/(1 + ε)
    g = 1 / (1 + math.exp(-20))
    close(normalizer.think_solve(-ones, ones)["solver"], [[(1 - 2 * g) / (1 + 1e-6)] * 4])


def test_evaluation_and_unscorable_batches_change_no_statistics():
    normalizer = HistoryNormalizer(min_samples=1)
    joint, solo, delta = outcomes(2, 4, seed=1), outcomes(2, 4, seed=2), outcomes(2, 4, 3, seed=3)
    normalizer.think_solve(joint, solo)
    normalizer.votes(delta)
    before = normalizer.state_dict()
    credit = normalizer.think_solve(-joint, solo, update=False)
    normalizer.votes(-delta, update=False)
    none = normalizer.think_solve(torch.full((2, 4), NAN), torch.full((2, 4), NAN))
    normalizer.votes(torch.full((2, 4, 3), NAN))
    assert normalizer.state_dict() == before
    assert none["thinker"].isnan().all() and none["solver"].isnan().all()
    for role, reward in normalizer.think_solve(-joint, solo).items():  # and evaluation sees the same rewards
        same(credit[role], reward)


def test_history_resumes_exactly_through_json():
    ours, theirs = HistoryNormalizer(min_samples=1), HistoryNormalizer(min_samples=1)
    for step in range(3):
        ours.think_solve(outcomes(2, 4, seed=step), outcomes(2, 4, seed=9 + step))
        ours.votes(outcomes(2, 4, 3, seed=step))
    theirs.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    for step in range(3, 5):
        joint, solo, delta = outcomes(2, 4, seed=step), outcomes(2, 4, seed=9 + step), outcomes(2, 4, 3, seed=step)
        reward, again = ours.think_solve(joint, solo), theirs.think_solve(joint, solo)
        same(again["thinker"], reward["thinker"])
        same(again["solver"], reward["solver"])
        same(theirs.votes(delta), ours.votes(delta))
    assert theirs.state_dict() == ours.state_dict()


def test_a_pair_by_hand():
    # b per text: Delta = (1 - 1/2, 0 - 0) on outcomes 1 / 0. The second role's texts in one axis, N_2 = 4, K = 2:
    # the first text's two outcomes 1 and 1 have the mean 1, the second's 0 and 0.
    normalizer = HistoryNormalizer(min_samples=2)
    joint, b = tensor([[1, 1, -1, -1]]), tensor([[0, -1]])
    first, second = normalizer.pair(joint, b, tensor([[1, -1, -1]]))
    same(first, [[0.5, 0]])
    same(second, [[1, 1, 0, 0]])
    # μ_Delta = 1/4, V = 1/16; the solos 1 0 0: μ = 1/3, V = 2/9; joint: μ = 1/2, V = 1/4
    state = normalizer.state_dict()
    assert state["delta"] == {"mean": 0.25, "var": 0.0625, "count": 2}
    assert state["joint"] == {"mean": 0.5, "var": 0.25, "count": 4}
    assert state["solo"] == pytest.approx({"mean": 1 / 3, "var": 2 / 9, "count": 3})
    first, second = normalizer.pair(joint, b, tensor([[1, -1, -1]]))
    sigma = 0.25 + 1e-6
    close(first, [[math.tanh(0.25 / sigma), math.tanh(-0.25 / sigma)]])
    g = 1 / (1 + math.exp(-0.25 / sigma))
    z_solo = [(x - 1 / 3) / (math.sqrt(2 / 9) + 1e-6) for x in (0.5, 0)]
    rows = [g * z / (0.5 + 1e-6) + (1 - g) * z_solo[m] for m, z in ((0, 0.5), (0, 0.5), (1, -0.5), (1, -0.5))]
    close(second, [rows])


@pytest.mark.parametrize("baseline", ["group", "paired"])
def test_think_solve_is_a_pair(baseline):
    one, flat, folded = (HistoryNormalizer(min_samples=1) for _ in range(3))
    for step in range(3):
        joint, solo = outcomes(3, 4, 2, seed=step), outcomes(3, 4, seed=9 + step)
        b, update = solo_baseline(solo, (3, 4), baseline), step != 1  # step 1 is an evaluation
        named = one.think_solve(joint, solo, baseline=baseline, update=update)
        assert list(named) == ["thinker", "solver"]
        for normalizer, given in ((folded, joint), (flat, joint.flatten(1))):
            first, second = normalizer.pair(given, b, solo, update=update)
            same(first, named["thinker"])
            same(second, named["solver"].reshape(given.shape))
            assert normalizer.state_dict() == one.state_dict()


def test_a_pair_of_another_dtype_and_of_no_prompt():
    normalizer = HistoryNormalizer(min_samples=1)
    joint, solo = outcomes(3, 4, seed=1).float(), outcomes(3, 4, seed=2).float()
    for rewards in (normalizer.pair(joint, solo, solo), normalizer.pair(joint, solo, solo)):
        assert [r.dtype for r in rewards] == [torch.float32] * 2
    before = normalizer.state_dict()
    assert [r.shape for r in normalizer.pair(joint[:0], solo[:0], solo[:0])] == [(0, 4), (0, 4)]
    assert normalizer.state_dict() == before


def test_permuting_rollouts_permutes_history_normalised_rewards():
    one, other = HistoryNormalizer(min_samples=1), HistoryNormalizer(min_samples=1)
    order = [3, 1, 0, 2]
    for step in range(3):
        joint, solo = outcomes(2, 4, seed=step), outcomes(2, 4, seed=9 + step)
        reward, moved = one.think_solve(joint, solo), other.think_solve(joint[:, order], solo)
        for role in reward:
            close(moved[role], reward[role][:, order])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"decay": 1.5}, "`decay` must be between 0 and 1, got 1.5"),
        ({"min_samples": 1.5}, "`min_samples` must be an integer of at least 1, .*, got 1.5"),
        ({"eta": None}, "`eta` must be a finite number >= 0, got None"),
        ({"alpha": -1}, "`alpha` must be a finite number >= 0, got -1"),
        ({"eta": -1}, "`eta` must be a finite number >= 0, got -1"),
        ({"eps": 0}, "`eps` must be a finite number above 0, got 0"),
        ({"min_samples": 0}, "`min_samples` must be an integer of at least 1, .*got 0"),
    ],
)
def test_history_errors(options, match):
    with pytest.raises(ValueError, match=match):
        HistoryNormalizer(**options)


def test_history_input_errors():
    normalizer = HistoryNormalizer()
    with pytest.raises(ValueError, match=r"`delta` must have shape \(P, G, n\), got \(2, 3\)"):
        normalizer.votes(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"needs as many solo answers as thoughts \(S = G\), got S = 2 and G = 3"):
        normalizer.think_solve(torch.zeros(2, 3), torch.zeros(2, 2), baseline="paired")
    for joint, b in (
        ((2, 3), (2,)),
        ((2, 3), (2, 2)),
        ((2, 3, 2), (2, 6)),
        ((2, 3), (3, 3)),
        ((2,), (2, 3)),
        ((2, 3), (2, 0)),
    ):
        with pytest.raises(
            ValueError, match=r"`joint` must have shape \(P, N_2\) or \(P, N_1, K\) and `b` \(P, N_1\)"
        ):
            normalizer.pair(torch.zeros(joint), torch.zeros(b), torch.zeros(2, 3))
    for place in range(3):
        given = [torch.zeros(2, 3, dtype=torch.long if i == place else torch.float32) for i in range(3)]
        with pytest.raises(TypeError, match=f"`{('joint', 'b', 'solo')[place]}` must be a floating-point tensor"):
            normalizer.pair(*given)
    with pytest.raises(ValueError, match=r"`state` must have the keys .*got \['delta'\]"):
        normalizer.load_state_dict({"delta": {}})
    with pytest.raises(ValueError, match=r"`state\['solo'\]` must have the numbers .*got \{'mean': 0.5\}"):
        normalizer.load_state_dict(normalizer.state_dict() | {"solo": {"mean": 0.5}})
    assert all(stats["count"] == 0 for stats in normalizer.state_dict().values())


# ---- DACR ----


def test_cross_improvement_by_hand():
    # a: answer wrong, rewrite right; b: answer right, rewrite wrong.
    # Delta_a = own(rewrite_b) - own(answer_b) = -1 - 1 = -2;  Delta_b = 1 - (-1) = 2
    answers, rewrites = tensor([[[-1, 1]]]), tensor([[[1, -1]]])
    total = cross_improvement_credit(answers, rewrites)
    for text in ("answer", "critique", "rewrite"):
        same(total[f"{text}_a"], [[0]])  # 1 + 0.5 · (-2)
        same(total[f"{text}_b"], [[0]])  # -1 + 0.5 · 2
    segment = cross_improvement_credit(answers, rewrites, mode="segment")
    expected = {"answer_a": -1, "critique_a": -2, "rewrite_a": 1, "answer_b": 1, "critique_b": 2, "rewrite_b": -1}
    assert {role: credit.item() for role, credit in segment.items()} == expected
    # b's answer is unscorable: Delta_a is unknown, and with it all of a's total; b's own total is not
    total = cross_improvement_credit(tensor([[[-1, NAN]]]), rewrites)
    same(total["rewrite_a"], [[NAN]])
    same(total["rewrite_b"], [[0]])


@pytest.mark.parametrize("gamma", [0, 0.5, 1])
def test_cross_improvement_against_a_loop(gamma):
    answers, rewrites = outcomes(4, 3, 2, seed=1), outcomes(4, 3, 2, seed=2)
    total = cross_improvement_credit(answers, rewrites, gamma=gamma)
    segment = cross_improvement_credit(answers, rewrites, gamma=gamma, mode="segment")
    for p, g, (me, partner) in itertools.product(range(4), range(3), (("a", "b"), ("b", "a"))):
        own = {
            text + agent: source[p, g, i].item()
            for text, source in (("answer", answers), ("rewrite", rewrites))
            for i, agent in enumerate("ab")
        }
        delta = own["rewrite" + partner] - own["answer" + partner]
        reward = own["rewrite" + me] + gamma * delta if gamma else own["rewrite" + me]
        for text in ("answer", "critique", "rewrite"):
            close(total[f"{text}_{me}"][p, g], reward)
        for text, slow in (("answer", own["answer" + me]), ("critique", delta), ("rewrite", own["rewrite" + me])):
            close(segment[f"{text}_{me}"][p, g], slow)


def test_cross_improvement_properties():
    answers, rewrites = outcomes(4, 3, 2, seed=3), outcomes(4, 3, 2, seed=4)
    for mode in ("total", "segment"):
        credit = cross_improvement_credit(answers, rewrites, mode=mode)
        moved = cross_improvement_credit(answers[:, [2, 0, 1]], rewrites[:, [2, 0, 1]], mode=mode)
        swapped = cross_improvement_credit(answers.flip(-1), rewrites.flip(-1), mode=mode)
        for role, value in credit.items():
            same(moved[role], value[:, [2, 0, 1]])
            same(swapped[role[:-1] + {"a": "b", "b": "a"}[role[-1]]], value)
    for role, value in cross_improvement_credit(answers, rewrites, gamma=0).items():  # γ = 0: one's own rewrite
        same(value, rewrites[..., "ab".index(role[-1])])


def test_cross_improvement_errors():
    pair = torch.zeros(2, 3, 2)
    for answers, rewrites, options, match in (
        (torch.zeros(2, 3), pair, {}, r"`answers` must have shape \(P, G, 2\).*got \(2, 3\)"),
        (pair, torch.zeros(2, 3, 3), {}, r"`rewrites` must have shape \(P, G, 2\).*got \(2, 3, 3\)"),
        (pair, torch.zeros(2, 4, 2), {}, r"`rewrites` must have the shape of `answers`, \(2, 3, 2\), got \(2, 4, 2\)"),
        (pair, pair, {"gamma": -1}, "`gamma` must be a finite number >= 0, got -1"),
        (pair, pair, {"mode": "all"}, "`mode` must be 'total' or 'segment', got 'all'"),
    ):
        with pytest.raises(ValueError, match=match):
            cross_improvement_credit(answers, rewrites, **options)
    with pytest.raises(TypeError, match="`rewrites` must be a floating-point tensor"):
        cross_improvement_credit(pair, pair.long())


# ---- ARE ----


def test_robust_location_by_hand():
    # One block (0, 0, 3), α = 0, c = 1: w = 1/(x²/2 + 1), from the median 0. First step: w = 1, 1, 2/11, so that
    # μ = 3 · (2/11) / (2 + 2/11) = 6/24 = 1/4. The 20th step is near the fixed point 0.3105.
    mu = 0.0
    for _ in range(20):
        near, far = 1 / (mu**2 / 2 + 1), 1 / ((3 - mu) ** 2 / 2 + 1)
        mu = 3 * far / (2 * near + far)
    close(robust_location(tensor([0, 0, 3]), alpha=0, blocks=1), mu)
    # Three blocks of (0, 1, 2, 3, 4, 5): (0, 3), (1, 4), (2, 5). Two values lie alike around their median:
    # 1.5, 2.5, 3.5.
    close(robust_location(tensor([5, 3, 1, 0, 2, 4])), 2.5)
    # Three blocks of three values are the values: their median
    same(robust_location(tensor([7, -1, 0])), 0)


def slow_location(x, alpha, c, blocks):
    x = sorted(v for v in x if not math.isnan(v))
    located = []
    for block in (x[i::blocks] for i in range(blocks)):
        if not block:
            continue
        mu = statistics.median(block)
        for _ in range(20):
            weight = [
                1.0 if alpha == 2 else ((v - mu) ** 2 / (c**2 * abs(alpha - 2)) + 1) ** (alpha / 2 - 1) for v in block
            ]
            mu = sum(w * v for w, v in zip(weight, block, strict=True)) / sum(weight)
        located.append(mu)
    return statistics.median(located) if located else NAN


@pytest.mark.parametrize("alpha", [-10, -2.0, 0, 1.0, 2])
@pytest.mark.parametrize(("c", "blocks"), [(1.0, 3), (0.3, 1), (2.0, 5)])
def test_robust_location_against_a_loop(alpha, c, blocks):
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(4, 2, 7, generator=rng, dtype=torch.float64)
    x[torch.rand(x.shape, generator=rng) < 0.2] = NAN
    x[0, 0], x[0, 1, 1:] = NAN, NAN
    slow = [[slow_location(row, alpha, c, blocks) for row in rows] for rows in x.tolist()]
    close(robust_location(x, alpha=alpha, c=c, blocks=blocks), slow)


def test_robust_location_of_alpha_2_is_the_mean():
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    close(robust_location(x, alpha=2, blocks=1), x.mean(dim=-1))
    dealt = x.sort(dim=-1).values.unflatten(-1, (3, 3))  # value i is in block i % 3
    close(robust_location(x, alpha=2, blocks=3), dealt.mean(dim=-2).median(dim=-1).values)


def test_robust_location_properties():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    location = robust_location(x)
    same(robust_location(x[:, [5, 2, 7, 0, 1, 4, 3, 6]]), location)  # no order
    close(robust_location(x + 3), location + 3)
    close(robust_location(-x), -location)
    close(robust_location(2 * x, c=2.0), 2 * location)  # c has the unit of x
    far = torch.cat([x, torch.full((5, 1), 1e6, dtype=torch.float64)], dim=1)  # one outlier moves it little
    assert ((robust_location(far) - location).abs() < 1).all()
    same(robust_location(tensor([[0.1] * 5, [NAN] * 5])), [0.1, NAN])
    assert robust_location(tensor([0, 1e80, 2e80, 5e80]), alpha=-10, blocks=1).isfinite()  # weights that underflow
    assert robust_location(x.float()).dtype == torch.float32


def test_robust_advantages_by_hand():
    # (-1, -1, 1, 1, 1): blocks (-1, 1), (-1, 1), (1): locations 0, 0, 1, median 0; std of 2 and 3 values: mean 1/5,
    # squares 2 · 36/25 + 3 · 16/25 = 120/25, / 4 = 6/5
    reward = tensor([[1, -1, 1, -1, 1], [1, 1, 1, 1, 1], [NAN] * 5, [1, NAN, NAN, NAN, NAN]])
    a = 1 / (math.sqrt(1.2) + 1e-4)
    close(robust_advantages(reward), [[a, -a, a, -a, a], [0] * 5, [0] * 5, [0] * 5])
    same(robust_advantages(tensor([[1], [-1]]), blocks=1), [[0], [0]])
    # NaN left out: (-1, 1, NaN): blocks (-1), (1): 0; std sqrt(2)
    a = 1 / (math.sqrt(2) + 1e-4)
    close(robust_advantages(tensor([[-1, 1, NAN]])), [[-a, a, 0]])
    same(robust_advantages(torch.full((2, 6), 0.1)), torch.zeros(2, 6))


def test_robust_advantages_of_alpha_2_are_grpo_scaled_by_the_group():
    reward = outcomes(6, 8, seed=8)
    stock = estimate_advantages(reward, "group", scale_rewards="group")
    # TRL works out Bessel's correction in single precision
    torch.testing.assert_close(robust_advantages(reward, alpha=2, blocks=1), stock, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"alpha": 2.1}, "`alpha` must be between -10 and 2, got 2.1"),
        ({"alpha": -11}, "`alpha` must be between -10 and 2, got -11"),
        ({"c": 0}, "`c` must be a finite number above 0, .*got 0"),
        ({"blocks": 2}, "`blocks` must be odd and at most the group's size, 4, got 2"),
        ({"blocks": 5}, "`blocks` must be odd and at most the group's size, 4, got 5"),
        ({"blocks": -1}, "`blocks` must be odd and at most the group's size, 4, got -1"),
    ],
)
def test_robust_errors(options, match):
    for function in (robust_location, robust_advantages):
        with pytest.raises(ValueError, match=match):
            function(torch.zeros(2, 4), **options)


def test_robust_shapes():
    with pytest.raises(ValueError, match=r"`reward` must have shape \(P, N\), got \(4,\)"):
        robust_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match=r"`x` must have a last axis of at least one value, got shape \(2, 0\)"):
        robust_location(torch.zeros(2, 0))
    with pytest.raises(TypeError, match="`x` must be a floating-point tensor"):
        robust_location(torch.zeros(4, dtype=torch.long))


# ---- Baselines of removals ----


def test_removal_baseline_by_hand():
    # Two prompts, S = 2 passes each, three texts: (1 - 1)/2 = 0; the unscorable pass is left out: -1.
    prompt = tensor([[1, -1], [NAN, -1]])
    same(removal_baseline(prompt, 3), [[0, 0, 0], [-1, -1, -1]])
    same(removal_baseline(prompt, 2, "paired"), prompt)
    # C = 2 contexts with S = 2 passes, four texts: the first two continue context 0, mean 1, the others context 1,
    # mean 0. Paired: text 2 is the first of context 1 and has its first pass.
    context = tensor([[[1, 1], [-1, 1]]])
    same(removal_baseline(context, 4), [[1, 1, 0, 0]])
    same(removal_baseline(context, 4, "paired"), [[1, 1, -1, 1]])
    same(removal_baseline(tensor([[[1], [NAN], [-1]]]), 6), [[1, 1, NAN, NAN, -1, -1]])


@pytest.mark.parametrize(("contexts", "siblings", "passes"), [(1, 4, 3), (4, 1, 3), (3, 2, 2), (4, 3, 1), (2, 3, 3)])
def test_removal_baseline_against_a_loop(contexts, siblings, passes):
    without, size = outcomes(5, contexts, passes, seed=passes), contexts * siblings
    group = removal_baseline(without, size)
    paired = removal_baseline(without, size, "paired") if passes == siblings else None
    for p, m in itertools.product(range(5), range(size)):
        drawn = without[p, m // siblings].tolist()  # SPEC: context m // branches
        close(group[p, m], mean(drawn))
        if paired is not None:
            close(paired[p, m], drawn[m % siblings])


def test_removal_from_one_context_is_removal_from_the_prompt():
    """And a solo baseline is a removal baseline: every old value to the bit."""
    solo = torch.randn(6, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    solo[0, 1], solo[1] = NAN, NAN
    for dtype in (torch.float32, torch.float64):
        drawn = solo.to(dtype)
        for size in (4, 7):
            same(removal_baseline(drawn, size), torch.nanmean(drawn, dim=1, keepdim=True).expand(6, size))
            same(removal_baseline(drawn.unsqueeze(1), size), removal_baseline(drawn, size))
            same(solo_baseline(drawn, (6, size)), removal_baseline(drawn, size))
        same(solo_baseline(drawn, (6, 4), "paired"), drawn)
        same(removal_baseline(drawn.unsqueeze(1), 4, "paired"), drawn)


def test_removal_baseline_properties():
    without = outcomes(4, 3, 2, seed=5)
    for baseline in ("group", "paired"):
        b = removal_baseline(without, 6, baseline)
        same(removal_baseline(without[[2, 0, 3, 1]], 6, baseline), b[[2, 0, 3, 1]])  # prompts
        moved = b.unflatten(1, (3, 2))[:, [2, 0, 1]].flatten(1)  # contexts
        same(removal_baseline(without[:, [2, 0, 1]], 6, baseline), moved)
    same(removal_baseline(without.flip(2), 6), removal_baseline(without, 6))  # passes
    assert removal_baseline(without[:0], 6).shape == (0, 6)


@pytest.mark.parametrize(
    ("shape", "size", "options", "match"),
    [
        ((6,), 6, (), r"`without` must have shape \(P, S\) or \(P, C, S\) with S >= 1, got \(6,\)"),
        ((2, 0), 6, (), r"with S >= 1, got \(2, 0\)"),
        ((2, 3, 0), 6, (), r"with S >= 1, got \(2, 3, 0\)"),
        ((2, 4, 1), 6, (), "`size`, .*, must be at least 1 and a multiple of the contexts of `without`, 4, got 6"),
        ((2, 4), 0, (), "`size`, .*, must be at least 1 and a multiple of .*, 1, got 0"),
        ((2, 4), 4, ("mean",), "`baseline` must be 'group' or 'paired', got 'mean'"),
        ((2, 4), 6, ("paired",), "needs one pass .* for each of its texts, 6 per prompt, got 4. Give as many"),
        ((2, 3, 4), 6, ("paired",), "needs one pass .* for each of its texts, 2 per context, got 4. Give as many"),
    ],
)
def test_removal_baseline_errors(shape, size, options, match):
    with pytest.raises(ValueError, match=match):
        removal_baseline(torch.zeros(shape), size, *options)
    with pytest.raises(TypeError, match="`without` must be a floating-point tensor"):
        removal_baseline(torch.zeros(2, 3, dtype=torch.long), 3)


# ---- CCPO for chains ----


def test_chain_counterfactual_by_hand():
    # G = 1, b_2 = 2, b_3 = 2: v_1 = (1+1+1-1)/4 = 1/2, v_2 = (1, 0).
    # event: v_1 > 0 > b_1: 1/2 + 1/5; v_2: 1 with b > 0: 1; 0 is neither right nor wrong: 0
    leaves, baselines = tensor([[1, 1, 1, -1]]), [tensor([[-0.5]]), tensor([[0.5, -1]])]
    first, second, third = chain_counterfactual_credit(leaves, baselines, branches=(1, 2, 2))
    close(first, [[0.7]])
    same(second, [[1, 0]])
    same(third, leaves)
    # difference: 1/2 + 1/5 · (1/2 + 1/2)/2 = 0.6; 1 + 1/5 · (1 - 1/2)/2 = 1.05; 0 + 1/5 · (0 + 1)/2 = 0.1
    first, second, _ = chain_counterfactual_credit(leaves, baselines, branches=(1, 2, 2), bonus="difference")
    close(first, [[0.6]])
    close(second, [[1.05, 0.1]])


@pytest.mark.parametrize("bonus", ["event", "difference"])
def test_a_role_without_a_baseline_gets_its_value(bonus):
    """Credit that nobody needs changes nobody else's."""
    leaves, branches = outcomes(4, 12, seed=11), (1, 2, 2)
    values, (b_1, b_2) = text_values(leaves, branches=branches), (outcomes(4, 3, seed=12), outcomes(4, 6, seed=13))
    full = chain_counterfactual_credit(leaves, [b_1, b_2], branches=branches, bonus=bonus)
    for given, expected in (
        ([None, b_2], (values[0], full[1])),
        ([b_1, None], (full[0], values[1])),
        ([None, None], values[:2]),
    ):
        credit = chain_counterfactual_credit(leaves, given, branches=branches, bonus=bonus)
        for found, wanted in zip(credit, (*expected, leaves), strict=True):
            same(found, wanted)
    assert not torch.equal(full[0].nan_to_num(9), values[0].nan_to_num(9))


@pytest.mark.parametrize("bonus", ["event", "difference"])
@pytest.mark.parametrize("coef", [0, 0.3])
def test_chain_counterfactual_against_a_loop(bonus, coef):
    leaves, branches, sizes = outcomes(4, 12, seed=1), (1, 2, 3), (2, 4)
    baselines = [outcomes(4, size, seed=size) * 0.5 for size in sizes]
    credit = chain_counterfactual_credit(leaves, baselines, branches=branches, bonus=bonus, coef=coef)
    for p, (role, size) in itertools.product(range(4), enumerate(sizes)):
        for m in range(size):
            v, b = mean(leaves[p].tolist()[m * 12 // size : (m + 1) * 12 // size]), baselines[role][p, m].item()
            extra = (v - b) / 2 if bonus == "difference" else float(v > 0 > b) - float(v < 0 < b)
            close(credit[role][p, m], NAN if coef and math.isnan(b) else v + coef * extra if coef else v)
    same(credit[2], leaves)


@pytest.mark.parametrize("options", [{}, {"bonus": "difference"}, {"coef": 0}])
def test_chain_counterfactual_of_two_is_the_old_function(options):
    joint, solo = outcomes(5, 4, 3, seed=1), outcomes(5, 4, seed=2)
    for baseline in ("group", "paired"):
        old = counterfactual_credit(joint, solo, baseline=baseline, **options)
        b = solo_baseline(solo, (5, 4), baseline)
        thinker, solver = chain_counterfactual_credit(joint.flatten(1), [b], branches=(1, 3), **options)
        same(thinker, old["thinker"])
        same(solver, old["solver"].flatten(1))


def test_chain_counterfactual_errors():
    leaves, b = torch.zeros(2, 6), torch.zeros(2, 3)
    for baselines, options, match in (
        ([], {}, "`baselines` must have one tensor for each role but the last, 1, got 0"),
        (
            [torch.zeros(2, 6)],
            {},
            r"`baselines\[0\]` must have the shape of the texts of its role, \(2, 3\), got \(2, 6\)",
        ),
        ([b], {"coef": -1}, "`coef` must be a finite number >= 0, got -1"),
        ([b], {"bonus": "all"}, "`bonus` must be 'event' or 'difference', got 'all'"),
    ):
        with pytest.raises(ValueError, match=match):
            chain_counterfactual_credit(leaves, baselines, branches=(1, 2), **options)
    with pytest.raises(TypeError, match=r"`baselines\[0\]` must be a floating-point tensor"):
        chain_counterfactual_credit(leaves, [b.long()], branches=(1, 2))


# ---- SEPO for chains ----


def ratings(*shape, seed=0, invalid=0.15):
    """Random shares out of 0.1 … 0.9, NaN where invalid."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 10, shape, generator=rng).double() / 10
    return values.masked_fill(torch.rand(shape, generator=rng) < invalid, NAN)


def test_chain_self_evaluated_by_hand():
    # One episode, three roles, η = 1/2, reference 1/3. Rater 2 is invalid: 0.5 for all.
    # s_1 = .5·.8 + .5·(.5+.3)/2 = .6;  s_2 = .5·.5 + .5·(.2+.3)/2 = .375;  s_3 = .5·.4 + .5·(.2+.5)/2 = .375
    # Σ = 1.35; R = 1: 1 + 0.3 (s / 1.35 - 1/3); R = -1: -1 - 0.2 (s / 1.35 - 1/3)
    q = tensor([[[[0.8, 0.2, 0.2], [0.1, NAN, 0.9], [0.3, 0.3, 0.4]]]])
    options = {"branches": (1, 1, 1), "self_weight": 0.5, "credit_coef": 0.3, "center": False}
    for outcome, coef in ((1, 0.3), (-1, -0.2)):
        credit = chain_self_evaluated_credit(tensor([[outcome]]), q, **options)
        for reward, s in zip(credit, (0.6, 0.375, 0.375), strict=True):
            close(reward, [[outcome + coef * (s / 1.35 - 1 / 3)]])
    # η = 1 and nobody claims anything: 1/3 each, no bonus
    for reward in chain_self_evaluated_credit(tensor([[1]]), torch.zeros_like(q), **options | {"self_weight": 1}):
        same(reward, [[1]])
    # all raters are invalid: no bonus
    for reward in chain_self_evaluated_credit(tensor([[1]]), q * NAN, **options):
        same(reward, [[1]])


@pytest.mark.parametrize("center", [True, False])
def test_chain_self_evaluated_against_a_loop(center):
    branches, n = (1, 2, 3), 3
    outcome, q = outcomes(4, 12, seed=3), ratings(4, 12, n, n, seed=3)
    q[0, 0] = NAN
    credit = chain_self_evaluated_credit(outcome, q, branches=branches, blame_coef=0.4, center=center)
    for p in range(4):
        weights, leaves = [], outcome[p].tolist()
        for leaf, raters in enumerate(q[p].tolist()):
            fine = [not any(math.isnan(x) for x in row) for row in raters]
            rows = [row if good else [0.5] * n for row, good in zip(raters, fine, strict=True)]
            s = [0.3 * rows[j][j] + 0.7 * mean([rows[i][j] for i in range(n) if i != j]) for j in range(n)]
            skip = math.isnan(leaves[leaf]) or not any(fine)
            weights.append([NAN if skip else x / sum(s) for x in s])
        for j, size in enumerate((2, 4, 12)):
            reference = mean([w[j] for w in weights]) if center else 1 / n
            bonus = [zero_if_nan(w[j] - reference) for w in weights]
            per_leaf = [r + (0.2 if r > 0 else -0.4) * b for r, b in zip(leaves, bonus, strict=True)]
            span = 12 // size
            close(credit[j][p], [mean(per_leaf[m * span : (m + 1) * span]) for m in range(size)])


@pytest.mark.parametrize("options", [{}, {"center": False}, {"self_weight": 0}, {"self_weight": 1, "blame_coef": 0.7}])
@pytest.mark.parametrize("solves", [1, 3])
def test_chain_self_evaluated_of_two_is_the_old_function(options, solves):
    outcome, t, s = outcomes(5, 4, solves, seed=4), ratings(5, 4, solves, seed=5), ratings(5, 4, solves, seed=6)
    t[0, 0], s[0, 0] = NAN, NAN
    t[1, 1], s[1, 1] = 0, 1  # η = 1: nobody claims anything
    old = self_evaluated_credit(outcome, t, s, **options)
    q = torch.stack([torch.stack([t, 1 - t], dim=-1), torch.stack([s, 1 - s], dim=-1)], dim=-2).flatten(1, 2)
    thinker, solver = chain_self_evaluated_credit(outcome.flatten(1), q, branches=(1, solves), **options)
    same(thinker, old["thinker"])
    same(solver, old["solver"].flatten(1))


def test_coefficient_0_is_shared_credit_for_any_chain():
    leaves, q = outcomes(4, 12, seed=5), ratings(4, 12, 3, 3, seed=5)
    shared = text_values(leaves, branches=(1, 2, 3))
    sepo = chain_self_evaluated_credit(leaves, q, branches=(1, 2, 3), credit_coef=0, blame_coef=0)
    ccpo = chain_counterfactual_credit(leaves, [v * NAN for v in shared[:-1]], branches=(1, 2, 3), coef=0)
    for values, one, other in zip(shared, sepo, ccpo, strict=True):
        same(one, values)
        same(other, values)


def test_permuting_rollouts_permutes_the_credit_of_a_chain():
    leaves, q, b = (
        outcomes(4, 12, seed=7),
        ratings(4, 12, 3, 3, seed=7),
        [outcomes(4, 3, seed=8), outcomes(4, 6, seed=9)],
    )

    def moved(x):
        return x.unflatten(1, (3, -1))[:, [2, 0, 1]].flatten(1, 2)

    sepo = chain_self_evaluated_credit(leaves, q, branches=(1, 2, 2))
    for there, here in zip(
        chain_self_evaluated_credit(moved(leaves), moved(q), branches=(1, 2, 2)), sepo, strict=True
    ):
        close(there, moved(here))
    ccpo = chain_counterfactual_credit(leaves, b, branches=(1, 2, 2))
    again = chain_counterfactual_credit(moved(leaves), [moved(x) for x in b], branches=(1, 2, 2))
    for there, here in zip(again, ccpo, strict=True):
        same(there, moved(here))


def test_chain_self_evaluated_errors():
    leaves, q = torch.zeros(2, 6), torch.zeros(2, 6, 2, 2)
    for shares, options, match in (
        (q[..., :1], {}, r"`shares` must have shape \(P, N, n, n\) = \(2, 6, 2, 2\), got \(2, 6, 2, 1\)"),
        (q + 2, {}, r"`shares` must lie in \[0, 1\] .*got 2.0"),
        (q, {"branches": (1,)}, "`branches` must have at least two numbers, .* got 1"),
        (q, {"self_weight": 2}, "`self_weight` must be between 0 and 1, got 2"),
        (q, {"credit_coef": -1}, "`credit_coef` must be a finite number >= 0, got -1"),
        (q, {"blame_coef": -1}, "`blame_coef` must be a finite number >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=match):
            chain_self_evaluated_credit(leaves, shares, **{"branches": (1, 2)} | options)
