"""Folders as runs leave them, without a run: for the tests of the report."""

import json
from pathlib import Path

import pandas as pd

from ccpo import ThinkSolve
from ccpo.training.episodes import describe_columns, effect_of

HOSTILE = {
    "script": "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">",
    "address": "data:text/html,<script>document.title='owned'</script> javascript:document.title='owned'",
    "marks": "\u202eright to left\u202c \u2066isolate \u0000\u001b[31m\u2028\u2029\ufeff",
    "long": "x<b>" * 25_000,
}


def write_run(folder: Path, tables: dict[int, dict], metrics: list[dict] | None = None, **info) -> Path:
    """A folder with `run.json`, `metrics.jsonl` and a table for each step."""
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    content = {
        "columns": describe_columns(ThinkSolve(), "judge"),
        "recipe": {"credit": ["<b>ccpo</b>"], "schedule": "alternate"},
        "versions": {"ccpo": "0.1", "trl": "1.16.0"},
        "max_steps": 40,
    }
    (folder / "run.json").write_text(json.dumps(content | info))
    rows = make_metrics(list(tables)) if metrics is None else metrics
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, table in tables.items():
        size = len(table["problem"])
        frame = pd.DataFrame({"step": [step] * size, **table})
        frame.to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")
    return folder


def make_metrics(steps: list[int]) -> list[dict]:
    """Two roles that take turns of three logs."""
    return [
        {
            "step": step,
            "credit/joint_accuracy": i / 20,
            "credit/solo_accuracy": 0.1,
            "credit/help_rate": None if i % 2 else 0.3,
            f"{('thinker', 'solver')[i // 3 % 2]}/reward": i / 10,
            "credit/thinker/advantage_size": 0.5,
            "rollout/thought_tokens": 1000.0 * i,
            "loss": 0.1,
        }
        for i, step in enumerate(steps)
    ]


def make_table(step: int, problems: list[str], first: int = 0) -> dict[str, list]:
    """Episodes of all kinds, one for each problem."""
    numbers = range(first, first + len(problems))
    outcome = [(-1.0, 1.0, 1.0, -1.0, float("nan"))[i % 5] for i in numbers]
    without = [(1.0, -1.0, 1.0, -1.0, -1.0)[i % 5] for i in numbers]
    return {
        "problem": problems,
        "solution": [f"gold {i}" for i in numbers],
        "outcome": outcome,
        "no_answer": [i % 7 == 0 for i in numbers],
        "thought": [f"thought {i} of step {step}" for i in numbers],
        "thinker_prompt": [f"Think about {problem}" for problem in problems],
        "thinker_credit": [0.5] * len(problems),
        "thinker_advantage": [-0.25] * len(problems),
        "thinker_leaked": [i % 3 == 0 for i in numbers],
        "thinker_truncated": [False] * len(problems),
        "thinker_rating": ['{"outcome": "correct", "pair": [0.7, 0.3]}'] * len(problems),
        "thinker_shares": ['{"thinker": 0.7, "solver": 0.3}'] * len(problems),
        "joint_answer": [f"answer {i} of step {step}" for i in numbers],
        "solver_prompt": [f"Solve {problem}" for problem in problems],
        "solver_truncated": [i % 4 == 0 for i in numbers],
        "solo_answer": [f"alone {i}" for i in numbers],
        "without_thinker_outcome": without,
        "thinker_effect": list(map(effect_of, outcome, without)),
    }
