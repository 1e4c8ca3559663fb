"""The command line of `examples/train_ccpo.py`: every field is honoured or refused, before anything is built."""

import ast
import dataclasses
import json
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from trl import ModelConfig, ScriptArguments

from ccpo import AnswerCritiqueRewrite, Chain, MultiAgentGRPOTrainer, SharedCredit, ThinkSolve, Vote
from ccpo import train as train_module
from ccpo.arguments import _SETTINGS, TeamArguments
from ccpo.tasks import TASKS
from ccpo.team.topology import make_topology

ROOT = Path(__file__).parents[1]
CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--num_generations", "2"]
LORA = ["--use_peft", "true"]
FOUR_BIT = [*LORA, "--load_in_4bit", "true", "--dtype", "bfloat16"]


class Reached(Exception):
    """The trainer would be built now."""


@pytest.fixture
def example(monkeypatch):
    """The module `ccpo.train`."""
    return train_module


@pytest.fixture
def command(monkeypatch, tmp_path, example):
    """`command(*arguments)`: what the trainer would be given, and how the datasets were asked for."""
    module = example
    real, seen = module.load_problems, {"data": []}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(8)))

    def load_problems(name, **kwargs):
        seen["data"].append({"name": name, **kwargs})
        return real(str(rows), problem_column="question", solution_column="answer")

    def trainer(**kwargs):
        seen.update(kwargs)
        raise Reached

    monkeypatch.setattr(module, "load_problems", load_problems)
    monkeypatch.setattr(module, "MultiAgentGRPOTrainer", trainer)

    def build(*args, **kwargs):
        seen.update(built=True)

    monkeypatch.setitem(module.MODELS, "tiny-random", build)
    monkeypatch.setitem(
        module.TASKS, "arithmetic", dataclasses.replace(module.TASKS["arithmetic"], build_models=build)
    )

    def run(*arguments):
        name = [] if "--dataset_name" in arguments else ["--dataset_name", "a/dataset"]
        model = [] if "--model_name_or_path" in arguments else ["--model_name_or_path", "tiny-random"]
        words = [*name, *model, "--output_dir", str(tmp_path / "out"), *CPU, *arguments]
        with pytest.raises(Reached):
            module.run(module.prepare(*module.parse_arguments([word for word in words if word is not None])))
        return seen

    run.module, run.seen = module, seen
    return run


def loaded(name):
    return lambda seen: seen["args"].model_init_kwargs[name]


def lora(name):
    return lambda seen: getattr(seen["peft_config"], name)


def quantized(name):
    return lambda seen: getattr(seen["quantization_config"], name)


def asked(name, which=0):
    return lambda seen: seen["data"][which][name]


# Every field: arguments, and what is then seen of them, or the error.
HONOURED = {
    "model_name_or_path": (["--model_name_or_path", "a/model"], lambda s: s["model"]["thinker"], "a/model"),
    "model_revision": (["--model_revision", "v2"], loaded("revision"), "v2"),
    "dtype": (["--dtype", "bfloat16"], loaded("dtype"), "bfloat16"),
    "attn_implementation": (["--attn_implementation", "eager"], loaded("attn_implementation"), "eager"),
    "use_peft": (LORA, lora("peft_type"), "LORA"),
    "lora_r": ([*LORA, "--lora_r", "3"], lora("r"), 3),
    "lora_alpha": ([*LORA, "--lora_alpha", "3"], lora("lora_alpha"), 3),
    "lora_dropout": ([*LORA, "--lora_dropout", "0.5"], lora("lora_dropout"), 0.5),
    "lora_target_modules": ([*LORA, "--lora_target_modules", "q", "v"], lora("target_modules"), {"q", "v"}),
    "lora_target_parameters": ([*LORA, "--lora_target_parameters", "w"], lora("target_parameters"), ["w"]),
    "lora_modules_to_save": ([*LORA, "--lora_modules_to_save", "lm_head"], lora("modules_to_save"), ["lm_head"]),
    "use_rslora": ([*LORA, "--use_rslora", "true"], lora("use_rslora"), True),
    "use_dora": ([*LORA, "--use_dora", "true"], lora("use_dora"), True),
    "load_in_8bit": ([*LORA, "--load_in_8bit", "true"], quantized("load_in_8bit"), True),
    "load_in_4bit": (FOUR_BIT, quantized("bnb_4bit_compute_dtype"), torch.bfloat16),
    "bnb_4bit_quant_type": ([*FOUR_BIT, "--bnb_4bit_quant_type", "fp4"], quantized("bnb_4bit_quant_type"), "fp4"),
    "use_bnb_nested_quant": ([*FOUR_BIT, "--use_bnb_nested_quant"], quantized("bnb_4bit_use_double_quant"), True),
    "bnb_4bit_quant_storage": (
        [*FOUR_BIT, "--bnb_4bit_quant_storage", "float16"],
        quantized("bnb_4bit_quant_storage"),
        torch.float16,
    ),
    "dataset_name": (["--dataset_name", "b/dataset"], asked("name"), "b/dataset"),
    "dataset_config": (["--dataset_config", "main"], asked("config"), "main"),
    "dataset_train_split": (["--dataset_train_split", "train[:8]"], asked("split"), "train[:8]"),
    "dataset_test_split": (["--dataset_test_split", "dev", "--num_eval_problems", "2"], asked("split", 1), "dev"),
}
REFUSED = {
    "lora_task_type": ([*LORA, "--lora_task_type", "SEQ_CLS"], "`lora_task_type` must be 'CAUSAL_LM', got 'SEQ_CLS'"),
    "dataset_streaming": (["--dataset_streaming", "true"], "`dataset_streaming=True` is not supported.*Set it to"),
    "ignore_bias_buffers": (["--ignore_bias_buffers", "true"], "`ignore_bias_buffers=True` .* Set it to False"),
}  # fmt: skip
FIELDS = [field.name for owner in (ModelConfig, ScriptArguments) for field in dataclasses.fields(owner)]


def test_every_field_is_honoured_or_refused():
    """A field of a newer TRL belongs into one of the tables."""
    assert sorted(FIELDS) == sorted({**HONOURED, **REFUSED})
    assert not HONOURED.keys() & REFUSED.keys()


@pytest.mark.parametrize("field", HONOURED)
def test_honoured(field, command, monkeypatch):
    arguments, see, expected = HONOURED[field]
    if "load_in" in str(arguments):  # as where bitsandbytes is installed
        monkeypatch.setattr("ccpo.arguments.find_spec", lambda name: ModuleSpec(name, None))
    assert see(command(*arguments)) == expected


@pytest.mark.parametrize("field", REFUSED)
def test_refused(field, command):
    arguments, message = REFUSED[field]
    with pytest.raises(ValueError, match=message):
        command(*arguments)
    assert "built" not in command.seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora_r", "32"], "`lora_r=32` has no effect without LoRA. Set `use_peft=True`, or leave it out"),
        (["--use_dora", "true"], "`use_dora=True` has no effect without LoRA"),
        ([*LORA, "--bnb_4bit_quant_type", "fp4"], "`bnb_4bit_quant_type='fp4'` has no effect without 4-bit weights"),
        (["--load_in_4bit", "true"], "`load_in_4bit=True` freezes the weights.* Set `use_peft=True`"),
        (FOUR_BIT, r"`load_in_4bit=True` needs the package bitsandbytes.*Install it \(pip install bitsandbytes\), or"),
        ([*LORA, "--load_in_8bit", "true"], "`load_in_8bit=True` needs the package bitsandbytes"),
        ([*LORA, "--load_in_4bit", "true", "--dtype", "auto"], "computes in `dtype`, got 'auto'. Set it"),
        ([*LORA, "--lora_r", "0"], "`lora_r` must be at least 1, got 0"),
        ([*LORA, "--lora_alpha", "-1"], "`lora_alpha` must be at least 1, got -1"),
        ([*LORA, "--lora_dropout", "1"], r"`lora_dropout` must be a number in \[0, 1\), got 1.0"),
        (["--max_train_rows", "0"], "`max_train_rows` must be an integer of at least 1, got 0"),
        (["--max_train_rows", "-5"], "`max_train_rows` must be an integer of at least 1, got -5"),
        (["--num_eval_problems", "-1"], "`num_eval_problems` must be an integer of at least 0, got -1"),
        (["--eval_batch_size", "0"], "`eval_batch_size` must be an integer of at least 1, got 0"),
        (["--eval_temperature", "-1"], "`eval_temperature` must be a finite number >= 0, got -1.0"),
        (["--eval_top_p", "1.5"], r"`eval_top_p` must be a number in \(0, 1\], got 1.5"),
        (["--warm_start_steps", "3"], "`warm_start_steps=3` has no effect with `dataset_name`"),
        (["--task", "wordproblems"], "`task='wordproblems'` has no effect with `dataset_name`"),
        (["--final_arms", "swapped_thinker"], r"`final_arms=\['swapped_thinker'\]` needs problems. Set `num_eval_"),
        (["--final_arms", "swapped_x", "--num_eval_problems", "2"], r"`arms` .* has \['swapped_x'\], which this "
                                                                    r"team does not have. It has"),
        (["--credit", "sepo", "--coef", "0.5"], "`coef=0.5` has no effect with `credit='sepo'`. Set `credit='ccpo'`"),
        (["--blame_coef", "0.5"], "`blame_coef=0.5` has no effect with `credit='ccpo'`. Set `credit='sepo'`"),
        (["--thinker_prompt", "Plan."], "`thinker_prompt` must contain {problem}, got 'Plan.'"),
        (["--solver_prompt", "{problem}"], "`solver_prompt` must contain {thought}, got '{problem}'"),
        (["--solo_prompt", "{problem}{thought}"], "`solo_prompt` cannot contain {thought}, because that text is "
                                                  "not written yet"),
    ],
)  # fmt: skip
def test_what_cannot_be(arguments, message, command, monkeypatch):
    monkeypatch.setattr("ccpo.arguments.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        command(*arguments)
    assert "built" not in command.seen


@pytest.mark.parametrize(
    ("field", "value"),
    [("problem_column", "q"), ("dataset_config", "main"), ("max_train_rows", 8), ("conversational", False)],
)
def test_the_embedded_task_takes_no_field_of_a_dataset(field, value):
    with pytest.raises(
        ValueError, match=rf"`{field}={value!r}` has no effect on the embedded task. Set `dataset_name`"
    ):
        TeamArguments(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "sums"}, r"`task` must be one of \['arithmetic', 'wordproblems'\], got 'sums'"),
        (
            {"task_kwargs": {"terms": [1, 9]}},
            r"`task_kwargs` must be a mapping with keys of \[\] with `task='arithmetic'`",
        ),
        ({"task": "wordproblems", "task_kwargs": {"term": 9}}, r"with keys of \['two_steps', 'terms', 'factors'\]"),
        ({"task": "wordproblems", "warm_start_steps": 3}, "`task='wordproblems'`, which has no warm start. Leave it"),
    ],
)
def test_what_a_task_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        TeamArguments(**fields)


def test_a_task_says_where_its_answers_stand():
    own = TeamArguments(task="wordproblems", task_kwargs="{two_steps: 0.5}")
    assert own.task_kwargs == {"two_steps": 0.5}
    assert own.make_credit().outcome.reader.pattern == TASKS["wordproblems"].answer_pattern
    assert TeamArguments(task="wordproblems", answer_pattern="= (.+)").make_credit().outcome.reader.pattern == "= (.+)"
    assert TeamArguments().make_credit().outcome.reader.pattern is None


def test_a_task_without_models_needs_one(command):
    with pytest.raises(ValueError, match="`model_name_or_path` is required with `task='wordproblems'`"):
        command.module.run(
            command.module.prepare(
                *command.module.parse_arguments(["--task", "wordproblems", "--output_dir", "out", *CPU])
            )
        )


def test_every_setting_of_a_scheme_is_a_field():
    names = {field.name for field in dataclasses.fields(TeamArguments)}
    assert all(set(settings) <= names for settings in _SETTINGS.values())


@pytest.mark.parametrize("word", ["--dataset_name", "--dataset-name", "--dataset-name=b/dataset"])
def test_a_dataset_is_not_trained_with_the_embedded_recipe(word, command):
    words = [word] if "=" in word else [word, "b/dataset"]
    _, args, _ = command.module.parse_arguments([*words, "--output_dir", "out", *CPU])
    assert args.max_steps == -1  # the recipe's is 150


def test_a_recipe_after_an_equals_sign(command):
    _, args, _ = command.module.parse_arguments([f"--config={ROOT / 'recipes/smoke/config_gsm8k.yaml'}"])
    assert args.output_dir == "outputs/smoke-gsm8k"


def test_the_held_out_problems_are_checked_too(command, monkeypatch):
    def load_problems(name, **kwargs):
        golds = ["2"] * 8 if kwargs["split"] == "train" else ["x +"] * 8
        return Dataset.from_dict({"prompt": ["1+1?"] * 8, "solution": golds})

    monkeypatch.setattr(command.module, "load_problems", load_problems)
    with pytest.raises(
        ValueError, match=r"`eval_dataset`: MathVerifier can read no gold answer in `solution` \(2 rows"
    ):
        command("--num_eval_problems", "2")
    assert "built" not in command.seen


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("coef: [0.1]", r"`coef` must be a number, got \[0.1\]"),
        ("credit: [ccpo]", r"`credit` must be text, got \['ccpo'\]"),
        ("answer_pattern: 3", "`answer_pattern` must be text, got 3. Put it in quotes"),
        ("solution_column: 3", "`solution_column` must be text, got 3. Put it in quotes"),
        ("dataset_train_split: [train]", r"`dataset_train_split` must be text, got \['train'\]"),
        ("model_init_kwargs: [1]", r"`model_init_kwargs` must be a mapping, got \[1\]"),
        ("use_peft: true\nlora_r: [8]", "`lora_r` must be a whole number"),
        (
            "credit: sepo\nrating_prompt: Rate it.",
            r"`rating_prompt` must contain at least one of {outcome}, .* 'Rate it.'",
        ),
        ("a: [", "`--config .*recipe.yaml` is not YAML: .* Correct the file"),
    ],
)
def test_values_of_a_recipe(recipe, message, command, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(ValueError, match=message):
        command("--config", str(path))
    assert "built" not in command.seen


@pytest.mark.parametrize("path", ["nowhere.yaml", "", "recipes"])
def test_a_recipe_that_is_no_file(path, command):
    message = f"`--config {path}` is neither a file nor a shipped recipe" if path else "is given without a recipe"
    with pytest.raises(ValueError, match=message):
        command.module.parse_arguments(["--config", path] if path else ["--config"])


# ---- Prompts ----

PROMPTS = {
    "thinker_prompt": "Plan, in English: {problem}\n```python\nprint()\n```\n",
    "solver_prompt": "{problem}\n\nPlan: {thought}\n\nThe answer: \\boxed{}",
    "solo_prompt": '{problem} {"a": 1}',
}


def test_prompts_in_a_recipe_and_on_the_command_line(command, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**PROMPTS, "per_device_train_batch_size": 8}))
    topology = command("--config", str(recipe), "--solo_prompt", "Alone: {problem}")["topology"]
    assert topology.prompts == {**PROMPTS, "solo_prompt": "Alone: {problem}"}
    assert command()["topology"] == ThinkSolve()
    embedded = TeamArguments(thinker_prompt="{problem}?").make_topology(command.module.TASKS["arithmetic"].topology)
    assert (embedded.thinker_prompt, embedded.solo_prompt) == ("{problem}?", "{problem} Answer: ")


def test_the_model_card_keeps_the_prompts(model_dirs, text_dataset, make_config, outcome, tmp_path):
    trainer = MultiAgentGRPOTrainer(
        model_dirs["qwen3"], SharedCredit(outcome), make_config(), text_dataset, topology=ThinkSolve(**PROMPTS)
    )
    trainer._save(tmp_path)
    for role in trainer.roles:
        card = (tmp_path / role / "README.md").read_text()
        *_, recipe = re.findall(r"^````yaml\n(.*?)^````$", card, re.DOTALL | re.MULTILINE)
        assert make_topology(yaml.safe_load(recipe)["topology"]) == ThinkSolve(**PROMPTS)
        assert " Plan: {thought}\n" in recipe  # a block, as it was written


def test_the_model_card_has_code_for_any_name(model_dirs, text_dataset, make_config, outcome, tmp_path):
    team = Chain(["class", "None", "two-words"])
    trainer = MultiAgentGRPOTrainer(
        model_dirs["qwen3"], SharedCredit(outcome), make_config(policy_sharing="shared"), text_dataset, topology=team
    )
    trainer._save(tmp_path)
    for agent in team.agents:
        blocks = re.findall(r"^```python\n(.*?)^```$", (tmp_path / agent / "README.md").read_text(), re.S | re.M)
        assert len(blocks) == 2 and all(map(ast.parse, blocks))


@pytest.mark.parametrize(
    ("arguments", "thinker", "solver"),
    [
        ([], {"temperature": 0.8, "top_k": 7, "min_p": 0.1, "max_new_tokens": 5}, {"top_k": 3, "max_new_tokens": 9}),
        (
            ["--eval_temperature", "1", "--eval_top_p", "0.5"],
            {"temperature": 1.0, "top_p": 0.5},
            {"top_p": 0.5, "top_k": 3},
        ),
    ],
)
def test_the_evaluation_samples_as_training_does(arguments, thinker, solver, example, monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr(
        example, "evaluate_team", lambda problems, generators, *args, **kwargs: made.update(generators)
    )
    given = {
        "--role_kwargs": "{'thinker': {'max_completion_length': 5, 'temperature': 0.8}, "
        "'solver': {'generation_kwargs': {'top_k': 3, 'repetition_penalty': 1.5}}}",
        "--generation_kwargs": "{'top_k': 7, 'suppress_tokens': [4]}",
        "--chat_template_kwargs": "{'enable_thinking': false}",
        "--min_p": "0.1",
        "--max_completion_length": "9",
        "--output_dir": str(tmp_path),
    }
    team, args, _ = example.parse_arguments([part for pair in given.items() for part in pair] + arguments)
    example.evaluate({"thinker": "t", "solver": "s"}, None, None, ThinkSolve(), team, args)
    for role, expected in (("thinker", thinker), ("solver", solver)):
        found = {**vars(made[role]), **made[role].generation_kwargs}
        assert {name: found[name] for name in expected} == expected
        assert found["suppress_tokens"] == [4] and found["chat_template_kwargs"] == {"enable_thinking": False}
    assert made["solver"].generation_kwargs["repetition_penalty"] == 1.5


def test_in_the_evaluation_a_model_has_one_generator_and_a_seed_of_its_own(example, monkeypatch, tmp_path):
    """Voters that are copies of one model would all say the same; the roles of one agent share calls and weights."""
    made = {}
    monkeypatch.setattr(
        example, "evaluate_team", lambda problems, generators, *args, **kwargs: made.update(generators)
    )
    team, args, _ = example.parse_arguments(["--seed", "3", "--output_dir", str(tmp_path)])
    example.evaluate({f"voter_{i}": f"m{i}" for i in (1, 2, 3)}, None, None, Vote(3), team, args)
    assert [generator.seed for generator in made.values()] == [3000, 3001, 3002]
    made.clear()
    args.role_kwargs = {"critique_b": {"max_completion_length": 5}}
    example.evaluate({"a": "m", "b": "n"}, None, None, AnswerCritiqueRewrite(), team, args)
    assert len(made) == 6 and len({id(generator) for generator in made.values()}) == 3
    assert made["answer_a"] is made["critique_a"] is made["rewrite_a"]
    assert made["answer_b"] is made["rewrite_b"] is not made["critique_b"]
