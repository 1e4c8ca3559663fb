"""
The time of the same tiny CCPO step when vLLM generates, and when transformers generates.

    .venv-vllm/bin/python benchmarks/vllm_step.py [--turns 7] [--steps 3]

Needs the environment of `make test-vllm`. Two trainers of the same random policies (joint schedule, both roles
trained) train in turn. One generates with transformers through TRL. The other generates with colocated vLLM engines,
one for each role, and pushes the weights before every batch. All completions have one fixed length, and judging them
costs nothing.

On a CPU, vLLM's engines run eagerly and in float32, without its packed kernels, as in `tests/test_vllm.py`. With
models this small, that measures the overhead of its calls and says nothing about a GPU. With vLLM, TRL's update also
reads every completion once more, to correct for the differences in sampling.

Writes `outputs/bench/vllm_step.json`:

- `vllm_over_transformers`: the ratio of a step's seconds within a turn, as the median over the turns.
- `arms`: seconds of each part of the step, for both.
- `accounted_share`: the share of a step that these parts account for, with vLLM.
- `sampling_logp_difference`: the largest mean over a step and role. It is small only if the newest weights generated.
"""

import argparse
import functools
import importlib.metadata
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not Path("/dev/nvidia0").exists():
    os.environ |= {"VLLM_CPU_CI_ENV": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
import trl.generation.vllm_generation as generation
from datasets import disable_progress_bars
from step_time import Arm, median_ratio, take_turns
from transformers.utils import logging as hf_logging

from ccpo import CounterfactualCredit
from ccpo.report import write_json
from ccpo.tasks import arithmetic

try:
    import vllm
except ImportError:
    raise SystemExit("vLLM is not installed here: `make test-vllm` makes .venv-vllm, which has it.") from None

DIFFERENCE = "sampling/sampling_logp_difference/mean"

ARMS = ("thought", "joint", "solo", "rating", "verify", "update")


@contextmanager
def vllm_on_cpu(on_cpu: bool) -> Iterator[None]:
    """What `tests/test_vllm.py` changes for a CPU: no packed weights, which a reload does not reach, and float32."""
    small = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20} if on_cpu else {}
    if on_cpu:
        import vllm.model_executor.layers.utils as layers

        def plain(layer, remove_weight):
            layer.cpu_linear = torch.nn.functional.linear

        layers.dispatch_cpu_unquantized_gemm = plain
    engine, generation.LLM = generation.LLM, functools.partial(generation.LLM, dtype="float32", **small)
    try:
        yield
    finally:
        generation.LLM = engine


def judge(prompts, completions, **kwargs):
    return [1.0 if len(set(completion)) % 2 else -1.0 for completion in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="timed in a turn, after one that is not")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--length", type=int, default=12, help="tokens of every completion")
    parser.add_argument("--output", default="outputs/bench/vllm_step.json")
    options = parser.parse_args()
    options.cpu = not torch.cuda.is_available()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bars()

    tokenizer, problems = arithmetic.build_tokenizer(), arithmetic.build_dataset("train", size=512)
    engine = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 256,
        "generation_kwargs": {"ignore_eos": True},
    }
    plain = {"generation_kwargs": {"min_new_tokens": options.length}}
    with tempfile.TemporaryDirectory() as folder, vllm_on_cpu(options.cpu):
        models = {}
        for seed, role in enumerate(arithmetic.ROLES):
            models[role] = f"{folder}/{role}"
            arithmetic.build_policy(tokenizer, seed).save_pretrained(models[role])
            tokenizer.save_pretrained(models[role])
        common = {"options": options, "dataset": problems, "folder": folder, "models": models, "schedule": "joint"}
        common["model_init_kwargs"] = {"dtype": "float32"}
        arms = {
            "transformers": Arm(CounterfactualCredit(judge), **common, **plain),
            "vllm": Arm(CounterfactualCredit(judge), **common, **engine),
        }
        take_turns(arms, options.turns)
    ratio, ratios = median_ratio(arms["vllm"], arms["transformers"])
    rows = arms["vllm"].trainer.state.log_history  # of the last turn
    result = {
        "vllm_over_transformers": ratio,
        "ratios": ratios,
        "seconds": {name: statistics.median(arm.turns) for name, arm in arms.items()},
        "arms": {name: {part: arm.median(part) for part in ARMS} for name, arm in arms.items()},
        "tokens": {name: {part: arm.median(f"{part}_tokens") for part in ARMS} for name, arm in arms.items()},
        "accounted_share": arms["vllm"].median("share"),
        "sampling_logp_difference": max(
            row.get(f"{role}/{DIFFERENCE}", 0) for row in rows for role in arithmetic.ROLES
        ),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
        | {"vllm": vllm.__version__},
        "settings": vars(options),
    }
    print(f"\n{'seconds of an arm':24}" + "".join(f"{name:>15}" for name in arms))
    for part in ARMS:
        print(f"{part:24}" + "".join(f"{arm.median(part):15.4f}" for arm in arms.values()))
    print(f"{'step':24}" + "".join(f"{seconds:15.4f}" for seconds in result["seconds"].values()))
    print(f"{'vLLM / transformers':24}{ratio:15.3f}")
    print(f"{'accounted for, vLLM':24}{result['accounted_share']:15.1%}")
    print(f"{'logp difference, most':24}{result['sampling_logp_difference']:15.2g}")
    print(write_json(result, options.output))
    for rolling in {id(engine): engine for engine in arms["vllm"].trainer.engines.engines.values()}.values():
        rolling.llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
