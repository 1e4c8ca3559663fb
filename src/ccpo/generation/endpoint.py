"""A model behind an OpenAI-compatible endpoint as a generator."""

import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import torch

from .completion import Completion, CompletionGenerator
from .inputs import check_prompts, check_range
from .replies import Reply, error_status, join_chunks, read_json, read_reply
from .stops import with_stops

logger = logging.getLogger(__name__)

_CLIENT_LOCK = threading.Lock()
_NEW_LIMIT = "max_completion_tokens"  # in place of max_tokens, for OpenAI's models that think
# The parameter is refused, not its value: where that is too large, an endpoint might ignore the other one.
_LIMIT_REFUSED = re.compile(
    r"max_completion_tokens|(?=.*max_tokens).*(?:unsupported|unknown|unrecogni[sz]ed|unexpected|extra)[ _]"
    r"(?:request |keyword )?(?:parameter|argument|field|input)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(eq=False)
class OpenAIGenerator(CompletionGenerator):
    """
    A model behind an OpenAI-compatible endpoint: `vllm serve`, `transformers serve`, or a hosted one.

    Conversations go to the chat endpoint, texts to the completions endpoint, one request a prompt. What fails in
    passing (connection, HTTP 408, 409, 429, 5xx, or such an error inside HTTP 200) is repeated by the `openai` client,
    with exponential back-off. The key shows in no message and not in the `repr`. Endpoints that refuse `max_tokens`
    get `max_completion_tokens`. A text meets no chat template: give conversations to a chat model.

    Args:
        model (`str`): Name under which the endpoint serves the model.
        base_url (`str`, *optional*): E.g. `http://localhost:8000/v1`. By default `OPENAI_BASE_URL`, then OpenAI's.
        api_key (`str`, *optional*):
            Key, part of a pickled copy. By default `OPENAI_API_KEY`, read at the first call and not part of a copy, or
            a dummy for local servers.
        max_tokens (`int`, *optional*, defaults to `512`): Longest completion; what is cut there is returned as it is.
        temperature (`float`, *optional*, defaults to `1.0`): Sampling temperature; `0` is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`): Probability mass to sample from.
        max_concurrency (`int`, *optional*, defaults to `32`): Requests in flight at a time.
        max_retries (`int`, *optional*, defaults to `5`): Repetitions of a request that failed.
        timeout (`float`, *optional*, defaults to `600.0`): Seconds to wait for an answer.
        extra_body (`dict`, *optional*): More fields of the request, e.g. `{"top_k": 20}`.

    Attributes:
        completion_tokens (`int`): Tokens generated so far, by the endpoint's own count.
        empty_answers (`dict[str, int]`): How many answers so far had no text, by the reason.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    _: KW_ONLY
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    max_concurrency: int = 32
    max_retries: int = 5
    timeout: float = 600.0
    extra_body: dict | None = field(default=None, repr=False)
    completion_tokens: int = field(default=0, init=False)
    empty_answers: dict[str, int] = field(default_factory=dict, init=False)
    _limit_name: str = field(default="max_tokens", init=False, repr=False)
    _seed: int | None = field(default=None, init=False, repr=False)
    _client: object = field(default=None, init=False, repr=False)

    def __post_init__(self):
        address = urlsplit(self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc or address.query:
            raise ValueError(
                "base_url must look like http://localhost:8000/v1, without a user name, password or query."
            )
        check_range("max_tokens", self.max_tokens, 1)
        check_range("temperature", self.temperature, 0, whole=False)
        check_range("top_p", self.top_p, torch.finfo().tiny, 1, whole=False)
        check_range("max_concurrency", self.max_concurrency, 1)
        check_range("max_retries", self.max_retries, 0)
        check_range("timeout", self.timeout, torch.finfo().tiny, whole=False)
        if self.extra_body is not None and not isinstance(self.extra_body, dict):
            raise ValueError(f"extra_body must be a dict with fields of the request, got {self.extra_body!r:.80}.")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_client": None}

    @property
    def max_new_tokens(self) -> int:
        """`max_tokens`, by the name that it has elsewhere."""
        return self.max_tokens

    def sampled(self, seed: int | None = None, stop: list[str] | None = None, **options) -> "OpenAIGenerator":
        """
        The same endpoint asked otherwise: other arguments by name, `max_new_tokens` among them, more stop strings, and
        no seed but the one given. Prompt i of a call gets `seed + i`.
        """
        if "max_new_tokens" in options:
            options["max_tokens"] = options.pop("max_new_tokens")
        if stop:
            options["extra_body"] = with_stops(self.extra_body, "stop", stop)
        other = replace(self, **options)
        other._seed, other._client, other._limit_name = seed, self._connect(), self._limit_name
        return other

    def generate(
        self,
        prompts: list,
        *,
        max_new_tokens: int | None = None,
        watch: Callable[[int, str], bool] | None = None,
    ) -> list[Completion]:
        """
        Generate one completion per prompt. The first request that fails for good ends the call.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations.
            max_new_tokens (`int`, *optional*): Longest completion, in place of `max_tokens`.
            watch (`Callable`, *optional*):
                Gets a prompt's index and each piece of its completion as it comes, on several threads; returns whether
                that is enough: the request is closed then, and what it drew is known to nobody.

        Returns:
            `list[Completion]`: The completions. A model's reasoning is no part of them. An answer without text (cut
            before it began, refused, filtered) is `""`, counted, and warned of once a call.

        Raises:
            `ConnectionError`: No answer from the endpoint, after all repetitions.
            `PermissionError`: The key was refused.
            `ValueError`: The endpoint does not serve the model, or rejected the request, e.g. an over-long prompt, or
                a prompt cannot be sent as JSON.
            `RuntimeError`: The endpoint kept failing, or its answer is not that of an OpenAI-compatible one.
        """
        prompts = _check_prompts(prompts)
        max_tokens = self.max_tokens if max_new_tokens is None else max_new_tokens
        check_range("max_new_tokens", max_tokens, 1)
        if not prompts:
            return []
        client = self._connect()
        pool = ThreadPoolExecutor(min(self.max_concurrency, len(prompts)))
        try:
            futures = [
                pool.submit(self._complete, client, i, prompt, max_tokens, watch) for i, prompt in enumerate(prompts)
            ]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
        failures = [error for f in futures if not f.cancelled() and (error := f.exception()) is not None]
        if failures:
            unasked = sum(future.cancelled() for future in futures)
            counts = f"{len(futures) - len(failures) - unasked} were answered, {len(failures)} failed"
            first = failures[0]
            first.args = (f"{first} Of {len(futures)} prompts, {counts}, and {unasked} were not asked.",)
            raise first
        replies = [future.result() for future in futures]
        empty = Counter(reply.why_empty for reply in replies if reply.why_empty)
        with _CLIENT_LOCK:
            self.completion_tokens += sum(reply.tokens or 0 for reply in replies)
            for why, count in empty.items():
                self.empty_answers[why] = self.empty_answers.get(why, 0) + count
        if any(reply.tokens is None for reply in replies):
            logger.warning(
                "%s does not report how many tokens it used, so completion_tokens is too low.", client.base_url
            )
        if empty:
            reasons = ", ".join(f"{count} {why}" for why, count in empty.most_common())
            advice = f" The limit is max_tokens={max_tokens}. Raise it." if "at the limit" in reasons else ""
            counts = (client.base_url, empty.total(), len(replies), reasons)
            logger.warning("%s: %d of %d answers have no text: %s.%s", *counts, advice)
        return [Completion(reply.text, reply.tokens, reply.truncated, reply.prompt_tokens) for reply in replies]

    def _connect(self):
        try:
            import openai
        except ImportError as error:
            raise ImportError("OpenAIGenerator needs the openai client: pip install ccpo[serve]") from error
        with _CLIENT_LOCK:
            if self._client is None:
                key = os.environ.get("OPENAI_API_KEY") or "EMPTY" if self.api_key is None else self.api_key
                if not key or not key.isascii() or not key.isprintable() or " " in key:  # the client would quote it
                    raise ValueError(
                        "api_key (or OPENAI_API_KEY) is empty, or has spaces or unprintable characters. Set a "
                        "valid key."
                    )
                timeout = openai.Timeout(self.timeout, connect=min(self.timeout, 10.0))
                options = {"base_url": self.base_url, "timeout": timeout, "max_retries": self.max_retries}
                http_client = openai.DefaultHttpxClient(event_hooks={"response": [_take_status_of_error]})
                self._client = openai.OpenAI(api_key=key, http_client=http_client, **options)
            return self._client

    def _complete(self, client, i: int, prompt, max_tokens: int, watch: Callable | None) -> Reply:
        """The answer to prompt i of a call."""
        body = None
        try:
            answer = self._send(client, i, prompt, max_tokens, stream=watch is not None)
            body = read_json(answer) if watch is None else join_chunks(answer, lambda piece: watch(i, piece))
            failure = None
        except Exception as error:  # the client's own, and whatever it lets through
            failure = self._explain(client, error)
        if failure is not None:
            raise failure  # outside the handler: the client's own exception holds the request, and with it the key
        reply = read_reply(body, chat=not isinstance(prompt, str))
        if reply is None:
            said = _show(body, client.api_key)
            raise RuntimeError(
                f"{client.base_url} does not answer like an OpenAI-compatible endpoint. It said: {said}"
            )
        return reply

    def _send(self, client, i: int, prompt, max_tokens: int, stream: bool) -> Any:
        """
        What the endpoint answers, as it came, or as a stream of chunks. One that refuses `max_tokens` is asked with
        `max_completion_tokens`, from then on at once.
        """
        import openai

        options = {"model": self.model, "temperature": self.temperature, "top_p": self.top_p}
        options["extra_body"] = self.extra_body
        options |= {} if self._seed is None else {"seed": self._seed + i}
        options |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

        def ask(endpoint, **given: Any) -> Any:
            if stream:
                return endpoint.create(**given, **options)
            return endpoint.with_raw_response.create(**given, **options).http_response.text

        if isinstance(prompt, str):
            return ask(client.completions, prompt=prompt, max_tokens=max_tokens)
        try:
            return ask(client.chat.completions, messages=prompt, **{self._limit_name: max_tokens})
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            said = f"{error} {error.body}"  # the client's own words leave out a body without the key `error`
            if self._limit_name == _NEW_LIMIT or not _LIMIT_REFUSED.search(said):
                raise
        answer = ask(client.chat.completions, messages=prompt, **{_NEW_LIMIT: max_tokens})
        self._limit_name = _NEW_LIMIT
        return answer

    def _explain(self, client, error: Exception) -> Exception:
        """The exception that tells what to do about the client's, without the key."""
        import openai

        url, status = client.base_url, getattr(error, "status_code", None)
        body = getattr(error, "body", None) or str(error)
        if isinstance(body, str) and status is not None:  # a page, or an error whose words the client has taken out
            body = read_json(error.response.text) or body
        said = _show(body, client.api_key)
        if isinstance(error, openai.APIConnectionError):
            return ConnectionError(
                f"No answer from {url} in {self.max_retries + 1} attempts: {said} Is the server running "
                f"(`vllm serve {self.model}`)? If it is slow, raise timeout (now {self.timeout:g} s) or lower "
                "max_concurrency."
            )
        if status in (401, 403):
            return PermissionError(f"{url} refused the API key (HTTP {status}). Pass another api_key. It said: {said}")
        if status == 404:
            return ValueError(
                f"{url} has no model {self.model!r}, or base_url has the wrong path (HTTP 404). Its models "
                f"are listed at {url}models; base_url usually ends in /v1. It said: {said}"
            )
        if status is not None and status < 500 and status not in (408, 409, 429):
            return ValueError(f"{url} rejected the request (HTTP {status}). It said: {said}")
        attempts = f"{type(error).__name__} after up to {self.max_retries + 1} attempts"
        return RuntimeError(f"{url} failed, {attempts}: {said}")


def _show(said: object, key: str) -> str:
    """What an endpoint said, without the key: an error whole, of a page its beginning."""
    try:
        text = str(said)
    except RecursionError:
        text = "(JSON nested too deeply to be shown)"
    return text.replace(key, "<key>")[: 500 if isinstance(said, str) else 20_000]


def _take_status_of_error(response) -> None:
    """
    An error inside HTTP 200 gets the status that it is about: the client repeats it or raises, as any other. A stream
    is not waited for.
    """
    if response.is_success and not response.headers.get("content-type", "").startswith("text/event-stream"):
        response.read()
        response.status_code = error_status(read_json(response.text)) or response.status_code


def _check_prompts(prompts: object) -> list:
    """Prompts that can be sent."""
    prompts = check_prompts(prompts)
    for i, prompt in enumerate(prompts):
        try:
            json.dumps(prompt, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"prompts[{i}] cannot be sent as JSON: {error}") from None
    return prompts
