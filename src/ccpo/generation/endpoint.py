"""[`OpenAIGenerator`]: a model behind an OpenAI-compatible endpoint as a generator."""

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
_NEW_LIMIT = "max_completion_tokens"  # OpenAI's reasoning models want it in place of max_tokens
# Matches only if the parameter itself is refused. If its value is refused, it must not be sent under the other name.
_LIMIT_REFUSED = re.compile(
    r"max_completion_tokens|(?=.*max_tokens).*(?:unsupported|unknown|unrecogni[sz]ed|unexpected|extra)[ _]"
    r"(?:request |keyword )?(?:parameter|argument|field|input)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(eq=False)
class OpenAIGenerator(CompletionGenerator):
    """
    Generates texts with a model behind an OpenAI-compatible endpoint, such as `vllm serve` or a hosted one.

    Each prompt is one request. Conversations go to the chat endpoint and texts to the completions endpoint, which
    applies no chat template; give a chat model conversations. Failures that may pass are retried with exponential
    back-off: lost connections, HTTP 408, 409, 429 and 5xx, and such an error inside HTTP 200. An endpoint that refuses
    `max_tokens` is asked with `max_completion_tokens`. The API key appears in no message and not in the `repr`.

    Args:
        model (`str`): The name under which the endpoint serves the model.
        base_url (`str`, *optional*):
            The address, e.g. `http://localhost:8000/v1`. Defaults to the environment variable `OPENAI_BASE_URL`, or
            else to OpenAI's.
        api_key (`str`, *optional*):
            The API key. It is saved in a pickled copy. By default `OPENAI_API_KEY` is read at the first call and not
            saved in a copy; if it is not set, a dummy is sent, which local servers accept.
        max_tokens (`int`, *optional*, defaults to `512`):
            The longest completion, in tokens. A longer one is cut there and returned.
        temperature (`float`, *optional*, defaults to `1.0`): The sampling temperature. `0` means greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`): Sample from the likeliest tokens with this total probability.
        max_concurrency (`int`, *optional*, defaults to `32`): How many requests may be open at a time.
        max_retries (`int`, *optional*, defaults to `5`): How often a failed request is repeated.
        timeout (`float`, *optional*, defaults to `600.0`): How long to wait for an answer, in seconds.
        extra_body (`dict`, *optional*): More fields of the request, e.g. `{"top_k": 20}`.

    Attributes:
        completion_tokens (`int`): How many tokens were generated so far, by the endpoint's own count.
        empty_answers (`dict[str, int]`): Maps each reason to the number of answers so far that had no text for it.

    Raises:
        `ValueError`: If a number is out of range, or if `base_url` is not a plain http(s) address.
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
        """`max_tokens`, under the name that other generators use."""
        return self.max_tokens

    def sampled(self, seed: int | None = None, stop: list[str] | None = None, **options) -> "OpenAIGenerator":
        """
        A generator with the same endpoint and other settings.

        Args:
            seed (`int`, *optional*): Its seed. Prompt i of a call is sent with `seed + i`.
            stop (`list[str]`, *optional*): Stop strings, in addition to those in `extra_body`.
            options: Arguments that replace this generator's. `max_new_tokens` may be used for `max_tokens`.
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
        Generate one completion for each prompt. The call ends with the first request that fails after all retries.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations.
            max_new_tokens (`int`, *optional*): The longest completion, in tokens. Defaults to `max_tokens`.
            watch (`Callable`, *optional*):
                Called for each piece of text that arrives, with the index of the prompt and the piece, on several
                threads. If it returns `True`, this completion ends and its request is closed. Its number of tokens is
                then unknown.

        Returns:
            `list[Completion]`: The completions, without a model's reasoning. An answer without text, because it was
            cut, refused or filtered, is `""`. Such answers are counted and logged once for each call.

        Raises:
            `ConnectionError`: If the endpoint does not answer.
            `PermissionError`: If the endpoint refuses the API key.
            `ValueError`: If the endpoint does not serve the model or rejects the request, e.g. because a prompt is too
                long, or if a prompt cannot be sent as JSON.
            `RuntimeError`: If the endpoint keeps failing, or does not answer like an OpenAI-compatible one.
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
            raise ImportError("OpenAIGenerator needs the openai client: pip install 'ccpo[serve]'") from error
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
        except Exception as error:  # the client's own exceptions, and any other that it lets through
            failure = self._explain(client, error)
        if failure is not None:
            raise failure  # not in the handler, because the client's exception holds the request and so the key
        reply = read_reply(body, chat=not isinstance(prompt, str))
        if reply is None:
            said = _show(body, client.api_key)
            raise RuntimeError(
                f"{client.base_url} does not answer like an OpenAI-compatible endpoint. It said: {said}"
            )
        return reply

    def _send(self, client, i: int, prompt, max_tokens: int, stream: bool) -> Any:
        """
        Send a request. Returns the text of the answer, or a stream of its chunks.

        If the endpoint refuses `max_tokens`, this and all later requests are sent with `max_completion_tokens`.
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
            said = f"{error} {error.body}"  # the client's own message leaves out a body without the key `error`
            if self._limit_name == _NEW_LIMIT or not _LIMIT_REFUSED.search(said):
                raise
        answer = ask(client.chat.completions, messages=prompt, **{_NEW_LIMIT: max_tokens})
        self._limit_name = _NEW_LIMIT
        return answer

    def _explain(self, client, error: Exception) -> Exception:
        """Turn an exception of the client into one that says what to do. It does not contain the API key."""
        import openai

        url, status = client.base_url, getattr(error, "status_code", None)
        body = getattr(error, "body", None) or str(error)
        if isinstance(body, str) and status is not None:  # a page, or an error of which the client kept only a part
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
    """What an endpoint said, without the API key. A page is cut to its beginning; an error is not cut."""
    try:
        text = str(said)
    except RecursionError:
        text = "(JSON nested too deeply to be shown)"
    return text.replace(key, "<key>")[: 500 if isinstance(said, str) else 20_000]


def _take_status_of_error(response) -> None:
    """
    Give an error inside HTTP 200 the status that it names, so that the client retries or raises as for other errors.

    Streams are left alone, because reading them would wait for their end.
    """
    if response.is_success and not response.headers.get("content-type", "").startswith("text/event-stream"):
        response.read()
        response.status_code = error_status(read_json(response.text)) or response.status_code


def _check_prompts(prompts: object) -> list:
    """Return the prompts as a list. Raises a `ValueError` if one cannot be sent as JSON."""
    prompts = check_prompts(prompts)
    for i, prompt in enumerate(prompts):
        try:
            json.dumps(prompt, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"prompts[{i}] cannot be sent as JSON: {error}") from None
    return prompts
