"""Estimators against plain Python statistics and TRL's formula, and what CCPO's bonus does to the advantages."""

import math
import statistics

import numpy as np
import pytest
import torch
from trl.trainer.utils import nanstd

from ccpo.credit import (
    contextual_credit,
    counterfactual_credit,
    robust_advantages,
    self_evaluated_credit,
    shared_credit,
    solo_baseline,
    text_values,
)
from ccpo.credit.advantages import correlation, estimate_advantages, within_group_correlation

NAN = float("nan")
EPS = 1e-4
RTOL = 1e-7  # TRL's `nanstd` takes Bessel's correction in float32
ESTIMATORS = ("group", "reinforce++", "reinforce++-baseline", "counterfactual", "robust")
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def rewards(*shape, seed=0, unscorable=0.2):
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=rng, dtype=torch.float64)
    return values.masked_fill(torch.rand(shape, generator=rng) < unscorable, NAN)


def outcomes(*shape, seed=0, unscorable=0.0):
    values = rewards(*shape, seed=seed, unscorable=unscorable)
    return values.sign().masked_fill(values.isnan(), NAN)  # the sign of NaN is 0


def estimate(reward, estimator, **kwargs):
    """With a baseline that depends on the prompt, where the estimator needs one; one block where three do not fit."""
    baseline = torch.full_like(reward, 0.25) if estimator == "counterfactual" else None
    if reward.shape[1] < 3:
        kwargs["blocks"] = 1
    return estimate_advantages(reward, estimator, baseline=baseline, **kwargs)


# ---- By hand ----


def test_estimators_by_hand():
    # Rewards (1, 0), (1, 1), (-1, NaN). Group means 0.5, 1, -1. Batch: the five known sum to 2, mean 0.4, deviations
    # 0.6, -0.4, 0.6, 0.6, -1.4, squares .36 + .16 + .36 + .36 + 1.96 = 3.2, sample variance 3.2 / 4 = 0.8.
    # Less the group mean: 0.5, -0.5, 0, 0, 0: mean 0, variance 0.5 / 4 = 0.125.
    reward = tensor([[1, 0], [1, 1], [-1, NAN]])
    std, centered_std = math.sqrt(0.8) + EPS, math.sqrt(0.125) + EPS
    expected = {
        "group": [[0.5, -0.5], [0, 0], [0, 0]],
        "reinforce++": [[0.6 / std, -0.4 / std], [0.6 / std, 0.6 / std], [-1.4 / std, 0]],
        "reinforce++-baseline": [[0.5 / centered_std, -0.5 / centered_std], [0, 0], [0, 0]],
        "counterfactual": [[1.5, 0.5], [1, 1], [-1.25, 0]],  # b = -0.5, 0, 0.25
    }
    baseline = tensor([[-0.5, -0.5], [0, 0], [0.25, 0.25]])
    for estimator, advantages in expected.items():
        actual = estimate_advantages(reward, estimator, baseline=baseline)
        torch.testing.assert_close(actual, tensor(advantages), rtol=RTOL, atol=1e-12)


def test_scale_rewards_by_hand():
    # Group (1, 0, -1): mean 0, sample variance 2/2 = 1. Group (2, 2, 2): 0 over 0 + eps.
    # Batch of six: mean 1, squares 0 + 1 + 4 + 1 + 1 + 1 = 8, sample variance 8/5.
    reward = tensor([[1, 0, -1], [2, 2, 2]])
    for scale, std in (("none", 1), ("group", 1 + EPS), ("batch", math.sqrt(8 / 5) + EPS)):
        actual = estimate_advantages(reward, "group", scale_rewards=scale)
        torch.testing.assert_close(actual, tensor([[1 / std, 0, -1 / std], [0, 0, 0]]), rtol=RTOL, atol=0)


def test_robust_by_hand():
    # (-1, -1, 1, 1, 1): dealt (-1, 1), (-1, 1), (1): locations 0, 0, 1, median 0. Mean 1/5, squares
    # 2 · 36/25 + 3 · 16/25 = 120/25, sample variance 6/5. One right of five, one NaN: (-1, 1), (-1), (-1): -1, and the
    # wrong ones get 0; mean -1/2, squares 3 · 1/4 + 9/4 = 3, variance 1, the right one 2.
    reward = tensor([[1, -1, 1, -1, 1], [-1, NAN, 1, -1, -1]])
    a, b = 1 / (math.sqrt(1.2) + EPS), 2 / (1 + EPS)
    expected = tensor([[a, -a, a, -a, a], [0, 0, b, 0, 0]])
    torch.testing.assert_close(estimate_advantages(reward, "robust"), expected, rtol=1e-12, atol=1e-12)


# ---- Another way ----


def known(values):
    return [v for v in values if not math.isnan(v)]


def slow_standardize(rows):
    pool = known(v for row in rows for v in row)
    if len(pool) < 2:
        return [[0.0] * len(row) for row in rows]
    center, spread = statistics.fmean(pool), statistics.stdev(pool)
    return [[0.0 if math.isnan(v) else (v - center) / (spread + EPS) for v in row] for row in rows]


def slow_center(rows):
    return [[v - statistics.fmean(known(row)) if known(row) else NAN for v in row] for row in rows]


def slow_robust(row, blocks):
    """One group's: values dealt into blocks like cards, each block's location by twenty reweighted means."""
    hands = [[] for _ in range(blocks)]
    for place, value in enumerate(sorted(known(row))):
        hands[place % blocks].append(value)
    located = []
    for hand in filter(None, hands):
        mu = statistics.median(hand)
        for _ in range(20):  # alpha = -2, c = 1: ((x - mu)² / 4 + 1)^-2
            weights = [((x - mu) ** 2 / 4 + 1) ** -2 for x in hand]
            mu = math.fsum(w * x for w, x in zip(weights, hand, strict=True)) / math.fsum(weights)
        located.append(mu)
    if len(known(row)) < 2:
        return [0.0] * len(row)
    spread = statistics.stdev(known(row)) + EPS
    return [0.0 if math.isnan(x) else (x - statistics.median(located)) / spread for x in row]


def slow_estimate(rows, estimator, scale="none"):
    if estimator == "robust":
        return [slow_robust(row, 3 if len(row) > 2 else 1) for row in rows]
    if estimator == "reinforce++":
        return slow_standardize(rows)
    if estimator == "reinforce++-baseline":
        return slow_standardize(slow_center(rows))
    if estimator == "counterfactual":
        return [[0.0 if math.isnan(v) else v - 0.25 for v in row] for row in rows]
    advantages = []
    for row, centered in zip(rows, slow_center(rows), strict=True):
        pool = known(row) if scale == "group" else known(v for other in rows for v in other)
        if scale == "none":
            divisor = 1.0
        else:
            divisor = statistics.stdev(pool) + EPS if len(pool) > 1 else math.inf
        advantages.append([0.0 if math.isnan(v) else v / divisor for v in centered])
    return advantages


@every_estimator
@pytest.mark.parametrize("shape", [(7, 5), (3, 1), (1, 6), (1, 1), (4, 2)])
def test_estimators_equal_slow_loop(estimator, shape):
    for seed in range(10):
        reward = rewards(*shape, seed=seed, unscorable=0.4)
        expected = tensor(slow_estimate(reward.tolist(), estimator))
        torch.testing.assert_close(estimate(reward, estimator), expected, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 1), (1, 6), (1, 1), (4, 2)])
def test_scaled_group_equals_slow_loop(scale, shape):
    for seed in range(10):
        reward = rewards(*shape, seed=seed, unscorable=0.4)
        expected = tensor(slow_estimate(reward.tolist(), "group", scale))
        actual = estimate_advantages(reward, "group", scale_rewards=scale)
        torch.testing.assert_close(actual, expected, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_group_is_what_trl_computes(scale):
    """TRL's lines in `_generate_and_score_completions`, on the flat batch."""
    reward, generations = rewards(6, 4, seed=3).float(), 4
    flat = reward.flatten()
    advantages = flat - torch.nanmean(flat.view(-1, generations), dim=1).repeat_interleave(generations)
    if scale == "group":
        advantages = advantages / (nanstd(flat.view(-1, generations), dim=1).repeat_interleave(generations) + 1e-4)
    elif scale == "batch":
        advantages = advantages / (nanstd(flat).expand_as(flat) + 1e-4)
    expected = torch.nan_to_num(advantages, nan=0.0).view_as(reward)
    torch.testing.assert_close(estimate_advantages(reward, "group", scale_rewards=scale), expected)


def test_robust_reductions():
    """One block and α = 2: the mean, which is TRL's `scale_rewards="group"`; and the function of its own."""
    reward = rewards(6, 8, seed=9)
    stock = estimate_advantages(reward, "group", scale_rewards="group")
    plain = estimate_advantages(reward, "robust", alpha=2, blocks=1)
    torch.testing.assert_close(plain, stock, rtol=RTOL, atol=1e-12)
    for options in ({"alpha": 0.5}, {"c": 0.3}, {"blocks": 5}, {}):
        chosen = estimate_advantages(reward, "robust", **options)
        assert torch.equal(chosen, robust_advantages(reward, **options))
        assert not torch.allclose(chosen, plain)


# ---- Properties ----


@every_estimator
def test_unscorable_samples_get_zero_and_move_nobody(estimator):
    reward = rewards(6, 4, seed=1, unscorable=0.3)
    advantages = estimate(reward, estimator)
    assert not advantages.isnan().any()
    assert (advantages[reward.isnan()] == 0).all()
    assert (advantages[~reward.isnan()] != 0).any()
    # An unscorable column is as good as no column, an unscorable prompt as no prompt.
    column = torch.cat([reward, torch.full((6, 1), NAN, dtype=reward.dtype)], dim=1)
    torch.testing.assert_close(estimate(column, estimator)[:, :4], advantages, rtol=1e-12, atol=1e-12)
    prompt = torch.cat([reward, torch.full((1, 4), NAN, dtype=reward.dtype)])
    torch.testing.assert_close(estimate(prompt, estimator)[:6], advantages, rtol=1e-12, atol=1e-12)
    assert (estimate(prompt, estimator)[6] == 0).all()


@every_estimator
def test_nothing_scorable_gives_zeros(estimator):
    nothing = torch.full((3, 4), NAN)
    assert torch.equal(estimate(nothing, estimator), torch.zeros(3, 4))


@pytest.mark.parametrize("estimator", [*ESTIMATORS[:3], "robust"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("value", [1.0, -1.0, 1.1, -0.96733, 0.1, 1 / 3, 1e6 + 0.1])
def test_constant_batches_give_exactly_zero(estimator, scale, value):
    for shape in ((3, 7), (1, 1), (5, 1), (1, 3), (64, 16)):
        reward = torch.full(shape, value)  # float32, as in training
        assert torch.equal(estimate(reward, estimator, scale_rewards=scale), torch.zeros(shape))


@pytest.mark.parametrize("estimator", ["group", "reinforce++-baseline", "robust"])
def test_constant_groups_and_groups_of_one_give_exactly_zero(estimator):
    levels = torch.tensor([[1.1], [-1.0], [0.3], [NAN]])
    for reward in (levels, levels.expand(4, 7), levels.expand(4, 7).clone().index_fill_(1, torch.tensor([2]), NAN)):
        for scale in ("none", "group", "batch"):
            assert torch.equal(estimate(reward, estimator, scale_rewards=scale), torch.zeros(reward.shape))


@every_estimator
def test_permutations(estimator):
    reward, columns, rows = rewards(6, 4, seed=2), torch.tensor([3, 1, 0, 2]), torch.tensor([4, 2, 5, 0, 3, 1])
    base = estimate(reward, estimator)
    for moved, expected in (
        (estimate(reward[:, columns], estimator), base[:, columns]),
        (estimate(reward[rows], estimator), base[rows]),
    ):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


def test_what_an_estimator_does_not_see():
    reward = rewards(6, 4, seed=4, unscorable=0)
    shift = tensor([[5], [-3], [0], [1], [2], [9]])
    for estimator in ("group", "reinforce++-baseline", "robust"):  # a shift of a whole group
        torch.testing.assert_close(estimate(reward + shift, estimator), estimate(reward, estimator))
    assert not torch.allclose(estimate(reward + shift, "reinforce++"), estimate(reward, "reinforce++"))
    torch.testing.assert_close(estimate(reward + 5, "reinforce++"), estimate(reward, "reinforce++"))
    changed = reward.clone()  # another prompt's rewards
    changed[0] *= 7
    for estimator in ("group", "robust"):
        assert torch.equal(estimate(changed, estimator)[1:], estimate(reward, estimator)[1:])
    assert not torch.allclose(estimate(changed, "reinforce++")[1:], estimate(reward, "reinforce++")[1:])


def test_unknown_baseline_gives_zero():
    reward, baseline = tensor([[1, -1], [1, -1]]), tensor([[NAN, NAN], [0.5, 0.5]])
    advantages = estimate_advantages(reward, "counterfactual", baseline=baseline)
    assert torch.equal(advantages, tensor([[0, 0], [0.5, -1.5]]))


@every_estimator
def test_dtype_is_kept_and_input_too(estimator):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        reward = rewards(3, 4, seed=5).to(dtype)
        before = reward.clone()
        assert estimate(reward, estimator).dtype == dtype
        assert torch.equal(reward.nan_to_num(9.0), before.nan_to_num(9.0))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"estimator": "gae"}, "`estimator` must be .*got 'gae'"),
        ({"estimator": "counterfactual"}, "`estimator='counterfactual'` needs `baseline`"),
        ({"estimator": "group", "scale_rewards": "batches"}, "`scale_rewards` must be .*got 'batches'"),
        ({"estimator": "group", "scale_rewards": True}, "`scale_rewards` must be .*got True"),
        ({"estimator": "group", "reward": torch.ones(4)}, r"`reward` must have shape \(P, N\), got \(4,\)"),
        ({"estimator": "group", "reward": torch.ones(2, 2, 1)}, r"`reward` must have shape .*got \(2, 2, 1\)"),
        (
            {"estimator": "counterfactual", "baseline": torch.ones(3)},
            r"`baseline` must have the shape of `reward`, \(2, 3\), got \(3,\)",
        ),
        ({"estimator": "robust", "reward": torch.ones(2, 2)}, "`blocks` must be odd and at most.*size, 2, got 3.*1"),
        ({"estimator": "robust", "blocks": 2}, "`blocks` must be odd and at most the group's size, 3, got 2"),
        ({"estimator": "robust", "alpha": 3}, "`alpha` must be between -10 and 2, got 3"),
        ({"estimator": "robust", "c": 0}, "`c` must be a finite number above 0, .*got 0"),
    ],
)
def test_errors_name_the_argument_and_the_value(kwargs, match):
    with pytest.raises(ValueError, match=match):
        estimate_advantages(**{"reward": torch.ones(2, 3)} | kwargs)


# ---- Correlation ----


def test_correlation_by_hand():
    # x = 1, 2, 3 and y = 1, 3, 2: deviations -1, 0, 1 and -1, 1, 0; (1 + 0 + 0) / (√2·√2) = 0.5
    assert correlation(tensor([1, 2, 3]), tensor([1, 3, 2])) == pytest.approx(0.5, rel=1e-12)


def test_correlation_equals_numpy():
    for seed in range(20):
        x, y = rewards(5, 6, seed=seed, unscorable=0), rewards(5, 6, seed=100 + seed, unscorable=0)
        y = y + seed / 5 * x
        expected = np.corrcoef(x.flatten().numpy(), y.flatten().numpy())[0, 1]
        assert correlation(x, y) == pytest.approx(expected, rel=1e-9)
        assert correlation(y, x) == pytest.approx(expected, rel=1e-9)
        assert correlation(x.float(), y.float()) == pytest.approx(expected, rel=1e-4)
        assert correlation(x * 1e-9 + 1e-9, y * 1e9) == pytest.approx(expected, rel=1e-6)  # scale and place are free
        assert correlation(-x, y) == pytest.approx(-expected, rel=1e-9)


def test_correlation_of_affine_images_is_one():
    for seed in range(50):
        x = rewards(5, 6, seed=seed, unscorable=0)
        assert 1 - 1e-12 < correlation(x, 3 * x - 2) <= 1  # not 1.0000000000000002
        assert -1 <= correlation(x, -x) < 1e-12 - 1


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1 / 3, 1e6 + 0.1, -7.3])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (3, 7)])
def test_correlation_with_a_constant_is_nan(constant, size):
    x, y = rewards(*size, seed=1, unscorable=0) * 1e3, torch.full(size, constant, dtype=torch.float64)
    assert math.isnan(correlation(x, y))
    assert math.isnan(correlation(y, x))
    assert math.isnan(correlation(y, y))


def test_correlation_of_unknowns_is_nan():
    assert math.isnan(correlation(tensor([1, 2, NAN]), tensor([1, 2, 3])))


# ---- Correlation inside groups ----


def test_within_group_correlation_by_hand():
    # Group 1: A = 1, 2, 3 and v = 1, 3, 2: 1/2. Group 2: v = 1, 2, 3 upside down: -1. The mean is -1/4, though over
    # the whole batch the correlation is high. Constant v or A: left out. NaN in group 5: (1, 2) and (5, 7), 1.
    advantages = tensor([[1, 2, 3], [103, 102, 101], [1, 2, 3], [4, 4, 4], [1, 0, 2]])
    values = tensor([[1, 3, 2], [101, 102, 103], [1, 1, 1], [1, -1, 1], [5, NAN, 7]])
    assert within_group_correlation(advantages[:2], values[:2]) == pytest.approx(-0.25, rel=1e-12)
    assert correlation(advantages[:2], values[:2]) > 0.99
    assert within_group_correlation(advantages, values) == pytest.approx((0.5 - 1 + 1) / 3, rel=1e-12)
    for nothing in (slice(2, 4), slice(0, 0)):
        assert math.isnan(within_group_correlation(advantages[nothing], values[nothing]))


def test_within_group_correlation_equals_numpy():
    for seed in range(20):
        x, y = rewards(5, 6, seed=seed), rewards(5, 6, seed=100 + seed)
        y, found = y + seed / 5 * x, []
        for a, v in zip(x.numpy(), y.numpy(), strict=True):
            there = ~np.isnan(a) & ~np.isnan(v)
            if there.sum() > 1:
                found.append(np.corrcoef(a[there], v[there])[0, 1])
        assert within_group_correlation(x, y) == pytest.approx(np.mean(found), rel=1e-9)
        assert within_group_correlation(x.float(), y.float()) == pytest.approx(np.mean(found), rel=1e-4)


def test_within_group_correlation_of_one_group_is_the_correlation():
    x, y = rewards(1, 30, seed=1, unscorable=0), rewards(1, 30, seed=2, unscorable=0)
    assert within_group_correlation(x, y) == pytest.approx(correlation(x, y), rel=1e-12)


def test_within_group_correlation_ignores_what_prompts_weigh():
    x, y = rewards(5, 6, seed=1, unscorable=0), rewards(5, 6, seed=2, unscorable=0)
    plain, weight = within_group_correlation(x, y), tensor([[0.01], [3], [100], [1], [0.5]])
    assert within_group_correlation(weight * x - weight, y + weight) == pytest.approx(plain, rel=1e-9)
    assert within_group_correlation(x.flip(1), y.flip(1)) == pytest.approx(plain, rel=1e-12)
    assert within_group_correlation(x.flip(0), y.flip(0)) == pytest.approx(plain, rel=1e-12)
    assert within_group_correlation(-x, y) == pytest.approx(-plain, rel=1e-12)
    assert within_group_correlation(weight * x + 1, x) == pytest.approx(1, rel=1e-12)


def test_rounding_is_no_variation():
    # In single precision 0.1 + 0.2 is not 0.3: a group that differs by that alone is constant.
    noise = torch.tensor([[0.3, 0.3, 0.1 + 0.2], [0.5, -0.5, 0]])
    noise[0, 2] = torch.nextafter(noise[0, 2], torch.tensor(1.0))
    assert noise[0, 2] != noise[0, 0]
    assert within_group_correlation(noise, torch.tensor([[1.0, 1, -1], [1, -1, 0]])) == pytest.approx(1)


def test_within_group_correlation_says_where_credit_adds_something():
    """CCPO with K = 1 nothing inside a group, whatever the estimator; C3's Solver something."""
    joint = outcomes(10, 6, seed=2)
    shaped = counterfactual_credit(joint, SOLO)["thinker"]
    for estimator in ("group", "reinforce++"):
        advantages = estimate_advantages(shaped, estimator)
        assert within_group_correlation(advantages, joint) == pytest.approx(1, rel=1e-9)
    leaves = outcomes(10, 12, seed=3)
    thinker, solver = contextual_credit(leaves, branches=(1, 3))
    assert within_group_correlation(thinker, text_values(leaves, branches=(1, 3))[0]) == pytest.approx(1, rel=1e-9)
    assert within_group_correlation(solver, leaves) < 0.95


def test_within_group_correlation_errors():
    for shapes in (((2, 3), (3, 2)), ((6,), (6,)), ((1, 2, 3), (1, 2, 3))):
        with pytest.raises(ValueError, match=r"`advantages` and `values` must have the same shape \(P, N\), got"):
            within_group_correlation(*map(torch.zeros, shapes))
    with pytest.raises(TypeError, match="`values` must be a floating-point tensor"):
        within_group_correlation(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))


# ---- From outcomes to advantages ----

# Ten prompts of eight solos, n of them right: b = -1, -0.75, -0.5, -0.25, 0, 0, 0.25, 0.5, 0.75, 1.
RIGHT = (0, 1, 2, 3, 4, 4, 5, 6, 7, 8)
SOLO = torch.stack([torch.arange(8).lt(n).double() * 2 - 1 for n in RIGHT])


def thinker_advantages(joint, solo, **kwargs):
    """The Thinker's "group" advantages with CCPO and with shared credit."""
    shaped = counterfactual_credit(joint, solo, **kwargs)["thinker"]
    shared = shared_credit(joint)["thinker"]
    return estimate_advantages(shaped, "group"), estimate_advantages(shared, "group")


@pytest.mark.parametrize("coef", [0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("unscorable", [0.0, 0.2])
def test_event_bonus_only_rescales_the_groups_advantages(coef, unscorable):
    # R takes two values in a group and b one. b < 0: +1 -> 1 + λ, -1 -> -1. b > 0: +1 -> 1, -1 -> -1 - λ. Either way
    # the distance 2 becomes 2 + λ, the factor is (2 + λ) / 2 = 1 + λ/2, and the group's mean takes the rest away.
    for seed in range(20):
        joint = outcomes(10, 6, seed=seed, unscorable=unscorable)
        shaped, shared = thinker_advantages(joint, SOLO, coef=coef)
        neutral = SOLO.mean(dim=1) == 0
        torch.testing.assert_close(shaped[~neutral], (1 + coef / 2) * shared[~neutral], rtol=1e-6, atol=1e-15)
        torch.testing.assert_close(shaped[neutral], shared[neutral], rtol=1e-6, atol=0)
        varied = shared.abs().amax(dim=1) > 0.1  # divided by the group's std they are the same
        assert varied.any()
        shaped, shared = shaped[varied], shared[varied]
        shaped, shared = shaped / shaped.std(dim=1, keepdim=True), shared / shared.std(dim=1, keepdim=True)
        torch.testing.assert_close(shaped, shared, rtol=1e-6, atol=0)


def test_the_factor_of_the_paper_is_1_1():
    # R = (1, 1, 1, -1): mean 0.5, advantages 0.5, 0.5, 0.5, -1.5; times 1.1: 0.55, 0.55, 0.55, -1.65.
    joint = tensor([[1, 1, 1, -1]]).expand(10, 4)
    shaped, shared = thinker_advantages(joint, SOLO)
    torch.testing.assert_close(shared, tensor([[0.5, 0.5, 0.5, -1.5]]).expand(10, 4), rtol=1e-6, atol=0)
    expected = tensor([[0.55, 0.55, 0.55, -1.65]]).expand(10, 4).clone()
    expected[4:6] = shared[4:6]  # b = 0
    torch.testing.assert_close(shaped, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("answers", [1, 3])
@pytest.mark.parametrize("coef", [0.2, 0.5, 1.0])
def test_difference_bonus_rescales_every_group(coef, answers):
    # R + λ (R - b) / 2 = (1 + λ/2) R - λ b / 2, whatever b is and whatever values R takes.
    for seed in range(20):
        joint = outcomes(10, 6, answers, seed=seed, unscorable=0.1)
        shaped, shared = thinker_advantages(joint, SOLO, coef=coef, bonus="difference")
        torch.testing.assert_close(shaped, (1 + coef / 2) * shared, rtol=1e-6, atol=1e-14)


def test_with_a_single_sign_of_b_the_correlation_is_one():
    joint = outcomes(4, 6, seed=1)
    assert correlation(*thinker_advantages(joint, SOLO[:4])) == pytest.approx(1.0, rel=1e-9)


def test_where_credit_carries_information():
    joint, several = outcomes(10, 6, seed=2), outcomes(10, 6, 4, seed=3)
    # K > 1: R takes more than two values
    assert correlation(*thinker_advantages(several, SOLO)) < 0.999
    # the paired baseline differs inside a group
    assert correlation(*thinker_advantages(joint, SOLO[:, 1:7], baseline="paired")) < 0.999
    # the batch's mean and std in place of the group's
    shaped = counterfactual_credit(joint, SOLO)["thinker"]
    reference = estimate_advantages(joint, "reinforce++")
    assert correlation(estimate_advantages(shaped, "reinforce++"), reference) < 0.999
    # the solo baseline in place of the group's mean
    b = solo_baseline(SOLO, (10, 6))
    assert (
        correlation(estimate_advantages(joint, "counterfactual", baseline=b), thinker_advantages(joint, SOLO)[1]) < 1
    )
    # SEPO, gently: 0.9997 here
    t, s = (rewards(10, 6, seed=seed, unscorable=0).sigmoid() for seed in (4, 5))
    for credit in self_evaluated_credit(joint, t, s).values():
        assert correlation(estimate_advantages(credit, "group"), estimate_advantages(joint, "group")) < 0.9999


def test_counterfactual_advantage_by_hand():
    # Solos (-1, -1, 1, -1): b = -0.5. R = 1 -> 1.5, R = -1 -> -0.5: also a constant group learns.
    joint, solo = tensor([[1, -1], [1, 1]]), tensor([[-1, -1, 1, -1]]).expand(2, 4)
    advantages = estimate_advantages(joint, "counterfactual", baseline=solo_baseline(solo, (2, 2)))
    assert torch.equal(advantages, tensor([[1.5, -0.5], [1.5, 1.5]]))


@every_estimator
def test_unscorable_from_end_to_end(estimator):
    """An unscorable prompt, answer or baseline gets advantage 0 and leaves the other prompts' "group" as they were."""
    joint, solo = outcomes(6, 4, 2, seed=6), outcomes(6, 4, seed=7)
    joint[1], joint[2, 1], joint[3, 0, 1], solo[4] = NAN, NAN, NAN, NAN
    for credit in (
        shared_credit(joint),
        counterfactual_credit(joint, solo),
        self_evaluated_credit(joint, joint * 0 + 0.7, joint * 0 + 0.2),
    ):
        for role, unknown in (("thinker", joint.isnan().all(dim=-1)), ("solver", joint.isnan())):
            advantages = estimate(credit[role].flatten(1), estimator)
            assert not advantages.isnan().any()
            assert (advantages[unknown.flatten(1)] == 0).all()
    thinker = estimate(counterfactual_credit(joint, solo)["thinker"], estimator)
    assert (thinker[4] == 0).all()  # its baseline is unknown
    kept = [0, 2, 3, 5]
    alone = counterfactual_credit(joint[kept], solo[kept])["thinker"]
    torch.testing.assert_close(thinker[kept], estimate(alone, estimator), rtol=1e-12, atol=1e-12)
