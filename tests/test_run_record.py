"""What a run leaves for its report, whatever it reports to; and what trackio, the real package, is given."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SharedCredit, Solo, Vote
from ccpo.evaluation.report import write_report
from ccpo.evaluation.report.run import read_lines, read_run
from ccpo.training.run_record import RunRecord


@pytest.fixture
def train(model_dirs, chat_dataset, outcome):
    def start(args, credit=None, resume=None, **given):
        trainer = MultiAgentGRPOTrainer(
            model_dirs["qwen3"], credit or CounterfactualCredit(outcome), args, chat_dataset, **given
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return start


def test_metrics_are_lines_of_json_and_the_run_says_what_it_is(train, make_config):
    args = make_config(schedule="joint", max_steps=3, learning_rate=2e-3)
    trainer = train(args)
    folder = Path(args.output_dir)
    lines = read_lines(folder / "metrics.jsonl")
    assert lines[:3] == trainer.state.log_history[:3] and [row["step"] for row in lines] == [1, 2, 3, 3]
    info = json.loads((folder / "run.json").read_text())
    assert info["recipe"]["schedule"] == "joint" and info["recipe"]["learning_rate"] == 2e-3 and info["max_steps"] == 3
    assert info["recipe"]["credit"] == "ccpo" and info["recipe"]["coef"] == 0.2
    assert "CounterfactualCredit(" in info["credit"][0] and info["versions"]["trl"].startswith("1.16")
    assert [role["name"] for role in info["columns"]["roles"]] == ["thinker", "solver"]
    assert [removal["columns"]["text"] for removal in info["columns"]["removals"]][0] == "solo_answer"


def test_a_run_that_is_resumed_goes_on_and_one_that_begins_anew_does_not(train, make_config):
    options = {"save_strategy": "steps", "save_steps": 2, "log_completions": True, "num_completions_to_print": 0}
    args = make_config(schedule="joint", max_steps=4, **options)
    train(args)
    file = Path(args.output_dir) / "metrics.jsonl"
    before = read_lines(file)
    tables = file.parent / "completions"
    assert len(list(tables.iterdir())) == 4
    (tables / "mine.parquet").touch()
    with open(file, "a") as stream:
        stream.write('{"step": 5, "half')  # of a run that was killed
    resumed = make_config(schedule="joint", max_steps=4, save_strategy="steps", save_steps=2)  # logs no episodes
    train(resumed, resume=str(Path(args.output_dir) / "checkpoint-2"))
    after = read_lines(file)
    assert [row["step"] for row in after] == [1, 2, 3, 4, 4] and after[:2] == before[:2]
    names = ["completions_00001.parquet", "completions_00002.parquet", "mine.parquet"]
    assert sorted(table.name for table in tables.iterdir()) == names  # those of steps 3 and 4 are not this run's
    train(make_config(schedule="joint", max_steps=1))
    assert [row["step"] for row in read_lines(file)] == [1, 1]
    assert [table.name for table in tables.iterdir()] == ["mine.parquet"]


def test_a_line_is_json_whatever_a_metric_is(tmp_path):
    record = RunRecord(dict)
    record.file, state = tmp_path / "metrics.jsonl", SimpleNamespace(global_step=1)
    logs = {"a": float("nan"), "b": np.float32("nan"), "c": torch.tensor(torch.inf), "d": np.float32(0.5), "e": 10**30}
    record.on_log(None, state, None, logs=logs)
    (line,) = record.file.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        **{"step": 1, "a": None, "b": None, "c": None, "d": 0.5, "e": 10**30}
    }


def test_an_evaluation_alone_leaves_no_run(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(per_device_eval_batch_size=4, eval_strategy="no")
    trainer = MultiAgentGRPOTrainer(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset)
    trainer.evaluate(chat_dataset.select(range(1)))
    assert not (Path(args.output_dir) / "metrics.jsonl").exists()


@pytest.mark.parametrize("topology", [None, Solo(), Vote(3)], ids=["think_solve", "solo", "vote"])
def test_a_report_is_made_of_any_team(topology, train, make_config, outcome):
    """Also while it trains: the report is written between two steps."""
    args = make_config(schedule="joint", max_steps=2, log_completions=True, num_completions_to_print=0)
    outcome_of_votes = outcome
    if isinstance(topology, Vote):

        def outcome_of_votes(prompts, completions, **kwargs):
            return outcome(prompts, completions)

        outcome_of_votes.extract = lambda text: text[:1] or None
        outcome_of_votes.equal = lambda a, b: a == b
    train(args, SharedCredit(outcome_of_votes), topology=topology)
    run = read_run(args.output_dir)
    frame = pd.read_parquet(run.tables[2])
    columns = run.info["columns"]
    shown = [columns["episode"]["problem"], columns["episode"]["outcome"], columns["episode"]["gold"]]
    shown += [role["columns"]["text"] for role in columns["roles"]]
    assert not [name for name in shown if name not in frame or frame[name].isna().any()]
    assert set(frame["solution"]) <= set(map(str, range(1, 9)))
    if isinstance(topology, Vote):
        assert set(frame["answer_role"]) <= {role["name"] for role in columns["roles"]}
    assert write_report(args.output_dir).stat().st_size > 30_000


def test_trackio_gets_metrics_and_table(train, make_config, monkeypatch):
    """The real package, offline."""
    trackio = pytest.importorskip("trackio", reason="needs trackio: `pip install trackio`")
    args = make_config(schedule="joint", max_steps=1, report_to="trackio", project="ccpo-test", run_name="one")
    args.log_completions, args.num_completions_to_print, args.trackio_static_space_id = True, 0, False
    try:
        train(args)
        logged = trackio.SQLiteStorage.get_logs("ccpo-test", "one")
        assert any("train/credit/joint_accuracy" in row for row in logged)
        (table,) = [row["completions"] for row in logged if "completions" in row]
        columns = {*pd.DataFrame(table["_value"]).columns}
        assert {"solution", "solver_prompt", "solo_answer", "thinker_effect"} <= columns
    finally:
        trackio.delete_project("ccpo-test", force=True)
