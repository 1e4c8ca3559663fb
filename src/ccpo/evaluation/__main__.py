"""
Evaluate a trained team against its arms, on benchmarks by name or on files of one's own.

    python -m ccpo.evaluation outputs/run --benchmarks MATH500 GSM8K --k 4 --output_dir outputs/evaluation
    python -m ccpo.evaluation outputs/run --benchmarks problems.jsonl:question:answer --single outputs/single

The folder gets results.json, results.md and samples.parquet. The same command goes on where it was interrupted.
"""

import argparse
import sys
from typing import Any

from ..generation import OpenAIGenerator, TransformersGenerator
from ..team.topology import Solo
from .suite import evaluate
from .tables import to_markdown, write_results
from .team import Team


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m ccpo.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("team", help="a run's folder: team.json, and a folder for each agent")
    parser.add_argument("--benchmarks", nargs="+", required=True, metavar="NAME", help="names, or path:problem:answer")
    parser.add_argument("--output_dir", required=True, help="gets the samples and the tables")
    parser.add_argument("--k", type=int, default=1, help="samples for each problem")
    parser.add_argument("--arms", nargs="+", help="by default all that can be")
    parser.add_argument("--single", help="a model for the single policy and its self-consistency")
    parser.add_argument(
        "--swap", nargs="+", default=[], metavar="ROLE=MODEL", help="another model in a role, as an arm"
    )
    parser.add_argument("--endpoint", nargs="+", default=[], metavar="ROLE=MODEL@URL", help="who speaks behind one")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--batch_size", type=int, default=64, help="problems at once, each k times")
    parser.add_argument("--max_problems", type=int, help="the first of each benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", action="store_true", help="prompts are plain text, not chat messages")
    return parser.parse_args(arguments)


def read_pairs(name: str, given: list[str]) -> dict[str, str]:
    """`ROLE=VALUE` as a mapping."""
    pairs = dict(pair.partition("=")[::2] for pair in given)
    if bad := [role for role, value in pairs.items() if not role or not value]:
        raise ValueError(f"`{name}` must be ROLE=VALUE, got {bad}.")
    return pairs


def run(options: argparse.Namespace) -> str:
    """Evaluate, write the files, and return the tables."""
    chosen = {name: getattr(options, name) for name in ("temperature", "top_p", "max_new_tokens")}
    sampling = {name: value for name, value in chosen.items() if value is not None}
    behind: dict[str, Any] = {}
    for role, place in read_pairs("endpoint", options.endpoint).items():
        model, _, url = place.partition("@")
        limit = {"max_tokens": sampling["max_new_tokens"]} if "max_new_tokens" in sampling else {}
        rest = {name: value for name, value in sampling.items() if name != "max_new_tokens"}
        behind[role] = OpenAIGenerator(model, url or None, **limit, **rest)
    team = Team.from_pretrained(options.team, generate=behind, seed=options.seed, **sampling)
    last = team.topology.answer_roles[-1]
    like = team.generate[last]
    own = {
        name: getattr(like, name)
        for name in ("max_new_tokens", "temperature", "top_p", "top_k")
        if hasattr(like, name)
    }
    single = None
    if options.single is not None:
        topology = Solo()
        generator = TransformersGenerator(options.single, **{**own, **sampling})
        single = Team(topology, dict.fromkeys(topology.role_names, generator), team.outcome)
    swaps = {
        role: TransformersGenerator(model, **{**own, **sampling})
        for role, model in read_pairs("swap", options.swap).items()
    }
    results = evaluate(
        team,
        options.benchmarks,
        output_dir=options.output_dir,
        k=options.k,
        arms=options.arms,
        single=single,
        swaps=swaps,
        batch_size=options.batch_size,
        seed=options.seed,
        max_problems=options.max_problems,
        conversational=not options.text,
        settings={
            "team": options.team,
            "single": options.single,
            "swap": options.swap,
            "endpoint": options.endpoint,
            "sampling": {role: repr(generate) for role, generate in team.generate.items()},
        },
    )
    paths = write_results(results, options.output_dir)
    return to_markdown(results) + "\n" + "\n".join(f"{name}: {path}" for name, path in paths.items())


def main() -> None:
    try:
        sys.stdout.write(run(parse_arguments()) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
