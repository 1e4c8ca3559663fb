"""A model behind an OpenAI-compatible endpoint as a generator."""

import logging
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import urlsplit

import torch

from .inputs import check_prompts, check_range

logger = logging.getLogger(__name__)

_CLIENT_LOCK = threading.Lock()


@dataclass(eq=False)
class OpenAIGenerator:
    """
    A model behind an OpenAI-compatible endpoint: `vllm serve`, `transformers serve`, or a hosted one.

    Conversations go to the chat endpoint, texts to the completions endpoint, one request a prompt. What fails in
    passing (connection, HTTP 408, 409, 429, 5xx) is repeated by the `openai` client, with exponential back-off. The
    key shows in no message and not in the `repr`.

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
    _client: object = field(default=None, init=False, repr=False)

    def __post_init__(self):
        address = urlsplit(self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc or address.query:
            raise ValueError("base_url must look like http://localhost:8000/v1, without user name, password or query.")
        check_range("max_tokens", self.max_tokens, 1)
        check_range("temperature", self.temperature, 0, whole=False)
        check_range("top_p", self.top_p, torch.finfo().tiny, 1, whole=False)
        check_range("max_concurrency", self.max_concurrency, 1)
        check_range("max_retries", self.max_retries, 0)
        check_range("timeout", self.timeout, torch.finfo().tiny, whole=False)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_client": None}

    def __call__(self, prompts: list, *, max_new_tokens: int | None = None) -> list[str]:
        """
        Generate one completion per prompt. The first request that fails for good ends the call.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations.
            max_new_tokens (`int`, *optional*): Longest completion, in place of `max_tokens`.

        Returns:
            `list[str]`: The completions; an answer without content is `""`.

        Raises:
            `ConnectionError`: No answer from the endpoint, after all repetitions.
            `PermissionError`: The key was refused.
            `ValueError`: The endpoint does not serve the model, or rejected the request, e.g. an over-long prompt.
            `RuntimeError`: The endpoint kept failing, or its answer is not that of an OpenAI-compatible one.
        """
        prompts = check_prompts(prompts)
        max_tokens = self.max_tokens if max_new_tokens is None else max_new_tokens
        check_range("max_new_tokens", max_tokens, 1)
        if not prompts:
            return []
        client = self._connect()
        pool = ThreadPoolExecutor(min(self.max_concurrency, len(prompts)))
        try:
            futures = [pool.submit(self._complete, client, prompt, max_tokens) for prompt in prompts]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
        texts, counts = zip(*[future.result() for future in futures], strict=True)
        with _CLIENT_LOCK:
            self.completion_tokens += sum(count or 0 for count in counts)
        if None in counts:
            logger.warning("%s reports no token usage: completion_tokens is too low.", client.base_url)
        return list(texts)

    def _connect(self):
        try:
            import openai
        except ImportError as error:
            raise ImportError("OpenAIGenerator needs the openai client: pip install ccpo[serve]") from error
        with _CLIENT_LOCK:
            if self._client is None:
                key = os.environ.get("OPENAI_API_KEY") or "EMPTY" if self.api_key is None else self.api_key
                if not key or not key.isascii() or not key.isprintable() or " " in key:  # the client would quote it
                    raise ValueError("api_key (or OPENAI_API_KEY) is empty or holds blanks or unprintable characters.")
                timeout = openai.Timeout(self.timeout, connect=min(self.timeout, 10.0))
                options = {"base_url": self.base_url, "timeout": timeout, "max_retries": self.max_retries}
                self._client = openai.OpenAI(api_key=key, **options)
            return self._client

    def _complete(self, client, prompt, max_tokens: int) -> tuple[str, int | None]:
        """The completion of one prompt, and its number of tokens if the endpoint tells."""
        import openai

        options = {"model": self.model, "max_tokens": max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        failure = None
        try:
            if isinstance(prompt, str):
                answer = client.completions.create(prompt=prompt, **options, extra_body=self.extra_body)
            else:
                answer = client.chat.completions.create(messages=prompt, **options, extra_body=self.extra_body)
        except (openai.OpenAIError, ValueError) as error:
            failure = self._explain(client, error)
        if failure is not None:
            raise failure  # outside the handler: the client's own exception holds the request, and with it the key
        if not getattr(answer, "choices", None):
            said = repr(answer).replace(client.api_key, "<key>")
            raise RuntimeError(f"{client.base_url} does not answer as an OpenAI-compatible endpoint: {said:.200}")
        text = answer.choices[0].text if isinstance(prompt, str) else answer.choices[0].message.content
        return text or "", answer.usage and answer.usage.completion_tokens

    def _explain(self, client, error: Exception) -> Exception:
        """The exception that tells what to do about the client's, without the key."""
        import openai

        url, status = client.base_url, getattr(error, "status_code", None)
        said = f"{getattr(error, 'body', None) or error}".replace(client.api_key, "<key>")[:500]
        if isinstance(error, openai.APIConnectionError):
            return ConnectionError(
                f"No answer from {url} in {self.max_retries + 1} attempts: {said} Is it running (`vllm serve "
                f"{self.model}`)? If it is slow, raise timeout (now {self.timeout:g} s) or lower max_concurrency."
            )
        if status in (401, 403):
            return PermissionError(f"{url} refused the API key (HTTP {status}): pass another api_key. It said: {said}")
        if status == 404:
            return ValueError(
                f"{url} has no model {self.model!r} or no such path (HTTP 404). Its models are listed at {url}models; "
                f"base_url mostly ends in /v1. It said: {said}"
            )
        if status is not None and status < 500 and status not in (408, 409, 429):
            return ValueError(f"{url} rejected the request (HTTP {status}): {said}")
        attempts = f"{type(error).__name__} after up to {self.max_retries + 1} attempts"
        return RuntimeError(f"{url} failed, {attempts}: {said}")
