"""The samples of an evaluation on the disk: a file for each batch that is done, so that none is drawn twice."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .team import TeamAnswer

SETTINGS = "settings.json"


class Samples:
    """
    The folder of an evaluation.

    Args:
        folder (`str` or `Path`): made if it is not there.
        settings (`Mapping`): what the samples depend on; a folder of others is refused.

    Raises:
        `ValueError`: the folder holds samples of other settings, a file is in its place, or it cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        settings = json.loads(json.dumps(settings, default=str))
        try:
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
            if (self.folder / SETTINGS).is_file():
                self._check(json.loads((self.folder / SETTINGS).read_text(encoding="utf-8")), settings)
            else:
                _write(self.folder / SETTINGS, json.dumps(settings, indent=2).encode() + b"\n")
        except OSError as error:
            raise ValueError(
                f"`output_dir={str(folder)!r}` cannot be written ({error}). Give another folder."
            ) from error

    def _check(self, was: dict, now: dict) -> None:
        differ = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        if differ:
            key = differ[0]
            raise ValueError(
                f"`output_dir={str(self.folder)!r}` has samples of another evaluation: `{key}` was {was.get(key)!r} "
                f"and is {now.get(key)!r}. Set it back, or give another folder."
            )

    def file(self, benchmark: str, arm: str, batch: int) -> Path:
        """Where a batch's samples are, once they are drawn."""
        return self.folder / "samples" / f"{_plain(benchmark)}-{arm}-{batch:05d}.parquet"

    def read(self, benchmark: str, arm: str, batch: int) -> list[dict] | None:
        """A batch's rows; `None` where they are still to be drawn."""
        file = self.file(benchmark, arm, batch)
        return pq.read_table(file).to_pylist() if file.is_file() else None

    def write(self, benchmark: str, arm: str, batch: int, rows: Sequence[dict]) -> None:
        """Keep a batch's rows: the file is whole or not there."""
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=_SCHEMA), sink)
        _write(self.file(benchmark, arm, batch), sink.getvalue().to_pybytes())


_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("arm", pa.string()),
        ("problem", pa.int64()),
        ("sample", pa.int64()),
        ("prompt", pa.string()),
        ("solution", pa.string()),
        ("answer", pa.string()),
        ("answer_role", pa.string()),
        ("outcome", pa.float64()),
        ("no_answer", pa.bool_()),
        ("leaked", pa.bool_()),
        ("truncated", pa.bool_()),
        ("tokens", pa.int64()),
        ("texts", pa.string()),  # JSON: role -> what it wrote
        ("prompts", pa.string()),  # JSON: role -> what it was asked
        ("completions", pa.string()),  # JSON: role -> tokens, truncated
    ]
)


def make_row(answer: TeamAnswer, **values: Any) -> dict:
    """A sample as a row of the table."""
    said = {role: {k: v for k, v in asdict(c).items() if k != "text"} for role, c in answer.completions.items()}
    cut = [completion.truncated for completion in answer.completions.values()]
    outcome = values.pop("outcome")
    return {
        **values,
        "outcome": None if math.isnan(outcome) else outcome,
        "answer": answer.text,
        "answer_role": answer.role,
        "truncated": True if True in cut else None if None in cut else False,
        "tokens": answer.tokens,
        "texts": json.dumps(answer.texts),
        "prompts": json.dumps(answer.prompts),
        "completions": json.dumps(said),
    }


def read_answer(row: Mapping[str, Any]) -> TeamAnswer:
    """The answer of a row, as far as other arms read it."""
    return TeamAnswer(row["answer"], row["answer_role"], json.loads(row["texts"]), json.loads(row["prompts"]), {})


def _write(file: Path, content: bytes) -> None:
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
