"""Save the samples of an evaluation, in a file for each complete batch, so that none is generated twice."""

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

_SETTINGS = b"ccpo_settings"  # a key in the metadata of a file
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
        ("outcome", pa.float64()),  # that of the answer that is shown; null if it cannot be scored
        ("right", pa.float64()),  # how much of the team's answer is right, from 0 to 1
        ("no_answer", pa.float64()),  # share of the answers in which none was found
        ("leaked", pa.float64()),  # share of the guarded texts that stated an answer
        ("truncated", pa.bool_()),  # whether a text was cut at its longest length
        ("tokens", pa.int64()),
        ("texts", pa.string()),  # JSON: maps each role to what it wrote
        ("prompts", pa.string()),  # JSON: maps each role to its prompt
        ("completions", pa.string()),  # JSON: maps each role to its numbers of tokens and whether it was cut
    ]
)


class OtherSamplesError(ValueError):
    """Raised if a folder has samples of an evaluation with other settings."""


class Samples:
    """
    The folder of an evaluation. Each file also holds the settings on which its samples depend.

    Args:
        folder (`str` or `Path`): The folder. It is created if it does not exist.

    Raises:
        `ValueError`: If the folder cannot be created.
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
        """The file of a batch, which exists when its samples are complete."""
        return self.folder / "samples" / f"{file_name(benchmark)}-{arm}-{batch:05d}.parquet"

    def count(self, benchmark: str, arm: str, batch: int, settings: Mapping[str, Any]) -> int | None:
        """
        The number of saved samples of a batch, or `None` if it has not been generated yet.

        Raises:
            `OtherSamplesError`: If the saved samples have other settings.
            `ValueError`: If the file cannot be read.
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
        """The rows of a batch that is saved. Raises a `ValueError` if the file is damaged."""
        file = self.file(benchmark, arm, batch)
        try:
            return pq.read_table(file, columns=columns and list(columns)).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{file} is damaged ({error}). Delete it, and its samples are drawn again.") from error

    def write(self, benchmark: str, arm: str, batch: int, settings: Mapping[str, Any], rows: Sequence[dict]) -> None:
        """Save the rows of a batch. The file is written in one step."""
        schema = _SCHEMA.with_metadata({_SETTINGS: json.dumps(settings)})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
        write_whole(self.file(benchmark, arm, batch), sink.getvalue().to_pybytes(), _KEPT)

    def gather(self, files: Sequence[Path], target: Path) -> None:
        """Join several files of samples, in their order, into one file."""
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
    """Turn a sample into a row of the table, with null for NaN."""
    said = {role: {k: v for k, v in asdict(c).items() if k != "text"} for role, c in answer.completions.items()}
    cut = [completion.truncated for completion in answer.completions.values()]
    numbers = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}
    return {
        **numbers,
        "answer": answer.text.encode("utf-8", "replace").decode(),  # half a surrogate pair cannot be saved
        "answer_role": answer.role,
        "truncated": True if True in cut else None if None in cut else False,
        "tokens": answer.tokens,
        "texts": json.dumps(answer.texts),
        "prompts": json.dumps(answer.prompts),
        "completions": json.dumps(said, default=lambda number: number.item()),  # a user's generator may use NumPy
    }


def read_answer(row: Mapping[str, Any]) -> TeamAnswer:
    """Turn a row of the table back into an answer."""
    texts, prompts, said = (json.loads(row[name]) for name in ("texts", "prompts", "completions"))
    completions = {role: Completion(texts[role], **values) for role, values in said.items()}
    return TeamAnswer(row["answer"], row["answer_role"], texts, prompts, completions)


def write_whole(file: Path, content: bytes, remedy: str = "Free some space, or give another place") -> None:
    """
    Write a file in one step, so that it is never incomplete.

    Args:
        file (`Path`): The file.
        content (`bytes`): Its content.
        remedy (`str`, *optional*): What to do if it cannot be written, for the message.

    Raises:
        `OSError`: If the file cannot be written, e.g. because the disk is full.
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
    """A benchmark's name in a form that can be part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
