"""[`Completion`]: a text that a generator wrote, with its numbers of tokens."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Completion:
    """
    A text that a generator wrote. What the generator does not report is `None`.

    Args:
        text (`str`): The text, without special tokens.
        tokens (`int`, *optional*): How many tokens were sampled, with an end-of-sequence token.
        truncated (`bool`, *optional*): Whether the text was cut at the longest length.
        prompt_tokens (`int`, *optional*): How many tokens the prompt has.
    """

    text: str
    tokens: int | None = None
    truncated: bool | None = None
    prompt_tokens: int | None = None


class CompletionGenerator:
    """Base class that makes an object with a method `generate`, which returns [`Completion`]s, callable."""

    def __call__(self, prompts: list, *, max_new_tokens: int | None = None) -> list[str]:
        """
        Generate one text for each prompt.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Texts or conversations.
            max_new_tokens (`int`, *optional*): The longest text, in tokens. Defaults to the generator's.

        Returns:
            `list[str]`: The texts of `generate`.
        """
        return [completion.text for completion in self.generate(prompts, max_new_tokens=max_new_tokens)]


class LoadedGenerator(CompletionGenerator):
    """Base class of generators that load their own model. Their method `_load` returns it with its tokenizer."""

    def sampled(self, seed: int | None = None, **options) -> Self:
        """
        A generator with the same model and other settings.

        Args:
            seed (`int`, *optional*): Its seed. The seed of this generator is not taken over.
            options: Arguments that replace this generator's.
        """
        other = replace(self, seed=seed, **options)
        other._loaded, other._warned, other._folds = self._load(), self._warned, self._folds
        return other

    @property
    def takes_messages(self) -> bool:
        """Whether prompts may be conversations. They may be if there is a chat template."""
        return bool(self._load()[1].chat_template or (self.chat_template_kwargs or {}).get("chat_template"))
