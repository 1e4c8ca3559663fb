"""Read the folder of a run: its description, metrics, tables of episodes and evaluations."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN_FILE, METRICS_FILE, REPORT_FILE = "run.json", "metrics.jsonl", "report.html"


class ReportError(ValueError):
    """Raised if no report can be written. The message names the file and says what to do."""


@dataclass(frozen=True)
class Run:
    """
    What the folder of a run contains.

    Attributes:
        folder (`Path`): The folder.
        name (`str`): The name of the run in the report.
        info (`dict`): The content of `run.json`: recipe, versions, columns of the completions table and `max_steps`.
        metrics (`list[dict]`): The logged metrics, with an item for each log.
        tables (`dict[int, Path]`): Maps each step to its table of episodes.
        results (`dict[str, dict]`): Maps the folder of each evaluation to its `results.json`.
        summary (`dict`): The content of `summary.json`, the accuracy before and after; empty if there is none.
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
    Read the rows of `metrics.jsonl`. An incomplete last line is ignored, because the run may still be writing it.

    Raises:
        `ReportError`: If another line cannot be read.
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
    Read the folder of a run.

    Args:
        folder (`str` or `Path`): The `output_dir` of a run that is finished, running, or interrupted.
        name (`str`, *optional*): The name of the run in the report. Defaults to the name of the folder.

    Raises:
        `ReportError`: If the folder is not that of a run, or if a file in it is damaged.
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
        {step: tables[step] for step in sorted(tables) if step in logged},  # only steps that are already logged
        {file.parent.name: _read_json(file) for file in sorted(folder.glob("evaluation*/results.json"))},
        _read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {},
    )
    if not run.metrics:
        raise ReportError(f"{folder} has logged nothing yet. Wait for its first `logging_steps`.")
    return run


def read_runs(folders: list[str | Path]) -> list[Run]:
    """Read several runs. Their names are the shortest ends of their paths that differ."""
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
