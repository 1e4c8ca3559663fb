"""What the study found: estimates over seeds, paired differences, tables, the figure, and where they are written."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from study_settings import PARTS, ROOT, SHARED, SINGLE, list_jobs, read_figures

from ccpo.evaluation.statistics import Difference, Estimate, holm
from ccpo.report import write_json

PAGE, FIGURE = ROOT / "docs" / "study.md", ROOT / "docs" / "study.png"
MEASURES = {"area": "area", "joint": "accuracy at the end"}
AT = (1, 2, 5, 10)  # tenths of the tokens in the table of the curves


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean over the seeds with Student's 95 % interval: a bootstrap of eight seeds is too narrow."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, (mean, mean), n)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, (mean - half, mean + half), n)


def compare_seeds(pairs: Mapping[Any, tuple[Sequence[float], Sequence[float]]]) -> dict[Any, Difference]:
    """
    Differences paired by seed, with Student's intervals and p-values; which of them stand, by Holm's correction.

    The test that flips signs, which `ccpo.evaluation` has for problems, cannot get below 2 / 2**8 with eight seeds:
    corrected for seven differences, none could stand, whatever they are.
    """
    found = {}
    for name, (first, second) in pairs.items():
        difference = [a - b for a, b in zip(first, second, strict=True)]
        mean, known = over_seeds(difference), len(difference) > 1 and np.std(difference) > 0
        p = float(stats.ttest_1samp(difference, 0).pvalue) if known else math.nan
        found[name] = Difference(mean.value, mean.interval, mean.problems, p)
    stands = holm({name: difference.p for name, difference in found.items()})
    return {name: Difference(d.value, d.interval, d.problems, d.p, stands[name]) for name, d in found.items()}


def read_study(folder: Path, settings: Sequence[str], seeds: Sequence[int], tokens: int) -> dict[str, Any]:
    """
    The figures of the seeds all of whose runs are done.

    Raises:
        `ValueError`: there is none.
    """
    jobs = list_jobs(settings, seeds, tokens)
    figures = {job: read_figures(folder, job) for job in jobs}
    whole = [seed for seed in seeds if all(figures[job] is not None for job in jobs if job.seed == seed)]
    if not whole:
        missing = [job.folder for job in jobs if figures[job] is None]
        raise ValueError(f"No seed of the study is complete in {folder}: {missing[:3]} and others are missing.")
    runs = {name: [] for name in settings}
    votes, cost = [], {}
    for job in jobs:
        if job.seed in whole:
            if job.kind == "train":
                runs[job.name].append(figures[job])
            votes += [figures[job]["votes"]] if job.kind == "votes" else []
            kind = job.name if job.kind == "train" else job.kind
            cost.setdefault(kind, []).append([figures[job]["cpu_seconds"], figures[job]["seconds"]])
    return {"seeds": whole, "tokens": tokens, "runs": runs, "votes": votes, "cost": cost}


def summarize(study: dict[str, Any]) -> dict[str, Any]:
    """Estimates of every setting, differences against shared credit and the single policy, votes, and what it cost."""
    runs, keys = study["runs"], ("steps", "tokens", "scored_tokens", "joint", "area", "alone", "gain")
    keys += ("tokens_per_problem", "gain_interval", "within_group_correlation", "curve", "training")
    settings = {name: {key: [run[key] for run in own] for key in keys if key in own[0]} for name, own in runs.items()}
    pairs = {
        (measure, name, base): (settings[name][measure], settings[base][measure])
        for measure in MEASURES
        for base in (SHARED, SINGLE)
        if base in settings
        for name in settings
        if name != base and (name, base) != (SHARED, SINGLE)  # which is the other one, mirrored
    }
    differences = compare_seeds(pairs)
    for measure, name, base in [key for key in differences if key[1:] == (SINGLE, SHARED)]:
        other = differences[measure, name, base]
        low, high = other.interval
        differences[measure, base, name] = replace(other, value=-other.value, interval=(-high, -low))
    votes = {
        name: {key: [own[name][key] for own in study["votes"]] for key in one}
        for name, one in (study["votes"] or [{}])[0].items()
    }
    voted = {name: (settings[name]["joint"], own["accuracy"]) for name, own in votes.items()}
    cpu = {kind: [seconds for seconds, _ in own] for kind, own in study["cost"].items()}
    return {
        "seeds": study["seeds"],
        "tokens": study["tokens"],
        "settings": settings,
        "estimates": {
            name: {key: over_seeds(own[key]) for key in ("joint", "area", "alone", "gain") if key in own}
            for name, own in settings.items()
        },
        "differences": differences,
        "votes": votes,
        "team_less_votes": compare_seeds(voted),
        "cpu_seconds": {kind: float(np.mean(own)) for kind, own in cpu.items()},
        "cpu_minutes": sum(map(sum, cpu.values())) / 60,
        "run_minutes": sum(seconds for own in study["cost"].values() for _, seconds in own) / 60,
    }


# ---- Tables ----


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def signed(difference: Difference) -> str:
    low, high = difference.interval
    text = f"{difference.value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if difference.stands else text


def write_tables(found: dict[str, Any]) -> dict[str, str]:
    """The parts of the page by the names of their marks."""
    settings, estimates, budget = found["settings"], found["estimates"], found["tokens"]
    rows = [
        [name, f"{np.mean(own['steps']):.0f}", f"{np.mean(own['tokens']):,.0f}"]
        + [str(estimates[name][key]) if key in estimates[name] else "-" for key in ("area", "joint", "alone", "gain")]
        + [f"{np.mean(own['tokens_per_problem']):.1f}"]
        for name, own in settings.items()
    ]
    head = ["setting", "steps", "tokens", "area", "accuracy at the end", "without the partner", "partner gain"]
    parts = {"settings": table([*head, "tokens per problem"], rows)}
    columns = [(measure, base) for base in (SHARED, SINGLE) for measure in MEASURES]
    differences = found["differences"]
    rows = [
        [name, *(signed(differences[m, name, b]) if (m, name, b) in differences else "-" for m, b in columns)]
        for name in settings
    ]
    parts["differences"] = table(["setting", *(f"{MEASURES[m]}, minus {b}" for m, b in columns)], rows)
    rows = [
        [name, *(f"{np.mean([curve[i] for curve in own['curve']]):.3f}" for i in (0, *AT))]
        for name, own in settings.items()
    ]
    parts["curves"] = table(["setting", "start", *(f"{budget * i // PARTS:,}" for i in AT)], rows)
    rows = [
        [
            name,
            f"{np.mean(settings[name]['joint']):.3f}",
            f"{np.mean(own['votes']):.2f}",
            str(over_seeds(own["accuracy"])),
            signed(found["team_less_votes"][name]),
        ]
        for name, own in found["votes"].items()
    ]
    parts["votes"] = table(["team", "accuracy", "votes of `single`", "their accuracy", "team minus votes"], rows)
    cost = [[kind, f"{seconds:.0f}"] for kind, seconds in found["cpu_seconds"].items()]
    parts["cost"] = table(["run", "CPU seconds, mean"], cost) + (
        f"\n\nThe runs of all {len(found['seeds'])} seeds took {found['cpu_minutes']:.0f} CPU minutes, which is "
        f"{found['cpu_minutes'] / 2:.0f} minutes of two cores. By the clock, the runs took "
        f"{found['run_minutes']:.0f} minutes in total, two at a time."
    )
    parts["seeds"] = f"Seeds {', '.join(map(str, found['seeds']))}. Each run generates at least {budget:,} tokens."
    return parts


def fill_marks(page: str, parts: Mapping[str, str]) -> str:
    """
    The page with each part between its marks, `<!-- name -->` and `<!-- end of name -->`; all else stays.

    Raises:
        `ValueError`: a part without its marks.
    """
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"The page must have <!-- {name} --> and <!-- end of {name} --> once. Put them there.")
        page = pattern.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", page)
    return page


# ---- Figure ----

COLOURS = {
    "single": "#555555",
    "single, Solver's start": "#b0b0b0",
    "shared": "#0072b2",
    "CCPO": "#d55e00",
    "CCPO, counterfactual": "#e69f00",
    "SEPO": "#009e73",
    "C3": "#cc79a7",
    "vote": "#7a4fb5",
    "DACR": "#8c510a",
}
TEAMS = ("single", "single, Solver's start", "shared", "vote", "DACR")
FAR = "single, Solver's start"  # so far off that beside it other differences are not seen


def draw(found: dict[str, Any], path: Path) -> None:
    """Curves of teams and of credits, with Student's 95 % bands over the seeds; and areas against shared credit's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings, grid = found["settings"], np.linspace(0, found["tokens"], PARTS + 1) / 1000
    credits = [name for name in settings if name not in TEAMS or name == SHARED]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), width_ratios=(1, 1, 0.8))
    panels = (("Teams and a policy alone", TEAMS, 0.0), ("Credit in Think-Solve", credits, 0.3))
    for axis, (title, names, lowest) in zip(axes, panels, strict=False):
        for name in (name for name in names if name in settings):
            points = [over_seeds(values) for values in zip(*settings[name]["curve"], strict=True)]
            low, high = zip(*(point.interval for point in points), strict=True)
            axis.fill_between(grid, low, high, color=COLOURS.get(name), alpha=0.18, linewidth=0)
            axis.plot(grid, [p.value for p in points], color=COLOURS.get(name), marker="o", markersize=3, label=name)
        axis.set(title=title, xlabel="generated tokens, thousands", ylim=(lowest, 1), xlim=(0, grid[-1]))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=9)
    axes[0].set_ylabel(f"held-out accuracy, mean of {len(found['seeds'])} seeds")
    names = [name for name in settings if ("area", name, SHARED) in found["differences"] and name != FAR]
    for place, name in enumerate(reversed(names)):
        difference = found["differences"]["area", name, SHARED]
        axes[2].plot(difference.interval, [place, place], color=COLOURS.get(name), linewidth=2)
        face = COLOURS.get(name) if difference.stands else "white"
        axes[2].plot(difference.value, place, "o", color=COLOURS.get(name), markerfacecolor=face)
    axes[2].axvline(0, color="black", linewidth=0.8)
    axes[2].set_yticks(range(len(names)), list(reversed(names)))
    axes[2].set(title="Area under the curve, less shared", xlabel="difference (filled: stands after Holm)")
    axes[2].grid(alpha=0.3, axis="x")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- Files ----


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """What was found, ready for JSON."""
    named = {" | ".join(name): asdict(difference) for name, difference in found["differences"].items()}
    return {
        **found,
        "estimates": {name: {k: asdict(v) for k, v in own.items()} for name, own in found["estimates"].items()},
        "differences": named,
        "team_less_votes": {name: asdict(difference) for name, difference in found["team_less_votes"].items()},
    }


def write_report(folder: Path, settings: Sequence[str], seeds: Sequence[int], tokens: int, documented: bool) -> str:
    """
    Write `study.json` beside the runs and, of the documented study, the figure and the tables of the page.

    Returns:
        `str`: the tables, and where the files are.
    """
    found = summarize(read_study(folder, settings, seeds, tokens))
    parts, paths = write_tables(found), [write_json(plain(found), folder / "study.json")]
    if documented:
        draw(found, FIGURE)
        PAGE.write_text(fill_marks(PAGE.read_text(encoding="utf-8"), parts), encoding="utf-8")
        paths += [FIGURE, PAGE]
    return "\n\n".join([*parts.values(), "\n".join(f"written: {path}" for path in paths)])
