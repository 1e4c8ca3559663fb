"""Which problems: benchmarks by name, or any file by its columns."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from datasets import Dataset

from ..data import load_problems


@dataclass(frozen=True)
class Benchmark:
    """
    Where a benchmark's problems are.

    Args:
        name (`str`): what the tables call it.
        dataset (`str`): id on the Hub, or a local file or folder.
        config (`str`, *optional*): configuration of a Hub dataset.
        split (`str`, defaults to `"test"`): split.
        problem_column, solution_column (`str`): as for [`~ccpo.data.load_problems`].
        context_column (`str`, *optional*): a text that goes before the problem.
        options_column (`str`, *optional*):
            texts to choose from, which are lettered; the solution is a number from 0, or a letter.
        source (`str`): where the problems come from.
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


# By the columns that their pages on the Hub show. They were tried on local folders of these columns, not on the Hub.
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
    A benchmark of what was given.

    Args:
        given (`Benchmark` or `str`):
            One; its name, whatever the case and the blanks; `name=path` for a local copy with the same columns; or
            `path:problem_column:solution_column` of any local file.

    Raises:
        `ValueError`: an unknown name, with the known ones, or an empty path or column.
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
        f"`benchmarks` names {given!r}, which is unknown. Known are {list(BENCHMARKS)}. For a file of your "
        "own, write 'path:problem_column:solution_column'; for a local copy of a known one, write "
        "'name=path'."
    )


def load_benchmark(given: Any, *, conversational: bool = True) -> tuple[str, Dataset]:
    """
    A benchmark's name and problems, in TRL's columns.

    Args:
        given: see [`find_benchmark`].
        conversational (`bool`, defaults to `True`): whether prompts are chat messages.

    Raises:
        `ValueError`: an unknown benchmark, a missing column, or rows that are no problems.
        `FileNotFoundError`: a local path that is not there.
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
    """The problem with its context and its options, and the letter of the one that is right."""
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
    """The letter of the right option, of its number or of itself."""
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
