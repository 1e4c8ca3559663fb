"""Runs of canned.py in real processes on CPU, for the tests of several processes."""

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.commands import launch as launch_module
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("canned.py")
ROLES = ("thinker", "solver")
AGENTS = ("a", "b")  # of answer, critique, rewrite: six roles
QUIET = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: no ZeRO"
)


def launch(
    out: Path,
    model,
    num_processes: int,
    credit="ccpo",
    lora=None,
    zero=0,
    offload=False,
    fsdp=False,
    watch=False,
    samples=False,
    resume=None,
    preempt=None,
    launcher=False,
    **args,
) -> dict:
    """
    Run the worker on `num_processes` CPU processes (gloo) and return what it wrote.

    Under ZeRO stage `zero`, with the optimizer's state in a CPU's memory if `offload`, or FSDP2; `watch` writes what
    each optimizer step leaves alone; `samples` lets the policies generate; `resume` is a checkpoint;
    `preempt` is the step in which the last process gets SIGTERM. With `launcher` they are started by
    accelerate (ZeRO) or torch.distributed.run; without, forked from a process that has imported everything.
    """
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
        "max_completion_length": 8,
        "schedule": "joint",
        **args,
    }
    if credit == "drop_in":
        del settings["schedule"]
    if num_processes > 1:
        settings["ddp_backend"] = "gloo"
    spec = {"model": model, "args": settings, "out": str(out), "credit": credit, "lora": lora, "fsdp": fsdp}
    spec |= {"watch": watch, "samples": samples, "resume": resume, "preempt": preempt}
    # DeepSpeed builds an extension once; in a folder of this session, where no killed run has left its lock.
    base = {"TORCH_EXTENSIONS_DIR": str(out.parents[1] / "torch_extensions"), **os.environ, **QUIET}
    environment = dict(base)
    if zero:
        environment |= zero_environment(write_zero_config(out, zero, offload), num_processes)
    if fsdp:
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        environment |= {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
        environment |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
        environment |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_OFFLOAD_PARAMS": "false"}
    out.mkdir(parents=True, exist_ok=True)
    if launcher:
        start = ["accelerate.commands.accelerate_cli", "launch", "--main_process_port=0"]
        start += ["--config_file", str(out / "accelerate.yaml"), f"--num_processes={num_processes}"]
        if not zero:
            start = ["torch.distributed.run", "--master_port=0", f"--nproc_per_node={num_processes}"]
            start += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
        command = [sys.executable, "-m", *start, str(WORKER), json.dumps(spec)]
        done = subprocess.run(command, env=base, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-19000:]
    else:
        places = places_of(num_processes) if num_processes > 1 or zero else [{}]
        warm_process().run(spec, [environment | place for place in places], out / "output.txt")
    result = json.loads((out / "result.json").read_text())
    agents = AGENTS if credit == "dacr" else ROLES
    roles = {"thinker": out} if credit == "drop_in" else {agent: out / agent for agent in agents}
    files = {
        role: [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
        for role, folder in roles.items()
    }
    result["weights"] = {role: load_file(found[0]) for role, found in files.items() if found}
    return result


class WarmProcess:
    """tests/warm.py, which forks the processes of a run: what they import is imported once."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
        environment = {**os.environ, **QUIET}
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, spec: dict, environments: list[dict], output: Path, timeout: float = 400) -> None:
        request = {"spec": spec, "environments": environments, "output": str(output), "timeout": timeout}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        codes = json.loads(self.process.stdout.readline())
        assert not any(codes), (codes, output.read_text()[-20000:])


@functools.cache
def warm_process() -> WarmProcess:
    return WarmProcess()


def places_of(num_processes: int) -> list[dict]:
    """What torch.distributed.run tells each process of where it stands."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes, "GROUP_RANK": 0}
    common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    places = [{"RANK": rank, "LOCAL_RANK": rank, **common} for rank in range(num_processes)]
    return [{name: str(value) for name, value in place.items()} for place in places]


def zero_environment(config: Path, num_processes: int) -> dict:
    """What `accelerate launch --config_file` tells the processes, by accelerate's own reading of the file."""
    command = ["--config_file", str(config), f"--num_processes={num_processes}", str(WORKER)]
    with patch.object(launch_module, "deepspeed_launcher") as start:
        launch_module.launch_command(launch_module.launch_command_parser().parse_args(command))
    return prepare_deepspeed_cmd_env(start.call_args.args[0])[1]


def write_zero_config(out: Path, stage: int, offload: bool) -> Path:
    """An accelerate configuration. With stage 3 every parameter is sharded, however small."""
    deepspeed = {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
    if stage == 3:
        deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if offload:
        deepspeed["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    out.mkdir(parents=True, exist_ok=True)
    (out / "deepspeed.json").write_text(json.dumps(deepspeed))
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"deepspeed_config_file": str(out / "deepspeed.json"), "zero3_init_flag": False},
        "num_machines": 1,
        "use_cpu": True,
    }
    (out / "accelerate.yaml").write_text(json.dumps(config))  # JSON is YAML
    return out / "accelerate.yaml"


def assert_same_run(one: dict, two: dict, tolerance: float = 2e-5) -> None:
    assert len(one["history"]) == len(two["history"])
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for role in mine:
            torch.testing.assert_close(torch.tensor(mine[role]), torch.tensor(theirs[role]), rtol=0, atol=1e-5)
    assert one["outcomes"] == two["outcomes"]
    assert one["weights"].keys() == two["weights"].keys()
    for role, weights in one["weights"].items():
        assert weights.keys() == two["weights"][role].keys()
        for name, weight in weights.items():
            torch.testing.assert_close(
                weight, two["weights"][role][name], rtol=0, atol=tolerance, msg=f"{role}.{name}"
            )


BLOCKS = {"schedule": "alternate", "alternate_period": 2, "max_steps": 6, "weight_decay": 0.5, "watch": True}
SET_UPS = {
    "one process, 4 steps of 2": (1, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    "DDP": (2, {"per_device_train_batch_size": 4}),
    "DDP, 4 steps of 1": (2, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
    "ZeRO-1": (2, {"per_device_train_batch_size": 4, "zero": 1}),
    "ZeRO-2": (2, {"per_device_train_batch_size": 4, "zero": 2}),
    "ZeRO-2, 4 steps of 1": (2, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "zero": 2}),
    "ZeRO-2, offload": (2, {"per_device_train_batch_size": 4, "zero": 2, "offload": True}),
    "ZeRO-3": (2, {"per_device_train_batch_size": 4, "zero": 3}),
    "ZeRO-3, 4 steps of 1": (2, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "zero": 3}),
    "ZeRO-3, offload": (2, {"per_device_train_batch_size": 4, "zero": 3, "offload": True}),
    "FSDP2": (2, {"per_device_train_batch_size": 4, "fsdp": True}),
    "FSDP2, 4 steps of 1": (2, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "fsdp": True}),
}


# `make test` has one set-up of each backend; `make test-all` those, too, that differ by batches or offload alone.
IN_TEST_ALL = (
    "DDP, 4 steps of 1",
    "ZeRO-1",
    "ZeRO-2, 4 steps of 1",
    "ZeRO-2, offload",
    "ZeRO-3, 4 steps of 1",
    "ZeRO-3, offload",
)


def marks(set_up: str):
    return [needs_deepspeed] * ("ZeRO" in set_up) + [pytest.mark.full] * (set_up in IN_TEST_ALL)


def mode(sharing: str, model_dirs) -> tuple:
    """
    Model and settings of a team of six roles and two agents: separate policies of two architectures in turns, the
    others jointly.
    """
    if sharing == "separate":
        return dict(zip(AGENTS, (model_dirs["qwen3"], model_dirs["llama"]), strict=True)), {"credit": "dacr", **BLOCKS}
    lora = LORA if sharing == "adapters" else None
    return model_dirs["qwen3"], {"credit": "dacr", "policy_sharing": sharing, "lora": lora, "max_steps": 3}
