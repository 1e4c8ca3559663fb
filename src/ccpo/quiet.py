"""What libraries beneath would put on the screen unasked, held back where it comes from."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from transformers.utils import logging

PATIENCE = 5.0  # seconds after which one wants to see how far it is


@contextmanager
def patient_bars() -> Iterator[None]:
    """A while in which transformers' bars, of loading and writing a model, show only where it takes seconds."""
    before = logging.set_tqdm_hook(_late)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _late(make: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    return make(*args, **{"delay": PATIENCE, **kwargs})


@contextmanager
def no_dataset_bars() -> Iterator[None]:
    """A while without the bars of [`datasets.Dataset.map`]."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def name_accelerator_to_deepspeed() -> None:
    """
    Say to DeepSpeed that it is to use the CPU where there is nothing else, as it finds by itself with a warning.

    accelerate imports DeepSpeed in every run where it is installed. To be called before.
    """
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
