"""[`VLLMGenerator`]: a model in vLLM's offline engine as a generator."""

import itertools
import json
import logging
import weakref
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .bases import find_base, read_adapter
from .completion import Completion, LoadedGenerator
from .inputs import (
    TEXT_FOR_A_CHAT_MODEL,
    check_chat_template,
    check_lengths,
    check_prompts,
    check_range,
    encode_prompts,
)
from .stops import with_stops

logger = logging.getLogger(__name__)

# The engines in use, by base and options
_ENGINES: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_ADAPTERS = itertools.count(1)
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks for which vLLM has kernels
_RESERVED = {"max_tokens", "temperature", "top_p", "top_k", "n", "seed", "detokenize"}


@dataclass(eq=False)
class VLLMGenerator(LoadedGenerator):
    """
    Generates texts with a local, frozen model in vLLM's offline engine.

    Generators with the same base and the same options share an engine. Prompts are tokenized as by
    [`TransformersGenerator`].

    Args:
        model (`str`): The id or folder of a model, or the folder of a PEFT adapter, which is applied to its base.
        processing_class (`str` or [`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer or its id. Defaults to the model's.
        max_new_tokens (`int`, *optional*, defaults to `512`): The longest completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`): The sampling temperature. `0` means greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`): Sample from the likeliest tokens with this total probability.
        top_k (`int`, *optional*): Sample from this many likeliest tokens. `None` or `0` means all.
        seed (`int`, *optional*): The seed of the first prompt. Each further prompt, also of later calls, has the next.
        lora_rank (`int`, *optional*):
            The largest rank of the adapters that the engine accepts. Defaults to the rank of its own adapter. For a
            base that shares an engine with adapters, give the largest of their ranks.
        generation_kwargs (`dict`, *optional*):
            More options of `vllm.SamplingParams`. `stop_strings` may be used for its `stop`.
        model_init_kwargs (`dict`, *optional*): Options of `vllm.LLM`, e.g. `{"max_model_len": 8192}`.
        chat_template_kwargs (`dict`, *optional*): Options of the tokenizer's `apply_chat_template`.

    Attributes:
        completion_tokens (`int`): How many tokens were sampled so far, with end-of-sequence tokens.

    Raises:
        `ValueError`: If a number is out of range, or an option is reserved. `TypeError`: If `model` is not a name.
    """

    model: str
    processing_class: object = None
    _: KW_ONLY
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    lora_rank: int | None = None
    generation_kwargs: dict | None = None
    model_init_kwargs: dict | None = None
    chat_template_kwargs: dict | None = None
    completion_tokens: int = field(default=0, init=False, repr=False)
    _loaded: tuple | None = field(default=None, init=False, repr=False)
    _drawn: int = field(default=0, init=False, repr=False)  # prompts since the seed was set
    _warned: bool = field(default=False, init=False, repr=False)
    _folds: set = field(default_factory=set, init=False, repr=False)

    def __post_init__(self):
        if not isinstance(self.model, str):
            raise TypeError(f"model must be a model id or a folder, got {type(self.model).__name__}.")
        self.processing_class = self.model if self.processing_class is None else self.processing_class
        check_range("max_new_tokens", self.max_new_tokens, 1)
        check_range("temperature", self.temperature, 0, whole=False)
        check_range("top_p", self.top_p, torch.finfo().tiny, 1, whole=False)
        check_range("top_k", 0 if self.top_k is None else self.top_k, 0)
        if reserved := sorted(_RESERVED & set(self.generation_kwargs or {})):
            raise ValueError(
                f"generation_kwargs must not contain {reserved}, because the generator sets them itself. Remove them."
            )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_loaded": None}

    def generate(self, prompts: list, *, max_new_tokens: int | None = None) -> list[Completion]:
        """
        Generate one completion for each prompt.

        Args:
            prompts (`list[str]` or `list[list[dict]]`):
                Texts or conversations. If the last message is the assistant's, it is continued.
            max_new_tokens (`int`, *optional*): The longest completion, in tokens. Defaults to the generator's.

        Returns:
            `list[Completion]`: The completions.

        Raises:
            `ValueError`: As for [`TransformersGenerator.generate`], and if `vllm.SamplingParams` does not know an
                option.
            `ImportError`: If vLLM is not installed.
        """
        prompts = check_prompts(prompts)
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        check_range("max_new_tokens", limit, 1)
        if not prompts:
            return []
        engine, tokenizer, adapter = self._load()
        if tokenizer.chat_template and not self._warned and any(isinstance(prompt, str) for prompt in prompts):
            self._warned = True
            logger.warning(TEXT_FOR_A_CHAT_MODEL, repr(self))
        rows = self._ids(prompts)
        check_lengths(rows, limit, self.context_length, "max_model_len")
        given = [{"prompt_token_ids": ids} for ids in rows]
        sampling = [self._sampling_params(limit, tokenizer) for _ in rows]
        completions = []
        outputs = engine.generate(given, sampling, use_tqdm=False, lora_request=adapter)
        for read, output in zip(rows, outputs, strict=True):
            drawn = output.outputs[0]
            ids, by_token = list(drawn.token_ids), drawn.finish_reason == "stop" and type(drawn.stop_reason) is not str
            text = tokenizer.decode(ids[:-1] if by_token else ids, skip_special_tokens=True)
            completions.append(Completion(text, len(ids), drawn.finish_reason == "length", len(read)))
        self.completion_tokens += sum(completion.tokens for completion in completions)
        return completions

    def sampled(self, seed: int | None = None, stop: list[str] | None = None, **options) -> "VLLMGenerator":
        """
        A generator with the same engine and other settings.

        Args:
            seed (`int`, *optional*): Its seed. The seed of this generator is not taken over.
            stop (`list[str]`, *optional*): Stop strings, in addition to this generator's.
            options: Arguments that replace this generator's.
        """
        if stop:
            options["generation_kwargs"] = with_stops(self.generation_kwargs, "stop_strings", stop)
        return super().sampled(seed, **options)

    def reseed(self, seed: int) -> None:
        """Restart with a seed, so that the next texts depend only on it, as far as vLLM is reproducible."""
        self.seed, self._drawn = seed, 0

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and completion may have together."""
        return self._load()[0].llm_engine.model_config.max_model_len

    @property
    def prompt_limit(self) -> int:
        """The most tokens that a prompt may have before the longest completion."""
        return self.context_length - self.max_new_tokens

    def count_tokens(self, prompts: list) -> list[int]:
        """The number of tokens of each prompt."""
        return list(map(len, self._ids(check_prompts(prompts))))

    def _ids(self, prompts: list) -> list[list[int]]:
        tokenizer, options = self._load()[1], self.chat_template_kwargs
        check_chat_template(prompts, tokenizer, options)
        return encode_prompts(prompts, tokenizer, repr(self), self._folds, options)

    def _sampling_params(self, max_tokens: int, tokenizer: PreTrainedTokenizerBase) -> Any:
        from vllm import SamplingParams

        more = dict(self.generation_kwargs or {})
        more |= {"stop": more.pop("stop_strings")} if "stop_strings" in more else {}
        more["stop_token_ids"] = [
            *more.get("stop_token_ids", ()),
            *([tokenizer.eos_token_id] * bool(tokenizer.eos_token)),
        ]
        seed = None if self.seed is None else (self.seed + self._drawn) % 2**32
        self._drawn += 1
        sampling = {"temperature": float(self.temperature), "top_p": float(self.top_p), "top_k": self.top_k or 0}
        try:
            return SamplingParams(max_tokens=max_tokens, seed=seed, **sampling, **more)
        except TypeError as error:
            raise ValueError(
                f"generation_kwargs={self.generation_kwargs!r} are not options of vLLM's SamplingParams: {error}"
            ) from error

    def _load(self) -> tuple:
        """The engine, the tokenizer, and vLLM's request for the adapter, which is `None` without one."""
        if self._loaded is not None:
            return self._loaded
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise ImportError("VLLMGenerator needs vLLM: pip install 'ccpo[vllm]'") from error
        adapter, options = read_adapter(self.model), dict(self.model_init_kwargs or {})
        base = adapter["base_model_name_or_path"] if adapter else find_base(self.model)
        if rank := self.lora_rank or (adapter or {}).get("r"):
            fitting = next((known for known in _RANKS if known >= rank), rank)
            options = {"enable_lora": True, "max_lora_rank": fitting, **options}
        key = json.dumps([base, sorted(options.items())], default=str)
        engine = _ENGINES.get(key)
        if engine is None:
            engine = _ENGINES[key] = LLM(base, **options)
        tokenizer = self.processing_class
        if isinstance(tokenizer, str):
            shared = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
            shared |= {"revision": options["tokenizer_revision"]} if "tokenizer_revision" in options else {}
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, **(shared if tokenizer == self.model else {}))
        request = LoRARequest(self.model, next(_ADAPTERS), self.model) if adapter else None
        self._loaded = engine, tokenizer, request
        return self._loaded
