"""Estimates over problems: hand-worked cases, slow versions, reductions, properties."""

import itertools
import math
import random

import pytest
import torch

from ccpo.evaluation.statistics import avg_at_k, compare, estimate, holm, pass_at_k, sign_flip_p

NAN = math.nan


def test_a_table_by_hand():
    """c of n right: pass@2 = 1 - C(n-c, 2) / C(n, 2)."""
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, NAN, 0, 0], [NAN, NAN, NAN, 1]])
    torch.testing.assert_close(avg_at_k(right), torch.tensor([0.25, 0.5, 0, 0.75, 1 / 3, 1]))
    expected = torch.tensor([1 - 3 / 6, 1 - 1 / 6, 0, 1, 1 - 1 / 3, NAN])
    torch.testing.assert_close(pass_at_k(right, 2), expected, equal_nan=True)
    torch.testing.assert_close(pass_at_k(right, 1), avg_at_k(right))
    assert pass_at_k(torch.tensor([[0.5, 0.5]]), 1) == 0  # right in part is not right


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_mean_over_all_choices_of_k(k):
    right = torch.randint(0, 2, (20, 5), generator=torch.Generator().manual_seed(k)).double()
    slow = [
        sum(max(row[i] for i in chosen) for chosen in itertools.combinations(range(5), k)) / math.comb(5, k)
        for row in right.tolist()
    ]
    torch.testing.assert_close(pass_at_k(right, k), torch.tensor(slow, dtype=torch.float64))


def test_k_beyond_the_samples_is_refused():
    with pytest.raises(ValueError, match="`k` must be from 1 to the number of samples, 4, got 5"):
        pass_at_k(torch.zeros(2, 4), 5)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    """400 samples of 60 problems, right with chance 0.3: 95 % of the intervals hold it, within 3 s.d. of that."""
    generator = torch.Generator().manual_seed(1)
    held = 0
    for i in range(400):
        low, high = estimate((torch.rand(60, generator=generator) < 0.3).double(), seed=i).interval
        held += low <= 0.3 <= high
    assert abs(held / 400 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize("size", [7, 60])
def test_an_interval_by_a_slow_bootstrap(size):
    """Problem by problem, with another generator: the quantiles are the same within their noise."""
    generator, drawn = torch.Generator().manual_seed(size), random.Random(size)
    values = torch.rand(size, generator=generator, dtype=torch.float64)
    means = sorted(sum(drawn.choices(values.tolist(), k=size)) / size for _ in range(20_000))
    found = estimate(values)
    spread = values.std().item() / math.sqrt(size)
    for bound, slow in zip(found.interval, (means[500], means[19_500]), strict=True):
        assert abs(bound - slow) < 0.08 * spread
    assert found.value == pytest.approx(sum(values.tolist()) / size)


def test_what_is_unscorable_is_left_out():
    values = torch.tensor([1, 0, NAN, 1, NAN])
    assert estimate(values) == estimate(values[~values.isnan()])
    assert estimate(values).problems == 3
    nothing = estimate(torch.tensor([NAN]))
    assert nothing.problems == 0 and math.isnan(nothing.value)


@pytest.mark.parametrize(
    "values",
    [[1, 1, 1, 1, 1, -1], [0.5, -0.25, 1, 1, 0, 0, 0.75], [1, -1, 1, -1], [1], [1 / 3, -1 / 3], [1] * 10 + [-0.5] * 6],
)
def test_a_p_value_by_all_flips(values):
    """The exact test, over all 2^n signs."""
    flips = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    exact = sum(abs(flip) >= abs(sum(values)) - 1e-9 for flip in flips) / len(flips)
    assert sign_flip_p(torch.tensor(values, dtype=torch.float64)) == pytest.approx(exact, abs=0.015)


def test_no_difference_is_found_as_rarely_as_the_level_says():
    generator = torch.Generator().manual_seed(3)
    found = 0
    for i in range(200):
        delta = torch.randint(-1, 2, (40,), generator=generator).double()
        found += sign_flip_p(delta, seed=i) <= 0.05
    assert found / 200 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert sign_flip_p(torch.zeros(9)) == 1
    for alike, least in ((1, 1), (5, 2 / 2**5), (13, 2 / 2**13), (14, 1.2e-4), (60, 1e-4)):
        p = sign_flip_p(torch.ones(alike))
        assert 1e-4 <= p <= 4 * least and (alike > 13 or p == least)


def test_holm_by_hand():
    """0.01 < 0.05 / 4; 0.02 > 0.05 / 3: what comes after does not stand either, though 0.03 < 0.05."""
    p = {"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.04, "e": NAN}
    assert holm(p) == {"a": False, "b": True, "c": False, "d": False, "e": False}
    assert holm({"a": 0.02, "b": 0.04, "c": 0.001}) == {"a": True, "b": True, "c": True}
    assert holm({"a": 0.04}) == {"a": True} and holm({}) == {}


def test_differences_are_paired():
    generator = torch.Generator().manual_seed(4)
    hard = (torch.rand(300, generator=generator) < 0.5).double()
    better = hard.clone()
    better[:12] = 1  # a few more of the same problems
    found = compare({"better": (better, hard), "same": (hard, hard)})
    gain = (better - hard).mean().item()
    assert found["better"].value == pytest.approx(gain) and found["better"].interval[0] > 0
    assert found["same"].value == 0 and found["same"].p == 1 and not found["same"].stands
    separate = estimate(better).interval[0] - estimate(hard).interval[1]
    assert separate < 0 < found["better"].interval[0]  # unpaired intervals overlap
    with pytest.raises(ValueError, match="'x' compares an arm of 2 problems with one of 3"):
        compare({"x": (torch.zeros(2), torch.zeros(3))})
