"""
A user's way from a dataset to a report, as commands: what `make test-min` and `make test-new` run in an environment of
the lowest and of the newest versions, where most of the suite's tools are missing.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from trl import GRPOConfig, GRPOTrainer

from ccpo import CounterfactualCredit, TransformersGenerator
from ccpo.tasks import arithmetic

pytestmark = pytest.mark.full  # `make test` has each step in a test of its own

CCPO = [sys.executable, "-m", "ccpo"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
LORA = ["--policy_sharing", "adapters", "--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"]
# Two blocks of turns, a checkpoint between them, what is left out of a forward pass computed again.
STEPS = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--gradient_checkpointing", "true"]


def run(*arguments, cwd: Path) -> str:
    """The package's command, `ccpo`, in a folder that is not the checkout's."""
    command = [*CCPO, *map(str, arguments)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    for name in ("train", "test"):
        rows = ({"question": f"How many eggs do {i} hens lay, 2 each?", "answer": f"#### {2 * i}"} for i in range(16))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("sharing", ["separate", "adapters"])
def test_smoke_recipe_trains_evaluates_and_reports(sharing, folder):
    data = ["--dataset_name", "train.jsonl", "--eval_dataset_name", "test.jsonl", "--num_eval_problems", 4]
    options = [*data, *STEPS, *(LORA if sharing == "adapters" else [])]
    run("train", "--config", "smoke/config_gsm8k.yaml", *options, *CPU, "--output_dir", sharing, cwd=folder)
    out = folder / sharing
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("credit/joint_accuracy" in line for line in lines)
    assert (out / "checkpoint-2" / "ccpo_checkpoint.json").is_file()
    assert json.loads((out / "summary.json").read_text())

    benchmark = ["--benchmarks", "test.jsonl:question:answer", "--max_problems", 4, "--k", 2]
    printed = run("evaluate", sharing, *benchmark, "--output_dir", out / "evaluation", cwd=folder)
    assert "joint" in printed and "without_thinker" in printed
    assert (out / "evaluation" / "samples.parquet").is_file()

    (out / "report.html").unlink()
    run("report", sharing, cwd=folder)
    assert "<svg" in (out / "report.html").read_text()


def test_the_embedded_task_is_the_default(folder):
    few = ["--max_steps", 1, "--warm_start_steps", 2, "--num_eval_problems", 4, "--final_arms", "joint"]
    sizes = ["--per_device_train_batch_size", 8, "--num_generations", 4]
    run("train", *few, *sizes, "--output_dir", "demo", cwd=folder)
    assert (folder / "demo" / "summary.json").is_file() and (folder / "demo" / "curves.png").is_file()


def test_credit_in_the_stock_trainer(tmp_path, outcome):
    """A frozen partner's generator, gradient checkpointing, two steps."""
    models = arithmetic.warm_start(tmp_path / "warm_start", thinker_steps=1, solver_steps=1, seed=0)
    topology = arithmetic.topology()
    rows = arithmetic.build_dataset("train").select(range(8))
    partner = TransformersGenerator(models["solver"], max_new_tokens=8, seed=0)
    settings = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, "max_steps": 2}
    settings |= {"gradient_checkpointing": True, "use_cpu": True, "bf16": False, "logging_steps": 1}
    args = GRPOConfig(output_dir=str(tmp_path / "out"), report_to="none", save_strategy="no", **settings)
    credit = CounterfactualCredit(outcome=outcome, partner=partner, topology=topology)
    trainer = GRPOTrainer(models["thinker"], credit, args, rows)
    trainer.train()
    assert all("credit/joint_accuracy" in line for line in trainer.state.log_history[:2])


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="needs ccpo[serve]")
def test_a_team_is_served(model_dirs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = ["--models", model_dirs["qwen3"], "--topology", "think_solve", "--max_new_tokens", "4"]
    command = [*CCPO, "serve", *models, "--port", str(port)]
    with open(tmp_path / "log.txt", "w") as log:
        server = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)
    try:
        body = json.dumps({"model": "team", "messages": [{"role": "user", "content": "1+1?"}]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body)
        request.add_header("Content-Type", "application/json")
        for _ in range(300):
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=60))
                break
            except urllib.error.HTTPError as error:
                pytest.fail(error.read().decode())
            except OSError:  # it is still loading
                assert server.poll() is None, (tmp_path / "log.txt").read_text()
                time.sleep(1)
    finally:
        server.terminate()
        server.wait(60)
    assert "content" in answer["choices"][0]["message"]
