"""The tokenizer and the tiny policies of the embedded task."""

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
    Build the tokenizer of the policies: one token per number up to 299, per word of Think-Solve's templates and of the
    remarks, and per printable ASCII character. Decoding gives the text back exactly; only other characters become
    `<unk>`.

    Args:
        words (`Sequence[str]`, *optional*):
            More words of one token each, e.g. `" Check: "`. Their ids come behind the others, which stay.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: padding on the left, no chat template, nothing added to the text.
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
    Build a policy of about a million parameters (871,168 with Think-Solve's tokenizer), float32, with random weights.

    The architecture is Llama: beside a Qwen2 config, `AutoTokenizer` would load the saved tokenizer as a
    `Qwen2Tokenizer`, which splits text in its own way.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): gives the vocabulary and the special tokens.
        seed (`int`, defaults to 0): seed of the weights; the global generator is left as it was.

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
    A Llama of two layers with random weights, float32, for a tokenizer's vocabulary, special tokens and length.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): whose.
        seed (`int`): seed of the weights; the global generator is left as it was.
        sizes: fields of [`~transformers.LlamaConfig`].
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
