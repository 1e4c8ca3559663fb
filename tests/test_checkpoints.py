"""
Checkpoints on one process: killed, stopped, rotated, damaged, misused, saved as models, pushed, the best one loaded.

As a script it is the process that is killed or stopped: `python tests/test_checkpoints.py kill|stop '{…}'`.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from conftest import digit_outcome, make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState, modeling_utils

from ccpo import (
    CounterfactualCredit,
    MathVerifier,
    MultiAgentGRPOConfig,
    MultiAgentGRPOTrainer,
    SharedCredit,
    Solo,
    ThinkSolve,
    train,
)
from ccpo.credit import HistoryNormalizer
from ccpo.training.checkpoints import (
    MANIFEST,
    describe,
    find_defects,
    find_last_checkpoint,
    rotate_complete_checkpoints,
    write_manifest,
)

ROOT = Path(__file__).parents[1]
ROLES = ("thinker", "solver")
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
WHOLE_STEPS = 5
torch.set_num_threads(1)


def make_args(output_dir, **overrides) -> MultiAgentGRPOConfig:
    """Both roles within a few steps, and checkpoints in the middle of a generation batch."""
    settings = {
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "steps_per_generation": 2,
        "alternate_period": 1,
        "max_completion_length": 8,
        "max_steps": WHOLE_STEPS,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return MultiAgentGRPOConfig(str(output_dir), **settings | overrides)


def make_problems(rows: int = 8) -> Dataset:
    prompts = [[{"role": "user", "content": f"{i}/2="}] for i in range(rows)]
    return Dataset.from_dict({"prompt": prompts, "solution": [rf"\frac{{{i}}}{{2}}" for i in range(rows)]})


def make_trainer(models, args, credit=None, cls=MultiAgentGRPOTrainer, dataset=None, **kwargs):
    if "model" not in kwargs:
        pair = {"thinker": models["qwen3"], "solver": models.get("llama")}
        kwargs["model"] = pair if args.policy_sharing == "separate" else models["qwen3"]
    return cls(
        reward_funcs=credit or CounterfactualCredit(digit_outcome),
        args=args,
        train_dataset=make_problems() if dataset is None else dataset,
        **kwargs,
    )


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_same_weights(trainer, weights) -> None:
    own = weights_of(trainer)
    assert own.keys() == weights.keys()
    for name, weight in own.items():
        assert torch.equal(weight, weights[name]), name


def warnings_in(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


# ---- The process that is killed ----


class Moments:
    """
    The moments of a save, and SIGKILL at one of them.

    A moment is just before each change of the file system, which Python's audit events announce; the middle of each
    large file, of which half is on the disk; and the end. Its label is the event and the path.
    """

    def __init__(self, folder: str, fatal: int | None):
        self.folder, self.fatal, self.labels = folder, fatal, []
        sys.addaudithook(self._audit)
        for owner, name in ((torch, "save"), (modeling_utils, "safe_save_file")):
            setattr(owner, name, self._in_two_halves(getattr(owner, name)))
        save_to_json = TrainerState.save_to_json
        halves = self._in_two_halves(lambda state, path: save_to_json(state, path))
        TrainerState.save_to_json = lambda state, path: halves(state, path)

    def reach(self, label: str, path: str | None = None) -> None:
        self.labels.append(label.replace(self.folder + "/", ""))
        if len(self.labels) - 1 == self.fatal:
            if path is not None:
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            path = str(args[1] if event == "os.rename" else args[0])
            if path.startswith(self.folder) or not path.startswith("/"):  # relative: within `rmtree`
                self.reach(f"{event} {path}")

    def _in_two_halves(self, save):
        def wrapped(value, path, *args, **kwargs):
            self.reach(f"before {path}")
            result = save(value, path, *args, **kwargs)
            self.reach(f"half {path}", str(path))
            return result

        return wrapped


def kill_at_every_moment(trainer, save, folder: Path) -> None:
    """Fork this process at the save, once per moment, each with a copy of the run's folder; and once to list them."""
    labels, moments = [], iter([None])
    while (fatal := next(moments, "none left")) != "none left":
        copy = folder / f"killed-{fatal}"
        if not (pid := os.fork()):
            try:
                shutil.copytree(trainer.args.output_dir, copy, copy_function=shutil.copy2)
                trainer.args.output_dir = str(copy)
                watched = Moments(str(copy), fatal)
                save()
                watched.reach("end")
                (folder / "moments.json").write_text(json.dumps(watched.labels))
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        if fatal is None:
            assert status == 0
            labels = json.loads((folder / "moments.json").read_text())
            moments = iter(range(len(labels)))
        else:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (fatal, labels[fatal], status)


class Killed(MultiAgentGRPOTrainer):
    def _save_checkpoint(self, model, trial):
        save = super()._save_checkpoint
        if self.state.global_step == 3:
            kill_at_every_moment(self, lambda: save(model, trial), self.folder)
        save(model, trial)
        shutil.copytree(
            f"{self.args.output_dir}/checkpoint-{self.state.global_step}", self.folder / str(self.state.global_step)
        )


def main_kill(spec) -> None:
    trainer = make_trainer(spec["models"], make_args(spec["folder"] + "/run", save_total_limit=1), cls=Killed)
    trainer.folder = Path(spec["folder"])
    trainer.train()
    torch.save(weights_of(trainer), trainer.folder / "weights.pt")


# ---- The process that is stopped ----


class WaitForSignal(TrainerCallback):
    """In the middle of the third step, ask for the signal and wait until it was sent."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            (self.folder / "ready").touch()
            while not (self.folder / "sent").exists():
                time.sleep(0.01)


def main_saver(spec) -> None:
    verifier = MathVerifier(timeout=60, num_workers=2)
    trainer = make_trainer(
        spec["models"],
        make_args(spec["folder"] + "/run", save_steps=100),
        CounterfactualCredit(verifier),
        callbacks=[WaitForSignal(spec["folder"])],
    )
    golds = [rf"\frac{{1}}{{{i}}}" for i in range(2, 42)]  # so many that both workers start
    answers = [rf"\boxed{{1/{i}}}" for i in range(2, 42)]
    assert verifier.score(gold=golds, prediction=answers) == [1.0] * 40
    workers = [member.process.pid for member in verifier._pool.workers]
    trainer.train()
    result = {
        "workers": workers,
        "workers_after": [member.process.pid for member in verifier._pool.workers],
        "score": verifier.score(gold=[r"\frac{1}{2}"], prediction=[r"\boxed{0.5}"]),
        "was_stopped": trainer.was_stopped,
        "step": trainer.state.global_step,
    }
    Path(spec["folder"], "result.json").write_text(json.dumps(result))


# ---- Both, and the example, beside the tests ----


def start(*command, output: Path, **kwargs) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(output, "w") as file:
        return subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, **kwargs
        )


def wait_for(path: Path, process, output: Path, seconds=240) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, output.read_text()[-4000:]
        time.sleep(0.02)


EXAMPLE = {  # of examples/train_ccpo.py
    "--config": "recipes/smoke/config_gsm8k.yaml",
    "--save_strategy": "steps",
    "--save_steps": "1",
    "--max_steps": "16",
    "--max_completion_length": "8",
    "--gradient_accumulation_steps": "1",
    "--num_eval_problems": "0",
    "--disable_tqdm": "true",
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory, model_dirs):
    """All that are killed or stopped: `{name: (process, folder)}`."""
    folder = tmp_path_factory.mktemp("processes")
    rows = [{"question": f"How much is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(8)]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = {}
    for name in ("kill", "stop", "example"):
        (folder / name).mkdir()
        spec = json.dumps({"models": model_dirs, "folder": str(folder / name)})
        command = [__file__, name, spec]
        if name == "example":
            command = ["examples/train_ccpo.py", *example_arguments(data, folder / name / "run")]
        started[name] = start(*command, output=folder / name / "log", start_new_session=True), folder / name
    threading.Thread(target=terminate_in_training, args=started["example"], daemon=True).start()
    yield started
    for process, _ in started.values():
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="module", autouse=True)
def processes_run_beside_the_tests(request):
    """Each needs seconds to import: they start with the first test, if one that is selected needs them."""
    if any("processes" in item.fixturenames for item in request.session.items if item.path == request.path):
        request.getfixturevalue("processes")


def terminate_in_training(process, folder) -> None:
    """SIGTERM once there is a checkpoint, wherever in a step or a save the process is then."""
    wait_for(folder / "run" / "checkpoint-2" / MANIFEST, process, folder / "log")
    process.terminate()


def example_arguments(data, output_dir) -> list[str]:
    given = {**EXAMPLE, "--dataset_name": str(data), "--output_dir": str(output_dir)}
    return [part for pair in given.items() for part in pair]


def finished(processes, name) -> Path:
    process, folder = processes[name]
    assert process.wait(timeout=300) == 0, (folder / "log").read_text()[-4000:]
    return folder


# ---- Stopped ----


def test_sigterm_keeps_its_meaning_off_the_main_thread_and_gets_it_back(model_dirs, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(model_dirs, make_args(tmp_path, max_steps=1, save_strategy="no"))
    stop = trainer._saver
    seen = []

    def listen():
        with stop.listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    with stop.listening():
        seen.append(signal.getsignal(signal.SIGTERM))
    assert seen == [before, stop._receive] and signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ValueError), stop.listening():
        raise ValueError
    assert signal.getsignal(signal.SIGTERM) == before
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before and not trainer.was_stopped


class SigtermAt(TrainerCallback):
    """The signal in the middle of a step, from within."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_without_a_save_strategy_and_the_object_goes_on(model_dirs, tmp_path):
    args = make_args(tmp_path, save_strategy="no", gradient_accumulation_steps=2)
    trainer = make_trainer(model_dirs, args, callbacks=[SigtermAt(1)])
    trainer.train()
    assert trainer.was_stopped and trainer.state.global_step == 2
    assert not find_defects(tmp_path / "checkpoint-2")
    trainer.train(resume_from_checkpoint=True)  # it was stopped, and is not any more
    assert not trainer.was_stopped and trainer.state.global_step == WHOLE_STEPS


def test_sigterm_saves_a_step_that_is_not_the_best(model_dirs, tmp_path):
    trainer = train_with_best(model_dirs, tmp_path, best_step=2, save_strategy="best", callbacks=[SigtermAt(3)])
    assert trainer.was_stopped and trainer.state.global_step == 4
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


# ---- save_total_limit ----


def make_checkpoints(folder: Path, **complete: bool) -> None:
    for i, (name, is_complete) in enumerate(complete.items()):
        checkpoint = folder / name.replace("step", "checkpoint-")
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text(name)
        if is_complete:
            write_manifest(checkpoint, {}, ranks=())
        os.utime(checkpoint, (1e9 + 10 * i, 1e9 + 10 * i))


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, (5,), [1, 2, 3, 4, 5]),
        (0, (5,), [1, 2, 3, 4, 5]),
        (9, (5,), [1, 2, 3, 4, 5]),
        (5, (5,), [1, 2, 3, 4, 5]),
        (4, (5,), [1, 3, 4, 5]),  # 2 is incomplete
        (3, (5,), [1, 3, 5]),  # and 4
        (2, (5,), [3, 5]),
        (2, (5, 1), [1, 5]),  # 1 is the best
        (1, (5, 1), [1, 5]),
        (1, (5, 5), [5]),
        (1, (3,), [3]),  # not the last by number
    ],
)
def test_rotation_deletes_the_incomplete_first_then_the_oldest(limit, keep, left, tmp_path):
    make_checkpoints(tmp_path, step1=True, step2=False, step3=True, step4=False, step5=True)
    rotate_complete_checkpoints(tmp_path, limit, {tmp_path / f"checkpoint-{step}" for step in keep})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]


def test_rotation_of_a_run_keeps_the_best_and_the_last(model_dirs, tmp_path):
    trainer = train_with_best(model_dirs, tmp_path, best_step=2, save_total_limit=1)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert not find_defects(tmp_path / "checkpoint-2") and not find_defects(tmp_path / "checkpoint-5")


def test_sigterm_with_a_limit_of_1_leaves_the_checkpoint_that_it_saved_beside_the_best(model_dirs, tmp_path):
    trainer = train_with_best(model_dirs, tmp_path, best_step=2, save_total_limit=1, callbacks=[SigtermAt(3)])
    assert trainer.was_stopped and trainer.state.global_step == 4
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


# ---- The best checkpoint ----


class Snapshots(TrainerCallback):
    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = {n: p.detach().clone() for n, p in model.named_parameters()}


def train_with_best(models, output_dir, best_step, sharing="separate", peft_config=None, callbacks=(), **settings):
    """Evaluation after every step, in which the team does well after `best_step` only."""
    evaluated = []

    def outcome(prompts, completions, **kwargs):
        if trainer.model.training:
            return digit_outcome(prompts, completions)
        if trainer.state.global_step not in evaluated:
            evaluated.append(trainer.state.global_step)
        right = 1.0 if trainer.state.global_step == best_step else -1.0
        return [right] * len(completions)

    args = make_args(
        output_dir,
        policy_sharing=sharing,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        load_best_model_at_end=True,
        metric_for_best_model="credit/joint_accuracy",
        **settings,
    )
    snapshots = Snapshots()
    trainer = make_trainer(
        models,
        args,
        SharedCredit(outcome),
        eval_dataset=make_problems(2),
        callbacks=[snapshots, *callbacks],
        peft_config=peft_config,
    )
    trainer.train()
    assert evaluated == list(range(1, trainer.state.global_step + 1))
    trainer.snapshots = snapshots.weights
    return trainer


@pytest.mark.parametrize("sharing", ["separate", "shared", "adapters"])
def test_load_best_model_at_end_loads_the_best_of_every_role(sharing, model_dirs, tmp_path):
    peft = LORA if sharing == "adapters" else None
    trainer = train_with_best(
        model_dirs, tmp_path, best_step=3, sharing=sharing, peft_config=peft, save_total_limit=2, seed=1
    )
    assert trainer.state.best_global_step == 3
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-5"]
    assert_same_weights(trainer, trainer.snapshots[3])
    for role in ROLES:  # steps 4 and 5 are of different blocks: each role differs in one at least
        mine = [name for name in trainer.snapshots[3] if f".{role}." in name] or list(trainer.snapshots[3])
        changed = [n for n in mine if not torch.equal(trainer.snapshots[3][n], trainer.snapshots[5][n])]
        assert changed, role


# ---- Bad input ----


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, model_dirs):
    """The folder of a run of two steps, a checkpoint each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_trainer(model_dirs, make_args(folder, max_steps=2)).train()
    return folder


OTHERS = {
    "policy_sharing": ({"policy_sharing": "shared"}, "'separate'", "'shared'"),
    "schedule": ({"schedule": "joint"}, "'alternate'", "'joint'"),
    "alternate_period": ({"alternate_period": 3}, "1", "3"),
    "start_role": ({"start_role": "solver"}, "None", "'solver'"),
    "num_generations": ({"num_generations": 2}, "4", "2"),
    "num_solves": ({"num_solves": 2}, "1", "2"),
    "num_solos": ({"num_solos": 2}, "None", "2"),
    "per_device_train_batch_size": ({"per_device_train_batch_size": 8}, "4", "8"),
    "gradient_accumulation_steps": ({"gradient_accumulation_steps": 2}, "1", "2"),
    "steps_per_generation": ({"steps_per_generation": 4}, "2", "4"),
    "num_iterations": ({"num_iterations": 2}, "1", "2"),
    "shuffle_dataset": ({"shuffle_dataset": False}, "True", "False"),
    "seed": ({"seed": 7}, "42", "7"),
    "train_dataset rows": ({"rows": 6}, "8", "6"),
    "roles": ({"topology": Solo()}, r"\['thinker', 'solver'\]", r"\['solver'\]"),
    "solo_prompt": ({"topology": ThinkSolve(solo_prompt="{problem}!")}, ".*", "'{problem}!'"),
}


def test_a_credit_is_described_with_its_history():
    credits = [
        CounterfactualCredit(),
        CounterfactualCredit(history=True),
        CounterfactualCredit(history=HistoryNormalizer(decay=0.5)),
    ]
    assert len({describe(credit) for credit in credits}) == 3
    assert "history=HistoryNormalizer(decay=0.5, alpha=1.0" in describe(credits[2])
    assert "history" not in describe(credits[0])  # as in checkpoints of versions without one


@pytest.mark.parametrize("field", OTHERS)
def test_another_set_up_is_refused_with_what_differs(field, checkpoints, model_dirs, tmp_path):
    settings, was, is_now = OTHERS[field]
    settings = {**settings}
    dataset, topology = make_problems(settings.pop("rows", 8)), settings.pop("topology", None)
    kwargs = {"topology": topology, "model": model_dirs["qwen3"], "credit": digit_outcome} if topology else {}
    if field == "solo_prompt":
        kwargs = {"topology": topology}
    trainer = make_trainer(model_dirs, make_args(tmp_path, **settings), dataset=dataset, **kwargs)
    match = rf"checkpoint-2.* another set-up.*`{field}` was {was} and is {is_now}[;.].*Set it back, or start a new run"
    with pytest.raises(ValueError, match=match) as error:
        trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoint-2"))
    if field not in ("policy_sharing", "roles"):  # which take other models
        assert str(error.value).count(" was ") == 1
    assert trainer.state.global_step == 0


def test_every_file_missing_or_truncated_is_named(checkpoints, model_dirs, tmp_path, caplog):
    complete = checkpoints / "checkpoint-2"
    names = sorted(_files(complete))
    for kind in (
        "thinker/model.safetensors",
        "solver/tokenizer.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    ):
        assert kind in names
    trainer = make_trainer(model_dirs, make_args(tmp_path))
    shutil.copytree(checkpoints / "checkpoint-1", tmp_path / "checkpoint-1")
    for name in names:
        for damage in ("is missing", "has"):
            path = shutil.copytree(complete, tmp_path / "checkpoint-2") / name
            size = path.stat().st_size
            if damage == "is missing":
                path.unlink()
            else:
                os.truncate(path, size // 2)
            what = f"{name} {damage}" if damage == "is missing" else f"{name} has {size // 2} bytes instead of {size}"
            what = f"{name} cannot be read" if name == MANIFEST and damage == "has" else what
            with pytest.raises(ValueError, match=rf"checkpoint-2'` is not a complete checkpoint: {re.escape(what)}"):
                trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
            caplog.clear()
            assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
            assert "Passing over" in warnings_in(caplog) and f"{tmp_path}/checkpoint-2 ({what}" in warnings_in(caplog)
            shutil.rmtree(tmp_path / "checkpoint-2")
    assert trainer.state.global_step == 0


def test_resume_true_passes_over_a_damaged_checkpoint(checkpoints, model_dirs, tmp_path, caplog):
    run = shutil.copytree(checkpoints, tmp_path / "run")
    os.truncate(run / "checkpoint-2" / "optimizer.pt", 100)
    trainer = make_trainer(model_dirs, make_args(run, max_steps=2))
    trainer.train(resume_from_checkpoint=True)
    assert f"{run}/checkpoint-2 (optimizer.pt has 100 bytes instead of" in warnings_in(caplog)
    assert not find_defects(run / "checkpoint-2")  # written anew
    for role in ROLES:
        ours, first = (load_file(f / "checkpoint-2" / role / "model.safetensors") for f in (run, checkpoints))
        assert all(torch.equal(ours[name], first[name]) for name in first)


def test_resume_without_a_checkpoint(model_dirs, tmp_path):
    trainer = make_trainer(model_dirs, make_args(tmp_path / "run"))
    remedy = "Start without `resume_from_checkpoint`, or give the `output_dir`"
    with pytest.raises(ValueError, match=rf"run'` has no checkpoint-<step> folder\. {remedy}"):
        trainer.train(resume_from_checkpoint=True)
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    only = rf"has only incomplete ones: .*checkpoint-4 \({MANIFEST} is missing.*\)\. {remedy}"
    with pytest.raises(ValueError, match=only):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="nowhere'` is not a complete checkpoint: there is no such folder. Give"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "{}",
        "[]",
        "null",
        "3",
        '{"files": []}',
    ],
    ids=repr,
)
def test_a_manifest_that_is_none(text, model_dirs, tmp_path, caplog):
    make_checkpoints(tmp_path, step1=True, step2=True)
    (tmp_path / "checkpoint-2" / MANIFEST).write_text(text)
    trainer = make_trainer(model_dirs, make_args(tmp_path))
    with pytest.raises(ValueError, match=f"checkpoint-2'` is not a complete checkpoint: {MANIFEST} cannot be read"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert f"checkpoint-2 ({MANIFEST} cannot be read" in warnings_in(caplog)


def test_a_checkpoint_of_models_only(model_dirs, tmp_path):
    args = make_args(tmp_path, max_steps=1, save_only_model=True)
    make_trainer(model_dirs, args).train()
    trainer = make_trainer(model_dirs, make_args(tmp_path))
    match = r"no run_state_0.pth: .*save_only_model=True.* start a new run from its models, model=\{'thinker': \.\.\."
    for resume in (True, str(tmp_path / "checkpoint-1")):
        with pytest.raises(ValueError, match=match):
            trainer.train(resume_from_checkpoint=resume)


def test_a_model_of_other_sizes_is_refused(checkpoints, model_dirs, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    for name, other in {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 96}.items():
        model = make_model("qwen3", tokenizer, **{name: other})
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        models = {"qwen3": str(tmp_path / name), "llama": model_dirs["llama"]}
        trainer = make_trainer(models, make_args(tmp_path))
        with pytest.raises(ValueError, match="comes from another set-up"):
            trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoint-2"))


def save_kind(kind: str, folder: Path, **overrides) -> str:
    tokenizer = make_tokenizer("abcdefgh<>=0123456789/ ")
    make_model(kind, tokenizer, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "change",
    [{"kind": "llama"}, {"swap": True}, {"rope": True}],
    ids=["another architecture", "roles swapped", "another rotary base"],
)
def test_another_model_of_the_same_sizes_is_refused(change, tmp_path):
    """Its weights have the shapes of the checkpoint's, or nearly: what differs must not be made up."""
    models = {kind: save_kind(kind, tmp_path / kind) for kind in ("qwen3", "llama")}
    make_trainer(models, make_args(tmp_path / "run", max_steps=1)).train()
    if "kind" in change:
        models["qwen3"] = models["llama"]
    elif "swap" in change:
        models = {"qwen3": models["llama"], "llama": models["qwen3"]}
    else:
        rope = {"rope_type": "default", "rope_theta": 77.0}
        models["qwen3"] = save_kind("qwen3", tmp_path / "rope", rope_parameters=rope)
    trainer = make_trainer(models, make_args(tmp_path / "run"))
    with pytest.raises(ValueError, match="comes from another set-up"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "other",
    [
        {"r": 8},
        {"target_modules": ["k_proj", "v_proj"]},
        {"lora_alpha": 64},
    ],
    ids=["r", "targets", "alpha"],
)
def test_another_adapter_is_refused(other, tmp_path):
    wide = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    args = make_args(tmp_path / "run", policy_sharing="adapters", max_steps=1)
    models = {"qwen3": save_kind("qwen3", tmp_path / "model")}  # k_proj and q_proj are of the same shape
    make_trainer(models, args, peft_config=LoraConfig(**wide)).train()
    args = make_args(tmp_path / "run", policy_sharing="adapters")
    trainer = make_trainer(models, args, peft_config=LoraConfig(**wide | other))
    with pytest.raises(ValueError, match="comes from another set-up"):
        trainer.train(resume_from_checkpoint=True)


def test_other_reward_functions_are_refused_by_name(checkpoints, model_dirs, tmp_path):
    credit = [CounterfactualCredit(digit_outcome), SharedCredit(digit_outcome)]
    trainer = make_trainer(model_dirs, make_args(tmp_path), credit)
    with pytest.raises(ValueError, match="reward_funcs|allocator|credit"):
        trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoint-2"))


# ---- Saved models ----

LAYOUTS = {
    "separate": ("separate", None),
    "shared": ("shared", None),
    "adapters": ("adapters", LORA),
    "separate adapters": ("separate", LORA),
}


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


def trained(models, output_dir, layout, **settings):
    sharing, peft = LAYOUTS[layout]
    settings = {"max_steps": 4, "save_strategy": "no", **settings}
    trainer = make_trainer(models, make_args(output_dir, policy_sharing=sharing, **settings), peft_config=peft)
    trainer.train()
    return trainer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_roles_load_and_answer_as_in_training(layout, model_dirs, tmp_path):
    trainer = trained(model_dirs, tmp_path / "run", layout)
    before, training = weights_of(trainer), trainer.model.training
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(trainer, before)
    assert trainer.model.training == training
    ids = torch.tensor([[5, 6, 7, 8]])
    sharing, peft = LAYOUTS[layout]
    seen = {}
    for role in ROLES:
        folder = tmp_path / "saved" / role
        files = _files(folder)
        assert {"tokenizer.json", "tokenizer_config.json", "README.md"} <= files
        assert ("adapter_model.safetensors" in files) == (peft is not None) == ("model.safetensors" not in files)
        trainer.activate_role(role)
        expected = logits_of(trainer.model, ids)
        torch.testing.assert_close(logits_of(AutoModelForCausalLM.from_pretrained(folder), ids), expected)
        origin = model_dirs["llama" if sharing == "separate" and role == "solver" else "qwen3"]
        base = AutoModelForCausalLM.from_pretrained(origin)
        assert not torch.allclose(logits_of(base, ids), expected, atol=1e-3)  # it was trained
        if peft is not None:
            torch.testing.assert_close(logits_of(PeftModel.from_pretrained(base, folder), ids), expected)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(origin).get_vocab()
        assert tokenizer.chat_template == AutoTokenizer.from_pretrained(origin).chat_template
        seen[role] = expected, (folder / "README.md").read_text()
    if sharing != "shared" and seen["thinker"][0].shape == seen["solver"][0].shape:
        assert not torch.allclose(seen["thinker"][0], seen["solver"][0])
    origins = {role: model_dirs["llama" if sharing == "separate" and role == "solver" else "qwen3"] for role in ROLES}
    for role, (_, card) in seen.items():
        for other, origin in origins.items():
            assert f"| {other} | yes | {other} | {origin} | {'yes' if other == role else ''} |" in card
        assert f"# The {role} of a team of 2" in card and ", step 4." in card
        for line in (
            "learning_rate: 0.001",
            "credit: ccpo",
            f"policy_sharing: {sharing}",
            "schedule: alternate",
            "alternate_period: 1",
            f"- torch {torch.__version__}",
            "- trl 1.",
            "- ccpo ",
        ):
            assert line in card, line
        assert ("library_name: peft" in card) == (peft is not None)


@pytest.mark.parametrize("where", ["hub_token", "model_init_kwargs"])
def test_the_model_card_tells_no_token(where, model_dirs, tmp_path):
    secret = "hf_" + "secret" * 5
    options = {"hub_token": secret} if where == "hub_token" else {"model_init_kwargs": {"token": secret}}
    trainer = make_trainer(model_dirs, make_args(tmp_path / "run", **options))
    trainer.save_model(str(tmp_path / "saved"))
    for role in ROLES:
        assert secret not in (tmp_path / "saved" / role / "README.md").read_text()


@pytest.mark.parametrize("layout", ["adapters", "separate adapters"])
def test_merge_adapters_saves_whole_models_and_checkpoints_keep_adapters(layout, model_dirs, tmp_path):
    settings = {"merge_adapters": True, "save_strategy": "steps", "save_total_limit": 2}
    trainer = trained(model_dirs, tmp_path / "run", layout, **settings)
    before = weights_of(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(trainer, before)
    ids = torch.tensor([[5, 6, 7, 8]])
    for role in ROLES:
        folder = tmp_path / "saved" / role
        assert "model.safetensors" in _files(folder) and not any("adapter" in name for name in _files(folder))
        trainer.activate_role(role)
        merged = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(logits_of(merged, ids), logits_of(trainer.model, ids), atol=1e-4, rtol=1e-4)
        assert "library_name: transformers" in (folder / "README.md").read_text()
        checkpoint = tmp_path / "run" / "checkpoint-3" / role
        assert "adapter_model.safetensors" in _files(checkpoint) and "model.safetensors" not in _files(checkpoint)
        assert "library_name: peft" in (checkpoint / "README.md").read_text()
    sharing, peft = LAYOUTS[layout]
    args = make_args(tmp_path / "again", policy_sharing=sharing, max_steps=4, merge_adapters=True)
    again = make_trainer(model_dirs, args, peft_config=peft)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_same_weights(again, before)


def test_merge_adapters_of_a_model_with_more_embeddings_than_tokens(tmp_path):
    """As Qwen's: the merged model must keep them."""
    tokenizer = make_tokenizer("abcdefgh<>=0123456789/ ")
    make_model("qwen3", tokenizer, vocab_size=len(tokenizer) + 20).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = trained({"qwen3": str(tmp_path / "model")}, tmp_path / "run", "adapters", merge_adapters=True)
    trainer.save_model(str(tmp_path / "saved"))
    ids = torch.tensor([[5, 6, 7, 8]])
    for role in ROLES:
        trainer.activate_role(role)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / role)
        torch.testing.assert_close(logits_of(merged, ids), logits_of(trainer.model, ids), atol=1e-4, rtol=1e-4)


def test_merge_adapters_of_an_object_from_nowhere_is_refused_before_training(tmp_path):
    tokenizer = make_tokenizer("abcdefgh<>=0123456789/ ")
    args = make_args(tmp_path, policy_sharing="adapters", merge_adapters=True)
    with pytest.raises(ValueError, match="merge_adapters"):
        make_trainer({}, args, model=make_model("qwen3", tokenizer), processing_class=tokenizer, peft_config=LORA)


# ---- The Hub ----


@pytest.fixture
def hub(monkeypatch):
    """
    The Hub, which does not exist here: of its client, the two methods that `Trainer` calls are replaced, and what
    an upload would contain is noted when it is asked for.
    """
    from transformers import trainer as trainer_module

    uploads = []

    class Repository(str):
        repo_id = "somebody/team"

    class Api:
        def create_repo(self, name, **kwargs):
            return Repository(f"https://hub/{name}")

        def upload_folder(self, *, folder_path, path_in_repo="", ignore_patterns=(), run_as_future=False, **kwargs):
            folder = Path(folder_path)
            ignored = [re.compile(re.escape(p).replace(r"\*", ".*")) for p in ignore_patterns]
            names = {name for name in _files(folder) if not any(p.match(name) for p in ignored)}
            defects = find_defects(folder) if MANIFEST in names else None
            texts = {name: (folder / name).read_text() for name in names if name.endswith("README.md")}
            uploads.append({"path": path_in_repo, "files": names, "defects": defects, "cards": texts, **kwargs})
            done = Future()
            done.set_result(None)
            return done if run_as_future else None

    monkeypatch.setattr(trainer_module, "hf_api", Api)
    return uploads


ROLE_FILES = {
    f"{role}/{name}" for role in ROLES for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md")
}


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_push_to_hub_uploads_both_roles(strategy, hub, model_dirs, tmp_path):
    options = {"push_to_hub": True, "hub_strategy": strategy, "hub_model_id": "somebody/team", "hub_always_push": True}
    trainer = make_trainer(model_dirs, make_args(tmp_path, max_steps=2, save_total_limit=1, **options))
    trainer.train()
    during, hub[:] = list(hub), []
    models = [upload for upload in during if not upload["path"]]
    saved = [upload for upload in during if upload["path"]]
    expected = {"end": [], "every_save": [], "checkpoint": ["last-checkpoint"] * 2}
    assert [upload["path"] for upload in saved] == expected.get(strategy, ["checkpoint-1", "checkpoint-2"])
    assert len(models) == (0 if strategy == "end" else 2)
    for upload in models:
        assert ROLE_FILES | {"README.md"} <= upload["files"] and not any("checkpoint-" in n for n in upload["files"])
    for upload in saved:
        assert ROLE_FILES | {MANIFEST, "optimizer.pt", "run_state_0.pth", "trainer_state.json"} <= upload["files"]
        assert upload["defects"] == []
    trainer.push_to_hub()
    (end,) = hub
    assert ROLE_FILES | {"README.md"} <= end["files"] and end["commit_message"] == "End of training"
    assert not any("checkpoint-" in name for name in end["files"])
    assert 'from_pretrained("somebody/team", subfolder="solver")' in end["cards"]["solver/README.md"]
    assert not find_defects(tmp_path / "checkpoint-2")
    last = {name: load_file(tmp_path / name / "model.safetensors") for name in ROLES}
    for role, weights in last.items():
        own = trainer.model.policies[role].state_dict()
        assert all(torch.equal(value, own[name]) for name, value in weights.items())


# ---- A scheme that learns in the course of the run ----


class RunningCredit(SharedCredit):
    """Shared credit less the running mean of the outcomes, with a momentum that makes every batch count."""

    def __init__(self, outcome):
        super().__init__(outcome)
        self.mean, self.seen = torch.tensor(0.5), 0

    def allocate(self, outcomes):
        credit = super().allocate(outcomes)
        self.mean, self.seen = 0.7 * self.mean + 0.3 * outcomes.team.mean().cpu(), self.seen + 1
        return {role: values * (1 + self.mean) * self.seen for role, values in credit.items()}

    def state_dict(self):
        return {"mean": self.mean, "seen": self.seen}

    def load_state_dict(self, state):
        self.mean, self.seen = state["mean"], state["seen"]


def test_an_allocators_running_statistics_are_resumed(model_dirs, tmp_path):
    credits = [RunningCredit(digit_outcome), RunningCredit(lambda completions, **kwargs: [1.0] * len(completions))]
    whole = make_trainer(model_dirs, make_args(tmp_path / "whole"), credits)
    whole.train()
    assert credits[0].seen == 3 and credits[0].mean != credits[1].mean
    for step in (1, 2, 3):
        again = [RunningCredit(digit_outcome), RunningCredit(lambda completions, **kwargs: [1.0] * len(completions))]
        trainer = make_trainer(model_dirs, make_args(tmp_path / f"again-{step}"), again)
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_weights(trainer, weights_of(whole))
        for one, two in zip(credits, again, strict=True):
            assert one.seen == two.seen and torch.equal(one.mean, two.mean)


# ---- Killed or stopped by another process ----


@pytest.fixture(scope="module")
def killed(processes):
    folder = finished(processes, "kill")
    return folder, json.loads((folder / "moments.json").read_text())


def test_a_save_has_the_moments_that_matter(killed):
    labels = killed[1]
    order = [next(i for i, label in enumerate(labels) if re.fullmatch(moment, label)) for moment in MOMENTS.values()]
    assert order == sorted(order) and order[-1] == len(labels) - 1


MOMENTS = {
    "nothing yet": r"os\.mkdir checkpoint-3.*",
    "half the thinker": r"half checkpoint-3/thinker/model\.safetensors",
    "thinker's weights only": r"os\.mkdir checkpoint-3/solver",
    "both models, no optimizer": r"before checkpoint-3/optimizer\.pt",
    "half the optimizer": r"half checkpoint-3/optimizer\.pt",
    "RNG state, no run state": r"before checkpoint-3/run_state_0\.pth",
    "run state": r"before checkpoint-3/trainer_state\.json",
    "half of trainer_state.json": r"half checkpoint-3/trainer_state\.json",
    "all but the manifest": r"open checkpoint-3/\.ccpo_checkpoint\.json\.\d+",
    "manifest without its name": r"os\.rename checkpoint-3/ccpo_checkpoint\.json",
    "manifest, no rotation": r"os\.remove checkpoint-2/ccpo_checkpoint\.json",
    "rotation without manifest": r"shutil\.rmtree checkpoint-2",
    "rotation half-way": r"os\.rmdir checkpoint-2",
    "rotated": "end",
}


def test_killed_at_any_moment_of_a_save_the_last_complete_checkpoint_is_found_and_whole(killed, caplog):
    folder, labels = killed
    complete_from = labels.index(f"os.rename checkpoint-3/{MANIFEST}") + 1
    files = {step: _files(folder / str(step)) for step in (2, 3)}
    assert len(labels) > 40
    for i, label in enumerate(labels):
        run = folder / f"killed-{i}"
        caplog.clear()
        last = find_last_checkpoint(run)
        assert last == run / ("checkpoint-3" if i >= complete_from else "checkpoint-2"), label
        step = int(last.name[-1])
        assert _files(last) == files[step], label
        for role in ROLES:
            weights, expected = (load_file(f / role / "model.safetensors") for f in (last, folder / str(step)))
            assert all(torch.equal(weights[name], expected[name]) for name in expected), label
        half_written = step == 2 and (run / "checkpoint-3").exists()
        assert (f"{run}/checkpoint-3 ({MANIFEST} is missing" in warnings_in(caplog)) == half_written, label


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_weights_of_the_uninterrupted_one(moment, killed, model_dirs, caplog, tmp_path):
    folder, labels = killed
    i = next(i for i, label in enumerate(labels) if re.fullmatch(MOMENTS[moment], label))
    run = shutil.copytree(folder / f"killed-{i}", tmp_path / "run", copy_function=shutil.copy2)
    snapshots = Snapshots()
    trainer = make_trainer(model_dirs, make_args(run, save_total_limit=1), callbacks=[snapshots])
    trainer.train(resume_from_checkpoint=True)
    first = 3 if i > labels.index(f"os.rename checkpoint-3/{MANIFEST}") else 2
    assert list(snapshots.weights) == list(range(first + 1, WHOLE_STEPS + 1))  # the steps that it made
    assert_same_weights(trainer, torch.load(folder / "weights.pt"))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-5"]
    named = first == 2 and (folder / f"killed-{i}" / "checkpoint-3").exists()
    assert (f"{run}/checkpoint-3 (" in warnings_in(caplog)) == named


def test_sigterm_to_the_group_finishes_the_step_saves_and_exits_0(processes, model_dirs, tmp_path):
    process, folder = processes["stop"]
    wait_for(folder / "ready", process, folder / "log")
    os.killpg(process.pid, signal.SIGTERM)  # the verifier's workers too
    (folder / "sent").touch()
    finished(processes, "stop")
    result = json.loads((folder / "result.json").read_text())
    assert result["was_stopped"] and result["step"] == 3  # the step in the middle of which the signal came
    assert len(result["workers"]) == 2 and result["workers_after"] == result["workers"] and result["score"] == [1.0]
    assert [path.name for path in (folder / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert f"SIGTERM: saving checkpoint-3 in {folder / 'run'}" in (folder / "log").read_text()

    def run(args, resume):
        trainer = make_trainer(model_dirs, args, CounterfactualCredit(MathVerifier(timeout=60, num_workers=2)))
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == WHOLE_STEPS and not trainer.was_stopped
        return trainer

    whole = run(make_args(tmp_path / "whole", save_strategy="no"), None)
    assert_same_weights(run(make_args(folder / "run", save_steps=100), True), weights_of(whole))


def test_sigterm_in_the_example_and_resume_true_on_its_command_line(processes, tmp_path, monkeypatch):
    folder = finished(processes, "example")
    last = find_last_checkpoint(folder / "run")
    assert 2 <= int(last.name.split("-")[1]) < int(EXAMPLE["--max_steps"])
    data = folder.parent / "train.jsonl"
    monkeypatch.chdir(ROOT)
    train.main([*example_arguments(data, tmp_path / "whole"), "--save_strategy", "no"])
    train.main([*example_arguments(data, folder / "run"), "--resume_from_checkpoint", "true"])
    for role in ROLES:
        ours, theirs = (load_file(f / role / "model.safetensors") for f in (folder / "run", tmp_path / "whole"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


if __name__ == "__main__":
    {"kill": main_kill, "stop": main_saver}[sys.argv[1]](json.loads(sys.argv[2]))
