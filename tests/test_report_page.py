"""The report: what it reads of runs that are over, going on or killed, and what it refuses."""

import base64
import gzip
import json
import random
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_runs import HOSTILE, make_metrics, make_table, write_run

from ccpo.evaluation.report import ReportError, episodes, page, write_report
from ccpo.evaluation.report.__main__ import main
from ccpo.evaluation.report.curves import draw, find_blocks, find_panels, smooth, thinned
from ccpo.evaluation.report.run import read_run

PROBLEMS = [f"What is {i} + {i}?" for i in range(10)]


def data_of(path: Path) -> dict:
    """What the page's script unpacks."""
    text = re.search(r'id="data">([^<]*)</script>', path.read_text()).group(1)
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", {step: make_table(step, PROBLEMS, step) for step in (5, 10, 15)})


# ---- The file ----


def test_page_is_one_file_under_a_strict_policy(run):
    path = write_report(run)
    text = path.read_text()
    assert path == run / "report.html"
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    for tag in ("script", "style"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert base64.b64encode(sha256(own.encode()).digest()).decode() in policy
    assert not re.findall(r"""\s(?:src|href|on\w+|style)=["'](?!#|data:,)""", text)
    script = (Path(page.__file__).parent / "page" / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|\.src\b", script)


def test_nothing_of_a_model_or_a_name_is_markup(tmp_path):
    table = make_table(5, PROBLEMS)
    for name in ("thought", "joint_answer", "problem", "thinker_prompt", "solo_answer", "solution", "thinker_rating"):
        table[name] = [*HOSTILE.values(), *table[name][len(HOSTILE) :]]
    metrics = [row | {"rating/<script>$x$_rate": 0.5} for row in make_metrics([5, 10])]
    path = write_report(write_run(tmp_path / "<script>&b", {5: table}, metrics))
    text = path.read_text()
    assert text.count("<script") == 2 and "owned" not in text and "&lt;script&gt;&amp;b" in text
    (found,) = data_of(path)["runs"]
    assert found["columns"]["thought"][:4] == list(HOSTILE.values()) and found["name"] == "<script>&b"


def test_data_is_what_the_tables_hold(run):
    (found,) = data_of(write_report(run))["runs"]
    frame = pd.concat([pd.read_parquet(file) for file in sorted((run / "completions").iterdir())])
    assert found["logged"] == 30 and found["steps"] == "step 15 of 40"
    assert found["columns"]["joint_answer"] == frame["joint_answer"].tolist()
    outcomes = [None if value != value else value for value in frame["outcome"]]
    assert (
        found["columns"]["outcome"] == outcomes
        and found["columns"]["thinker_leaked"] == frame["thinker_leaked"].tolist()
    )


def test_tables_of_an_evaluation_have_intervals(run):
    share = {"value": 0.5, "interval": [0.4, 0.6], "problems": 9}
    rates = {"leak": None, "no_answer": 0.1, "truncated": 0.0, "unscorable": 0.0}
    arm = {"avg_at_k": share, "pass_at": {"1": share}, "maj_at_k": None, "rates": rates, "tokens_per_problem": 11.0}
    less = {**share, "p": 0.01, "stands": True, "help": share, "hurt": share}
    result = {"k": 1, "arms": {"joint": arm, "single": arm}, "joint_less": {"single": less}}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps({"benchmarks": {"MATH500": result}}))
    evaluation = {"joint": share, "leak": share, "without": {"thinker": share}, "unscorable": 0}
    (run / "summary.json").write_text(json.dumps({"num_eval_problems": 9, "before": evaluation, "after": evaluation}))
    ((found,), about) = (data_of(write_report(run))[name] for name in ("evaluations", "about"))
    held_out, arms, differences = found["tables"]
    assert held_out["rows"][0] == ["joint", "0.500 [0.400, 0.600]", "0.500 [0.400, 0.600]"]
    assert held_out["rows"][-1][0] == "without thinker"
    assert arms["rows"][1] == [
        "single",
        "0.500 [0.400, 0.600]",
        "0.500 [0.400, 0.600]",
        "-",
        "11.0",
        "0.100",
        "0.000",
        "-",
        "0.000",
    ]
    assert differences["rows"][0][:4] == ["single", "+0.500 [+0.400, +0.600]", "0.0100", "yes"]
    recipe, versions = about
    assert ["credit", "<b>ccpo</b>"] in recipe["rows"] and ["trl", "1.16.0"] in versions["rows"]


def test_several_runs_have_names_that_tell_them_apart(tmp_path):
    runs = [write_run(tmp_path / name / "out", {5: make_table(5, PROBLEMS)}) for name in "ab"]
    path = write_report(runs, tmp_path / "deep" / "both.html")
    found = data_of(path)
    assert [run["name"] for run in found["runs"]] == ["a/out", "b/out"]
    assert found["curves"][0]["columns"] == ["step", "a/out: joint", "a/out: solo", "b/out: joint", "b/out: solo"]
    with pytest.raises(ReportError, match="one run is named twice"):
        write_report([runs[0], f"{runs[0]}/"])


# ---- Many episodes ----


def test_more_than_a_page_holds_are_sampled_by_category(tmp_path):
    tables = {step: make_table(step, [f"problem {i % 40}" for i in range(200)]) for step in (5, 10, 15, 20)}
    for table in tables.values():
        table["thinker_effect"] = ["hurt" if i == 7 else "both right" for i in range(200)]
    run = write_run(tmp_path, tables)
    path = write_report(run, max_episodes=100)
    (found,) = data_of(path)["runs"]
    columns = found["columns"]
    assert len(columns["step"]) == 100 and found["logged"] == 800
    assert columns["thinker_effect"].count("hurt") >= 2  # of 4
    assert {*columns["step"]} == {5, 10, 15, 20} and columns["step"] == sorted(columns["step"])
    steps_of = {problem: set() for problem in columns["problem"]}
    for problem, step in zip(columns["problem"], columns["step"], strict=True):
        steps_of[problem].add(step)
    assert sum(len(steps) == 4 for steps in steps_of.values()) >= 3  # early and late
    rows = set(zip(columns["step"], columns["joint_answer"], strict=True))
    assert len(rows) == 100  # none twice
    assert data_of(write_report(run, max_episodes=100))["runs"] == [found]


def test_a_sample_has_each_of_the_rare_kinds(tmp_path):
    """Also where most episodes have another odd thing."""
    table = make_table(5, [f"problem {i}" for i in range(600)])
    columns = ("outcome", "thinker_effect", "thinker_leaked", "solver_truncated", "no_answer")
    for name, value in zip(columns, (-1.0, "both wrong", False, True, False), strict=True):
        table[name] = [value] * 600
    table["no_answer"][77], table["thinker_leaked"][99] = True, True
    (found,) = data_of(write_report(write_run(tmp_path, {5: table}), max_episodes=20))["runs"]
    assert sum(found["columns"]["no_answer"]) == sum(found["columns"]["thinker_leaked"]) == 1


def test_a_page_is_never_too_long(tmp_path, monkeypatch):
    """Random letters, which cannot be compressed."""
    rng = random.Random(0)
    table = make_table(5, PROBLEMS * 30)
    table["thought"] = [f"{rng.getrandbits(40_000):x}" for _ in table["problem"]]
    run = write_run(tmp_path, {5: table})
    monkeypatch.setattr(page, "BYTES", 1_000_000)
    (found,) = data_of(write_report(run))["runs"]
    assert 50 < len(found["columns"]["step"]) < 200 and found["logged"] == 300
    assert (tmp_path / "report.html").stat().st_size < 1_300_000
    monkeypatch.setattr(episodes, "CHARACTERS", 100_000)  # of which an episode has 10,000
    (found,) = data_of(write_report(run))["runs"]
    assert 3 < len(found["columns"]["step"]) < 15


def test_a_text_in_many_rows_counts_in_each(tmp_path, monkeypatch):
    """A table has it once, and the page's script unpacks it for each."""
    table = make_table(5, PROBLEMS * 30)
    table["thinker_prompt"] = ["x" * 10_000] * 300
    monkeypatch.setattr(page, "CHARACTERS", 500_000)
    (found,) = data_of(write_report(write_run(tmp_path, {5: table})))["runs"]
    assert 30 < len(found["columns"]["step"]) <= 100 and found["logged"] == 300


# ---- Runs as they are ----


def test_a_run_that_goes_on_or_was_killed(run):
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 20, "credit/joint_acc')
    make = pd.DataFrame({"step": [99], "problem": ["of an earlier run"]})
    make.to_parquet(run / "completions" / "completions_00099.parquet")
    (run / "completions" / "unfinished-completions_00020.parquet").write_bytes(b"PAR1")
    read = read_run(run)
    assert read.last_step == 15 and list(read.tables) == [5, 10, 15]
    assert write_report(run).is_file()


def test_tables_that_others_named_are_left_alone(run):
    table = run / "completions" / "completions_00005.parquet"
    for name in ("completions_00005_copy.parquet", "completions_5-old.parquet", "eval_completions_00005.parquet"):
        (table.with_name(name)).write_bytes(table.read_bytes())
    assert read_run(run).tables[5] == table and len(read_run(run).tables) == 3


def test_a_run_without_episodes_has_curves(tmp_path):
    run = write_run(tmp_path, {}, make_metrics([1, 2]))
    (found,) = data_of(write_report(run))["runs"]
    assert found["logged"] == 0 and found["columns"] == {"step": []}


def test_a_run_of_one_role_has_trls_table(tmp_path):
    message = [{"role": "user", "content": "What is 1 + 1?"}]
    described = {"episode": {"problem": "prompt", "gold": "solution", "outcome": "judge"}, "removals": []}
    described["roles"] = [{"name": "solo", "columns": {"text": "completion", "advantage": "advantage"}}]
    table = {"prompt": [message], "completion": [[{"role": "assistant", "content": "2"}]], "judge": [1.0]}
    frame = pd.DataFrame({"step": [1], **table, "advantage": [0.5]})
    run = write_run(tmp_path, {}, [{"step": 1, "reward": 1.0}], columns=described)
    frame.to_parquet(run / "completions" / "completions_00001.parquet")
    (found,) = data_of(write_report(run))["runs"]
    assert found["columns"]["prompt"] == ["What is 1 + 1?"] and found["columns"]["completion"] == ["2"]
    write_report(run, max_episodes=1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: run.rename(run.with_name("gone")), "run is no folder. Give the `output_dir` of a run"),
        (lambda run: (run / "run.json").unlink(), "run has no run.json. Give the `output_dir` of a run"),
        (lambda run: (run / "run.json").write_text("{"), "run.json cannot be read .* Delete it, or make it anew"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json holds list, not a mapping"),
        (lambda run: (run / "run.json").write_text('{"name": "other"}'), "run.json does not say what"),
        (lambda run: (run / "summary.json").write_text('{"before": 1, "after": 2}'), "summary.json is not as this"),
        (
            lambda run: (
                (run / "evaluation").mkdir()
                or (run / "evaluation" / "results.json").write_text('{"benchmarks": {"gsm8k": {"acc": 1}}}')
            ),
            "results.json is not as this version writes it .KeyError: 'k'.. Move it",
        ),
        (lambda run: (run / "metrics.jsonl").write_text(""), "run has logged nothing yet. Wait for"),
        (lambda run: (run / "metrics.jsonl").write_text('{"st\n{"step": 1}\n'), "metrics.jsonl, line 1, is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": "1"}\n{"step": 1}\n'), "line 1, is damaged"),
        (
            lambda run: (run / "completions" / "completions_00010.parquet").write_bytes(b"PAR1" * 9),
            "completions_00010.parquet is no whole table of episodes .* Delete it: the report is made without it",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(damage, message, run, capsys):
    damage(run)
    with pytest.raises(SystemExit) as end:
        main([str(run)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and re.search(message, error) and str(run) in error
    assert len(error.splitlines()) == 1


def test_the_command(run, tmp_path):
    command = [sys.executable, "-m", "ccpo", "report", str(run), "--output", str(tmp_path / "x.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'x.html'}\n"
    with pytest.raises(SystemExit) as end:
        main([str(run), "--max_episodes", "0"])
    assert end.value.code == 2


def test_no_file_but_a_page_is_written_over(run, tmp_path, capsys):
    before = (run / "metrics.jsonl").read_text()
    (tmp_path / "folder.html").mkdir()
    for output, message in (
        (run / "metrics.jsonl", "metrics.jsonl is not named as a page, .* End its name in `.html`"),
        (tmp_path / "folder.html", r"folder.html cannot be written \(Is a directory\). Make room, or name"),
        (run / "run.json" / "page.html", "run.json"),
    ):
        with pytest.raises(SystemExit) as end:
            main([str(run), "--output", str(output)])
        error = capsys.readouterr().err
        assert end.value.code == 2 and re.search(message, error) and len(error.splitlines()) == 1
    assert (run / "metrics.jsonl").read_text() == before


# ---- Curves ----


def test_blocks_of_a_schedule():
    history = make_metrics([5, 10, 15, 20, 25, 30, 35])
    assert find_blocks(history) == [(0, 15, "thinker"), (15, 30, "solver"), (30, 35, "thinker")]
    joint = [row | {"thinker/reward": 0.1, "solver/reward": 0.2} for row in history]
    assert find_blocks(joint) == []


def test_evaluations_are_no_blocks_and_have_curves_of_their_own():
    history = [{"step": step, "thinker/reward": 0.1, "solver/reward": 0.2} for step in (5, 10, 15)]
    names = ("thinker/reward", "solver/reward", "credit/joint_accuracy", "credit/leak_rate", "rollout/joint_tokens")
    evaluation = {"step": 10, "eval_runtime": 1.0, "eval_loss": 0.0, **{f"eval_{name}": 0.5 for name in names}}
    history.insert(2, evaluation)
    assert find_blocks(history) == []
    curves = {panel.title: [curve.name for curve in panel.curves] for panel in find_panels([history])}
    assert curves == {
        "Accuracy of a batch": ["joint (eval)"],
        "Reward of each role": ["thinker", "solver"],
    }
    odd = [{"step": 5, "eval_judge/reward": 0.1}]  # a role may have such a name
    assert [curve.name for curve in find_panels([odd])[0].curves] == ["eval judge"]


def test_metrics_that_no_picture_can_hold_are_left_out(tmp_path):
    """A run may log its own, and a file may have been written by hand."""
    values = [10**400, "text", True, None, [1], float("inf"), float("nan"), 1e308, 0.5]
    metrics = [{"step": i, "credit/joint_accuracy": value} for i, value in enumerate(values)]
    (panel,) = find_panels([metrics])
    assert [(curve.steps, curve.values) for curve in panel.curves] == [([2, 8], [True, 0.5])]
    assert write_report(write_run(tmp_path, {}, metrics)).is_file()


def test_a_long_run_in_short_blocks(tmp_path):
    """Blocks that one could not see are said, not drawn, and no curve is taken apart by them."""
    metrics = [
        {"step": step, "credit/joint_accuracy": 0.5, f"{('thinker', 'solver')[step // 10 % 2]}/reward": 0.1}
        for step in range(1, 50_001)
    ]
    text = write_report(write_run(tmp_path, {}, metrics)).read_text()
    assert len(text) < 500_000
    assert "thinker in turn, in blocks too short to show" in text


def test_names_in_a_legend(tmp_path):
    """matplotlib leaves out a name that begins with `_`, XML does not have control characters, nor a line all room."""
    names = ("_old", "b\x01\x1b", "$x$" + "long" * 30)
    runs = [write_run(tmp_path / name, {}, make_metrics([1, 2, 3])) for name in names]
    path = write_report(runs, tmp_path / "all.html")
    pictures = re.findall(r"<svg.*?</svg>", path.read_text(), re.DOTALL)
    words = [text for picture in pictures for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]
    assert {"_old", "b\ufffd\ufffd"} <= {*words}
    assert any(word.startswith("…") and len(word) <= 44 for word in words)
    heights = {float(re.search('viewBox="0 0 [0-9.]+ ([0-9.]+)"', picture)[1]) for picture in pictures}
    assert len(heights) > 1  # longer legends take no room of the curves


def test_a_curve_is_parted_by_its_own_blocks(tmp_path):
    """Not by those of the run that is shaded: it would be dots."""
    joint = [{"step": step, "credit/joint_accuracy": step / 100} for step in range(0, 61, 12)]
    blocks = [find_blocks(make_metrics(list(range(1, 61)))), []]
    panel = find_panels([[], joint])[0]
    axis = Figure().subplots()
    draw(axis, panel, ["a", "b"], blocks, ["C0"], ["0.9", "0.8"])
    assert max(len(line.get_xdata()) for line in axis.lines) == 6


def test_panels_have_what_was_logged_and_no_others():
    panels = {panel.title: panel for panel in find_panels([make_metrics([1, 2, 3, 4])])}
    assert list(panels) == [
        "Accuracy of a batch", "Helped and hurt", "Reward of each role", "Advantage of each role", "Tokens of a step",
    ]  # fmt: skip
    (helped,) = panels["Helped and hurt"].curves
    assert (helped.name, helped.steps, helped.values) == ("help", [1, 3], [0.3, 0.3])
    assert [curve.name for curve in panels["Reward of each role"].curves] == ["thinker", "solver"]


def test_curves_are_pictures_without_style(tmp_path):
    run = write_run(tmp_path, {}, make_metrics([1, 2, 3, 4]))
    pictures = re.findall(r"<svg.*?</svg>", write_report(run).read_text(), re.DOTALL)
    assert len(pictures) == 5
    ids = [name for picture in pictures for name in re.findall(r'\sid="([^"]*)"', picture)]
    assert len(ids) == len({*ids})
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "style" not in picture and "#010101" not in picture and "#0200" not in picture
        assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', picture)) <= {(i, "") for i in ids} | {
            ("", i) for i in ids
        }
    assert "thinker in turn" in pictures[0] and "fill-b1" in pictures[0]
    assert re.search(r"<text[^>]*>joint</text>", pictures[0])


def test_long_curves_are_thinned():
    assert thinned([1, 2, 3, 4, 5], [1.0, 3.0, 5.0, 7.0, 9.0], 3) == ([1.5, 3.5, 5.0], [2.0, 6.0, 9.0])
    assert thinned([1, 2], [1.0, 2.0]) == ([1.0, 2.0], [1.0, 2.0])
    assert len(smooth(thinned(range(10_000), [0.0] * 10_000)[1])) <= 400
