"""What a run shows at its end: curves and a table."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .evaluation import BenchmarkResult, Proportion, TeamEvaluation, paired_difference
from .evaluation.arms import JOINT, SINGLE
from .evaluation.report.curves import PANELS, Mark, Panel, draw, find_blocks, find_panels
from .evaluation.statistics import Difference

_WIDE = 96  # columns of a terminal in which a table's intervals stand beside their values
# Arms that take a role's text away -> what they do.
_TAKEN_AWAY = {
    "without": "without it",
    "ablated": "where it says nothing",
    "swapped": "where it speaks of another problem",
}


def plot_curves(
    log_history: list[dict[str, Any]],
    path: str | Path,
    title: str = "",
    before: TeamEvaluation | None = None,
    after: TeamEvaluation | None = None,
) -> Path:
    """
    Draw a run's metrics over its steps, smoothed, each in a band of a standard deviation on either side: the panels of
    its report of which there is something to see. pyplot is not touched, nor the backend of a notebook.

    Args:
        log_history (`list[dict]`): `trainer.state.log_history`.
        path (`str` or `Path`): the PNG to write.
        title (`str`, *optional*): above the panels.
        before, after ([`~ccpo.evaluation.TeamEvaluation`], *optional*):
            Of held-out problems: marks with their 95 % intervals at either end of the accuracies.

    Returns:
        `Path`: where it was written.
    """
    from matplotlib.figure import Figure

    log_history = [row for row in log_history if "step" in row]  # a callback of one's own may add others
    panels, blocks = _with_marks(find_panels([log_history]), log_history, before, after), [find_blocks(log_history)]
    rows = max(1, -(-len(panels) // 3))
    figure = Figure(figsize=(13.8, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        draw(axis, panel, [""], blocks, [f"C{i}" for i in range(10)], ["0.88", "0.96", "0.92", "0.84"], panel.title)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title)
    if panels:
        marks = (
            "" if before is None and after is None else " Marks: held-out problems, before and after, 95 % intervals."
        )
        figure.supxlabel(f"Lines: running means. Bands: a standard deviation on either side.{marks}", fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return Path(path)


def _with_marks(
    panels: list[Panel], history: list[dict[str, Any]], before: TeamEvaluation | None, after: TeamEvaluation | None
) -> list[Panel]:
    """The panels, the first of which has the evaluations' accuracies as marks."""
    last = max((row["step"] for row in history), default=0)
    marks = [
        Mark(name, step, share.value, share.interval)
        for step, found in ((0, before), (last, after))
        for name, share in (_accuracies(found).items() if found is not None else ())
        if share.total
    ]
    if not marks:
        return panels
    title, label, _ = PANELS[0]
    own = next((panel for panel in panels if panel.title == title), Panel(title, label, []))
    return [replace(own, marks=marks), *(panel for panel in panels if panel is not own)]


def _accuracies(found: TeamEvaluation) -> dict[str, Proportion]:
    """The team's accuracy and that without each role, by the names that the curves of training have."""
    if len(found.without) > 1:
        return {"joint": found.joint, **{f"without {role}": share for role, share in found.without.items()}}
    return {"joint": found.joint} | ({"solo": found.solo} if found.solo is not None else {})


def summarize(before: TeamEvaluation, after: TeamEvaluation, **extra: Any) -> dict[str, Any]:
    """The summary of a run: accuracies before and after, with 95 % intervals, and what else is given."""
    summary: dict[str, Any] = {"num_eval_problems": len(after.right) or after.joint.total}
    for when, result in (("before", before), ("after", after)):
        summary |= {
            f"joint_accuracy_{when}": result.joint.value,
            f"solo_accuracy_{when}": result.solo and result.solo.value,
            f"leak_rate_{when}": result.leak.value,
            f"no_answer_rate_{when}": result.no_answer and result.no_answer.value,
            when: result.to_dict(),
        }
    value, interval = paired_difference(before, after) if before.right and after.right else (math.nan, None)
    return summary | {"joint_accuracy_difference": value, "joint_accuracy_difference_interval": interval} | extra


def _plain(value: Any) -> Any:
    """NaN, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value != value else value


def write_json(content: dict[str, Any], path: str | Path) -> Path:
    """Write a JSON file, its folder included and NaN as null, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
    return path


def say_who_helps(result: BenchmarkResult) -> str:
    """
    In words, whether each role helps, and whether the team is better than a single policy.

    A role helps where the team is better than each arm that takes its text away, and each difference is *significant*
    in the table. It hurts where the team is significantly worse than one of them.

    Args:
        result ([`~ccpo.evaluation.BenchmarkResult`]): one benchmark's.
    """
    joint, lines = f"the team is right in {result.arms[JOINT].avg.value:.3f} of the problems", []
    arms: dict[str, list[str]] = {}
    for arm in result.differences:
        kind, _, role = arm.partition("_")
        if kind in _TAKEN_AWAY:
            arms.setdefault(role, []).append(arm)
    for role, own in arms.items():
        signs = [_sign(result.differences[arm]) for arm in own]
        verdict = f"It is not seen that the {role} helps"
        if all(sign > 0 for sign in signs):
            verdict = f"The {role} helps"
        elif any(sign < 0 for sign in signs):
            verdict = f"The {role} hurts"
        others = [f"{result.arms[arm].avg.value:.3f} {_TAKEN_AWAY[arm.partition('_')[0]]}" for arm in own]
        lines.append(f"{verdict}: {joint}, in {', in '.join(others)}.")
    if SINGLE in result.differences:
        sign = _sign(result.differences[SINGLE])
        verdict = "is better" if sign > 0 else "is worse" if sign < 0 else "is not seen to be better"
        alone = result.arms[SINGLE].avg.value
        lines.append(f"The team {verdict} than one policy that was not trained: {joint}, that one in {alone:.3f}.")
    return "\n".join(lines)


def _sign(difference: Difference) -> int:
    """The sign of a significant difference; else 0."""
    return (difference.value > 0) - (difference.value < 0) if difference.stands else 0


def show_summary(before: TeamEvaluation, after: TeamEvaluation, paths: dict[str, Path], seconds: float) -> None:
    """
    Print one table, and where the run's files are.

    The table has before, after and their difference by problem, with 95 % intervals, and how many answers were none or
    could not be scored. In a narrow terminal an interval stands below its value.
    """
    total = len(after.right) or after.joint.total
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    between = " [" if console.width >= _WIDE else "\n["

    def add(label: str, *cells: Proportion | str) -> None:
        known = ("-" if isinstance(cell, Proportion) and not cell.total else str(cell) for cell in cells)
        table.add_row(label, *(cell.replace(" [", between) for cell in known))

    def difference(role: str | None = None) -> str:
        if not all(found.right if role is None else found.right_without.get(role) for found in (before, after)):
            return ""
        value, (low, high) = paired_difference(before, after, role)
        if math.isnan(value):  # no problem can be scored before and after
            return ""
        return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"

    table = Table(title=f"{total} held-out problems, 95 % intervals")
    for column in ("", "before", "after", "after less before"):
        table.add_column(column, justify="right" if column else "left")
    add("joint accuracy", before.joint, after.joint, difference())
    if len(after.without) > 1:
        for role, share in after.without.items():
            add(f"without {role}", before.without[role], share, difference(role))
    elif after.solo is not None:
        add("solo accuracy", before.solo, after.solo, difference(next(iter(after.without), None)))
    if after.leak.total:
        add("leak rate", before.leak, after.leak)
    if before.no_answer and after.no_answer:
        add(
            "no answer found",
            *(f"{found.no_answer.successes} of {found.no_answer.total}" for found in (before, after)),
        )
    add("unscorable", *(f"{found.unscorable} of {total}" for found in (before, after)))
    console.print(table)
    for label, path in paths.items():
        console.print(f"{label}: {path}", soft_wrap=True, markup=False)
    console.print(f"{seconds:.0f} seconds")
