"""What a run has left so far in its folder: what it is, its metrics, its tables of episodes, its evaluations."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN_FILE, METRICS_FILE, REPORT_FILE = "run.json", "metrics.jsonl", "report.html"


class ReportError(ValueError):
    """There is no report of this: says which file, and what to do."""


@dataclass(frozen=True)
class Run:
    """
    A run's folder.

    Attributes:
        folder (`Path`), name (`str`): where it is, and what the report calls it.
        info (`dict`): `run.json`: recipe, versions, `columns` of the completions table, `max_steps`.
        metrics (`list[dict]`): a row for each log.
        tables (`dict[int, Path]`): step -> its table of episodes.
        results (`dict[str, dict]`): folder -> the `results.json` of an evaluation.
        summary (`dict`): `summary.json`, accuracy before and after; empty where there is none.
    """

    folder: Path
    name: str
    info: dict[str, Any]
    metrics: list[dict[str, Any]]
    tables: dict[int, Path]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return max((row["step"] for row in self.metrics), default=0)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """
    The rows of `metrics.jsonl`. A last line that is not whole was being written when the run was looked at, or killed.

    Raises:
        `ReportError`: another line cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{file} cannot be read ({error}). It must be readable and in UTF-8.") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no row with a step")
            rows.append(row)
        except ValueError as error:
            if number < len(lines):
                raise ReportError(f"{file}, line {number}, is damaged ({error}). Delete that line.") from None
    return rows


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """
    Read a run's folder.

    Args:
        folder (`str` or `Path`): `output_dir` of a run that is over, going on, or was killed.
        name (`str`, *optional*): what the report calls it. Defaults to the folder's name.

    Raises:
        `ReportError`: it is no run's folder, or a file in it is damaged.
    """
    folder = Path(folder)
    if not (folder / RUN_FILE).is_file():
        why = "has no run.json" if folder.is_dir() else "is not a folder"
        raise ReportError(f"{folder} {why}. Give the `output_dir` of a run that MultiAgentGRPOTrainer has started.")
    metrics = read_lines(folder / METRICS_FILE)
    logged = {row["step"] for row in metrics}
    tables = {
        int(found[1]): file
        for file in folder.glob("completions/*.parquet")
        if (found := re.fullmatch(r"completions_(\d+)\.parquet", file.name))
    }
    info = _read_json(folder / RUN_FILE)
    if not isinstance(info.get("columns"), dict) or not {"episode", "roles", "removals"} <= info["columns"].keys():
        raise ReportError(
            f"{folder / RUN_FILE} does not say what the columns of the tables are. It was not written by this package."
        )
    run = Run(
        folder,
        name or folder.resolve().name,
        info,
        metrics,
        {step: tables[step] for step in sorted(tables) if step in logged},  # another's step is not logged yet
        {file.parent.name: _read_json(file) for file in sorted(folder.glob("evaluation*/results.json"))},
        _read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {},
    )
    if not run.metrics:
        raise ReportError(f"{folder} has logged nothing yet. Wait for its first `logging_steps`.")
    return run


def read_runs(folders: list[str | Path]) -> list[Run]:
    """Several runs, by the shortest ends of their paths that tell them apart."""
    paths = [Path(folder).resolve() for folder in folders]
    if len({*paths}) < len(paths):
        raise ReportError(f"{', '.join(map(str, folders))}: the same run is named twice. Name each run once.")
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len({*names}) == len(names):
            break
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read ({error}). Delete it, or create it again.") from None
    if not isinstance(content, dict):
        raise ReportError(
            f"{file} must hold a mapping, but holds a {type(content).__name__}. It was not written by this package."
        )
    return content
