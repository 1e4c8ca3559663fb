"""Real processes on CPU: what is sampled is canned, so that every set-up must end with the same weights."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("canned.py")
ROLES = ("thinker", "solver")
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
pytestmark = pytest.mark.distributed


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
    **args,
) -> dict:
    """
    Run the worker on `num_processes` CPU processes (gloo) and return what it wrote.

    Under ZeRO stage `zero`, with the optimizer's state in a CPU's memory if `offload`, or FSDP2; `watch` writes what
    each optimizer step leaves alone; `samples` lets the policies generate; `resume` is a checkpoint;
    `preempt` is the step in which the last process gets SIGTERM.
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
    command = [sys.executable]
    if zero:
        config = write_zero_config(out, zero, offload)
        command += ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
        command += [f"--num_processes={num_processes}", "--main_process_port=0"]
    elif num_processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}"]
        command += ["--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # DeepSpeed builds an extension once; in a folder of this session, where no killed run has left its lock.
    env.setdefault("TORCH_EXTENSIONS_DIR", str(out.parents[1] / "torch_extensions"))
    if fsdp:
        env |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
        env |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
        env |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_OFFLOAD_PARAMS": "false"}
    worker = [str(WORKER), json.dumps(spec)]
    done = subprocess.run(command + worker, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-19000:]
    result = json.loads((out / "result.json").read_text())
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    roles = {"thinker": out} if credit == "drop_in" else {role: out / role for role in ROLES}
    result["weights"] = {role: load_file(folder / name) for role, folder in roles.items()}
    return result


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


@pytest.mark.parametrize(
    ("sharing", "credit", "settings"),
    [
        ("separate", "ccpo", {"schedule": "alternate", "alternate_period": 1, "loss_type": "dapo"}),
        ("separate", "sepo", {"loss_type": "grpo"}),
        ("adapters", "ccpo", {"advantage_estimator": "reinforce++", "loss_type": "grpo"}),
        ("shared", "ccpo", {"loss_type": "grpo"}),
        ("separate", "ccpo", {"num_solves": 2, "num_solos": 3, "loss_type": "grpo"}),  # 4 and 5 solos
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
    tokens = [f"rollout/{arm}_tokens" for arm in ("thought", "joint", "update")]
    for key in ("credit/joint_accuracy", "credit/solo_accuracy", "thinker/reward", "credit/leak_rate", *tokens):
        mine, theirs = ([row.get(key) for row in run["log"]] for run in (one, two))
        assert mine == pytest.approx(theirs, abs=1e-5, nan_ok=True)


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


def marks(set_up: str):
    return [needs_deepspeed] if "ZeRO" in set_up else []


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, model_dirs):
    """The run of one process with the batch in one piece, of each sharing mode."""
    runs = {}

    def get(sharing: str) -> dict:
        if sharing not in runs:
            model, settings = mode(sharing, model_dirs)
            out = tmp_path_factory.mktemp("whole") / sharing
            runs[sharing] = launch(out, model, 1, per_device_train_batch_size=8, **settings)
        return runs[sharing]

    return get


def mode(sharing: str, model_dirs) -> tuple:
    """Model and settings: separate policies of two architectures in turns, the others jointly."""
    if sharing == "separate":
        return {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}, BLOCKS
    lora = LORA if sharing == "adapters" else None
    return model_dirs["qwen3"], {"policy_sharing": sharing, "lora": lora, "max_steps": 3}


@pytest.mark.parametrize("set_up", [pytest.param(name, marks=marks(name)) for name in SET_UPS])
def test_three_blocks_are_the_same_in_every_set_up(set_up, tmp_path, model_dirs, whole_run):
    """The same weights after three blocks, and out of turn no bit of a role moves: no weight, master or moment."""
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode("separate", model_dirs)
    run = launch(tmp_path / "run", model, num_processes, **settings, **kwargs)
    kind = {"Ze": "DEEPSPEED", "FS": "FSDP", "DD": "MULTI_CPU", "on": "NO"}[set_up[:2]]
    assert run["backend"].endswith(kind)
    assert_same_run(whole_run("separate"), run, tolerance=5e-5)
    assert len(run["watched"]) == num_processes
    for steps in run["watched"]:
        assert [row["in_turn"] for row in steps] == [role for role in ("thinker", "solver", "thinker") for _ in "12"]
        for i, row in enumerate(steps):
            moves, rests = (role for role in sorted(ROLES, key=lambda role: role != row["in_turn"]))
            for what in ("weights", "masters", "moments"):
                assert row[f"{rests}/{what}"], (what, row)
                assert not row[f"{moves}/{what}"], (what, row)
            assert i < 2 or row[f"{rests}/moments/count"] > 0  # there are moments to keep


@pytest.mark.parametrize("sharing", ["shared", "adapters"])
@pytest.mark.parametrize(
    "set_up", [pytest.param(name, marks=marks(name)) for name in ("DDP", "ZeRO-2", "ZeRO-3", "FSDP2")]
)
def test_one_base_is_trained_the_same_in_every_set_up(set_up, sharing, tmp_path, model_dirs, whole_run):
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode(sharing, model_dirs)
    run = launch(tmp_path / "run", model, num_processes, **settings, **kwargs)
    assert_same_run(whole_run(sharing), run, tolerance=5e-5)


@pytest.mark.parametrize(
    ("set_up", "sharing"),
    [
        pytest.param(set_up, sharing, marks=marks(set_up))
        for set_up, sharing in (
            ("DDP", "separate"),
            ("ZeRO-2", "separate"),
            ("ZeRO-3", "separate"),
            ("ZeRO-3", "adapters"),
            ("FSDP2", "separate"),
            ("FSDP2", "adapters"),
        )
    ],
)
def test_resuming_in_the_middle_of_a_batch_and_a_block(set_up, sharing, tmp_path, model_dirs):
    """Two processes: the generation batch is of 2 steps, gone through twice, and a block of 8."""
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode(sharing, model_dirs)
    kwargs = {**kwargs, **({"policy_sharing": sharing, "lora": LORA} if sharing == "adapters" else {})}
    settings = {"steps_per_generation": 2, "num_iterations": 2, "schedule": "alternate", "alternate_period": 2}
    settings |= {"max_steps": 10, "save_strategy": "steps", "save_steps": 3, **kwargs}
    whole = launch(tmp_path / "whole", model, num_processes, **settings)
    for step in (3, 9):
        checkpoint = tmp_path / "whole" / "run" / f"checkpoint-{step}"
        rest = launch(tmp_path / f"from{step}", model, num_processes, resume=str(checkpoint), **settings)
        begun = -(-step // 4)  # generation batches of which nothing is left to generate
        assert len(rest["history"]) == len(whole["history"]) - begun
        assert_same_run(whole | {key: whole[key][begun:] for key in ("history", "outcomes")}, rest, tolerance=5e-5)
        for mine, theirs in zip(whole["log"], rest["log"], strict=True):
            for key in mine.keys() - {"step_time", "train_runtime", "train_loss"}:
                if not key.endswith(("_second", "_seconds", "_flos", "_time")):
                    assert mine[key] == pytest.approx(theirs[key], abs=1e-5, nan_ok=True), key


@pytest.mark.parametrize("set_up", [pytest.param(name, marks=marks(name)) for name in ("DDP", "ZeRO-3", "FSDP2")])
def test_the_adapter_out_of_turn_does_not_move(set_up, tmp_path, model_dirs):
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode("adapters", model_dirs)
    run = launch(tmp_path / "run", model, num_processes, **{**settings, **BLOCKS, "max_steps": 4}, **kwargs)
    for steps in run["watched"]:
        for row in steps:
            moves, rests = (role for role in sorted(ROLES, key=lambda role: role != row["in_turn"]))
            for what in ("weights", "masters", "moments"):
                assert row[f"{rests}/{what}"] and not row[f"{moves}/{what}"], (what, row)


def test_sigterm_to_one_process_stops_both_after_a_checkpoint(tmp_path, model_dirs):
    """Both save and leave `train` as stopped, and the run goes on from there."""
    model, _ = mode("separate", model_dirs)
    settings = {"max_steps": 4, "per_device_train_batch_size": 4}
    whole = launch(tmp_path / "whole", model, 2, **settings)
    first = launch(tmp_path / "first", model, 2, preempt=2, **settings)
    assert first["stopped"] == [True, True] and len(first["history"]) == 2
    assert [path.name for path in (tmp_path / "first" / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    checkpoint = str(tmp_path / "first" / "run" / "checkpoint-2")
    rest = launch(tmp_path / "rest", model, 2, resume=checkpoint, **settings)
    assert_same_run(whole | {key: whole[key][2:] for key in ("history", "outcomes")}, rest, tolerance=5e-5)


def test_tied_embeddings_are_saved_once(tmp_path):
    """Gathered from FSDP2, two tensors come back for a weight that is one."""
    model = {}
    for role, kind in zip(ROLES, ("qwen3", "llama"), strict=True):
        tokenizer = make_tokenizer(kind=kind)
        make_model(kind, tokenizer, tie_word_embeddings=True).save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
        model[role] = str(tmp_path / role)
    one = launch(tmp_path / "one", model, 1, per_device_train_batch_size=8, max_steps=2)
    two = launch(tmp_path / "two", model, 2, per_device_train_batch_size=4, max_steps=2, fsdp=True)
    assert_same_run(one, two, tolerance=5e-5)


@pytest.mark.parametrize("set_up", [pytest.param(name, marks=marks(name)) for name in ("ZeRO-3", "FSDP2")])
def test_sharded_policies_generate_with_ends_that_differ_by_process(set_up, tmp_path, model_dirs):
    """A process whose completions end early must take part in the others' forward passes."""
    num_processes, kwargs = SET_UPS[set_up]
    model, _ = mode("separate", model_dirs)
    settings = {"samples": True, "max_steps": 2, "max_completion_length": 40, **kwargs}
    run = launch(tmp_path / "run", model, num_processes, **settings)
    rows = [row for row in run["log"] if "loss" in row]
    for role in ROLES:
        assert all(row[f"{role}/completions/min_length"] < row[f"{role}/completions/max_length"] for row in rows)


@needs_deepspeed
def test_zero3_starts_every_step_from_no_gradient(tmp_path, model_dirs):
    """ZeRO-3 overwrites last step's gradients in a step's first backward pass only, and the Solver's is the second."""
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    one = launch(tmp_path / "one", model, 1, per_device_train_batch_size=6)
    two = launch(tmp_path / "two", model, 2, per_device_train_batch_size=3, zero=3)
    norms = [[row["grad_norm"] for row in run["log"] if "grad_norm" in row] for run in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert_same_run(one, two, tolerance=5e-5)


@needs_deepspeed
def test_constrained_ratings_under_zero3_with_verdicts_that_differ_by_rank(tmp_path, model_dirs):
    """Each forward pass gathers the sharded weights: ranks with unequally many answers to rate must not go apart."""
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    settings = {"per_device_train_batch_size": 3, "num_solves": 2, "max_steps": 2, "zero": 3}
    run = launch(tmp_path / "two", model, 2, "sepo_by_rank", **settings)
    assert [row["rating/thinker_valid_rate"] for row in run["log"] if "loss" in row] == [1.0, 1.0]
    assert torch.tensor(run["outcomes"][0]["joint"]).flatten().tolist() == [1.0] * 6 + [-1.0] * 5 + [1.0]


@pytest.mark.parametrize("what", ["rated", "generated"])
def test_zero3_trains_the_policy_that_has_just(what, tmp_path, model_dirs):
    """DeepSpeed fetches in the last pass's order, which ended in the LM head's module; TRL's loss does not call it."""
    settings = {"policy_sharing": "shared", "per_device_train_batch_size": 2, "max_steps": 2, "zero": 3}
    if what == "generated":
        settings |= {"samples": True, "ds3_gather_for_generation": False, "schedule": "alternate"}
    run = launch(tmp_path / "two", model_dirs["qwen3"], 2, "sepo" if what == "rated" else "shared", **settings)
    assert len([row for row in run["log"] if "loss" in row]) == 2


def test_drop_in_reward_with_groups_split_over_two_processes(tmp_path, model_dirs):
    """TRL's own trainer: the reward function sees a process's rows, the credit the whole group."""
    one = launch(tmp_path / "one", model_dirs["qwen3"], 1, "drop_in", per_device_train_batch_size=6)
    two = launch(tmp_path / "two", model_dirs["qwen3"], 2, "drop_in", per_device_train_batch_size=3)
    assert (one["rows"], two["rows"]) == ([6], [3, 3])
    assert len({reward for batch in one["history"] for reward in batch["rewards"]}) > 2  # outcomes and bonuses
    assert any(advantage != 0 for batch in one["history"] for advantage in batch["advantages"])
    assert_same_run(one, two)
