"""A tiny chat model with random weights, which is built in code. Smoke tests use it, so nothing is downloaded."""

from pathlib import Path

from .arithmetic.policies import build_llama, build_tokenizer

TINY = "tiny-random"  # its name in `model_name_or_path`
CONTEXT = 16_384  # tokens, about one for each character

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + '\n' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}"
)


def build_tiny_model(output_dir: str | Path, seed: int = 0) -> str:
    """
    Write a Llama model with about 50,000 random weights, and a character tokenizer with a chat template.

    Args:
        output_dir (`str` or `Path`): The folder.
        seed (`int`, defaults to 0): The seed of the weights. The global random state is not changed.

    Returns:
        `str`: The folder, which `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` can load.
    """
    tokenizer = build_tokenizer()
    tokenizer.chat_template, tokenizer.model_max_length = CHAT_TEMPLATE, CONTEXT
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = build_llama(tokenizer, seed, **sizes)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return str(output_dir)
