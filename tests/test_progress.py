"""What a run shows while it goes on: bar, lines, a notebook's table; and what it keeps from the screen."""

import os
import re
import subprocess
import sys
import types
from types import SimpleNamespace

import datasets
import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SharedCredit, Solo
from ccpo.quiet import no_dataset_bars, patient_bars
from ccpo.training import table
from ccpo.training.progress import LogLineCallback, TeamProgressCallback, shown_metrics


def test_the_bar_shows_the_accuracies_only():
    callback, shown = TeamProgressCallback(), []
    callback.training_bar = SimpleNamespace(set_postfix=shown.append)
    callback.on_log(None, None, None, logs={"loss": 1.0, "credit/joint_accuracy": 0.514, "credit/solo_accuracy": None})
    callback.on_log(None, None, None, logs={"loss": 1.0})
    for rate in (0.0, 0.25):
        callback.on_log(None, None, None, logs={"credit/joint_accuracy": 0.5, "credit/no_answer_rate": rate})
    assert shown == [{"joint": "0.51"}, {"joint": "0.50"}, {"joint": "0.50", "no answer": "0.25"}]


def test_what_is_shown_of_a_log():
    without = {f"credit/without_{role}_accuracy": 0.125 for role in ("a", "b", "c")}
    assert shown_metrics({"credit/joint_accuracy": 1.0, **without, "credit/leak_rate": 0.0, "loss": 2.0}) == {
        **{"joint": "1.00", "leak": "0.00"},
        **{f"without {role}": "0.12" for role in ("a", "b", "c")},
    }
    assert shown_metrics({"credit/joint_accuracy": 1.0, **without, "credit/without_d_accuracy": 0.5}) == {
        "joint": "1.00"
    }
    assert shown_metrics({"eval_credit/joint_accuracy": 0.5, "credit/joint_accuracy": 1.0}, "eval_") == {
        "joint": "0.50"
    }
    assert shown_metrics({"reward": 0.25, "loss": 1.0}) == {"reward": "0.25"} and shown_metrics({"loss": 1.0}) == {}


class Own(ProgressCallback):
    pass


@pytest.mark.parametrize("topology", [None, Solo()], ids=["team", "solo"])
def test_users_of_the_library_get_lines_and_keep_their_callbacks(
    topology, model_dirs, chat_dataset, make_config, outcome, capsys
):
    args = make_config(
        schedule="joint",
        max_steps=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=4,
    )
    assert args.disable_tqdm
    own, printer = Own(), PrinterCallback()
    credit = SharedCredit(outcome) if topology else CounterfactualCredit(outcome)
    given = {"topology": topology, "callbacks": [own, printer], "eval_dataset": chat_dataset.select(range(2))}
    trainer = MultiAgentGRPOTrainer(model_dirs["qwen3"], credit, args, chat_dataset, **given)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(LogLineCallback) == 1 and printer in trainer.callback_handler.callbacks
    assert own in trainer.callback_handler.callbacks and kinds.count(PrinterCallback) == 1
    trainer.remove_callback(printer)
    trainer.remove_callback(own)
    capsys.readouterr()
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    shown = r"reward -?\d\.\d\d" if topology else r"joint \d\.\d\d, solo \d\.\d\d(, leak \d\.\d\d)?"
    assert re.fullmatch(rf"step 1/2: {shown}(, without .*)?, loss -?\d\.\d{{4}}", lines[0])
    assert any(re.fullmatch(rf"step 2/2, eval: {shown}.*, loss -?\d\.\d{{4}}", line) for line in lines)
    assert re.fullmatch(r"step 2/2: trained in \d+ s", lines[-1]) and len(lines) == 4


def test_the_bar_is_the_default_and_one_that_is_given_is_not_doubled(model_dirs, chat_dataset, make_config, outcome):
    for given in ([], [TeamProgressCallback()]):
        args = make_config(schedule="joint", max_steps=1, disable_tqdm=False)
        trainer = MultiAgentGRPOTrainer(
            model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset, callbacks=[*given, TrainerCallback()]
        )
        kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
        assert kinds.count(TeamProgressCallback) == 1 and ProgressCallback not in kinds and TrainerCallback in kinds


# ---- In a notebook ----


@pytest.fixture
def notebook(monkeypatch):
    """transformers' real callback, with a stand-in for IPython: what it displays, the last one as it was updated."""
    shown = []

    class Display:
        def update(self, html):
            shown[-1] = html

    def display(html, display_id=False):
        shown.append(html)
        return Display()

    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    module.HTML, module.display, package.display = str, display, module
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    for name in ("transformers.utils.notebook", "ccpo.training.notebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from transformers.utils.notebook import NotebookProgressCallback

    monkeypatch.setattr(table, "DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    yield shown
    for name in ("transformers.utils.notebook", "ccpo.training.notebook"):
        sys.modules.pop(name, None)


def table_of(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr.*?</tr>", html[html.index("<table") :], re.DOTALL)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


@pytest.mark.parametrize("evaluates", [False, True])
def test_in_a_notebook_the_accuracies_stand_in_the_table(
    evaluates, notebook, model_dirs, chat_dataset, make_config, outcome
):
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4} if evaluates else {}
    args = make_config(schedule="joint", max_steps=2, logging_steps=1, disable_tqdm=False, **options)
    given = {"eval_dataset": chat_dataset.select(range(1))} if evaluates else {}
    trainer = MultiAgentGRPOTrainer(model_dirs["qwen3"], CounterfactualCredit(outcome), args, chat_dataset, **given)
    trainer.train()
    head, *rows = table_of(notebook[-1])
    loss = ["Training Loss", *(["Validation Loss"] if evaluates else [])]
    assert head[: 1 + len(loss)] == ["Step", *loss] and [row[0] for row in rows] == ["1", "2"]
    assert {"Joint", "Solo", "Leak"} <= {*head} and len(head) <= 7
    history = trainer.state.log_history
    prefix = "eval_" if evaluates else ""
    expected = [f"{r[name]:.2f}" for r in history if (name := f"{prefix}credit/joint_accuracy") in r]
    assert [row[head.index("Joint")] for row in rows] == expected[:2]


# ---- What libraries put on the screen ----


def test_bars_of_loading_and_writing_wait(capfd):
    with patient_bars():
        for _ in logging.tqdm(range(3), desc="Loading weights"):
            pass
    assert "Loading" not in capfd.readouterr().err
    for _ in logging.tqdm(range(3), desc="Loading weights"):
        pass
    assert "Loading" in capfd.readouterr().err
    with no_dataset_bars():
        datasets.Dataset.from_dict({"x": [1]}).map(lambda row: row)
    assert "Map" not in capfd.readouterr().err and not datasets.are_progress_bars_disabled()


SCRIPT = """
import sys, warnings
warnings.simplefilter("error", FutureWarning)
import matplotlib
matplotlib.use("svg")  # a notebook's
from ccpo import MultiAgentGRPOConfig
from ccpo.quiet import name_accelerator_to_deepspeed
from ccpo.report import plot_curves
history = [{"step": i, "credit/joint_accuracy": i / 10, "credit/solo_accuracy": 0.2} for i in range(1, 5)]
plot_curves(history, sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules and matplotlib.get_backend() == "svg"
args = MultiAgentGRPOConfig("unused", use_cpu=True, bf16=False, report_to="none")
assert args.gradient_checkpointing is True
name_accelerator_to_deepspeed()
import deepspeed
"""


def test_nothing_is_said_of_defaults_and_a_notebooks_backend_stays(tmp_path):
    pytest.importorskip("deepspeed")
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "curves.png")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0 and "Setting accelerator" not in found.stdout + found.stderr, found.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
