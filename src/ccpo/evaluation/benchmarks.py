"""Which problems: benchmarks by name, or any file by its columns."""

from dataclasses import dataclass, replace
from pathlib import Path
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
        source (`str`): where the problems come from.
    """

    name: str
    dataset: str
    config: str | None = None
    split: str = "test"
    problem_column: str = "problem"
    solution_column: str = "answer"
    source: str = ""


# By the columns that their pages on the Hub show. They were tried on local folders of these columns, not on the Hub.
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("MATH500", "HuggingFaceH4/MATH-500", source="Lightman et al., 2023; MATH of Hendrycks et al., 2021"),
        Benchmark("GSM8K", "openai/gsm8k", "main", "test", "question", "answer", "Cobbe et al., 2021"),
        Benchmark("AIME 2024", "HuggingFaceH4/aime_2024", None, "train", source="American Mathematics Competitions"),
        Benchmark("AIME 2025", "yentinglin/aime_2025", None, "train", source="American Mathematics Competitions"),
        Benchmark("AMC 2023", "math-ai/amc23", None, "test", "question", source="American Mathematics Competitions"),
        Benchmark(
            "GaoKao 2023 En", "MARIO-Math-Reasoning/Gaokao2023-Math-En", None, "train", "question", "answer", "MARIO"
        ),
        Benchmark("Minerva Math", "math-ai/minervamath", None, "test", "question", source="Lewkowycz et al., 2022"),
        Benchmark("LogiQA", "lucasmccabe/logiqa", None, "test", "query", "correct_option", "Liu et al., 2020"),
    )
}


def find_benchmark(given: Any) -> Benchmark:
    """
    A benchmark of what was given.

    Args:
        given (`Benchmark` or `str`):
            One; its name, whatever the case and the blanks; or `path:problem_column:solution_column` of a local file.

    Raises:
        `ValueError`: an unknown name, with the known ones.
    """
    if isinstance(given, Benchmark):
        return given
    known = {_plain(name): benchmark for name, benchmark in BENCHMARKS.items()}
    if _plain(given) in known:
        return known[_plain(given)]
    path, *columns = given.rsplit(":", 2)
    if len(columns) == 2:
        return Benchmark(Path(path).stem, path, None, "test", *columns)
    raise ValueError(
        f"`benchmarks` names {given!r}; known are {list(BENCHMARKS)}. Of a file of your own, write "
        "'path:problem_column:solution_column'."
    )


def _plain(name: str) -> str:
    return "".join(character for character in str(name).lower() if character.isalnum())


def load_benchmark(given: Any, *, folder: str | None = None, conversational: bool = True) -> tuple[str, Dataset]:
    """
    A benchmark's name and problems, in TRL's columns.

    Args:
        given: see [`find_benchmark`].
        folder (`str`, *optional*): a local copy with the same columns, in place of the Hub's.
        conversational (`bool`, defaults to `True`): whether prompts are chat messages.
    """
    benchmark = find_benchmark(given)
    if folder is not None:
        benchmark = replace(benchmark, dataset=folder, config=None)
    options = {"problem_column": benchmark.problem_column, "solution_column": benchmark.solution_column}
    options |= {"split": benchmark.split, "config": benchmark.config, "conversational": conversational}
    return benchmark.name, load_problems(benchmark.dataset, **options)
