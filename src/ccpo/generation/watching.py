"""A batch that is watched as it is drawn: each row's text, piece by piece, and rows that end because it is enough."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import GenerationConfig, StoppingCriteria, StopStringCriteria
from transformers.generation import GenerationMode

logger = logging.getLogger(__name__)

Watch = Callable[[int, str], bool]  # a prompt's index and a piece of its completion -> whether that is enough


class Watching(StoppingCriteria):
    """
    Tells `watch` what each row of a batch draws, and ends the rows of which it wants no more.

    A piece is what a token adds to the text, special tokens left out; it is empty as long as a character is not whole,
    and while single bytes come: if they are no characters in the end, none of them is.
    All pieces of a row are the completion's beginning. They are empty where none can be decoded token by token: of a
    tokenizer without a fast core, or one that mends the spaces of the whole text; of a search with beams or an
    assistant, which takes back what it has drawn; and after tokens that change the text before them.

    Args:
        watch (`Callable`): the index of a prompt and a piece -> whether that is enough.
        indices (`Sequence[int]`): the prompts' indices, in the order of the rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): decodes.
        config ([`~transformers.GenerationConfig`]): has the end-of-sequence tokens, a list, and the stop strings.

    Attributes:
        enough (`dict[int, int]`): index of a prompt -> tokens after which it was enough.
    """

    def __init__(self, watch: Watch, indices: Sequence[int], tokenizer: Any, config: GenerationConfig):
        self.watch, self.indices, self.ends = watch, indices, config.eos_token_id
        self.enough: dict[int, int] = {}
        by_token = config.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        self._core = _core_of(tokenizer) if by_token else None
        known = () if self._core is None else self._core.get_added_tokens_decoder().items()
        self._special = {token for token, added in known if added.special}
        self._bytes = {self._core.token_to_id(f"<0x{byte:02X}>") for byte in range(256)} if self._core else set()
        self._held: dict[int, list[int]] = {place: [] for place in range(len(indices))}  # bytes that have come
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
        except Exception as error:  # of the decoder's own, which has no name: the text before has changed
            logger.warning(
                "One completion is no longer checked for its end while it is drawn, because its tokens could not "
                "be decoded: %s.",
                error,
            )
            del self._streams[place]
            return ""


def _core_of(tokenizer: Any) -> Any:
    """What decodes token by token as the tokenizer does, which leaves the spaces of byte pairs as they are."""
    core = getattr(tokenizer, "_tokenizer", None)
    if core is None or not tokenizer.clean_up_tokenization_spaces:
        return core
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    return core if type(core.model).__name__ == "BPE" and not forced else None
