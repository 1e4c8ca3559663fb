"""
Which setting of the credit learns the embedded task of Think-Solve fastest, at equal generated tokens.

    python benchmarks/settings.py [--seeds 0 1 2 3 4] [--only shared c3] [--tokens 100000] [--jobs 2]

Every setting is the demo's recipe with the fields of `SETTINGS`. All settings of a seed start from the same two
policies. A run ends with the first step in which it has generated `--tokens` tokens: thoughts, answers and solo
answers, by the trainer's own count. Then 600 held-out problems are answered, in every setting the same ones. `--jobs`
runs are made side by side, each with one thread. What is in `--folder` already is not made again.

Writes `outputs/bench/settings.json`, for each setting, a list with a figure for each seed:

- `steps`, `tokens` (the whole run) and `scored_tokens` (of constrained ratings: read, not generated);
- `joint_after`, the held-out accuracy at the end;
- `joint_during`, the mean accuracy in training in each tenth of the tokens, and `area`, the mean of those;
- `within_group_correlation` of each role's advantages with shared credit's: 1 says that credit adds nothing;

and over the seeds, against shared credit: `difference`, of the held-out accuracies, with the 95 % interval of a
bootstrap over seeds and problems, paired; `area_difference`, with the 95 % interval of Student's t over the seeds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ccpo.report import write_json

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "arithmetic" / "ccpo" / "config_demo.yaml"
SEPO = {
    "credit": "sepo",
    "rating_mode": "constrained",
    "rating_expectation": True,
    "rating_prompt": "{problem} Thought: {thought} Answer: {answer} {outcome} {role} ",
}
SETTINGS = {
    "shared": {"credit": "shared"},
    "shared, K = 2": {"credit": "shared", "num_solves": 2},
    "CCPO": {},
    "CCPO, K = 2": {"num_solves": 2},
    "CCPO, counterfactual": {"advantage_estimator": "counterfactual", "scale_rewards": "none"},
    "SEPO": SEPO,
    "C3, K = 2": {"credit": "c3", "num_solves": 2},
}
PARTS, PROBLEMS = 10, 600
NOT_GENERATED = ("rating_tokens", "verify_tokens", "update_tokens")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by seeds


def warm(seed: int, folder: Path) -> None:
    """In a process of its own: the policies that all settings of a seed start from."""
    from ccpo.tasks import arithmetic

    arithmetic.warm_start_team(arithmetic.topology("think_solve"), folder, seed, use_cpu=True)


def train(setting: str, seed: int, budget: int, start: Path, folder: Path) -> None:
    """In a process of its own: one run to the end of its tokens, and what it answers then."""
    sys.path.insert(0, str(ROOT / "examples"))
    import train_ccpo
    from transformers import TrainerCallback

    from ccpo.training.trainer import MultiAgentGRPOTrainer

    class Budget(TrainerCallback):
        rows = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                self.rows.append(logs)
            control.should_training_stop = sum(map(count_tokens, self.rows)) >= budget
            return control

    class Trainer(MultiAgentGRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Budget())

    evaluations, evaluate = [], train_ccpo.evaluate_team
    train_ccpo.MultiAgentGRPOTrainer = Trainer
    train_ccpo.evaluate_team = lambda *args, **kwargs: (
        evaluations.append(evaluate(*args, **kwargs)),
        evaluations[-1],
    )[1]
    fields = {
        "seed": seed,
        "output_dir": folder,
        "thinker_model": start / "thinker",
        "solver_model": start / "solver",
        "max_steps": 10_000,
        "logging_steps": 1,
        "disable_tqdm": True,
        "num_eval_problems": PROBLEMS,
        **SETTINGS[setting],
    }
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    train_ccpo.main(*train_ccpo.parse_arguments(["--config", str(RECIPE), *words]))
    used, parts, alike = 0, [[] for _ in range(PARTS)], {"thinker": [], "solver": []}
    for row in Budget.rows:
        parts[min(PARTS * used // budget, PARTS - 1)].append(row["credit/joint_accuracy"])
        used += count_tokens(row)
        for role, values in alike.items():  # None where all rewards of a step are one
            values.append(row[f"credit/{role}/within_group_correlation"])
    if not all(parts):
        raise ValueError(f"`--tokens {budget}` gives {len(Budget.rows)} steps, too few for {PARTS} parts. Raise it.")
    joint_during = [statistics.fmean(part) for part in parts]
    figures = {
        "steps": len(Budget.rows),
        "tokens": used,
        "scored_tokens": sum(row.get("rollout/rating_tokens", 0) for row in Budget.rows),
        "joint_after": evaluations[-1].joint.value,
        "right": list(evaluations[-1].right),
        "joint_during": joint_during,
        "area": statistics.fmean(joint_during),
        "within_group_correlation": {
            role: statistics.fmean(value for value in values if value is not None) for role, values in alike.items()
        },
        "seconds": json.loads((folder / "summary.json").read_text())["seconds"],
    }
    write_json(figures, folder / "figures.json")


def count_tokens(row: dict) -> int:
    """Tokens that the team generated in the step of a logged row."""
    arms = [name for name in row if name.startswith("rollout/") and name.endswith("_tokens")]
    return int(sum(row[name] for name in arms if name.split("/")[1] not in NOT_GENERATED))


def start_process(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def compare(runs: list[dict], base: list[dict]) -> dict:
    """Differences to shared credit over the seeds, with their 95 % intervals."""
    right = torch.tensor([run["right"] for run in runs]) - torch.tensor([run["right"] for run in base])
    seeds, problems = right.shape
    generator = torch.Generator().manual_seed(0)
    means = [
        right[torch.randint(seeds, (seeds,), generator=generator)][
            :, torch.randint(problems, (problems,), generator=generator)
        ].mean()
        for _ in range(10_000)
    ]
    low, high = torch.quantile(torch.stack(means), torch.tensor([0.025, 0.975])).tolist()
    areas = [run["area"] - other["area"] for run, other in zip(runs, base, strict=True)]
    half = STUDENT[seeds] * statistics.stdev(areas) / math.sqrt(seeds)
    area = statistics.fmean(areas)
    return {
        "difference": [right.mean().item(), [low, high]],
        "area_difference": [area, [area - half, area + half]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "bench" / "settings.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "bench" / "settings", help="of the runs")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        if args.run[0] == "warm":
            warm(int(args.run[1]), Path(args.run[2]))
        else:
            setting, seed, start, folder = args.run
            train(setting, int(seed), args.tokens, Path(start), Path(folder))
        return

    starts = {seed: args.folder / f"start-{seed}" for seed in args.seeds}

    def start(seed: int) -> None:
        if not (starts[seed] / "solver" / "config.json").exists():
            start_process("--run", "warm", str(seed), str(starts[seed]))

    def run(job: tuple[str, int]) -> dict:
        setting, seed = job
        file = args.folder / f"{setting.replace(', ', '-')}-{seed}-{args.tokens}" / "figures.json"
        if not file.exists():
            words = (setting, str(seed), str(starts[seed]), str(file.parent))
            start_process("--tokens", str(args.tokens), "--run", *words)
        figures = json.loads(file.read_text())
        keys = ("steps", "tokens", "joint_after", "area", "seconds")
        print(f"{setting:22} seed {seed}", *(f"{key} {figures[key]:.4g}" for key in keys), flush=True)
        return figures

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(start, args.seeds))
        jobs = [(setting, seed) for seed in args.seeds for setting in args.only]
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    figures = {}
    for setting in args.only:
        runs = [results[setting, seed] for seed in args.seeds]
        figures[setting] = {key: [run[key] for run in runs] for key in runs[0] if key != "right"}
        if setting != "shared" and "shared" in args.only and len(runs) > 1:
            figures[setting] |= compare(runs, [results["shared", seed] for seed in args.seeds])
    write_json({"seeds": args.seeds, "tokens": args.tokens, "settings": figures}, args.output)
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
