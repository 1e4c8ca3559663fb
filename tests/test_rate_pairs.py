"""Ratings in a team of two, which are as they were before there were larger ones; and prompts that do not fit."""

import zlib

import pytest
import torch
from test_rate import NAN, NINE, TEMPLATE, Rater, episodes_of, same

from ccpo import SelfEvaluatedCredit
from ccpo.ratings import parse_rating, rating_choices, rating_question
from ccpo.team.topology import Chain, ThinkSolve


def pairs_slowly(raters, topology, outcome, mode, expectation, num_solves):
    """The ratings of a team of two as they were before there were larger ones: the first role's share per role."""
    first, second = topology.role_names
    verdicts = ["correct" if value > 0 else "wrong" for value in outcome.tolist()]
    found = {}
    for roles in ((first, second),) if raters[first] is raters[second] else ((second,), (first,)):
        roles = [role for role in raters if role in roles]
        rater = raters[roles[0]]
        prompts = [
            f"{role}|{verdict}|{first}{m // num_solves}|{second}{m}"
            for role in roles
            for m, verdict in enumerate(verdicts)
        ]
        every = verdicts * len(roles)
        if mode == "generate":
            read = [parse_rating(rater.reply(prompt), verdict) for prompt, verdict in zip(prompts, every, strict=True)]
            share = torch.tensor([NAN if value is None else value for value in read])
        else:
            rows = []
            for prompt, verdict in zip(prompts, every, strict=True):
                prefix, choices = rating_choices(verdict)
                rows.append(rater.row(prompt, [prefix + choice for choice in choices]))
            probs = torch.stack(rows).softmax(dim=1)
            share = probs @ NINE if expectation else NINE[torch.multinomial(probs, 1)[:, 0]]
        for role, own in zip(roles, share.view(len(roles), -1), strict=True):
            found[role] = torch.where(outcome.isnan(), NAN, own)
    return found


def stated_pair(prompt):
    seed, outcome = zlib.crc32(prompt.encode()), prompt.split("|")[1]
    first = (seed % 9 + 1) / 10
    return ["?", f"{outcome}: {first}, {round(1 - first, 1)}", f'{{"outcome": "{outcome}", "pair": [0.7, 0.3]}}'][
        seed % 3
    ]


@pytest.mark.parametrize("topology", [ThinkSolve(), Chain(["planner", "writer"])], ids=["think_solve", "chain"])
@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize(("mode", "expectation"), [("generate", False), ("constrained", False), ("constrained", True)])
def test_two_roles_to_the_bit(topology, one, mode, expectation):
    first, second = topology.role_names
    for seed, num_solves in enumerate((1, 2, 3)):
        raters = {second: Rater(stated_pair), first: Rater(stated_pair)}
        raters = dict.fromkeys(raters, raters[first]) if one else raters
        outcome = torch.tensor([1.0, -1.0, NAN, -1.0, 1.0, 1.0])[: 2 * num_solves]
        template = f"{{role}}|{{outcome}}|{{{first}}}|{{{second}}}" if seed else "{role}|{outcome}|{thought}|{answer}"
        credit = SelfEvaluatedCredit(rating_mode=mode, rating_expectation=expectation, rating_prompt=template)
        torch.manual_seed(seed)
        shares = credit.rate(raters, episodes_of(topology, branches=(1, num_solves)), outcome)
        after = torch.rand(1)
        torch.manual_seed(seed)
        expected = pairs_slowly(raters, topology, outcome, mode, expectation, num_solves)
        same(torch.rand(1), after)  # the same draws, no more
        for i, role in enumerate((first, second)):
            same(shares[:, i, 0], expected[role])
            same(shares[:, i, 1], 1 - expected[role])


def test_an_engine_draws_a_pair():
    class Engine(Rater):
        draws_choices = True

        def choose(self, prompts, prefixes, choices):
            self.calls.append((prompts, prefixes, choices))
            return [i % 9 for i in range(len(prompts))]

    topology, rater = Chain(["planner", "writer"]), Engine()
    credit = SelfEvaluatedCredit(rating_mode="constrained", rating_prompt="{role}{writer}")
    outcome = torch.tensor([1.0, -1.0])
    shares = credit.rate({"writer": rater, "planner": rater}, episodes_of(topology), outcome)
    prompts = ["writerwriter0", "writerwriter1", "plannerwriter0", "plannerwriter1"]
    prefixes = [rating_choices(verdict)[0] for verdict in ("correct", "wrong")] * 2
    assert rater.calls == [(prompts, prefixes, rating_choices("wrong")[1])]
    torch.testing.assert_close(shares[..., 0], torch.tensor([[0.7, 0.9], [0.6, 0.8]]))


def test_a_chain_of_two_is_asked_the_pair():
    topology, rater = Chain(["planner", "writer"]), Rater(lambda _: '{"outcome": "correct", "pair": [0.7, 0.3]}')
    shares = SelfEvaluatedCredit().rate({"writer": rater, "planner": rater}, episodes_of(topology), torch.ones(2))
    texts = {"planner": "planner1", "writer": "writer1"}
    assert rater.calls[0][3] == rating_question("planner", "problem 1", texts, "correct")
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.3]).expand(2, 2, 2))


# ---- Prompts that do not fit ----


@pytest.mark.parametrize("template", [None, "{role}|{outcome}|{problem}|{thought}|{answer}", "{problem}{transcript}"])
def test_prompts_of_two_roles_are_cut_to_the_context_and_keep_the_box(template):
    credit = SelfEvaluatedCredit(rating_prompt=template, rating_max_tokens=100)
    texts = {"thinker": "t" * 50_000, "solver": "x" * 50_000 + r" \boxed{7}"}
    for context in (None, 4096):
        prompt = credit._rating_prompt("solver", "p" * 50_000, texts, "wrong", context)
        assert r"\boxed{7}" in prompt and "…" in prompt
        assert len(prompt) < 50_000 and (context is None or len(prompt) + 100 <= context)
        question = len(credit._rating_prompt("solver", "", dict.fromkeys(texts, ""), "wrong", None))
        room = 4096 - 100 - question - 64
        most = (12_000, 12_000, 16_000) if context is None else (room // 4, room // 4, room // 2)
        fixed = credit._rating_prompt("solver", "", dict.fromkeys(texts, ""), "wrong", None)
        kept = [prompt.count(letter) - fixed.count(letter) + 1 for letter in "pt"]
        x = prompt.count("x") - fixed.count("x") + 1 + len(r" \boxed{7}") - 1
        assert (*kept, x) == most
    short = credit._rating_prompt("solver", "p", {"thinker": "t", "solver": "a"}, "wrong", 4096)
    assert "…" not in short


@pytest.mark.parametrize("n", [3, 4, 9, 80])
@pytest.mark.parametrize("mode", ["generate", "constrained"])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_prompts_of_n_roles_are_cut_to_the_context_and_keep_the_box(n, mode, template):
    """The last text has two parts of the room, problem and other texts one each."""
    credit = SelfEvaluatedCredit(rating_prompt=template, rating_mode=mode)
    names = [f"r{i}" for i in range(n)]
    texts = dict.fromkeys(names, "~" * 20_000) | {names[-1]: "^" * 20_000 + r" \boxed{7}"}
    prompt = [{"role": "user", "content": "@" * 20_000}]
    for context in (8192, None):
        message = credit._rating_prompt(names[0], prompt, texts, "wrong", context)
        text = message[0]["content"]
        assert r"\boxed{7}" in text and text.count("…") >= n + 1
        least = text.count("~") / (n - 1)
        if context is None:
            assert (text.count("@"), least, text.count("^")) == (11_999, 11_999, 16_000 - 1 - len(r" \boxed{7}"))
            continue
        reply = credit._reply_tokens(tuple(names))
        assert len(text) + reply <= context and len(text) + reply > context - 64 - n - 3
        assert abs(text.count("@") - least) <= 1 and abs(text.count("^") + 11 - 2 * least) <= 3
    if n == 80:  # no room at all: a mark for each
        text = credit._rating_prompt(names[0], prompt, texts, "wrong", 64)[0]["content"]
        assert text.count("…") >= n + 1 and not set("~@^") & set(text)
    longest = (
        f'{{"outcome": "correct", "shares": {{{", ".join(f"{chr(34)}{name}{chr(34)}: 0.5" for name in names)}}}}}'
    )
    assert credit._reply_tokens(tuple(names)) == (512 if mode == "generate" else max(64, len(longest)))
