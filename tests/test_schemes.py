"""The table of schemes and estimators: what is refused, with which reason, and that the docs have it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ccpo import (
    AnswerCritiqueRewrite,
    Chain,
    ContextualCredit,
    CounterfactualCredit,
    CrossImprovementCredit,
    MathVerifier,
    SelfEvaluatedCredit,
    SharedCredit,
    Solo,
    ThinkSolve,
    Vote,
    VoteCredit,
)
from ccpo.credit import counterfactual_credit
from ccpo.credit.advantages import estimate_advantages
from ccpo.rewards.schemes import (
    ESTIMATORS,
    SCHEMES,
    TABLE,
    check_scheme,
    check_siblings,
    check_sum,
    table_of_schemes,
)
from ccpo.training.credit_checks import announce_placebos

ROOT = Path(__file__).parents[1]
TEAMS = {"vote": Vote(3), "dacr": AnswerCritiqueRewrite()}  # of the schemes that are for one team


def arguments(**values):
    defaults = {"advantage_estimator": "group", "scale_rewards": "none", "removal": "prompt", "num_generations": 4}
    defaults |= {"multi_objective_aggregation": "sum_then_normalize"}
    return SimpleNamespace(**defaults | values)


class AdvantagesOfOnesOwn(SharedCredit):
    gives_advantages = True  # compared in a way of its own


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", TABLE)
def test_what_is_not_in_the_table_is_refused_with_its_reason(name, estimator):
    scheme, _, refused = TABLE[name]
    args, topology = arguments(advantage_estimator=estimator), TEAMS.get(name, ThinkSolve())
    if estimator not in refused:
        check_scheme(scheme(MathVerifier()), topology, args)
        return
    with pytest.raises(
        ValueError, match=re.escape(f"`advantage_estimator='{estimator}'` does not work with")
    ) as error:
        check_scheme(scheme(MathVerifier()), topology, args)
    assert refused[estimator] in str(error.value)


def test_the_docs_have_the_table():
    assert table_of_schemes() in (ROOT / "docs" / "teams.md").read_text()
    assert set(SCHEMES) == set(TABLE)


@pytest.mark.parametrize(
    ("credit", "topology", "message"),
    [
        (
            CounterfactualCredit,
            Vote(3),
            r"it works with teams that are a chain of several roles, .* \['voter_1', .*\(vote\)",
        ),
        (CounterfactualCredit, Solo(), r"a chain of several roles"),
        (ContextualCredit, AnswerCritiqueRewrite(), "a chain of several roles"),
        (SelfEvaluatedCredit, Vote(3), "a chain of several roles"),
        (VoteCredit, ThinkSolve(), "it works with teams with `answer='vote'`"),
        (CrossImprovementCredit, Vote(2), "it works with answer_critique_rewrite"),
        (
            lambda: CounterfactualCredit(history=True),
            Chain(["a1", "b1", "c1"]),
            r"`history` works only in teams of two roles, .* has 3",
        ),
    ],
)
def test_a_scheme_for_another_team(credit, topology, message):
    with pytest.raises(ValueError, match=f"cannot divide credit in this `topology`: .*{message}"):
        check_scheme(credit(), topology, arguments())


def test_a_vote_needs_an_outcome_function_that_can_compare():
    def by_text(prompts, completions, **kwargs):
        return [1.0] * len(completions)

    for credit in (VoteCredit(by_text), SharedCredit(by_text)):
        with pytest.raises(ValueError, match=r"`outcome` of a vote must have .* 'by_text' has no `extract`"):
            check_scheme(credit, Vote(3), arguments())


def test_a_removal_estimator_needs_a_chain():
    with pytest.raises(ValueError, match="`advantage_estimator='counterfactual'` needs a chain of several roles"):
        check_scheme(SharedCredit(), Vote(3), arguments(advantage_estimator="counterfactual"))


def test_advantages_are_not_scaled_nor_summed_with_rewards():
    with pytest.raises(ValueError, match="`scale_rewards='group'` does not work with `contextual_credit`"):
        check_scheme(ContextualCredit(), ThinkSolve(), arguments(scale_rewards="group"))
    with pytest.raises(ValueError, match="`multi_objective_aggregation='normalize_then_sum'` does not work with"):
        settings = arguments(multi_objective_aggregation="normalize_then_sum")
        check_scheme(ContextualCredit(), ThinkSolve(), settings)
    check_sum([ContextualCredit(), ContextualCredit()])
    check_sum([SharedCredit(), CounterfactualCredit()])
    with pytest.raises(
        ValueError, match="`reward_funcs` has functions that give rewards and functions that give finished advantages"
    ):
        check_sum([ContextualCredit(), SharedCredit()])


def test_history_is_no_part_of_a_removal_estimator():
    with pytest.raises(ValueError, match="'counterfactual'` does not work with `history` of `counterfactual_credit`"):
        settings = arguments(advantage_estimator="counterfactual")
        check_scheme(CounterfactualCredit(history=True), ThinkSolve(), settings)


def test_a_scheme_of_pairs_needs_one_text_of_each_role():
    branches = AnswerCritiqueRewrite().branches(2)
    with pytest.raises(
        ValueError, match=r"`cross_improvement_credit` works only if each text .* are \{'rewrite_b': 2\}"
    ):
        check_scheme(CrossImprovementCredit(), AnswerCritiqueRewrite(), arguments(), branches)


def test_contextual_credit_trains_every_agent_or_is_refused():
    both, credit = ("thinker", "solver"), ContextualCredit()
    check_siblings(credit, ThinkSolve(), (1, 2), 4, both)
    check_siblings(credit, ThinkSolve(), (1, 1), 4, ("thinker",))
    check_siblings(SharedCredit(), ThinkSolve(), (1, 1), 4, both)
    check_siblings(AdvantagesOfOnesOwn(), Vote(3), (1, 1, 1), 4, Vote(3).agents)
    with pytest.raises(ValueError, match=r"\['solver'\] is the only one: .* never be trained. Set `num_solves` >= 2"):
        check_siblings(credit, ThinkSolve(), (1, 1), 4, both)
    chain = Chain(["first", "second", "third"])
    with pytest.raises(
        ValueError, match=r"agent 'second' would never be trained. Set `branches` >= 2 of role 'second'"
    ):
        check_siblings(credit, chain, (1, 1, 2), 4, chain.agents)


@pytest.mark.parametrize(
    ("credit", "branches", "settings", "expected"),
    [
        (CounterfactualCredit(), (1, 1), {}, {"thinker": "1.1 where"}),
        (CounterfactualCredit(), (1, 1), {"scale_rewards": "group"}, {"thinker": "1: the 1.1 is divided out"}),
        (
            CounterfactualCredit(),
            (1, 1),
            {"scale_rewards": "batch"},
            {"thinker": "1.1 where .* by the standard deviation of the batch"},
        ),
        (CounterfactualCredit(), (1, 2), {}, {}),
        (CounterfactualCredit(bonus="difference"), (1, 2), {}, {"thinker": "1.1"}),
        (CounterfactualCredit(bonus="difference", coef=0.5), (1, 1), {}, {"thinker": "1.25"}),
        (CounterfactualCredit(coef=0), (1, 1), {}, {}),
        (CounterfactualCredit(baseline="paired"), (1, 1), {}, {}),
        (CounterfactualCredit(), (1, 1), {"advantage_estimator": "reinforce++"}, {}),
        (
            CounterfactualCredit(),
            (1, 1),
            {"advantage_estimator": "reinforce++-baseline"},
            {"thinker": "1.1 where .* by the standard deviation of the batch"},
        ),
        (CounterfactualCredit(), (1, 1), {"removal": "context"}, {"thinker": "1.1 where"}),
        (CounterfactualCredit(history=True), (1, 1), {}, {"thinker": "one that", "solver": "one that"}),
        (CounterfactualCredit(history=True), (1, 2), {}, {}),
        (SharedCredit(), (1, 1), {}, {}),
        (SelfEvaluatedCredit(), (1, 1), {}, {}),
    ],
)
def test_placebos_of_think_solve(credit, branches, settings, expected):
    found = credit.find_placebos(ThinkSolve(), branches, arguments(**settings))
    assert found.keys() == expected.keys()
    assert all(re.match(words, found[role]) for role, words in expected.items())


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("bonus", ["event", "difference"])
def test_the_factor_that_is_announced_is_the_factor(bonus, scale):
    """CCPO's advantages over shared credit's, by TRL's three ways of scaling; (P, G) = (3, 4)."""
    joint = torch.tensor([[1.0, -1, 1, -1], [1, 1, 1, -1], [-1, -1, -1, 1]])
    solo = torch.tensor([[1.0, 1, 1, -1], [-1, -1, -1, -1], [1, -1, 1, 1]])
    credit = CounterfactualCredit(bonus=bonus)
    rewards = counterfactual_credit(joint, solo, bonus=bonus)["thinker"]
    ratio = estimate_advantages(rewards, "group", scale_rewards=scale) / estimate_advantages(
        joint, "group", scale_rewards=scale
    )
    said = credit.find_placebos(ThinkSolve(), (1, 1), arguments(scale_rewards=scale))["thinker"]
    if scale == "batch":  # the factor of the rewards, over one number for the batch
        ratio = ratio * rewards.std() / joint.std()
    factor = float(re.match(r"[\d.]+", said)[0])
    torch.testing.assert_close(ratio, torch.full_like(ratio, factor), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "trained", "own", "factor"),
    [
        ({}, ("thinker", "solver"), (), "thinker: 1.1 where"),
        ({"scale_rewards": "group"}, ("thinker",), (), "thinker: 1: the 1.1 is divided out"),
        ({"scale_rewards": "group"}, ("thinker",), ("thinker",), "thinker: 1.1 where"),  # the std is of a sum
        ({"skip_uninformative_solos": True}, ("thinker",), (), "thinker: 1)"),
        ({}, ("solver",), (), None),
    ],
)
def test_every_run_announces_the_placebos_of_whom_it_trains(settings, trained, own, factor, caplog):
    credit, args = CounterfactualCredit(), arguments(num_solves=1, **{"skip_uninformative_solos": False} | settings)
    for _ in range(2):
        announce_placebos([credit], ThinkSolve(), args, trained, own)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if factor is None else 2) and all(f"advantages: {factor}" in text for text in said)


def test_in_its_context_a_later_role_is_no_placebo():
    chain = Chain(["first", "second", "third"])
    assert set(CounterfactualCredit().find_placebos(chain, (1, 1, 1), arguments())) == {"first", "second"}
    assert set(CounterfactualCredit().find_placebos(chain, (1, 1, 1), arguments(removal="context"))) == {"first"}
