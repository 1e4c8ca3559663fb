"""Any dataset by configuration alone: a Hub name or a local file becomes the columns `prompt` and `solution`."""

from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def final_answer(solution: str) -> str:
    """The gold answer of a solution in GSM8K's form, what follows the last `####`; any other text as it is."""
    return solution.rsplit("####", 1)[-1].strip()


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
    Load problems in TRL's columns.

    Args:
        name (`str`):
            Name of a dataset on the Hub, or path of a local json, jsonl, parquet or csv file.
        problem_column (`str`), solution_column (`str`):
            The columns that state the problem and its gold answer.
        split (`str`, defaults to `"train"`):
            Split of a Hub dataset; a local file is one split whatever its name.
        config (`str`, *optional*):
            Configuration of a Hub dataset, e.g. `"main"` of GSM8K.
        conversational (`bool`, defaults to `True`):
            Whether `prompt` is chat messages, for models with a chat template, or the plain text.
        max_rows (`int`, *optional*):
            Keep the first rows only.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt`, `solution` (a string; null where there is none, which
        makes a row unscorable) and the other columns as they were.

    Raises:
        `FileNotFoundError`: a local path that is not there. `ValueError`: an unknown file format, a missing column, a
        null problem, or no rows.
    """
    path = Path(name)
    if path.suffix in _FORMATS:
        if not path.is_file():
            raise FileNotFoundError(f"`dataset_name={name!r}` names a local file that is not there. Check the path.")
        try:
            dataset = load_dataset(_FORMATS[path.suffix], data_files=str(path), split="train")
        except (StopIteration, ValueError, DatasetGenerationError) as error:  # an empty file is a bare StopIteration
            raise ValueError(
                f"`dataset_name={name!r}` has no rows that can be read as {path.suffix}. Check the file. "
                f"({error.__cause__ or error})"
            ) from error
    elif path.is_file():
        raise ValueError(f"`dataset_name={name!r}` has an unknown format; known: {sorted(_FORMATS)}.")
    else:
        dataset = load_dataset(name, config, split=split)
    for field, column in (("problem_column", problem_column), ("solution_column", solution_column)):
        if column not in dataset.column_names:
            raise ValueError(
                f"`{field}={column!r}` is not a column of {name!r}; it has {dataset.column_names}. Set `{field}`."
            )
    if max_rows is not None:
        dataset = dataset.select(range(min(max_rows, len(dataset))))
    if len(dataset) == 0:
        raise ValueError(f"`dataset_name={name!r}` has no rows in split {split!r}. Check the file and the split.")

    if missing := sum(problem is None for problem in dataset[problem_column]):
        raise ValueError(
            f"`problem_column={problem_column!r}` is null in {missing} of {len(dataset)} rows of {name!r}. Remove "
            "those rows."
        )

    def to_trl(row: dict) -> dict:
        problem, gold = str(row[problem_column]), row[solution_column]
        prompt = [{"role": "user", "content": problem}] if conversational else problem
        return {"prompt": prompt, "solution": None if gold is None else final_answer(str(gold))}

    used = [c for c in {problem_column, solution_column, "prompt", "solution"} if c in dataset.column_names]
    return dataset.map(to_trl, remove_columns=used, desc="Reading problems")
