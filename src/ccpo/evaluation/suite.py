"""[`evaluate`] compares a team with its arms on benchmarks. An evaluation that was interrupted can be continued."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from ..generation.inputs import check_prompts
from ..team.problems import check_problems
from ..verifier.math_verifier import MathVerifier
from .arms import JOINT, SINGLE, VOTES, Arm, build_arms
from .benchmarks import load_benchmark
from .description import describe_generator, describe_team, plain
from .draws import Draws, Sizes, mean_tokens, votes_of
from .results import WITHIN, BenchmarkResult, can_compare, summarize
from .samples import Samples, file_name
from .tables import write_results
from .team import Recorder, Team

PACKAGES = ("ccpo", "torch", "transformers", "datasets", "numpy")


def evaluate(
    team: Team | str | Path,
    benchmarks: Mapping[str, Dataset] | Sequence[Any] | str,
    *,
    output_dir: str | Path,
    k: int = 1,
    arms: Sequence[str] | None = None,
    single: Team | None = None,
    swaps: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    max_problems: int | None = None,
    conversational: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, BenchmarkResult]:
    """
    Evaluate a team and its arms on benchmarks, with k samples for each problem.

    An arm is a way to answer, such as the team without one role. Each batch of samples is saved when it is complete.
    If `evaluate` is called again with the same folder, saved batches are not generated again, and arms and benchmarks
    may be added. With [`TransformersGenerator`] each batch has its own seed, so that an interrupted evaluation ends
    with the same table as an uninterrupted one. Generators that have a method `reseed` keep the last batch's seed.

    Args:
        team ([`Team`], `str` or `Path`): The team, or the folder of a run.
        benchmarks:
            Names or files, as for [`~ccpo.evaluation.benchmarks.find_benchmark`], or a mapping from names to datasets
            with TRL's columns.
        output_dir (`str` or `Path`):
            The folder for `results.json`, `results.md` and `samples.parquet`. Its subfolder `samples/` has a file for
            each batch.
        k (`int`, defaults to 1): The number of samples for each problem.
        arms, single, swaps: As for [`~ccpo.evaluation.arms.build_arms`].
        batch_size (`int`, defaults to 64): How many problems are answered at once, each of them k times.
        seed (`int`, defaults to 0): The seed of the samples and of the bootstrap.
        max_problems (`int`, *optional*): Use only this many problems from the beginning of each benchmark.
        conversational (`bool`, defaults to `True`): Whether benchmarks given by name are asked as chat messages.
        settings (`Mapping`, *optional*):
            Anything else on which the samples depend, such as the options of your own generator. If saved samples have
            other settings, an error is raised.

    Returns:
        `dict[str, BenchmarkResult]`: Maps each benchmark to its result.

    Raises:
        `ValueError`: If a benchmark or arm is unknown, if a number is too low, if problems cannot be asked or judged,
            if the folder has samples with other settings, or if this is not the main process. All this is checked
            before anything is generated.
        `OSError`: If a file cannot be written.
    """
    numbers = {"k": k, "batch_size": batch_size, "seed": seed, "max_problems": max_problems}
    for name, value in numbers.items():
        if name == "max_problems" and value is None:
            continue
        least = 0 if name == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}, got {value!r}. Set it to {least} or more."
            )
    process = PartialState()
    if not process.is_main_process:  # or else several processes would write the same files
        raise ValueError(
            f"`evaluate` is called in process {process.process_index} of {process.num_processes}. Call it "
            "only in the main process (`if PartialState().is_main_process:`), or run one process."
        )
    problems = _load(benchmarks, conversational, max_problems)
    team = team if isinstance(team, Team) else Team.from_pretrained(team, seed=seed)
    chosen = build_arms(team, arms, single=single, swaps=swaps)
    samples, sizes = Samples(output_dir), Sizes(k, batch_size, seed)
    known: dict[int, Any] = {}
    mine = {"settings": dict(settings)} if settings else {}  # nested, because names may be the same as ours
    depends = {name: {**mine, **describe_team(arm.team, known)} for name, arm in chosen.items()}
    drawn = {
        name: {arm: Draws(samples, name, data, chosen[arm], sizes, depends[arm], fine=arm == VOTES) for arm in chosen}
        for name, data in problems.items()
    }
    kept = {(name, arm): draws.kept() for name, own in drawn.items() for arm, draws in own.items()}
    for name, data in problems.items():
        _check(name, data, [arm for arm in chosen.values() if None in kept[name, arm.name]])
    results = {}
    # The number of votes is not known yet and is added later
    total = k * sum(map(len, problems.values())) * (len(chosen) - (VOTES in chosen))
    done = sum(number or 0 for (_, arm), numbers in kept.items() for number in numbers if arm != VOTES)
    with tqdm(total=total, initial=done, desc="Evaluating", unit="sample", smoothing=0.05) as bar:
        for name, own in drawn.items():
            left_out = _draw(own, chosen, kept, bar)
            rows = {arm: draws.rows for arm, draws in own.items() if arm not in left_out}
            options = {"seed": seed, "left_out": left_out}
            results[name] = summarize(rows, chosen, len(problems[name]), k, team.outcome, **options)
    content = {
        "settings": {
            **{"k": k, "batch_size": batch_size, "seed": seed, "max_problems": max_problems, **mine},
            "benchmarks": {
                name: {"problems": len(data), "columns": data.column_names} for name, data in problems.items()
            },
            "arms": list(chosen),
            "team": describe_team(team, known),
            "single": None if single is None else describe_team(single, known),
            "swaps": {role: describe_generator(generate) for role, generate in (swaps or {}).items()},
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    files = [
        samples.file(name, arm, batch)
        for name, own in drawn.items()
        for arm, draws in own.items()
        if arm not in results[name].left_out
        for batch in range(len(draws.spans))
    ]
    write_results(results, samples, plain(content), files)
    return results


def _load(benchmarks: Any, conversational: bool, max_problems: int | None) -> dict[str, Dataset]:
    if not benchmarks:
        raise ValueError("`benchmarks` is empty. Name at least one.")
    if isinstance(benchmarks, Mapping):
        found = list(benchmarks.items())
    else:
        given = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
        found = [load_benchmark(benchmark, conversational=conversational) for benchmark in given]
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"`benchmarks` has {twice} twice. Name each one once, and give different files different names."
        )
    files = [file_name(name) for name in names]
    if alike := [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]:
        raise ValueError(f"`benchmarks` has {alike}, whose samples would be written to the same files. Rename one.")
    for name, data in found:
        if not isinstance(data, Dataset) or "prompt" not in data.column_names or not len(data):
            has = data.column_names if isinstance(data, Dataset) else type(data).__name__
            raise ValueError(
                f"`benchmarks[{name!r}]` must be a datasets.Dataset of at least one row with the column "
                f"'prompt', got {has}. Load it with ccpo.data.load_problems(..., problem_column=..., "
                "solution_column=...)."
            )
    return {
        name: data if max_problems is None else data.select(range(min(max_problems, len(data))))
        for name, data in found
    }


def _check(name: str, data: Dataset, arms: Sequence[Arm]) -> None:
    """Refuse what cannot be asked or judged, before anything of these arms is drawn."""
    try:
        prompts = check_prompts(data["prompt"])
    except TypeError as error:
        raise ValueError(f"`benchmarks[{name!r}]`: {error} Correct the row, or remove it.") from error
    if taken := [column for column in ("prompts", "completions") if column in data.column_names]:
        raise ValueError(
            f"`benchmarks[{name!r}]` has the columns {taken}, but the outcome function gets other values under "
            "these names. Rename them."
        )
    if arms and isinstance(arms[0].team.outcome, MathVerifier) and "solution" not in data.column_names:
        raise ValueError(
            f"`benchmarks[{name!r}]` has no column 'solution', which MathVerifier compares answers with. Its "
            f"columns are {data.column_names}. Rename the column of the correct answers, or give a team with "
            "another `outcome`."
        )
    golds = data["solution"] if arms and isinstance(arms[0].team.outcome, MathVerifier) else []
    if wrong := [gold for gold in golds if not isinstance(gold, str | None)]:
        raise ValueError(
            f"`benchmarks[{name!r}]` has the solution {wrong[0]!r}, but MathVerifier needs texts. Write the "
            "correct answers as text, as ccpo.data.load_problems does."
        )
    teams = {id(arm.team): arm.team for arm in arms if arm.reads != "own"}
    for team in teams.values():
        speak = {role: Recorder(team.generate[role], [role]) for role in team.topology.role_names}
        check_problems(f"benchmarks[{name!r}]", prompts, team.topology, speak)


def _draw(
    own: dict[str, Draws], chosen: Mapping[str, Arm], kept: Mapping[tuple[str, str], list[int | None]], bar: tqdm
) -> dict[str, str]:
    """Draw the samples of all arms of a benchmark. Maps each arm that is left out to the reason."""
    left_out, joint = {}, own[JOINT]
    for arm, draws in own.items():
        bar.set_postfix_str(f"{draws.name}, {arm}")
        if why := _why_not(own, chosen[arm]):
            left_out[arm] = why
            if arm != VOTES:
                bar.total -= sum(draws.sizes.k * (end - start) for start, end in draws.spans)
            continue
        before, votes = bar.total, 0
        for batch, (start, end) in enumerate(draws.spans):
            numbers = [draws.sizes.k] * (end - start)
            if arm == VOTES:
                numbers = votes_of(draws, batch, joint, own[SINGLE])
                votes += sum(numbers) if kept[draws.name, arm][batch] is None else 0
                left = sum(stop - start for (start, stop), n in _after(draws, kept, batch) if n is None)
                bar.total = before + votes + round(left * mean_tokens(joint) / mean_tokens(own[SINGLE]))
            draws.draw(batch, numbers, joint, bar)
    return left_out


def _after(draws: Draws, kept: Mapping[tuple[str, str], list[int | None]], batch: int) -> list[tuple]:
    """The spans of the batches after one, and how many samples of each are saved."""
    return list(zip(draws.spans, kept[draws.name, draws.arm.name], strict=True))[batch + 1 :]


def _why_not(own: Mapping[str, Draws], arm: Arm) -> str | None:
    """The reason why an arm must be left out, or `None`."""
    joint = own[JOINT]
    if arm.reads == "other" and joint.other_problem(0) is None:
        return "there is no other problem from which to take a text"
    if arm.name != VOTES:
        return None
    if not can_compare(arm.team.outcome):
        return "the outcome function has no `extract` and `equal`, which are needed to count equal answers"
    means = {name: mean_tokens(own[name]) for name in (JOINT, SINGLE)}
    if unknown := [name for name, mean in means.items() if mean is None]:
        return f"the number of tokens is not known for {' and '.join(unknown)}"
    if not means[SINGLE]:
        return "the single model writes no tokens"
    if means[JOINT] * (1 + WITHIN) < means[SINGLE]:
        return (
            f"one answer of the single model has {means[SINGLE]:.0f} tokens, more than the team's "
            f"{means[JOINT]:.0f}. Lower its `max_new_tokens`"
        )
    return None
