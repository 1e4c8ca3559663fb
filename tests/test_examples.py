"""Each example runs as its docstring launches it, with tiny steps, offline and without a model on disk."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ccpo import train as module

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
STEPS = ["--max_steps", "1", "--per_device_train_batch_size", "8", "--num_generations", "4"]
TINY = [*STEPS, "--warm_start_steps", "1"]
ROWS = {
    "gsm8k_train.jsonl": [
        {"question": f"Ann’s {i} hens lay 2 eggs a day. How many in a week?", "answer": f"{i}*14\n#### {14 * i}"}
        for i in range(1, 17)
    ],
    "math_train.jsonl": [
        {"problem": f"Find $x$ if $\\frac{{x}}{{{i}}} = 2$.\n[asy] draw((0,0)--(1,1)); [/asy]", "answer": f"{2 * i}"}
        for i in range(1, 17)
    ],
}


def data_file(folder, name):
    """The real rows beside the project, else some that look like them."""
    if (SHARED / name).is_file():
        return str(SHARED / name)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    return str(folder / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs, two at a time: `{name: (result, output folder)}`."""
    folder = tmp_path_factory.mktemp("examples")
    gsm8k, math = (data_file(folder, name) for name in ("gsm8k_train.jsonl", "math_train.jsonl"))
    smoke = [*LAUNCH, "examples/train_ccpo.py", "--config", "recipes/smoke/config_gsm8k.yaml", "--max_steps", "4"]
    command = [sys.executable, "-m", "ccpo", "train", "--accelerate_config", "cpu"]  # a recipe by its shipped name
    command += ["--config", "smoke/config_gsm8k.yaml", "--max_steps", "4"]
    tiny_models = ["--model_name_or_path", "tiny-random", "--num_eval_problems", "6", "--max_completion_length", "8"]
    commands = {
        "train_ccpo": [*LAUNCH, "examples/train_ccpo.py", *TINY, "--num_eval_problems", "16"],
        "smoke_gsm8k": [*smoke, "--dataset_name", gsm8k],
        "smoke_math": [*command, "--dataset_name", math, "--problem_column", "problem", "--solution_column", "answer"],
        "drop_in_reward": [sys.executable, "examples/drop_in_reward.py", *TINY],
        "two_models": [sys.executable, "examples/two_models.py", *TINY],
        "lora_per_role": [sys.executable, "examples/lora_per_role.py", *TINY],
        "custom_credit": [sys.executable, "examples/custom_credit.py", *TINY],
        "evaluate": [
            sys.executable,
            "examples/evaluate.py",
            *tiny_models,
            "--dataset_name",
            gsm8k,
            "--use_cpu",
            "true",
            "--k",
            "2",
        ],
    }

    def run(name):
        output = folder / name
        command = [*commands[name], "--output_dir", str(output)]
        return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600), output

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(run, commands), strict=True))


def finished(runs, name):
    result, output = runs[name]
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout, output


def assert_loadable(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)


def test_every_example_is_run(runs):
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} <= set(runs)


@pytest.fixture
def train_ccpo(monkeypatch):
    """The module `ccpo.train`; `processes` says how many there are, and a warm start trains nothing."""
    monkeypatch.setattr(module, "processes", 2, raising=False)
    state = {"is_main_process": True, "wait_for_everyone": lambda: None}
    monkeypatch.setattr(module, "PartialState", lambda: SimpleNamespace(num_processes=module.processes, **state))
    task = dataclasses.replace(module.TASKS["arithmetic"], build_models=lambda *args, **kwargs: None)
    monkeypatch.setitem(module.TASKS, "arithmetic", task)
    return module


@pytest.mark.parametrize(
    ("scheme", "arguments", "models"),
    [
        ("ccpo", (), {"thinker": "thinker", "solver": "solver"}),
        ("ccpo", ("--thinker_model", "mine"), {"solver": "solver"}),
        ("ccpo", ("--policy_sharing", "shared"), {"thinker": "solver", "solver": "solver"}),
        ("chain", (), {"planner": "planner", "adder": "adder", "solver": "solver"}),
        ("dacr", (), {"a": "a", "b": "b"}),
        ("dacr", ("--policy_sharing", "shared"), {"a": "shared", "b": "shared"}),
        ("chain", ("--models", "{planner: mine}"), {"adder": "adder", "solver": "solver"}),
    ],
)
def test_several_processes_are_told_the_arguments_of_their_team(scheme, arguments, models, train_ccpo, tmp_path):
    """Those with which the same command runs, on the models that one process has made."""
    recipe = ROOT / "recipes" / "arithmetic" / scheme / "config_demo.yaml"
    command = ["--config", str(recipe), "--output_dir", str(tmp_path / "my runs"), *arguments]
    team, args, model = train_ccpo.parse_arguments(command)
    topology = team.make_topology(train_ccpo.TASKS["arithmetic"].topology)
    expected = dict.fromkeys(topology.agents, "mine")
    expected |= {agent: str(tmp_path / "my runs" / "warm_start" / folder) for agent, folder in models.items()}
    with pytest.raises(
        ValueError, match="warm-started by one process, and there are 2. Run it once with one"
    ) as error:
        train_ccpo.load_models(team, args, model, topology)
    remedy = shlex.split(re.search("`(--.*)`", str(error.value))[1])
    assert train_ccpo.load_models(*train_ccpo.parse_arguments([*command, *remedy]), topology) == expected
    train_ccpo.processes = 1
    assert train_ccpo.load_models(team, args, model, topology) == expected


TEAMS = {
    "solo": (["--topology", "solo", "--credit", "shared"], {"solver": ""}),
    "frozen": (
        ["--policy_sharing", "adapters", "--use_peft", "true", "--lora_r", "2"]
        + ["--role_kwargs", '{"solver": {"trainable": false}}'],
        {"thinker": "thinker", "solver": "solver"},
    ),
}


@pytest.mark.parametrize("name", TEAMS)
def test_what_was_saved_is_evaluated_and_printed(name, train_ccpo, tmp_path, capsys):
    """One role's model stands in the folder itself, and a frozen agent among adapters plays the base."""
    given, folders = TEAMS[name]
    train_ccpo.processes = 1
    data, held, out = tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "out"
    for file in (data, held):
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS["gsm8k_train.jsonl"][:8]))
    given = [
        *given,
        "--dataset_name",
        str(data),
        "--eval_dataset_name",
        str(held),
        "--model_name_or_path",
        "tiny-random",
    ]
    given += ["--num_eval_problems", "2", "--max_completion_length", "4", *STEPS, "--use_cpu"]
    given += ["true", "--bf16", "false", "--report_to", "none", "--save_strategy", "no", "--output_dir", str(out)]
    train_ccpo.main(given)
    assert json.loads((out / "summary.json").read_text())["num_eval_problems"] == 2
    assert json.loads((out / "team.json").read_text())["kind"] == ("solo" if name == "solo" else "think_solve")
    printed = capsys.readouterr().out
    for agent, folder in folders.items():
        assert re.search(rf"{agent}:? +{re.escape(str(out / folder))}$", printed, re.MULTILINE), printed


def test_the_arms_of_a_trained_team_are_evaluated_and_said_in_words(train_ccpo, tmp_path, capsys):
    """On word problems, with a tiny model in the place of the real one; what a first run left is moved aside."""
    train_ccpo.processes, out = 1, tmp_path / "out"
    recipe = "recipes/SmolLM2-135M-Instruct/wordproblems/config_demo.yaml"
    given = ["--config", str(ROOT / recipe), "--model_name_or_path", "tiny-random", "--output_dir", str(out)]
    given += ["--num_eval_problems", "4", "--per_device_train_batch_size", "8", "--disable_tqdm", "true"]
    for seed in ("1", "2"):
        train_ccpo.main([*given, "--max_steps", "1", "--seed", seed])
        if seed == "1":
            (out / "evaluation" / "notes.txt").write_text("mine")
    printed = capsys.readouterr().out
    assert (out / "evaluation-1" / "notes.txt").is_file() and not (out / "evaluation" / "notes.txt").exists()
    assert f"moved to {out / 'evaluation-1'}" in printed
    results = json.loads((out / "evaluation" / "results.json").read_text())
    arms = ["joint", "without_thinker", "ablated_thinker", "swapped_thinker", "single"]
    assert list(results["benchmarks"]["wordproblems"]["arms"]) == arms
    assert "It is not seen that the thinker helps: the team is right in 0.000 of the problems" in printed
    assert "The team is not seen to be better than one policy that was not trained" in printed
    assert json.loads((out / "summary.json").read_text())["joint_accuracy_difference_interval"] == [0, 0]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_launch_command_in_the_docstring(path):
    docstring = path.read_text().split('"""')[1]
    assert f"examples/{path.name}" in docstring
    recipes = [word for word in docstring.split() if word.endswith(".yaml")]
    assert all((ROOT / recipe).is_file() for recipe in recipes)


def test_train_ccpo(runs):
    out, output = finished(runs, "train_ccpo")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["num_eval_problems"] == 16 and summary["seconds"] > 0
    for name in ("joint_accuracy", "solo_accuracy", "leak_rate"):
        assert 0 <= summary[f"{name}_before"] <= 1 and 0 <= summary[f"{name}_after"] <= 1
    assert (output / "curves.png").stat().st_size > 10_000
    assert "<h1>" in (output / "report.html").read_text() and list((output / "completions").glob("*.parquet"))
    for name in ("thinker", "solver", "summary.json", "curves.png", "report.html"):
        assert str(output / name) in out
    assert "joint accuracy" in out
    for role in ("thinker", "solver"):
        assert_loadable(output / role)


@pytest.mark.parametrize("name", ["smoke_gsm8k", "smoke_math"])
def test_smoke(name, runs):
    out, output = finished(runs, name)
    assert "4/4" in runs[name][0].stderr  # all four steps, on real prompts
    for role in ("thinker", "solver"):
        assert f"{role}: {output / role}" in out
        assert_loadable(output / role)


def test_drop_in_reward(runs):
    out, output = finished(runs, "drop_in_reward")
    assert "joint accuracy of the last batch: " in out and "solo accuracy of the last batch: " in out
    assert_loadable(output)


def test_two_models(runs):
    out, output = finished(runs, "two_models")
    types = {role: AutoConfig.from_pretrained(output / role).model_type for role in ("thinker", "solver")}
    assert types["solver"] == "qwen3" != types["thinker"]
    encoded = [AutoTokenizer.from_pretrained(output / role)("(7+12)*4").input_ids for role in types]
    assert encoded[0] != encoded[1]
    assert "solver: Qwen3ForCausalLM" in out


def test_lora_per_role(runs):
    out, output = finished(runs, "lora_per_role")
    assert "frozen weights; adapters: {'thinker': " in out
    for role in ("thinker", "solver"):
        assert PeftConfig.from_pretrained(output / role).r == 8
        assert not (output / role / "model.safetensors").exists()
        assert (output / role / "adapter_model.safetensors").stat().st_size < 1_000_000


def test_custom_credit(runs):
    out, output = finished(runs, "custom_credit")
    assert "correlation of the Thinker's advantages with shared credit's: [" in out
    assert "rewards/worst_answer_credit/mean" in (output / "metrics.jsonl").read_text()
    assert_loadable(output / "solver")


def test_evaluate(runs):
    out, output = finished(runs, "evaluate")
    content = json.loads((output / "results.json").read_text())
    (name, found), *_ = content["benchmarks"].items()
    assert found["arms"].keys() == {"joint", "without_thinker", "ablated_thinker", "swapped_thinker"}
    joint = found["arms"]["joint"]["avg_at_k"]
    assert joint["problems"] <= 6 == content["settings"]["benchmarks"][name]["problems"] and found["k"] == 2
    assert joint["problems"] == 0 or joint["interval"][0] <= joint["value"] <= joint["interval"][1]
    assert "6 problems, 2 samples each" in out and str(output / "results.json") in out
