"""Answer requests that come at the same time together, on a thread of their own."""

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...calls import call
from ...team.rollout import build_role_prompt
from ..team import Team, TeamAnswer
from .errors import RequestError, failed
from .replies import Choice
from .requests import ChatRequest
from .sampling import sample_as

logger = logging.getLogger(__name__)

THREAD = "ccpo-serving"  # the beginning of the name of the thread on which the team answers
_GATHER = 0.005  # seconds; an idle team begins if no other request comes within this time
_LONGEST = 0.05  # the most seconds that it waits for other requests
# An event of a request is `(index, field, text)` with text to send, the list of all answers with the reasons why they
# ended, an exception, or `None` if the client has gone.
Event = Any


class Job:
    """
    A request that is being answered.

    Attributes:
        events (`asyncio.Queue`): The events for the client, on the event loop.
        dropped (`bool`): Whether the client no longer waits.
        begun (`bool`): Whether something was sent to the client.
    """

    def __init__(self, request: ChatRequest, team: Team):
        self.request, self.team = request, team
        self.live = request.stream or bool(request.sampling.stop)  # whether its text is needed while it is written
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.dropped = self.begun = False
        self._loop = asyncio.get_running_loop()
        self.texts: list[dict[str, str]] = []
        self.choices: list[Choice] = []

    def begin(self) -> None:
        """Prepare for a run of the team."""
        self.texts = [{"content": "", "reasoning_content": ""} for _ in range(self.request.n)]
        stop, topology = self.request.sampling.stop, self.team.topology
        self.choices = [
            Choice(topology, stop, lambda field, text, i=i: self._take(i, field, text)) for i in range(self.request.n)
        ]

    def _take(self, i: int, field: str, text: str) -> None:
        if self.request.stream:
            self.begun = True
            self.tell((i, field, text))
        else:
            self.texts[i][field] += text

    def tell(self, event: Event) -> None:
        """Add an event, from any thread."""
        if not self.dropped and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Batcher:
    """
    The open requests: those that wait, and those that the team is answering.

    Args:
        team ([`Team`]): The team.
        batch_size (`int`): How many answers the team writes at once.
        max_requests (`int`): How many requests may be open. Others are refused.
    """

    def __init__(self, team: Team, batch_size: int, max_requests: int):
        self.team, self.batch_size, self.max_requests = team, batch_size, max_requests
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.stopping = False
        self.loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()

    def submit(self, request: ChatRequest) -> Job:
        """
        Queue a request.

        Raises:
            [`RequestError`]: If too many requests are open, or if the team cannot be sampled as the request asks.
        """
        if len(self.waiting) + len(self.running) >= self.max_requests:
            message = f"The server is working on {self.max_requests} requests, which is its limit. Try again later."
            raise RequestError(message, 429, code="rate_limit_exceeded")
        try:
            job = Job(request, sample_as(self.team, request.sampling))
        except ValueError as error:
            raise RequestError(f"The team cannot be sampled with these settings: {error}") from error
        self.waiting.append(job)
        self._arrived.set()
        return job

    def drop(self, job: Job) -> None:
        """Drop a request for which nobody waits any more. If it is being answered, it ends at the next token."""
        job.dropped = True
        if job in self.waiting:
            self.waiting.remove(job)

    async def run(self) -> None:
        """Answer requests until this task is cancelled."""
        pool = ThreadPoolExecutor(1, THREAD)
        try:
            while True:
                await self._arrived.wait()
                await self._gather()
                self.running = self._next()
                if not self.waiting:
                    self._arrived.clear()
                if self.running:
                    await self.loop.run_in_executor(pool, self._answer, self.running)
                self.running = []
        finally:
            self.stopping = True
            pool.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> None:
        """Wait a short time for other requests."""
        waited, before = 0.0, 0
        while before < len(self.waiting) and waited < _LONGEST:
            before = len(self.waiting)
            if sum(job.request.n for job in self.waiting) >= self.batch_size:
                return
            await asyncio.sleep(_GATHER)
            waited += _GATHER

    def _next(self) -> list[Job]:
        """The requests of the next batch: the oldest one, and others with the same sampling, in their order."""
        if not self.waiting:
            return []
        first = self.waiting[0]
        batch, room = [first], self.batch_size - first.request.n
        for job in list(self.waiting)[1:] if not first.request.sampling.alone else []:
            if job.request.sampling == first.request.sampling and job.request.n <= room:
                batch.append(job)
                room -= job.request.n
        for job in batch:
            self.waiting.remove(job)
        return batch

    def _answer(self, jobs: list[Job]) -> None:
        """
        Answer a batch of requests.

        If this fails, each request for which nothing was sent is tried again by itself. There is no second try if an
        endpoint cannot be reached, because its client has already retried.
        """
        jobs = [job for job in jobs if not job.dropped and self._fits(job)]
        if not jobs:
            return
        try:
            for job, answers in zip(jobs, self._ask(jobs), strict=True):
                job.tell([(answer, choice.end(answer)) for answer, choice in zip(answers, job.choices, strict=True)])
        except Exception as error:
            logger.exception("A batch of %d requests failed.", len(jobs))
            again = len(jobs) > 1 and not isinstance(error, OSError)
            for job in jobs:
                if again and not job.begun:
                    self._answer([job])
                else:
                    job.tell(failed())

    def _ask(self, jobs: list[Job]) -> list[list[TeamAnswer]]:
        """The answers to each request."""
        for job in jobs:
            job.begin()
        rows = [(job, choice) for job in jobs for choice in job.choices]

        def hear(role: str, row: int, piece: str, completion: Any) -> bool:
            job, choice = rows[row]
            if self.stopping or job.dropped:
                return True
            # a request without streaming and stop strings needs no text before the end
            return (completion is not None or job.live) and choice.hear(role, piece, completion)

        answers = iter(jobs[0].team.answer([job.request.problem for job, _ in rows], hear=hear))
        return [[next(answers) for _ in job.choices] for job in jobs]

    def _fits(self, job: Job) -> bool:
        """Whether every role can be asked the problem. If not, the client gets an error."""
        try:
            error = self._misfit(job)
        except Exception:
            logger.exception("A request could not be checked.")
            error = failed()
        if error is not None:
            job.tell(error)
        return error is None

    def _misfit(self, job: Job) -> RequestError | None:
        """The reason why a role cannot be asked the problem, or `None`."""
        topology = job.team.topology
        for role in topology.roles:
            generator = job.team.generate[role.name]
            if not hasattr(generator, "count_tokens"):
                continue
            prompt = build_role_prompt(topology, role, job.request.problem, dict.fromkeys(role.reads, ""))
            try:
                (length,) = call(generator.count_tokens, [prompt])
            except ValueError:
                logger.exception("The role %r could not be asked.", role.name)
                message = f"The chat template of the role {role.name!r} refuses these messages. Change their roles."
                return RequestError(message, param="messages")
            if length == 0:
                message = f"The tokenizer of the role {role.name!r} cannot encode these messages. Change their text."
                return RequestError(message, param="messages")
            limit = getattr(generator, "prompt_limit", None)
            if limit is not None and length > limit:
                message = (
                    f"The messages are too long: the prompt of the role {role.name!r} has {length} tokens, "
                    f"but its model has room for only {max(limit, 0)} besides the answer."
                )
                return RequestError(message, param="messages", code="context_length_exceeded")
        return None
