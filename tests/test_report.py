"""Curves, table and summary of a run."""

import json
import math
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch

from ccpo.evaluation import ArmResult, BenchmarkResult, Proportion, TeamEvaluation, paired_difference
from ccpo.evaluation.report.curves import smooth
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


def test_table_is_printed(tmp_path, capsys):
    paths = {"summary": tmp_path / ("a-long-folder-name" * 5) / "summary.json"}
    show_summary(BEFORE, AFTER, paths, seconds=61.4)
    out = capsys.readouterr().out
    assert "600 held-out problems, 95 % intervals" in " ".join(out.split())
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") >= 3}
    assert str(BEFORE.joint) in rows["joint accuracy"] and str(AFTER.joint) in rows["joint accuracy"]
    assert str(BEFORE.solo) in rows["solo accuracy"] and str(AFTER.solo) in rows["solo accuracy"]
    assert str(BEFORE.leak) in rows["leak rate"] and str(AFTER.leak) in rows["leak rate"]
    assert rows["joint accuracy"].index(str(BEFORE.joint)) < rows["joint accuracy"].index(str(AFTER.joint))
    assert "no answer found" not in rows  # not known before
    assert "after less before" not in out  # not known by problem
    right = (1.0,) * 6 + (0.0,) * 6
    before, after = replace(BEFORE, right=right[6:] * 2), replace(AFTER, right=right)
    show_summary(before, after, {}, seconds=1)
    value, (low, high) = paired_difference(before, after)
    line = f"joint accuracy, after less before: +0.500 [{low:+.3f}, {high:+.3f}], paired by problem"
    assert value == 0.5 and line in capsys.readouterr().out
    show_summary(AFTER, AFTER, {}, seconds=1)
    assert f"no answer found │ {AFTER.no_answer}" in " ".join(capsys.readouterr().out.split())
    assert f"summary: {paths['summary']}" in out and "61 seconds" in out


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
