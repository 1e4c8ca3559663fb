"""[`SaveCallback`]: when a run saves beyond `save_strategy`, and how a signal stops it."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

AGAIN = 1.0  # seconds after a Ctrl-C from which another one is a second one; a launcher passes one on twice


class SaveCallback(TrainerCallback):
    """
    When to save beyond `save_strategy`.

    On SIGTERM and on SIGINT, which is Ctrl-C: finish the optimizer step, save a checkpoint, stop. All processes do so
    if one got the signal. A second SIGINT, at least a second after the first, ends the process at once: it raises
    `KeyboardInterrupt`. (`transformers`' `enable_jit_checkpoint` saves between backward pass and optimizer step, and
    each process on its own: what it saves cannot be continued exactly.)

    At the last step of an epoch, or of the run: save when the epoch has ended, for a resumed run does not repeat what
    is logged and evaluated there.

    Attributes:
        stopped (`bool`): whether the run ended by a signal.
        deferred (`bool`): whether a checkpoint waits for the epoch's end.
        passes (`int`): how often the dataset has been begun.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.received = None  # the signal's name
        self.interrupted = None  # when the first SIGINT came
        self.stopped = self.deferred = False
        self.epoch_ended, self.passes = False, 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """
        Listen to the signals. Off the main thread Python cannot, and they keep their meaning; so does a SIGINT that is
        ignored, as in a job that a shell started in the background.
        """
        self.received = self.interrupted = None
        self.stopped = self.deferred = False
        self.passes = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [signal.SIGTERM, *([] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT])]
        previous = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, signum, frame):
        first, self.received = self.received is None, self.received or signal.Signals(signum).name
        if signum == signal.SIGINT:
            now = time.monotonic()
            if self.interrupted is not None and now - self.interrupted >= AGAIN:
                raise KeyboardInterrupt
            self.interrupted = now if self.interrupted is None else self.interrupted
        if first and self.accelerator.is_main_process:
            again = " Ctrl-C once more ends it at once, without." if signum == signal.SIGINT else ""
            _say(f"{self.received}: the run stops after this optimizer step, with a checkpoint.{again}")

    def agreed(self) -> bool:
        """Whether any process got a signal; to be asked by all."""
        received = torch.tensor([float(self.received is not None)], device=self.accelerator.device)
        return self.accelerator.reduce(received, reduction="sum").item() > 0

    def is_last_of_epoch(self, state) -> bool:
        """Whether the step that has ended is its epoch's last, and the epoch's end is still to come."""
        last = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        return last and not self.epoch_ended

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.passes += 1

    def on_step_begin(self, args, state, control, **kwargs):
        self.epoch_ended = self.deferred = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.agreed():
            self.stopped = control.should_save = control.should_training_stop = True
            if self.accelerator.is_main_process:
                _say(
                    f"{self.received or 'A signal'}: saving {PREFIX_CHECKPOINT_DIR}-{state.global_step} in "
                    f"{args.output_dir} and stopping. Go on from it with `--resume_from_checkpoint true`, in Python "
                    "`trainer.train(resume_from_checkpoint=True)`."
                )
        if control.should_save and self.is_last_of_epoch(state):
            control.should_save, self.deferred = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        self.epoch_ended = True
        control.should_save |= self.deferred


def _say(message: str) -> None:
    """A warning on a line of its own, above the bar."""
    with tqdm.external_write_mode():
        logger.warning(message)


class IgnoreSignals:
    """
    A data worker's start: the end of a job, and Ctrl-C, are its parent's business.

    The parent ends its workers by SIGTERM, too, where it exits without having closed them, as after an exception: it
    sets an event before, and they heed that one.

    Args:
        then (`Callable`, *optional*): the `worker_init_fn` that was given.
    """

    def __init__(self, then):
        self.then, self.closing = then, multiprocessing.Event()
        atexit.register(self.closing.set)  # runs before what multiprocessing has registered

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)
        if self.then is not None:
            self.then(worker_id)

    def _end(self, signum, frame):
        if self.closing.is_set():
            os._exit(0)
