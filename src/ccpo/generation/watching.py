"""A batch that is watched as it is drawn: each row's text, piece by piece, and rows that end because it is enough."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import StoppingCriteria, StopStringCriteria

Watch = Callable[[int, str], bool]  # a prompt's index and a piece of its completion -> whether that is enough


class Watching(StoppingCriteria):
    """
    Tells `watch` what each row of a batch draws, and ends the rows of which it wants no more.

    A piece is what a token adds to the text, special tokens left out; it is empty as long as a character is not whole.
    All pieces of a row are the completion's beginning. A tokenizer that cannot decode token by token (one without a
    fast core, or that mends the spaces of the whole text) has empty pieces only.

    Args:
        watch (`Callable`): the index of a prompt and a piece -> whether that is enough.
        indices (`Sequence[int]`): the prompts' indices, in the order of the rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): decodes.
        ends (`Collection[int]`): end-of-sequence tokens.
        stops (`Sequence[str]`): stop strings, with which a row has ended too.

    Attributes:
        enough (`dict[int, int]`): index of a prompt -> tokens after which it was enough.
    """

    def __init__(
        self, watch: Watch, indices: Sequence[int], tokenizer: Any, ends: Collection[int], stops: Sequence[str] = ()
    ):
        self.watch, self.indices, self.ends = watch, indices, ends
        self.enough: dict[int, int] = {}
        self._core = None if tokenizer.clean_up_tokenization_spaces else getattr(tokenizer, "_tokenizer", None)
        self._streams = [DecodeStream([], skip_special_tokens=True) for _ in indices]
        self._stops = StopStringCriteria(tokenizer, list(stops)) if stops else None
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
            piece = None if self._core is None else self._streams[place].step(self._core, tokens[place])
            done[place] = bool(self.watch(self.indices[place], piece or ""))
            if done[place]:
                self.enough[self.indices[place]] = self._drawn
            if done[place] or (stopped is not None and stopped[place]):
                self._going.discard(place)
        return torch.tensor(done, device=input_ids.device)
