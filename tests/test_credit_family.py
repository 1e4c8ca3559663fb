"""C3, votes, history, DACR and ARE: hand-worked tables, slow loops, reductions, properties, errors."""

import math

import pytest
import torch

from ccpo.credit import (
    sibling_baseline,
    text_values,
)

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
        (6, (2, 3), r"`branches` must begin with 1 .*got \(2, 3\).*`num_generations`"),
        (6, (), r"`branches` must be whole numbers >= 1.*got \(\)"),
        (6, (1, 0), r"`branches` must be whole numbers >= 1.*got \(1, 0\)"),
        (6, (1, 2.0), r"`branches` must be whole numbers >= 1.*got \(1, 2.0\)"),
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
