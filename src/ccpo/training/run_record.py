"""[`RunRecord`]: what a run leaves for its report, while it goes on and whatever it reports to."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..evaluation.report.run import METRICS_FILE, RUN_FILE, read_lines
from ..evaluation.samples import write_whole
from .output_dir import writing


class RunRecord(TrainerCallback):
    """
    Writes `run.json`, what the run is, and `metrics.jsonl`, a line for each log, into the output folder.

    A run that begins anew replaces both, and the completions tables with them; one that is resumed keeps the lines and
    tables up to its checkpoint: a step is never told of twice, nor an episode that is not this run's.

    Args:
        describe (`Callable`): returns what `run.json` holds, in plain values.
    """

    def __init__(self, describe: Callable[[], dict[str, Any]]):
        self.describe, self.file = describe, None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        self.file = folder / METRICS_FILE
        content = json.dumps({**self.describe(), "max_steps": state.max_steps}, indent=2, default=str) + "\n"
        kept = [row for row in read_lines(self.file) if row["step"] <= state.global_step] if state.global_step else []
        with writing(args, RUN_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / RUN_FILE, content.encode("utf-8", "replace"))
            write_whole(self.file, "".join(map(_line, kept)).encode())
        for table in folder.glob("completions/*.parquet"):
            name = re.fullmatch(r"(?:eval_)?completions_(\d+)\.parquet", table.name)
            if name and (not state.global_step or int(name[1]) > state.global_step):
                table.unlink()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.file is not None and logs:
            with writing(args, METRICS_FILE):
                append(self.file, _line({"step": state.global_step, **logs}).encode())


def append(file: Path, line: bytes) -> None:
    """
    Write a line at a file's end, whole or not at all.

    Raises:
        `OSError`: it cannot be written, such as on a full disk.
    """
    with open(file, "ab", buffering=0) as stream:
        size = stream.tell()
        try:
            while line:  # a disk takes what fits
                line = line[stream.write(line) :]
        except OSError:
            stream.truncate(size)
            raise


def _line(row: dict[str, Any]) -> str:
    """JSON has no NaN: it is null."""
    plain = {name: _finite(value) if isinstance(value, float) else value for name, value in row.items()}
    return json.dumps(plain, default=lambda number: _finite(float(number))) + "\n"  # NumPy's and torch's


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
