"""
Evaluate a team against its arms, on benchmarks by name or on files of one's own.

    python -m ccpo.evaluation outputs/run --benchmarks MATH500 GSM8K --k 4 --output_dir outputs/evaluation
    python -m ccpo.evaluation outputs/run --benchmarks problems.jsonl:question:answer --single outputs/single
    python -m ccpo.evaluation --models Qwen/Qwen2.5-1.5B-Instruct --topology think_solve --benchmarks GSM8K

The folder gets results.json, results.md and samples.parquet. The same command goes on where it was interrupted.
"""

import argparse
import sys
from errno import ENAMETOOLONG
from pathlib import Path
from typing import Any

import yaml

from ..generation import OpenAIGenerator
from ..team.role import Role
from ..team.topology import Topology, make_topology
from .arms import SINGLE, single_policy
from .benchmarks import BENCHMARKS
from .loading import BACKENDS, TEAM_FILE, read_team
from .suite import evaluate
from .tables import FILES, to_markdown
from .team import Team

# Options of transformers' GenerationConfig -> what vLLM's endpoint calls them; the first is every endpoint's
NAMES_OF_ENDPOINTS = {"stop_strings": "stop", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m ccpo.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("team", nargs="?", help="a run's folder: team.json, and a folder for each agent")
    add("--models", nargs="+", metavar="[AGENT=]MODEL", help="in place of a run's folder: one for all, or by agent")
    add("--topology", help="of --models: a kind (think_solve, vote, ...), YAML, or a file of it")
    add("--benchmarks", nargs="+", required=True, metavar="NAME", help=f"{', '.join(BENCHMARKS)}; NAME=path; or "
        "path:problem_column:solution_column")  # fmt: skip
    add("--output_dir", default="outputs/evaluation", help="gets the samples and the tables")
    add("--k", type=int, default=1, help="samples for each problem")
    add("--arms", nargs="+", help="by default all that can be")
    add("--single", help="a run's folder or a model, for the single policy and its self-consistency")
    add("--single_prompt", help="what a model in --single is asked: a template with {problem}, or a file of it")
    add("--swap", nargs="+", default=[], metavar="ROLE=MODEL", help="another model in a role, as an arm")
    add("--endpoint", nargs="+", default=[], metavar="ROLE=MODEL@URL", help="who speaks behind an endpoint")
    add("--backend", choices=BACKENDS, default="transformers", help="what runs the local models")
    add("--temperature", type=float, help="in place of the run's")
    add("--top_p", type=float, help="in place of the run's")
    add("--top_k", type=int, help="in place of the run's")
    add("--max_new_tokens", type=int, help="in place of the run's")
    add("--batch_size", type=int, default=64, help="problems at once, each k times")
    add("--max_problems", type=int, help="the first of each benchmark")
    add("--seed", type=int, default=0)
    add("--text", action="store_true", help="prompts are plain text, not chat messages")
    return parser.parse_args(arguments)


def read_pairs(name: str, given: list[str]) -> dict[str, str]:
    """`ROLE=VALUE` as a mapping."""
    pairs = [pair.partition("=")[::2] for pair in given]
    if bad := [pair for pair, (role, value) in zip(given, pairs, strict=True) if not role or not value]:
        raise ValueError(f"`--{name}` must be ROLE=VALUE, got {bad}.")
    roles = [role for role, _ in pairs]
    if twice := sorted({role for role in roles if roles.count(role) > 1}):
        raise ValueError(f"`--{name}` names {twice} twice. Leave one out.")
    return dict(pairs)


def read_text(given: str) -> str | None:
    """What a file of this name holds; `None` if there is none, as of a text too long to be a name."""
    try:
        return Path(given).read_text(encoding="utf-8") if Path(given).is_file() else None
    except OSError as error:
        if error.errno == ENAMETOOLONG:
            return None
        raise


def read_topology(given: str) -> Topology:
    """A team from a kind, from YAML, or from a file of it."""
    text = read_text(given)
    try:
        return make_topology(yaml.safe_load(given if text is None else text))
    except yaml.YAMLError as error:
        raise ValueError(f"`--topology` cannot be read as YAML ({error}).") from error


def read_prompt(given: str | None) -> str | None:
    """A template, or what is in the file that has it, but for the newline at its end."""
    text = None if given is None or "{" in given else read_text(given)
    return given if text is None else text.removesuffix("\n")


def make_endpoint(role: str, place: str, sampling: dict[str, Any]) -> OpenAIGenerator:
    """The generator of `MODEL@URL`, sampled as the role is."""
    model, _, url = place.rpartition("@")
    if not model or "://" not in url:
        raise ValueError(
            f"`--endpoint {role}={place}` must be ROLE=MODEL@URL, such as {role}=my-model@http://localhost:8000/v1."
        )
    options = {name: sampling[name] for name in ("temperature", "top_p") if name in sampling}
    options |= {"max_tokens": sampling["max_new_tokens"]} if "max_new_tokens" in sampling else {}
    more = {name: sampling[name] for name in ("top_k", "chat_template_kwargs") if sampling.get(name)}
    others = {
        NAMES_OF_ENDPOINTS.get(name, name): value for name, value in (sampling.get("generation_kwargs") or {}).items()
    }
    more |= {name: value for name, value in others.items() if (name, value) != ("repetition_penalty", 1.0)}
    if unknown := sorted(set(others) - {*NAMES_OF_ENDPOINTS.values()}):
        raise ValueError(
            f"`--endpoint {role}={place}`: the run samples {role!r} with {unknown}, which endpoints do not know. Take "
            f"them out of its `generation_kwargs` in {TEAM_FILE}, or evaluate it with a local model."
        )
    return OpenAIGenerator(model, url, extra_body=more or None, **options)


def load_team(options: argparse.Namespace, common: dict[str, Any], chosen: dict[str, Any]) -> tuple[Team, dict]:
    """The team, and how each of its roles is sampled: as in the run but for what was chosen."""
    if (options.team is None) == (options.models is None and options.topology is None):
        raise ValueError("Give a run's folder, or `--models` and `--topology`: one of the two.")
    if options.team is not None:
        topology, saved, _ = read_team(options.team)
    elif options.topology is None:
        raise ValueError(
            f"`--models {' '.join(options.models)}` needs `--topology`: who speaks. Name a kind, or a file."
        )
    else:
        topology, saved = read_topology(options.topology), {}
    sampling = {role: {**saved.get(role, {}), **chosen} for role in topology.role_names}
    behind = read_pairs("endpoint", options.endpoint)
    if unknown := sorted(set(behind) - set(topology.role_names)):
        raise ValueError(f"`--endpoint` names {unknown}; the roles are {list(topology.role_names)}.")
    given = {role: make_endpoint(role, place, sampling[role]) for role, place in behind.items()}
    if options.team is not None:
        return Team.from_pretrained(options.team, generate=given, **common, **chosen), sampling
    models: Any = options.models or []
    models = models[0] if len(models) == 1 and "=" not in models[0] else read_pairs("models", models)
    return Team.from_models(models, topology, generate=given, **common, **chosen), sampling


def run(options: argparse.Namespace) -> str:
    """Evaluate, write the files, and return the tables."""
    common = {"backend": options.backend, "seed": options.seed}
    chosen = {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}
    team, sampling = load_team(options, common, chosen)
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
    )
    return "\n".join([to_markdown(results), *remarks, *(str(Path(options.output_dir) / name) for name in FILES)])


def main() -> None:
    try:
        sys.stdout.write(run(parse_arguments()) + "\n")
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit("\n".join([str(error), *getattr(error, "__notes__", ())]))


if __name__ == "__main__":
    main()
