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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..team.answers import AnswerReader, check_pattern, gold_answer, plain_integer
from ..team.completions import completion_text
from .judging import worker

logger = logging.getLogger(__name__)

STARTUP_SECONDS, STARTUP_ATTEMPTS = 120.0, 3  # for a worker to import math-verify
GRACE_SECONDS = 2.0  # past a pair's time, after which a worker that its own timer did not end is killed
PIPE_BYTES = 4096  # what every pipe takes without blocking
MAX_WORKERS, MAX_SENT = 8, 16  # worker processes; jobs sent to one and not yet done

# The package's own folder must not be on a worker's path: its `config.py` or `data.py` would shadow others' modules.
_BOOTSTRAP = """
import sys
sys.path[:] = sys.argv[3:]
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("ccpo_judging", sys.argv[1])
sys.modules["ccpo_judging"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["ccpo_judging"])
from ccpo_judging.worker import main
main(float(sys.argv[2]))
"""
_SCORES = {worker.RIGHT: 1.0, worker.WRONG: -1.0, worker.GOLD_UNREADABLE: math.nan}


@dataclass(eq=False)
class _Job:
    """One distinct pair: what a worker is sent, and what became of it."""

    line: bytes
    gold_read: bool = False
    crashes: int = 0
    score: float | None = None


class _Worker:
    """A child interpreter and the jobs it has been sent, of which it is on the first."""

    def __init__(self, timeout):
        package = Path(__file__).resolve().parents[1]
        path = [entry for entry in sys.path if entry and Path(entry).resolve() != package]
        command = [sys.executable, "-c", _BOOTSTRAP, str(Path(worker.__file__).with_name("__init__.py"))]
        self.process = subprocess.Popen(
            [*command, str(timeout), *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy orders by hash here and there
        )
        self.timeout = timeout
        self.ready = self.killed = False
        self.error, self.jobs = b"", deque()
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
            line = memoryview(self.jobs[-1].line)
            try:
                while line:  # a signal may cut a write short
                    line = line[self.process.stdin.write(line) :]
            except BrokenPipeError:  # dead: the pool sees the end of its output and takes the job back
                return

    def receive(self, data):
        """Takes in what the worker wrote and returns how many jobs are done."""
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
            self.jobs.popleft().score = _SCORES[code]
            self._restart_clock()
            n_done += 1
        return n_done

    def close(self, is_ours=True):
        """Ends the process and returns its exit status; in a forked child, lets go of what is the parent's process."""
        self.process.stdin.close()
        self.process.stdout.close()
        if not is_ours:
            self.process.returncode = 0
        elif self.process.poll() is None:
            self.process.kill()
        return self.process.wait()


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
                with selectors.DefaultSelector() as selector:
                    self._run(jobs, selector)
            except BaseException:
                self.close()  # replies still under way would be taken for those of the next call
                raise

    def _run(self, jobs, selector):
        queue, n_open = deque(jobs), len(jobs)
        n_timeouts = n_crashes = n_failed_starts = 0
        for member in self.workers:
            selector.register(member.process.stdout, selectors.EVENT_READ, member)
        while n_open:
            while len(self.workers) < min(self.num_workers, n_open):
                self.workers.append(_Worker(self.timeout))
                selector.register(self.workers[-1].process.stdout, selectors.EVENT_READ, self.workers[-1])
            share = min(MAX_SENT, 1 + len(queue) // (2 * self.num_workers))  # few towards the end: nobody idles
            for member in self.workers:
                member.feed(queue, share)
            wait = min(member.deadline for member in self.workers) - time.monotonic()
            for key, _ in selector.select(max(wait, 0.0)):
                member, data = key.data, os.read(key.fd, 4096)
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
                    continue
                n_timeouts, n_crashes = n_timeouts + timed_out, n_crashes + (not timed_out)
                n_open -= _settle(member.jobs, timed_out)
                queue.extendleft(reversed(member.jobs))
            for member in self.workers:
                if member.deadline < time.monotonic():
                    member.killed = True
                    member.process.kill()
        if n_timeouts or n_crashes:
            counts = (n_timeouts, len(jobs), self.timeout, n_crashes)
            logger.warning("MathVerifier: %d of %d distinct pairs took over %g s; %d workers died otherwise.", *counts)

    def close(self, is_ours=True):
        while self.workers:
            self.workers.pop().close(is_ours)


def _settle(jobs, timed_out):
    """Scores the pair that a dead worker was on, if the pair is at fault. Returns how many jobs that settles."""
    if jobs:
        jobs[0].crashes += 1
        # A crash may be somebody else's doing (memory ran short): it takes two to blame the pair.
        if timed_out or jobs[0].crashes == 2:
            job = jobs.popleft()
            job.score = -1.0 if job.gold_read else math.nan  # the gold answer's own fault if it was not read by then
            return 1
        jobs[0].gold_read = False
    return 0


_POOLS = weakref.WeakSet()  # of this process


def _leave_workers_to_parent():
    for pool in list(_POOLS):
        pool.lock = threading.Lock()  # a thread of the parent may have held it
        pool.close(is_ours=False)


if hasattr(os, "register_at_fork"):  # a forked child must not talk to its parent's workers, nor keep their input open
    os.register_at_fork(after_in_child=_leave_workers_to_parent)


def _texts(name, texts, kinds):
    """The texts as a list, or an error that names the argument."""
    if isinstance(texts, (str, bytes, dict)) or not (hasattr(texts, "__len__") and hasattr(texts, "__getitem__")):
        raise ValueError(f"{name} must be a list of strings, got {type(texts).__name__} {texts!r:.80}.")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, kinds):
            raise ValueError(f"{name} must be a list of strings, got {type(text).__name__} {text!r:.80}.")
    return texts


def _default_num_workers():
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class MathVerifier:
    r"""
    Scores answers to problems with a known answer, and is itself a TRL reward function named `math_verifier`.

    A pair is +1.0 if math-verify finds the prediction equal to the gold answer; -1.0 if not, or if the prediction has
    no readable answer or takes too long; NaN if the gold answer cannot be read: what is unknown is not scored.

    - *Gold* answers are bare (`72`, `1,200`, `\frac{1}{2}`, `\text{Evelyn}`, `$x$`), GSM8K solutions (what follows the
      closing `####` counts) or solutions with boxes (the last one counts, or the last that form one answer).
    - Of a *prediction* the last `\boxed{}` that closes counts, or the last boxes that form one answer; else the
      last phrase that states an answer (`#### 34`, `Answer: 34`, "the answer is 34", `<answer>34</answer>`); else the
      whole text if it is a bare answer itself. See [`~ccpo.team.answers.AnswerReader`].
    - Of long texts the last 100,000 characters are read. An answer of more than 2,000 is unreadable.

    Pairs are judged in child interpreters that know math-verify only; one that takes too long, or dies, is replaced.
    Hence this works on any thread, in daemonic data workers and after a fork, and no text is ever evaluated as code.
    Equal pairs of a call are judged once, two plain integers right here, and calls from several threads take turns.

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds for a pair, of which reading the gold answer may take half.
        num_workers (`int`, *optional*):
            Worker processes, started when first needed. Defaults to the CPUs available per process of the launcher
            (`LOCAL_WORLD_SIZE`), at most 8.
        answer_pattern (`str`, *optional*):
            Where a prompt of your own asks for the answer: a regular expression whose one group is the answer, such as
            `"RESULT = (.+)"`. It is read instead of the built-in phrases, before any box.

    Attributes:
        reader ([`~ccpo.team.answers.AnswerReader`]): finds the answer's place; the leak guard uses it too.

    Example:
        ```python
        >>> MathVerifier().score(gold=["72", r"\frac{1}{2}", "x +"], prediction=[r"so \boxed{72}", "0.4", "1"])
        [1.0, -1.0, nan]
        ```
    """

    __name__ = "math_verifier"

    def __init__(self, timeout: float = 5.0, num_workers: int | None = None, answer_pattern: str | None = None):
        if os.name != "posix":
            raise RuntimeError(f"MathVerifier needs a POSIX system: timers, pipes and forks. This one is {os.name!r}.")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}.")
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, or None for the default, got {num_workers}.")
        if answer_pattern is not None:
            check_pattern("answer_pattern", answer_pattern)
        self.timeout = timeout
        self.num_workers = num_workers
        self.reader = AnswerReader(answer_pattern)
        self._pool = _Pool(timeout, num_workers or _default_num_workers())
        weakref.finalize(self, self._pool.close)

    def __getstate__(self):  # without the workers
        return {"timeout": self.timeout, "num_workers": self.num_workers, "answer_pattern": self.reader.pattern}

    def __setstate__(self, state):
        self.__init__(**state)

    def score(self, *, gold: Sequence[str | None], prediction: Sequence[str]) -> list[float]:
        """
        Scores predictions against gold answers.

        Args:
            gold (`Sequence[str]`):
                Gold answers, a list or a column of a dataset; `None` stands for a missing one and gives NaN.
            prediction (`Sequence[str]`):
                What the model wrote, as many.

        Returns:
            `list[float]`: +1.0, -1.0 or NaN each. Raises a `RuntimeError` if no worker can be started.
        """
        gold = _texts("gold", gold, (str, type(None)))
        prediction = _texts("prediction", prediction, str)
        if len(gold) != len(prediction):
            raise ValueError(f"gold and prediction must be as long, got {len(gold)} and {len(prediction)} texts.")
        references = {text: gold_answer(text) for text in set(gold) if text is not None}
        pairs = []
        for gold_text, text in zip(gold, prediction, strict=True):
            reference = references.get(gold_text)
            is_gold = self.reader.pattern is None and gold_text is not None and text.strip() == gold_text.strip()
            pairs.append((reference, reference if is_gold else self.reader.extract(text)))
        return self._judge(pairs)

    def _judge(self, pairs):
        """Scores pairs of answers, `(gold, answer)`; `None` stands for a missing one."""
        results, jobs = [], {}  # a result is a score, or the job that will have it
        for gold, answer in pairs:
            if gold is None:
                results.append(math.nan)
                continue
            integers = plain_integer(gold), plain_integer(answer)
            if None not in integers:
                results.append(1.0 if integers[0] == integers[1] else -1.0)
                continue
            if (gold, answer) not in jobs:
                jobs[gold, answer] = _Job(json.dumps([gold, answer or ""]).encode() + b"\n")
            results.append(jobs[gold, answer])
        if jobs:
            self._pool.run(list(jobs.values()))
        return [result.score if isinstance(result, _Job) else result for result in results]

    def extract(self, text: str) -> str | None:
        """The answer that a prediction gives, as it stands there; `None` where the text gives none."""
        return self.reader.extract(text)

    def equal(self, first: str, second: str) -> bool:
        """
        Whether two answers, as [`extract`] gives them, are the same. Not symmetric in everything (the first is taken
        as the gold answer): ask both ways for either. `False` where one of them cannot be read or takes too long.
        """
        return self.equal_pairs([(first, second)])[0]

    def equal_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """[`equal`] of many pairs at once, which all the workers share."""
        return [score == 1.0 for score in self._judge(pairs)]

    def __call__(self, prompts=None, completions=None, solution=None, **kwargs) -> list[float]:
        """TRL's reward function signature: scores the completions (text or messages) against the column `solution`."""
        if completions is None or solution is None:
            missing = "completions" if completions is None else "solution"
            raise ValueError(f"math_verifier got no `{missing}`. The gold answers are to be in a column `solution`.")
        return self.score(gold=solution, prediction=[completion_text(completion) for completion in completions])
