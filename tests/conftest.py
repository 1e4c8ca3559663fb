"""Tiny real models and tokenizers, built in code: two architectures, two tokenizers."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ccpo import MultiAgentGRPOConfig

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell has put into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
# Two families whose tokenizers have nothing in common: other ids for the same characters, other special tokens by id
# and name, other sizes. The first's pad id is beyond the second's vocabulary; the second alone has a bos token.
ALPHABETS = {"qwen3": PRINTABLE + "äöüßéèçñ", "llama": PRINTABLE[::-1]}
SPECIALS = {
    "qwen3": {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"},
    "llama": {"bos_token": "<s>", "pad_token": "<blank>", "unk_token": "<?>", "eos_token": "</s>"},
}


def make_tokenizer(alphabet: str | None = None, chat: bool = True, kind: str = "qwen3") -> PreTrainedTokenizerFast:
    """A character-level tokenizer: special tokens behind the alphabet for a Qwen3, before it for a Llama."""
    characters, special = dict.fromkeys(alphabet or ALPHABETS[kind]), SPECIALS[kind]
    tokens = [*characters, *special.values()] if kind == "qwen3" else [*special.values(), *characters]
    vocab = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocab, unk_token=special["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **special)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(kind: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **overrides):
    """A tiny random model of one of two architectures."""
    torch.manual_seed(seed)
    config_class, model_class = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[
        kind
    ]
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    model = model_class(config_class(**settings | overrides))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory):
    """
    Folders of two tiny models: a Qwen3 and a Llama with another tokenizer. Their configurations know no pad and no bos
    token and another end than their tokenizer's, as base models' do: training aligns each with its own tokenizer.
    """
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for kind in ALPHABETS:
        tokenizer = make_tokenizer(kind=kind)
        model = make_model(kind, tokenizer, pad_token_id=None, eos_token_id=tokenizer.convert_tokens_to_ids("~"))
        model.generation_config.pad_token_id = None
        model.generation_config.eos_token_id = model.config.eos_token_id
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
        paths[kind] = str(folder / kind)
    return paths


@pytest.fixture
def text_dataset():
    return Dataset.from_dict({"prompt": [f"{i}+1=" for i in range(8)], "solution": [str(i + 1) for i in range(8)]})


@pytest.fixture
def chat_dataset():
    prompts = [[{"role": "user", "content": f"{i}+1="}] for i in range(8)]
    return Dataset.from_dict({"prompt": prompts, "solution": [str(i + 1) for i in range(8)]})


def digit_outcome(prompts, completions, **kwargs):
    """A deterministic judge that random models satisfy at times: an even number of characters is right."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [1.0 if len(text) % 2 == 0 else -1.0 for text in texts]


@pytest.fixture
def outcome():
    return digit_outcome


@pytest.fixture
def make_config(tmp_path):
    """A configuration for seconds on a CPU; keyword arguments override."""

    def build(config_class=MultiAgentGRPOConfig, **overrides):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 8,
            "max_steps": 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "report_to": "none",
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return config_class(**settings | overrides)

    return build
