"""Calling what a user hands in: outcome functions and generators, plain or asynchronous."""

import asyncio
import inspect
import math
import os
import threading
from collections.abc import Callable
from typing import Any

_loops: dict[int, asyncio.AbstractEventLoop] = {}
_loops_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent may have held it
    os.register_at_fork(after_in_child=lambda: globals().update(_loops_lock=threading.Lock()))


def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process, on a thread of its own; a forked child has none of its parent's threads."""
    with _loops_lock:
        if process not in _loops:
            _loops[process] = asyncio.new_event_loop()
            threading.Thread(target=_loops[process].run_forever, name="ccpo-async", daemon=True).start()
        return _loops[process]


def call(function: Callable, /, *args: Any, **kwargs: Any) -> Any:
    """
    Call a function and wait for its result, be it asynchronous or not, also where an event loop runs (a notebook).

    What is called so runs on one loop for the life of the process, so that a client keeps its connections from call to
    call. (In training, TRL awaits outcome functions on a loop of its own.)

    Args:
        function (`Callable`): a function, a coroutine function, or an object whose `__call__` is either.
        args, kwargs: what it is called with.

    Returns:
        What the function returns, awaited.

    Raises:
        `RuntimeError`: called by an asynchronous function that itself was called so: it would wait for itself.
    """
    result = function(*args, **kwargs)
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    loop = _loop_of(os.getpid())
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        if inspect.iscoroutine(result):
            result.close()
        name = getattr(function, "__name__", type(function).__name__)
        raise RuntimeError(
            f"{name!r} was called inside an asynchronous function, which would wait for itself forever. Write "
            "`await` there instead."
        )
    future = asyncio.run_coroutine_threadsafe(wait(), loop)
    try:
        return future.result()
    except BaseException:  # also an interrupt here, of which the loop's thread hears nothing
        future.cancel()
        raise


def call_outcome(
    outcome: Callable,
    count: int,
    field: str = "outcome",
    wanted: str = "one number per answer: +1 for right, -1 for wrong, None where it cannot be scored",
    /,
    **kwargs: Any,
) -> list[float]:
    """
    The verdicts of an outcome function, or another reward function's values.

    Args:
        outcome (`Callable`): a TRL reward function, asynchronous or not.
        count (`int`): completions that it is to judge.
        field (`str`, defaults to `"outcome"`): what the errors call it.
        wanted (`str`): what it is to return, for the errors.
        kwargs: `prompts`, `completions` and the dataset's columns.

    Returns:
        `list[float]` of length `count`: the values, NaN for `None`.

    Raises:
        `ValueError`: not one value per completion, or an infinite one. `TypeError`: a value is no number. Both name
            the function.
    """
    values = call(outcome, **kwargs)
    name = f"`{field}` ({getattr(outcome, '__name__', type(outcome).__name__)})"
    if hasattr(values, "tolist"):  # a tensor or an array
        values = values.tolist()
    if isinstance(values, str | bytes | dict) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} returned {values!r:.80} for {count} completions. Return a list with {wanted}.")
    values = list(values)
    if len(values) != count:
        raise ValueError(
            f"{name} returned {len(values)} values for {count} completions. Return one per completion, in their order."
        )
    return [
        _number(value, f"{name} returned {value!r:.80} for completion {i}", wanted) for i, value in enumerate(values)
    ]


def _number(value: Any, returned: str, wanted: str) -> float:
    if value is None:
        return math.nan
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor of several values
        raise TypeError(f"{returned}. Return {wanted}.") from None
    if math.isinf(number):
        raise ValueError(f"{returned}, which cannot be used for training. Return {wanted}.")
    return number


def unanswered(outcome: Callable, texts: list[str]) -> list[bool] | None:
    """
    In which answers the outcome function finds no answer at all, which is not to say that they are wrong.

    Args:
        outcome (`Callable`): with a method `extract(text) -> str | None`, as [`MathVerifier`] has.
        texts (`list[str]`): answers.

    Returns:
        `list[bool]` of the texts' length, or `None` where the outcome function has no `extract`.
    """
    extract = getattr(outcome, "extract", None)
    return None if extract is None else [call(extract, text) in (None, "") for text in texts]
