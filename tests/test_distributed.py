"""Real processes on CPU: what is sampled is canned, so that every set-up must end with the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("canned.py")
ROLES = ("thinker", "solver")
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
pytestmark = pytest.mark.distributed


def launch(out: Path, model, num_processes: int, credit="ccpo", lora=None, **args) -> dict:
    """Run the worker on `num_processes` CPU processes (gloo) and return what it wrote."""
    settings = {
        "output_dir": str(out / "run"),
        "num_generations": 2,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,  # else Adam blows the rounding of a gradient of nearly 0 up to a whole step
        "logging_steps": 1,
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "weight_decay": 0.1,
        "max_steps": 4,
        "schedule": "joint",
        **args,
    }
    spec = {"model": model, "args": settings, "out": str(out), "credit": credit} | ({"lora": lora} if lora else {})
    command = [sys.executable, str(WORKER), json.dumps(spec)]
    if num_processes > 1:
        settings["ddp_backend"] = "gloo"
        spec_json = json.dumps(spec)
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}"]
        command += ["--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(WORKER), spec_json]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-9000:]
    result = json.loads((out / "result.json").read_text())
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    result["weights"] = {role: load_file(out / role / name) for role in ROLES}
    return result


def assert_same_run(one: dict, two: dict, tolerance: float = 2e-5) -> None:
    assert len(one["history"]) == len(two["history"])
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for role in mine:
            torch.testing.assert_close(torch.tensor(mine[role]), torch.tensor(theirs[role]), rtol=0, atol=1e-5)
    for role in ROLES:
        for name, weight in one["weights"][role].items():
            torch.testing.assert_close(
                weight, two["weights"][role][name], rtol=0, atol=tolerance, msg=f"{role}.{name}"
            )


@pytest.mark.parametrize(
    ("sharing", "credit", "settings"),
    [
        ("separate", "ccpo", {"schedule": "alternate", "alternate_period": 1, "loss_type": "dapo"}),
        ("separate", "sepo", {"loss_type": "grpo"}),
        ("adapters", "ccpo", {"advantage_estimator": "reinforce++", "loss_type": "grpo"}),
        ("shared", "ccpo", {"loss_type": "grpo"}),
    ],
)
def test_groups_split_over_two_processes(sharing, credit, settings, tmp_path, model_dirs):
    """3 rows per process and groups of 2: the second prompt's group lies on both. Credit must see it whole."""
    model = (
        {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
        if sharing == "separate"
        else model_dirs["qwen3"]
    )
    lora = LORA if sharing == "adapters" else None
    settings = {"policy_sharing": sharing, **settings}
    one = launch(tmp_path / "one", model, 1, credit, lora, per_device_train_batch_size=6, **settings)
    two = launch(tmp_path / "two", model, 2, credit, lora, per_device_train_batch_size=3, **settings)
    assert (one["rows"], two["rows"]) == ([6], [3, 3])
    assert any(a != 0 for batch in one["history"] for role in batch.values() for row in role for a in row)
    assert_same_run(one, two)
    for key in ("credit/joint_accuracy", "credit/solo_accuracy", "thinker/reward", "credit/leak_rate"):
        mine, theirs = ([row.get(key) for row in run["log"]] for run in (one, two))
        assert mine == pytest.approx(theirs, abs=1e-5, nan_ok=True)
