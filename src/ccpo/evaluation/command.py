"""Options of the command line that name a team: the folder of a run, or models, a topology and endpoints."""

import argparse
from errno import ENAMETOOLONG
from pathlib import Path
from typing import Any

import yaml

from ..generation import OpenAIGenerator
from ..team.topology import Topology, make_topology
from .loading import BACKENDS, TEAM_FILE, read_team
from .team import Team

# Options of transformers' GenerationConfig and their names in vLLM's endpoint. All endpoints have the first one.
NAMES_OF_ENDPOINTS = {"stop_strings": "stop", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens")


def add_team_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that [`load_team`] reads, and `--text`."""
    add = parser.add_argument
    add("team", nargs="?", help="the folder of a run, which holds team.json and a folder for each agent")
    add(
        "--models",
        nargs="+",
        metavar="[AGENT=]MODEL",
        help="models to use instead of a run's folder: one for all agents, or AGENT=MODEL for each",
    )
    add("--topology", help="the team that --models form: a kind (think_solve, vote, ...), YAML, or a YAML file")
    add(
        "--endpoint",
        nargs="+",
        default=[],
        metavar="ROLE=MODEL@URL",
        help="roles whose model runs behind an OpenAI-compatible endpoint",
    )
    add("--backend", choices=BACKENDS, default="transformers", help="the library that runs the local models")
    add("--temperature", type=float, help="instead of the run's value")
    add("--top_p", type=float, help="instead of the run's value")
    add("--top_k", type=int, help="instead of the run's value")
    add("--max_new_tokens", type=int, help="instead of the run's value")
    add("--text", action="store_true", help="write prompts as plain text, not as chat messages")


def read_pairs(name: str, given: list[str]) -> dict[str, str]:
    """Read values of the form `ROLE=VALUE` as a mapping. Raises a `ValueError` for any other form."""
    pairs = [pair.partition("=")[::2] for pair in given]
    if bad := [pair for pair, (role, value) in zip(given, pairs, strict=True) if not role or not value]:
        raise ValueError(f"`--{name}` must be ROLE=VALUE, got {bad}.")
    roles = [role for role, _ in pairs]
    if twice := sorted({role for role in roles if roles.count(role) > 1}):
        raise ValueError(f"`--{name}` names {twice} twice. Remove one.")
    return dict(pairs)


def read_text(given: str) -> str | None:
    """The content of the file of this name, or `None` if there is no such file."""
    try:
        return Path(given).read_text(encoding="utf-8") if Path(given).is_file() else None
    except OSError as error:
        if error.errno == ENAMETOOLONG:
            return None
        raise


def read_topology(given: str) -> Topology:
    """Make a topology from the name of a kind, from YAML, or from a YAML file."""
    text = read_text(given)
    try:
        return make_topology(yaml.safe_load(given if text is None else text))
    except yaml.YAMLError as error:
        raise ValueError(f"`--topology` cannot be read as YAML ({error}).") from error


def make_endpoint(role: str, place: str, sampling: dict[str, Any]) -> OpenAIGenerator:
    """Make the generator for `MODEL@URL`, with the sampling of the role."""
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
            f"`--endpoint {role}={place}`: the run samples {role!r} with the options {unknown}, which "
            f"endpoints do not support. Remove them from its `generation_kwargs` in {TEAM_FILE}, or evaluate "
            "it with a local model."
        )
    return OpenAIGenerator(model, url, extra_body=more or None, **options)


def chosen_sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that are set on the command line."""
    return {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}


def load_team(options: argparse.Namespace, common: dict[str, Any]) -> tuple[Team, dict]:
    """
    Load the team that the command line names.

    Returns:
        `tuple[Team, dict]`: The team, and for each role how it is sampled: as in the run, with the options of the
        command line on top.
    """
    chosen = chosen_sampling(options)
    if (options.team is None) == (options.models is None and options.topology is None):
        raise ValueError("Give either the folder of a run, or `--models` and `--topology`.")
    if options.team is not None:
        topology, saved, _ = read_team(options.team)
    elif options.topology is None:
        raise ValueError(
            f"`--models {' '.join(options.models)}` needs `--topology`, which says what team they form. Give "
            "the name of a kind, or a file."
        )
    else:
        topology, saved = read_topology(options.topology), {}
    sampling = {role: {**saved.get(role, {}), **chosen} for role in topology.role_names}
    behind = read_pairs("endpoint", options.endpoint)
    if unknown := sorted(set(behind) - set(topology.role_names)):
        raise ValueError(
            f"`--endpoint` names {unknown}, which are not roles of the team. Its roles are "
            f"{list(topology.role_names)}."
        )
    given = {role: make_endpoint(role, place, sampling[role]) for role, place in behind.items()}
    if options.team is not None:
        return Team.from_pretrained(options.team, generate=given, **common, **chosen), sampling
    models: Any = options.models or []
    models = models[0] if len(models) == 1 and "=" not in models[0] else read_pairs("models", models)
    return Team.from_models(models, topology, generate=given, **common, **chosen), sampling
