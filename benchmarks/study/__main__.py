"""
Compare one policy alone, teams, and credit schemes on the arithmetic task, at equal generated tokens.

    make study
    python benchmarks/study [--seeds 0 1 2 3 4 5 6 7] [--tokens 100000] [--jobs 2] [--only shared C3] [--report]

Every setting is a recipe of `recipes/arithmetic/` with the fields of `SETTINGS` in study_settings.py. For C3, vote
and DACR it is the recipe of that name. A run ends with the first step after which it has generated `--tokens` tokens.
The trainer counts them, over all texts of all roles and passes. The policies are saved at the end of each tenth of
the tokens, and answer the same 300 held-out problems each time. The last ones answer all 702 problems twice, with and
without the partner.

Within a seed, all settings of Think-Solve start from the same two policies. `single` starts from the policy of the
first of three voters, and `single, Solver's start` from the policy of Think-Solve's Solver. DACR has a start of its
own.

`--jobs` runs are made at the same time, each with one thread. A run writes into a folder of another name until it is
done. Runs that are complete in `--folder` are not made again, and what a killed run left is deleted. `--report` makes
no runs.

Writes `<folder>/study.json`, docs/study.png, and the parts of docs/study.md between its marks. The prose stays. With
`--only`, or with another `--tokens`, nothing in docs is written.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from study_report import write_report
from study_settings import ROOT, SETTINGS, STUDIED, Job, list_jobs, needed, read_figures

SEEDS, TOKENS = list(range(8)), 100_000


def run(job: Job, folder: Path, before: list[Future]) -> str | None:
    """Make a run unless it is there, when those that it needs are done; what went wrong, if anything."""
    if read_figures(folder, job) is not None:
        return None
    if any(other.result() for other in before):  # which have begun earlier, so that waiting ends
        return f"{job.folder}: left out, for a run that it needs failed"
    for left in folder.glob(f"{job.folder}.part-*"):
        shutil.rmtree(left)
    done, part = folder / job.folder, folder / f"{job.folder}.part-{os.getpid()}"
    if done.exists():  # of another set-up
        shutil.rmtree(done)
    part.mkdir(parents=True)
    script = Path(__file__).with_name("study_run.py")
    words = [sys.executable, str(script), json.dumps(vars(job)), str(folder), str(part)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    started = time.perf_counter()
    made = subprocess.run(words, env=environment, capture_output=True, text=True)
    if made.returncode:
        return f"{job.folder}, exit status {made.returncode}:\n{made.stdout[-2000:]}\n{made.stderr[-4000:]}"
    part.rename(done)
    figures = read_figures(folder, job)
    shown = " ".join(f"{key} {figures[key]:.3f}" for key in ("area", "joint", "gain") if key in figures)
    print(f"{job.folder:55} {time.perf_counter() - started:4.0f} s  {shown}", flush=True)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        "benchmarks/study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(STUDIED), metavar="SETTING")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "study")
    parser.add_argument("--report", action="store_true", help="make no runs; report on the seeds that are complete")
    options = parser.parse_args()
    folder, troubles = options.folder.resolve(), []
    jobs, futures = list_jobs(options.only, options.seeds, options.tokens), {}
    if not options.report:
        with ThreadPoolExecutor(options.jobs) as pool:  # a run that fails stops only those that need it
            for job in jobs:
                futures[job] = pool.submit(run, job, folder, [futures[other] for other in needed(job)])
            troubles = [future.result() for future in futures.values() if future.result()]
    documented = options.only == list(STUDIED) and options.tokens == TOKENS
    print("\n" + write_report(folder, options.only, options.seeds, options.tokens, documented))
    if troubles:
        sys.exit("\n\n".join(troubles))


if __name__ == "__main__":
    main()
