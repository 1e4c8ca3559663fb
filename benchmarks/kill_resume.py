r"""
Whether a run that is killed at random moments, and resumed each time, ends like a run that was never killed.

    python benchmarks/kill_resume.py [--kills 20] [--steps 80] [--seed 0]

Two tiny random policies are trained on CPU with CCPO and the alternate schedule. Each batch is used twice. There is a
checkpoint at every step, and `save_total_limit` is 2.

The first run is not interrupted. The second run has another `output_dir`. Each of its processes gets SIGKILL, and the
next process resumes from the last complete checkpoint, or starts anew if there is none yet. After `--kills` kills,
the last process may finish. The moments of the kills are uniform over the time in which a process trains. Every other
kill also waits for a moment that is uniform over the next save. How long a process may live depends on the steps and
the kills that are left, so the kills spread over the run. Every process is a fork of this one, which has imported
everything and trains nothing.

A kill is survived if two things hold. The next process begins at the last checkpoint that was complete, and not
before one that was reported as saved. And the weights and the optimizer state have the checksum of the uninterrupted
run, there and after each step.

Writes `outputs/bench/kill_resume.json`:

- `kills` and `survived`
- `half_written`: kills that left a checkpoint incomplete while it was written
- `half_deleted`: kills that left a checkpoint incomplete while it was deleted
- `weights_equal`, `optimizer_equal` and `log_equal`: whether the last checkpoints of both runs are equal, bit for bit
  (the log without clock entries)

The exit status is 1 if one of the last three is false or a kill was not survived. It is also 1 if a process fails to
resume at all; then the process's output is printed.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.utils import logging as hf_logging

from ccpo import CounterfactualCredit, MultiAgentGRPOConfig, MultiAgentGRPOTrainer
from ccpo.report import write_json
from ccpo.tasks.tiny import build_tiny_model
from ccpo.training.checkpoints import find_defects

ROLES = ("thinker", "solver")
CLOCK = ("time", "_second", "flos")  # what differs by the clock, in the log's keys
PATIENCE = 300  # seconds without a sign of life after which a process counts as stuck
FORK = multiprocessing.get_context("fork")


# ---- The process that trains ----


class Herald(TrainerCallback):
    """Tell the parent where the training is: `(event, step, checksum of weights and optimizer state)`."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.pipe.send(("begin", state.global_step, checksum(model, optimizer)))

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.pipe.send(("step", state.global_step, checksum(model, optimizer)))

    def on_save(self, args, state, control, **kwargs):
        self.pipe.send(("saved", state.global_step, None))


def checksum(model, optimizer) -> str:
    """SHA-256 of the names and bytes of all weights, and of the optimizer's state."""
    digest = hashlib.sha256()
    for name, value in leaves({"weights": dict(model.named_parameters()), "optimizer": optimizer.state_dict()}):
        digest.update(repr(name).encode() + value)
    return digest.hexdigest()


def leaves(value: Any, name: tuple = ()) -> Iterator[tuple[tuple, bytes]]:
    """The leaves of nested containers as `(path, bytes)`, so that equal means equal to the bit."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*name, key))
    elif isinstance(value, torch.Tensor):
        yield (*name, str(value.dtype), *value.shape), value.detach().contiguous().numpy().tobytes()
    else:
        yield name, repr(value).encode()


def outcome(prompts, completions, **kwargs) -> list[float]:
    """A judge whom random models please about half of the time: an odd number of distinct characters is right."""
    return [1.0 if len(set(text)) % 2 else -1.0 for text in completions]


def train(pipe, output: Path, log: Path, models: dict[str, str], steps: int, seed: int, resume: bool) -> None:
    """What a process does: train to the end, or as far as it gets. What it prints goes to `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    problems = {"prompt": [f"{i}+1=" for i in range(6)], "solution": [str(i + 1) for i in range(6)]}
    args = MultiAgentGRPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=4,
        num_generations=4,
        steps_per_generation=2,
        num_iterations=2,
        schedule="alternate",
        alternate_period=1,  # a block is 2 x 2 steps
        max_completion_length=8,
        learning_rate=1e-3,
        weight_decay=0.1,
        max_steps=steps,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        logging_steps=1,
        log_completions=False,
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = MultiAgentGRPOTrainer(
        models, CounterfactualCredit(outcome), args, Dataset.from_dict(problems), callbacks=[Herald(pipe)]
    )
    trainer.train(resume_from_checkpoint=resume)


# ---- The process that kills ----


class Attempt:
    """
    One process that trains, watched until it ends or is killed.

    Attributes:
        events (`list[tuple]`): what it told and when: `(event, step, checksum, seconds)`.
        killed (`bool`): whether it was killed; otherwise it came to its end.
        log (`str`): what it printed.
    """

    def __init__(
        self,
        output: Path,
        options: argparse.Namespace,
        models: dict[str, str],
        lifetime: float = math.inf,
        into_save: float | None = None,
    ):
        """
        Run it. It is killed `lifetime` seconds after its training began, or, given `into_save`, that many seconds
        into the first save after that moment; after its last step but one at the latest.
        """
        log = output.with_suffix(".log")
        resume = last_complete(output) > 0
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(
            target=train, args=(sender, output, log, models, options.steps, options.seed, resume), daemon=True
        )
        process.start()
        sender.close()
        self.events, self.killed = [], False
        due = deadline = math.inf  # the moment after whose next step a save is to be cut short; the kill's moment
        while not self.killed:
            left = deadline - time.perf_counter()
            if not receiver.poll(max(0.0, min(left, PATIENCE))):
                if left > PATIENCE:
                    process.kill()
                    raise RuntimeError(f"a process gave no sign of life for {PATIENCE} s; it printed:\n{tail(log)}")
                self.killed = True
                break
            try:
                event = receiver.recv()
            except EOFError:
                break
            now = time.perf_counter()
            self.events.append((*event, now))
            if event[0] == "begin":
                due = now + lifetime
                deadline = due if into_save is None else math.inf
            elif event[0] == "step" and into_save is not None and now >= due:
                deadline = min(deadline, now + into_save)
            if event[0] == "step" and event[1] >= options.steps - 1 and lifetime < math.inf:
                deadline = now  # not to come to its end
        if self.killed:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        while receiver.poll():  # what it told between the decision and its death
            try:
                self.events.append((*receiver.recv(), time.perf_counter()))
            except EOFError:
                break
        receiver.close()
        self.log = log.read_text()
        if process.exitcode != (-signal.SIGKILL if self.killed else 0):
            raise RuntimeError(f"a process ended with exit code {process.exitcode}; it printed:\n{tail(log)}")

    def steps(self, event: str) -> list[int]:
        return [step for name, step, *_ in self.events if name == event]

    def checksums(self) -> dict[int, str]:
        return {step: value for name, step, value, _ in self.events if name in ("begin", "step")}

    def seconds(self, start: str, end: str) -> float:
        """Mean time from an event of one kind to the next of another, or of the same."""
        waits, since = [], None
        for name, _, _, moment in self.events:
            if name == end and since is not None:
                waits.append(moment - since)
            since = moment if name == start else None if name == end else since
        return statistics.mean(waits)


def tail(log: Path) -> str:
    return "".join(log.read_text().splitlines(keepends=True)[-20:])


def checkpoints(output: Path) -> dict[int, Path]:
    """The checkpoint folders by step, whatever their state."""
    found = {re.fullmatch(r"checkpoint-(\d+)", path.name): path for path in output.glob("checkpoint-*")}
    return {int(match[1]): path for match, path in found.items() if match}


def last_complete(output: Path) -> int:
    """The step of the last complete checkpoint, 0 without one."""
    return max((step for step, folder in checkpoints(output).items() if not find_defects(folder)), default=0)


def defective(output: Path) -> dict[tuple, int]:
    """The checkpoints that are not complete: which they are and when they changed last, and their step."""
    found = {}
    for step, folder in checkpoints(output).items():
        if find_defects(folder):
            status = folder.stat()
            found[step, status.st_ino, status.st_mtime_ns] = step
    return found


def same(one: Any, two: Any) -> bool:
    return dict(leaves(one)) == dict(leaves(two))


def compare(reference: Path, resumed: Path, models: dict[str, str]) -> dict[str, bool]:
    """Bit by bit, the last checkpoints of two runs; an error if the training left a role where it was."""
    weights = {}
    for role in ROLES:
        one, two, before = (
            load_file(f"{folder}/model.safetensors") for folder in (reference / role, resumed / role, models[role])
        )
        if same(one, before):
            raise RuntimeError(f"the uninterrupted run did not train the {role}: equal weights would mean nothing")
        weights[role] = same(one, two)
    optimizers = (torch.load(folder / "optimizer.pt", weights_only=True) for folder in (reference, resumed))
    histories = []
    for folder in (reference, resumed):
        rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        histories.append([{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in rows])
    return {
        "weights_equal": all(weights.values()),
        "optimizer_equal": same(*optimizers),
        "log_equal": same(*histories),
    }


def kill_and_resume(output: Path, options, models: dict[str, str], reference: Attempt) -> dict[str, Any]:
    """Run with `options.kills` kills; counts of what they did."""
    rng, truth = random.Random(options.seed), reference.checksums()
    step_seconds, save_seconds = reference.seconds("step", "step"), reference.seconds("step", "saved")
    survived = half_written = half_deleted = passed_over = retrained = 0
    moments = []
    complete, saved = 0, 0  # the last complete checkpoint when the process died, and the last it said it had saved
    for kill in range(options.kills + 1):
        left = options.kills - kill
        lifetime = rng.uniform(0, 2 * (options.steps - complete) / (left + 1)) * step_seconds if left else math.inf
        into_save = rng.uniform(0, save_seconds) if left and kill % 2 else None
        before = defective(output)
        attempt = Attempt(output, options, models, lifetime, into_save)
        begun = attempt.steps("begin")[0]
        if kill:  # it is the process that goes on after a kill
            right = begun == complete >= saved
            right = right and all(truth[step] == value for step, value in attempt.checksums().items())
            survived += right
            if not right:
                print(f"kill {kill}: {saved=} {complete=} {begun=}, and after it the checksums of")
                print([step for step, value in attempt.checksums().items() if truth[step] != value], "differ")
        passed_over += "Passing over" in attempt.log
        if not left:
            break
        if not attempt.killed:
            raise RuntimeError(f"the run came to its end after {kill} kills: give more `--steps`")
        complete, saved = last_complete(output), max([saved, *attempt.steps("saved")])
        fresh = [step for key, step in defective(output).items() if key not in before]
        half_written += any(step > complete for step in fresh)
        half_deleted += any(step < complete for step in fresh)
        reached = max(attempt.steps("step"), default=begun)
        retrained += reached - complete
        moments.append({"step": reached, "complete": complete, "lifetime": lifetime, "into_save": into_save})
        progress = f"kill {kill + 1} of {options.kills}, at step {reached} of {options.steps}"
        print(progress, end="\r" if left > 1 else "\n", file=sys.stderr, flush=True)
    return {
        "kills": options.kills,
        "survived": survived,
        "half_written": half_written,
        "half_deleted": half_deleted,
        "passed_over": passed_over,
        "steps_trained_again": retrained,
        "step_seconds": step_seconds,
        "save_seconds": save_seconds,
        "moments": moments,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=None, help="of the run; by default four per kill, at least 8")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the moments of the kills")
    parser.add_argument("--output", default="outputs/bench/kill_resume.json")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error(f"--kills {options.kills}: there must be at least one")
    options.steps = max(8, 4 * options.kills) if options.steps is None else options.steps
    if options.steps < max(8, options.kills):
        parser.error(f"--steps {options.steps}: at least 8 (both roles train), and one per kill")
    start = time.perf_counter()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        models = {role: build_tiny_model(folder / role, seed) for seed, role in enumerate(ROLES)}
        reference = Attempt(folder / "uninterrupted", options, models)
        counts = kill_and_resume(folder / "killed", options, models, reference)
        last = f"checkpoint-{options.steps}"
        equal = compare(folder / "uninterrupted" / last, folder / "killed" / last, models)
    result = {**counts, **equal, "steps": options.steps, "seed": options.seed, "seconds": time.perf_counter() - start}

    print(f"{'kills by SIGKILL':44}{result['kills']:10}")
    print(f"{'  after which the run went on as it should':44}{result['survived']:10}")
    print(f"{'  that left a checkpoint half-written':44}{result['half_written']:10}")
    print(f"{'  that left one half-deleted':44}{result['half_deleted']:10}")
    print(f"{'steps of the run':44}{result['steps']:10}")
    print(f"{'  trained again':44}{result['steps_trained_again']:10}")
    print(f"{'seconds per step':44}{result['step_seconds']:10.3f}")
    print(f"{'  of which save':44}{result['save_seconds']:10.3f}")
    for name in ("weights", "optimizer", "log"):
        print(f"{f'last {name}, bit for bit':44}{'equal' if result[f'{name}_equal'] else 'DIFFERENT':>10}")
    print(f"{'seconds':44}{result['seconds']:10.1f}")
    print(write_json(result, options.output))
    if result["survived"] < result["kills"] or not all(equal.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
