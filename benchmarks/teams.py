"""
What a step of each team costs, and what the team learns on the arithmetic task.

    python benchmarks/teams.py [--seeds 0 1 2] [--only c3 vote] [--jobs 2]

Each team is a recipe of `recipes/arithmetic/`. It is trained as the recipe says, once for each seed, and evaluated on
600 held-out problems before and after training. `--jobs` runs are made at the same time, each with one thread.

Writes `outputs/bench/teams.json`, with these figures for each team:

- `calls`: generation calls of a step, one after another.
- `tokens`: tokens of a step, by part.
- `seconds`: the median time of a step.
- `joint_before` and `joint_after`: the team's accuracy, for each seed.
- `difference`: after minus before, for each seed, with its 95 % interval (bootstrap over the problems, paired).
- `learns`: whether the interval is above 0 for every seed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEAMS = {
    "think_solve_ccpo": "ccpo/config_demo.yaml",
    "think_solve_sepo": "sepo/config_demo.yaml",
    "think_solve_c3": "c3/config_demo.yaml",
    "vote": "vote/config_demo.yaml",
    "dacr": "dacr/config_demo.yaml",
    "chain": "chain/config_demo.yaml",
}


def train(recipe: str, seed: int, folder: Path) -> None:
    """In a process of its own: one run of a recipe, with its calls counted."""
    from ccpo import train as training
    from ccpo.report import write_json
    from ccpo.training.generator import PolicyGenerator
    from ccpo.training.trainer import MultiAgentGRPOTrainer

    calls, runs = [0], []

    def counting(method):
        def counted(*args, **kwargs):
            calls[0] += 1
            return method(*args, **kwargs)

        return counted

    for name in ("__call__", "choose", "score"):
        setattr(PolicyGenerator, name, counting(getattr(PolicyGenerator, name)))
    init = MultiAgentGRPOTrainer.__init__
    MultiAgentGRPOTrainer.__init__ = lambda self, *args, **kwargs: (init(self, *args, **kwargs), runs.append(self))[0]
    arguments = ["--config", str(ROOT / "recipes" / "arithmetic" / recipe), "--seed", str(seed)]
    arguments += ["--output_dir", str(folder), "--logging_steps", "1", "--disable_tqdm", "true"]
    training.main(arguments)
    (trainer,) = runs
    rows = [row for row in trainer.state.log_history if "loss" in row]
    tokens = {name for row in rows for name in row if name.startswith("rollout/") and name.endswith("_tokens")}
    step = {
        "calls": calls[0] / len(rows),
        "tokens": {
            name.removeprefix("rollout/").removesuffix("_tokens"): statistics.fmean(row.get(name, 0) for row in rows)
            for name in sorted(tokens)
        },
        "seconds": statistics.median(row["step_time"] for row in rows),
    }
    write_json(step, folder / "step.json")


def run(job: tuple[str, int, Path]) -> dict:
    team, seed, folder = job
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--train", TEAMS[team], "--seeds", str(seed), "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{team}, seed {seed}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    summary = json.loads((folder / "summary.json").read_text())
    print(
        f"{team:18} seed {seed}  {summary['joint_accuracy_before']:.3f} -> {summary['joint_accuracy_after']:.3f}  "
        f"{summary['joint_accuracy_difference']:+.3f} {summary['joint_accuracy_difference_interval']}  "
        f"{summary['seconds']:.0f} s",
        flush=True,
    )
    return summary | json.loads((folder / "step.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(TEAMS), default=list(TEAMS), metavar="TEAM")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "bench" / "teams.json")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train, args.seeds[0], args.folder)
        return
    from ccpo.report import write_json

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.jobs) as pool:
        jobs = [(team, seed, Path(scratch) / f"{team}-{seed}") for team in args.only for seed in args.seeds]
        results = dict(zip([job[:2] for job in jobs], pool.map(run, jobs), strict=True))
    figures = {}
    for team in args.only:
        runs = [results[team, seed] for seed in args.seeds]
        figures[team] = {
            "calls": runs[0]["calls"],
            "tokens": {arm: statistics.fmean(r["tokens"].get(arm, 0) for r in runs) for arm in runs[0]["tokens"]},
            "seconds": statistics.median(r["seconds"] for r in runs),
            "joint_before": [r["joint_accuracy_before"] for r in runs],
            "joint_after": [r["joint_accuracy_after"] for r in runs],
            "difference": [[r["joint_accuracy_difference"], r["joint_accuracy_difference_interval"]] for r in runs],
            "learns": all(r["joint_accuracy_difference_interval"][0] > 0 for r in runs),
        }
    write_json({"seeds": args.seeds, **figures, "learns": all(f["learns"] for f in figures.values())}, args.output)
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
