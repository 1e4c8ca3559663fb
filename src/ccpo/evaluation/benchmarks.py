"""Load benchmarks by name, or any file by the names of its columns."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from datasets import Dataset

from ..data import load_problems
from ..exits import nearest


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark: where its problems are, and in which columns.

    Args:
        name (`str`): Its name in the tables.
        dataset (`str`): The id of a dataset on the Hub, or a local file or folder.
        config (`str`, *optional*): The configuration of a Hub dataset.
        split (`str`, defaults to `"test"`): The split.
        problem_column (`str`), solution_column (`str`): As for [`~ccpo.data.load_problems`].
        context_column (`str`, *optional*): A column with a text that is put before the problem.
        options_column (`str`, *optional*):
            For multiple choice: a column with the options, which get letters. The solution is then the number of an
            option, counted from 0, or its letter.
        source (`str`): Where the problems come from.
    """

    name: str
    dataset: str
    config: str | None = None
    split: str = "test"
    problem_column: str = "problem"
    solution_column: str = "answer"
    context_column: str | None = None
    options_column: str | None = None
    source: str = ""


# The columns are those on the datasets' pages on the Hub. They were tried with local copies, not with the Hub itself.
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("MATH500", "HuggingFaceH4/MATH-500", source="Hendrycks et al., 2021; Lightman et al., 2023"),
        Benchmark("GSM8K", "openai/gsm8k", "main", problem_column="question", source="Cobbe et al., 2021"),
        Benchmark("AIME 2024", "HuggingFaceH4/aime_2024", split="train", source="American Mathematics Competitions"),
        Benchmark("AIME 2025", "yentinglin/aime_2025", split="train", source="American Mathematics Competitions"),
        Benchmark("AMC 2023", "math-ai/amc23", problem_column="question", source="American Mathematics Competitions"),
        Benchmark(
            "GaoKao 2023 En",
            "MARIO-Math-Reasoning/Gaokao2023-Math-En",
            split="train",
            problem_column="question",
            source="Liao et al., 2024",
        ),
        Benchmark("Minerva Math", "math-ai/minervamath", problem_column="question", source="Lewkowycz et al., 2022"),
        Benchmark(
            "LogiQA",
            "baber/logiqa2",
            problem_column="question",
            context_column="text",
            options_column="options",
            source="Liu et al., 2023 (LogiQA 2.0)",
        ),
    )
}


def find_benchmark(given: Any) -> Benchmark:
    """
    Find a benchmark by what a user gave.

    Args:
        given (`Benchmark` or `str`):
            A benchmark; the name of a known one (case and spaces do not matter); `name=path` for a local copy of a
            known one, with the same columns; or `path:problem_column:solution_column` for any local file.

    Returns:
        [`Benchmark`]

    Raises:
        `ValueError`: If the name is unknown, or if a path or column is empty.
    """
    if isinstance(given, Benchmark):
        return given
    known = {_plain(name): benchmark for name, benchmark in BENCHMARKS.items()}
    if _plain(given) in known:
        return known[_plain(given)]
    name, _, copy = str(given).partition("=")
    if _plain(name) in known and copy:
        return replace(known[_plain(name)], dataset=copy, config=None)
    path, *columns = str(given).rsplit(":", 2)
    if len(columns) == 2 and path and all(columns):
        return Benchmark(Path(path).stem, path, None, "test", *columns)
    raise ValueError(
        f"`benchmarks` names {given!r}, which is unknown.{nearest(str(given), BENCHMARKS)} Known are "
        f"{list(BENCHMARKS)}, and to `ccpo evaluate` also arithmetic and wordproblems. For a file of your own, write "
        "'path:problem_column:solution_column'; for a local copy of a known one, write 'name=path'."
    )


def load_benchmark(given: Any, *, conversational: bool = True) -> tuple[str, Dataset]:
    """
    Load the problems of a benchmark, with TRL's columns.

    Args:
        given: As for [`find_benchmark`].
        conversational (`bool`, defaults to `True`): Whether prompts are chat messages.

    Returns:
        `tuple[str, Dataset]`: The name of the benchmark, and its problems.

    Raises:
        `ValueError`: If the benchmark is unknown, if a column is missing, or if a row is not a problem.
        `FileNotFoundError`: If a local file does not exist.
    """
    benchmark = find_benchmark(given)
    columns = {"problem_column": benchmark.problem_column, "solution_column": benchmark.solution_column}
    options = {"split": benchmark.split, "config": benchmark.config, "conversational": conversational}
    problems = load_problems(benchmark.dataset, **columns, **options)
    added = [column for column in (benchmark.context_column, benchmark.options_column) if column is not None]
    if missing := [column for column in added if column not in problems.column_names]:
        raise ValueError(f"{benchmark.dataset!r} has no column {missing}. Its columns are {problems.column_names}.")
    return benchmark.name, problems.map(partial(_lettered, benchmark), with_indices=True) if added else problems


def _lettered(benchmark: Benchmark, row: dict, number: int) -> dict:
    """Add context and lettered options to the problem of a row, and turn its solution into a letter."""
    prompt, changed = row["prompt"], {}
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if benchmark.context_column is not None and row[benchmark.context_column] is not None:
        text = f"{row[benchmark.context_column]}\n\n{text}"
    if benchmark.options_column is not None:
        options = row[benchmark.options_column]
        if not isinstance(options, list) or len(options) < 2 or None in options:
            raise ValueError(
                f"Row {number} of {benchmark.dataset!r} has `{benchmark.options_column}={options!r}`, but "
                "this must be a list of at least two texts. Correct the row, or remove it."
            )
        if len(options) > len(ascii_uppercase):
            raise ValueError(
                f"Row {number} of {benchmark.dataset!r} has {len(options)} `{benchmark.options_column}`, but "
                f"there are only {len(ascii_uppercase)} letters to name them. Remove the row."
            )
        letters = ascii_uppercase[: len(options)]
        text += "".join(f"\n{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        changed["solution"] = row["solution"] and _letter(benchmark, number, row["solution"], letters)
    changed["prompt"] = text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]
    return changed


def _letter(benchmark: Benchmark, number: int, solution: str, letters: str) -> str:
    """The letter of the right option, given its number or its letter."""
    said = solution.strip().strip("().").upper()
    found = letters[int(said) : int(said) + 1] if said.isdecimal() else said
    if len(found) != 1 or found not in letters:
        raise ValueError(
            f"Row {number} of {benchmark.dataset!r} has `{benchmark.solution_column}={solution!r}`, which is "
            f"not one of its {len(letters)} options. It must be a number from 0 to {len(letters) - 1}, or a "
            f"letter from {letters[:1]} to {letters[-1:]}. Correct the row, or remove it."
        )
    return found


def _plain(name: str) -> str:
    return "".join(character for character in str(name).lower() if character.isalnum())
