"""Whether an answer is right: math-verify behind one call, bounded in time, in worker processes of its own."""

import json
import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from . import _verifier_worker as worker


logger = logging.getLogger(__name__)

STARTUP_SECONDS = 120.0  # for a worker to import math-verify
STARTUP_ATTEMPTS = 3
GRACE_SECONDS = 2.0  # past a pair's time, after which a worker whose own timer did not end it is killed
PIPE_BYTES = 4096  # what every pipe takes without blocking
MAX_SENT = 16  # jobs sent to a worker and not yet done
MAX_WORKERS = 8

# The package's own folder must not be on a worker's path: its `config.py` or `data.py` would shadow others' modules.
_BOOTSTRAP = "import sys; sys.path[:] = sys.argv[3:]; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"


@dataclass(eq=False)
class _Job:
    """One distinct pair: what the worker is sent, and what became of it."""

    line: bytes
    gold_read: bool = False
    crashes: int = 0
    score: float | None = None

    def fail(self):
        """The pair ended its worker: at fault is the prediction, if the gold answer had been read by then."""
        self.score = -1.0 if self.gold_read else math.nan


class _Worker:
    """A child interpreter and the jobs it has been sent; the first of them is the one it is on."""

    def __init__(self, timeout):
        package = Path(__file__).resolve().parent
        path = [entry for entry in sys.path if entry and Path(entry).resolve() != package]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, worker.__file__, str(timeout), *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy orders by hash here and there
        )
        self.timeout = timeout
        self.ready = False
        self.killed = False
        self.error = b""
        self.jobs = deque()
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def _restart_clock(self):
        self.deadline = time.monotonic() + self.timeout + GRACE_SECONDS if self.jobs else math.inf

    def feed(self, queue, share):
        """Sends up to `share` jobs, and only while they fit into the pipe: a hung worker must not block the write."""
        while self.ready and queue and len(self.jobs) < share:
            if self.jobs and sum(len(job.line) for job in self.jobs) + len(queue[0].line) > PIPE_BYTES:
                return
            self.jobs.append(queue.popleft())
            if len(self.jobs) == 1:
                self._restart_clock()
            try:
                self.process.stdin.write(self.jobs[-1].line)
            except BrokenPipeError:  # dead: the end of its output says so to `_Pool.run`, which gives the job back
                return

    def receive(self, data):
        """Takes in what the worker wrote and returns the number of jobs that are done."""
        if not self.ready:
            if self.error or data[:1] == worker.ERROR:
                self.error += data
                return 0
            self.ready, data = True, data[1:]
            self._restart_clock()
        n_done = 0
        for code in (data[i : i + 1] for i in range(len(data))):
            if code == worker.GOLD_READ:
                self.jobs[0].gold_read = True
                continue
            self.jobs.popleft().score = {worker.RIGHT: 1.0, worker.WRONG: -1.0, worker.GOLD_UNREADABLE: math.nan}[code]
            self._restart_clock()
            n_done += 1
        return n_done

    def kill(self):
        self.killed = True
        self.process.kill()

    def close(self):
        """Ends the process and returns its exit status."""
        self.process.stdin.close()
        self.process.stdout.close()
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def forget(self):
        """In a forked child: lets go of the parent's process without touching it."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.returncode = 0


class _Pool:
    """The workers of one verifier, started when there is work, replaced when they hang or die."""

    def __init__(self, timeout, num_workers):
        self.timeout = timeout
        self.num_workers = num_workers
        self.lock = threading.Lock()
        self.workers = []
        _POOLS.add(self)

    def run(self, jobs):
        """Sets the score of every job. One call at a time: each uses all the workers."""
        with self.lock:
            try:
                self._run(jobs)
            except BaseException:
                self.close()  # replies still under way would be taken for those of the next call
                raise

    def _run(self, jobs):
        queue, n_open = deque(jobs), len(jobs)
        n_timeouts = n_crashes = n_failed_starts = 0
        with selectors.DefaultSelector() as selector:
            for member in self.workers:
                selector.register(member.process.stdout, selectors.EVENT_READ, member)
            while n_open:
                while len(self.workers) < min(self.num_workers, n_open):
                    self.workers.append(_Worker(self.timeout))
                    selector.register(self.workers[-1].process.stdout, selectors.EVENT_READ, self.workers[-1])
                share = min(MAX_SENT, 1 + len(queue) // (2 * self.num_workers))  # little at the end: nobody waits
                for member in self.workers:
                    member.feed(queue, share)
                wait = min(member.deadline for member in self.workers) - time.monotonic()
                for key, _ in selector.select(max(wait, 0.0)):
                    member = key.data
                    data = os.read(key.fd, 4096)
                    if data:
                        n_open -= member.receive(data)
                        continue
                    selector.unregister(key.fileobj)
                    self.workers.remove(member)
                    timed_out = member.close() == -signal.SIGALRM or member.killed
                    if not member.ready:
                        n_failed_starts += 1
                        if member.error or n_failed_starts == STARTUP_ATTEMPTS:
                            reason = member.error[1:].decode("utf-8", "replace") or "it died while starting"
                            raise RuntimeError(f"MathVerifier cannot start a worker process: {reason}")
                    elif member.jobs:
                        # A crash may be somebody else's doing (an out-of-memory killer): only a pair that ends two
                        # workers is at fault. A pair that is out of time had its chance.
                        job = member.jobs[0]
                        job.crashes += 1
                        if timed_out or job.crashes == 2:
                            job.fail()
                            n_open -= 1
                            member.jobs.popleft()
                        else:
                            job.gold_read = False
                        n_timeouts += timed_out
                        n_crashes += not timed_out
                        queue.extendleft(reversed(member.jobs))
                now = time.monotonic()
                for member in self.workers:
                    if member.deadline < now:
                        member.kill()
        if n_timeouts or n_crashes:
            logger.warning(
                "MathVerifier: %d of %d distinct pairs ran out of %g s; %d more times a worker died; all were replaced.",
                n_timeouts,
                len(jobs),
                self.timeout,
                n_crashes,
            )

    def close(self):
        while self.workers:
            self.workers.pop().close()

    def forget(self):
        self.lock = threading.Lock()  # a thread of the parent may have held it
        while self.workers:
            self.workers.pop().forget()


_POOLS = weakref.WeakSet()


def _forget_pools():
    for pool in list(_POOLS):
        pool.forget()


# Parent and child must not talk to the same workers, and a worker ends only when nobody holds the other end of its input.
os.register_at_fork(after_in_child=_forget_pools)


def _default_num_workers():
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _text_of(completion):
    """The text of a completion: a string, or a conversation, of which the last message counts."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):  # the parts of a multimodal message
        content = "".join(part.get("text") or "" for part in content)
    return content or ""


class MathVerifier:
    r"""
    Scores answers to problems with a known answer, and is itself a TRL reward function named `math_verifier`.

    A pair is +1.0 if math-verify finds the prediction equal to the gold answer, -1.0 if not or if the prediction has no
    readable answer or cannot be compared in time, and NaN if the gold answer cannot be read: what is unknown is not scored.

    - A *gold* answer may be the bare answer (`72`, `1,200`, `\frac{1}{2}`, `\text{Evelyn}`, `$x$`), a GSM8K solution (what
      follows its closing `####` counts) or a solution with a `\boxed{}` (the last balanced one counts).
    - Of a *prediction*, the last balanced `\boxed{}` counts; without one, the whole text if it is a bare answer itself;
      else an anchored answer as in TRL's `accuracy_reward` ("the final answer is $5$").
    - Of longer texts the last 100,000 characters are read; an answer of more than 2,000 is unreadable.

    Pairs are judged in child interpreters that know math-verify only and are ended by the kernel when a pair is out of time
    (or needs more than 4 GiB), then replaced. Hence it works on any thread, in data workers and in forked processes, and
    no text is ever evaluated as code. Distinct pairs of one call are judged once, and two plain integers are compared here.
    Calls from several threads take turns. Needs a POSIX system.

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds for a pair. Reading the gold answer may take half of it.
        num_workers (`int`, *optional*):
            Number of worker processes. Defaults to the number of available CPUs divided by the number of processes of the
            launcher on this machine (`LOCAL_WORLD_SIZE`), at most 8. They start with the first call that needs them.

    Example:
        ```python
        >>> MathVerifier().score(gold=["72", r"\frac{1}{2}", "$"], prediction=[r"so \boxed{72}", "0.4", "1"])
        [1.0, -1.0, nan]
        ```
    """

    __name__ = "math_verifier"

    def __init__(self, timeout: float = 5.0, num_workers: int | None = None):
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}.")
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, or None for the default, got {num_workers}.")
        self.timeout = timeout
        self.num_workers = num_workers
        self._pool = _Pool(timeout, num_workers or _default_num_workers())
        weakref.finalize(self, self._pool.close)

    def __getstate__(self):
        return {"timeout": self.timeout, "num_workers": self.num_workers}

    def __setstate__(self, state):
        self.__init__(**state)

    def score(self, *, gold: list[str], prediction: list[str]) -> list[float]:
        """
        Scores predictions against gold answers.

        Args:
            gold (`list[str]`):
                Gold answers. `None` stands for a missing one and gives NaN.
            prediction (`list[str]`):
                What the model wrote, as long as `gold`.

        Returns:
            `list[float]`: +1.0 (right), -1.0 (wrong or unreadable) or NaN (unreadable gold answer).

        Raises:
            `ValueError`: If the arguments are no lists of strings of one length.
            `RuntimeError`: If no worker process can be started, for instance because math-verify is not installed.
        """
        _check_texts("gold", gold, allow_none=True)
        _check_texts("prediction", prediction)
        if len(gold) != len(prediction):
            raise ValueError(
                f"gold and prediction must be of one length, got {len(gold)} gold answers and {len(prediction)} predictions."
            )
        golds = {text: worker.extract_gold(text) for text in set(gold) if text is not None}
        scores, jobs = [], {}  # a score, or the job that will have it
        for gold_text, text in zip(gold, prediction, strict=True):
            if gold_text is None:
                scores.append(math.nan)
                continue
            reference = golds[gold_text]
            answer = reference if text.strip() == gold_text.strip() else worker.extract_prediction(text)
            integers = worker.plain_integer(*reference), worker.plain_integer(*answer)
            if None not in integers:
                scores.append(1.0 if integers[0] == integers[1] else -1.0)
                continue
            if (reference, answer) not in jobs:
                jobs[reference, answer] = _Job(json.dumps([*reference, *answer]).encode() + b"\n")
            scores.append(jobs[reference, answer])
        if jobs:
            self._pool.run(list(jobs.values()))
        return [item.score if isinstance(item, _Job) else item for item in scores]

    def __call__(self, prompts=None, completions=None, solution=None, **kwargs) -> list[float]:
        """
        The TRL reward function: [`~MathVerifier.score`] of the completions against the dataset's `solution` column.

        Args:
            prompts (`list`, *optional*):
                Not used.
            completions (`list[str]` or `list[list[dict]]`):
                Completions, as text or as conversations, of which the last message counts.
            solution (`list[str]`):
                Gold answers, from the dataset's column of this name.
            **kwargs:
                Other columns and what TRL passes besides. Not used.

        Returns:
            `list[float]`: As in [`~MathVerifier.score`].
        """
        if completions is None:
            raise ValueError("math_verifier needs `completions`, a list of completions to score.")
        if solution is None:
            raise ValueError(
                "math_verifier needs the gold answers in a dataset column named `solution`, and there is none. Rename the "
                "column that holds them."
            )
        return self.score(gold=solution, prediction=[_text_of(completion) for completion in completions])


def _check_texts(name, texts, allow_none=False):
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"{name} must be a list of strings, got {type(texts).__name__}.")
    for index, text in enumerate(texts):
        if not isinstance(text, str) and not (allow_none and text is None):
            raise ValueError(f"{name} must be a list of strings, got {type(text).__name__} at index {index}.")
