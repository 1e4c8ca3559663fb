"""`output_dir`: whether it can be written, before a model loads, and in words when a write fails."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# How the writers of weights, which are no Python, tell that a file could not be written.
_NOT_WRITTEN = re.compile(r"os error \d+|PytorchStreamWriter|inline_container|iostream error|file write failed")
_REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def check_output_dir(args: Any) -> None:
    """
    Make sure that there is a folder to write to, or that one can be made; nothing is left behind.

    Args:
        args ([`~transformers.TrainingArguments`]): has `output_dir`, and whether this process writes.

    Raises:
        `ValueError`: it, or a folder above it, is a file, cannot be written, or has no room.
    """
    if not args.should_save:
        return
    folder = Path(args.output_dir).absolute()
    if not str(args.output_dir):
        raise ValueError("`output_dir` is empty. Name a folder.")
    try:
        there = next(path for path in (folder, *folder.parents) if _is_there(path))
        if not there.is_dir():
            raise ValueError(
                f"`output_dir={str(args.output_dir)!r}`: {there} is a file. Name a folder, or move the file."
            )
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(
            f"`output_dir={str(args.output_dir)!r}` cannot be written ({error.strerror}). Name a folder that you may "
            "write and that has room for the models."
        ) from error


def _is_there(path: Path) -> bool:
    """As `os.path.lexists`, but a name that is too long raises `OSError`."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class OutputError(OSError):
    """`output_dir` could not be written while a run went on."""


@contextmanager
def writing(args: Any, what: str, folder: str | None = None) -> Iterator[None]:
    """
    A while in which the run writes to `output_dir`.

    Args:
        args ([`~transformers.TrainingArguments`]): has `output_dir`.
        what (`str`): what is written, for the error.
        folder (`str`, *optional*): where to, if it is not `output_dir`.

    Raises:
        [`OutputError`]: it cannot be written, as on a full disk. One line names the field and the remedy.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in _REASONS and not _NOT_WRITTEN.search(str(error)):
            raise
        words = os.strerror(number) if number else str(error).splitlines()[0]
        if folder is not None and Path(folder) != Path(args.output_dir):
            raise OutputError(f"{what} could not be written to {folder} ({words}). Name another folder.") from error
        raise OutputError(
            f"`output_dir={str(args.output_dir)!r}`: {what} could not be written ({words}). What was complete before, "
            "older checkpoints too, is as it was. Make room or give another disk, then go on from the last complete "
            "checkpoint with `--resume_from_checkpoint true`."
        ) from error
