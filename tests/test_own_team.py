"""A team of a user's own, from YAML: trained on real rows, killed, resumed, saved and loaded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo import TransformersGenerator
from ccpo.team.rollout import run_team
from ccpo.team.topology import make_topology
from ccpo.training.checkpoints import find_defects

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "smoke" / "config_team.yaml"
ROWS = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"
AGENTS = ("strategist", "reviewer")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The first rows of GSM8K where they are at hand, else rows of the same form."""
    path = tmp_path_factory.mktemp("rows") / "gsm8k_train.jsonl"
    if ROWS.is_file():
        lines = ROWS.read_text().splitlines()[:16]
    else:
        lines = [json.dumps({"question": f"What is {i} + 1?", "answer": f"Add.\n#### {i + 1}"}) for i in range(16)]
    path.write_text("\n".join(lines) + "\n")
    return path


def command(rows: Path, output: Path, *arguments: str) -> list[str]:
    settings = ["--config", str(RECIPE), "--dataset_name", str(rows), "--output_dir", str(output)]
    settings += ["--max_completion_length", "6", "--per_device_train_batch_size", "4", "--disable_tqdm", "true"]
    settings += ["--save_strategy", "steps", "--save_steps", "1"]
    settings += ["--weight_decay", "0.5"]  # random models earn nothing, and their weights are to move all the same
    return [sys.executable, "examples/train_ccpo.py", *settings, *arguments]


def without_times(row: dict) -> dict:
    return {name: str(value) for name, value in row.items() if not name.endswith(("_seconds", "_time", "_second"))} | {
        "rollout/writer_tokens": row["rollout/writer_tokens"]
    }


def test_a_team_from_yaml_is_trained_killed_resumed_saved_and_loaded(rows, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(rows, whole), **options, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]

    process = subprocess.Popen(command(rows, killed), **options)
    second = killed / "checkpoint-2"
    while process.poll() is None and (not second.is_dir() or find_defects(second)):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (killed / "team.json").exists()
    done = subprocess.run(command(rows, killed, "--resume_from_checkpoint", "true"), **options, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]

    topology = make_topology(json.loads((killed / "team.json").read_text()))
    assert topology == make_topology(yaml.safe_load(RECIPE.read_text())["topology"])
    assert topology.agents == AGENTS and topology.role_names == ("planner", "critic", "coder", "writer")
    start = load_file(killed / "tiny-random" / "model.safetensors")
    for agent in AGENTS:
        one, two = (load_file(folder / agent / "model.safetensors") for folder in (whole, killed))
        assert one.keys() == two.keys() and all(torch.equal(weight, two[name]) for name, weight in one.items())
        assert any(not torch.equal(weight, start[name]) for name, weight in one.items())
    logs = [json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text()) for folder in (whole, killed)]
    mine, theirs = ([without_times(row) for row in log["log_history"]] for log in logs)
    assert mine == theirs and len(mine) == 4 and mine[0]["rollout/writer_tokens"] > 0

    models = {agent: AutoModelForCausalLM.from_pretrained(killed / agent) for agent in AGENTS}
    tokenizers = {agent: AutoTokenizer.from_pretrained(killed / agent) for agent in AGENTS}
    speakers = {
        agent: TransformersGenerator(models[agent], tokenizers[agent], max_new_tokens=4, seed=0) for agent in AGENTS
    }
    generate = {role: speakers[topology.agent_of(role)] for role in topology.role_names}
    episodes = run_team(topology, [[{"role": "user", "content": "What is 1 + 1?"}]], generate)
    assert {role: len(said.texts) for role, said in episodes.said.items()} == {
        "planner": 1,
        "critic": 2,
        "coder": 2,
        "writer": 2,
    }
