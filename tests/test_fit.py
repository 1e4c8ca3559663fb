"""Prompts fit their models' contexts: what is read from others is cut, the problem never; a long one is refused."""

import random
import re
from types import SimpleNamespace

import pytest
from conftest import make_model, make_tokenizer
from datasets import Dataset
from launching import launch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedTokenizerFast

from ccpo import (
    Chain,
    CounterfactualCredit,
    MultiAgentGRPOTrainer,
    Role,
    SharedCredit,
    Solo,
    ThinkSolve,
    Topology,
    TransformersGenerator,
)
from ccpo.evaluation import evaluate_team
from ccpo.generation.inputs import context_length
from ccpo.team.fit import Request, cut_texts, fit_prompts
from ccpo.team.problems import check_problems
from ccpo.team.prompts import build_solver_messages
from ccpo.team.rollout import Passes, run_team
from ccpo.training.generator import PolicyGenerator
from ccpo.training.prompt_checks import context_of, room_for_prompt

SHORT = ThinkSolve(thinker_prompt="{problem}", solver_prompt="{problem}|{thought}", solo_prompt="{problem}?")


class Counting:
    """A generator that says one thing, knows how long prompts are, and keeps what it was asked."""

    def __init__(self, limit, says="x", count=lambda prompt: len(prompt.encode())):
        self.prompt_limit, self.says, self.count = limit, says, count
        self.asked, self.counted = [], []

    def count_tokens(self, prompts):
        self.counted.append(list(prompts))
        return [self.count(prompt) for prompt in prompts]

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        return [self.says if isinstance(self.says, str) else self.says(prompt) for prompt in prompts]


def fit(template, reads, generate, problem="xy"):
    """Prompts of a template, made to fit."""
    build = lambda read: template.format(problem=problem, **read)  # noqa: E731
    return fit_prompts([Request("r", read, build, lambda: "row 0") for read in reads], generate)


# ---- Which characters stay: by hand, by brute force, in the limits ----


@pytest.mark.parametrize(
    ("limit", "prompt"),
    [
        (16, "xy/aaaa/bbbbbbbb"),  # 2 + 1 + 4 + 1 + 8 = 16 fits
        (15, "xy/aaaa/bbbbbbb"),  # the longest loses first: 15 - 2 - 1 - 4 - 1 = 7
        (12, "xy/aaaa/bbbb"),
        (11, "xy/aaa/bbb"),  # 4 each would be 12, so 3 each
        (10, "xy/aaa/bbb"),
        (5, "xy//"),  # one each would be 6
        (4, "xy//"),
    ],
)
def test_the_longest_text_loses_first(limit, prompt):
    prompts, cut = fit("{problem}/{a}/{b}", [{"a": "aaaa", "b": "bbbbbbbb"}], Counting(limit))
    assert (prompts, cut) == ([prompt], [limit < 16])


def lumpy(text):
    """Tokens of two or three characters, of one byte each beyond ASCII."""
    return sum(
        len(part.encode()) if not part.isascii() else -(-len(part) // 3) for part in re.findall(r"\S+|\s+", text)
    )


@pytest.mark.parametrize("seed", range(5))
def test_as_much_stays_as_fits(seed):
    draw = random.Random(seed)
    word = lambda: "".join(draw.choices("ab cdß漢🙂\n", k=draw.randrange(40)))  # noqa: E731
    reads = [{"a": word(), "b": word()} for _ in range(30)]
    limit, template = draw.randrange(20, 80), "{problem} {a} {b}"
    generate = Counting(limit, count=lumpy)
    prompts, cut = fit(template, reads, generate)
    for read, prompt, shortened in zip(reads, prompts, cut, strict=True):
        whole = template.format(problem="xy", **read)
        assert shortened == (lumpy(whole) > limit)
        if not shortened:
            assert prompt == whole
            continue
        # Searched from below, one character at a time: the prompt is one after which the next does not fit.
        longest = max(map(len, read.values()))
        tried = [template.format(problem="xy", **cut_texts(read, keep)) for keep in range(longest + 1)]
        ends = [low for low, high in zip(tried, tried[1:], strict=False) if lumpy(low) <= limit < lumpy(high)]
        assert prompt in ends
        assert lumpy(prompt) <= limit
    assert any(cut)
    assert not all(cut)
    assert len(generate.counted) <= 2 + 6  # all at once: once whole, once empty, and 40 characters halved


def test_each_row_for_itself():
    reads = [{"a": "a" * n} for n in (3, 90, 7, 50, 0)]
    prompts, cut = fit("{problem}{a}", reads, Counting(12))
    assert prompts == ["xyaaa", "xy" + "a" * 10, "xyaaaaaaa", "xy" + "a" * 10, "xy"]
    assert cut == [False, True, False, True, False]
    order = [3, 0, 4, 1, 2]
    permuted = fit("{problem}{a}", [reads[i] for i in order], Counting(12))
    assert permuted == ([prompts[i] for i in order], [cut[i] for i in order])


def test_what_fits_is_looked_at_once():
    reads, generate = [{"a": "aaa"}], Counting(5)
    assert fit("{problem}{a}", reads, generate) == (["xyaaa"], [False])
    assert len(generate.counted) == 1


def test_without_a_limit_nothing_is_counted():
    for generate in (Counting(None), lambda prompts: prompts):
        assert fit("{problem}{a}", [{"a": "a" * 999}], generate) == (["xy" + "a" * 999], [False])
    generate = Counting(None)
    fit("{problem}{a}", [{"a": "a"}], generate)
    assert generate.counted == []


def test_a_problem_that_does_not_fit_by_itself():
    requests = [
        Request("r", {"t": "t" * 9}, lambda read, problem=problem: problem + read["t"], f"row {i}".format)
        for i, problem in enumerate(["a", "漢漢", "bbbbbbbbb"])
    ]
    with pytest.raises(
        ValueError,
        match=r"The prompt of role 'r' for row 1 has 6 tokens even without the texts of other "
        r"roles, but the context of the role's model leaves 5 beside the longest completion\. Leave the "
        r"row out.*`max_completion_length`",
    ):
        fit_prompts(requests, Counting(5))
    with pytest.raises(ValueError, match="has 2 tokens even without the texts of other roles, .* leaves 0 "):
        fit("{problem}", [{}], Counting(-3))


# ---- In the team ----


def test_a_role_that_reads_two_texts():
    team = Topology(
        (
            Role("long", prompt="{problem}"),
            Role("short", prompt="{problem}"),
            Role("last", reads=("long", "short"), prompt="{problem}|{short}|{long}"),
        )
    )
    last = Counting(20)
    speakers = {"long": Counting(20, "l" * 30), "short": Counting(None, "s" * 5), "last": last}
    episodes = run_team(team, ["problem", "p"], speakers)
    assert last.asked == [["problem|sssss|llllll", "p|sssss|" + "l" * 12]]
    assert episodes.said["last"].prompts == last.asked[0]
    assert episodes.said["last"].cut == [True, True]
    assert episodes.said["long"].cut == episodes.said["short"].cut == [False, False]
    assert episodes.said["long"].texts == ["l" * 30] * 2  # the text itself stays


def test_the_problem_and_the_conversation_stay_whole():
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "2+2?"}]
    solver = Counting(40, count=lambda prompt: sum(len(message["content"]) for message in prompt))
    episodes = run_team(SHORT, [chat], {"thinker": Counting(None, "t" * 99), "solver": solver})
    assert episodes.said["solver"].prompts == [[chat[0], {"role": "user", "content": "2+2?|" + "t" * 27}]]


def test_an_answer_is_taken_out_before_the_cut():
    thinker = Counting(None, "ab\\boxed{5}" + "c" * 30)
    solver = Counting(8)
    run_team(SHORT, ["p"], {"thinker": thinker, "solver": solver})
    assert solver.asked == [["p|abcccc"]]


def test_passes_without_a_role_are_cut_too():
    chain = Chain(
        [
            Role("a", prompt="{problem}"),
            Role("b", prompt="{problem}{a}", prompt_without={"a": "{problem}"}),
            Role("c", prompt="{problem}{b}", prompt_without={"b": "{problem}"}),
        ]
    )
    speakers = {"a": Counting(None), "b": Counting(None, "b" * 9), "c": Counting(5)}
    episodes = run_team(chain, ["p"], speakers, removals={"a": Passes((0, 0)), "b": Passes((0,))})
    assert speakers["c"].asked == [["pbbbb"] * 3 + ["p"]]
    assert len(speakers["c"].counted) == 2 + 3  # one look at all arms, one without b's 9 characters, three halvings
    assert episodes.without["a"]["c"].cut == [True, True]
    assert episodes.without["b"]["c"].cut == [False]
    # Of c one prompt of the team and two without a; without b it reads nobody, as b does without a, and a always.
    assert {name: episodes.cuts(name) for name in "abc"} == {"a": [], "b": [False], "c": [True] * 3}


def test_a_row_of_a_batch_that_does_not_fit():
    with pytest.raises(
        ValueError, match=r"role 'solver' for row 1 of the batch \('bbbbbb'\) has 7 tokens .* leaves 6 "
    ):
        run_team(SHORT, ["a", "bbbbbb"], {"thinker": Counting(9, "t"), "solver": Counting(6)})


# ---- What a dataset's rows are asked beforehand ----


def test_only_rows_that_could_be_too_long_are_tokenized():
    prompts = [f"{i}" for i in range(300)] + ["漢" * 9]  # 27 bytes
    generate = Counting(28, count=len)  # 9 tokens, but it might be 27
    check_problems("rows", prompts, SHORT, {"thinker": generate, "solver": generate})
    looked_at = [prompt for asked in generate.counted for prompt in asked]
    bare = "x"  # once a role and template, for the chat template's tokens
    assert looked_at == [bare, bare, "漢" * 9 + "|", bare, "漢" * 9 + "?"]


@pytest.mark.parametrize(
    ("limits", "role"), [((3, 99), "thinker"), ((99, 4), "solver"), ((99, None), None), ((4, 5), None)]
)
def test_the_first_row_that_does_not_fit(limits, role):
    speakers = dict(zip(("thinker", "solver"), map(Counting, limits), strict=True))
    prompts = ["a"] * 600 + ["bbbb"] + ["cccccc"] * (limits != (4, 5))
    if role is None:
        prompts = prompts[:601] if limits == (4, 5) else ["bbbb"]
        return check_problems("rows", prompts, SHORT, speakers)
    with pytest.raises(ValueError, match=rf"role '{role}' for row 600 of `rows` has [45] tokens .* leaves [34] "):
        check_problems("rows", prompts, SHORT, speakers)


def test_rows_that_could_be_too_long_are_looked_at_in_their_order():
    prompts = ["漢漢"] * 600 + ["漢漢漢漢"] * 2  # all have more bytes than 3
    generate = Counting(3, count=len)
    with pytest.raises(ValueError, match="role 'thinker' for row 600 of `rows` has 4 tokens .* leaves 3 "):
        check_problems("rows", prompts, SHORT, dict.fromkeys(("thinker", "solver"), generate))
    assert [len(asked) for asked in generate.counted] == [1, 256, 256, 90]


def test_the_template_without_a_role_is_looked_at_too():
    team = ThinkSolve(thinker_prompt="{problem}", solver_prompt="{problem}{thought}", solo_prompt="{problem} alone!")
    with pytest.raises(ValueError, match="role 'solver' for row 0 of `rows` has 8 tokens .* leaves 7 "):
        check_problems("rows", ["p"], team, {"thinker": Counting(7), "solver": Counting(7)})


def test_the_chat_template_s_own_tokens_count():
    chat = [{"role": "user", "content": "12345"}]
    count = lambda prompt: 100 + sum(len(message["content"]) for message in prompt)  # noqa: E731
    speakers = dict.fromkeys(("thinker", "solver"), Counting(104, count=count))
    with pytest.raises(ValueError, match="role 'thinker' for row 0 of `rows` has 105 tokens .* leaves 104 "):
        check_problems("rows", [chat], SHORT, speakers)


# ---- What a model's context is ----


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (GPT2Config(n_positions=77), 77),
        (LlamaConfig(max_position_embeddings=88), 88),
        (
            LlamaConfig(
                max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 1e4,
                },
            ),
            256,
        ),
        (
            LlamaConfig(
                max_position_embeddings=256,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 1e4,
                },
            ),
            256,
        ),
        (SimpleNamespace(get_text_config=lambda: SimpleNamespace()), None),
    ],
)
def test_context_of_a_configuration(config, length):
    assert context_length(config) == length


@pytest.mark.parametrize(
    ("settings", "room"),
    [
        ({"max_completion_length": 30}, 70),
        ({"max_completion_length": 30, "role_kwargs": {"solver": {"max_completion_length": 10}}}, 90),
        ({"max_completion_length": 30, "generation_kwargs": {"max_new_tokens": 20}}, 80),
        ({"max_completion_length": None}, 99),  # without a limit there is room for one
        ({"max_completion_length": 200}, -100),
    ],
)
def test_room_for_a_prompt(settings, room, make_config):
    args, config = make_config(**settings), LlamaConfig(max_position_embeddings=100)
    assert room_for_prompt(config, args, "solver", "solver") == room
    assert context_of(config, args) == 100
    args.use_vllm, args.vllm_max_model_length = True, 80
    assert context_of(config, args) == 80
    args.vllm_max_model_length = 300
    assert context_of(config, args) == 100


# ---- In training ----


def save_model(folder, kind, positions=64, tokenizer=None):
    """A tiny model with a small context: learned positions, or RoPE."""
    tokenizer = tokenizer or make_tokenizer(kind="llama")
    if kind == "gpt2":
        special = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        size = {"n_positions": positions, "n_embd": 32, "n_layer": 1, "n_head": 2}
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **special)).save_pretrained(folder)
    else:
        make_model("llama", tokenizer, max_position_embeddings=positions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Watched(MultiAgentGRPOTrainer):
    """Keeps what was said, and how often prompts were tokenized."""

    def __init__(self, *args, **kwargs):
        self.rollouts, self.tokenized = [], []
        super().__init__(*args, **kwargs)

    def _tokenize_prompts(self, prompts):
        self.tokenized += prompts
        return super()._tokenize_prompts(prompts)

    def _log_rollout(self, rollout, rewards, advantages):
        self.rollouts.append(rollout)
        super()._log_rollout(rollout, rewards, advantages)


def train(model, dataset, args, topology=SHORT, credit=None, **kwargs):
    judge = lambda completions, **_: [1.0 if len(str(c)) % 2 else -1.0 for c in completions]  # noqa: E731
    judge.__name__ = "judge"
    return Watched(model, credit or CounterfactualCredit(judge), args, dataset, topology=topology, **kwargs)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_run_in_which_thoughts_are_too_long(kind, tmp_path, chat_dataset, make_config):
    model = save_model(tmp_path / "model", kind)
    # "<user>0+1=</s><assistant>" are 22 tokens of the 64, and 24 are for the completion: 18 are left for the thought.
    args = make_config(policy_sharing="shared", schedule="joint", max_completion_length=24, eval_strategy="no")
    trainer = train(model, chat_dataset, args, eval_dataset=chat_dataset)
    trainer.train()
    trainer.evaluate()
    cut = 0
    for rollout in trainer.rollouts:
        said, solver = rollout.episodes.said["thinker"], rollout.episodes.said["solver"]
        for thought, prompt, shortened, sample, row in zip(
            said.texts, solver.prompts, solver.cut, rollout.samples["solver"], solver.rows, strict=True
        ):
            problem = rollout.episodes.prompts[row][0]["content"]
            read = rollout.episodes.view("thinker", thought)
            assert shortened == (len(read) > 17)
            assert prompt == [{"role": "user", "content": f"{problem}|{read[:17]}"}]
            assert len(sample[0]) == 22 + 1 + len(read[:17]) <= 40
            cut += shortened
    assert cut > 0
    for rollout, logged in zip(trainer.rollouts, trainer.state.log_history, strict=False):
        prefix = "" if "rollout/solver_cut_rate" in logged else "eval_"
        rate = sum(rollout.episodes.said["solver"].cut) / len(rollout.episodes.said["solver"].cut)
        if prefix == "":
            assert logged["rollout/solver_cut_rate"] == rate
    names = set().union(*trainer.state.log_history)
    assert {"rollout/solver_cut_rate", "eval_rollout/solver_cut_rate"} <= names
    assert not any(name.endswith("thinker_cut_rate") for name in names)  # it reads nobody


def test_what_is_cut_in_passes_without_a_role_is_in_the_rate(tmp_path, chat_dataset, make_config):
    """Half of the last role's prompts with texts of others are in passes without the first."""
    chain = Chain(
        [
            Role("a", prompt="{problem}"),
            Role("b", ("a",), prompt="{problem}|{a}", prompt_without={"a": "{problem}"}),
            Role("c", ("b",), prompt="{problem}|{b}", prompt_without={"b": "{problem}"}),
        ]
    )
    model = save_model(tmp_path / "model", "llama")
    args = make_config(policy_sharing="shared", schedule="joint", max_completion_length=24, max_steps=4)
    trainer = train(model, chat_dataset, args, chain)
    trainer.train()
    apart = set()
    for rollout, logged in zip(trainer.rollouts, trainer.state.log_history, strict=False):
        team, without = rollout.episodes.said["c"].cut, rollout.episodes.without["a"]["c"].cut
        assert logged["rollout/c_cut_rate"] == (sum(team) + sum(without)) / 8
        assert logged["rollout/b_cut_rate"] == sum(rollout.episodes.said["b"].cut) / 4
        apart.add(sum(team) - sum(without))
    assert apart != {0}


def test_what_fits_is_tokenized_once(tmp_path, chat_dataset, make_config):
    model = save_model(tmp_path / "model", "llama", positions=128)
    args = make_config(policy_sharing="shared", schedule="joint", max_steps=1)
    trainer = train(model, chat_dataset, args)
    trainer.train()
    (rollout,) = trainer.rollouts
    asked = [*rollout.episodes.said["thinker"].prompts, *rollout.episodes.said["solver"].prompts]
    asked += rollout.episodes.without["thinker"]["solver"].prompts
    assert sorted(map(repr, trainer.tokenized)) == sorted(set(map(repr, asked)))
    assert rollout.episodes.said["solver"].cut == [False] * 4
    assert trainer.state.log_history[0]["rollout/solver_cut_rate"] == 0


def test_what_is_known_goes_with_the_call(tmp_path, text_dataset, make_config):
    model = save_model(tmp_path / "model", "llama")
    trainer = train(model, text_dataset, make_config(policy_sharing="shared"))
    trainer.model.eval()
    generator = PolicyGenerator(trainer, "solver")
    assert generator.prompt_limit == 64 - 8
    assert generator.count_tokens(["ab", "abc", "ab"]) == [2, 3, 2]
    assert trainer.tokenized == ["ab", "abc"]
    generator(["ab", "abcd"])
    assert trainer.tokenized == ["ab", "abc", "abcd"]
    assert [len(ids) for ids, _, _ in generator.samples] == [2, 4]
    generator.count_tokens(["ab"])  # of another batch
    assert trainer.tokenized == ["ab", "abc", "abcd", "ab"]
    with pytest.raises(
        ValueError, match="prompt for role 'solver' has 60 tokens. With the 8 that may follow, it exceeds the 64"
    ):
        generator(["x" * 60])
    with pytest.raises(ValueError, match="has 60 tokens. With the 5 that may follow, it exceeds the 64"):
        generator.score(["x" * 60], [["abcde", "abcdf"]])


def without_weights(folder):
    """So that whatever loads the model fails."""
    for file in folder.glob("*.safetensors"):
        file.unlink()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a_problem_that_does_not_fit_is_an_error_before_a_model_loads(kind, name, tmp_path, text_dataset, make_config):
    model = save_model(tmp_path, kind)
    without_weights(tmp_path)
    rows = [{"prompt": "1+1=" if i != 6 else "x" * 56, "solution": "2"} for i in range(8)]
    datasets = {"train_dataset": text_dataset, "eval_dataset": text_dataset, name: Dataset.from_list(rows)}
    with pytest.raises(  # the Thinker's prompt fits to the token
        ValueError,
        match=f"role 'solver' for row 6 of `{name}` has 57 tokens .* leaves 56 beside the longest",
    ):
        train(model, datasets["train_dataset"], make_config(), eval_dataset=datasets["eval_dataset"])


def test_one_role_s_problem_does_not_fit_either(tmp_path, make_config):
    model = save_model(tmp_path, "llama")
    dataset = Dataset.from_list([{"prompt": "x" * 57, "solution": "2"}] * 4)
    credit = SharedCredit(lambda completions, **_: [1.0] * len(completions))
    with pytest.raises(ValueError, match="role 'solver' for row 0 of `train_dataset` has 57 tokens .* leaves 56 "):
        train(model, dataset, make_config(), topology=Solo(), credit=credit)


def test_a_completion_that_fills_the_context(tmp_path, text_dataset, make_config):
    model = save_model(tmp_path, "llama")
    with pytest.raises(
        ValueError, match="role 'thinker' for row 0 of `train_dataset` has 4 tokens .* leaves 0 beside"
    ):
        train(model, text_dataset, make_config(max_completion_length=64))


def test_of_a_stream_the_first_batch_beforehand_and_the_others_in_their_step(tmp_path, make_config):
    model = save_model(tmp_path, "llama")

    def stream(long):
        rows = [{"prompt": "x" * 60 if i == long else "1+1=", "solution": "2"} for i in range(8)]
        return Dataset.from_list(rows).to_iterable_dataset()

    args = {"policy_sharing": "shared", "per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 4}
    with pytest.raises(ValueError, match="role 'thinker' for row 1 of `train_dataset` has 60 tokens .* leaves 56 "):
        train(model, stream(1), make_config(**args))
    trainer = train(model, stream(3), make_config(**args))
    with pytest.raises(
        ValueError, match=r"role 'thinker' for row \d of the batch \('xxx.*\) has 60 tokens .* leaves 56 "
    ):
        trainer.train()


def make_byte_tokenizer():
    """A token for each byte, as byte-level BPE without merges has."""
    vocab = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>", "<pad>"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def test_text_of_several_bytes_a_character(tmp_path, make_config):
    model = save_model(tmp_path, "llama", tokenizer=make_byte_tokenizer())
    row = {"prompt": "漢字?", "solution": "2"}  # 7 bytes
    train(model, Dataset.from_list([row] * 4), make_config())
    with pytest.raises(ValueError, match="row 2 of `train_dataset` has 60 tokens .* leaves 56 "):
        train(model, Dataset.from_list([row, row, {**row, "prompt": "漢" * 20}, row]), make_config())
    solver = TransformersGenerator(model, max_new_tokens=8)
    episodes = run_team(SHORT, [row["prompt"]], {"thinker": Counting(None, "é漢🙂" * 20), "solver": solver})
    # 56 - 7 - 1 = 48 bytes: "é漢🙂" are 9, and after five of them é would be 2 of the last 3.
    assert episodes.said["solver"].prompts == ["漢字?|" + "é漢🙂" * 5 + "é"]
    assert solver.count_tokens(episodes.said["solver"].prompts) == [7 + 1 + 45 + 2]


@pytest.mark.distributed
def test_the_rate_is_that_of_all_processes(tmp_path, model_dirs):
    """Thoughts of 1 to 6 characters are canned; the Solver's context holds 3 of a problem of one digit, 2 of two."""
    tokenizer = make_tokenizer(kind="llama")
    bare = build_solver_messages([{"role": "user", "content": "0+1="}], "")
    length = len(tokenizer.apply_chat_template(bare, add_generation_prompt=True)["input_ids"])
    model = {"thinker": model_dirs["qwen3"], "solver": save_model(tmp_path / "m", "llama", length + 3 + 8)}
    one = launch(tmp_path / "one", model, 1, per_device_train_batch_size=6, max_steps=2)
    two = launch(tmp_path / "two", model, 2, per_device_train_batch_size=3, max_steps=2)
    rates = [[row["rollout/solver_cut_rate"] for row in run["log"] if "loss" in row] for run in (one, two)]
    assert rates[0] == pytest.approx(rates[1])
    assert len(rates[0]) == 2
    assert all(0 < rate < 1 for rate in rates[0])


# ---- In evaluation, and under TRL's own trainer ----


def test_a_local_model_counts_and_reuses(tmp_path, monkeypatch):
    generator = TransformersGenerator(save_model(tmp_path, "llama"), max_new_tokens=8)
    assert (generator.context_length, generator.prompt_limit) == (64, 56)
    tokenizer, made = generator._load()[1], []
    chat = [{"role": "user", "content": "q"}]

    class Spy:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **options):
            made.append(text)
            return tokenizer(text, **options)

    generator._loaded = (generator._loaded[0], Spy(), generator._loaded[2])
    assert generator.count_tokens(["ab", chat, "cde"]) == [2, 6 + 1 + 1 + 11, 3]
    assert made == ["ab", "cde"]
    generator(["cde", "ab", chat, "new"])
    assert made == ["ab", "cde", "new"]
    assert not generator._counted


def test_evaluation_cuts_and_says_so(tmp_path):
    model = save_model(tmp_path, "llama")
    right = lambda completions, **_: [1.0] * len(completions)  # noqa: E731
    solver = TransformersGenerator(model, max_new_tokens=8)
    thinker = Counting(None, lambda prompt: "t" * (90 if prompt == "a" else 9))
    rows = Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": "d"}])
    result = evaluate_team(rows, {"thinker": thinker, "solver": solver}, right, topology=SHORT)
    assert list(result.cut) == ["solver"]
    assert (result.cut["solver"].successes, result.cut["solver"].total) == (1, 4)
    assert result.to_dict()["solver_cut"]["value"] == 0.25
    long = Dataset.from_list([{"prompt": "a"}, {"prompt": "b" * 60}])
    asked = len(thinker.asked)
    with pytest.raises(ValueError, match="role 'solver' for row 1 of `dataset` has 61 tokens .* leaves 56 "):
        evaluate_team(long, {"thinker": thinker, "solver": solver}, right, topology=SHORT)
    assert len(thinker.asked) == asked


def test_the_reward_function_cuts_and_says_so(tmp_path):
    partner = TransformersGenerator(save_model(tmp_path, "llama"), max_new_tokens=8)
    asked = []

    def judge(completions, **kwargs):
        asked.append(kwargs["prompts"])
        return [1.0] * len(completions)

    credit, logged = CounterfactualCredit(judge, partner=partner, topology=SHORT), {}
    credit(["p", "p"], ["t" * 90, "t"], problem=["p", "p"], log_metric=logged.__setitem__)
    assert logged["rollout/solver_cut_rate"] == 0.5
    with pytest.raises(
        ValueError, match=r"role 'solver' for row 1 of the batch \('qqq.*\) has 61 tokens .* leaves 56 "
    ):
        credit(["p", "q"], ["t", "t"], problem=["p", "q" * 60])
