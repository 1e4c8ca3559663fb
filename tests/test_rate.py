"""How episodes are rated by three roles: who is asked what, in which calls, and what comes of the replies."""

import asyncio
import json
import math
import re
import zlib

import pytest
import torch

from ccpo import SelfEvaluatedCredit, TransformersGenerator
from ccpo.credit.self_evaluated import chain_self_evaluated_credit
from ccpo.ratings import PAIRS, SHARE_CHOICES, parse_role_shares, rating_question
from ccpo.team.rollout import run_team
from ccpo.team.topology import Chain, Role

NAN = math.nan
NINE = torch.tensor([share for share, _ in PAIRS])
THREE = Chain(["planner", Role("critic", branches=2), Role("writer", branches=2)])
TEMPLATE = "{role}|{outcome}|{problem}|{transcript}"


def speaker(name, say="{name}{i}"):
    return lambda prompts: [say.format(name=name, i=i) for i in range(len(prompts))]


def episodes_of(topology, rows=2, chat=False, say="{name}{i}", **kwargs):
    """Text m of role r is "r" and m, or what `say` makes of it."""
    problems = [f"problem {row}" for row in range(rows)]
    prompts = [[{"role": "user", "content": problem}] for problem in problems] if chat else problems
    return run_team(topology, prompts, {name: speaker(name, say) for name in topology.role_names}, **kwargs)


def text_of(prompt):
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


class Rater:
    """Keeps what it is asked. Free text comes from `reply`, scores are noise, the same for the same texts."""

    def __init__(self, reply=None):
        self.reply, self.calls, self.options = reply, [], []

    def __call__(self, prompts, **options):
        self.calls.append(list(prompts))
        self.options.append(options)
        return [self.reply(text_of(prompt)) for prompt in prompts]

    def score(self, prompts, choices):
        self.calls.append(list(zip(map(text_of, prompts), choices, strict=True)))
        return torch.stack([self.row(text_of(prompt), own) for prompt, own in zip(prompts, choices, strict=True)])

    def row(self, prompt, choices):
        noise = torch.Generator().manual_seed(zlib.crc32((prompt + choices[0]).encode()))
        return torch.randn(len(choices), generator=noise)


def stated(prompt):
    """A rating that depends on the prompt; one in four is none."""
    seed = zlib.crc32(prompt.encode())
    role, outcome = prompt.split("|")[:2]
    shares = {name: (seed // 9**i % 9 + 1) / 10 for i, name in enumerate(THREE.role_names)}
    return json.dumps({"outcome": outcome, "shares": shares}) if seed % 4 else f"{role}: no"


def same(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


# ---- Three roles, free text ----


def test_each_leaf_is_shown_with_the_texts_above_it():
    """Row r has planner r, critics 2r and 2r+1, writers 4r to 4r+3: leaf m continues critic m // 2, planner m // 4."""
    rater = Rater(stated)
    credit = SelfEvaluatedCredit(rating_prompt=TEMPLATE, rating_max_tokens=77)
    outcome = torch.tensor([1.0, -1.0, NAN, 1.0, 1.0, -1.0, 1.0, -1.0])
    shares = credit.rate(dict.fromkeys(THREE.role_names, rater), episodes_of(THREE), outcome)
    expected = [
        f"{role}|{'correct' if outcome[m] > 0 else 'wrong'}|problem {m // 4}|### planner\nplanner{m // 4}\n\n"
        f"### critic\ncritic{m // 2}\n\n### writer\nwriter{m}"
        for role in THREE.role_names
        for m in range(8)
    ]
    assert rater.calls == [expected] and rater.options == [{"max_new_tokens": 77}]
    assert shares.shape == (8, 3, 3) and shares.dtype == torch.float32
    for m in range(8):
        for i in range(3):
            prompt = expected[8 * i + m]
            read = parse_role_shares(stated(prompt), prompt.split("|")[1], THREE.role_names)
            unknown = [NAN] * 3 if read is None or m == 2 else list(read.values())
            same(shares[m, i], torch.tensor(unknown))
    assert shares.isnan().any(dim=-1).sum() > 3 + 3  # replies that were none, beside the unscorable leaf


@pytest.mark.parametrize("chat", [False, True])
def test_calls_go_by_rater(chat):
    """One policy for two of three roles rates for both in one call; the calls and their prompts follow the dict."""
    one, other = Rater(stated), Rater(stated)
    episodes, outcome = episodes_of(THREE, chat=chat), torch.ones(8)
    credit = SelfEvaluatedCredit(rating_prompt=TEMPLATE)
    shares = credit.rate({"writer": one, "critic": other, "planner": one}, episodes, outcome)
    asked = [[text_of(prompt).split("|")[0] for prompt in call] for call in one.calls + other.calls]
    assert asked == [["writer"] * 8 + ["planner"] * 8, ["critic"] * 8]
    assert all(isinstance(prompt, list) == chat for prompt in one.calls[0])
    apart = credit.rate({role: Rater(stated) for role in THREE.role_names}, episodes, outcome)
    same(shares, apart)
    assert not shares.isnan().all()


def test_raters_are_those_of_the_team():
    credit, rater = SelfEvaluatedCredit(), Rater()
    for names in (("planner", "writer"), ("planner", "critic", "writer", "editor"), ()):
        with pytest.raises(ValueError, match=r"for each of the roles \['planner', 'critic', 'writer'\], got \["):
            credit.rate(dict.fromkeys(names, rater), episodes_of(THREE), torch.ones(8))
    credit = SelfEvaluatedCredit(rating_prompt="{role} {answer}")
    with pytest.raises(ValueError, match=r"`rating_prompt` has \{answer\}.*\{transcript\}"):
        credit.rate(dict.fromkeys(THREE.role_names, rater), episodes_of(THREE), torch.ones(8))
    assert not rater.calls


def test_raters_see_what_others_read():
    """The leak guard's view of who passes it; as it is, the text that states an answer and the last one."""
    topology = Chain(["planner", Role("drafter", states_answer=True), "writer"])
    episodes = episodes_of(topology, rows=1, say=r"{name}: so \boxed{{{i}7}} it is.")
    credit, rater = SelfEvaluatedCredit(rating_prompt="{planner}|{drafter}|{writer}"), Rater(lambda _: "")
    credit.rate(dict.fromkeys(topology.role_names, rater), episodes, torch.ones(1))
    planner, drafter, writer = rater.calls[0][0].split("|")
    assert "07" not in planner and planner.startswith("planner: so")
    assert drafter == r"drafter: so \boxed{07} it is." and writer == r"writer: so \boxed{07} it is."


def test_our_own_question_of_three_roles():
    rater, episodes = Rater(lambda _: ""), episodes_of(THREE)
    SelfEvaluatedCredit().rate(dict.fromkeys(THREE.role_names, rater), episodes, -torch.ones(8))
    texts = {"planner": "planner1", "critic": "critic2", "writer": "writer5"}
    assert rater.calls[0][8 + 5] == rating_question("critic", "problem 1", texts, "wrong")


def test_the_example_of_the_docs():
    """docs/credit/sepo.md: s = 0.505, 0.27, 0.395, their sum 1.17; the writer's rating cannot be read."""
    shares = {"planner": (0.4, 0.1, 0.5), "critic": (0.6, 0.2, 0.2), "writer": (0.4, 0.1, 1)}

    def reply(role):
        rating = dict(zip(THREE.role_names, shares[role.split()[0]], strict=True))
        return f"I say {json.dumps({'outcome': 'correct', 'shares': rating})}."

    topology, outcome = Chain(["planner", "critic", "writer"]), torch.ones(1)
    credit = SelfEvaluatedCredit(rating_prompt="{role} {outcome}")
    q = credit.rate(dict.fromkeys(THREE.role_names, Rater(reply)), episodes_of(topology, rows=1), outcome)
    rewards = chain_self_evaluated_credit(outcome[None], q[None], branches=(1, 1, 1), center=False)
    expected = [1 + 0.2 * (s / 1.17 - 1 / 3) for s in (0.505, 0.27, 0.395)]
    torch.testing.assert_close(torch.cat(rewards).flatten(), torch.tensor(expected))
    assert [round(value, 4) for value in expected] == [1.0197, 0.9795, 1.0009]


# ---- Three roles, constrained ----


def means_slowly(rater, prompt, verdict):
    """One rating, number by number."""
    text, shares = f'{{"outcome": "{verdict}", "shares": {{', []
    for i, role in enumerate(THREE.role_names):
        text += (", " if i else "") + f'"{role}": '
        probs = rater.row(prompt, [text + number for number in SHARE_CHOICES]).softmax(-1)
        shares.append(sum(p * share for p, share in zip(probs, NINE, strict=True)))
        text += SHARE_CHOICES[probs.argmax()]
    return torch.stack(shares)


@pytest.mark.parametrize("one", [True, False])
def test_the_mean_goes_on_with_the_likeliest(one):
    outcome = torch.tensor([1.0, -1.0, NAN, 1.0, 1.0, -1.0, 1.0, -1.0])
    raters = {role: Rater() for role in THREE.role_names}
    raters = dict.fromkeys(raters, raters["critic"]) if one else raters
    credit = SelfEvaluatedCredit(rating_mode="constrained", rating_expectation=True, rating_prompt=TEMPLATE)
    shares = credit.rate(raters, episodes_of(THREE), outcome)
    for rater in set(raters.values()):  # n calls, all of the same prompts
        assert [len(call) for call in rater.calls] == [24 if one else 8] * 3
        assert len({tuple(prompt for prompt, _ in call) for call in rater.calls}) == 1
    prompts = [prompt for rater in dict.fromkeys(raters.values()) for prompt, _ in rater.calls[0]]
    for k, prompt in enumerate(prompts):
        role, verdict = prompt.split("|")[:2]
        expected = means_slowly(raters[role], prompt, verdict)
        m, i = k % 8, THREE.role_names.index(role)
        torch.testing.assert_close(shares[m, i], expected * outcome[m] ** 2, rtol=0, atol=1e-6, equal_nan=True)


class Certain(Rater):
    """Gives every role a certain number, which depends on the numbers before it."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def row(self, prompt, choices):
        place = zlib.crc32(f"{self.seed}{prompt}{choices[0][:-3]}".encode()) % 9
        return torch.full((9,), -torch.inf).scatter(0, torch.tensor([place]), 0.0)


@pytest.mark.parametrize("expectation", [False, True])
def test_what_was_chosen_stands_before_the_next(expectation):
    """One number has all the probability: the shares are those of a reply that is written out, whatever is drawn."""
    for seed in range(10):
        rater = Certain(seed)
        credit = SelfEvaluatedCredit(
            rating_mode="constrained", rating_expectation=expectation, rating_prompt="{role}|{outcome}|{writer}"
        )
        shares = credit.rate(dict.fromkeys(THREE.role_names, rater), episodes_of(THREE), torch.ones(8))
        for k, (prompt, choices) in enumerate(rater.calls[-1]):
            reply = choices[rater.row(prompt, choices).argmax()] + "}}"
            read = parse_role_shares(reply, "correct", THREE.role_names)
            torch.testing.assert_close(shares[k % 8, k // 8], torch.tensor(list(read.values())))
            assert len({choice[:-3] for choice in choices}) == 1 and [c[-3:] for c in choices] == list(SHARE_CHOICES)


def test_draws_follow_the_probabilities_of_each_number():
    """Every number by its own probabilities, given those before it: three numbers, two of them likely."""

    class Two(Rater):
        def row(self, prompt, choices):
            seen = re.findall(r"0\.(\d)", choices[0])[:-1]
            probs = torch.full((9,), 0.0)
            probs[1], probs[7] = (0.9, 0.1) if seen[-1:] == ["8"] else (0.3, 0.7)  # 0.8 or 0.2; 0.8 likes to repeat
            return probs.log()

    topology = Chain(["planner", "critic", "writer"])
    torch.manual_seed(0)
    credit = SelfEvaluatedCredit(rating_mode="constrained", rating_prompt="{role} {outcome}")
    n = 5000
    shares = credit.rate(dict.fromkeys(THREE.role_names, Two()), episodes_of(topology, rows=n), torch.ones(n))
    high = shares.flatten(0, 1) > 0.5  # (3n, 3)
    assert shares.isnan().sum() == 0 and set(shares.unique().tolist()) == {NINE[1].item(), NINE[7].item()}
    first, second = high[:, 0], high[:, 1]
    for drawn, expected in ((first, 0.3), (second[first], 0.9), (second[~first], 0.3), (high[:, 2][second], 0.9)):
        error = math.sqrt(math.log(2 / 1e-9) / (2 * len(drawn)))  # Hoeffding
        assert abs(drawn.float().mean().item() - expected) < error


@pytest.mark.parametrize("expectation", [False, True])
def test_unknown_probabilities_make_a_rater_invalid(expectation):
    class Broken(Rater):
        def row(self, prompt, choices):
            row = super().row(prompt, choices)
            return (
                row * NAN
                if '"critic": 0.' in choices[0] and '"writer"' not in choices[0] and "writer3" in prompt
                else row
            )

    credit = SelfEvaluatedCredit(
        rating_mode="constrained", rating_expectation=expectation, rating_prompt="{role} {writer}."
    )
    shares = credit.rate(dict.fromkeys(THREE.role_names, Broken()), episodes_of(THREE), torch.ones(8))
    assert shares.isnan().all(dim=-1).nonzero().tolist() == [[3, 0], [3, 1], [3, 2]]
    assert shares.isnan().any(dim=-1).sum() == 3


def test_an_engine_draws_the_numbers():
    """As vLLM's structured outputs: asked for one of nine behind each prefix, once per role, whatever the verdicts."""

    class Engine(Rater):
        draws_choices = True

        def choose(self, prompts, prefixes, choices):
            self.calls.append((prompts, prefixes, choices))
            return [
                zlib.crc32((prompt + prefix).encode()) % 9 for prompt, prefix in zip(prompts, prefixes, strict=True)
            ]

    rater = Engine()
    options = {"rating_mode": "constrained", "rating_expectation": True, "rating_prompt": TEMPLATE}
    raters = dict.fromkeys(THREE.role_names, rater)
    same(
        SelfEvaluatedCredit(**options).rate(raters, episodes_of(THREE), torch.ones(8)),  # of probabilities
        SelfEvaluatedCredit(**options).rate(dict.fromkeys(raters, Rater()), episodes_of(THREE), torch.ones(8)),
    )
    for outcome in (torch.ones(8), -torch.ones(8), torch.tensor([1.0, NAN] * 4)):
        rater = Engine()
        credit = SelfEvaluatedCredit(rating_mode="constrained", rating_prompt=TEMPLATE)
        shares = credit.rate(dict.fromkeys(THREE.role_names, rater), episodes_of(THREE), outcome)
        assert len(rater.calls) == 3 and all(choices == list(SHARE_CHOICES) for *_, choices in rater.calls)
        prompts, prefixes, _ = rater.calls[-1]
        assert len(prompts) == 24
        for k, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
            reply = prefix + SHARE_CHOICES[zlib.crc32((prompt + prefix).encode()) % 9] + "}}"
            read = parse_role_shares(reply, prompt.split("|")[1], THREE.role_names)
            expected = torch.tensor(list(read.values())) * outcome[k % 8] ** 2
            torch.testing.assert_close(shares[k % 8, k // 8], expected, equal_nan=True)


def test_a_real_model_rates_three_roles(model_dirs):
    """Its scores, number by number; the generator pads and shares beginnings, which moves them a little."""
    rater = TransformersGenerator(model_dirs["qwen3"])
    credit = SelfEvaluatedCredit(rating_mode="constrained", rating_expectation=True, rating_prompt="{role} {writer}")
    episodes = episodes_of(THREE, rows=1, chat=True)
    shares = credit.rate(dict.fromkeys(THREE.role_names, rater), episodes, torch.tensor([1.0, -1.0, 1.0, NAN]))
    assert shares[:3].isfinite().all() and shares[3].isnan().all() and (shares[:3] > 0.1).all()
    text = '{"outcome": "wrong", "shares": {"planner": '
    for i in range(3):
        prompt = [{"role": "user", "content": "critic writer1"}]
        probs = rater.score([prompt], [text + number for number in SHARE_CHOICES])[0].softmax(-1)
        torch.testing.assert_close(shares[1, 1, i], probs @ NINE, rtol=0, atol=1e-4)
        text += SHARE_CHOICES[probs.argmax()] + f', "{(*THREE.role_names, "")[i + 1]}": '


def test_asynchronous_raters_of_three_roles():
    class Slow(Rater):
        async def __call__(self, prompts, **options):
            await asyncio.sleep(0)
            return super().__call__(prompts, **options)

        async def score(self, prompts, choices):
            await asyncio.sleep(0)
            return super().score(prompts, choices)

    for options in ({}, {"rating_mode": "constrained", "rating_expectation": True}):
        credit = SelfEvaluatedCredit(rating_prompt=TEMPLATE, **options)
        plain, slow = (
            credit.rate(dict.fromkeys(THREE.role_names, cls(stated)), episodes_of(THREE), torch.ones(8))
            for cls in (Rater, Slow)
        )
        same(plain, slow)
