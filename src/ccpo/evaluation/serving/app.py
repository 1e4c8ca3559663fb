"""The application: a [`Team`] behind OpenAI's paths, with keys, limits and errors."""

import asyncio
import json
import logging
import secrets
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise ImportError("Serving a team needs fastapi and uvicorn: pip install 'ccpo[serve]'") from error

from ..team import Team
from .batching import Batcher, Job
from .errors import RequestError, failed
from .replies import usage_of
from .requests import read_request, unknown_model

logger = logging.getLogger(__name__)

BATCH_SIZE, MAX_REQUESTS, MAX_BODY_BYTES = 32, 256, 2**20
_DRAINED = 16  # a body that is too large is read up to this many times the limit
_BODY_SECONDS = 60  # a client must send its request within so many seconds
_GRACE = 60  # seconds for open requests to end when the server stops
_HERE = ("127.0.0.1", "localhost", "::1")


def create_app(
    team: Team,
    *,
    name: str = "team",
    api_key: str | None = None,
    text: bool | None = None,
    batch_size: int = BATCH_SIZE,
    max_requests: int = MAX_REQUESTS,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """
    Make an application that serves a team, with `/v1/chat/completions`, `/v1/models` and `/health`.

    The models are loaded at once.

    Args:
        team ([`Team`]): The team.
        name (`str`, defaults to `"team"`): The name under which clients ask for the model.
        api_key (`str`, *optional*): The key that clients must send as a bearer token. By default none is needed.
        text (`bool`, *optional*):
            Whether the roles are asked in plain text, as in training with `conversational: false`. By default they are
            if one of them has no chat template.
        batch_size (`int`, defaults to 32): How many answers the team writes at once.
        max_requests (`int`, defaults to 256):
            How many requests may be open, waiting ones included. Others get HTTP 429.
        max_body_bytes (`int`, defaults to 1 MiB): The largest body of a request, in bytes. A larger one gets HTTP 413.

    Returns:
        `FastAPI`: The application.

    Raises:
        `ValueError`: If the name or key is empty or cannot be sent, if a limit is below 1, or if `text=False` and a
            role has no chat template.
    """
    for label, value in (("name", name), ("api_key", "-" if api_key is None else api_key)):
        if not value or not value.isprintable():
            raise ValueError(f"`{label}` must be a non-empty text of printable characters. Give another one.")
    if api_key is not None and (not api_key.isascii() or " " in api_key):
        raise ValueError(
            "`api_key` must be ASCII without spaces, because clients cannot send other keys. Give another one."
        )
    limits = {"batch_size": batch_size, "max_requests": max_requests, "max_body_bytes": max_body_bytes}
    for label, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{label}` must be an integer of at least 1, got {value!r}. Set it to 1 or more.")
    for generator in team.generate.values():
        _ = getattr(generator, "prompt_limit", None)  # loads the model
    without = [role for role, generator in team.generate.items() if not getattr(generator, "takes_messages", True)]
    if text is None and without:
        logger.warning("The roles are asked in plain text, because these have no chat template: %s.", without)
    if text is False and without:
        raise ValueError(f"`text=False` needs chat templates, but the roles {without} have none. Set `text=True`.")
    as_text = bool(without) if text is None else text

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(team, batch_size, max_requests)
        work = asyncio.create_task(app.state.batcher.run())
        yield
        work.cancel()
        await asyncio.wait([work])

    app = FastAPI(title=name, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    born = int(time.time())
    card = {"id": name, "object": "model", "created": born, "owned_by": "ccpo"}

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if api_key is not None and not secrets.compare_digest(given, f"Bearer {api_key}".encode()):
            message = "The API key is missing or wrong. Send it as `Authorization: Bearer <key>`."
            raise RequestError(message, 401, code="invalid_api_key")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        check_key(request)
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> dict[str, Any]:
        check_key(request)
        if model != name:
            raise unknown_model(model, name)
        return card

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        check_key(request)
        try:
            body = await asyncio.wait_for(_read_body(request, max_body_bytes), _BODY_SECONDS)
        except TimeoutError:
            raise RequestError(
                f"The body of the request did not arrive within {_BODY_SECONDS} seconds.", 408
            ) from None
        asked = read_request(body, name, text=as_text, most=batch_size)
        batcher: Batcher = request.app.state.batcher
        job = batcher.submit(asked)
        gone = asyncio.create_task(_hang_up(request, batcher, job))
        reply = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        try:
            event = await job.events.get()
        except BaseException:
            gone.cancel()
            batcher.drop(job)
            raise
        if asked.stream and not isinstance(event, RequestError | None):
            return StreamingResponse(
                _stream(event, job, batcher, gone, reply), media_type="text/event-stream", headers=_UNBUFFERED
            )
        gone.cancel()
        if event is None:
            return Response(status_code=499)  # the client has gone
        if isinstance(event, RequestError):
            raise event
        return JSONResponse(_completion(event, job, reply))

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 408: _CLOSE, 413: _CLOSE, 429: {"Retry-After": "1"}}
        return JSONResponse(error.body, error.status, headers.get(error.status))

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> JSONResponse:
        said = {404: "There is no such path.", 405: "The path does not take this method."}
        message = f"{said.get(error.status_code, error.detail)} {request.method} {request.url.path:.200}"
        return JSONResponse(RequestError(message, error.status_code).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(failed().body, 500)

    return app


_CLOSE = {"Connection": "close"}
_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _read_body(request: Request, most: int) -> bytes:
    """
    Read the body of a request, up to a limit.

    A larger body is read on for a while and thrown away, because a client may read the answer only after it has sent
    everything. A client that sends even more is cut off with the answer.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"The body must be `Content-Type: application/json`, got {kind[:100]!r}.", 415)
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            body += part
        elif size > most * _DRAINED:
            break
        else:
            body.clear()
    if size > most:
        raise RequestError(f"The body has more than {most} bytes, which is the limit of this server.", 413)
    return bytes(body)


async def _hang_up(request: Request, batcher: Batcher, job: Job) -> None:
    """Drop a request when its client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    batcher.drop(job)
    job.events.put_nowait(None)


def _completion(event: list, job: Job, reply: dict[str, Any]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    choices = []
    for i, ((_, finish), texts) in enumerate(zip(event, job.texts, strict=True)):
        message = {"role": "assistant", "content": texts["content"], "refusal": None}
        if texts["reasoning_content"]:
            message["reasoning_content"] = texts["reasoning_content"]
        choices.append({"index": i, "message": message, "logprobs": None, "finish_reason": finish})
    usage = usage_of([answer for answer, _ in event])
    return {**reply, "object": "chat.completion", "choices": choices, "usage": usage}


async def _stream(event: Any, job: Job, batcher: Batcher, gone: asyncio.Task, reply: dict[str, Any]) -> Any:
    """The chunks of an answer, as server-sent events."""
    reply, spoken = {**reply, "object": "chat.completion.chunk"}, set()
    usage = {"usage": None} if job.request.include_usage else {}

    def chunk(i: int, delta: dict[str, str], finish: str | None = None) -> str:
        if i not in spoken:
            delta = {"role": "assistant", **delta}
            spoken.add(i)
        choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**reply, "choices": [choice], **usage})

    try:
        while isinstance(event, tuple):
            i, field, text = event
            yield chunk(i, {field: text})
            event = await job.events.get()
        if isinstance(event, RequestError):
            yield _event(event.body)
        elif event is not None:
            for i, (_, finish) in enumerate(event):
                yield chunk(i, {}, finish)
            if usage:
                yield _event({**reply, "choices": [], "usage": usage_of([answer for answer, _ in event])})
            yield "data: [DONE]\n\n"
    finally:
        gone.cancel()
        batcher.drop(job)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


class _Server(uvicorn.Server):
    """uvicorn's server, which logs its address when it has started."""

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            logger.info("The team %r is served at http://%s:%d/v1", self.config.app.title, host, port)


def serve(team: Team, *, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
    """
    Serve a team until SIGTERM or SIGINT. Open requests then have a minute to end.

    Args:
        team ([`Team`]): The team.
        host (`str`, defaults to `"127.0.0.1"`): The address to listen on. By default only this machine can reach it.
        port (`int`, defaults to 8000): The port. 0 means any free port, which is logged.
        options: As for [`create_app`].

    Raises:
        `OSError`: If the server cannot start, e.g. because the port is in use.
    """
    if host not in _HERE and options.get("api_key") is None:
        logger.warning(
            "The team has no API key, so whoever reaches %s:%d can use it. Set `api_key` (`--api_key`, or "
            "CCPO_API_KEY in the environment), or bind it to 127.0.0.1.",
            host,
            port,
        )
    app = create_app(team, **options)
    config = uvicorn.Config(
        app, host, port, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE, ws="none"
    )
    before = {which: signal.signal(which, lambda *_: None) for which in (signal.SIGTERM, signal.SIGINT)}
    try:  # uvicorn raises the signal again at its end, which must not end the process
        server = _Server(config)
        server.run()
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    if not server.started:
        raise OSError(f"The server did not start at {host}:{port}. The log says why.")
