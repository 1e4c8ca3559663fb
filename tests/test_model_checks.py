"""Models and tokenizers that cannot be right together are refused before anything is prepared."""

import copy
import re

import pytest
from conftest import make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ccpo import MultiAgentGRPOTrainer, SharedCredit

LORA = LoraConfig(r=2, target_modules=["q_proj"])


@pytest.fixture
def load(model_dirs):
    return lambda kind: AutoModelForCausalLM.from_pretrained(model_dirs[kind])


@pytest.fixture
def build(make_config, outcome, text_dataset):
    def build(model, role_kwargs=None, **kwargs):
        args = make_config(schedule="joint", max_steps=1, role_kwargs=role_kwargs)
        return MultiAgentGRPOTrainer(model, SharedCredit(outcome), args, text_dataset, **kwargs)

    return build


def test_two_objects_on_the_same_weights(load, build):
    base, other = load("qwen3"), load("qwen3")
    adapters = [get_peft_model(base, copy.deepcopy(LORA)) for _ in range(2)]
    other.model.embed_tokens = load("qwen3").model.embed_tokens
    one = load("qwen3")
    one.model.embed_tokens = other.model.embed_tokens
    for thinker, solver in (adapters, (one, other)):
        with pytest.raises(
            ValueError, match="'thinker' and 'solver' are two objects with the same weights, so training one"
        ):
            build({"thinker": thinker, "solver": solver})


def change(tokenizer, **tokens):
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return tokenizer


def with_token(tokenizer):
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "rows", "message"),
    [
        (lambda: change(make_tokenizer(kind="llama"), eos_token=None), 100, "has no `eos_token`"),
        (lambda: change(make_tokenizer(kind="llama"), eos_token=None, pad_token=None), 100, "has no `eos_token`"),
        (
            lambda: with_token(make_tokenizer(kind="llama")),
            100,
            "has the ids {'pad_token': 100}, but its model has embeddings only for the ids below 100",
        ),
        (lambda: make_tokenizer(kind="qwen3"), 100, "has the ids {'eos_token': 105, 'pad_token': 106}, but its model"),
        (lambda: make_tokenizer(kind="llama"), 60, "has 100 tokens, but its model has embeddings for only 60"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_tokenizer_that_its_model_has_no_rows_for(given, tokenizer, rows, message, build, model_dirs, tmp_path):
    tokenizer = tokenizer()
    tokenizer.chat_template = None
    model = make_model("llama", make_tokenizer(kind="llama"), vocab_size=rows, pad_token_id=None, eos_token_id=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    models = {"thinker": model_dirs["qwen3"], "solver": str(tmp_path)}
    with pytest.raises(ValueError, match=f"`processing_class` of agent 'solver' {re.escape(message)}"):
        build(models, processing_class={"solver": tokenizer} if given else None)


def test_rows_beyond_the_tokenizer_and_tokens_that_no_text_has(build, model_dirs, tmp_path):
    """Padded embeddings, and a token added for images, as in Gemma 3."""
    tokenizer = make_tokenizer(kind="llama")
    make_model("llama", tokenizer, vocab_size=128).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    extended = AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    extended.add_tokens(["<image>"])
    models = {"thinker": model_dirs["qwen3"], "solver": str(tmp_path)}
    build(models, processing_class={"thinker": extended}).train()


def test_more_tokens_than_learned_positions(build, model_dirs, tmp_path):
    tokenizer = make_tokenizer(kind="llama")
    size = {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    special = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **special)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"role 'solver' for row 0 of `train_dataset` has \d+ tokens.* leaves 56 "):
        build({"thinker": model_dirs["qwen3"], "solver": str(tmp_path)})
