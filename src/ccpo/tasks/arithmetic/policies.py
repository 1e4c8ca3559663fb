"""The tokenizer and the tiny policies of the arithmetic task."""

import re
import string
from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REMARKS = ("this looks hard", "this looks easy", "no idea yet")

_WORDS = [" Thought: ", " Answer: ", "\\boxed{"] + sorted({word for remark in REMARKS for word in remark.split()})
_SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]


def build_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """
    Build the tokenizer of the policies.

    It has a token for each number up to 299, for each word of Think-Solve's templates and of the remarks, and for each
    printable ASCII character. Decoding returns the same text. Other characters become `<unk>`.

    Args:
        words (`Sequence[str]`, *optional*):
            More words with a token each, e.g. `" Check: "`. Their ids follow the others, which do not change.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: It pads on the left, has no chat template, and adds no tokens.
    """
    numbers = [str(number) for number in range(300)]
    characters = string.ascii_letters + string.punctuation + " \t\n"
    vocabulary = [*_SPECIALS, *numbers, *_WORDS, *characters, *words]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    alternatives = "|".join(re.escape(word) for word in sorted([*_WORDS, *words], key=len, reverse=True))
    pattern = Regex(rf"{alternatives}|[12]\d\d|[1-9]\d|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_policy(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """
    Build a policy with random weights in float32. It has 871,168 parameters with Think-Solve's tokenizer.

    The architecture is Llama. With a Qwen2 configuration in its folder, `AutoTokenizer` would load the tokenizer as a
    `Qwen2Tokenizer`, which splits text in another way.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): Has the vocabulary and the special tokens.
        seed (`int`, defaults to 0): The seed of the weights. The global random state is not changed.

    Returns:
        [`~transformers.LlamaForCausalLM`]
    """
    return build_llama(
        tokenizer,
        seed,
        hidden_size=128,
        intermediate_size=896,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.06,
        tie_word_embeddings=True,
    )


def build_llama(tokenizer: PreTrainedTokenizerFast, seed: int, **sizes) -> LlamaForCausalLM:
    """
    Build a Llama of two layers with random weights in float32, with the vocabulary and the length of a tokenizer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The tokenizer.
        seed (`int`): The seed of the weights. The global random state is not changed.
        sizes: Fields of [`~transformers.LlamaConfig`].
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
