"""The embedded task: its tokenizer, problems, demonstrations, policies and their warm start."""

import hashlib
import json
import re
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo.tasks import arithmetic
from ccpo.team.prompts import strip_boxed
from ccpo.team.topology import ThinkSolve

TEXTS = [
    r"(7+12)*4 Thought: 7+12=19 Answer: 19*4=\boxed{76}",
    "(7+12)*4 Thought:  Answer: this looks hard",
    "this looks easy, no idea  yet; hello , it 's 007 300 299 1234\n a\tb",
    r"\boxed {5} \boxed5 \box \frac{1}{2} Answer:x Thought: ",
    '{"outcome": "correct", "pair": [0.7, 0.3]}',
    "".join(map(chr, range(32, 127))),
    "",
]
PROBLEM = re.compile(r"^\((\d+)\+(\d+)\)\*(\d+)$")
STEPS = 30
FIRST_TRAIN = ["(9+9)*4", "(13+3)*6", "(12+5)*4"]
FIRST_TEST = ["(13+10)*5", "(3+15)*7", "(6+13)*6"]


# SHA-256 of what Think-Solve's task was before other teams had one: its runs must stay the same to the bit.
DIGESTS = {
    "tokenizer": "c7d7909ed617f2b9",
    "thinker": "07c1b7a7f8f52245",
    "solver": "7e5f2090d758fabf",
    "train": "7e3b37ee86b86204",
    "test": "d80775f59fc03c4f",
}


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def read(problem: str) -> tuple[int, int, int]:
    return tuple(map(int, PROBLEM.match(problem).groups()))


@pytest.fixture(scope="module")
def tokenizer():
    return arithmetic.build_tokenizer()


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    return arithmetic.warm_start(
        tmp_path_factory.mktemp("warm"), seed=3, thinker_steps=STEPS, solver_steps=STEPS, disable_tqdm=True
    )


# Tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids


def test_tokenizer_tokens(tokenizer):
    ids = tokenizer(r"(7+12)*4 Answer: 19*4=\boxed{270}").input_ids
    words = ["(", "7", "+", "12", ")", "*", "4", " Answer: ", "19", "*", "4", "=", r"\boxed{", "270", "}"]
    assert tokenizer.convert_ids_to_tokens(ids) == words
    assert tokenizer("é").input_ids == [tokenizer.unk_token_id]
    assert tokenizer("4<eos>").input_ids[-1] == tokenizer.eos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    assert tokenizer.padding_side == "left" and tokenizer.chat_template is None
    assert tokenizer.get_vocab().keys() == set(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))


def test_think_solve_is_what_it_was_to_the_byte(tokenizer):
    pattern = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]["pattern"]
    digests = {"tokenizer": digest([tokenizer.convert_ids_to_tokens(range(len(tokenizer))), pattern])}
    digests |= {role: digest(arithmetic.demonstrations(role, 1000, 3).to_list()) for role in arithmetic.ROLES}
    digests |= {split: digest(arithmetic.build_dataset(split).to_list()) for split in ("train", "test")}
    assert digests == DIGESTS


# Problems


def test_split_is_fixed_and_disjoint():
    train, test = arithmetic.build_dataset("train"), arithmetic.build_dataset("test")
    assert (len(train), len(test)) == (1098, 702)
    assert train.column_names == test.column_names == ["prompt", "solution"]
    # pinned: a held-out split that moves makes results incomparable
    assert train["prompt"][:3] == FIRST_TRAIN
    assert test["prompt"][:3] == FIRST_TEST
    canonical = [{(min(a, b), max(a, b), c) for a, b, c in map(read, split["prompt"])} for split in (train, test)]
    assert not canonical[0] & canonical[1]
    assert len({*train["prompt"], *test["prompt"]}) == 1098 + 702 == 15 * 15 * 8


def test_solutions():
    for split in ("train", "test"):
        for row in arithmetic.build_dataset(split):
            a, b, c = read(row["prompt"])
            assert row["solution"] == str(sum([a] * c) + sum([b] * c))


def test_training_problems_have_every_fact_of_the_held_out_ones():
    train, test = (list(map(read, arithmetic.build_dataset(split)["prompt"])) for split in ("train", "test"))
    assert {(a, b) for a, b, _ in test} <= {(a, b) for a, b, _ in train}
    assert {(a + b, c) for a, b, c in test} <= {(a + b, c) for a, b, c in train}


def test_size_takes_the_first():
    assert arithmetic.build_dataset("test", 5)["prompt"] == arithmetic.build_dataset("test")["prompt"][:5]


@pytest.mark.parametrize("size", [0, -1, 703])
def test_size_out_of_range_raises(size):
    with pytest.raises(ValueError, match="`size` must be between 1 and 702"):
        arithmetic.build_dataset("test", size)


def test_unknown_split_raises():
    with pytest.raises(ValueError, match="`split` must be 'train' or 'test', got 'validation'"):
        arithmetic.build_dataset("validation")


# Demonstrations


def classify_thought(thought: str, a: int, b: int, c: int) -> str:
    if thought == f"{a}+{b}={a + b}":
        return "right"
    if thought == f"{a}+{c}={a + c}":
        return "wrong_pair"
    if thought in (f"\\boxed{{{a + b}}}", f"\\boxed{{{(a + b) * c}}}"):
        return "leak"
    return "remark" if thought in arithmetic.REMARKS else "unknown"


def assert_shares(counts: Counter, shares: dict[str, float], tolerance: float = 0.02):
    assert counts.keys() == shares.keys()
    for kind, share in shares.items():
        assert counts[kind] / counts.total() == pytest.approx(share, abs=tolerance), kind


def test_thinker_demonstrations_have_the_stated_shares():
    training, counts = set(arithmetic.build_dataset("train")["prompt"]), Counter()
    for row in arithmetic.demonstrations("thinker", 8000, seed=1):
        problem = row["prompt"].removesuffix(" Thought: ")
        a, b, c = read(problem)
        assert problem in training
        if b != c:  # else the right pair and the wrong one are the same
            counts[classify_thought(row["completion"], a, b, c)] += 1
    assert_shares(counts, arithmetic.THOUGHT_SHARES)


def test_solver_demonstrations_have_the_stated_shares():
    training = set(arithmetic.build_dataset("train")["prompt"])
    views, followed, guesses = Counter(), Counter(), Counter()
    for row in arithmetic.demonstrations("solver", 12000, seed=1):
        problem, thought = re.fullmatch(r"(.*?)(?: Thought: (.*))? Answer: ", row["prompt"]).groups()
        a, b, c = read(problem)
        assert problem in training
        assert strip_boxed(row["prompt"]) == row["prompt"]
        right, box = f"{a + b}*{c}=\\boxed{{{(a + b) * c}}}", "\\boxed{%d}"
        number = int(thought.split("=")[1]) if thought and "=" in thought else None
        views["solo" if thought is None else "leak" if not thought else "other"] += 1
        answer = row["completion"]
        if number is None:
            if b * c != a + b:
                kinds = {right: "right", box % (a + b): "only_sum", box % (b * c): "only_product"}
                guesses[kinds[answer]] += 1
        elif len({number, a + b, b * c}) == 3:  # else two kinds look the same
            kinds = {f"{number}*{c}=\\boxed{{{number * c}}}": "work", box % number: "copy"}
            followed[kinds.get(answer, "guess")] += 1
    solo, leak = arithmetic.SOLO_SHARE, arithmetic.THOUGHT_SHARES["leak"]
    assert_shares(views, {"solo": solo, "leak": (1 - solo) * leak, "other": (1 - solo) * (1 - leak)})
    assert_shares(guesses, arithmetic.GUESS_SHARES)
    assert_shares(followed, arithmetic.ANSWER_SHARES, tolerance=0.04)


def test_shares_sum_to_one():
    for shares in (arithmetic.THOUGHT_SHARES, arithmetic.ANSWER_SHARES, arithmetic.GUESS_SHARES):
        assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("role", arithmetic.ROLES)
def test_demonstrations_are_short_seeded_and_split_between_tokens(tokenizer, role):
    rows = arithmetic.demonstrations(role, 300, seed=0)
    assert rows.column_names == ["prompt", "completion"] and len(rows) == 300
    assert rows.to_list() == arithmetic.demonstrations(role, 300, seed=0).to_list()
    assert rows.to_list() != arithmetic.demonstrations(role, 300, seed=1).to_list()
    for row in rows:
        prompt, completion = tokenizer(row["prompt"]).input_ids, tokenizer(row["completion"]).input_ids
        assert tokenizer(row["prompt"] + row["completion"]).input_ids == prompt + completion
        assert len(completion) < 12 and len(prompt + completion) < 32  # 12 with the end-of-sequence token


def test_unknown_role_raises():
    with pytest.raises(ValueError, match=r"`role` must be one of \('thinker', 'solver'\), got 'critic'"):
        arithmetic.demonstrations("critic", 1)


# Policies


def test_policy(tokenizer):
    state = torch.get_rng_state()
    policy, same, other = (arithmetic.build_policy(tokenizer, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.7e6 < policy.num_parameters() < 1.3e6
    assert policy.dtype == torch.float32
    assert (policy.config.pad_token_id, policy.config.eos_token_id) == (0, 2)
    assert policy.generation_config.eos_token_id == tokenizer.eos_token_id
    weights = policy.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in same.state_dict().items())
    assert not torch.equal(policy.lm_head.weight, other.lm_head.weight)


def test_topology():
    topology = arithmetic.topology()
    assert isinstance(topology, ThinkSolve)
    assert topology.thinker_prompt.replace("{problem}", "(1+2)*3") == "(1+2)*3 Thought: "
    assert topology.solver_prompt == arithmetic.SOLVER_PROMPT and topology.solo_prompt == arithmetic.SOLO_PROMPT


def loss(model, tokenizer, role: str, team=None) -> float:
    """Mean loss per completion token on demonstrations of another seed, one by one."""
    total, count = 0.0, 0
    for row in arithmetic.demonstrations(role, 64, 99, team):
        prompt = tokenizer(row["prompt"]).input_ids
        completion = tokenizer(row["completion"] + tokenizer.eos_token).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum").item()
        count += len(completion)
    return total / count


@pytest.mark.parametrize("role", arithmetic.ROLES)
def test_warm_start_saves_what_it_learned(warm, tokenizer, role):
    model, loaded = AutoModelForCausalLM.from_pretrained(warm[role]), AutoTokenizer.from_pretrained(warm[role])
    assert model.dtype == torch.float32
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.padding_side == "left"
    for text in TEXTS:  # AutoTokenizer may put a model type's own tokenizer in the place of the saved one
        assert loaded(text).input_ids == tokenizer(text).input_ids
        assert loaded.decode(loaded(text).input_ids) == text
    untrained = loss(arithmetic.build_policy(tokenizer, 3), tokenizer, role)
    assert loss(model, loaded, role) < 0.6 * untrained


def test_warm_start_learns_to_stop(warm, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(warm["thinker"])
    prompts = [f"{problem} Thought: " for problem in arithmetic.build_dataset("test", 32)["prompt"]]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    out = model.generate(**batch, max_new_tokens=12, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert (out == tokenizer.eos_token_id).any(dim=1).float().mean() > 0.9


def test_warm_start_is_deterministic(tmp_path):
    def weights(folder, seed):
        paths = arithmetic.warm_start(tmp_path / folder, seed, thinker_steps=3, solver_steps=3, disable_tqdm=True)
        return {role: AutoModelForCausalLM.from_pretrained(path).lm_head.weight for role, path in paths.items()}

    first, again, other = weights("first", 5), weights("again", 5), weights("other", 6)
    for role in arithmetic.ROLES:
        assert torch.equal(first[role], again[role])
        assert not torch.equal(first[role], other[role])
    assert not torch.equal(first["thinker"], first["solver"])
