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

from ..generation import Completion
from .description import find_difference
from .team import TeamAnswer

_SETTINGS = b"ccpo_settings"  # in a file's metadata
_KEPT = "What was drawn so far is kept. Free some space, and the same evaluation continues from there"
_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("arm", pa.string()),
        ("problem", pa.int64()),
        ("sample", pa.int64()),
        ("prompt", pa.string()),  # JSON
        ("solution", pa.string()),
        ("answer", pa.string()),
        ("answer_role", pa.string()),
        ("outcome", pa.float64()),  # of the answer that is shown; null where it is unscorable
        ("right", pa.float64()),  # how much of the team's answer is right
        ("no_answer", pa.float64()),  # share of its answers in which none was found
        ("leaked", pa.float64()),  # share of its texts that pass the leak guard and stated an answer
        ("truncated", pa.bool_()),  # whether a text was cut at the limit
        ("tokens", pa.int64()),
        ("texts", pa.string()),  # JSON: role -> what it wrote
        ("prompts", pa.string()),  # JSON: role -> what it was asked
        ("completions", pa.string()),  # JSON: role -> tokens, truncated
    ]
)


class OtherSamplesError(ValueError):
    """The folder has samples of another evaluation."""


class Samples:
    """
    The folder of an evaluation. Every file says what its samples depend on: who asks for others is refused.

    Args:
        folder (`str` or `Path`): made if it is not there.

    Raises:
        `ValueError`: a file is in its place, or it cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"`output_dir={str(folder)!r}` cannot be created as a folder ({error}). Give another one."
            ) from error

    def file(self, benchmark: str, arm: str, batch: int) -> Path:
        """Where a batch's samples are, once they are drawn."""
        return self.folder / "samples" / f"{file_name(benchmark)}-{arm}-{batch:05d}.parquet"

    def count(self, benchmark: str, arm: str, batch: int, settings: Mapping[str, Any]) -> int | None:
        """
        How many samples of a batch there are; `None` where they are still to be drawn.

        Raises:
            `OtherSamplesError`: samples of other settings. `ValueError`: a file that is none of ours.
        """
        file = self.file(benchmark, arm, batch)
        if not file.is_file():
            return None
        try:
            metadata = pq.read_metadata(file)
            was = json.loads(metadata.metadata[_SETTINGS])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ValueError(
                f"{file} cannot be read as samples of an evaluation ({error}). Delete it, and its samples are "
                "drawn again."
            ) from error
        if found := find_difference(was, dict(settings)):
            name, before, now = found
            other = name == "problems" and str(before).partition(",")[0] != str(now).partition(",")[0]
            hint = ": another `max_problems`, or another number of problems" if other else ""
            raise OtherSamplesError(
                f"`output_dir={str(self.folder)!r}` has samples of another evaluation, in {file.name}: "
                f"`{name}` was {before!r} and is {now!r}{hint}. Set it back, or give another folder."
            )
        return metadata.num_rows

    def read(self, benchmark: str, arm: str, batch: int, columns: Sequence[str] | None = None) -> list[dict]:
        """A batch's rows, of a file that is there."""
        file = self.file(benchmark, arm, batch)
        try:
            return pq.read_table(file, columns=columns and list(columns)).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{file} is damaged ({error}). Delete it, and its samples are drawn again.") from error

    def write(self, benchmark: str, arm: str, batch: int, settings: Mapping[str, Any], rows: Sequence[dict]) -> None:
        """Keep a batch's rows: the file is whole or not there."""
        schema = _SCHEMA.with_metadata({_SETTINGS: json.dumps(settings)})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
        write_whole(self.file(benchmark, arm, batch), sink.getvalue().to_pybytes(), _KEPT)

    def gather(self, files: Sequence[Path], target: Path) -> None:
        """Write one file of all the samples, in the order of the files."""
        unfinished = _unfinished(target)
        try:
            with pq.ParquetWriter(unfinished, _SCHEMA) as writer:
                for file in files:
                    writer.write_table(pq.read_table(file).replace_schema_metadata(None))
            os.replace(unfinished, target)
        except OSError as error:
            raise _cannot_write(target, error, _KEPT) from error
        finally:
            unfinished.unlink(missing_ok=True)


def make_row(answer: TeamAnswer, **values: Any) -> dict:
    """A sample as a row of the table; NaN is null."""
    said = {role: {k: v for k, v in asdict(c).items() if k != "text"} for role, c in answer.completions.items()}
    cut = [completion.truncated for completion in answer.completions.values()]
    numbers = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}
    return {
        **numbers,
        "answer": answer.text.encode("utf-8", "replace").decode(),  # half a surrogate pair is no text
        "answer_role": answer.role,
        "truncated": True if True in cut else None if None in cut else False,
        "tokens": answer.tokens,
        "texts": json.dumps(answer.texts),
        "prompts": json.dumps(answer.prompts),
        "completions": json.dumps(said, default=lambda number: number.item()),  # NumPy's, of a generator of one's own
    }


def read_answer(row: Mapping[str, Any]) -> TeamAnswer:
    """The answer of a row."""
    texts, prompts, said = (json.loads(row[name]) for name in ("texts", "prompts", "completions"))
    completions = {role: Completion(texts[role], **values) for role, values in said.items()}
    return TeamAnswer(row["answer"], row["answer_role"], texts, prompts, completions)


def write_whole(file: Path, content: bytes, remedy: str = "Free some space, or give another place") -> None:
    """
    Write a file in one step: it is whole or not there.

    Args:
        file (`Path`), content (`bytes`): where, and what.
        remedy (`str`, *optional*): for the error.

    Raises:
        `OSError`: it cannot be written, such as on a full disk.
    """
    unfinished = _unfinished(file)
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, file)
    except OSError as error:
        raise _cannot_write(file, error, remedy) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}")


def _cannot_write(file: Path, error: OSError, remedy: str) -> OSError:
    return OSError(error.errno, f"{file} cannot be written ({error.strerror}). {remedy}")


def file_name(name: str) -> str:
    """What stands for a benchmark's name in the names of its files."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
