"""
What a report of 10,000 episodes costs, each with 2 KB of text: writing it, and opening it in Chromium.

    python benchmarks/report.py [--turns 5] [--episodes 10000]

The run's folder is artificial. It has 100 steps of 100 episodes of Think-Solve. Each episode has a problem of 200
characters, a thought of 700, an answer of 800, a solo answer of 300, and the prompts of all roles. The words are
drawn at random, with the frequencies that words have in a text.

- `seconds`: the time of `write_report`.
- `megabytes`: the size of the file.
- `open_seconds`: from the start of the navigation until every episode is listed.
- `search_seconds`: the time until a text has been searched for in all episodes. In 0.15 s of it, the page waits for
  more letters.

All figures are medians. Without Chromium and playwright, the last two are left out.

Writes `outputs/bench/report.json`.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd

from ccpo import ThinkSolve
from ccpo.evaluation.report import write_report
from ccpo.report import write_json
from ccpo.training.episodes import describe_columns, effect_of

STEPS = 100
CHROMIUM = [name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def write_run(folder: Path, episodes: int) -> None:
    """A folder as a run leaves it."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 9))) for _ in range(5000)]
    weights = [1 / (i + 10) for i in range(len(words))]

    def text(size: int) -> str:
        return " ".join(rng.choices(words, weights, k=size // 5))[:size]

    (folder / "completions").mkdir(parents=True)
    columns = describe_columns(ThinkSolve(), "")
    content = {"columns": columns, "recipe": {}, "versions": {}, "max_steps": STEPS}
    (folder / "run.json").write_text(json.dumps(content))
    problems = [text(200) for _ in range(episodes // 50)]
    for step in range(1, STEPS + 1):
        own = [rng.choice(problems) for _ in range(episodes // STEPS)]
        thoughts = [text(700) for _ in own]
        outcome, without = ([rng.choice((1.0, -1.0)) for _ in own] for _ in range(2))
        table = {
            "problem": own,
            "solution": [str(rng.randrange(1000)) for _ in own],
            "outcome": outcome,
            "no_answer": [rng.random() < 0.05 for _ in own],
            "thought": thoughts,
            "thinker_prompt": [f"Think about this problem, and state no answer.\n\n{problem}" for problem in own],
            "thinker_credit": [rng.random() for _ in own],
            "thinker_advantage": [rng.random() for _ in own],
            "thinker_leaked": [rng.random() < 0.1 for _ in own],
            "thinker_truncated": [rng.random() < 0.1 for _ in own],
            "joint_answer": [text(800) for _ in own],
            "solver_prompt": [f"{p}\n\nHere is a thought:\n{t}" for p, t in zip(own, thoughts, strict=True)],
            "solver_credit": outcome,
            "solver_advantage": [rng.random() for _ in own],
            "solo_answer": [text(300) for _ in own],
            "without_thinker_outcome": without,
            "thinker_effect": list(map(effect_of, outcome, without)),
        }
        frame = pd.DataFrame({"step": [step] * len(own), **table})
        frame.to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")
        with open(folder / "metrics.jsonl", "a") as stream:
            metrics = {
                "credit/joint_accuracy": rng.random(),
                "credit/solo_accuracy": rng.random(),
                "thinker/reward": 0.1,
            }
            stream.write(json.dumps({"step": step, **metrics}) + "\n")


def open_page(path: Path, turns: int) -> dict[str, float]:
    """Seconds until the page's episodes are listed, and until a search has gone through them."""
    from playwright.sync_api import sync_playwright

    opened, searched = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(CHROMIUM[0]), args=FLAGS)
        for _ in range(turns):
            page = browser.new_page()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_selector("html[data-ready]", timeout=60_000)
            opened.append(int(page.get_attribute("html", "data-ready")) / 1000)
            count, start = page.inner_text("#count"), time.perf_counter()
            page.fill("#query", "qqqq")
            page.wait_for_function("before => document.getElementById('count').textContent !== before", arg=count)
            searched.append(time.perf_counter() - start)
            page.close()
        browser.close()
    return {"open_seconds": statistics.median(opened), "search_seconds": statistics.median(searched)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=10_000)
    default = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "report.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        run, seconds = Path(folder) / "run", []
        write_run(run, options.episodes)
        for _ in range(options.turns):
            start = time.perf_counter()
            path = write_report(run)
            seconds.append(time.perf_counter() - start)
        figures = {
            "seconds": statistics.median(seconds),
            "megabytes": path.stat().st_size / 1e6,
            "episodes": options.episodes,
        }
        try:
            figures |= open_page(path, options.turns) if CHROMIUM else {}
        except ImportError:
            print("playwright is absent: the page was not opened")
    write_json(figures, options.output)
    print(figures)


if __name__ == "__main__":
    main()
