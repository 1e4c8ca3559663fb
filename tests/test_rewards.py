"""The allocators as reward functions of TRL's own trainer, and on their own."""

import asyncio
import dataclasses
import functools
import math
import pickle

import pandas as pd
import pytest
import torch
from datasets import Dataset
from openai_server import transformers_serve
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from ccpo import (
    ContextualCredit,
    CounterfactualCredit,
    CreditAllocator,
    MathVerifier,
    OpenAIGenerator,
    Role,
    SelfEvaluatedCredit,
    SharedCredit,
    ThinkSolve,
    Topology,
    TransformersGenerator,
)
from ccpo.credit import counterfactual_credit, self_evaluated_credit
from ccpo.rewards import TeamOutcomes, credit_metrics, shares_metrics
from ccpo.team.prompts import build_thinker_messages

TOPOLOGY = ThinkSolve(solver_prompt="J {problem} {thought}", solo_prompt="A {problem}")


def lookup(table):
    """A partner that answers by a table from what it reads; it keeps what it was asked."""
    asked = []

    def partner(prompts, max_new_tokens=None):
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        asked.append(texts)
        return [next(answer for part, answer in table.items() if part in text) for text in texts]

    partner.asked = asked
    return partner


def by_word(prompts, completions, **kwargs):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [{"right": 1.0, "wrong": -1.0}.get(text) for text in texts]


PROBLEMS = ["p0", "p0", "p0", "p1", "p1", "p1"]
THOUGHTS = ["good", "bad", "good", "good", "odd", "bad"]
TABLE = {"J p0 good": "right", "J p0 bad": "wrong", "J p1 good": "right", "J p1 bad": "wrong", "odd": "?"} | {
    "A p0": "wrong",
    "A p1": "right",
}


@pytest.mark.parametrize("chat", [False, True])
def test_counterfactual_reward_of_a_single_thinker(chat):
    """p0: solos wrong, b = -1, a right answer was helped: 1.2. p1: solos right, b = 1, a wrong one was hurt: -1.2."""
    prompts = [[{"role": "user", "content": p}] for p in PROBLEMS] if chat else PROBLEMS
    thoughts = [[{"role": "assistant", "content": t}] for t in THOUGHTS] if chat else THOUGHTS
    logged, extra = {}, {}
    partner = lookup(TABLE)
    credit = CounterfactualCredit(by_word, partner=partner, topology=TOPOLOGY)
    rewards = credit(
        prompts=prompts,
        completions=thoughts,
        completion_ids=[[1]] * 6,
        solution=["x"] * 6,
        trainer_state=None,
        log_metric=logged.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert rewards == pytest.approx([1.2, -1.0, 1.2, 1.0, None, -1.2])
    assert len(partner.asked) == 1 and len(partner.asked[0]) == 12  # joint and solo in one call
    assert logged["credit/joint_accuracy"] == 3 / 5 and logged["credit/solo_accuracy"] == 0.5
    assert logged["credit/leak_rate"] == 0 and extra["joint_answer"][0] == "right" and len(extra["solo_answer"]) == 6


def test_problem_column_is_read_before_the_prompt():
    partner = lookup(TABLE)
    credit = SharedCredit(by_word, partner=partner, topology=TOPOLOGY)
    assert credit(prompts=["Plan for p0"], completions=["good"], problem=["p0"]) == [1.0]
    assert partner.asked == [["J p0 good"]]


def test_leak_guard_works_under_the_drop_in_too():
    partner = lookup({"": "right"})
    SharedCredit(by_word, partner=partner, topology=TOPOLOGY)(prompts=["p0"], completions=[r"use \boxed{42} now"])
    assert "42" not in partner.asked[0][0]


@pytest.mark.parametrize("chat", [False, True])
def test_asynchronous_partner_and_outcome(chat):
    """The same rewards as from plain ones, also where a loop runs already, as in a notebook."""

    class Partner:
        def __init__(self):
            self.plain = lookup(TABLE)

        async def __call__(self, prompts):
            await asyncio.sleep(0)
            return self.plain(prompts)

    async def judge(prompts, completions, **kwargs):
        await asyncio.sleep(0)
        return torch.tensor([math.nan if x is None else x for x in by_word(prompts, completions)])

    prompts = [[{"role": "user", "content": p}] for p in PROBLEMS] if chat else PROBLEMS
    thoughts = [[{"role": "assistant", "content": t}] for t in THOUGHTS] if chat else THOUGHTS
    ours = CounterfactualCredit(judge, partner=Partner(), topology=TOPOLOGY)
    plain = CounterfactualCredit(by_word, partner=lookup(TABLE), topology=TOPOLOGY)

    async def notebook():
        return ours(prompts=prompts, completions=thoughts)

    expected = plain(prompts=prompts, completions=thoughts)
    assert ours(prompts=prompts, completions=thoughts) == expected == asyncio.run(notebook())
    assert expected[0] == pytest.approx(1.2)


@pytest.mark.parametrize("mode", ["generate", "constrained"])
def test_asynchronous_raters(mode):
    class Rater:
        async def __call__(self, prompts, max_new_tokens=None):
            await asyncio.sleep(0)
            return ['{"outcome": "correct", "pair": [0.9, 0.1]}' if max_new_tokens else "right" for _ in prompts]

        async def score(self, prompts, choices):
            return torch.tensor([[0.0] + [-torch.inf] * 8] * len(prompts))

    credit = SelfEvaluatedCredit(
        by_word, rating_mode=mode, partner=Rater(), thinker_rater=Rater(), topology=TOPOLOGY, center=False
    )
    # All right, and the Thinker's share is 0.9 by both ratings: 1 + 0.2 (0.9 - 0.5).
    assert credit(prompts=["p0", "p0"], completions=["good", "bad"]) == pytest.approx([1.08, 1.08])


def test_answers_that_cannot_be_read_are_counted_and_said_once(caplog):
    logged = {}
    answers = {"p0": "So the work is done, and it all adds up to that.", "p1": r"\boxed{4}"}
    credit = SharedCredit(MathVerifier(), partner=lookup(answers), topology=TOPOLOGY)
    columns = {"solution": ["4", "4"], "log_metric": logged.__setitem__}
    credit(prompts=["p0", "p1"], completions=["good", "good"], problem=["p0", "p1"], **columns)
    assert logged["credit/no_answer_rate"] == 0.5 and "without an answer" not in caplog.text
    for _ in range(2):
        credit(prompts=["p0", "p0"], completions=["good", "bad"], problem=["p0", "p0"], **columns)
    assert logged["credit/no_answer_rate"] == 1 and logged["credit/joint_accuracy"] == 0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "In all 2 answers of a batch, `math_verifier` found no final answer" in said[0]
    other = SharedCredit(by_word, partner=lookup(TABLE), topology=TOPOLOGY)
    logged.clear()
    other(prompts=["p0"], completions=["good"], log_metric=logged.__setitem__)
    assert "credit/no_answer_rate" not in logged and "credit/joint_accuracy" in logged


def test_gathered_rows_are_credited_as_whole_groups():
    """What a process returns is its part of the credit of all rows, wherever a group's rows lie."""
    credit = CounterfactualCredit(by_word, partner=lookup(TABLE), topology=TOPOLOGY)
    joint, solo = [1.0, -1.0, 1.0, 1.0, math.nan, -1.0], [-1.0, -1.0, -1.0, 1.0, 1.0, -1.0]
    rows = [(problem, [r], b, None) for problem, r, b in zip(PROBLEMS, joint, solo, strict=True)]
    expected = counterfactual_credit(torch.tensor(joint).view(2, 3), torch.tensor(solo).view(2, 3))["thinker"]
    expected = [None if math.isnan(x) else x for x in expected.flatten().tolist()]
    assert credit._allocate_rows(rows, 0, 6) == pytest.approx(expected)
    order = (0, 3, 1, 4, 2, 5)
    mine = credit._allocate_rows([rows[i] for i in order], 2, 3)
    assert mine == pytest.approx([expected[i] for i in order[2:5]])


def test_ragged_groups_are_padded_with_nan():
    credit = SelfEvaluatedCredit(by_word)
    rated = [("a", 1.0, 0.9, 0.7), ("a", 1.0, 0.3, 0.1), ("b", -1.0, 0.5, 0.9)]  # the Thinker's share by each role
    rows = [(p, [r], None, [[[t, 1 - t], [s, 1 - s]]]) for p, r, t, s in rated]
    expected = self_evaluated_credit(
        torch.tensor([[1.0, 1.0]]), torch.tensor([[0.9, 0.3]]), torch.tensor([[0.7, 0.1]])
    )
    got = credit._allocate_rows(rows, 0, 3)
    assert got == pytest.approx([*expected["thinker"][0].tolist(), -1.0])


@pytest.mark.parametrize("scheme", ["shared", "ccpo", "sepo"])
def test_stock_trainer_learns_with_a_local_partner(scheme, model_dirs, make_config):
    """The real thing: TRL's GRPOTrainer, a frozen tiny Solver, the real verifier."""
    partner = TransformersGenerator(model_dirs["llama"], max_new_tokens=6)
    model = AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"])
    tokenizer = AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    even = lambda prompts, completions, **kwargs: [1.0 if len(c[-1]["content"]) % 2 else -1.0 for c in completions]  # noqa: E731
    credit = {
        "shared": lambda: SharedCredit(MathVerifier(), partner=partner),
        "ccpo": lambda: CounterfactualCredit(even, partner=partner),
        "sepo": lambda: SelfEvaluatedCredit(
            even,
            partner=partner,
            thinker_rater=TransformersGenerator(model, tokenizer),
            rating_mode="constrained",
            rating_prompt="{role} {outcome}",
        ),
    }[scheme]()
    problems = [f"{i}+1=" for i in range(4)]
    dataset = Dataset.from_dict(
        {
            "prompt": [build_thinker_messages([{"role": "user", "content": p}]) for p in problems],
            "problem": problems,
            "solution": [str(i + 1) for i in range(4)],
        }
    )
    trainer = GRPOTrainer(model, credit, make_config(GRPOConfig, max_steps=2), dataset, processing_class=tokenizer)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    row = trainer.state.log_history[0]
    assert f"rewards/{credit.__name__}/mean" in row and "credit/joint_accuracy" in row
    if scheme != "shared":
        assert any(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters())


def test_stock_trainer_learns_with_a_partner_over_http(model_dirs, make_config, tmp_path):
    """TRL's GRPOTrainer, and the Solver behind a real OpenAI-compatible server, `transformers serve`."""
    with transformers_serve(model_dirs["llama"], tmp_path / "serve.log") as url:
        partner = OpenAIGenerator(model_dirs["llama"], base_url=url, max_tokens=6)
        problems = [f"{i}+1=" for i in range(4)]
        prompts = [build_thinker_messages([{"role": "user", "content": p}]) for p in problems]
        dataset = Dataset.from_dict({"prompt": prompts, "problem": problems, "solution": ["1"] * 4})
        credit = CounterfactualCredit(MathVerifier(), partner=partner)
        args = make_config(GRPOConfig, max_steps=1, log_completions=True, num_completions_to_print=0)
        trainer = GRPOTrainer(model_dirs["qwen3"], credit, args, dataset)
        trainer.train()
    row = trainer.state.log_history[0]
    assert row["credit/joint_accuracy"] == 0 and row["rewards/counterfactual_credit/mean"] == -1
    table = pd.read_parquet(f"{args.output_dir}/completions/completions_00001.parquet")
    assert table["joint_answer"].str.len().gt(0).any() and len(table["solo_answer"]) == 4


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_stock_trainers_scaling_is_looked_at(scale, model_dirs, make_config, caplog):
    """Advantages are not divided by a std, and a placebo is announced with the factor of that scaling."""
    dataset = Dataset.from_dict({"prompt": ["1+1="] * 4, "problem": ["1+1="] * 4, "solution": ["2"] * 4})
    partner = {"partner": lambda prompts: [r"\boxed{2}", r"\boxed{3}"] * (len(prompts) // 2)}
    args = make_config(GRPOConfig, scale_rewards=scale)
    GRPOTrainer(model_dirs["qwen3"], CounterfactualCredit(MathVerifier(), **partner), args, dataset).train()
    (said,) = (record.getMessage() for record in caplog.records if "is shared credit up to" in record.getMessage())
    assert f"thinker: {'1: the 1.1 is divided out' if scale == 'group' else '1.1 where'}" in said
    trainer = GRPOTrainer(model_dirs["qwen3"], ContextualCredit(MathVerifier(), **partner), args, dataset)
    if scale == "none":
        trainer.train()
        return
    with pytest.raises(ValueError, match="`scale_rewards='group'` does not work with `contextual_credit`"):
        trainer.train()


def test_a_history_that_nobody_saves_is_refused():
    credit = CounterfactualCredit(by_word, history=True, partner=lambda prompts: ["right"] * len(prompts))
    with pytest.raises(ValueError, match=r"learns during a run \(`history`\), but TRL's GRPOTrainer does not save"):
        credit(prompts=["1"], completions=["a"], problem=["1"])


@pytest.mark.parametrize("chat", [False, True])
def test_plain_text_for_a_chat_model_is_warned_of_once(chat, model_dirs, make_config, caplog):
    """TRL's trainer trains the Thinker without a word: the reward function says so, whatever the partner is."""
    problems = [f"{i}+1=" for i in range(4)]
    prompts = [[{"role": "user", "content": problem}] for problem in problems] if chat else problems
    dataset = Dataset.from_dict({"prompt": prompts, "problem": problems, "solution": ["1"] * 4})
    credit = SharedCredit(MathVerifier(), partner=lambda prompts: [r"\boxed{1}"] * len(prompts))
    GRPOTrainer(model_dirs["qwen3"], credit, make_config(GRPOConfig), dataset).train()
    said = [
        r.getMessage() for r in caplog.records if "has a chat template, but was given plain texts" in r.getMessage()
    ]
    assert len(said) == (0 if chat else 1) and all(text.startswith("The thinker has") for text in said)


@pytest.mark.parametrize("cls", [SharedCredit, CounterfactualCredit, SelfEvaluatedCredit])
def test_allocators_pickle(cls):
    original = cls(MathVerifier())
    credit = pickle.loads(pickle.dumps(original))
    assert credit.__name__ == original.__name__ and isinstance(credit.outcome, MathVerifier)


def test_names_are_the_metric_keys():
    assert [c.__name__ for c in (SharedCredit(), CounterfactualCredit(), SelfEvaluatedCredit())] == [
        "shared_credit",
        "counterfactual_credit",
        "self_evaluated_credit",
    ]


def test_missing_solution_column_is_named():
    credit = CounterfactualCredit(MathVerifier(), partner=lookup(TABLE), topology=TOPOLOGY)
    with pytest.raises(ValueError, match="solution"):
        credit(prompts=["p0"], completions=["good"])


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: CounterfactualCredit(coef=-0.1), "`coef` must be a finite number >= 0, got -0.1"),
        (lambda: CounterfactualCredit(coef=math.inf), "`coef`.*inf"),
        (lambda: CounterfactualCredit(bonus="both"), "`bonus` must be 'event' or 'difference', got 'both'"),
        (lambda: CounterfactualCredit(baseline="none"), "`baseline` must be 'group' or 'paired', got 'none'"),
        (lambda: SelfEvaluatedCredit(self_weight=1.5), "`self_weight` must be between 0 and 1, got 1.5"),
        (lambda: SelfEvaluatedCredit(blame_coef=-1), "`blame_coef`.*-1"),
        (lambda: SelfEvaluatedCredit(credit_coef=-1), "`credit_coef`.*-1"),
        (
            lambda: SelfEvaluatedCredit(rating_mode="ask"),
            "`rating_mode` must be 'generate' or 'constrained', got 'ask'",
        ),
        (lambda: SelfEvaluatedCredit(rating_expectation=True), "`rating_expectation=True`.*constrained"),
        (
            lambda: SelfEvaluatedCredit(rating_max_tokens=0),
            "`rating_max_tokens` must be an integer of .*, got 0",
        ),
        (lambda: SelfEvaluatedCredit(rating_max_tokens=1.5), "`rating_max_tokens` must be an integer of .*, got 1.5"),
        (lambda: SelfEvaluatedCredit(center="no"), "`center` must be true or false, got 'no'"),
        (lambda: SelfEvaluatedCredit(thinker_rater="x"), "`thinker_rater` must be a generator .* got 'x'"),
        (
            lambda: SelfEvaluatedCredit(rating_prompt="{role} {problem}"),
            "`rating_prompt` must contain at least one of",
        ),
        (lambda: CounterfactualCredit(coef="0.2"), "`coef` must be a finite number >= 0, got '0.2'"),
        (lambda: CounterfactualCredit(coef=True), "`coef` must be a finite number >= 0, got True"),
    ],
)
def test_bad_settings_raise_at_once(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_bad_use_raises_with_the_remedy():
    with pytest.raises(ValueError, match="Pass `partner"):
        SharedCredit(by_word)(prompts=["p0"], completions=["good"])
    with pytest.raises(ValueError, match="Pass `thinker_rater`"):
        SelfEvaluatedCredit(by_word, partner=lookup(TABLE), topology=TOPOLOGY)(prompts=["p0"], completions=["good"])
    with pytest.raises(ValueError, match="needs outcomes of -1 .* returned 0.*2 \\* r - 1"):
        credit = CounterfactualCredit(lambda completions, **_: [0.0] * len(completions), partner=lookup(TABLE))
        credit.topology = TOPOLOGY
        credit(prompts=["p0"], completions=["good"])
    with pytest.raises(ValueError, match=r"`outcome` \(<lambda>\) returned 1 values for 2 completions"):
        SharedCredit(lambda **_: [1.0], partner=lookup(TABLE), topology=TOPOLOGY)(
            prompts=["p0", "p1"], completions=["good", "bad"]
        )
    with pytest.raises(ValueError, match="needs a generator with a method `score`"):
        rater = SelfEvaluatedCredit(by_word, rating_mode="constrained", rating_prompt="{role} {outcome}")
        rater._choose(lookup(TABLE), ["x"], ["correct"])
    with pytest.raises(NotImplementedError, match="CreditAllocator must define `allocate`"):
        CreditAllocator(by_word).allocate(torch.zeros(1, 1, 1))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"partner": "gpt2"}, "`partner` must be a generator, got 'gpt2'. Give one, e.g. TransformersGenerator"),
        ({"partners": {"solver": None}}, r"`partners\['solver'\]` must be a generator, got None. Give one"),
        ({"partners": [len]}, r"`partners` must map the roles \['solver'\] to generators, got \[<built-in"),
        ({"topology": "vote", "partner": len}, r"`shared_credit` cannot train the first role of this `topology`"),
        ({"topology": {"kind": "chain", "roles": ["a", "b"]}}, r"trains only the a here, so the roles \['b'\] need"),
    ],
)
def test_partners_that_are_none(given, match):
    with pytest.raises(ValueError, match=match):
        SharedCredit(by_word, **given)(prompts=["p0"], completions=["good"])


def test_problem_column_missing_is_said_once_and_must_be_text(caplog):
    credit = SharedCredit(by_word, partner=lookup(TABLE), topology=TOPOLOGY)
    for _ in range(2):
        credit(prompts=["p0"], completions=["good"])
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1 and "`problem`" in caplog.text
    with pytest.raises(TypeError, match="`problem` must hold texts, got 5"):
        credit(prompts=["p0"], completions=["good"], problem=[5])


def test_outcome_metrics_by_hand():
    joint = torch.tensor([[1.0, -1.0], [1.0, math.nan]])
    solo = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    metrics = credit_metrics(TeamOutcomes(ThinkSolve(), (1, 1), {"solver": joint}, without={"thinker": solo}))
    assert metrics == pytest.approx(
        {
            "credit/joint_accuracy": 2 / 3,
            "credit/unscorable_rate": 1 / 4,
            "credit/solo_accuracy": 0.5,
            "credit/help_rate": 1 / 3,
            "credit/hurt_rate": 0.0,
        }
    )
    thinker, solver = torch.tensor([[0.9, math.nan], [0.3, 0.5]]), torch.tensor([[0.9, 0.1], [0.7, 0.5]])
    pairs = [torch.stack([share, 1 - share], dim=-1) for share in (thinker, solver)]
    assert shares_metrics(joint, torch.stack(pairs, dim=-2), ("thinker", "solver")) == pytest.approx(
        {"rating/thinker_valid_rate": 2 / 3, "rating/solver_valid_rate": 1.0, "rating/agreement_rate": 0.5}
    )


def test_the_tree_of_a_mean_without_the_last_role_by_hand():
    """G = 4 texts of a, two of b below each; a alone gives the answer: a leaf has the outcome of the a above."""
    team = Topology((Role("a", judged=True), Role("b", ("a",), branches=2, judged=True)), "mean", ("a",))
    a, b = torch.tensor([[1.0, -1.0, math.nan, 1.0]]), torch.tensor([[1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0]])
    seen = TeamOutcomes(team, (1, 2), {"a": a, "b": b})
    assert_close = functools.partial(torch.testing.assert_close, equal_nan=True)
    assert_close(seen.team, torch.tensor([[1.0, 1.0, -1.0, -1.0, math.nan, math.nan, 1.0, 1.0]]))
    assert_close(seen.values["a"], a)
    assert_close(seen.values["b"], seen.team)
    expected = {"credit/joint_accuracy": 2 / 3, "credit/unscorable_rate": 1 / 4}
    assert credit_metrics(seen) == pytest.approx(expected)
    both = TeamOutcomes(dataclasses.replace(team, answer_roles=("a", "b")), (1, 2), {"a": a, "b": b})
    assert_close(both.team, torch.tensor([[1.0, 1.0, -1.0, 0.0, math.nan, math.nan, 0.0, 0.0]]))
    assert_close(both.values["a"], torch.tensor([[1.0, -0.5, math.nan, 0.0]]))
