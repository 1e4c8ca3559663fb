"""
How many bytes each process holds for weights, gradients and optimizer state, and what LoRA adapters save.

    python benchmarks/memory.py [--only "ZeRO-3"]

Every row of the first table is a run of real processes on CPU. Each process is started like a Slurm task: `RANK`,
`WORLD_SIZE` and the rest are in the environment, and there is no launcher. Two random Llama models are trained with
CCPO and the joint schedule. Before the last optimizer step, when gradients and moments exist, each process adds up
the bytes of the tensors that it holds, and counts each storage once: weights (under ZeRO-3 its part, `ds_tensor`),
master weights, gradients and moments. The table also has the result of the formula in `docs/scaling.md`. `rest` is
every other tensor, including DeepSpeed's reduction bucket. `generating` is the weights while completions are
generated.

The second table has the peak resident memory (`VmHWM`, Linux) of one process that trains two models, or one base with
two adapters, and what arithmetic predicts. It is counted from before the models were loaded. A tiny pair has been
trained by then, so all imports are done.

Writes `outputs/bench/memory.json`: `zero3_bytes_fraction` (two ZeRO-3 processes against one, the larger of the two),
`adapters_peak_ratio`, `adapters_peak_predicted`, and all rows.
"""

import argparse
import gc
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.utils import logging as hf_logging

from ccpo import CounterfactualCredit, MultiAgentGRPOConfig, MultiAgentGRPOTrainer
from ccpo.report import write_json
from ccpo.tasks import arithmetic
from ccpo.tasks.tiny import build_tiny_model

ROLES = ("thinker", "solver")
KINDS = ("weights", "masters", "gradients", "moments")
STEPS = 2  # the first makes the moments
BUCKET = 1_000_000  # elements of DeepSpeed's reduction bucket; its default, 5e8, is larger than these models
LORA = {"r": 16, "target_modules": "all-linear"}
# Backend, processes, sharing, bf16: the runs of the first table.
RUNS = [
    ("torch", 1, "separate", False),
    ("torch", 1, "shared", False),
    ("torch", 1, "adapters", False),
    ("DDP", 2, "separate", False),
    ("ZeRO-1", 2, "separate", False),
    ("ZeRO-2", 1, "separate", False),
    ("ZeRO-2", 2, "separate", False),
    ("ZeRO-3", 1, "separate", False),
    ("ZeRO-3", 2, "separate", False),
    ("ZeRO-3", 2, "shared", False),
    ("ZeRO-3", 2, "adapters", False),
    ("FSDP2", 2, "separate", False),
    ("FSDP2", 2, "adapters", False),
    ("ZeRO-1", 2, "separate", True),
    ("ZeRO-2", 2, "separate", True),
    ("ZeRO-2 offload", 2, "separate", True),
    ("ZeRO-3", 1, "separate", True),
    ("ZeRO-3", 2, "separate", True),
    ("ZeRO-3", 2, "adapters", True),
    ("ZeRO-3 offload", 2, "separate", True),
]


# ---- The arithmetic, as in docs/scaling.md ----


def predict(backend: str, world: int, sharing: str, trained: int, frozen: int, bf16: bool) -> dict[str, float]:
    """
    Bytes per process of weights, master weights, gradients and moments, on all devices of the process together.

    Args:
        backend (`str`): `"torch"`, `"DDP"`, `"FSDP2"` or `"ZeRO-1"` to `"ZeRO-3"`, these also with `" offload"`.
        world (`int`): W, number of processes.
        sharing (`str`): `policy_sharing`.
        trained, frozen (`int`): T and F, parameters of the roles together that are trained, and that are not.
        bf16 (`bool`): mixed precision under DeepSpeed, which keeps float32 masters; else float32.
    """
    zero, small = backend.startswith("ZeRO"), 2 if bf16 else 4
    weights = small * (trained + frozen) / (world if backend.startswith(("ZeRO-3", "FSDP2")) else 1)
    gradients = small * trained / (world if zero or backend == "FSDP2" else 1)
    if backend == "ZeRO-2" and sharing != "shared":
        gradients *= 1.5  # zeros for the role without a gradient in the first backward pass; of two equal roles
    elif backend == "ZeRO-2 offload":
        gradients = 4 * trained / world
    elif backend == "ZeRO-3 offload":
        gradients += 4 * trained / world
    return {
        "weights": weights,
        "masters": 4 * trained / world if zero else 0,
        "gradients": gradients,
        "moments": 8 * trained / (world if zero or backend == "FSDP2" else 1),
    }


# ---- A process that trains ----


def resident(key: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at most so far (`VmHWM`)."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def flatten(value) -> Iterable[torch.Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from flatten(item)


def count(value, seen: set[int]) -> int:
    """Bytes of the tensors in nested containers, each storage once; a distributed tensor's is this process's part."""
    size = 0
    for tensor in flatten(value):
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            size += storage.nbytes()
    return size


class Census(TrainerCallback):
    """
    Count the bytes of the process's tensors before the last optimizer step, and of its weights while it generates.

    Attributes:
        found (`dict[str, int]`): bytes by kind; `trained` and `frozen` are numbers of parameters.
    """

    def __init__(self):
        self.trainer, self.found = None, {}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step < STEPS - 1:
            return
        wrapped = self.trainer.model_wrapped
        model, zero = self.trainer.accelerator.unwrap_model(wrapped), getattr(wrapped, "optimizer", None)
        call_first(model, "generate", self.count_generation)
        if zero is not None:  # DeepSpeed steps inside the backward pass
            call_first(zero, "step", self.count_step)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == STEPS - 1 and not self.trainer.is_deepspeed_enabled:
            self.count_step()

    def count_generation(self) -> None:
        self.found["generation"] = count(self.weights(), set())

    def weights(self) -> list:
        parameters = list(self.trainer.model_wrapped.parameters())
        return [parameters, [getattr(parameter, "ds_tensor", None) for parameter in parameters]]

    def count_step(self) -> None:
        zero = inner = self.trainer.optimizer
        while hasattr(inner, "optimizer"):  # accelerate's wrapper, ZeRO's, torch's
            zero, inner = inner, inner.optimizer
        names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups")  # ZeRO-3's; ZeRO-1's and 2's
        masters = [tensor for name in names for tensor in getattr(zero, name, ())]
        names = ("grad_partitions_flat_buffer", "averaged_gradients", "all_grad_tensors")
        gradients = [getattr(zero, name, None) for name in names]
        weights, seen = self.weights(), set()
        self.found |= {
            "weights": count(weights, seen),
            "masters": count(masters, seen),
            "gradients": count([gradients, [p.grad for p in [*weights[0], *masters]]], seen),
            "moments": count(list(inner.state.values()), seen),
            "rest": count([o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)], seen),
            "resident": resident("VmRSS"),
        }
        for name, trains in {"trained": True, "frozen": False}.items():
            parameters = [p for p in weights[0] if p.requires_grad == trains]
            self.found[name] = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def call_first(owner, name: str, first) -> None:
    """Have a method call `first` before it does what it does."""
    method = getattr(owner, name)

    def both(*args, **kwargs):
        first()
        return method(*args, **kwargs)

    setattr(owner, name, both)


def outcome(prompts, completions, **kwargs) -> list[float]:
    """A judge whom random models please about half of the time."""
    return [1.0 if len(set(text)) % 2 else -1.0 for text in completions]


def run(spec: dict, models) -> dict[str, int]:
    """Two steps of training; the bytes that a [`Census`] found."""
    args = MultiAgentGRPOConfig(
        output_dir=spec["out"],
        policy_sharing=spec["sharing"],
        schedule="joint",
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=8,
        max_steps=STEPS,
        log_completions=False,
        report_to="none",
        bf16=spec["bf16"],
        gradient_checkpointing=False,
        use_cpu=True,
        ddp_backend="gloo" if spec["world"] > 1 else None,
        save_strategy="no",
        disable_tqdm=True,
    )
    problems = {"prompt": [f"{i}+1=" for i in range(4)], "solution": [str(i + 1) for i in range(4)]}
    census = Census()
    census.trainer = MultiAgentGRPOTrainer(
        models,
        CounterfactualCredit(outcome),
        args,
        Dataset.from_dict(problems),
        callbacks=[census],
        peft_config=LoraConfig(**LORA) if spec["sharing"] == "adapters" else None,
        topology=arithmetic.topology(),  # short prompts
    )
    census.trainer.train()
    return census.found


def train(spec: dict) -> None:
    """What a process does: train, and write what it held."""
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    if spec["backend"] == "FSDP2":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from canned import allow_fsdp_on_cpu

        allow_fsdp_on_cpu()
    if spec["backend"] == "torch":  # imports that happen late, and whatever else any run needs
        run(spec, build_tiny_model(Path(spec["out"]) / "tiny"))
    before = resident("VmRSS")
    found = run(spec, spec["models"])
    result = {**found, "before": before, "peak": resident("VmHWM")}
    write_json(result, Path(spec["out"]) / f"{os.environ.get('RANK', 0)}.json")
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort the interpreter's exit now and then


# ---- The process that starts them ----


def launch(backend: str, world: int, sharing: str, bf16: bool, models, folder: Path) -> list[dict]:
    """Run one set-up on `world` processes; what each of them held."""
    out = folder / "_".join([backend.replace(" ", "_"), str(world), sharing, "bf16" if bf16 else "float32"])
    out.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    env["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is not resident any more
    env |= {"TOKENIZERS_PARALLELISM": "false", "ACCELERATE_MIXED_PRECISION": "bf16" if bf16 else "no"}
    if backend.startswith("ZeRO"):
        stage = {"stage": int(backend[5]), "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
        if backend.endswith("offload"):
            stage["offload_optimizer"] = {"device": "cpu"}
        sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        config = {"zero_optimization": stage, "gradient_clipping": "auto", **dict.fromkeys(sizes, "auto")}
        config["bf16"] = {"enabled": "auto"}
        (out / "deepspeed.json").write_text(json.dumps(config))
        env |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(out / "deepspeed.json")}
        env["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "false"
    elif backend == "FSDP2":
        env |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
        env |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    spec = {"backend": backend, "world": world, "sharing": sharing, "bf16": bf16, "models": models, "out": str(out)}
    command = [sys.executable, __file__, "--process", json.dumps(spec)]
    processes = []
    for rank in range(world):
        if world > 1 or backend.startswith("ZeRO"):
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        log = (out / f"{rank}.log").open("w")
        processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    try:
        statuses = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(statuses):
        raise RuntimeError("\n".join((out / f"{rank}.log").read_text()[-6000:] for rank in range(world)))
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(world)]


def build_model(folder: Path, seed: int) -> str:
    """Two wide layers: 57 million random weights, beside which activations of some 30 tokens are small."""
    tokenizer = arithmetic.build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the set-ups whose name begins so, and write nothing")
    parser.add_argument("--output", default="outputs/bench/memory.json")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        train(json.loads(options.process))
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    start, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pair = {role: build_model(folder / role, seed) for seed, role in enumerate(ROLES)}
        print(f"{'MB per process':38}{'weights':>9}{'masters':>9}{'grads':>9}{'moments':>9}", end="")
        print(f"{'sum':>9}{'formula':>9}{'error':>8}{'rest':>7}{'generating':>12}")
        for backend, world, sharing, bf16 in RUNS:
            if not backend.startswith(options.only):
                continue
            models = pair if sharing == "separate" else pair["solver"]
            ranks = launch(backend, world, sharing, bf16, models, folder)
            formula = predict(backend, world, sharing, ranks[0]["trained"], ranks[0]["frozen"], bf16)
            row = {"backend": backend, "processes": world, "sharing": sharing, "bf16": bf16, "ranks": ranks}
            row |= {"bytes": max(sum(rank[kind] for kind in KINDS) for rank in ranks)}
            row |= {"formula": sum(formula.values()), "formula_by_kind": formula}
            rows.append(row)
            most = max(ranks, key=lambda rank: sum(rank[kind] for kind in KINDS))
            name = f"{backend}, {world} x, {sharing}, {'bf16' if bf16 else 'float32'}"
            print(f"{name:38}" + "".join(f"{most[kind] / 1e6:9.1f}" for kind in KINDS), end="")
            error = row["bytes"] / row["formula"] - 1
            print(f"{row['bytes'] / 1e6:9.1f}{row['formula'] / 1e6:9.1f}{error:8.2%}{most['rest'] / 1e6:7.1f}", end="")
            print(f"{most['generation'] / 1e6:12.1f}", flush=True)
    if not options.only:
        report(rows, time.perf_counter() - start, options.output)


def report(rows: list[dict], seconds: float, output: str) -> None:
    """The fractions and the peaks: print and write them."""

    def find(*key) -> dict:
        return next(r for r in rows if (r["backend"], r["processes"], r["sharing"], r["bf16"]) == key)

    def fraction(backend: str, bf16: bool = False, whole: str | None = None) -> float:
        """Two processes against one of the same backend, or of plain torch."""
        alone = find(whole or backend, 1, "separate", bf16)
        return find(backend, 2, "separate", bf16)["bytes"] / alone["bytes"]

    one, base = (find("torch", 1, sharing, False) for sharing in ("separate", "adapters"))
    above = [row["ranks"][0]["peak"] - row["ranks"][0]["before"] for row in (one, base)]
    result = {
        "zero3_bytes_fraction": fraction("ZeRO-3"),
        "zero3_bf16_bytes_fraction": fraction("ZeRO-3", bf16=True),
        "zero2_bytes_fraction": fraction("ZeRO-2"),
        "fsdp2_bytes_fraction": fraction("FSDP2", whole="torch"),  # one process has nothing to shard with
        "adapters_peak_ratio": above[1] / above[0],
        "adapters_peak_predicted": base["formula"] / one["formula"],
        "adapters_peak_ratio_whole_process": base["ranks"][0]["peak"] / one["ranks"][0]["peak"],
        "parameters": {
            sharing: find("torch", 1, sharing, False)["ranks"][0]["trained"]
            for sharing in ("separate", "shared", "adapters")
        },
        "rows": rows,
        "seconds": seconds,
    }
    print(f"\n{'peak resident memory, MB':38}{'separate':>10}{'adapters':>10}{'ratio':>8}")
    for label, pair in {
        "whole process": [row["ranks"][0]["peak"] for row in (one, base)],
        "before the models load": [row["ranks"][0]["before"] for row in (one, base)],
        "above that": above,
        "predicted": [row["formula"] for row in (one, base)],
    }.items():
        print(f"{label:38}{pair[0] / 1e6:10.1f}{pair[1] / 1e6:10.1f}{pair[1] / pair[0]:8.3f}")
    print(f"\n{'two processes against one':38}{'fraction':>10}")
    for name in ("zero3", "zero3_bf16", "zero2", "fsdp2"):
        print(f"{name:38}{result[f'{name}_bytes_fraction']:10.4f}")
    print(write_json(result, output))


if __name__ == "__main__":
    main()
