"""[`TransformersGenerator`]: a transformers model on this machine as a generator."""

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

_LOCAL_LOCK = threading.RLock()  # one call at a time, because random state and a shared model's mode are global
CPU_BATCH = 32  # measured: 60 GSM8K questions in two batches took 0.79 of the time of one batch, with a model of 135M
_RESERVED = {"max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "pad_token_id"}
_RESERVED |= {"num_return_sequences", "return_dict_in_generate"}
HUB = {"revision", "trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only"}  # a tokenizer's, too


@dataclass(eq=False, repr=False)
class TransformersGenerator(LoadedGenerator):
    """
    Generates texts with a local, frozen transformers model, in evaluation mode and without gradients.

    Options of sampling that have no argument here, such as `min_p`, come from `generation_kwargs`, or else from the
    model's `generation_config`. All end-of-sequence tokens of the `generation_config` end a text.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The id or path of a model, which each process loads whole at its first call, and a pickled copy again. Or a
            model object that is not split over processes. After a call it is in the mode in which it was before.
        processing_class (`str` or [`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer or its id. It is never modified. Defaults to the model's.
        max_new_tokens (`int`, *optional*, defaults to `512`): The longest completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`): The sampling temperature. `0` means greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`): Sample from the likeliest tokens with this total probability.
        top_k (`int`, *optional*): Sample from this many likeliest tokens. `None` or `0` means all.
        batch_size (`int`, *optional*):
            The most prompts in a batch. If there are more, they are sorted by length. Defaults to 32 on a CPU, where
            each row and its padding cost time, and to all prompts on an accelerator.
        seed (`int`, *optional*):
            Gives the generator a random state of its own, which continues from call to call. The rank of the process
            is added, so that processes draw different texts. By default the global random state is used.
        prefix_caching (`bool`, *optional*, defaults to `False`):
            Whether the common beginning of a batch's prompts is computed only once.
        generation_kwargs (`dict`, *optional*): More options of [`~transformers.GenerationConfig`].
        model_init_kwargs (`dict`, *optional*): Options of `AutoModelForCausalLM.from_pretrained`, if it is called.
        chat_template_kwargs (`dict`, *optional*): Options of the tokenizer's `apply_chat_template`.

    Attributes:
        completion_tokens (`int`): How many tokens were sampled so far, with end-of-sequence tokens.

    Raises:
        `ValueError`: If an argument is out of range or unknown. `TypeError`: If `model` is neither a name nor a model.
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
    _warned: bool = field(default=False, init=False)  # whether it was logged that texts skip the chat template
    _folds: set = field(default_factory=set, init=False)  # for whom it was logged that system messages are moved
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
        Generate one completion for each prompt.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations. A last assistant message is continued.
            max_new_tokens (`int`, *optional*): The longest completion, in tokens. Defaults to the generator's.
            watch (`Callable`, *optional*):
                Called for each new token with the index of the prompt and the new piece of text, which may be empty.
                If it returns `True`, this completion ends. See [`~ccpo.generation.watching`].

        Returns:
            `list[Completion]`: The completions.

        Raises:
            `ValueError`: If a prompt and its completion exceed the context, or if no chat template can render it.
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
                    # synced_gpus=False, because the model is whole here and need not wait for other processes
                    output = model.generate(
                        input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=False, **options
                    )
                    enough = {} if watching is None else watching.enough
                    for i, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                        row, stopped = cut_at_stop(row[: enough.get(i)], tokenizer, stops, rows[i])
                        stopped = stopped or i in enough
                        end = next((n for n, token in enumerate(row) if token in eos), len(row))
                        text = tokenizer.decode(row[:end], skip_special_tokens=True)
                        drawn = end + (end < len(row))  # the end-of-sequence token counts, too
                        cut = end == max_new_tokens and not stopped
                        completions[i] = Completion(text, drawn, cut, len(rows[i]))
            self.completion_tokens += sum(completion.tokens for completion in completions)
        return completions

    def reseed(self, seed: int) -> None:
        """Restart the generator's own random state, so that the next texts depend only on this seed."""
        self.seed, self._random_state = seed, None

    @property
    def context_length(self) -> int | None:
        """The most tokens that prompt and completion may have together; `None` if the model does not say."""
        return context_length(self._load()[0].config)

    @property
    def prompt_limit(self) -> int | None:
        """The most tokens that a prompt may have before the longest completion; `None` if the model does not say."""
        context = self.context_length
        return None if context is None else context - self.max_new_tokens

    def count_tokens(self, prompts: list) -> list[int]:
        """The number of tokens of each prompt. The next call reuses the tokens of prompts that are not too long."""
        with _LOCAL_LOCK:
            rows, limit = self._ids(check_prompts(prompts)), self.prompt_limit
            keys = map(repr, prompts)
            self._counted |= {k: r for k, r in zip(keys, rows, strict=True) if limit is None or len(r) <= limit}
        return list(map(len, rows))

    def score(self, prompts: list, choices: Sequence[str] | Sequence[Sequence[str]]) -> torch.Tensor:
        """
        The log-probability of each choice as the continuation of its prompt.

        The generator's temperature is applied (1 if it is greedy). Each prompt is computed only once, see
        [`~ccpo.generation.scoring.score_choices`]. A choice is tokenized by itself, as it would be sampled. Its end is
        not scored, so no choice should be the beginning of another one.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations.
            choices (`list[str]` or `list[list[str]]`): The c continuations, the same for all prompts or c for each.

        Returns:
            `torch.Tensor`: The summed log-probabilities, float32 on the CPU, of shape `(len(prompts), c)`.

        Raises:
            `ValueError`: If prompts have different numbers of choices, or if a choice has no tokens, unknown tokens,
                or more than fit into the context. `TypeError`: If `choices` is empty or a single text.
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
        """The model, its tokenizer and the token for padding. What is given by name is loaded at the first call."""
        if self._loaded is None:
            model, tokenizer, options = self.model, self.processing_class, dict(self.model_init_kwargs or {})
            if isinstance(tokenizer, str):
                shared = {name: value for name, value in options.items() if name in HUB and tokenizer == model}
                shared |= getattr(model, "tokenizer_options", {})  # a model that several agents share has these
                tokenizer = AutoTokenizer.from_pretrained(tokenizer, **shared)
            if isinstance(model, str):
                if (device := PartialState().device).type != "cpu":
                    options.setdefault("device_map", {"": device})
                with unsharded_loading(), patient_bars():
                    model = AutoModelForCausalLM.from_pretrained(find_base(model), **options).requires_grad_(False)
            pad_ids = [i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None]
            self._loaded = model, tokenizer, pad_ids[0]  # padding is masked, so any token will do
        return self._loaded

    def _batches(self, rows: list[list[int]]) -> list[list[int]]:
        """The indices of the prompts of each batch."""
        on_cpu = self._load()[0].device.type == "cpu"
        return batches_by_length(list(map(len, rows)), self.batch_size or (CPU_BATCH if on_cpu else None))

    def _tokenize(self, prompts: list, room: int) -> list[list[int]]:
        """The token ids of the prompts. Raises a `ValueError` if `room` more tokens do not fit into the context."""
        tokenizer, limit = self._load()[1], self.context_length
        if tokenizer.chat_template and not self._warned and any(isinstance(prompt, str) for prompt in prompts):
            self._warned = True
            logger.warning(TEXT_FOR_A_CHAT_MODEL, repr(self))
        rows = self._ids(prompts)
        check_lengths(rows, room, limit, "max_position_embeddings")
        return rows

    def _ids(self, prompts: list) -> list[list[int]]:
        """The token ids of the prompts. Those of [`count_tokens`] are reused."""
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
        # An option that is left out comes from the model's generation_config, or else from defaults such as top_k=50
        sampling = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}  # greedy, with neutral values
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": float(self.temperature), "top_p": float(self.top_p)}
            sampling["top_k"] = self.top_k or 0
        options = {"eos_token_id": sorted(eos), "repetition_penalty": 1.0, "disable_compile": True, **sampling}
        options |= {"max_new_tokens": max_new_tokens, "pad_token_id": pad_id, **(self.generation_kwargs or {})}
        return GenerationConfig(**options)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Use the generator's own random state instead of the global one, if it has a seed."""
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
