"""Call functions that a user passes in, such as outcome functions and generators, asynchronous or not."""

import asyncio
import inspect
import math
import os
import threading
from collections.abc import Callable
from typing import Any

_loops: dict[int, asyncio.AbstractEventLoop] = {}
_loops_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent may have held the lock
    os.register_at_fork(after_in_child=lambda: globals().update(_loops_lock=threading.Lock()))


def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process, on its own thread. A forked child needs another, as it has no parent's threads."""
    with _loops_lock:
        if process not in _loops:
            _loops[process] = asyncio.new_event_loop()
            threading.Thread(target=_loops[process].run_forever, name="ccpo-async", daemon=True).start()
        return _loops[process]


def call(function: Callable, /, *args: Any, **kwargs: Any) -> Any:
    """
    Call a function and wait for its result, whether it is asynchronous or not.

    It may also be called where an event loop is running, e.g. in a notebook. Asynchronous functions run on one loop as
    long as the process lives, so that a client can keep its connections. (In training, TRL runs outcome functions on a
    loop of its own.)

    Args:
        function (`Callable`): A function, a coroutine function, or an object whose `__call__` is one of these.
        args, kwargs: The arguments of the call.

    Returns:
        The result of the function.

    Raises:
        `RuntimeError`: If it is called by an asynchronous function on that loop, which would then wait for itself.
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
    except BaseException:  # e.g. an interrupt in this thread, which does not reach the thread of the loop
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
    Call an outcome function, or another reward function, and check its values.

    Args:
        outcome (`Callable`): A TRL reward function, asynchronous or not.
        count (`int`): The number of completions that it judges.
        field (`str`, defaults to `"outcome"`): The name of the argument, for messages.
        wanted (`str`): What the function must return, for messages.
        kwargs: Its arguments: `prompts`, `completions` and the dataset's columns.

    Returns:
        `list[float]` of length `count`: The values, with NaN for `None`.

    Raises:
        `ValueError`: If the number of values is wrong, or if one is infinite.
        `TypeError`: If a value is not a number.
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
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a tensor of several values raises a RuntimeError
        raise TypeError(f"{returned}. Return {wanted}.") from None
    if math.isinf(number):
        raise ValueError(f"{returned}, which cannot be used for training. Return {wanted}.")
    return number


def unanswered(outcome: Callable, texts: list[str]) -> list[bool] | None:
    """
    Find the texts in which the outcome function finds no answer at all. This is not the same as a wrong answer.

    Args:
        outcome (`Callable`):
            The outcome function. It may have a method `extract(text) -> str | None`, like [`MathVerifier`].
        texts (`list[str]`): The texts.

    Returns:
        `list[bool]` or `None`: For each text whether it has no answer; `None` if there is no method `extract`.
    """
    extract = getattr(outcome, "extract", None)
    return None if extract is None else [call(extract, text) in (None, "") for text in texts]
