"""What a generator says of a text beside the text."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Completion:
    """
    One text that a generator drew.

    Args:
        text (`str`): without special tokens.
        tokens (`int`, *optional*): how many were drawn, an end-of-sequence token included; `None` where nobody tells.
        truncated (`bool`, *optional*): whether it was cut at the limit; `None` where nobody tells.
        prompt_tokens (`int`, *optional*): tokens of what was read for it; `None` where nobody tells.
    """

    text: str
    tokens: int | None = None
    truncated: bool | None = None
    prompt_tokens: int | None = None


class CompletionGenerator:
    """What has a method `generate`, prompts -> [`Completion`], as a callable: prompts -> texts."""

    def __call__(self, prompts: list, *, max_new_tokens: int | None = None) -> list[str]:
        """The texts of `generate`."""
        return [completion.text for completion in self.generate(prompts, max_new_tokens=max_new_tokens)]


class LoadedGenerator(CompletionGenerator):
    """Over a dataclass that samples from a model of its own, which `_load` gives with its tokenizer."""

    def sampled(self, seed: int | None = None, **options) -> Self:
        """The same model sampled otherwise: other arguments by name, and no seed but the one given."""
        other = replace(self, seed=seed, **options)
        other._loaded, other._warned, other._folds = self._load(), self._warned, self._folds
        return other

    @property
    def takes_messages(self) -> bool:
        """Whether prompts may be conversations: there is a chat template."""
        return bool(self._load()[1].chat_template or (self.chat_template_kwargs or {}).get("chat_template"))
