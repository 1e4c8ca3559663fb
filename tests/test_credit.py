"""Credit schemes: hand-worked tables, slow loops over episodes, reductions, properties, errors."""

import math

import pytest
import torch

from ccpo.credit import counterfactual_credit, self_evaluated_credit, shared_credit, solo_baseline

NAN = float("nan")
NINE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def same(actual: torch.Tensor, expected) -> None:
    """Bit for bit, NaN equal to NaN."""
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def close(actual: torch.Tensor, expected) -> None:
    torch.testing.assert_close(actual, tensor(expected), rtol=1e-12, atol=1e-12, equal_nan=True)


def outcomes(*shape, seed=0, unscorable=0.2):
    """Random outcomes in {-1, +1, NaN}."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2, shape, generator=rng).double() * 2 - 1
    return values.masked_fill(torch.rand(shape, generator=rng) < unscorable, NAN)


def shares(*shape, seed=0, invalid=0.25):
    """Random ratings out of the nine pairs, NaN where invalid."""
    rng = torch.Generator().manual_seed(1000 + seed)
    values = tensor(NINE)[torch.randint(0, 9, shape, generator=rng)]
    return values.masked_fill(torch.rand(shape, generator=rng) < invalid, NAN)


def mean(values):
    """Of those that are known; NaN if none is."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else NAN


# ---- Shared ----


def test_shared_by_hand():
    joint = tensor([[1, -1, NAN], [-1, -1, 1]])
    credit = shared_credit(joint)
    same(credit["thinker"], joint)
    same(credit["solver"], joint)


def test_shared_with_several_answers_by_hand():
    # means over the three answers of each thought: (1+1-1)/3 = 1/3, (1-1)/2 = 0 without the NaN, none is known: NaN
    joint = tensor([[[1, 1, -1], [1, NAN, -1], [NAN, NAN, NAN]]])
    credit = shared_credit(joint)
    close(credit["thinker"], [[1 / 3, 0, NAN]])
    same(credit["solver"], joint)


# ---- CCPO ----

# The baselines: prompt 0 (-1-1+1-1)/4 = -0.5, prompt 1 (1+1+1-1)/4 = 0.5, prompt 2 (1-1+1-1)/4 = 0.
JOINT = [[1, -1, 1], [1, -1, -1], [1, -1, 1]]
SOLO = [[-1, -1, 1, -1], [1, 1, 1, -1], [1, -1, 1, -1]]


def test_event_bonus_by_hand():
    # b < 0: right answers were helped, 1 + 0.2; b > 0: wrong ones were hurt, -1 - 0.2; b = 0: nothing.
    credit = counterfactual_credit(tensor(JOINT), tensor(SOLO), coef=0.2)
    close(credit["thinker"], [[1.2, -1, 1.2], [1, -1.2, -1.2], [1, -1, 1]])
    same(credit["solver"], JOINT)


def test_difference_bonus_by_hand():
    # (R - b) / 2 and R + 0.2 of it
    #   b = -0.5:  R = 1: 0.75 -> 1.15   R = -1: -0.25 -> -1.05
    #   b =  0.5:  R = 1: 0.25 -> 1.05   R = -1: -0.75 -> -1.15
    #   b =  0:    R = 1: 0.5  -> 1.1    R = -1: -0.5  -> -1.1
    credit = counterfactual_credit(tensor(JOINT), tensor(SOLO), coef=0.2, bonus="difference")
    close(credit["thinker"], [[1.15, -1.05, 1.15], [1.05, -1.15, -1.15], [1.1, -1.1, 1.1]])
    same(credit["solver"], JOINT)


@pytest.mark.parametrize("bonus", ["event", "difference"])
def test_paired_baseline_by_hand(bonus):
    # Each row against its own solo. (R, b) = (1, 1): 0, (1, -1): +1, (-1, 1): -1, (-1, -1): 0, in both formulas.
    # The group's mean would be 0, and the event bonus with it.
    joint, solo = tensor([[1, 1, -1, -1]]), tensor([[1, -1, 1, -1]])
    credit = counterfactual_credit(joint, solo, coef=0.5, bonus=bonus, baseline="paired")
    close(credit["thinker"], [[1, 1.5, -1.5, -1]])
    same(counterfactual_credit(joint, solo, coef=0.5)["thinker"], joint)


def test_several_answers_per_thought_by_hand():
    # R = mean over K: (1+1)/2 = 1, (1-1)/2 = 0, (-1-1)/2 = -1; b = -0.5.
    #   event: R = 1 helped: 1.2; R = 0 neither right nor wrong: 0; R = -1, b < 0: -1
    #   difference: 0.75 -> 1.15; 0.25 -> 0.05; -0.25 -> -1.05
    joint, solo = tensor([[[1, 1], [1, -1], [-1, -1]]]), tensor([[-1, -1, 1, -1]])
    credit = counterfactual_credit(joint, solo)
    close(credit["thinker"], [[1.2, 0, -1]])
    same(credit["solver"], joint)
    close(counterfactual_credit(joint, solo, bonus="difference")["thinker"], [[1.15, 0.05, -1.05]])


def test_unscorable_by_hand():
    # Prompt 0: the solos that are known give (-1+1-1)/3 = -1/3 < 0. Prompt 1: none is known, so neither is the bonus.
    joint, solo = tensor([[1, NAN], [1, -1]]), tensor([[-1, NAN, 1, -1], [NAN] * 4])
    credit = counterfactual_credit(joint, solo)
    close(credit["thinker"], [[1.2, NAN], [NAN, NAN]])
    same(credit["solver"], joint)


def slow_counterfactual(joint, solo, coef, bonus, baseline):
    """Episode by episode, on nested lists (P, G, K) and (P, S)."""
    thinker = []
    for answers, alone in zip(joint, solo, strict=True):
        row = []
        for g, own in enumerate(answers):
            reward = mean(own)
            b = alone[g] if baseline == "paired" else mean(alone)
            if math.isnan(reward) or math.isnan(b):
                row.append(NAN)
            elif bonus == "difference":
                row.append((1 + coef / 2) * reward - coef * b / 2)
            elif reward * b < 0:  # the two disagree, and the team's own sign says which way
                row.append(reward + math.copysign(coef, reward))
            else:
                row.append(reward)
        thinker.append(row)
    return thinker


@pytest.mark.parametrize("answers", [1, 2, 4])
@pytest.mark.parametrize("baseline", ["group", "paired"])
@pytest.mark.parametrize("bonus", ["event", "difference"])
def test_counterfactual_equals_slow_loop(bonus, baseline, answers):
    joint, solo = outcomes(40, 5, answers, seed=1), outcomes(40, 5, seed=2, unscorable=0.3)
    credit = counterfactual_credit(joint, solo, coef=0.3, bonus=bonus, baseline=baseline)
    close(credit["thinker"], slow_counterfactual(joint.tolist(), solo.tolist(), 0.3, bonus, baseline))
    same(credit["solver"], joint)


def test_solo_baseline():
    solo = tensor([[1, 1, NAN, -1], [NAN, NAN, NAN, NAN]])
    close(solo_baseline(solo, (2, 2)), [[1 / 3, 1 / 3], [NAN, NAN]])  # (1 + 1 - 1) / 3
    same(solo_baseline(solo, (2, 4), "paired"), solo)


# ---- SEPO ----


def test_self_evaluated_by_hand():
    # η = 0.3, R = (+1, -1), t0 = (0.7, 0.5), s0 = (0.6, 0.2)
    #   episode 0: s1 = 0.3·0.7 + 0.7·0.6 = 0.63   s2 = 0.3·0.4 + 0.7·0.3 = 0.33   w1 = 0.63 / 0.96 = 0.65625
    #   episode 1: s1 = 0.3·0.5 + 0.7·0.2 = 0.29   s2 = 0.3·0.8 + 0.7·0.5 = 0.59   w1 = 0.29 / 0.88
    # The bonus of the Thinker is ±half the difference of the two w1, that of the Solver its opposite.
    # λ = 0.2 acts on the credit of episode 0, μ = 0.4 on the blame of episode 1.
    half = (0.65625 - 0.29 / 0.88) / 2  # 0.16335…
    credit = self_evaluated_credit(
        tensor([[1, -1]]), tensor([[0.7, 0.5]]), tensor([[0.6, 0.2]]), credit_coef=0.2, blame_coef=0.4
    )
    close(credit["thinker"], [[1 + 0.2 * half, -1 + 0.4 * half]])
    close(credit["solver"], [[1 - 0.2 * half, -1 - 0.4 * half]])
    assert round(half, 5) == 0.16335


def test_self_evaluated_uncentered_by_hand():
    # As above, against 0.5: 0.65625 - 0.5 = 0.15625 -> 1 + 0.03125; 0.29/0.88 - 0.5 = -0.15/0.88 -> -1 + 0.2·0.15/0.88
    credit = self_evaluated_credit(tensor([[1, -1]]), tensor([[0.7, 0.5]]), tensor([[0.6, 0.2]]), center=False)
    close(credit["thinker"], [[1.03125, -1 + 0.03 / 0.88]])
    close(credit["solver"], [[1 - 0.03125, -1 - 0.03 / 0.88]])


def test_invalid_ratings_by_hand():
    # η = 0.5 makes s1 + s2 = 1, so w1 = (t0 + s0) / 2.
    #   one invalid: t0 = NaN counts as 0.5, s0 = 0.9: w1 = 0.7        both valid, 0.2 and 0.4: w1 = 0.3
    #   both invalid: bonus 0, and the mean is over the other two: (0.7 + 0.3) / 2 = 0.5
    #   (counted as 0.5 in the mean it would not show here; the slow loop below has lopsided groups)
    credit = self_evaluated_credit(
        tensor([[1, 1, 1]]), tensor([[NAN, 0.2, NAN]]), tensor([[0.9, 0.4, NAN]]), self_weight=0.5, credit_coef=1.0
    )
    close(credit["thinker"], [[1.2, 0.8, 1]])
    close(credit["solver"], [[0.8, 1.2, 1]])


def test_both_ratings_invalid_are_left_out_of_the_mean():
    # w1 = 0.9 and 0.9; the mean without the invalid third is 0.9: nobody gets a bonus (with it: 0.7667, bonus 0.1333).
    ratings = tensor([[0.9, 0.9, NAN]])
    credit = self_evaluated_credit(tensor([[1, 1, 1]]), ratings, ratings, self_weight=0.5)
    close(credit["thinker"], [[1, 1, 1]])


def test_self_weight_is_the_weight_of_ones_own_opinion():
    # η = 1: the Thinker's w1 comes from its own 0.9, the Solver's from its own 1 - 0.2 = 0.8: w1 = 0.9 / 1.7.
    # η = 0: each is what the other says: s1 = 0.2, s2 = 0.1: w1 = 0.2 / 0.3. Uncentered, λ = 1, R = 1: r = 0.5 + w.
    outcome, t, s = tensor([[1]]), tensor([[0.9]]), tensor([[0.2]])
    for self_weight, w in ((1.0, 0.9 / 1.7), (0.0, 0.2 / 0.3)):
        credit = self_evaluated_credit(outcome, t, s, self_weight=self_weight, credit_coef=1.0, center=False)
        close(credit["thinker"], [[0.5 + w]])
        close(credit["solver"], [[1.5 - w]])


@pytest.mark.parametrize(("self_weight", "t", "s"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
def test_scores_that_add_up_to_zero_split_evenly(self_weight, t, s):
    outcome = tensor([[1, -1]])
    credit = self_evaluated_credit(
        outcome, torch.full_like(outcome, t), torch.full_like(outcome, s), self_weight=self_weight, center=False
    )
    same(credit["thinker"], outcome)
    same(credit["solver"], outcome)


def test_an_even_split_counts_in_the_mean():
    # η = 1. Episode 0: s1 = t0 = 0, s2 = 1 - s0 = 0: w1 = 0.5. Episode 1: s1 = 0.9, s2 = 0.1: w1 = 0.9. Mean 0.7.
    credit = self_evaluated_credit(
        tensor([[1, 1]]), tensor([[0, 0.9]]), tensor([[1, 0.9]]), self_weight=1, credit_coef=1
    )
    close(credit["thinker"], [[0.8, 1.2]])


def slow_self_evaluated(outcome, thinker, solver, eta, lam, mu, center):
    """Episode by episode, on nested lists (P, G, K): the Thinker's rewards (P, G), the Solver's (P, G, K)."""
    sides = ([], [])
    for rewards, t_rows, s_rows in zip(outcome, thinker, solver, strict=True):
        weights = {}  # (g, k) -> (w1, w2), of the rated episodes of this prompt
        for g, row in enumerate(rewards):
            for k, reward in enumerate(row):
                t, s = t_rows[g][k], s_rows[g][k]
                if math.isnan(reward) or (math.isnan(t) and math.isnan(s)):
                    continue
                t_pair = (0.5, 0.5) if math.isnan(t) else (t, 1 - t)
                s_pair = (0.5, 0.5) if math.isnan(s) else (s, 1 - s)
                s1 = eta * t_pair[0] + (1 - eta) * s_pair[0]
                s2 = eta * s_pair[1] + (1 - eta) * t_pair[1]
                weights[g, k] = (s1 / (s1 + s2), s2 / (s1 + s2))
        for side, rewarded in enumerate(sides):
            reference = mean([w[side] for w in weights.values()]) if center else 0.5
            prompt = []
            for g, row in enumerate(rewards):
                prompt.append([])
                for k, reward in enumerate(row):
                    bonus = weights[g, k][side] - reference if (g, k) in weights else 0.0
                    if reward > 0:
                        reward += lam * bonus
                    elif reward < 0:
                        reward -= mu * bonus
                    prompt[-1].append(reward)
            rewarded.append(prompt)
    return [[mean(own) for own in prompt] for prompt in sides[0]], sides[1]


@pytest.mark.parametrize("answers", [1, 3])
@pytest.mark.parametrize("center", [True, False])
def test_self_evaluated_equals_slow_loop(center, answers):
    shape = (40, 4, answers)
    outcome, t, s = outcomes(*shape, seed=3), shares(*shape, seed=4, invalid=0.4), shares(*shape, seed=5, invalid=0.4)
    credit = self_evaluated_credit(outcome, t, s, self_weight=0.3, credit_coef=0.2, blame_coef=0.5, center=center)
    thinker, solver = slow_self_evaluated(outcome.tolist(), t.tolist(), s.tolist(), 0.3, 0.2, 0.5, center)
    close(credit["thinker"], thinker)
    close(credit["solver"], solver)


# ---- Reductions ----


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 3)])
@pytest.mark.parametrize("baseline", ["group", "paired"])
@pytest.mark.parametrize("bonus", ["event", "difference"])
def test_coefficient_zero_is_shared_credit(bonus, baseline, shape):
    joint, solo = outcomes(*shape, seed=6), outcomes(6, 4, seed=7, unscorable=0.6)
    credit, shared = counterfactual_credit(joint, solo, coef=0, bonus=bonus, baseline=baseline), shared_credit(joint)
    same(credit["thinker"], shared["thinker"])
    same(credit["solver"], shared["solver"])


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 3)])
@pytest.mark.parametrize("center", [True, False])
def test_both_coefficients_zero_is_shared_credit(center, shape):
    outcome = outcomes(*shape, seed=8)
    credit = self_evaluated_credit(
        outcome, shares(*shape, seed=9), shares(*shape, seed=10), credit_coef=0, blame_coef=0, center=center
    )
    same(credit["thinker"], shared_credit(outcome)["thinker"])
    same(credit["solver"], outcome)


@pytest.mark.parametrize("rating", [0.5, NAN])
@pytest.mark.parametrize("center", [True, False])
def test_even_or_invalid_ratings_are_shared_credit(center, rating):
    outcome = outcomes(6, 4, seed=11)
    ratings = torch.full_like(outcome, rating)
    credit = self_evaluated_credit(outcome, ratings, ratings, center=center)
    same(credit["thinker"], outcome)
    same(credit["solver"], outcome)


def test_equal_ratings_centered_are_shared_credit():
    outcome = outcomes(6, 4, seed=12, unscorable=0)
    credit = self_evaluated_credit(outcome, torch.full_like(outcome, 0.9), torch.full_like(outcome, 0.7))
    close(credit["thinker"], outcome.tolist())
    close(credit["solver"], outcome.tolist())


def test_one_coefficient_touches_one_sign_alone():
    outcome, t, s = outcomes(9, 4, seed=13), shares(9, 4, seed=14), shares(9, 4, seed=15)
    credit_only = self_evaluated_credit(outcome, t, s, blame_coef=0)
    blame_only = self_evaluated_credit(outcome, t, s, credit_coef=0)
    for role in ("thinker", "solver"):
        same(credit_only[role][outcome < 0], outcome[outcome < 0])
        same(blame_only[role][outcome > 0], outcome[outcome > 0])
        assert (credit_only[role] != outcome)[outcome > 0].any()
        assert (blame_only[role] != outcome)[outcome < 0].any()


def test_an_outcome_of_zero_gets_no_bonus():
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    same(self_evaluated_credit(zeros, shares(2, 3, seed=1), shares(2, 3, seed=2))["thinker"], zeros)
    same(counterfactual_credit(zeros, -torch.ones_like(zeros))["thinker"], zeros)
    same(counterfactual_credit(zeros, torch.ones_like(zeros))["thinker"], zeros)


def test_credit_and_blame_are_opposite():
    # Turning the verdicts turns the shaped rewards, with λ = μ.
    outcome, t, s = outcomes(9, 4, seed=16), shares(9, 4, seed=17), shares(9, 4, seed=18)
    right, wrong = self_evaluated_credit(outcome, t, s), self_evaluated_credit(-outcome, t, s)
    for role in ("thinker", "solver"):
        same(right[role], -wrong[role])


def test_roles_are_symmetric():
    # Renaming the roles (t0 -> 1 - s0, s0 -> 1 - t0) swaps their rewards.
    outcome, t, s = outcomes(9, 4, seed=19), shares(9, 4, seed=20), shares(9, 4, seed=21)
    credit, renamed = self_evaluated_credit(outcome, t, s), self_evaluated_credit(outcome, 1 - s, 1 - t)
    close(credit["thinker"], renamed["solver"].tolist())
    close(credit["solver"], renamed["thinker"].tolist())


# ---- Properties of every scheme: joint (P, G, K), solo (P, S), ratings (P, G, K) ----

SCHEMES = {
    "shared": lambda joint, solo, t, s: shared_credit(joint),
    "event": lambda joint, solo, t, s: counterfactual_credit(joint, solo),
    "difference": lambda joint, solo, t, s: counterfactual_credit(joint, solo, bonus="difference"),
    "paired": lambda joint, solo, t, s: counterfactual_credit(joint, solo, baseline="paired"),
    "sepo": lambda joint, solo, t, s: self_evaluated_credit(joint, t, s),
    "sepo, uncentered": lambda joint, solo, t, s: self_evaluated_credit(joint, t, s, center=False),
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())


def batch(answers=2, seed=0, **kwargs):
    shape = (8, 4, answers)
    return (
        outcomes(*shape, seed=seed, **kwargs),
        outcomes(8, 4, seed=seed + 1, **kwargs),
        shares(*shape, seed=seed + 2),
        shares(*shape, seed=seed + 3),
    )


@every_scheme
def test_one_answer_per_thought_may_lack_its_axis(scheme):
    joint, solo, t, s = batch(answers=1)
    with_axis, without = scheme(joint, solo, t, s), scheme(joint[..., 0], solo, t[..., 0], s[..., 0])
    assert with_axis["solver"].shape == (8, 4, 1)
    assert without["solver"].shape == (8, 4)
    same(with_axis["thinker"], without["thinker"])
    same(with_axis["solver"][..., 0], without["solver"])


@every_scheme
def test_permuting_rollouts_permutes_credit(scheme):
    joint, solo, t, s = batch()
    order, swap = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 0])
    base = scheme(joint, solo, t, s)
    moved = scheme(joint[:, order], solo[:, order], t[:, order], s[:, order])
    close(moved["thinker"], base["thinker"][:, order].tolist())
    close(moved["solver"], base["solver"][:, order].tolist())
    swapped = scheme(joint[..., swap], solo, t[..., swap], s[..., swap])
    close(swapped["thinker"], base["thinker"].tolist())
    close(swapped["solver"], base["solver"][..., swap].tolist())


@every_scheme
def test_permuting_prompts_permutes_credit_and_changes_nothing_else(scheme):
    args, order = batch(), torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    base, moved = scheme(*args), scheme(*(x[order] for x in args))
    same(moved["thinker"], base["thinker"][order])
    same(moved["solver"], base["solver"][order])


@every_scheme
def test_a_prompt_does_not_see_the_others(scheme):
    args = batch()
    base = scheme(*args)
    for index in range(8):  # alone
        alone = scheme(*(x[index : index + 1] for x in args))
        same(alone["thinker"], base["thinker"][index : index + 1])
        same(alone["solver"], base["solver"][index : index + 1])
    for x in args:  # beside an unscorable, unrated prompt
        x[3] = NAN
    beside, others = scheme(*args), [0, 1, 2, 4, 5, 6, 7]
    assert beside["thinker"][3].isnan().all() and beside["solver"][3].isnan().all()
    same(beside["thinker"][others], base["thinker"][others])
    same(beside["solver"][others], base["solver"][others])


@every_scheme
def test_unscorable_outcomes_stay_unscorable_and_no_others_become_so(scheme):
    joint, solo, t, s = batch(unscorable=0.5)
    solo = torch.where(solo.isnan(), 1.0, solo)
    credit = scheme(joint, solo, t, s)
    same(credit["solver"].isnan(), joint.isnan())
    same(credit["thinker"].isnan(), joint.isnan().all(dim=-1))
    assert credit["thinker"].isnan().any() and not credit["thinker"].isnan().all()


@every_scheme
def test_a_group_of_one(scheme):
    one = tensor([[1.0]])
    # R = 1, b = -1: the event's bonus is 1, the difference (1 + 1) / 2 too: 1.2. Ratings: alone, an episode is its
    # group's mean; against 0.5 the weight 0.8 gives 1 + 0.2·0.3.
    expected = {"event": 1.2, "difference": 1.2, "paired": 1.2, "sepo, uncentered": 1.06}
    name = next(key for key, value in SCHEMES.items() if value is scheme)
    credit = scheme(one, -one, tensor([[0.8]]), tensor([[0.8]]))
    close(credit["thinker"], [[expected.get(name, 1.0)]])


@every_scheme
def test_inputs_stay_and_dtype_is_kept(scheme):
    args = tuple(x.float() for x in batch())
    before = [x.clone() for x in args]
    credit = scheme(*args)
    assert {role: x.dtype for role, x in credit.items()} == {"thinker": torch.float32, "solver": torch.float32}
    for x, copy in zip(args, before, strict=True):
        same(x, copy)


# ---- Errors ----

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: shared_credit(torch.ones(3)), ValueError, r"`joint` must have shape .*got \(3,\)"),
        (lambda: shared_credit(torch.ones(1, 2, 3, 4)), ValueError, r"`joint` must have shape .*got \(1, 2, 3, 4\)"),
        (lambda: shared_credit([[1.0]]), TypeError, "`joint` must be a floating-point tensor.*got list"),
        (lambda: shared_credit(torch.ones(2, 2).long()), TypeError, "`joint` must be .*got torch.int64"),
        (lambda: counterfactual_credit(ONES.bool(), ONES), TypeError, "`joint` must be .*got torch.bool"),
        (lambda: counterfactual_credit(ONES, ONES.int()), TypeError, "`solo` must be .*got torch.int32"),
        (lambda: counterfactual_credit(ONES, [[1.0]]), TypeError, "`solo` must be .*got list"),
        (lambda: counterfactual_credit(ONES, torch.ones(3, 3)), ValueError, r"`solo` .*P = 2.*got \(3, 3\)"),
        (lambda: counterfactual_credit(ONES, torch.ones(2)), ValueError, r"`solo` must have shape.*got \(2,\)"),
        (lambda: counterfactual_credit(ONES, torch.ones(2, 0)), ValueError, r"`solo` .*S >= 1, got \(2, 0\)"),
        (lambda: counterfactual_credit(ONES, torch.ones(2, 3, 1)), ValueError, r"`solo` .*got \(2, 3, 1\)"),
        (
            lambda: counterfactual_credit(ONES, torch.ones(2, 4), baseline="paired"),
            ValueError,
            "`baseline='paired'` needs .*S = 4 and G = 3.*`num_solos`",
        ),
        (lambda: counterfactual_credit(ONES, ONES, baseline="mean"), ValueError, "`baseline` must be .*got 'mean'"),
        (lambda: counterfactual_credit(ONES, ONES, bonus="events"), ValueError, "`bonus` must be .*got 'events'"),
        (lambda: counterfactual_credit(ONES, ONES, bonus="x", coef=0), ValueError, "`bonus` must be .*got 'x'"),
        (lambda: counterfactual_credit(ONES, ONES, coef=-0.1), ValueError, "`coef` must be a finite .*got -0.1"),
        (lambda: counterfactual_credit(ONES, ONES, coef=NAN), ValueError, "`coef` must be .*got nan"),
        (lambda: counterfactual_credit(ONES, ONES, coef=math.inf), ValueError, "`coef` must be .*got inf"),
        (lambda: self_evaluated_credit(torch.ones(2), ONES, ONES), ValueError, r"`outcome` must .*got \(2,\)"),
        (lambda: self_evaluated_credit(ONES.int(), ONES, ONES), TypeError, "`outcome` must be .*got torch.int32"),
        (
            lambda: self_evaluated_credit(ONES, ONES.int(), ONES),
            TypeError,
            "`thinker_share` must be .*got torch.int32",
        ),
        (lambda: self_evaluated_credit(ONES, ONES, [[0.5]]), TypeError, "`solver_share` must be .*got list"),
        (
            lambda: self_evaluated_credit(ONES, ONES[:, :2], ONES),
            ValueError,
            r"`thinker_share` must have the shape of `outcome`, \(2, 3\), got \(2, 2\)",
        ),
        (
            lambda: self_evaluated_credit(ONES, ONES, ONES.unsqueeze(-1)),
            ValueError,
            r"`solver_share` must have the shape of `outcome`, \(2, 3\), got \(2, 3, 1\)",
        ),
        (lambda: self_evaluated_credit(ONES, ONES * 1.5, ONES), ValueError, r"`thinker_share` must lie .*got 1.5"),
        (lambda: self_evaluated_credit(ONES, ONES, ONES * -0.5), ValueError, r"`solver_share` must lie .*got -0.5"),
        (
            lambda: self_evaluated_credit(ONES, ONES, ONES, self_weight=1.25),
            ValueError,
            "`self_weight` must be between 0 and 1, got 1.25",
        ),
        (lambda: self_evaluated_credit(ONES, ONES, ONES, self_weight=-1), ValueError, "`self_weight` .*got -1"),
        (lambda: self_evaluated_credit(ONES, ONES, ONES, credit_coef=-2), ValueError, "`credit_coef` .*got -2"),
        (lambda: self_evaluated_credit(ONES, ONES, ONES, blame_coef=NAN), ValueError, "`blame_coef` .*got nan"),
    ],
)
def test_errors_name_the_argument_and_the_value(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_bounds_are_inclusive():
    for weight in (0.0, 1.0):
        for share in (0.0, 1.0):
            self_evaluated_credit(ONES, ONES * share, ONES * (1 - share), self_weight=weight)
