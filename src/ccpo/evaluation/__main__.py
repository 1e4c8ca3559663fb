"""
Compare a team with its arms (other ways to answer) on benchmarks, which are known by name, or on your own files.

    ccpo evaluate outputs/run --benchmarks MATH500 GSM8K --k 4 --output_dir outputs/evaluation
    ccpo evaluate outputs/demo --benchmarks arithmetic
    ccpo evaluate outputs/run --benchmarks problems.jsonl:question:answer --single outputs/single
    ccpo evaluate --models Qwen/Qwen2.5-1.5B-Instruct --topology think_solve --benchmarks GSM8K

The folder gets results.json, results.md and samples.parquet. To continue an interrupted evaluation, run the same
command again.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..exits import CommandParser, refusing
from ..team.role import Role
from ..team.topology import Topology
from .arms import SINGLE, single_policy
from .benchmarks import BENCHMARKS, load_benchmark
from .command import add_team_arguments, chosen_sampling, load_team, read_pairs, read_text
from .loading import TEAM_FILE
from .suite import evaluate
from .tables import FILES, to_markdown
from .team import Team


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser("ccpo evaluate", __doc__)
    add_team_arguments(parser)
    add = parser.add_argument
    add("--benchmarks", nargs="+", required=True, metavar="NAME", help=f"{', '.join(BENCHMARKS)}; NAME=path; "
        "path:problem_column:solution_column; or an embedded task, arithmetic or wordproblems")  # fmt: skip
    add("--output_dir", default="outputs/evaluation", help="gets the samples and the tables")
    add("--k", type=int, default=1, help="samples for each problem")
    add("--arms", nargs="+", help="what to compare the team with; by default every arm that the team allows")
    add("--single", help="a run's folder or a model, for the single policy and its self-consistency")
    add("--single_prompt", help="what a model in --single is asked: a template with {problem}, or a file of it")
    add("--swap", nargs="+", default=[], metavar="ROLE=MODEL", help="another model in a role, as an arm")
    add("--batch_size", type=int, default=64, help="problems at once, each k times")
    add("--max_problems", type=int, help="the first of each benchmark")
    add("--seed", type=int, default=0, help="of the samples")
    return parser.parse_args(arguments)


def read_prompt(given: str | None) -> str | None:
    """Read a template, given as text or as the name of a file. The newline at the end of a file is removed."""
    text = None if given is None or "{" in given else read_text(given)
    return given if text is None else text.removesuffix("\n")


def read_benchmarks(options: argparse.Namespace, embedded: Callable[[str], Dataset | None]) -> Any:
    """The benchmarks in the form that [`evaluate`] takes. An embedded task gives its held-out problems."""
    names = [name for name in options.benchmarks if name.isidentifier() and name not in BENCHMARKS]
    own = {name: problems for name in names if (problems := embedded(name)) is not None}
    if not own:
        return options.benchmarks
    if len({*options.benchmarks}) < len(options.benchmarks):
        raise ValueError(f"`--benchmarks` names one twice, got {options.benchmarks}. Leave one out.")
    load = partial(load_benchmark, conversational=not options.text)
    return dict((name, own[name]) if name in own else load(name) for name in options.benchmarks)


def run(options: argparse.Namespace, embedded: Callable[[str], Dataset | None] = lambda name: None) -> str:
    """
    Evaluate, write the files, and return the tables.

    Args:
        options (`argparse.Namespace`): The options, from [`parse_arguments`].
        embedded (`Callable`, *optional*): Takes a name. Returns the held-out problems of this task, or `None`.

    Returns:
        `str`: The tables, and the names of the files.
    """
    common = {"backend": options.backend, "seed": options.seed}
    chosen = chosen_sampling(options)
    team, sampling = load_team(options, common)
    single, swaps, remarks = None, {}, []
    is_run = options.single is not None and (Path(options.single) / TEAM_FILE).is_file()
    if options.single_prompt is not None and (options.single is None or is_run):
        raise ValueError(f"`--single_prompt` is of a model in `--single`, got `--single {options.single}`. Name one.")
    if is_run:
        single = Team.from_pretrained(options.single, outcome=team.outcome, **common, **chosen)
    elif options.single is not None:
        one, own = single_policy(team.topology, sampling, read_prompt(options.single_prompt))
        single = Team.from_models(options.single, one, outcome=team.outcome, **common, **own)
        asked = "the problem as it is" if one.roles[0].prompt is None else repr(one.roles[0].prompt)
        remarks = [f"*{SINGLE}* is asked {asked}, with room for {own['max_new_tokens']} tokens.", ""]
    for role, model in read_pairs("swap", options.swap).items():
        if role not in team.topology.role_names:
            raise ValueError(f"`--swap` names {role!r}; the roles are {list(team.topology.role_names)}.")
        other = Team.from_models(model, Topology((Role(role),)), **common, **sampling[role])
        swaps[role] = other.generate[role]
    results = _evaluate(
        options,
        team,
        read_benchmarks(options, embedded),
        output_dir=options.output_dir,
        k=options.k,
        arms=options.arms,
        single=single,
        swaps=swaps,
        batch_size=options.batch_size,
        seed=options.seed,
        max_problems=options.max_problems,
        conversational=not options.text,
    )
    return "\n".join([to_markdown(results), *remarks, *(str(Path(options.output_dir) / name) for name in FILES)])


def _evaluate(options: argparse.Namespace, *args, **kwargs):
    """[`evaluate`], which says what the command's option is where prompts are no conversations."""
    try:
        return evaluate(*args, **kwargs)
    except ValueError as error:
        if "no chat template" in str(error) and not options.text:
            error.add_note("In this command, add `--text`.")
        raise


def main(arguments: list[str] | None = None, embedded: Callable[[str], Dataset | None] = lambda name: None) -> None:
    """The command `ccpo evaluate`; `embedded` as for [`run`]."""
    with refusing("ccpo evaluate", RuntimeError):
        sys.stdout.write(run(parse_arguments(arguments), embedded) + "\n")


if __name__ == "__main__":
    main()
