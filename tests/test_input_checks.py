"""What the trainer is given: objects and rows that cannot be right are refused before a model loads."""

import logging
import math

import pytest
import transformers
from conftest import make_tokenizer
from datasets import Dataset, DatasetDict, IterableDataset
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer

from ccpo import (
    CounterfactualCredit,
    MathVerifier,
    MultiAgentGRPOConfig,
    MultiAgentGRPOTrainer,
    SharedCredit,
    Solo,
    ThinkSolve,
)
from ccpo.training.input_checks import GOLDS_READ, check_datasets, check_objects


@pytest.fixture
def no_model(monkeypatch):
    for owner in (transformers.PreTrainedModel, PeftModel):
        monkeypatch.setattr(owner, "__init__", lambda *args, **kwargs: pytest.fail("a model was loaded"))


@pytest.fixture
def build(model_dirs, chat_dataset, make_config, outcome, no_model):
    def build(**kwargs):
        arguments = {
            "model": model_dirs["qwen3"],
            "reward_funcs": CounterfactualCredit(outcome),
            "args": make_config(),
            "train_dataset": chat_dataset,
        }
        return MultiAgentGRPOTrainer(**arguments | kwargs)

    return build


# ---- Objects ----


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reward_funcs": None}, "`reward_funcs` must be an allocator, .* or a reward function, got None"),
        ({"reward_funcs": []}, "`reward_funcs` is empty. Give an allocator"),
        ({"reward_funcs": [SharedCredit(len), None]}, "`reward_funcs` must be an allocator, .*, got None"),
        ({"reward_funcs": (len, len)}, "`reward_funcs` must be an allocator, .* got .*len"),
        ({"reward_funcs": CounterfactualCredit}, r"`reward_funcs` is the class CounterfactualCredit. Give an"),
        ({"reward_funcs": [SharedCredit(len), SharedCredit]}, "`reward_funcs` is the class SharedCredit. Give"),
        ({"reward_funcs": MathVerifier}, "`reward_funcs` is the class MathVerifier. Give an object"),
        ({"reward_funcs": SharedCredit(MathVerifier)}, "`outcome` of `shared_credit` is the class MathVerifier."),
        ({"reward_funcs": SharedCredit(1)}, "`outcome` of `shared_credit` must be a reward function, .*, got 1"),
        ({"topology": Solo}, r"`topology` must be a Topology, got Solo. Give an object, e.g. ThinkSolve\(\)"),
        ({"topology": "solo"}, "`topology` must be a Topology, got 'solo'"),
        ({"args": {"output_dir": "out"}}, "`args` must be a MultiAgentGRPOConfig, got dict"),
        ({"args": MultiAgentGRPOConfig}, "`args` must be a MultiAgentGRPOConfig, got MultiAgentGRPOConfig. Write"),
        ({"model": None}, "`model` of agent 'thinker' must be an id, a folder or a model, got None"),
    ],
)  # fmt: skip
def test_objects(kwargs, message, build):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize("topology", [ThinkSolve(), Solo()])
def test_another_configuration(topology, build, make_config):
    with pytest.raises(
        ValueError, match=r"`args` must be a MultiAgentGRPOConfig, got GRPOConfig. Write MultiAgentGRPO"
    ):
        build(args=make_config(GRPOConfig), topology=topology)


def test_what_is_right_passes(make_config, outcome):
    for funcs in (outcome, SharedCredit(outcome), [outcome, SharedCredit()], "a/reward-model"):
        check_objects(make_config(), funcs, Solo())
    check_objects(None, SharedCredit())


# ---- Columns ----

USER = {"role": "user", "content": "1+1?"}


def rows(prompts, solutions=None):
    return Dataset.from_dict({"prompt": prompts, "solution": solutions or ["2"] * len(prompts)})


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DatasetDict({"train": rows(["a"])}), r"has the splits \['train'\]. Pass one of them: dataset\['train'\]"),
        ([{"prompt": "a"}], "must be a datasets.Dataset or IterableDataset, got a list of 1. Make one"),
        (rows(["a", "b", None, "d"]), "the prompt of row 2 is null. A prompt is a text, or chat messages"),
        (rows([None] * 4), "the prompt of row 0 is null"),
        (rows([1, 2, 3, 4]), "the prompt of row 0 is an int"),
        (rows(["a", "", "c", "d"]), "the prompt of row 1 is empty"),
        (rows([[USER], [], [USER], [USER]]), "the prompt of row 1 is a list of 0"),
        (rows([["a"], ["b"], ["c"], ["d"]]), "the prompt of row 0 has 'a' among its messages, which has no `role`"),
        (rows([[{"content": "a"}]] * 4), "the prompt of row 0 has .* which has no `role`"),
        (rows([[{"role": "system", "content": "a"}]] * 4), "the prompt of row 0 has no user message with text"),
        (rows([[{"role": "user", "content": None}]] * 4), "the prompt of row 0 has no user message with text"),
        (
            rows([[USER, {"role": "assistant", "content": "So \\boxed{2}."}]] * 4),
            r"the prompt of row 0 ends with an assistant's answer, .*boxed\{2}.*load_problems makes them",
        ),
        (rows(["a"] * 4).add_column("completion", [[USER]] * 4), "has a column 'completion' in another format than"),
        (rows(["a"] * 4).add_column("prompts", [1] * 4), r"has the columns \['prompts'\], which are names of"),
        (rows([[USER]] * 4).add_column("messages", [[]] * 4), r"Remove it: dataset.remove_columns\('messages'\)"),
    ],
)  # fmt: skip
def test_prompts(dataset, message, build, chat_dataset):
    with pytest.raises(ValueError, match=f"`train_dataset`.* {message}"):
        build(train_dataset=dataset)
    name = r"eval_dataset\['train'\]" if isinstance(dataset, DatasetDict) else "eval_dataset"
    if not isinstance(dataset, DatasetDict):  # whose splits TRL evaluates on one by one
        with pytest.raises(ValueError, match=f"`{name}`.* {message}"):
            build(eval_dataset=dataset)


def test_text_and_messages_in_one_stream(build):
    mixed = IterableDataset.from_generator(lambda: iter([{"prompt": [USER]}, {"prompt": "a"}] * 4))
    args = {"per_device_train_batch_size": 8, "num_generations": 4}
    with pytest.raises(ValueError, match="the prompt of row 1 is a str, and that of row 0 a list of 1: give only"):
        check_datasets(mixed, None, MultiAgentGRPOConfig("out", **args, use_cpu=True, bf16=False), [], ThinkSolve())


def test_a_stream_is_read_no_further_than_one_batch(build, make_config):
    seen = []

    def stream():
        for i in range(100):
            seen.append(i)
            yield {"prompt": f"{i}+1=", "solution": None if i > 4 else "2"}

    args = make_config(per_device_train_batch_size=8, num_generations=4)
    check_datasets(IterableDataset.from_generator(stream), None, args, [SharedCredit()], ThinkSolve())
    assert max(seen) <= 2
    nameless = IterableDataset.from_generator(lambda: iter([{"question": "1"}] * 8))
    with pytest.raises(ValueError, match=r"`train_dataset` has no column 'prompt'; it has \['question'\]. Rename it"):
        check_datasets(nameless, None, args, [], ThinkSolve())


def test_what_one_role_may_be_given(make_config):
    """With one role, prompts are TRL's own: a prefill, an empty message of an environment."""
    prompts = [[{"role": "user", "content": ""}], [USER, {"role": "assistant", "content": "\\boxed{2}"}]]
    check_datasets(rows(prompts), None, make_config(), [], Solo())
    prefilled = [[USER, {"role": "assistant", "content": "Well,"}]]
    check_datasets(rows(prefilled), None, make_config(), [], ThinkSolve())


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ([2, 3, 4, 5], "the `solution` of row 0 is an int, 2, and MathVerifier reads text. Convert it, e.g."),
        ([["2"], ["3"], ["4"], ["5"]], "the `solution` of row 0 is a list of 1"),
        ([{"a": "2"}] * 4, "the `solution` of row 0 is a dict"),
        ([None] * 4, r"MathVerifier can read no gold answer in `solution` \(4 rows\), e.g. None"),
        (
            ["", "x +", None, "x +"],
            r"MathVerifier can read no gold answer in `solution` \(4 rows\), e.g. '', 'x \+', None",
        ),
    ],
)
def test_gold_answers(solutions, message, build, chat_dataset):
    bad = rows(["a", "b", "c", "d"], solutions)
    with pytest.raises(ValueError, match=f"`train_dataset`: {message}"):
        build(train_dataset=bad, reward_funcs=SharedCredit())
    with pytest.raises(ValueError, match=f"`eval_dataset`: {message}"):
        build(eval_dataset=bad, reward_funcs=[len, MathVerifier()])
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # another judge reads what it likes
        build(train_dataset=bad)


def test_some_unreadable_gold_answers_are_a_warning(make_config, caplog):
    golds = ["2", "x +", "3", "y +", "z +", "w +", "x +", None]
    with caplog.at_level(logging.WARNING, "ccpo.training.input_checks"):
        check_datasets(rows(["a"] * 8, golds), None, make_config(), [SharedCredit()], ThinkSolve())
    (text,) = [record.getMessage() for record in caplog.records]
    assert "`train_dataset`: MathVerifier cannot read the gold answers of 6 of 8 rows" in text
    assert "e.g. 'x +', 'y +', 'z +'." in text


class Readable(MathVerifier):
    """Counts what it reads; only the golds of `self.good` are readable."""

    def __init__(self, good):
        super().__init__()
        self.good, self.calls = good, []

    def score(self, *, gold, prediction):
        self.calls.append(len(gold))
        return [1.0 if g in self.good else math.nan for g in gold]


def test_many_gold_answers_are_sampled_unless_none_can_be_read(make_config):
    golds = [str(i) for i in range(3 * GOLDS_READ)]
    dataset = rows(["a"] * len(golds), golds)
    verifier = Readable(set(golds))
    check_datasets(dataset, None, make_config(), [SharedCredit(verifier)], ThinkSolve())
    assert verifier.calls == [GOLDS_READ]
    verifier = Readable({golds[2]})  # in the third part
    check_datasets(dataset, None, make_config(), [SharedCredit(verifier)], ThinkSolve())
    assert verifier.calls == [GOLDS_READ] * 3
    with pytest.raises(ValueError, match=rf"can read no gold answer in `solution` \({3 * GOLDS_READ} rows\)"):
        check_datasets(dataset, None, make_config(), [SharedCredit(Readable(set()))], ThinkSolve())


# ---- Too few prompts ----


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"per_device_train_batch_size": 16}, 4),
        ({"per_device_train_batch_size": 4, "steps_per_generation": 3}, 3),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 2}, 4),
        ({"per_device_train_batch_size": 4, "generation_batch_size": 8}, 2),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_fewer_prompts_than_a_generation_batch(fields, needed, stream, build, make_config):
    """TRL's sampler has no rows for one prompt less, and a batch for as many."""
    args = make_config(**fields)
    few, enough = (rows([f"{i}+1=" for i in range(n)]) for n in (needed - 1, needed))
    sampled = []
    for dataset in (few, enough):
        trainer = type("Trainer", (), {"args": args, "num_generations": args.num_generations, "shuffle_dataset": True})
        trainer.num_iterations, trainer.train_dataset = 1, dataset
        sampled.append(len(list(GRPOTrainer._get_train_sampler(trainer, dataset))))
    assert sampled == [0, args.generation_batch_size * args.steps_per_generation]
    few, enough = (d.to_iterable_dataset() if stream else d for d in (few, enough))
    message = (
        f"`train_dataset` has {needed - 1} prompts, and a generation batch needs {needed}: "
        f"`per_device_train_batch_size={args.per_device_train_batch_size}` x 1 processes x `steps_per_generation="
        f"{args.steps_per_generation}` = {args.generation_batch_size} rows, `num_generations={args.num_generations}`"
    )
    for topology in (ThinkSolve(), Solo()):
        credit = SharedCredit(lambda **kwargs: [])
        with pytest.raises(ValueError, match=message):
            build(args=args, train_dataset=few, topology=topology, reward_funcs=credit)
        with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
            build(args=args, train_dataset=enough, topology=topology, reward_funcs=credit)


def test_rows_made_on_the_fly(make_config, outcome, model_dirs):
    """`set_transform` names no columns before a row is read."""
    rows = Dataset.from_dict({"number": list(range(8))})
    rows.set_transform(lambda batch: {"prompt": [f"{n}+1=" for n in batch["number"]]})
    check_datasets(rows, None, make_config(), [SharedCredit(outcome)], Solo())
    rows.set_transform(lambda batch: {"question": [f"{n}+1=" for n in batch["number"]]})
    with pytest.raises(ValueError, match="`train_dataset` has no column 'prompt'"):
        check_datasets(rows, None, make_config(), [SharedCredit(outcome)], Solo())


def test_a_verifier_that_reads_another_column(make_config, text_dataset):
    class Own(MathVerifier):
        def __call__(self, completions, target, **kwargs):
            return self.score(gold=target, prediction=completions)

    rows = text_dataset.rename_column("solution", "target")
    check_datasets(rows, None, make_config(), [SharedCredit(Own())], ThinkSolve())


def test_an_empty_dict_of_datasets(build):
    with pytest.raises(ValueError, match="`eval_dataset` is a dict without a dataset. Give one, or leave it out"):
        build(eval_dataset={})


def test_messages_to_evaluate_on_need_a_chat_template(build, model_dirs, text_dataset, chat_dataset):
    tokenizer = make_tokenizer(kind="llama", chat=False)
    with pytest.raises(
        ValueError, match=r"`eval_dataset\['b'\]` has conversational prompts, but the tokenizer of agent"
    ):
        build(
            model={"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]},
            processing_class={"solver": tokenizer},
            train_dataset=text_dataset,
            eval_dataset={"a": text_dataset, "b": chat_dataset},
        )
