"""
What credit costs: the time of its functions on 1,000 to 1,000,000 episodes, and their share of a real step.

    python benchmarks/credit.py [--repeats 7] [--steps 10]

For each size, the script times both roles' rewards and their advantages (`"group"`, as TRL computes them), in groups
of eight. It does this for CCPO (one solo answer per episode) and SEPO (both ratings) in turn. A tenth of the outcomes
are unscorable. Medians over the repeats are reported:

- `seconds_per_million`: seconds for 1,000,000 episodes, of the slower scheme.
- `flatness`: the largest time per episode divided by the smallest, from 10,000 episodes on, of the worse scheme.
- `flatness_from_thousand`: the same with 1,000 episodes included. There, about thirty calls into torch cost more than
  the arithmetic in them.
- `step_share`: the time in the trainer's `_allocate` and `_set_advantages`, divided by the time of a real step. It is
  the median over the steps, of the scheme for which it is larger. The real step is that of
  `recipes/arithmetic/ccpo/config_demo.yaml` (64 episodes, 12 tokens, policies of 0.9 million parameters), for CCPO
  and for SEPO with constrained ratings.

Writes `outputs/bench/credit.json`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import disable_progress_bars
from step_time import Arm
from transformers.utils import logging as hf_logging

from ccpo import CounterfactualCredit, MathVerifier, SelfEvaluatedCredit
from ccpo.credit import counterfactual_credit, self_evaluated_credit
from ccpo.credit.advantages import estimate_advantages
from ccpo.report import write_json
from ccpo.tasks import arithmetic

GROUP = 8
SIZES = (10**3, 10**4, 10**5, 10**6)


def build_schemes(size: int) -> dict[str, Callable]:
    """A call without arguments per scheme, on random outcomes and ratings of `size` episodes."""
    generator, shape = torch.Generator().manual_seed(0), (size // GROUP, GROUP)

    def draw(values: list[float]) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]

    outcomes = [1.0, -1.0] * 5
    joint, solo = draw([*outcomes[1:], torch.nan]), draw([*outcomes[1:], torch.nan])
    shares = [draw([*(i / 10 for i in range(1, 10)), torch.nan]) for _ in range(2)]
    return {
        "ccpo": lambda: counterfactual_credit(joint, solo),
        "sepo": lambda: self_evaluated_credit(joint, *shares),
    }


def time_functions(repeats: int) -> dict[str, dict[int, float]]:
    """Seconds per scheme and size: rewards and advantages of both roles."""
    found = {}
    for size in SIZES:
        schemes = build_schemes(size)
        seconds = {name: [] for name in schemes}
        calls = max(1, 10**4 // size)  # a clock around short calls
        for repeat in range(repeats + 1):
            for name, scheme in schemes.items():
                start = time.perf_counter()
                for _ in range(calls):
                    for rewards in scheme().values():
                        estimate_advantages(rewards, "group")
                if repeat:  # the first warms up
                    seconds[name].append((time.perf_counter() - start) / calls)
        for name, values in seconds.items():
            found.setdefault(name, {})[size] = statistics.median(values)
    return found


def time_step(credit, steps: int, folder: str) -> dict[str, float]:
    """Seconds of a step and of the credit in it."""
    options = SimpleNamespace(steps=steps, batch_size=64, num_generations=GROUP, length=12, cpu=True)
    arm = Arm(credit, options, arithmetic.build_dataset("train"), folder, schedule="joint", learning_rate=3e-4)
    trainer, spent = arm.trainer, []

    def timed(method: Callable) -> Callable:
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[-1] += time.perf_counter() - start

        return call

    roll_out, trainer._allocate = trainer._roll_out, timed(trainer._allocate)
    trainer._set_advantages = timed(trainer._set_advantages)

    def begin(*args, **kwargs):
        spent.append(0.0)
        return roll_out(*args, **kwargs)

    trainer._roll_out = begin
    arm.turn()
    walls = arm.timer.seconds  # all steps but the first
    shares = [credit / wall for credit, wall in zip(spent[1:], walls, strict=True)]
    return {
        "step_seconds": statistics.median(walls),
        "credit_seconds": statistics.median(spent[1:]),
        "share": statistics.median(shares),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", default="outputs/bench/credit.json")
    options = parser.parse_args()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bars()

    seconds = time_functions(options.repeats)
    verifier, topology = MathVerifier(), arithmetic.topology()
    with tempfile.TemporaryDirectory() as folder:
        sepo = SelfEvaluatedCredit(verifier, rating_mode="constrained", topology=topology)
        steps = {
            "ccpo": time_step(CounterfactualCredit(verifier), options.steps, folder),
            "sepo": time_step(sepo, options.steps, folder),
        }
    per_episode = {name: {size: s / size for size, s in values.items()} for name, values in seconds.items()}

    def flatness(smallest: int) -> float:
        chosen = [[s for size, s in values.items() if size >= smallest] for values in per_episode.values()]
        return max(max(values) / min(values) for values in chosen)

    result = {
        "seconds_per_million": max(values[10**6] for values in seconds.values()),
        "flatness": flatness(10**4),
        "flatness_from_thousand": flatness(10**3),
        "step_share": max(step["share"] for step in steps.values()),
        "seconds": seconds,
        "nanoseconds_per_episode": {n: {size: s * 1e9 for size, s in v.items()} for n, v in per_episode.items()},
        "steps": steps,
        "settings": vars(options),
    }
    print(f"{'episodes':>12}" + "".join(f"{f'{n}, ms':>12}{'ns/episode':>12}" for n in seconds))
    for size in SIZES:
        cells = (f"{seconds[n][size] * 1e3:12.3f}{per_episode[n][size] * 1e9:12.1f}" for n in seconds)
        print(f"{size:12,}" + "".join(cells))
    print(f"\n{'a step of 64 episodes':24}{'step, s':>12}{'credit, ms':>12}{'share':>12}")
    for name, step in steps.items():
        cells = f"{step['step_seconds']:12.3f}{step['credit_seconds'] * 1e3:12.3f}{step['share']:12.3%}"
        print(f"{name:24}{cells}")
    print(f"\nseconds per million {result['seconds_per_million']:.3f}, flatness {result['flatness']:.2f}")
    print(write_json(result, options.output))


if __name__ == "__main__":
    main()
