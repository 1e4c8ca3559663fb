"""Load problems from a dataset of the Hub, a file or a folder, as a dataset with the columns that TRL expects."""

import logging
import zlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from .cells import final_answer as final_answer
from .cells import is_empty, kind, only, read_gold, read_prompt

logger = logging.getLogger(__name__)

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_PACKED = {".gz": None, ".bz2": None, ".xz": None, ".zst": "zstandard", ".lz4": "lz4"}  # suffix -> package needed
_UNREADABLE = (StopIteration, ValueError, OSError, EOFError, zlib.error, DatasetGenerationError)
_MESSAGES = [{"role": Value("string"), "content": Value("string")}]
# TRL may read the format of the dataset from these columns, or passes arguments of these names to reward functions
_READ_BY_TRL = ("chosen", "rejected", "completion", "messages", "prompts", "completions")


def _file_format(path: Path) -> tuple[str, str] | None:
    """The format and the compression by a file's name, or `None` if the format is unknown."""
    *_, last = ["", *path.suffixes]
    packed = last.lower() if last.lower() in _PACKED else ""
    suffix = Path(path.stem).suffix if packed else last
    return (suffix.lower(), packed) if suffix.lower() in _FORMATS else None


def _is_saved(path: Path) -> bool:
    """Whether this folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def has_splits(name: str) -> bool:
    """Whether a dataset may have named splits. A file has none, and neither has a single saved dataset."""
    path = Path(name)
    return not path.is_file() and not (path / "state.json").is_file()


def _load_file(name: str, split: str, columns: tuple[str, ...]) -> Dataset:
    """Load a local file. It counts as the whole split, whatever the split is called; slices are applied to it."""
    path = Path(name)
    if (known := _file_format(path)) is None:
        raise ValueError(
            f"`dataset_name={name!r}` is a file of an unknown format. Known are {sorted(_FORMATS)}, each also "
            f"compressed: {sorted(_PACKED)}. Convert the file."
        )
    suffix, packed = known
    if not path.is_file():
        raise FileNotFoundError(f"`dataset_name={name!r}` names a local file that does not exist. Check the path.")
    if suffix == ".parquet" and packed:
        raise ValueError(
            f"`dataset_name={name!r}` is a compressed parquet file, which cannot be read. Unpack it to {path.stem!r}."
        )
    if _PACKED.get(packed) and find_spec(_PACKED[packed]) is None:
        raise ValueError(
            f"`dataset_name={name!r}` needs the package {_PACKED[packed]!r}. Install it (pip install "
            f"{_PACKED[packed]}), or unpack the file."
        )
    options = {"converters": dict.fromkeys(columns, str)} if suffix == ".csv" else {}  # keeps 0.10 and 007 as written
    plain = split.split("[")[0]
    try:
        return load_dataset(_FORMATS[suffix], data_files={plain: str(path)}, split=split, **options)
    except _UNREADABLE as error:  # an empty file raises a bare StopIteration
        raise ValueError(
            f"`dataset_name={name!r}` has no rows that can be read as {suffix}{packed} (split {split!r}). Check the "
            f"file. ({str(error.__cause__ or error) or 'it is empty'})"
        ) from error


def _load_saved(name: str, split: str) -> Dataset:
    """Load a folder that `save_to_disk` wrote."""
    dataset = load_from_disk(name)
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(
                f"`dataset_name={name!r}` has no split {split!r}. Its splits are {list(dataset)}. Name one of these."
            )
        return dataset[split]
    if "[" in split:
        raise ValueError(
            f"`dataset_name={name!r}` was saved as one dataset without splits, so a part of it cannot be "
            f"named, got the split {split!r}. Use `max_train_rows` instead."
        )
    return dataset


def _load(name: str, config: str | None, split: str, columns: tuple[str, ...]) -> Dataset:
    path = Path(name)
    is_file = path.is_file() or (not path.is_dir() and _file_format(path) is not None)
    if config is not None and (is_file or _is_saved(path)):
        logger.warning(
            "`dataset_config=%r` has no effect: it is for datasets of the Hub, and %r is a local file or folder.",
            config,
            name,
        )
    if is_file:
        return _load_file(name, split, columns)
    if _is_saved(path):
        return _load_saved(name, split)
    try:
        return load_dataset(name, config, split=split)
    except _UNREADABLE as error:
        raise ValueError(
            f"`dataset_name={name!r}` (`dataset_config={config!r}`, split {split!r}) could not be loaded. "
            "There is no such local file or folder, and no dataset of this name, configuration and split "
            f"could be read from the Hub. Check the name. ({error.__cause__ or error})"
        ) from error


def _item(feature: Any) -> Any:
    """The feature of the items of a list, which may be nested."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _cells(dataset: Dataset, name: str, field: str, column: str) -> tuple[list, Any]:
    """The cells of a column, or of the nested field that a dotted name means, with the feature that describes them."""
    parts = column.split(".")
    tops = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]
    top = next((top for top in tops if top in dataset.column_names), None)
    if top is None:
        raise ValueError(
            f"`{field}={column!r}` is not a column of {name!r}. Its columns are {dataset.column_names}. Set "
            f"`{field}` to one of these."
        )
    cells, feature = list(dataset[top]), _item(dataset.features[top])
    for key in column[len(top) + 1 :].split(".") if top != column else ():
        feature = _item(feature.get(key)) if isinstance(feature, dict) else None
        for i, cell in enumerate(map(only, cells)):
            if cell is not None and not (isinstance(cell, dict) and key in cell):
                has = f"the fields {sorted(cell)}" if isinstance(cell, dict) else kind(cell)
                raise ValueError(
                    f"`{field}={column!r}`: row {i} of {name!r} has {has}, not {key!r}. Set `{field}` to a field "
                    "that every row has."
                )
            cells[i] = cell and cell[key]
    return cells, feature


def _as_written(value: Any, feature: Any) -> Any:
    """Turn the number of a label into its name, and a short float such as 0.10000000149 into 0.1."""
    value = only(value)
    if isinstance(feature, ClassLabel) and isinstance(value, int):
        return feature.names[value] if value >= 0 else None
    short = {"float32": np.float32, "float16": np.float16}.get(getattr(feature, "dtype", None))
    return float(str(short(value))) if short and isinstance(value, float) else value


def _read(cells: list, read: Callable, field: str, column: str, name: str) -> list:
    """Apply `read` to the cells of a column. Its errors get the name of the field and the column, and the row."""
    values = []
    for i, cell in enumerate(cells):
        try:
            values.append(read(cell, column))
        except ValueError as error:
            raise ValueError(f"`{field}={column!r}`: row {i} of {name!r} {error}") from None
    return values


def load_problems(
    name: str,
    *,
    problem_column: str,
    solution_column: str,
    split: str = "train",
    config: str | None = None,
    conversational: bool = True,
    max_rows: int | None = None,
) -> Dataset:
    """
    Load problems as a dataset with TRL's columns, `prompt` and `solution`.

    Args:
        name (`str`):
            Name of a dataset on the Hub; path of a local json, jsonl, parquet or csv file; or path of a folder that
            `save_to_disk` wrote. Files except parquet may be compressed, e.g. `.jsonl.gz`.
        problem_column (`str`):
            The column with the problem, as text or as chat messages. A dotted name means a nested field, e.g.
            `"reward_model.ground_truth"`.
        solution_column (`str`):
            The column with the gold answer, see [`~ccpo.cells.read_gold`]. It may be a dotted name, too.
        split (`str`, defaults to `"train"`):
            The split, e.g. `"train[:100]"`. A local file counts as the whole split, whatever the name.
        config (`str`, *optional*):
            The configuration of a Hub dataset, e.g. `"main"` for GSM8K.
        conversational (`bool`, defaults to `True`):
            Whether `prompt` holds chat messages, for models with a chat template. Otherwise it holds plain text.
        max_rows (`int`, *optional*):
            Keep only this many rows from the beginning. By default all are kept.

    Returns:
        [`~datasets.Dataset`]: Has the columns `prompt` and `solution`. `solution` is a string, or null if there is no
        gold answer; such a row cannot be scored. Other columns are kept, except those that TRL would take for
        something else: `messages`, `completion`, `chosen`, `rejected`, `prompts` and `completions`.

    Raises:
        `FileNotFoundError`: If a local file does not exist.
        `ValueError`: If the dataset cannot be loaded or has no rows, if a column is missing, or if a cell is not a
            problem or not an answer.
    """
    if not name:
        raise ValueError("`dataset_name` is empty. Give the name of a dataset of the Hub, a file or a folder.")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"`max_train_rows` must be at least 1, got {max_rows}. Leave it out to use all rows.")
    if problem_column == solution_column:
        raise ValueError(
            f"`problem_column` and `solution_column` are both {solution_column!r}, so the prompt would show "
            "the answer. Name two different columns."
        )
    dataset = _load(name, config, split, (problem_column, solution_column))
    if max_rows is not None:
        dataset = dataset.select(range(min(max_rows, len(dataset))))
    if len(dataset) == 0:
        raise ValueError(f"`dataset_name={name!r}` has no rows in the split {split!r}. Check the file and the split.")
    problems, _ = _cells(dataset, name, "problem_column", problem_column)
    answers, feature = _cells(dataset, name, "solution_column", solution_column)
    read_problem = partial(read_prompt, conversational=conversational)
    prompts, was_cut = zip(*_read(problems, read_problem, "problem_column", problem_column, name), strict=True)
    answers = [_as_written(answer, feature) for answer in answers]
    golds = _read(answers, read_gold, "solution_column", solution_column, name)
    for what, missing in (("null", prompts.count(None)), ("empty", sum(map(is_empty, prompts)))):
        if missing:
            raise ValueError(
                f"`problem_column={problem_column!r}` is {what} in {missing} of {len(dataset)} rows of {name!r}. "
                "Remove those rows."
            )
    if any(was_cut):
        logger.warning(
            "`problem_column=%r`: the assistant's messages after the problem were removed in %d of %d rows "
            "of %r, because they would show the answer.",
            *(problem_column, sum(was_cut), len(dataset), name),
        )
    features = Features({"prompt": _MESSAGES if conversational else Value("string"), "solution": Value("string")})
    read = Dataset.from_dict({"prompt": prompts, "solution": golds}, features=features)
    used = {problem_column, solution_column, "prompt", "solution", *_READ_BY_TRL}
    others = dataset.select_columns([column for column in dataset.column_names if column not in used])
    return concatenate_datasets([others, read], axis=1) if others.column_names else read
