"""What users hand in: outcome functions and generators, plain or asynchronous, with values of every kind."""

import asyncio
import functools
import math
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from ccpo.calls import call, call_outcome, unanswered
from ccpo.team.completions import completion_text


def plain(x, y=0):
    return x + y


async def coroutine(x, y=0):
    await asyncio.sleep(0)
    return x + y


class Asynchronous:
    async def __call__(self, x, y=0):
        return await coroutine(x, y)


KINDS = {
    "plain": plain,
    "coroutine function": coroutine,
    "async __call__": Asynchronous(),
    "partial": functools.partial(coroutine, y=1),
    "lambda": lambda x, y=0: coroutine(x, y),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_returns_the_result(kind):
    assert call(KINDS[kind], 1, y=1) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_also_where_a_loop_runs_and_on_other_threads(kind):
    async def notebook():
        return call(KINDS[kind], 1, y=1)

    assert asyncio.run(notebook()) == 2
    results = []
    thread = threading.Thread(target=lambda: results.append(call(KINDS[kind], 1, y=1)))
    thread.start()
    thread.join(10)
    assert results == [2]


def test_one_loop_serves_all_calls():
    """A client keeps its connections: they belong to the loop on which they were opened."""
    loops = set()

    async def client():
        loops.add(asyncio.get_running_loop())

    for _ in range(2):
        call(client)
    assert len(loops) == 1 and not loops.pop().is_closed()


def test_exceptions_come_through_and_an_interrupt_cancels():
    async def fails():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call(fails)
    cancelled = threading.Event()

    async def forever():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            call(forever)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert cancelled.wait(5)


def test_a_call_that_would_wait_for_itself_is_an_error():
    async def outer():
        return call(coroutine, 1)

    with pytest.raises(RuntimeError, match="'coroutine' was called inside an asynchronous function.*Write `await`"):
        call(outer)


def test_a_forked_child_has_a_loop_of_its_own():
    call(coroutine, 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if call(coroutine, 1) == 1 else 1)
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
    assert done and status == 0


# ---- Verdicts ----


@pytest.mark.parametrize(
    "values",
    [
        [1, -1.0, None],
        (1.0, -1, math.nan),
        torch.tensor([1.0, -1.0, math.nan]),
        torch.tensor([1.0, -1.0, math.nan], dtype=torch.bfloat16, requires_grad=True),
        np.array([1, -1, np.nan]),
        [torch.tensor(1.0), np.float32(-1), None],
        [True, -1, None],
        iter([1, -1, None]),
    ],
    ids=["list", "tuple", "tensor", "bfloat16", "array", "scalars", "bool", "iterator"],
)
def test_verdicts_of_every_kind(values):
    right, wrong, unknown = call_outcome(lambda **_: values, 3, prompts=[], completions=[])
    assert (right, wrong) == (1.0, -1.0) and math.isnan(unknown) and {type(right), type(unknown)} == {float}


def judge(**_):
    return judge.values


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ([1.0], ValueError, r"`outcome` \(judge\) returned 1 values for 2 completions"),
        ([], ValueError, "returned 0 values for 2 completions"),
        (torch.ones(3), ValueError, "returned 3 values for 2 completions"),
        (
            None,
            TypeError,
            r"`outcome` \(judge\) returned None for 2 completions. Return a list with one number per answer",
        ),
        (1.0, TypeError, "returned 1.0 for 2 completions"),
        (torch.tensor(1.0), TypeError, "returned 1.0 for 2 completions"),
        ("ab", TypeError, "returned 'ab' for 2 completions"),
        ({"a": 1, "b": 2}, TypeError, "returned {'a': 1, 'b': 2} for 2 completions"),
        (torch.ones(2, 1), TypeError, r"returned \[1.0\] for completion 0. Return one number"),
        ([1.0, "right"], TypeError, "returned 'right' for completion 1"),
        ([1.0, "1"], TypeError, "returned '1' for completion 1"),
        ([{}, 1.0], TypeError, "returned {} for completion 0"),
        ([1.0, torch.ones(2)], TypeError, "for completion 1"),
        ([1.0, 10**400], TypeError, "for completion 1"),
        ([math.inf, 1.0], ValueError, r"`outcome` \(judge\) returned inf for completion 0, .* Return one number per"),
        (torch.tensor([1.0, -math.inf]), ValueError, "returned -inf for completion 1"),
    ],
    ids=str,
)
def test_verdicts_that_are_none(values, error, match):
    judge.values = values
    with pytest.raises(error, match=match):
        call_outcome(judge, 2)
    with pytest.raises(error, match=r"`role_rewards\['a'\]` \(judge\) returned .*Return .*per completion"):
        call_outcome(judge, 2, "role_rewards['a']", "one number, or None, per completion")


def test_a_column_of_any_name():
    columns = {name: [1.0] for name in ("outcome", "count", "field", "wanted", "function")}
    assert call_outcome(lambda prompts, **kwargs: kwargs["count"], 1, prompts=["p"], **columns) == [1.0]


def test_unanswered():
    class Reader:
        def extract(self, text):
            return text.partition("=")[2] or None

    class AsyncReader:
        async def extract(self, text):
            return text.partition("=")[2]

    texts = ["a=1", "a", "", "=0"]
    assert unanswered(Reader(), texts) == unanswered(AsyncReader(), texts) == [False, True, True, False]
    assert unanswered(judge, texts) is None and unanswered(Reader(), []) == []


# ---- The text of a completion ----

TEXT, IMAGE = {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "a"),
        ("", ""),
        ([], ""),
        ([{"role": "assistant", "content": "a"}], "a"),
        ({"role": "assistant", "content": "a"}, "a"),
        ([{"content": "a"}], "a"),
        ([{"role": "assistant"}], ""),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "content": None, "reasoning_content": "thought"}], ""),
        ([{"role": "assistant", "content": []}], ""),
        ([{"role": "assistant", "content": TEXT}], "b"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, IMAGE, TEXT, "c"]}], "abc"),
        ([{"role": "assistant", "content": [IMAGE, {"type": "text"}, {"type": "text", "text": None}]}], ""),
        ([{"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"text": "b"}]}], "ab"),
        (
            [{"role": "assistant", "content": [{"type": "thinking", "text": "5?"}, {"type": "refusal", "text": "n"}]}],
            "",
        ),
        ([{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "last"}], "last"),
        ([{"role": "assistant", "content": "first"}, {"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "content": "calls"}, {"role": "tool", "content": "5"}], "calls"),
        ([{"role": "assistant", "tool_calls": [{}]}, {"role": "tool", "content": "5"}], ""),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "no"}], "a"),
        ([{"role": "tool", "content": "5"}], ""),
    ],
    ids=str,
)
def test_completion_text(completion, text):
    assert completion_text(completion) == text


@pytest.mark.parametrize("completion", [None, 5, ["a"], [None], [[]], {1, 2}, b"a"], ids=str)
def test_what_is_no_completion(completion):
    with pytest.raises(TypeError, match="A completion must be a text or a list of messages, got "):
        completion_text(completion)
    with pytest.raises(TypeError, match="The `content` of a message must be a text or a list of parts, got 5"):
        completion_text([{"role": "assistant", "content": 5}])
