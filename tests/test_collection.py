"""The policies as generators: choices scored with the prompt read once, prompts tokenized once, time by arm."""

import functools
from collections import defaultdict

import pytest
import torch
import transformers
from accelerate import Accelerator
from conftest import PRINTABLE, digit_outcome, make_tokenizer
from peft import LoraConfig

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SelfEvaluatedCredit, SharedCredit, ThinkSolve
from ccpo.ratings import rating_choices
from ccpo.training.clock import StepClock, arms_of
from ccpo.training.generator import PolicyGenerator

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
torch.set_num_threads(1)

ARMS = ("thought", "joint", "solo", "rating", "verify", "update")


def build(model_dirs, dataset, args, credit=SharedCredit, **kwargs):
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    model = model if args.policy_sharing == "separate" else model_dirs["qwen3"]
    return MultiAgentGRPOTrainer(model, credit(digit_outcome), args, dataset, **kwargs)


def scored_in_full(trainer, role, prompts, choices):
    """Log-probability of each choice, one row at a time, nothing shared, nothing padded, no dropout."""
    trainer.activate_role(role)
    trainer.model.eval()
    tokenizer, rows = trainer.tokenizers[role], []
    for prompt, texts in zip(prompts, choices, strict=True):
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)["input_ids"]
        for text in texts:
            tail = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = trainer.model(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
            log_probs = (logits / trainer.args.for_role(role, "temperature")).log_softmax(-1)
            rows.append(log_probs.gather(1, torch.tensor(tail)[:, None]).sum())
    trainer.model.train()
    return torch.stack(rows).view(len(prompts), -1)


@pytest.mark.parametrize("sharing", ["separate", "shared", "adapters"])
def test_choices_score_as_without_sharing(sharing, model_dirs, chat_dataset, make_config):
    """Prompts of several lengths in several batches, two verdicts, a temperature, checkpointing, dropout."""
    settings = {"policy_sharing": sharing, "per_device_train_batch_size": 2, "num_generations": 2}
    args = make_config(**settings, temperature=0.7, gradient_checkpointing=True)
    peft = {"peft_config": LoraConfig(**{**LORA.to_dict(), "lora_dropout": 0.3})} if sharing == "adapters" else {}
    trainer = build(model_dirs, chat_dataset, args, **peft)
    prompts = [[{"role": "user", "content": "rate " * i}] for i in (1, 4, 2, 7, 3)]
    replies = {verdict: rating_choices(verdict) for verdict in ("correct", "wrong")}
    verdicts = ["correct", "wrong", "wrong", "correct", "correct"]
    choices = [[replies[verdict][0] + text for text in replies[verdict][1]] for verdict in verdicts]
    trainer.model.gradient_checkpointing_enable()
    trainer.model.train()
    for role in ("thinker", "solver"):
        rater = PolicyGenerator(trainer, role)
        ours = rater.score(prompts, choices)
        torch.testing.assert_close(ours, scored_in_full(trainer, role, prompts, choices), rtol=0, atol=2e-4)
        assert ours.softmax(-1).std() > 1e-3  # the nine differ
        # What differs: "1, 0.9]}" of '... "pair": [0.1, 0.9]}'; characters are tokens here.
        assert rater.scored_tokens == 5 * 8
    assert trainer.model.is_gradient_checkpointing and trainer.model.training


@pytest.mark.parametrize("kind", ["absolute positions", "sliding window", "linear attention"])
def test_choices_score_so_in_other_architectures(kind, chat_dataset, make_config, tmp_path):
    """Padding on the left moves no position; a state that cannot be repeated is not shared."""
    tokenizer, size = make_tokenizer(PRINTABLE), {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    ids["vocab_size"] = len(tokenizer)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    if kind == "absolute positions":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, initializer_range=0.2, **ids)
    elif kind == "sliding window":
        config = transformers.Olmo3Config(**size, **ids, num_attention_heads=2, sliding_window=8)
    else:
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
        linear |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "full_attention_interval": 2}
        config = transformers.Qwen3_5TextConfig(**size, **heads, **ids, **linear)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    args = make_config(policy_sharing="shared")
    trainer = MultiAgentGRPOTrainer(
        str(tmp_path / "model"), SharedCredit(digit_outcome), args, chat_dataset, processing_class=tokenizer
    )
    prompts = [[{"role": "user", "content": "rate " * i}] for i in (1, 6, 3)]
    prefix, texts = rating_choices("wrong")
    choices = [[prefix + text for text in texts]] * 3
    ours = PolicyGenerator(trainer, "solver").score(prompts, choices)
    full = scored_in_full(trainer, "solver", prompts, choices)
    torch.testing.assert_close(ours, full, rtol=0, atol=1e-3)


def test_choices_of_several_lengths(model_dirs, chat_dataset, make_config):
    """One is the beginning of another: its last token is not taken for common."""
    trainer = build(model_dirs, chat_dataset, make_config())
    prompts, choices = [[{"role": "user", "content": "x"}]], [["ab", "abcd", "abc", "q"]]
    ours = PolicyGenerator(trainer, "solver").score(prompts, choices)
    torch.testing.assert_close(ours, scored_in_full(trainer, "solver", prompts, choices), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["constrained", "generate"])
def test_one_policy_rates_for_both_roles_in_one_call(mode, model_dirs, chat_dataset, make_config, monkeypatch):
    """Greedy ratings, and shares that are means: the same as from a call per role, which a role's settings make."""
    shares, calls = [], []
    options = {"rating_expectation": True} if mode == "constrained" else {"rating_max_tokens": 30}
    # Random models write no rating: take any text for one.
    monkeypatch.setattr(
        "ccpo.rewards.self_evaluated.parse_shares", lambda texts, verdicts: [len(set(text)) / 99 for text in texts]
    )
    name = "score" if mode == "constrained" else "__call__"
    plain = getattr(PolicyGenerator, name)

    def counted(self, prompts, *args, **kwargs):
        if mode == "constrained" or "max_new_tokens" in kwargs:  # a call for ratings
            calls.append(len(prompts))
        return plain(self, prompts, *args, **kwargs)

    monkeypatch.setattr(PolicyGenerator, name, counted)
    # A length is of a role's own texts: the second run, too, has one call.
    for role_kwargs in (None, {"thinker": {"max_completion_length": 7}}, {"thinker": {"top_p": 0.9}}):
        settings = {"policy_sharing": "shared", "schedule": "joint", "top_k": 1, "max_steps": 1}
        credit = functools.partial(SelfEvaluatedCredit, rating_mode=mode, rating_prompt="{role} {answer}", **options)
        trainer = build(model_dirs, chat_dataset, make_config(**settings, role_kwargs=role_kwargs), credit)
        trainer._log_rollout = lambda rollout, rewards, advantages: shares.append(rollout.outcomes[0].shares)
        trainer.train()
    assert calls == [8, 8, 4, 4]
    torch.testing.assert_close(shares[0], shares[2], rtol=0, atol=1e-5)
    assert (shares[0][..., 0, :] - shares[0][..., 1, :]).abs().max() > 1e-4


def test_a_text_is_tokenized_once(model_dirs, chat_dataset, make_config, monkeypatch):
    """Groups of 4: one prompt for the thoughts; four joint prompts, as the thoughts differ, and one for the solos."""
    trainer = build(model_dirs, chat_dataset, make_config(schedule="joint", max_steps=1), CounterfactualCredit)
    counts, tokenize = [], trainer._tokenize_prompts
    monkeypatch.setattr(trainer, "_tokenize_prompts", lambda prompts: counts.append(len(prompts)) or tokenize(prompts))
    trainer.train()
    assert counts == [1, 5]


def test_many_prompts_go_out_by_length_on_a_cpu(model_dirs, chat_dataset, make_config, monkeypatch):
    """Greedy: the completions are those of one call, whatever the order and the padding."""
    trainer = build(model_dirs, chat_dataset, make_config(top_k=1, max_completion_length=5))
    prompts = [[{"role": "user", "content": "word " * i}] for i in (9, 1, 5, 2, 8, 3, 1)]
    whole, calls, generate = PolicyGenerator(trainer, "solver"), [], trainer._generate_single_turn
    one = whole(prompts)
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda ids, *a: calls.append(ids) or generate(ids, *a))
    monkeypatch.setattr("ccpo.training.generator.CPU_BATCH", 3)
    bucketed = PolicyGenerator(trainer, "solver")
    assert bucketed(prompts) == one and bucketed.samples == whole.samples and len(set(one)) > 2
    lengths = [[len(ids) for ids in call] for call in calls]
    assert list(map(len, lengths)) == [3, 3, 1] and sum(lengths, []) == sorted(sum(lengths, []))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_answers_without_an_answer_are_counted_in_training_and_said_once(
    asynchronous, model_dirs, chat_dataset, make_config, caplog
):
    """The team's answers alone count, not the solos; in steps and in evaluation."""

    class Judge:
        """Finds an answer in texts with a letter of the first half of the alphabet, until nothing is to be found."""

        __name__, blind = "judge", False

        def extract(self, text):
            return None if self.blind else next((c for c in text if c in "abcdefghijklm"), None)

        def __call__(self, completions, **kwargs):
            return [-1.0 if self.extract(c[-1]["content"]) is None else 1.0 for c in completions]

    class AsyncJudge(Judge):
        async def __call__(self, completions, **kwargs):
            return Judge.__call__(self, completions)

    judge = AsyncJudge() if asynchronous else Judge()
    args = make_config(max_steps=1, num_solves=2, max_completion_length=4, per_device_eval_batch_size=4)
    trainer = MultiAgentGRPOTrainer(
        model_dirs["qwen3"],
        CounterfactualCredit(judge),
        args,
        chat_dataset,
        eval_dataset=chat_dataset.select(range(2)),
    )
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["credit/no_answer_rate"] == pytest.approx(1 - row["credit/joint_accuracy"])
    assert 0 < row["credit/no_answer_rate"] < 1 and "found no final answer" not in caplog.text
    judge.blind = True
    figures = trainer.evaluate()
    assert figures["eval_credit/no_answer_rate"] == 1 and "found no final answer" not in caplog.text
    args.max_steps = 3
    trainer.train()
    assert [row["credit/no_answer_rate"] for row in trainer.state.log_history if "loss" in row] == [1, 1, 1]
    said = [record.getMessage() for record in caplog.records if "found no final answer" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("In all 8 answers of a batch, `judge` found no final answer")


def test_transformers_continuous_batching(model_dirs, chat_dataset, make_config):
    """
    TRL's option, with lengths per role; greedy, so that it draws what a left-padded batch does. TRL leaves the model
    in training mode, also in an evaluation.
    """
    drawn, logs = [], []
    for continuous in (False, True):
        settings = {
            "schedule": "joint",
            "max_steps": 1,
            "per_device_eval_batch_size": 4,
            "top_k": 1,
            "role_kwargs": {"thinker": {"max_completion_length": 3}},
        }
        if continuous:  # of all memory by default, which no test should take
            settings["transformers_continuous_batching_config"] = {"max_memory_percent": 0.02}
        args = make_config(use_transformers_continuous_batching=continuous, **settings)
        evaluation = {"eval_dataset": chat_dataset.select(range(2))}
        trainer = build(model_dirs, chat_dataset, args, CounterfactualCredit, **evaluation)
        log = trainer._log_rollout

        def keep(rollout, rewards, advantages, log=log):
            drawn[-1].append(rollout.samples)
            log(rollout, rewards, advantages)

        drawn.append([])
        trainer._log_rollout = keep
        trainer.evaluate()
        trainer.train()
        logs.append(trainer.state.log_history)
    assert drawn[0] == drawn[1] and len(drawn[1]) > 2
    for mine, theirs in zip(*logs, strict=True):
        counts = [key for key in mine if key.endswith(("_tokens", "accuracy", "mean_length"))]
        assert len(counts) > 8 or "train_loss" in mine
        assert [mine[key] for key in counts] == pytest.approx([theirs.get(key) for key in counts], nan_ok=True)
    longest = {role: max(len(ids) for samples in drawn[1] for _, ids, _ in samples[role]) for role in drawn[1][0]}
    assert longest["thinker"] <= 3 < longest["solver"]


def test_every_step_logs_what_every_arm_took(model_dirs, chat_dataset, make_config):
    settings = {"alternate_period": 1, "steps_per_generation": 2, "max_steps": 4, "per_device_train_batch_size": 2}
    trainer = build(model_dirs, chat_dataset, make_config(**settings), CounterfactualCredit)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    rows = [{arm: row[f"rollout/{arm}_seconds"] for arm in ARMS} for row in logged]
    assert len(rows) == 4 and all(seconds >= 0 for row in rows for seconds in row.values())
    for row in rows:
        assert row["update"] > 0 and row["rating"] == 0
    thinker, buffered, solver, _ = rows
    assert min(thinker[arm] for arm in ("thought", "joint", "solo", "verify")) > 0
    assert {buffered[arm] for arm in ARMS if arm != "update"} == {0}  # the batch's second step draws nothing
    assert solver["solo"] == 0 < solver["joint"]  # CCPO needs none in the Solver's turn

    tokens = [{arm: row[f"rollout/{arm}_tokens"] for arm in ARMS} for row in logged]
    lengths = [row.get("thinker/completions/mean_length") for row in logged]
    assert tokens[0]["thought"] == 4 * lengths[0] and tokens[0]["verify"] == tokens[0]["joint"] + tokens[0]["solo"]
    assert [row["thought"] > 0 for row in tokens] == [True, False, True, False]
    assert {tokens[1][arm] for arm in ARMS if arm != "update"} == {0}
    for first, role in ((0, "thought"), (2, "joint")):  # each of the batch's two steps trains on a half of it
        assert tokens[first]["update"] + tokens[first + 1]["update"] == tokens[first][role]
        assert min(tokens[first]["update"], tokens[first + 1]["update"]) > 0


def test_evaluation_logs_the_tokens(model_dirs, chat_dataset, make_config):
    trainer = build(
        model_dirs, chat_dataset, make_config(max_steps=1), CounterfactualCredit, eval_dataset=chat_dataset
    )
    trainer.evaluate()
    evaluated = trainer.state.log_history[-1]
    assert min(evaluated[f"eval_rollout/{arm}_tokens"] for arm in ("thought", "joint", "solo", "verify")) > 0
    trainer.train()
    row = trainer.state.log_history[0]
    # Nothing of the evaluation, whose losses train nobody.
    assert row["rollout/thought_tokens"] == row["rollout/update_tokens"] == 4 * row["thinker/completions/mean_length"]
    assert evaluated["eval_rollout/update_tokens"] == 0


def test_a_step_that_failed_leaves_nothing_to_the_next(model_dirs, chat_dataset, make_config, monkeypatch):
    """Nor to an evaluation after it."""
    evaluation = {"eval_dataset": chat_dataset.select(range(2))}
    trainer = build(model_dirs, chat_dataset, make_config(max_steps=1), CounterfactualCredit, **evaluation)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "_allocate", lambda rollout, inputs: (_ for _ in ()).throw(KeyboardInterrupt))
        trainer.train()
    figures = trainer.evaluate()
    assert figures["eval_rollout/thought_tokens"] == 8 * figures["eval_thinker/completions/mean_length"]
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["rollout/thought_tokens"] == 4 * row["thinker/completions/mean_length"]


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time the test sets."""
    now = [0.0]
    monkeypatch.setattr("ccpo.training.clock.time.perf_counter", lambda: now[0])
    clock = StepClock({"train": defaultdict(list)}, Accelerator(), arms_of(ThinkSolve()))
    return clock, now


def test_an_arm_inside_another_counts_for_itself(clock):
    clock, now = clock
    with clock.measure("rollout/update"):  # 0 to 20
        now[0] = 1
        with clock.measure("answers"):  # 1 to 12
            now[0] = 3
            with clock.measure("rollout/thought"):  # 3 to 7
                now[0] = 7
            now[0] = 12
        with clock.measure("rollout/verify"):  # 12 to 13
            now[0] = 13
        clock.split("answers", {"rollout/joint": 300, "rollout/solo": 100})  # 7 seconds
        now[0] = 20
    seconds = {"thought": 4, "joint": 5.25, "solo": 1.75, "verify": 1, "update": 20 - 12}
    assert clock.seconds == {f"rollout/{arm}": spent for arm, spent in seconds.items()}
    now[0] = 22  # the optimizer
    clock.on_step_end(None, None, None)
    logged = {arm: clock.metrics["train"][f"rollout/{arm}_seconds"] for arm in ARMS}
    assert logged == {"thought": [4], "joint": [5.25], "solo": [1.75], "rating": [0], "verify": [1], "update": [10]}
    assert not clock.seconds


def test_what_an_evaluation_took_is_no_steps(clock):
    clock, now = clock
    with clock.measure("rollout/thought"):
        now[0] = 5
    clock.on_step_begin(None, None, None)
    clock.on_step_end(None, None, None)
    assert clock.metrics["train"]["rollout/thought_seconds"] == [0]


def test_an_arm_without_tokens_is_split_evenly(clock):
    clock, now = clock
    with clock.measure("answers"):
        now[0] = 4
    clock.split("answers", {"joint": 0, "solo": 0})
    assert clock.seconds == {"joint": 2, "solo": 2}
