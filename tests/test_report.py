"""Curves, table and summary of a run."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from ccpo.evaluation import ArmResult, BenchmarkResult, Proportion, TeamEvaluation, paired_difference
from ccpo.evaluation.report.curves import smooth, spread
from ccpo.evaluation.statistics import Difference, Estimate
from ccpo.report import plot_curves, say_who_helps, show_summary, summarize, write_json

BEFORE = TeamEvaluation(Proportion(100, 600), Proportion(60, 600), Proportion(90, 600))
AFTER = TeamEvaluation(
    Proportion(300, 600), Proportion(120, 600), Proportion(6, 600), unscorable=1, no_answer=Proportion(150, 600)
)
HISTORY = [
    {
        "step": step,
        "credit/joint_accuracy": step / 40,
        "credit/solo_accuracy": 0.2,
        "credit/leak_rate": None,  # a step that did not measure it
        "credit/thinker/shared_correlation": 0.5,
        "loss": 0.1,
    }
    for step in range(1, 31)
]


def colored(path):
    """How many pixels have a colour, as curves have and axes and text do not."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return int((pixels.max(-1) - pixels.min(-1) > 0.3).sum())


def test_curves_are_drawn(tmp_path):
    path = plot_curves(HISTORY, tmp_path / "deep" / "curves.png", title="ccpo")
    assert path.read_bytes().startswith(b"\x89PNG")
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 1000 and height > 300
    empty = plot_curves([], tmp_path / "empty.png")
    assert colored(empty) == 0 and colored(path) > 1000


def test_every_curve_shows(tmp_path):
    def drawn(*names):
        history = [{k: v for k, v in row.items() if k in ("step", *names)} for row in HISTORY]
        return colored(plot_curves(history, tmp_path / "curves.png"))

    joint, solo = drawn("credit/joint_accuracy"), drawn("credit/solo_accuracy")
    correlation = drawn("credit/thinker/shared_correlation")
    assert min(joint, solo, correlation) > 300
    assert drawn("credit/joint_accuracy", "credit/solo_accuracy") > max(joint, solo) + 300
    assert drawn("loss") == 0


def hues(path):
    """The colours of the first three curves -> how many pixels have them."""
    pixels = matplotlib.image.imread(path)[..., :3]
    first_row = pixels[: len(pixels) // 2] if len(pixels) > 500 else pixels
    return [int((abs(first_row - to_rgb(f"C{i}")).max(-1) < 0.05).sum()) for i in range(3)]


def test_curves_that_lie_on_each_other_are_all_seen(tmp_path):
    names = ("credit/joint_accuracy", "credit/without_a_accuracy", "credit/without_b_accuracy")
    history = [{"step": step, **dict.fromkeys(names, 0.5)} for step in range(1, 31)]
    seen = hues(plot_curves(history, tmp_path / "curves.png"))
    legend = 150  # pixels of a line there, at most
    assert min(seen) > 2 * legend, seen


def test_before_and_after_stand_beside_the_curves(tmp_path):
    """Also of a team whose training draws no passes without a role."""
    history = [{"step": step, "credit/joint_accuracy": 0.5} for step in range(1, 31)]
    roles = {"a": Proportion(60, 600), "b": Proportion(540, 600)}
    found = replace(AFTER, without=roles)
    alone = hues(plot_curves(history, tmp_path / "curves.png"))
    both = hues(plot_curves(history, tmp_path / "both.png", "", found, found))
    one = hues(plot_curves(history, tmp_path / "one.png", "", found))
    assert alone[1:] == [0, 0] and both[1] > one[1] > 50 and both[2] > one[2] > 50
    assert hues(plot_curves([], tmp_path / "empty.png", "", found, found))[1] > 50
    assert hues(plot_curves(history, tmp_path / "solo.png", "", AFTER, AFTER))[1] > 50


def test_a_band_is_the_deviation_around_the_running_mean():
    values = [3.0, -1.0, 4.0, 1.5]
    for n, found in enumerate(spread(values, 0.8), start=1):
        weights = np.array([0.8 ** (n - 1 - i) for i in range(n)]) / sum(0.8**i for i in range(n))
        own = np.array(values[:n])
        assert found == pytest.approx(np.sqrt(weights @ (own - weights @ own) ** 2), abs=1e-7)
    assert spread([2.0] * 5) == pytest.approx([0.0] * 5) and spread([]) == []


def test_smooth_is_an_unbiased_moving_average():
    values = [3.0, -1.0, 4.0, 1.5]
    for n, smoothed in enumerate(smooth(values, 0.8), start=1):
        weights = np.array([0.8 ** (n - 1 - i) for i in range(n)])
        assert smoothed == pytest.approx(float(weights @ np.array(values[:n]) / weights.sum()))
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth([]) == []


def test_summary_holds_accuracies_before_and_after():
    summary = summarize(BEFORE, AFTER, seconds=12.5, credit="ccpo")
    assert summary["num_eval_problems"] == 600
    assert summary["joint_accuracy_before"] == pytest.approx(1 / 6) and summary["joint_accuracy_after"] == 0.5
    assert summary["solo_accuracy_before"] == 0.1 and summary["solo_accuracy_after"] == 0.2
    assert summary["leak_rate_before"] == 0.15 and summary["leak_rate_after"] == 0.01
    assert summary["after"]["joint"]["interval"] == AFTER.joint.interval
    assert summary["no_answer_rate_before"] is None and summary["no_answer_rate_after"] == 0.25
    assert summary["after"]["unscorable"] == 1 and summary["seconds"] == 12.5 and summary["credit"] == "ccpo"


def test_json_is_written_with_its_folder_and_without_nan(tmp_path):
    nothing = TeamEvaluation(Proportion(0, 0), Proportion(0, 0), Proportion(0, 3), unscorable=3)
    path = write_json(summarize(nothing, AFTER), tmp_path / "a" / "b" / "summary.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["joint_accuracy_before"] is None and content["joint_accuracy_after"] == 0.5
    assert content["before"]["joint"]["interval"] == [0.0, 1.0]
    assert math.isnan(nothing.joint.value)


def plain(out):
    return re.sub(r"\x1b\[[\d;]*m", "", out)


def rows_of(out):
    """Row -> its cells; where an interval stands below its value, both."""
    rows, label = {}, None
    for line in plain(out).splitlines():
        if line.count("│") == 5:
            first, *cells = (cell.strip() for cell in line.split("│")[1:-1])
            label = first or label
            rows.setdefault(label, []).append(cells)
    return {
        label: [" ".join(filter(None, parts)) for parts in zip(*lines, strict=True)] for label, lines in rows.items()
    }


def test_table_is_printed(tmp_path, capsys):
    paths = {"summary": tmp_path / ("a-long-folder-name" * 5) / "summary.json"}
    show_summary(BEFORE, AFTER, paths, seconds=61.4)
    out = capsys.readouterr().out
    assert "600 held-out problems, 95 % intervals" in " ".join(out.split())
    assert rows_of(out) == {
        "joint accuracy": [str(BEFORE.joint), str(AFTER.joint), ""],  # not known by problem
        "solo accuracy": [str(BEFORE.solo), str(AFTER.solo), ""],
        "leak rate": [str(BEFORE.leak), str(AFTER.leak), ""],
        "unscorable": ["0 of 600", "1 of 600", ""],  # and no answer: not known before
    }
    assert f"summary: {paths['summary']}" in out and "61 seconds" in out
    show_summary(AFTER, AFTER, {}, seconds=1)
    assert rows_of(capsys.readouterr().out)["no answer found"] == ["150 of 600", "150 of 600", ""]


def test_a_row_of_a_callback_without_a_step_is_not_drawn(tmp_path):
    history = [{"note": "mine", "credit/joint_accuracy": 0.1}, {"step": 1, "credit/joint_accuracy": 0.5}]
    files = [plot_curves(rows, tmp_path / f"{len(rows)}.png", after=AFTER) for rows in (history, history[1:])]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_scored_is_no_number_and_a_path_no_markup(capsys):
    none, lost = Proportion(0, 0), (math.nan,) * 8
    unknown = TeamEvaluation(none, none, none, 8, none, {"planner": none}, lost, {"planner": lost})
    show_summary(unknown, unknown, {"summary": Path("runs [bold] [/x]")}, seconds=1)
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert rows["joint accuracy"] == rows["solo accuracy"] == ["-", "-", ""]
    assert rows["unscorable"] == ["8 of 8", "8 of 8", ""] and "summary: runs [bold] [/x]\n" in out


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_the_difference_by_problem(width, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    right = (1.0,) * 6 + (0.0,) * 6
    roles = {"planner": Proportion(6, 12), "adder": Proportion(3, 12)}
    before = replace(BEFORE, right=right[6:] * 2, without=roles, right_without=dict.fromkeys(roles, right[6:] * 2))
    after = replace(
        before, joint=Proportion(6, 12), right=right, right_without={"planner": right, "adder": right[::-1]}
    )
    show_summary(before, after, {}, seconds=1)
    out = capsys.readouterr().out
    value, (low, high) = paired_difference(before, after)
    shown = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    rows = rows_of(out)
    assert value == 0.5 and rows["joint accuracy"][2] == shown and rows["without planner"][2] == shown
    assert paired_difference(before, after, "adder")[0] == 0.5 and rows["without adder"][2].startswith("+0.500 [")
    assert max(map(len, plain(out).splitlines())) <= width and (shown in plain(out)) == (width == 120)


@pytest.mark.parametrize(
    ("without", "silent", "verdict"),
    [
        ((0.3, True), (0.2, True), "The critic helps"),
        ((0.3, True), (0.1, False), "It is not seen that the critic helps"),
        ((0.3, True), (-0.2, True), "The critic hurts"),
        ((0.3, True), (-0.2, False), "It is not seen that the critic helps"),  # by its interval alone it would hurt
        ((-0.2, False), (-0.2, False), "It is not seen that the critic helps"),
    ],
)
def test_who_helps_in_words(without, silent, verdict):
    """As the table says which differences stand, whatever the interval of each alone."""

    def arm(value):
        return ArmResult(torch.zeros(10, 1), Estimate(value, (0, 1), 10), {}, None, {}, math.nan)

    found = {"without_critic": without, "ablated_critic": silent, "single": (-0.2, True)}
    arms = {"joint": arm(0.5), **{name: arm(i / 10) for i, name in enumerate(found)}}
    differences = {
        name: Difference(value, (value - 0.1, value + 0.1), 10, 0.01, stands)
        for name, (value, stands) in found.items()
    }
    assert say_who_helps(BenchmarkResult(1, arms, differences, {}, {})).splitlines() == [
        f"{verdict}: the team is right in 0.500 of the problems, in 0.000 without it, in 0.100 where it says nothing.",
        "The team is worse than one policy that was not trained: the team is right in 0.500 of the problems, that one "
        "in 0.200.",
    ]
