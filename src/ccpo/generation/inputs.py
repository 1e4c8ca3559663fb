"""What every generator asks of its prompts and numbers."""

from collections.abc import Mapping, Sequence

TEXT_FOR_A_CHAT_MODEL = (
    "%s has a chat template and is given plain texts, without it. A chat model mostly answers nothing then: give "
    'messages, [{"role": "user", "content": text}], as prompts. A base model may read plain texts.'
)


def check_prompts(prompts) -> list:
    if isinstance(prompts, (str, Mapping)):
        raise TypeError(f"prompts must be a list of prompts, got one {type(prompts).__name__}: pass [prompt].")
    prompts = list(prompts)
    if prompts and all(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError("prompts must be a list of prompts, got the messages of one conversation: pass [messages].")
    for i, prompt in enumerate(prompts):
        is_chat = isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt)
        if not isinstance(prompt, str) and not (prompt and is_chat):
            raise TypeError(f"prompts[{i}] must be a str or a non-empty list of messages, got {prompt!r:.100}.")
    return prompts


def check_range(name: str, value, low, high=float("inf"), *, whole: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        kind = "an integer" if whole else "a number"
        raise ValueError(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r}.")
