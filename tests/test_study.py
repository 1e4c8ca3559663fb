"""The study's pure parts: which runs there are and which are done, tokens, curves, estimates over seeds, the page."""

import importlib.util
import json
import math
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "study"))
import study_report as report  # noqa: E402 (found by the line before)
import study_settings as study  # noqa: E402
from study_settings import Job  # noqa: E402

from ccpo.report import write_json  # noqa: E402

# ---- Runs ----


def test_every_run_is_behind_those_that_it_needs():
    jobs = study.list_jobs(study.STUDIED, range(2), 1000)
    assert len(jobs) == len(set(jobs)) == len({job.folder for job in jobs}) == 2 * (3 + 9 + 1)
    assert [job.seed for job in jobs] == [0] * 13 + [1] * 13
    for place, job in enumerate(jobs):
        assert set(study.needed(job)) <= set(jobs[:place]) and all(
            other.seed == job.seed for other in study.needed(job)
        )
    votes = study.needed(jobs[12])
    assert jobs[12].kind == "votes" and [job.name for job in votes] == ["single", "shared", "vote", "DACR"]


def test_a_part_of_the_study_has_the_starts_that_it_needs():
    jobs = study.list_jobs(["shared", "C3", "vote"], [5], 1000)
    assert [(job.kind, job.name) for job in jobs[:2]] == [("start", "think_solve"), ("start", "vote")]
    assert [job.kind for job in jobs[2:]] == ["train"] * 3  # no votes without the single policy


def test_the_single_policy_starts_as_a_voter():
    assert (study.start_team("single"), study.start_agent("single", "solver")) == ("vote", "voter_1")
    assert study.start_agent("vote", "voter_2") == "voter_2"
    other = "single, Solver's start"
    assert (study.start_team(other), study.start_agent(other, "solver")) == ("think_solve", "solver")
    assert {study.start_team(name) for name in study.STUDIED[2:7]} == {"think_solve"}


@pytest.mark.parametrize("setting", study.SETTINGS)
def test_every_setting_has_a_recipe(setting):
    assert (study.RECIPES / study.SETTINGS[setting][0] / "config_demo.yaml").is_file()


def test_what_is_done_is_not_made_again(tmp_path):
    job = Job("train", "CCPO, counterfactual", 3, 1000)
    assert study.read_figures(tmp_path, job) is None
    part = tmp_path / f"{job.folder}.part-17"  # a run that was killed, with figures or without
    write_json({"job": job.to_dict(), "area": 0.1}, part / study.FIGURES)
    assert study.read_figures(tmp_path, job) is None
    write_json({"job": job.to_dict(), "area": 0.5}, tmp_path / job.folder / study.FIGURES)
    assert study.read_figures(tmp_path, job)["area"] == 0.5
    for other in (Job("train", job.name, 4, 1000), Job("train", job.name, 3, 2000), Job("train", "CCPO", 3, 1000)):
        assert study.read_figures(tmp_path, other) is None


def test_a_run_of_other_fields_is_not_this_one(tmp_path, monkeypatch):
    job = Job("train", "shared", 0, 1000)
    write_json({"job": job.to_dict()}, tmp_path / job.folder / study.FIGURES)
    monkeypatch.setitem(study.SETTINGS, "shared", ("shared", {"num_solves": 2}))
    assert study.read_figures(tmp_path, job) is None


def test_figures_that_are_no_json_are_named(tmp_path):
    job = Job("train", "shared", 0, 1000)
    (tmp_path / job.folder).mkdir()
    (tmp_path / job.folder / study.FIGURES).write_text('{"job": ')
    with pytest.raises(ValueError, match="train-shared-seed0-1000/figures.json is no JSON .* Remove its folder"):
        study.read_figures(tmp_path, job)


@pytest.fixture
def driver(monkeypatch):
    """The study's command, whose runs write figures, or fail by name, without a process."""
    spec = importlib.util.spec_from_file_location("study_main", ROOT / "benchmarks" / "study" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.made, module.failing = [], set()

    def process(words, **options):
        job, folder = Job(**json.loads(words[2])), Path(words[4])
        module.made.append(job)
        if job.name in module.failing:
            return SimpleNamespace(returncode=1, stdout="", stderr="no luck")
        write_json({"job": job.to_dict()}, folder / study.FIGURES)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", process)
    return module


def done(value):
    future = Future()
    future.set_result(value)
    return future


def test_a_comparison_is_one_hypothesis(monkeypatch, tmp_path):
    """Shared less single is single less shared: counted twice, both would have to be clearer to stand."""
    make_study(tmp_path, study.STUDIED, range(3))
    compared = []
    monkeypatch.setattr(report, "compare_seeds", lambda pairs: compared.append([*pairs]) or {})
    report.summarize(report.read_study(tmp_path, study.STUDIED, range(3), 1000))
    assert len(compared[0]) == len({(key[0], *sorted(key[1:])) for key in compared[0]}) == 2 * (2 * 8 - 1)


def test_a_run_of_another_recipe_is_made_again(monkeypatch, tmp_path):
    job = Job("train", "shared", 0, 1000)
    make_study(tmp_path, ["shared"], [0])
    assert study.read_figures(tmp_path, job) is not None
    (tmp_path / "recipes" / "shared").mkdir(parents=True)
    (tmp_path / "recipes" / "shared" / "config_demo.yaml").write_text("learning_rate: 1.0\n")
    monkeypatch.setattr(study, "RECIPES", tmp_path / "recipes")
    assert study.read_figures(tmp_path, job) is None


def test_a_killed_study_goes_on(driver, tmp_path):
    job, other = Job("train", "C3", 0, 1000), Job("train", "CCPO", 0, 1000)
    (tmp_path / f"{job.folder}.part-17").mkdir()
    write_json({"job": other.to_dict()}, tmp_path / f"{job.folder}" / study.FIGURES)  # of another set-up
    assert driver.run(job, tmp_path, []) is None and driver.made == [job]
    assert [path.name for path in tmp_path.iterdir()] == [job.folder]
    assert driver.run(job, tmp_path, []) is None and driver.made == [job]


def test_a_run_that_fails_stops_those_that_need_it(driver, tmp_path):
    job, driver.failing = Job("start", "vote", 0), {"vote"}
    trouble = driver.run(job, tmp_path, [])
    assert "start-vote-seed0, exit status 1" in trouble and "no luck" in trouble
    assert study.read_figures(tmp_path, job) is None
    needs = Job("train", "single", 0, 1000)
    assert "left out, for a run that it needs failed" in driver.run(needs, tmp_path, [done(None), done(trouble)])
    assert driver.made == [job]
    assert driver.run(needs, tmp_path, [done(None)]) is None and driver.made == [job, needs]


# ---- Tokens and curves ----


def test_tokens_that_are_generated_are_counted():
    row = {"rollout/thought_tokens": 40.0, "rollout/joint_tokens": 60.0, "rollout/solo_tokens": 50.0, "reward": 1.0}
    read = {"rollout/rating_tokens": 1000.0, "rollout/verify_tokens": 110.0, "rollout/update_tokens": 100.0}
    assert study.count_tokens(row | read | {"rollout/thought_seconds": 7.0, "num_tokens": 999}, 8) == 150
    assert study.count_tokens({"completions/mean_length": 7.875, "num_tokens": 999}, 24) == 189


def test_a_step_passes_the_end_of_a_part():
    """100 tokens in 10 parts, in steps of 7: the ends at 10, 20, … are passed at 14, 21, 35, 42, …"""
    steps = [(before, before + 7) for before in range(0, 112, 7)]
    assert [after for before, after in steps if study.passed(before, after, 100)] == [
        14,
        21,
        35,
        42,
        56,
        63,
        70,
        84,
        91,
        105,
    ]
    assert study.passed(9, 10, 100) and not study.passed(10, 11, 100) and not study.passed(100, 200, 100)
    assert study.passed(0, 55, 100)  # several at once


def test_a_curve_by_hand():
    curve = study.on_grid([(0, 0.2), (30, 0.5), (60, 0.5), (110, 1.0)], 100, parts=4)
    # at 0, 25, 50, 75, 100: 0.2 + 0.3 x 25 / 30; 0.5; 0.5 + 0.5 x 15 / 50; 0.5 + 0.5 x 40 / 50
    assert curve == pytest.approx([0.2, 0.45, 0.5, 0.65, 0.9])
    assert study.area_under(curve) == pytest.approx((0.1 + 0.45 + 0.5 + 0.65 + 0.45) / 4)
    assert study.area_under([0.3] * 11) == pytest.approx(0.3)


@pytest.mark.parametrize("points", [[(0, 0.2), (99, 0.5)], [(5, 0.2), (100, 0.5)]])
def test_a_curve_reaches_from_nothing_to_the_budget(points):
    with pytest.raises(ValueError, match="`points` must reach from 0 to 100 tokens"):
        study.on_grid(points, 100)


# ---- Estimates over seeds ----


def test_student_s_interval_by_hand():
    """Of 1, 2, 3, 4, 5: the mean 3, the standard error sqrt(2.5 / 5), t(0.975, 4) = 2.7764."""
    found = report.over_seeds([1, 2, 3, 4, 5])
    assert found.value == 3 and found.problems == 5
    assert found.interval == pytest.approx((3 - 2.7764 * math.sqrt(0.5), 3 + 2.7764 * math.sqrt(0.5)), abs=1e-4)
    assert report.over_seeds([0.7]).interval == (0.7, 0.7)


def test_differences_are_paired_and_corrected_together():
    base = [0.1, 0.5, 0.9, 0.3]
    # differences 0.2, 0.21, 0.19, 0.2: t = 0.2 / (0.00816 / 2) = 49, p = 1.9e-5; -0.1, 0.3, -0.2, 0.1: t = 0.23
    far, near = [0.3, 0.71, 1.09, 0.5], [0.0, 0.8, 0.7, 0.4]
    found = report.compare_seeds({"far": (far, base), "near": (near, base), "same": (base, base)})
    assert found["far"].value == pytest.approx(0.2) and found["far"].p == pytest.approx(1.9e-5, rel=0.05)
    assert found["near"].p == pytest.approx(0.836, abs=0.01)
    assert [name for name, difference in found.items() if difference.stands] == ["far"]
    assert math.isnan(found["same"].p) and found["same"].value == 0
    assert found["far"].interval[1] < 0.22  # unpaired, it would reach from -0.4 to 0.8


def figures(job, shift):
    own = {"cpu_seconds": 60.0, "seconds": 90.0}
    if job.kind == "votes":
        vote = {"accuracy": 0.6 + 0.01 * job.seed, "votes": 1.8, "tokens_per_problem": 14.0}
        return own | {"votes": dict.fromkeys(study.VOTED, vote)}
    if job.kind == "start":
        return own
    curve = [min(1.0, 0.3 + shift + 0.05 * i + 0.001 * job.seed * (i + shift * 10)) for i in range(11)]
    run = {"steps": 10, "tokens": 1010, "scored_tokens": 0, "joint": curve[-1], "area": study.area_under(curve)}
    return (
        own | run | {"curve": curve, "training": curve[1:], "tokens_per_problem": 14.0, "within_group_correlation": {}}
    )


def make_study(folder, settings, seeds, leave_out=()):
    for job in study.list_jobs(settings, seeds, 1000):
        if job not in leave_out:
            shift = 0.01 * list(study.SETTINGS).index(job.name) if job.kind == "train" else 0
            write_json({"job": job.to_dict(), **figures(job, shift)}, folder / job.folder / study.FIGURES)


def test_a_seed_counts_when_all_its_runs_are_done(tmp_path):
    settings = study.STUDIED
    make_study(tmp_path, settings, range(3), leave_out=[Job("train", "SEPO", 1, 1000)])
    read = report.read_study(tmp_path, settings, range(4), 1000)
    assert (
        read["seeds"] == [0, 2] and all(len(runs) == 2 for runs in read["runs"].values()) and len(read["votes"]) == 2
    )
    with pytest.raises(ValueError, match="No seed of the study is complete .*start-vote-seed7"):
        report.read_study(tmp_path, settings, [7], 1000)


def test_the_report_regenerates_tables_and_leaves_the_prose(tmp_path, monkeypatch):
    make_study(tmp_path, study.STUDIED, range(3))
    page, figure = tmp_path / "study.md", tmp_path / "study.png"
    text = (ROOT / "docs" / "study.md").read_text()
    page.write_text(text)
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "FIGURE", figure)
    report.write_report(tmp_path, study.STUDIED, range(3), 1000, documented=False)
    assert page.read_text() == text and not figure.exists()
    report.write_report(tmp_path, study.STUDIED, range(3), 1000, documented=True)
    once = page.read_text()
    assert figure.stat().st_size > 10_000 and "| DACR | 10 | 1,010 |" in once
    prose = [line for line in text.splitlines() if line and not line.startswith("|") and "CPU minutes" not in line]
    assert all(line in once for line in prose if not line.startswith("Seeds "))
    report.write_report(tmp_path, study.STUDIED, range(3), 1000, documented=True)
    assert page.read_text() == once
    saved = json.loads((tmp_path / "study.json").read_text())
    assert saved["cpu_minutes"] == 3 * 13 and saved["run_minutes"] == 3 * 13 * 1.5
    mirrored = [saved["differences"][f"joint | {pair}"] for pair in ("single | shared", "shared | single")]
    assert mirrored[0]["value"] == -mirrored[1]["value"] and mirrored[0]["p"] == mirrored[1]["p"]
    assert mirrored[0]["interval"] == [-bound for bound in reversed(mirrored[1]["interval"])]
    difference = saved["differences"]["area | C3 | shared"]
    assert difference["value"] == pytest.approx(0.04, abs=0.01) and difference["stands"] is True


def test_a_page_without_a_mark_is_not_written_over():
    with pytest.raises(ValueError, match="must have <!-- cost --> and <!-- end of cost --> once"):
        report.fill_marks("<!-- cost -->\nfigures\n", {"cost": "new"})
    marked = "a\n<!-- cost -->\nold\n<!-- end of cost -->\nb\n"
    assert report.fill_marks(marked, {"cost": r"n\1w"}) == "a\n<!-- cost -->\n\nn\\1w\n\n<!-- end of cost -->\nb\n"
