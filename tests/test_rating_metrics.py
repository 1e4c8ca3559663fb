"""What ratings are logged as."""

import math

import pytest
import torch

from ccpo.rewards import shares_metrics

NAN, THREE = math.nan, ("planner", "critic", "writer")


def test_metrics_by_hand():
    """
    Leaves 1 to 5, the last unscorable. The critic's rating of leaf 2 is invalid: valid rates 1, 3/4, 1. Leaves 1, 3, 4
    are rated by all: 1 agrees, 3 within 0.04, in 4 one share differs by 0.1: 2/3.
    """
    even = torch.full((3, 3), 0.5)
    invalid = torch.tensor([[0.5] * 3, [NAN] * 3, [0.5] * 3])
    near = even + torch.tensor([[0.0], [0.04], [0.02]])
    off = even + torch.tensor([[0.0] * 3, [0.0] * 3, [0.0, 0.1, 0.0]])
    shares = torch.stack([even, invalid, near, off, torch.full((3, 3), NAN)]).unsqueeze(0)
    metrics = shares_metrics(torch.tensor([[1.0, -1.0, 1.0, -1.0, NAN]]), shares, THREE)
    assert metrics == pytest.approx(
        {
            "rating/planner_valid_rate": 1.0,
            "rating/critic_valid_rate": 0.75,
            "rating/writer_valid_rate": 1.0,
            "rating/agreement_rate": 2 / 3,
        }
    )


def random_shares(seed, leaves, n):
    generator = torch.Generator().manual_seed(seed)
    tenths = torch.randint(1, 10 if seed % 2 else 3, (3, leaves, n, n), generator=generator) / 10
    if n == 2:
        tenths = torch.stack([tenths[..., 0], 1 - tenths[..., 0]], dim=-1)
    invalid = torch.rand(3, leaves, n, 1, generator=generator) < 0.2
    outcome = torch.randint(-1, 2, (3, leaves), generator=generator).float()
    return torch.where(outcome == 0, NAN, outcome), tenths.masked_fill(invalid, NAN)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_metrics_against_a_loop(n):
    roles = ["a", "b", "c", "d"][:n]
    for seed in range(20):
        outcome, shares = random_shares(seed, 12, n)
        valid, agree = {role: [] for role in roles}, []
        for verdict, rows in zip(outcome.flatten().tolist(), shares.flatten(0, 1).tolist(), strict=True):
            if math.isnan(verdict):
                continue
            for role, row in zip(roles, rows, strict=True):
                valid[role].append(not any(map(math.isnan, row)))
            if all(valid[role][-1] for role in roles):
                agree.append(
                    all(abs(a - b) < 0.05 for one in rows for two in rows for a, b in zip(one, two, strict=True))
                )
        expected = {f"rating/{role}_valid_rate": sum(valid[role]) / len(valid[role]) for role in roles}
        expected["rating/agreement_rate"] = sum(agree) / len(agree)
        assert shares_metrics(outcome, shares, roles) == pytest.approx(expected)


def test_metrics_of_two_roles_are_those_of_pairs():
    for seed in range(20):
        outcome, shares = random_shares(seed, 12, 2)
        t, s = shares[..., 0, 0], shares[..., 1, 0]
        scorable = ~outcome.isnan()
        both = scorable & ~t.isnan() & ~s.isnan()
        assert shares_metrics(outcome, shares, ("thinker", "solver")) == {
            "rating/thinker_valid_rate": (~t.isnan())[scorable].float().mean().item(),
            "rating/solver_valid_rate": (~s.isnan())[scorable].float().mean().item(),
            "rating/agreement_rate": ((t - s).abs() < 0.05)[both].float().mean().item(),
        }


def test_metrics_of_nothing_and_of_wrong_shapes():
    nothing = shares_metrics(torch.full((1, 2), NAN), torch.full((1, 2, 3, 3), 0.5), THREE)
    assert all(math.isnan(value) for value in nothing.values()) and len(nothing) == 4
    for shape in ((1, 2, 2, 2), (1, 3, 3, 3), (2, 3, 3)):
        with pytest.raises(ValueError, match=r"`shares` must have shape \(P, N, n, n\) = \(1, 2, 3, 3\)"):
            shares_metrics(torch.ones(1, 2), torch.full(shape, 0.5), THREE)
