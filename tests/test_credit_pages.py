"""The numbers on the pages of docs/credit/ against the functions, and the factors of its table of identities."""

import itertools
import math
import re
import statistics
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from ccpo.credit import (
    HistoryNormalizer,
    chain_counterfactual_credit,
    chain_self_evaluated_credit,
    contextual_credit,
    counterfactual_credit,
    cross_improvement_credit,
    removal_baseline,
    robust_location,
    shared_credit,
    text_values,
    vote_credit,
    vote_outcome,
)
from ccpo.credit.advantages import EPS, estimate_advantages, within_group_correlation
from ccpo.rewards import (
    ContextualCredit,
    CounterfactualCredit,
    CrossImprovementCredit,
    SharedCredit,
    VoteCredit,
)
from ccpo.team.topology import AnswerCritiqueRewrite, ThinkSolve, Vote, make_topology

PAGES = Path(__file__).parents[1] / "docs" / "credit"


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def outcomes(*shape, seed=0):
    """Random outcomes in {-1, +1}, each group with both."""
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    values[:, 0], values[:, 1] = 1, -1
    return values


def close(actual, expected, places=3):
    """As far as the page says it."""
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=0.51 * 10**-places)


def tables(page: str) -> list[list[list[str]]]:
    """The page's tables: rows of cells, the heads first."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", (PAGES / page).read_text(), re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in block.splitlines()]
        found.append([head, *rows])
    return found


def numbers(cell: str) -> list[float]:
    """Those of a cell, the results of what is worked out there: `1 - 1 = 0, 3/2` is 0 and 1.5."""
    return [float(Fraction(part.split("=")[-1].strip())) for part in cell.split(",")]


@pytest.mark.parametrize("page", ["c3", "chains", "dacr", "history", "vote"])
def test_the_teams_of_the_recipes(page):
    """Each page's recipe draws a team, of the kind that the page is about; that of votes draws one of its own too."""
    recipes = re.findall(r"^```yaml\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    team, *own = (make_topology(yaml.safe_load(recipe)["topology"]) for recipe in recipes)
    assert [(other.answer, other.agents) for other in own] == ([("vote", ("one", "two"))] if page == "vote" else [])
    assert team.is_chain == (page in ("c3", "chains", "history"))
    assert team.kind == {"vote": "vote", "dacr": "answer_critique_rewrite", "chains": "chain"}.get(page, "think_solve")


# ---- C3 ----


def test_c3_by_hand():
    rows = tables("c3.md")[0][1:]
    outcome = tensor([[1, 1, 1, -1, -1, -1]])
    thoughts, answers = contextual_credit(outcome, branches=(1, 2))
    shared = estimate_advantages(outcome, "group")
    for i, (number, v, thought, own, group) in enumerate(rows):
        assert int(number) == i + 1
        close(text_values(outcome, branches=(1, 2))[0][0, i], numbers(v)[0])
        close(thoughts[0, i], numbers(thought)[0])
        close(answers[0, 2 * i : 2 * i + 2], numbers(own))
        close(shared[0, 2 * i : 2 * i + 2], numbers(group))
    assert within_group_correlation(answers, outcome) == pytest.approx(1 / math.sqrt(3))
    assert "1/√3 = 0.577" in (PAGES / "c3.md").read_text() and f"{1 / math.sqrt(3):.3f}" == "0.577"


def test_c3_splits_the_distance_from_the_mean():
    """R - m = (R - v) + (v - m); C3 gives the last role K/(K - 1) times the first of the two."""
    outcome = outcomes(5, 12, seed=1)
    v = text_values(outcome, branches=(1, 3))[0]
    own = outcome - v.repeat_interleave(3, dim=1)
    close(contextual_credit(outcome, branches=(1, 3))[1], 3 / 2 * own, places=9)
    close(contextual_credit(outcome, branches=(1, 3))[0], 4 / 3 * (v - v.mean(dim=1, keepdim=True)), places=9)
    by_hand = tensor([[1, 1, 1, -1, -1, -1]])
    close(by_hand - text_values(by_hand, branches=(1, 2))[0].repeat_interleave(2, dim=1), [[0, 0, 1, -1, 0, 0]])


# ---- Votes ----


def test_votes_by_hand():
    for case, outcome, delta, _ in tables("vote.md")[0][1:]:
        clusters = torch.tensor([[["CWV".index(letter) for letter in case]]])
        own = tensor([[[float(letter == "C") for letter in case]]])
        close(vote_outcome(own, clusters), [[numbers(outcome)[0]]], places=9)
        for scale, values in ((1, own), (2, 2 * own - 1)):
            expected = [[[scale * x for x in numbers(delta)]]]
            close(vote_credit(values, clusters, mode="marginal"), expected, places=9)


def test_signal_and_noise_of_votes_by_enumeration():
    """Voter 1 against the outcome, over all 64 votes of three voters with a right and three wrong answers."""
    rows = tables("vote.md")[1][1:]
    assert [float(row[0]) for row in rows] == [0.3, 0.5, 0.7]
    votes = list(itertools.product(range(4), repeat=3))
    clusters = torch.tensor([votes])
    own = torch.where(clusters == 0, 1.0, -1.0).double()
    credits = {
        "R": vote_outcome(own, clusters)[0].tolist(),
        "Delta": vote_credit(own, clusters, mode="marginal")[0, :, 0],
    }
    credits["Delta"] = credits["Delta"].tolist()
    for row in rows:
        p, found = float(row[0]), {}
        weight = [math.prod(p if answer == 0 else (1 - p) / 3 for answer in vote) for vote in votes]
        assert sum(weight) == pytest.approx(1)
        for name, credit in credits.items():
            cases = []
            for right in (True, False):
                there = [(w, x) for w, x, vote in zip(weight, credit, votes, strict=True) if (vote[0] == 0) == right]
                total = sum(w for w, _ in there)
                center = sum(w * x for w, x in there) / total
                cases.append((total, center, sum(w * (x - center) ** 2 for w, x in there)))
            found[name] = cases[0][1] - cases[1][1], cases[0][2] + cases[1][2]
        (signal, noise), (signal_of_delta, noise_of_delta) = found["R"], found["Delta"]
        assert signal == pytest.approx(signal_of_delta, rel=1e-12)
        shown = [f"{x:.3f}" for x in (signal, signal_of_delta, noise, noise_of_delta)]
        assert row[1:] == [*shown, f"{noise / noise_of_delta:.2f}"]


# ---- DACR ----


def test_dacr_by_hand():
    head, total, segment = tables("dacr.md")[0]
    answers, rewrites = tensor([[[-1, 1]]]), tensor([[[1, -1]]])
    for mode, row in (("total", total), ("segment", segment)):
        assert row[0] == f'`"{mode}"`'
        credit = cross_improvement_credit(answers, rewrites, gamma=0.5, mode=mode)
        assert {role: x.item() for role, x in credit.items()} == dict(
            zip(head[1:], (numbers(cell)[0] for cell in row[1:]), strict=True)
        )


@pytest.mark.parametrize("gamma", [0, 0.5, 1])
def test_dacr_is_a_mix_of_ones_own_rewrite_and_the_team(gamma):
    answers, rewrites = outcomes(4, 6, 2, seed=1), outcomes(4, 6, 2, seed=2)
    team = rewrites.mean(dim=-1)
    credit = cross_improvement_credit(answers, rewrites, gamma=gamma)
    for text, (me, partner) in itertools.product(("answer", "critique", "rewrite"), ((0, 1), (1, 0))):
        expected = (1 - gamma) * rewrites[..., me] + gamma * (2 * team - answers[..., partner])
        close(credit[f"{text}_{'ab'[me]}"], expected, places=9)


# ---- History ----


def test_history_by_hand():
    normalizer = HistoryNormalizer(decay=0.5, min_samples=4)
    for row in tables("history.md")[0][1:]:
        joint, solo, b, delta, reward = (
            [float(Fraction(x.strip(","))) for x in cell.split(", ")[0].split()] for cell in row[1:]
        )
        joint, solo = (2 * tensor([x]) - 1 for x in (joint, solo))
        close(removal_baseline(solo, 4)[0, :1], [2 * b[0] - 1])
        close((joint - removal_baseline(solo, 4))[0] / 2, delta)
        close(normalizer.pair(joint, removal_baseline(solo, 4), solo)[0][0], reward)
    assert normalizer.state_dict()["delta"]["mean"] == 1 / 4
    assert normalizer.state_dict()["delta"]["var"] == 7 / 32
    text = (PAGES / "history.md").read_text()
    for said, value in (
        ("tanh(1.5) = 0.905", math.tanh(1.5)),
        ("tanh(-0.5) = -0.462", math.tanh(-0.5)),
        ("sigmoid(0.25 / 0.5) = 0.622", 1 / (1 + math.exp(-0.5))),
        ("(0.905 + 0.462) / 2 = 0.684", (math.tanh(1.5) - math.tanh(-0.5)) / 2),
    ):
        assert said in text and said.endswith(f"{value:.3f}")


# ---- Chains ----


def test_chains_by_hand():
    outcome, solved = tensor([[1, -1, 1, -1]]), tensor([[[1], [-1]]])  # one pass without the critic for each plan
    b = {"context": removal_baseline(solved, 4), "prompt": removal_baseline(solved.flatten(1), 4)}
    found = {}
    for removal, baseline in b.items():
        rewards = chain_counterfactual_credit(outcome, [None, baseline], branches=(1, 2, 1))[1]
        found[removal] = estimate_advantages(rewards, "group")
    for m, (_, v, *cells) in enumerate(tables("chains.md")[1][1:]):
        assert numbers(v)[0] == outcome[0, m]
        for removal, (base, bonus, advantage) in zip(("context", "prompt"), (cells[:3], cells[3:]), strict=True):
            close(b[removal][0, m], numbers(base)[0])
            close(found[removal][0, m], numbers(advantage)[0])
            assert numbers(v)[0] + 0.2 * numbers(bonus)[0] == pytest.approx(numbers(advantage)[0])
    assert within_group_correlation(found["prompt"], outcome) == pytest.approx(1)
    correlation = within_group_correlation(found["context"], outcome)
    assert correlation == pytest.approx(4.4 / (2 * math.sqrt(4.88))) and f"{correlation:.3f}" == "0.996"
    assert "4.4 / (2 √4.88) = 0.996" in (PAGES / "chains.md").read_text()


def test_chains_of_sepo_by_hand():
    nan = float("nan")
    shares = tensor([[[[0.8, 0.2, 0.2], [0.1, nan, 0.9], [0.3, 0.3, 0.4]]]])
    credit = chain_self_evaluated_credit(
        tensor([[1]]), shares, branches=(1, 1, 1), self_weight=0.5, credit_coef=1, center=False
    )
    close(torch.cat(credit, dim=1) - 1 + 1 / 3, [[0.444, 0.278, 0.278]])
    assert "s = (0.6, 0.375, 0.375), Σ s = 1.35, w = (0.444, 0.278, 0.278)" in (PAGES / "chains.md").read_text()


@pytest.mark.parametrize("bonus", ["event", "difference"])
@pytest.mark.parametrize("coef", [0.2, 3.0])
def test_one_baseline_for_a_prompt_reorders_nothing(bonus, coef):
    """And one for each context does: both for the second of three roles, four answers to each text."""
    outcome, passes = outcomes(40, 2 * 3 * 4, seed=3), outcomes(40, 2, 5, seed=4)
    v = text_values(outcome, branches=(1, 3, 4))[1]

    def reordered(b):
        r = chain_counterfactual_credit(outcome, [None, b], branches=(1, 3, 4), bonus=bonus, coef=coef)[1]
        above = v.unsqueeze(2) > v.unsqueeze(1)  # (P, text, other)
        return (above & (r.unsqueeze(2) <= r.unsqueeze(1))).any().item()

    assert not reordered(removal_baseline(passes.flatten(1), 6))
    if coef == 3.0:
        assert reordered(removal_baseline(passes, 6))


# ---- ARE ----


def setting(alpha, c, blocks):
    return {"alpha": float(alpha.split()[0]), "c": float(c), "blocks": int(blocks)}


def weighted_groups(size, values, chance):
    """Groups of two values, which are right, their probabilities: all 2^8, or one of each kind in any order."""
    if size == 8:
        right = torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)))
        ways = torch.ones(len(right))
    else:
        rng = torch.Generator().manual_seed(size)
        right = torch.stack([(torch.randperm(size, generator=rng) < k).float() for k in range(size + 1)])
        ways = tensor([math.comb(size, k) for k in range(size + 1)])
    count = right.double().sum(dim=1)
    weight = ways * chance**count * (1 - chance) ** (size - count)
    assert weight.sum().item() == pytest.approx(1)
    return torch.where(right == 1, values[1], values[0]).double(), right.double(), weight


def test_are_by_hand_and_its_locations():
    reward = tensor([[-1, -1, 1, 1, 1]])
    close(estimate_advantages(reward, "robust"), [[-0.913, -0.913, 0.913, 0.913, 0.913]])
    assert f"{statistics.stdev(reward[0].tolist()):.3f}" == "1.095"
    groups, right, _ = weighted_groups(8, (-1.0, 1.0), 0.5)
    head, *rows = tables("are.md")[0]
    assert len(rows) == 6 and head[3:] == [str(k) for k in range(9)]
    for row in rows:
        expected = tensor([float(cell) for cell in row[3:]])[right.sum(dim=1).long()]
        close(robust_location(groups, **setting(*row[:3])), expected)


def test_are_biases():
    head, *rows = tables("are.md")[1]
    assert len(rows) == 14
    for *options, size, values, a, b, c, d, e in rows:
        values = [float(x) for x in values.split(",")]
        for chance, cell in zip((0.1, 0.3, 0.5, 0.7, 0.9), (a, b, c, d, e), strict=True):
            groups, _, weight = weighted_groups(int(size), values, chance)
            expected = values[0] + chance * (values[1] - values[0])
            close(weight @ robust_location(groups, **setting(*options)) - expected, float(cell))


def test_what_are_does_to_a_policy_of_one_logit():
    """The step is the derivative of the log-probability of each draw; the mean's own is stock GRPO's."""
    head, *rows = tables("are.md")[2]
    assert len(rows) == 8
    for figure, *options, size, values, a, b, c, d, e in rows:
        values = [float(x) for x in values.split(",")]
        for chance, cell in zip((0.1, 0.3, 0.5, 0.7, 0.9), (a, b, c, d, e), strict=True):
            groups, right, weight = weighted_groups(int(size), values, chance)
            logit = tensor(chance).logit().requires_grad_()
            log_prob = torch.where(right == 1, logit.sigmoid().log(), (-logit).sigmoid().log())
            robust = estimate_advantages(groups, "robust", **setting(*options))
            stock = estimate_advantages(groups, "group", scale_rewards="group")
            if figure == "push":
                close(weight @ robust.mean(dim=1), float(cell))
                continue
            steps = [
                torch.autograd.grad(weight @ (advantage * log_prob).sum(dim=1), logit, retain_graph=True)[0]
                for advantage in (robust, stock)
            ]
            close(steps[0] / steps[1], float(cell))


# ---- Identities ----


def grpo(reward, **options):
    return estimate_advantages(reward, "group", **options)


def test_factors_of_the_table_of_identities():
    outcome, solo, coef = outcomes(9, 6, 1, seed=5), torch.full((9, 4), -1.0).double(), 0.3
    solo[3:6, :2], solo[6:] = 1, 1  # b = -1, 0 and 1
    leaves, several = outcome.flatten(1), outcomes(9, 6, 3, seed=6)
    shared = grpo(leaves)
    event = counterfactual_credit(leaves, solo, coef=coef)["thinker"]
    factor = tensor([1 + coef / 2] * 3 + [1] * 3 + [1 + coef / 2] * 3).unsqueeze(1)
    close(grpo(event), factor * shared, places=9)
    close(grpo(event, scale_rewards="group"), grpo(leaves, scale_rewards="group"), places=3)  # up to TRL's eps
    difference = counterfactual_credit(several, solo, coef=coef, bonus="difference")["thinker"]
    close(grpo(difference), (1 + coef / 2) * grpo(shared_credit(several)["thinker"]), places=9)
    close(contextual_credit(leaves, branches=(1, 1))[0], 6 / 5 * shared, places=9)
    voter = vote_credit(outcome, torch.zeros(9, 6, 1, dtype=torch.long), coef=coef)
    close(grpo(voter.flatten(1)), (1 + coef) * shared, places=9)
    robust = estimate_advantages(leaves, "robust", alpha=2, blocks=1)
    close(robust, grpo(leaves, scale_rewards="group"), places=5)
    sigma = tensor([[statistics.stdev(row)] for row in leaves.tolist()])
    close(robust, shared / (sigma + EPS), places=5)
    # Any scheme with its coefficient 0
    close(grpo(counterfactual_credit(leaves, solo, coef=0)["thinker"]), shared, places=9)
    close(grpo(vote_credit(outcome, torch.zeros(9, 6, 1, dtype=torch.long), coef=0).flatten(1)), shared, places=9)


def test_what_the_table_of_identities_says_is_announced():
    """`yes` in its column *said*, or `with K = 1`: what a run finds at its start."""
    chain, history = ThinkSolve(), CounterfactualCredit(history=True)
    cases = {  # setting -> scheme, team, branches, configuration
        "CCPO, K = 1, `event`": (CounterfactualCredit(), chain, (1, 1), {}),
        "CCPO, any K, `difference`": (CounterfactualCredit(bonus="difference"), chain, (1, 3), {}),
        "CCPO divided by the group's std, K = 1": (CounterfactualCredit(), chain, (1, 1), {"scale_rewards": "group"}),
        "CCPO with history, K = 1, Thinker": (history, chain, (1, 1), {}),
        "CCPO with history, any K, Solver": (history, chain, (1, 3), {}),
        "C3, first role": (ContextualCredit(), chain, (1, 2), {}),
        "one voter": (VoteCredit(), Vote(1), (1,), {}),
        "DACR, `total`, γ = 1": (CrossImprovementCredit(gamma=1), AnswerCritiqueRewrite(), (1,) * 6, {}),
        "ARE, α = 2, one block": (SharedCredit(), chain, (1, 1), {"advantage_estimator": "robust"}),
        "any scheme with its coefficient 0": (CounterfactualCredit(coef=0), chain, (1, 1), {}),
    }
    (head, *rows) = tables("identities.md")[1]
    assert head == ["setting", "factor", "said", "proof"] and [row[0] for row in rows] == list(cases)
    for setting, _, said, _ in rows:
        credit, team, branches, settings = cases[setting]
        args = SimpleNamespace(
            **{"advantage_estimator": "group", "scale_rewards": "none", "removal": "prompt"} | settings
        )
        found = credit.find_placebos(team, branches, args)
        assert bool(found) is said.startswith("yes"), setting
        assert ("without a number" in said) is (credit is history), setting
        if said.startswith("yes"):
            number = any(f"{1 + 0.2 / 2:g}" in factor for factor in found.values())
            assert number is not ("without a number" in said), setting
        if said.startswith("with K = 1"):
            assert "solver" in credit.find_placebos(team, (1, 1), args)


def test_factors_of_history():
    """The Thinker's with K = 1 one for each prompt, the Solver's with any K one for the batch."""
    solo = torch.full((9, 4), -1.0).double()
    solo[3:6, :2], solo[6:] = 1, 1
    for answers in (1, 3):
        normalizer = HistoryNormalizer(min_samples=1)
        normalizer.think_solve(outcomes(9, 6, answers, seed=7), solo)
        joint, state = outcomes(9, 6, answers, seed=8), normalizer.state_dict()
        credit = normalizer.think_solve(joint, solo)
        sigma = {name: math.sqrt(values["var"]) + 1e-6 for name, values in state.items() if values["count"]}
        g = 1 / (1 + math.exp(-state["delta"]["mean"] / sigma["delta"]))
        close(grpo(credit["solver"].flatten(1)), g / (2 * sigma["joint"]) * grpo(joint.flatten(1)), places=9)
        if answers == 1:
            b = (solo.mean(dim=1) + 1) / 2
            t_1, t_0 = (torch.tanh((right - b - state["delta"]["mean"]) / sigma["delta"]) for right in (1, 0))
            close(grpo(credit["thinker"]), ((t_1 - t_0) / 2).unsqueeze(1) * grpo(joint.flatten(1)), places=9)
            assert t_1[0] - t_0[0] != t_1[8] - t_0[8]


def test_a_group_for_each_context_is_c3_with_the_text_itself():
    outcome = outcomes(4, 12, seed=9)
    siblings = grpo(outcome.reshape(-1, 3)).reshape(4, 12)
    close(siblings, 2 / 3 * contextual_credit(outcome, branches=(1, 3))[1], places=9)
