"""Watch a batch while it is generated: see the text of each row piece by piece, and end rows early."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import GenerationConfig, StoppingCriteria, StopStringCriteria
from transformers.generation import GenerationMode

logger = logging.getLogger(__name__)

Watch = Callable[[int, str], bool]  # takes a prompt's index and a piece of its completion; `True` ends the completion


class Watching(StoppingCriteria):
    """
    Passes each new piece of text of each row to `watch`, and ends the rows for which `watch` returns `True`.

    A piece is the text that a token adds, without special tokens. It is empty as long as a character is incomplete,
    and for tokens that are single bytes until the next other token. The pieces of a row, joined, are the beginning of
    its completion.

    All pieces are empty if the text cannot be decoded token by token. This is so for tokenizers without a fast core
    or that clean up the spaces of a whole text, and for beam search and assisted generation, which take tokens back.
    The rest of a row's pieces is empty after a token that changes the text before it.

    Args:
        watch (`Callable`): Takes the index of a prompt and a piece. Returns whether the completion ends.
        indices (`Sequence[int]`): The indices of the prompts, in the order of the rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Decodes the tokens.
        config ([`~transformers.GenerationConfig`]): Has the list of end-of-sequence tokens and the stop strings.

    Attributes:
        enough (`dict[int, int]`): Maps the index of each prompt that `watch` ended to the number of its tokens.
    """

    def __init__(self, watch: Watch, indices: Sequence[int], tokenizer: Any, config: GenerationConfig):
        self.watch, self.indices, self.ends = watch, indices, config.eos_token_id
        self.enough: dict[int, int] = {}
        by_token = config.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        self._core = _core_of(tokenizer) if by_token else None
        known = () if self._core is None else self._core.get_added_tokens_decoder().items()
        self._special = {token for token, added in known if added.special}
        self._bytes = {self._core.token_to_id(f"<0x{byte:02X}>") for byte in range(256)} if self._core else set()
        self._held: dict[int, list[int]] = {place: [] for place in range(len(indices))}  # bytes not yet decoded
        self._streams = {place: DecodeStream([], skip_special_tokens=True) for place in range(len(indices))}
        self._stops = StopStringCriteria(tokenizer, config.stop_strings) if config.stop_strings else None
        self._going, self._drawn = set(range(len(indices))), 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._drawn += 1
        tokens = input_ids[:, -1].tolist()
        stopped = None if self._stops is None else self._stops(input_ids, scores).tolist()
        done = [False] * len(tokens)
        for place in sorted(self._going):
            if tokens[place] in self.ends:
                self._going.discard(place)
                continue
            done[place] = bool(self.watch(self.indices[place], self._piece(place, tokens[place])))
            if done[place]:
                self.enough[self.indices[place]] = self._drawn
            if done[place] or (stopped is not None and stopped[place]):
                self._going.discard(place)
        return torch.tensor(done, device=input_ids.device)

    def _piece(self, place: int, token: int) -> str:
        if self._core is None or place not in self._streams or token in self._special:
            return ""
        self._held[place].append(token)
        if token in self._bytes:
            return ""
        tokens, self._held[place] = self._held[place], []
        try:
            return self._streams[place].step(self._core, tokens) or ""
        except Exception as error:  # the decoder's own exception, which has no name: the text before has changed
            logger.warning(
                "One completion is no longer checked for its end while it is drawn, because its tokens could not "
                "be decoded: %s.",
                error,
            )
            del self._streams[place]
            return ""


def _core_of(tokenizer: Any) -> Any:
    """The core of the tokenizer if it decodes single tokens to the same text as the tokenizer, else `None`."""
    core = getattr(tokenizer, "_tokenizer", None)
    if core is None or not tokenizer.clean_up_tokenization_spaces:
        return core
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    return core if type(core.model).__name__ == "BPE" and not forced else None
