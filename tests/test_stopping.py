"""
Ctrl-C and SIGTERM, as real signals to real processes.

As a script it is the process that gets them: `python tests/test_stopping.py '{…}'`.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from test_checkpoints import WHOLE_STEPS, WaitForSignal, make_args, make_problems, make_trainer, start, wait_for
from transformers import TrainerCallback

from ccpo.training.checkpoints import find_defects, find_last_checkpoint
from ccpo.training.stopping import AGAIN

# ---- The process that is stopped ----


def main(spec) -> None:
    args = make_args(spec["folder"] + "/run", save_steps=2, dataloader_num_workers=1)
    trainer = make_trainer(spec["models"], args, callbacks=[WaitForSignal(spec["folder"])])
    trainer.train()
    result = {"was_stopped": trainer.was_stopped, "step": trainer.state.global_step}
    Path(spec["folder"], "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def waiting(tmp_path_factory, model_dirs):
    """Two processes in the middle of their third step: `[(process, folder)]`, each in a group of its own."""
    started = []
    for name in ("once", "twice"):
        folder = tmp_path_factory.mktemp(name)
        spec = json.dumps({"models": model_dirs, "folder": str(folder)})
        started.append((start(__file__, spec, output=folder / "log", start_new_session=True), folder))
    for process, folder in started:
        wait_for(folder / "ready", process, folder / "log")
    yield started
    for process, _ in started:
        if process.poll() is None:
            process.kill()


def test_one_key_press_finishes_the_step_saves_and_says_how_to_go_on(waiting, model_dirs):
    """A launcher passes it on as a second signal; a job's end in between ends nothing at once either."""
    process, folder = waiting[0]
    log = folder / "log"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the data worker, too
    time.sleep(0.3)
    assert "SIGINT: the run stops after this optimizer step, with a checkpoint. Ctrl-C once more" in log.read_text()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    (folder / "sent").touch()
    assert process.wait(timeout=120) == 0, log.read_text()[-4000:]
    assert json.loads((folder / "result.json").read_text()) == {"was_stopped": True, "step": 3}
    assert find_last_checkpoint(folder / "run").name == "checkpoint-3"
    said = log.read_text()
    assert f"SIGINT: saving checkpoint-3 in {folder / 'run'} and stopping. Go on from it with `--resume" in said
    assert said.count("the run stops after") == 1 and "Traceback" not in said
    trainer = make_trainer(model_dirs, make_args(folder / "run", dataloader_num_workers=1))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == WHOLE_STEPS and not trainer.was_stopped


def test_a_second_key_press_ends_at_once(waiting):
    process, folder = waiting[1]
    process.send_signal(signal.SIGINT)
    time.sleep(AGAIN + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0  # the step would wait for ever
    assert "KeyboardInterrupt" in (folder / "log").read_text() and not (folder / "result.json").exists()
    assert find_last_checkpoint(folder / "run").name == "checkpoint-2"


# ---- In this process ----


class SignalAt(TrainerCallback):
    """A signal from within: in the middle of a step, or in the evaluation after the last one."""

    def __init__(self, number, step=None):
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.step is None and state.global_step == state.max_steps:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_leaves_a_checkpoint_too(number, model_dirs, tmp_path, caplog):
    evaluates = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    args = make_args(tmp_path, max_steps=2, save_strategy="no", **evaluates)
    trainer = make_trainer(model_dirs, args, callbacks=[SignalAt(number)], eval_dataset=make_problems(2))
    trainer.train()
    assert trainer.was_stopped and not find_defects(tmp_path / "checkpoint-2")
    assert number.name in caplog.text


def test_sigint_gets_its_meaning_back_and_one_that_is_ignored_stays_so(model_dirs, tmp_path):
    """A shell starts a job in the background with SIGINT ignored: a Ctrl-C in the terminal is not for it."""
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(model_dirs, make_args(tmp_path, max_steps=2, save_strategy="no"))
    trainer.add_callback(SignalAt(signal.SIGINT, 1))
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        trainer.train()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not trainer.was_stopped
    finally:
        signal.signal(signal.SIGINT, before)
    with trainer._saver.listening():
        assert signal.getsignal(signal.SIGINT) == trainer._saver._receive
    assert signal.getsignal(signal.SIGINT) == before
    seen = []

    def listen():
        with trainer._saver.listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
