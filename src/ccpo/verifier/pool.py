"""A pool of child processes that judge pairs of answers. A process that hangs or dies is replaced."""

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

from .judging import worker

logger = logging.getLogger(__name__)

STARTUP_SECONDS, STARTUP_ATTEMPTS = 120.0, 3  # a worker imports math-verify when it starts
# A worker ends itself by a timer if a pair takes too long. If it does not, it is killed this much later.
GRACE_SECONDS = 2.0
PIPE_BYTES = 4096  # every pipe takes this many bytes without blocking
MAX_SENT = 16  # the most jobs that a worker has at a time

# The package's own folder must not be on a worker's path, or else its `data.py` would hide a module of that name.
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
class Job:
    """One pair of answers to judge, with its score once it is known."""

    line: bytes
    gold_read: bool = False
    crashes: int = 0
    score: float | None = None


class _Worker:
    """A child process and the jobs that it has been sent. It works on the first of them."""

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
            env={**os.environ, "PYTHONHASHSEED": "0"},  # some results of SymPy depend on the order of hashes
        )
        self.timeout = timeout
        self.ready = self.killed = False
        self.error, self.jobs = b"", deque()
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def _restart_clock(self):
        self.deadline = time.monotonic() + self.timeout + GRACE_SECONDS if self.jobs else math.inf

    def feed(self, queue, share):
        """Send up to `share` jobs, as long as they fit into the pipe, so that a worker that hangs blocks no write."""
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
            except BrokenPipeError:  # it is dead; the pool sees the end of its output and takes the job back
                return

    def receive(self, data):
        """Read what the worker wrote, set the scores, and return how many jobs are done."""
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
        """End the process and return its exit status. In a forked child, only close the pipes: it is the parent's."""
        self.process.stdin.close()
        self.process.stdout.close()
        if not is_ours:
            self.process.returncode = 0
        elif self.process.poll() is None:
            self.process.kill()
        return self.process.wait()


class Pool:
    """The workers of one verifier. They are started when there is work, and replaced when they hang or die."""

    def __init__(self, timeout, num_workers):
        self.timeout = timeout
        self.num_workers = num_workers
        self.lock = threading.Lock()
        self.workers = []
        _POOLS.add(self)

    def run(self, jobs):
        """Set the score of every job. Calls take turns, because each uses all the workers."""
        with self.lock:
            try:
                with selectors.DefaultSelector() as selector:
                    self._run(jobs, selector)
            except BaseException:
                self.close()  # or else late replies would be taken for those of the next call
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
            share = min(MAX_SENT, 1 + len(queue) // (2 * self.num_workers))  # few near the end, so that all have work
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
                        reason = member.error[1:].decode("utf-8", "replace") or "it ended while it was starting"
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
            logger.warning(
                "MathVerifier: %d of %d different pairs of answers took longer than %g s; %d workers ended "
                "for other reasons.",
                *counts,
            )

    def close(self, is_ours=True):
        while self.workers:
            self.workers.pop().close(is_ours)


def _settle(jobs, timed_out):
    """Score the pair on which a worker died, if the pair is the cause. Returns how many jobs this completes."""
    if jobs:
        jobs[0].crashes += 1
        # One crash may have another cause, such as too little memory. After two, the pair is taken for the cause.
        if timed_out or jobs[0].crashes == 2:
            job = jobs.popleft()
            job.score = -1.0 if job.gold_read else math.nan  # if the gold answer was not read, it is the cause
            return 1
        jobs[0].gold_read = False
    return 0


_POOLS = weakref.WeakSet()  # of this process


def _leave_workers_to_parent():
    for pool in list(_POOLS):
        pool.lock = threading.Lock()  # a thread of the parent may hold the old one
        pool.close(is_ours=False)


if hasattr(os, "register_at_fork"):  # a forked child must not talk to its parent's workers, nor keep their input open
    os.register_at_fork(after_in_child=_leave_workers_to_parent)
