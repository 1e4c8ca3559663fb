"""A transformers model on this machine as a generator."""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field

import torch
from accelerate import PartialState
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from ..quiet import patient_bars
from .bases import find_base, unsharded_loading
from .completion import Completion, LoadedGenerator
from .inputs import (
    TEXT_FOR_A_CHAT_MODEL,
    check_chat_template,
    check_known_options,
    check_lengths,
    check_prompts,
    check_range,
    context_length,
    encode_prompts,
)
from .prefix import caching_common_prefix
from .scoring import batches_by_length, evaluating, left_pad, score_choices
from .stops import check_stops, cut_at_stop
from .watching import Watch, Watching

logger = logging.getLogger(__name__)

_LOCAL_LOCK = threading.RLock()  # the random state and a shared model's mode belong to the process: one call at a time
CPU_BATCH = 32  # rows of a call; 60 questions of GSM8K in two calls take a model of 135M 0.79 of the time of one
_RESERVED = {"max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "pad_token_id"}
_RESERVED |= {"num_return_sequences", "return_dict_in_generate"}
HUB = {"revision", "trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only"}  # a tokenizer's, too


@dataclass(eq=False, repr=False)
class TransformersGenerator(LoadedGenerator):
    """
    A local, frozen model that generates text, in evaluation mode and without gradients.

    Sampling follows the arguments given here. Of the model's `generation_config`, all end-of-sequence ids are used,
    and the options on which the arguments are silent (`min_p`, `suppress_tokens`, ...).

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Model id or path: loaded at the first call, whole on every process whatever the training strategy, and
            loaded again by a pickled copy. Or a model, not sharded: used as it is, put back into the mode it was in.
        processing_class (`str` or [`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer, never modified, or its id. By default the model's.
        max_new_tokens (`int`, *optional*, defaults to `512`): Longest completion.
        temperature (`float`, *optional*, defaults to `1.0`): Sampling temperature; `0` is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`): Probability mass to sample from.
        top_k (`int`, *optional*): Number of likeliest tokens to sample from; `None` or `0` means all.
        batch_size (`int`, *optional*):
            Most prompts run at a time; more of them are sorted by length. By default 32 on a CPU, where a step costs
            by the row and its padding, and all on an accelerator.
        seed (`int`, *optional*):
            Seed of a random state of its own, which runs on from call to call and leaves the global one untouched. The
            process rank is added, or a group split over processes would draw the same answers. By default the global
            random state is used.
        prefix_caching (`bool`, *optional*, defaults to `False`):
            Whether what all prompts of a batch begin with is read once for the batch.
        generation_kwargs (`dict`, *optional*): More options of [`~transformers.GenerationConfig`].
        model_init_kwargs (`dict`, *optional*): Options of `AutoModelForCausalLM.from_pretrained`, for a `str`.
        chat_template_kwargs (`dict`, *optional*): Options of `apply_chat_template`.

    Attributes:
        completion_tokens (`int`): Tokens sampled so far, end-of-sequence tokens included.
    """

    model: object
    processing_class: object = None
    _: KW_ONLY
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    prefix_caching: bool = False
    generation_kwargs: dict | None = None
    model_init_kwargs: dict | None = None
    chat_template_kwargs: dict | None = None
    completion_tokens: int = field(default=0, init=False)
    _loaded: tuple | None = field(default=None, init=False)
    _warned: bool = field(default=False, init=False)  # that texts skip the chat template
    _folds: set = field(default_factory=set, init=False)  # said: system messages go into the user's
    _counted: dict = field(default_factory=dict, init=False)  # prompt -> its token ids, for the next call
    _random_state: torch.Tensor | None = field(default=None, init=False)

    def __post_init__(self):
        if isinstance(self.model, os.PathLike):
            self.model = os.fspath(self.model)
        is_name = isinstance(self.model, str)
        if not is_name and not hasattr(self.model, "generate"):
            raise TypeError(f"model must be a model id or an unwrapped model, got {type(self.model).__name__}.")
        if self.model_init_kwargs and not is_name:
            raise ValueError(
                "model_init_kwargs are used only when model is an id. Load the model object with them instead."
            )
        if self.processing_class is None:
            self.processing_class = self.model if is_name else self.model.config._name_or_path or None
        if not isinstance(self.processing_class, (str, PreTrainedTokenizerBase)):
            given = type(self.processing_class).__name__
            raise ValueError(
                "processing_class must be a tokenizer or the id of one, because the model does not name its own, "
                f"got {given}."
            )
        check_range("max_new_tokens", self.max_new_tokens, 1)
        check_range("temperature", self.temperature, 0, whole=False)
        check_range("top_p", self.top_p, torch.finfo().tiny, 1, whole=False)
        check_range("top_k", 0 if self.top_k is None else self.top_k, 0)
        check_range("batch_size", 1 if self.batch_size is None else self.batch_size, 1)
        if reserved := sorted(_RESERVED & set(self.generation_kwargs or {})):
            raise ValueError(
                f"generation_kwargs must not contain {reserved}, because the generator sets them itself. Remove them."
            )
        check_stops("generation_kwargs", self.generation_kwargs or {}, "stop_strings")
        check_known_options("generation_kwargs", self.generation_kwargs or {})

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_loaded": None, "_counted": {}}

    def __repr__(self) -> str:
        model = self.model
        name = model if isinstance(model, str) else getattr(model, "name_or_path", "") or type(model).__name__
        return f"TransformersGenerator({name!r}, max_new_tokens={self.max_new_tokens}, temperature={self.temperature})"

    def generate(
        self, prompts: list, *, max_new_tokens: int | None = None, watch: Watch | None = None
    ) -> list[Completion]:
        """
        Generate one completion per prompt.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations; a last assistant message is continued.
            max_new_tokens (`int`, *optional*): Longest completion, in place of the generator's own.
            watch (`Callable`, *optional*):
                Gets a prompt's index and the piece of text that was just drawn for it, token by token; returns whether
                that is enough. Pieces are empty while a character is not whole, see [`~ccpo.generation.watching`].

        Returns:
            `list[Completion]`: The completions.

        Raises:
            `ValueError`: A prompt and its completion exceed the model's context, or a conversation meets a tokenizer
                without chat template, or one that refuses it. Nothing has been generated then.
        """
        prompts = check_prompts(prompts)
        max_new_tokens = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        check_range("max_new_tokens", max_new_tokens, 1)
        if not prompts:
            return []
        completions = [Completion("")] * len(prompts)
        with _LOCAL_LOCK:
            model, tokenizer, pad_id = self._load()
            rows = self._tokenize(prompts, max_new_tokens)
            self._counted.clear()
            config = self._generation_config(max_new_tokens)
            eos, options = config.eos_token_id, {"tokenizer": tokenizer} if config.stop_strings else {}
            stops = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or []
            caching = caching_common_prefix(model) if self.prefix_caching else nullcontext()
            with evaluating(model), caching, self._own_random_state():
                for batch in self._batches(rows):
                    ids, mask = left_pad([rows[i] for i in batch], pad_id, model.device)
                    watching = None
                    if watch is not None:
                        watching = Watching(watch, batch, tokenizer, config)
                        options["stopping_criteria"] = StoppingCriteriaList([watching])
                    # synced_gpus: the model is whole here, so that it never waits for the other processes
                    output = model.generate(
                        input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=False, **options
                    )
                    enough = {} if watching is None else watching.enough
                    for i, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                        row, stopped = cut_at_stop(row[: enough.get(i)], tokenizer, stops, rows[i])
                        stopped = stopped or i in enough
                        end = next((n for n, token in enumerate(row) if token in eos), len(row))
                        text = tokenizer.decode(row[:end], skip_special_tokens=True)
                        drawn = end + (end < len(row))  # with its end-of-sequence token
                        cut = end == max_new_tokens and not stopped
                        completions[i] = Completion(text, drawn, cut, len(rows[i]))
            self.completion_tokens += sum(completion.tokens for completion in completions)
        return completions

    def reseed(self, seed: int) -> None:
        """Begin the random state of its own anew: what is drawn next depends on this seed alone."""
        self.seed, self._random_state = seed, None

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and completion may have together; `None` where the model does not say."""
        return context_length(self._load()[0].config)

    @property
    def prompt_limit(self) -> int | None:
        """Tokens that a prompt may have beside the longest completion; `None` where the model does not say."""
        context = self.context_length
        return None if context is None else context - self.max_new_tokens

    def count_tokens(self, prompts: list) -> list[int]:
        """Tokens of each prompt; the next call does not make those again that fit."""
        with _LOCAL_LOCK:
            rows, limit = self._ids(check_prompts(prompts)), self.prompt_limit
            keys = map(repr, prompts)
            self._counted |= {k: r for k, r in zip(keys, rows, strict=True) if limit is None or len(r) <= limit}
        return list(map(len, rows))

    def score(self, prompts: list, choices: Sequence[str] | Sequence[Sequence[str]]) -> torch.Tensor:
        """
        Log-probability of each choice as the continuation of its prompt, at the generator's temperature (1 if greedy).

        A prompt is run once, see [`~ccpo.generation.scoring.score_choices`]. A choice is tokenized on its own, as it
        would be sampled, and what follows it is not scored: no choice should be the beginning of another.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations.
            choices (`list[str]` or `list[list[str]]`): The c continuations of every prompt, or of each.

        Returns:
            `torch.Tensor`: Summed log-probabilities, float32 on the CPU, of shape `(len(prompts), c)`.

        Raises:
            `ValueError`: A choice has no tokens or unknown ones, or does not fit into the context behind a prompt.
        """
        prompts = check_prompts(prompts)
        if isinstance(choices, str) or not choices:
            raise TypeError(f"choices must be a non-empty list of str, got {choices!r}.")
        own = [choices] * len(prompts) if isinstance(choices[0], str) else choices
        if len(own) != len(prompts) or len({len(row) for row in own}) > 1:
            raise ValueError(
                f"choices must have the same number of texts for each prompt, got {[len(row) for row in own]} "
                f"texts for {len(prompts)} prompts."
            )
        with _LOCAL_LOCK:
            if not prompts:
                return torch.zeros(0, len(choices))
            model, tokenizer, pad_id = self._load()
            of_text = {
                choice: tokenizer(choice, add_special_tokens=False)["input_ids"] for row in own for choice in row
            }
            for choice, ids in of_text.items():
                if not ids or tokenizer.unk_token_id in ids:
                    raise ValueError(f"choice {choice!r} is empty or holds a token that the tokenizer does not know.")
            choice_ids = [[of_text[choice] for choice in row] for row in own]
            options = {"pad_id": pad_id, "temperature": self.temperature or 1.0, "device": model.device}
            rows = self._tokenize(prompts, max(map(len, of_text.values())))
            scores = torch.empty(len(rows), len(own[0]))
            for batch in self._batches(rows):
                scored = score_choices(model, [rows[i] for i in batch], [choice_ids[i] for i in batch], **options)
                scores[batch] = scored.cpu()
        return scores

    def _load(self) -> tuple:
        """The model, its tokenizer and the token to pad with; what was given by name is loaded the first time."""
        if self._loaded is None:
            model, tokenizer, options = self.model, self.processing_class, dict(self.model_init_kwargs or {})
            if isinstance(tokenizer, str):
                shared = {name: value for name, value in options.items() if name in HUB and tokenizer == model}
                shared |= getattr(model, "tokenizer_options", {})  # of a model that several agents play
                tokenizer = AutoTokenizer.from_pretrained(tokenizer, **shared)
            if isinstance(model, str):
                if (device := PartialState().device).type != "cpu":
                    options.setdefault("device_map", {"": device})
                with unsharded_loading(), patient_bars():
                    model = AutoModelForCausalLM.from_pretrained(find_base(model), **options).requires_grad_(False)
            pad_ids = [i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None]
            self._loaded = model, tokenizer, pad_ids[0]  # pads are masked: without a token for them any will do
        return self._loaded

    def _batches(self, rows: list[list[int]]) -> list[list[int]]:
        """Which prompts run together."""
        on_cpu = self._load()[0].device.type == "cpu"
        return batches_by_length(list(map(len, rows)), self.batch_size or (CPU_BATCH if on_cpu else None))

    def _tokenize(self, prompts: list, room: int) -> list[list[int]]:
        """Token ids of the prompts; behind every one the model's context has room for `room` tokens."""
        tokenizer, limit = self._load()[1], self.context_length
        if tokenizer.chat_template and not self._warned and any(isinstance(prompt, str) for prompt in prompts):
            self._warned = True
            logger.warning(TEXT_FOR_A_CHAT_MODEL, repr(self))
        rows = self._ids(prompts)
        check_lengths(rows, room, limit, "max_position_embeddings")
        return rows

    def _ids(self, prompts: list) -> list[list[int]]:
        """Token ids of the prompts, of those that were counted as they were."""
        tokenizer, options = self._load()[1], self.chat_template_kwargs
        check_chat_template(prompts, tokenizer, options)
        keys = list(map(repr, prompts))
        new = [i for i, key in enumerate(keys) if key not in self._counted]
        rows = encode_prompts([prompts[i] for i in new], tokenizer, repr(self), self._folds, options)
        made = dict(zip(new, rows, strict=True))
        return [made[i] if i in made else list(self._counted[key]) for i, key in enumerate(keys)]

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        model, tokenizer, pad_id = self._load()
        eos = model.generation_config.eos_token_id
        eos = {*([eos] if isinstance(eos, int) else eos or []), tokenizer.eos_token_id} - {None}
        # What is left out is taken from the model's generation_config, and then from defaults such as top_k=50
        sampling = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}  # greedy: the neutral values
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": float(self.temperature), "top_p": float(self.top_p)}
            sampling["top_k"] = self.top_k or 0
        options = {"eos_token_id": sorted(eos), "repetition_penalty": 1.0, "disable_compile": True, **sampling}
        options |= {"max_new_tokens": max_new_tokens, "pad_token_id": pad_id, **(self.generation_kwargs or {})}
        return GenerationConfig(**options)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """The generator's own random state in place of the global one, if it has a seed."""
        if self.seed is None:
            yield
            return
        device = self._load()[0].device
        where = [] if device.type == "cpu" else [device]
        rng = torch.get_device_module(device) if where else torch.random
        with torch.random.fork_rng(devices=where, device_type=device.type):
            if self._random_state is None:
                rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
                self._random_state = torch.Generator(device).manual_seed(self.seed + rank).get_state()
            rng.set_rng_state(self._random_state, *where)
            yield
            self._random_state = rng.get_rng_state(*where)
