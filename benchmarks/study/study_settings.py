"""What the study compares, what a run is, and what is known of one without running it."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "arithmetic"
# Setting -> the folder of its recipe, and the fields in which it differs from it.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("single", {}),
    "single, Solver's start": ("single", {}),
    "shared": ("shared", {}),
    "CCPO": ("ccpo", {}),
    "CCPO, counterfactual": ("ccpo", {"advantage_estimator": "counterfactual", "scale_rewards": "none"}),
    "SEPO": ("sepo", {}),
    "C3": ("c3", {}),
    "vote": ("vote", {}),
    "DACR": ("dacr", {}),
    "shared, K = 2": ("shared", {"num_solves": 2}),
    "CCPO, K = 2": ("ccpo", {"num_solves": 2}),
}
STUDIED = tuple(SETTINGS)[:9]
SINGLE, SHARED = "single", "shared"
VOTED = ("shared", "vote", "DACR")  # whose tokens for a problem the single policy gets as votes
PARTS = 10  # points of a curve behind its start
CURVE_PROBLEMS, SAMPLES = 300, 2  # held-out problems of a point; answers to each of all held-out problems at the end
NOT_GENERATED = ("rating_tokens", "verify_tokens", "update_tokens")  # constrained ratings are read, not generated
FIGURES = "figures.json"


@dataclass(frozen=True)
class Job:
    """
    One run of the study.

    Args:
        kind (`str`): `"start"` (policies to start from), `"train"` or `"votes"`.
        name (`str`): the team whose policies it starts, or the setting; of votes, the single policy's.
        seed (`int`): of everything.
        tokens (`int`): at least so many are generated in training.
    """

    kind: str
    name: str
    seed: int
    tokens: int = 0

    @property
    def folder(self) -> str:
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")
        return f"{self.kind}-{name}-seed{self.seed}" + (f"-{self.tokens}" if self.kind != "start" else "")

    def to_dict(self) -> dict[str, Any]:
        if self.kind != "train":
            return asdict(self)
        folder, fields = SETTINGS[self.name]
        recipe = yaml.safe_load((RECIPES / folder / "config_demo.yaml").read_text(encoding="utf-8"))
        return {**asdict(self), "fields": [folder, fields], "recipe": recipe}


def list_jobs(settings: Sequence[str], seeds: Sequence[int], tokens: int) -> list[Job]:
    """All runs, each behind those that it needs, and seed by seed: a study that is cut short has whole seeds."""
    jobs = []
    for seed in seeds:
        jobs += [Job("start", team, seed) for team in dict.fromkeys(map(start_team, settings))]
        jobs += [Job("train", setting, seed, tokens) for setting in settings]
        if {SINGLE, *VOTED} <= set(settings):
            jobs.append(Job("votes", SINGLE, seed, tokens))
    return jobs


def needed(job: Job) -> list[Job]:
    """The runs whose policies a run loads."""
    if job.kind == "votes":
        return [Job("train", setting, job.seed, job.tokens) for setting in (SINGLE, *VOTED)]
    return [Job("start", start_team(job.name), job.seed)] if job.kind == "train" else []


def start_team(setting: str) -> str:
    """The team from whose policies a setting starts; one policy alone starts as the first of three voters."""
    teams = {"single": "vote", "vote": "vote", "DACR": "answer_critique_rewrite"}
    return teams.get(setting, "think_solve")


def start_agent(setting: str, agent: str) -> str:
    """The agent of that team who has the policy from which an agent of the setting starts."""
    return "voter_1" if setting == SINGLE else agent


def read_figures(folder: Path, job: Job) -> dict[str, Any] | None:
    """
    The figures of a run that is done; `None` where it is to be made: nothing there, or of another set-up.

    A run writes into a folder of another name, which gets this one when all is there; what a killed run left is not
    looked at.

    Raises:
        `ValueError`: a file that is not JSON, which no run leaves.
    """
    file = folder / job.folder / FIGURES
    if not file.is_file():
        return None
    try:
        figures = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}). Remove its folder, and the run is made again.") from error
    return figures if figures.get("job") == json.loads(json.dumps(job.to_dict())) else None


def count_tokens(row: dict[str, Any], rows: int) -> int:
    """
    Tokens generated in the step of a logged row.

    Args:
        row (`dict`): of a team, with its arms; or TRL's, of a policy alone.
        rows (`int`): completions of a generation batch, where a policy is alone.
    """
    arms = [name for name in row if name.startswith("rollout/") and name.endswith("_tokens")]
    if not arms:
        return round(row["completions/mean_length"] * rows)
    return int(sum(row[name] for name in arms if name.split("/")[1] not in NOT_GENERATED))


def passed(before: int, after: int, budget: int, parts: int = PARTS) -> bool:
    """Whether a step, from `before` tokens to `after`, reaches one of the `parts` ends of the budget's parts."""
    return after * parts // budget > before * parts // budget and before < budget


def on_grid(points: Sequence[Sequence[float]], budget: int, parts: int = PARTS) -> list[float]:
    """
    A curve at 0, 1/parts, … of the budget, between its points on a straight line.

    Args:
        points (`Sequence` of `(tokens, accuracy)`): from 0 tokens to at least the budget.
        budget (`int`): tokens.
        parts (`int`): how many.

    Raises:
        `ValueError`: points that do not reach from 0 to the budget.
    """
    tokens, values = zip(*points, strict=True)
    if tokens[0] != 0 or tokens[-1] < budget:
        raise ValueError(f"`points` must reach from 0 to {budget} tokens, got {tokens[0]} to {tokens[-1]}.")
    return np.interp(np.linspace(0, budget, parts + 1), tokens, values).tolist()


def area_under(curve: Sequence[float]) -> float:
    """The mean height of a curve of evenly spaced points, by the trapezoid rule: who learns earlier has more."""
    return float(np.trapezoid(curve) / (len(curve) - 1))
