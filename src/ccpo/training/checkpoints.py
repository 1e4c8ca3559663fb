"""Checkpoints that a killed run can trust: each is complete or known not to be, and holds all that going on needs."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from ..credit import HistoryNormalizer

logger = logging.getLogger(__name__)

FORMAT = 2  # of a checkpoint; 1 had no number, and kept roles where agents are now
MANIFEST = "ccpo_checkpoint.json"  # written last: a checkpoint without it is half-written
RUN_STATE = "run_state_{rank}.pth"
ASIDE = "replaced-"  # before the name of a checkpoint over which another one is being saved


def describe(allocator: Any) -> str:
    """A credit allocator with its settings."""
    settings = {
        name: value
        for name, value in vars(allocator).items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str | HistoryNormalizer)
    }
    return f"{type(allocator).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


# ---- Complete or not ----


def write_manifest(folder: Path, settings: dict[str, Any], *, ranks: Iterable[int], passes: int = 1) -> None:
    """
    Declare a checkpoint complete: the sizes of its files, and `run_settings`, in one atomic write.

    To be called when every process has written its part; all files are on the disk then.

    Args:
        folder (`Path`): the checkpoint.
        settings (`dict`): [`run_settings`].
        ranks (`Iterable[int]`): processes whose [`run_state`] must be there; none if only the models are saved.
        passes (`int`, defaults to 1): how often the dataset has been begun.

    Raises:
        `OSError`: the part of a process is not there.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    names = {str(path.relative_to(folder)): path for path in sorted(files) if not path.name.startswith(".nfs")}
    if missing := [RUN_STATE.format(rank=rank) for rank in ranks if RUN_STATE.format(rank=rank) not in names]:
        raise OSError(
            f"{folder} lacks {missing}, which other processes wrote elsewhere. With a disk per node, set "
            "`save_on_each_node=True`."
        )
    for path in names.values():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    manifest = {
        "format": FORMAT,
        "settings": settings,
        "passes": passes,
        "versions": {name: version(name) for name in ("ccpo", "trl", "transformers", "torch", "accelerate")},
        "files": {name: path.stat().st_size for name, path in names.items()},
    }
    unfinished = folder / f".{MANIFEST}.{os.getpid()}"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / MANIFEST)


def find_defects(folder: str | Path) -> list[str]:
    """Why a checkpoint cannot be resumed from, in words that name the files; empty if it is complete."""
    folder = Path(folder)
    if not folder.is_dir():
        return ["there is no such folder"]
    if not (folder / MANIFEST).is_file():
        return [f"{MANIFEST} is missing: the save was cut short, or it is not a checkpoint of ccpo"]
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read ({error!r})"]
    defects = []
    for name, size in files:
        path = folder / name
        if not path.is_file():
            defects.append(f"{name} is missing")
        elif path.stat().st_size != size:
            defects.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return defects


def find_last_checkpoint(output_dir: str | Path) -> Path:
    """
    The last complete checkpoint in a folder. Those after it, which are half-written, are named in a warning.

    Raises:
        `ValueError`: there is none.
    """
    defective, aside = [], Path(output_dir).glob(f"{ASIDE}*")
    folders = [Path(folder) for folder in [*sort_checkpoints(str(output_dir)), *aside]]
    folders = [folder for folder in folders if re.fullmatch(rf"({ASIDE})?{PREFIX_CHECKPOINT_DIR}-\d+", folder.name)]
    # The latest step first; of the same step, what was put aside for another comes after it.
    for folder in sorted(folders, key=lambda path: (-int(path.name.split("-")[-1]), path.name.startswith(ASIDE))):
        if not (defects := find_defects(folder)):
            for line in defective:
                logger.warning("Passing over a checkpoint that is not complete: %s.", line)
            return folder
        defective.append(f"{folder} ({'; '.join(defects)})")
    found = f"only incomplete ones: {', '.join(defective)}" if defective else "no checkpoint-<step> folder"
    raise ValueError(
        f"`resume_from_checkpoint=True`: `output_dir={str(output_dir)!r}` has {found}. Start without "
        "`resume_from_checkpoint`, or give the `output_dir` of the run to continue."
    )


def check_checkpoint(folder: Path, settings: dict[str, Any], rank: int = 0) -> None:
    """
    Make sure that a run of these `settings` can continue from a checkpoint exactly.

    Raises:
        `ValueError`: a file is missing or truncated, the checkpoint holds the models only, or a setting differs.
    """
    name = f"`resume_from_checkpoint={str(folder)!r}`"
    if defects := find_defects(folder):
        raise ValueError(
            f"{name} is not a complete checkpoint: {'; '.join(defects)}. Give another one, or `True` for the last "
            "complete one in `output_dir`."
        )
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    start_anew = f"start a new run from its models, model={{{', '.join(f'{a!r}: ...' for a in settings['agents'])}}}"
    if manifest.get("format", 1) != FORMAT:
        was = manifest.get("versions", {}).get("ccpo", "unknown")
        raise ValueError(
            f"{name} is of format {manifest.get('format', 1)}, which ccpo {was} wrote, and this version continues "
            f"format {FORMAT}. Finish that run with the version that began it, or {start_anew}."
        )
    if not any(re.fullmatch(RUN_STATE.format(rank=r"\d+"), file) for file in manifest["files"]):
        raise ValueError(
            f"{name} has no {RUN_STATE.format(rank=rank)}: it was saved with `save_only_model=True`, without "
            f"optimizer and state. Give another one, or {start_anew}."
        )
    saved, now = manifest["settings"], json.loads(json.dumps(settings, default=str))
    if differ := [key for key in now if key in saved and saved[key] != now[key]]:
        what = "; ".join(f"`{key}` was {saved[key]!r} and is {now[key]!r}" for key in differ)
        raise ValueError(
            f"{name} comes from another set-up, and a run continued in this one would not be the same run: {what}. "
            f"Set it back, or {start_anew}."
        )
    if RUN_STATE.format(rank=rank) not in manifest["files"]:
        raise ValueError(
            f"{name} has no {RUN_STATE.format(rank=rank)}, this process's part. With `save_on_each_node=True`, each "
            "node must read its own disk's checkpoint."
        )
    if settings["train_dataset rows"] is None and manifest.get("passes", 1) > 1:
        raise ValueError(
            f"{name}: `train_dataset` is an iterable in its {manifest['passes']}. pass, and only the first can be "
            f"continued. Give a Dataset, or {start_anew}."
        )


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, its manifest first: deleted half, it must not look complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def put_aside(folder: Path) -> None:
    """Make room for another checkpoint of the same step; a complete one is kept until that one is, too."""
    if find_defects(folder):
        remove_checkpoint(folder)
    else:
        remove_checkpoint(folder.with_name(ASIDE + folder.name))
        os.rename(folder, folder.with_name(ASIDE + folder.name))


def rotate_complete_checkpoints(output_dir: str | Path, limit: int | None, keep: set[Path]) -> None:
    """
    Delete what was put aside, and checkpoints beyond `limit`: the incomplete first, then the oldest.

    Args:
        output_dir (`str` or `Path`): where the checkpoints are, the last one complete.
        limit (`int`, *optional*): `save_total_limit`; `None` or 0 deletes no other checkpoint.
        keep (`set[Path]`): never deleted: the last complete one, and the best.
    """
    for folder in Path(output_dir).glob(f"{ASIDE}{PREFIX_CHECKPOINT_DIR}-*"):
        remove_checkpoint(folder)
    if not limit or limit < 0:
        return
    kept = {folder.resolve() for folder in keep}
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir), use_mtime=True)]
    folders = [folder for folder in folders if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", folder.name)]
    excess = len(folders) - limit
    for folder in sorted(folders, key=lambda folder: not find_defects(folder)):
        if excess > 0 and folder.resolve() not in kept:
            remove_checkpoint(folder)
            excess -= 1
