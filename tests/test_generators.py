import importlib.util
import json
import logging
import pickle
import random
import sys
import threading
import time
import traceback
from collections import Counter

import pytest
import torch
import transformers
from accelerate import PartialState
from openai_server import FaultyEndpoint, chat_answer, free_port, transformers_serve
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    Olmo3Config,
    PreTrainedTokenizerFast,
)

from ccpo.generation import OpenAIGenerator, TransformersGenerator
from ccpo.generation.replies import error_status, read_reply

CHARACTERS = [chr(code) for code in range(32, 127)]
SPECIAL = ["<pad>", "<eos>", "<end>", "<unk>"]
TEMPLATE = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<end>' }}{% endfor %}[assistant]"
TEXTS = ["1 + 1 =", "a", "The quick brown fox", "Solve: 12 * (3 - 4)", "zz", "what is 7 minus 9?", "x", "So:"]
CHATS = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in TEXTS]
KEY = "sk-very-secret-1234"


def make_tokenizer(chat_template=TEMPLATE):
    vocabulary = {token: i for i, token in enumerate(SPECIAL + CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "extra_special_tokens": ["<end>"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    tokenizer.chat_template = chat_template
    return tokenizer


def make_model(config_class=LlamaConfig, seed=0, **options):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=len(SPECIAL + CHARACTERS),
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,  # large: greedy continuations that differ and are not repetitive
        **sizes,
        **ids,
        **options,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = [1, 2]
    model.generation_config.do_sample = True
    return model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-model")
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def base_url(model_path, tmp_path_factory):
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}: pip install ccpo[serve]")
    with transformers_serve(model_path, tmp_path_factory.mktemp("serve") / "log.txt") as url:
        yield url


@pytest.fixture
def process_group(tmp_path):
    PartialState()  # before the group exists, or it would wait for a launcher's environment
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only slow down a model this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt_ids(tokenizer, prompt):
    text = prompt if isinstance(prompt, str) else tokenizer.apply_chat_template(prompt, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def slow_greedy(model, tokenizer, prompt, max_new_tokens):
    """One prompt, no padding, no cache, no `generate`: the argmax of a full forward pass per token."""
    ids, new = prompt_ids(tokenizer, prompt), []
    while len(new) < max_new_tokens and (not new or new[-1] not in (1, 2)):
        with torch.no_grad():
            new.append(model(torch.tensor([ids + new])).logits[0, -1].argmax().item())
    return new


def slow_score(model, tokenizer, prompt, choice, temperature=1.0):
    ids, new = prompt_ids(tokenizer, prompt), tokenizer(choice, add_special_tokens=False)["input_ids"]
    total = 0.0
    for i, token in enumerate(new):
        with torch.no_grad():
            total += model(torch.tensor([ids + new[:i]])).logits[0, -1].div(temperature).log_softmax(-1)[token].item()
    return total


# TransformersGenerator: generation


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("prompts", [TEXTS, CHATS, TEXTS[:2] + CHATS[:2]], ids=["text", "chat", "mixed"])
def test_greedy_equals_one_prompt_at_a_time(model_path, prompts, batch_size):
    model, tokenizer = make_model(), make_tokenizer()
    generator = TransformersGenerator(model_path, max_new_tokens=24, temperature=0, batch_size=batch_size)
    expected = [slow_greedy(model, tokenizer, prompt, 24) for prompt in prompts]
    assert generator(prompts) == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert generator.completion_tokens == sum(map(len, expected))
    one_by_one = [
        model.generate(torch.tensor([prompt_ids(tokenizer, p)]), max_new_tokens=24, do_sample=False)[0].tolist()
        for p in prompts
    ]
    assert [ids[-len(new) :] for ids, new in zip(one_by_one, expected, strict=True)] == expected
    assert len(set(map(tuple, expected))) > 3 or len(prompts) < 5  # the prompts do matter


def test_every_eos_id_of_the_model_ends_a_completion():
    model, tokenizer = make_model(), make_tokenizer()
    tokens = slow_greedy(model, tokenizer, TEXTS[0], 8)
    stop = next(token for token in tokens[2:] if token not in tokens[:2])
    end = tokens.index(stop)
    model.generation_config.eos_token_id = [2, stop]
    generator = TransformersGenerator(model, tokenizer, temperature=0, max_new_tokens=8)
    assert generator(TEXTS[:1]) == [tokenizer.decode(tokens[:end])]
    assert generator.completion_tokens == end + 1


def test_model_and_tokenizer_without_eos_run_to_the_end():
    model, tokenizer = make_model(), make_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    generator = TransformersGenerator(model, tokenizer, temperature=0, max_new_tokens=40)
    assert len(generator(TEXTS)) == len(TEXTS)
    assert generator.completion_tokens == 40 * len(TEXTS)


def test_tokenizer_without_pad_token_is_left_alone():
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = None, "right"
    expected = TransformersGenerator(make_model(), make_tokenizer(), temperature=0, max_new_tokens=8)(TEXTS)
    assert TransformersGenerator(make_model(), tokenizer, temperature=0, max_new_tokens=8)(TEXTS) == expected
    assert tokenizer.pad_token is None and tokenizer.padding_side == "right"


def test_sampling_follows_the_arguments_and_not_the_models_generation_config():
    model, tokenizer = make_model(), make_tokenizer()
    n, temperature = 4000, 4.0
    with torch.no_grad():
        expected = (model(torch.tensor([prompt_ids(tokenizer, TEXTS[0])])).logits[0, -1] / temperature).softmax(-1)
    assert expected.topk(50).values.sum() < 0.9  # transformers' own default, top_k=50, would show
    greedy = TransformersGenerator(model, tokenizer, temperature=0, max_new_tokens=12)
    plain = greedy(TEXTS)
    model.generation_config.update(top_k=3, temperature=0.1, top_p=0.1, repetition_penalty=5.0)
    assert greedy(TEXTS) == plain
    sample = TransformersGenerator(model, tokenizer, temperature=temperature, max_new_tokens=1, seed=0)
    drawn = sample([TEXTS[0]] * n)
    observed = torch.tensor([drawn.count(character) / n for character in CHARACTERS])
    deviation = (observed - expected[len(SPECIAL) :]) / (expected[len(SPECIAL) :] / n).sqrt()
    assert deviation.abs().max() < 4.5  # standard errors, the largest of 95


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_limits_of_the_sampling_options_are_greedy(options):
    model, tokenizer = make_model(), make_tokenizer()
    greedy = TransformersGenerator(model, tokenizer, temperature=0, max_new_tokens=8)(TEXTS)
    assert TransformersGenerator(model, tokenizer, max_new_tokens=8, **options)(TEXTS) == greedy
    assert TransformersGenerator(model, tokenizer, max_new_tokens=8)(TEXTS) != greedy


def test_a_seed_is_reproducible_and_leaves_the_global_random_state_alone(model_path):
    first, second, other = (TransformersGenerator(model_path, max_new_tokens=8, seed=seed) for seed in (3, 3, 4))
    before = torch.get_rng_state()
    calls = [first(TEXTS), first(TEXTS)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert [second(TEXTS), second(TEXTS)] == calls
    assert calls[0] != calls[1] and other(TEXTS) != calls[0]


@pytest.mark.parametrize(("batch_size", "calls"), [(None, [3, 3, 2]), (5, [4, 4]), (8, [8]), (100, [8])])
def test_many_prompts_go_out_by_length(batch_size, calls, monkeypatch):
    """As the trainer's do: in batches as equal as can be, the shortest first; the order of the results is kept."""
    model, drawn = make_model(), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **kw: drawn.append(kw["attention_mask"].sum(1)) or generate(**kw))
    monkeypatch.setattr("ccpo.generation.local.CPU_BATCH", 3)
    options = {"max_new_tokens": 8, "batch_size": batch_size}
    greedy = TransformersGenerator(model, make_tokenizer(), temperature=0, **options)
    one_by_one = [greedy([text])[0] for text in TEXTS]
    drawn.clear()
    assert greedy(TEXTS) == one_by_one and len(set(one_by_one)) > 3
    lengths = [batch.tolist() for batch in drawn]
    assert list(map(len, lengths)) == calls
    flat = [length for batch in lengths for length in batch]
    assert flat == (sorted(flat) if len(calls) > 1 else [len(text) for text in TEXTS])
    scores = greedy.score(TEXTS, ["ab", "c"])
    torch.testing.assert_close(scores, torch.cat([greedy.score([text], ["ab", "c"]) for text in TEXTS]))
    first, second = (TransformersGenerator(model, make_tokenizer(), seed=3, **options) for _ in range(2))
    assert first(TEXTS) == second(TEXTS) and first(TEXTS) == second(TEXTS)


def test_plain_texts_for_a_chat_model_are_warned_of_once(caplog):
    quiet = TransformersGenerator(make_model(), make_tokenizer(chat_template=None), max_new_tokens=1)
    quiet(TEXTS)
    chat = TransformersGenerator(make_model(), make_tokenizer(), max_new_tokens=1)
    chat(CHATS)
    assert not caplog.records
    chat(CHATS[:1] + TEXTS[:1])
    pickle.loads(pickle.dumps(chat))(TEXTS)
    chat.score(TEXTS, ["a"])
    assert len(caplog.records) == 1
    assert "LlamaForCausalLM" in caplog.text and "has a chat template, but was given plain texts" in caplog.text


def test_processes_draw_differently_from_one_seed(process_group, monkeypatch):
    model, tokenizer = make_model(), make_tokenizer()
    rank_0 = TransformersGenerator(model, tokenizer, max_new_tokens=8, seed=3)(TEXTS)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *group: 1)
    assert TransformersGenerator(model, tokenizer, max_new_tokens=8, seed=3)(TEXTS) != rank_0


def test_without_a_seed_the_global_random_state_is_used(model_path):
    generator = TransformersGenerator(model_path, max_new_tokens=8)
    torch.manual_seed(0)
    first, second = generator(TEXTS), generator(TEXTS)
    torch.manual_seed(0)
    assert generator(TEXTS) == first != second


def test_modes_gradients_and_dropout():
    model, tokenizer = make_model(attention_dropout=0.5), make_tokenizer()
    generator = TransformersGenerator(model, tokenizer, temperature=0, max_new_tokens=8)
    expected, scores = generator(TEXTS), generator.score(TEXTS, ["ab", "c"])
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert generator(TEXTS) == expected
    assert torch.equal(generator.score(TEXTS, ["ab", "c"]), scores) and not scores.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_error(monkeypatch):
    model = make_model().train()

    def fail(**kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        TransformersGenerator(model, make_tokenizer(), seed=0, max_new_tokens=8)(TEXTS)
    assert all(module.training for module in model.modules())


def test_pickle_by_id_reloads_and_by_object_takes_the_weights(model_path):
    by_id = TransformersGenerator(model_path, temperature=0, max_new_tokens=8)
    expected = by_id(TEXTS)
    data = pickle.dumps(by_id)
    assert len(data) < 2000
    by_object = TransformersGenerator(make_model(), make_tokenizer(), temperature=0, max_new_tokens=8)
    assert pickle.loads(data)(TEXTS) == pickle.loads(pickle.dumps(by_object))(TEXTS) == expected


def test_a_model_loaded_by_id_is_frozen(model_path):
    generator = TransformersGenerator(model_path, max_new_tokens=1)
    generator(TEXTS[:1])
    model = generator._loaded[0]
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training


def test_model_object_finds_its_tokenizer(model_path):
    model = AutoModelForCausalLM.from_pretrained(model_path)
    expected = TransformersGenerator(model_path, temperature=0, max_new_tokens=8)(CHATS)
    assert TransformersGenerator(model, temperature=0, max_new_tokens=8)(CHATS) == expected
    assert TransformersGenerator(model, model_path, temperature=0, max_new_tokens=8)(CHATS) == expected


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_partner_is_loaded_whole_under_zero_3(model_path):
    from transformers.integrations import deepspeed

    expected = TransformersGenerator(model_path, temperature=0, max_new_tokens=8)(TEXTS)
    config = deepspeed.HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_batch_size": 1})
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert TransformersGenerator(model_path, temperature=0, max_new_tokens=8)(TEXTS) == expected
        assert deepspeed.is_deepspeed_zero3_enabled() and config.is_zero3()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_partner_is_loaded_whole_under_fsdp(model_path, process_group, monkeypatch):
    from transformers.integrations import is_fsdp_enabled

    expected = TransformersGenerator(model_path, temperature=0, max_new_tokens=8)(TEXTS)
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")  # another rank than the one that broadcasts the weights of a trained model
    assert is_fsdp_enabled()
    assert TransformersGenerator(model_path, temperature=0, max_new_tokens=8)(TEXTS) == expected
    assert is_fsdp_enabled()  # for the models that are trained


def test_last_assistant_message_is_continued():
    template = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% if not loop.last %}{{ '<end>' }}"
    template += "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    generator = TransformersGenerator(make_model(), make_tokenizer(template), temperature=0, max_new_tokens=8)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I say"}]
    assert generator([chat]) == generator(["[user]hi<end>[assistant]I say"])
    assert generator([chat[:1]]) == generator(["[user]hi[assistant]"])


def test_generation_kwargs_and_stop_strings():
    model, tokenizer = make_model(), make_tokenizer()
    plain = TransformersGenerator(model, tokenizer, temperature=0, max_new_tokens=12)(TEXTS)
    stop = next(character for character in plain[0] if character.isalnum())
    generator = TransformersGenerator(
        model, tokenizer, temperature=0, max_new_tokens=12, generation_kwargs={"stop_strings": [stop]}
    )
    expected = [text[: text.index(stop) + 1] if stop in text else text for text in plain]
    assert generator(TEXTS) == expected and expected != plain
    # every cut text ends with the stop string; of the others those that end early end with an eos token
    assert generator.completion_tokens == sum(len(t) + (stop not in t and len(t) < 12) for t in expected)


# TransformersGenerator: score


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize(
    ("config_class", "options"),
    [(LlamaConfig, {}), (Olmo3Config, {"sliding_window": 8}), (GPT2Config, {})],
    ids=["llama", "olmo3-sliding-window", "gpt2-absolute-positions"],
)
@pytest.mark.parametrize("prompts", [TEXTS, CHATS[:3]], ids=["text", "chat"])
def test_score_equals_full_forward_passes(prompts, config_class, options, batch_size):
    model, tokenizer = make_model(config_class, **options), make_tokenizer()
    choices = ["0.9, 0.1", "0.1, 0.9", "7", "yes", "a longer choice"]
    scores = TransformersGenerator(model, tokenizer, batch_size=batch_size, temperature=0.3).score(prompts, choices)
    expected = [[slow_score(model, tokenizer, prompt, choice, 0.3) for choice in choices] for prompt in prompts]
    assert scores.shape == (len(prompts), len(choices)) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_choices_may_differ_from_prompt_to_prompt():
    generator, choices = TransformersGenerator(make_model(), make_tokenizer()), (["a", "bc"], ["d", "ef"])
    own = [choices[i % 2] for i in range(len(TEXTS))]
    expected = torch.stack([generator.score([text], row)[0] for text, row in zip(TEXTS, own, strict=True)])
    torch.testing.assert_close(generator.score(TEXTS, own), expected, atol=1e-5, rtol=1e-5)


def test_scores_are_log_probabilities():
    generator = TransformersGenerator(make_model(), make_tokenizer())
    characters = generator.score(TEXTS, CHARACTERS).exp().sum(1)
    assert ((0.5 < characters) & (characters < 1.0)).all()  # what is missing belongs to the special tokens
    pairs = generator.score(TEXTS, ["q" + character for character in CHARACTERS]).exp().sum(1)
    assert (pairs < generator.score(TEXTS, ["q"]).exp()[:, 0]).all()
    assert generator.completion_tokens == 0


@pytest.mark.parametrize("choices", [[["a", "b"], ["c"], ["d", "e", "f"]], [["a"], ["b"], ["c"], ["d"]], [["a"]]])
def test_score_refuses_rows_of_choices_that_do_not_fit(choices):
    generator = TransformersGenerator(make_model(), make_tokenizer())
    with pytest.raises(ValueError, match="choices must have the same number of texts .* for 3 prompts"):
        generator.score(TEXTS[:3], choices)


def test_score_refuses_a_model_without_a_cache():
    """RWKV keeps a state of its own and does not heed the mask: padding would be read."""
    tokenizer = make_tokenizer()
    config = transformers.RwkvConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, context_length=64)
    generator = TransformersGenerator(transformers.RwkvForCausalLM(config), tokenizer)
    with pytest.raises(ValueError, match="needs a model with a key-value cache, but RwkvForCausalLM returned none"):
        generator.score(TEXTS[:2], ["a", "bc"])


def test_score_refuses_what_it_cannot_score():
    generator = TransformersGenerator(make_model(), make_tokenizer())
    assert generator.score([], ["a", "b"]).shape == (0, 2)
    with pytest.raises(TypeError, match="choices must be a non-empty list of str"):
        generator.score(TEXTS, "ab")
    with pytest.raises(TypeError, match="choices must be a non-empty list of str"):
        generator.score(TEXTS, [])
    for choice in ("", "é"):
        with pytest.raises(ValueError, match=f"choice '{choice}' is empty or holds a token"):
            generator.score(TEXTS, ["a", choice])
    with pytest.raises(ValueError, match=r"prompts\[0\] has 250 tokens. With the 8 that may follow, .* limit of 256"):
        generator.score(["x" * 250], ["0.9, 0.1"])


# TransformersGenerator: errors


def test_over_long_prompts_raise_before_anything_is_generated():
    generator = TransformersGenerator(make_model(), make_tokenizer(), max_new_tokens=56)
    with pytest.raises(
        ValueError,
        match=r"prompts\[1\] has 201 tokens. With the 56 .* limit of 256 .*Shorten the "
        r"prompt",
    ):
        generator(["x" * 200, "x" * 201])
    assert generator.completion_tokens == 0
    assert len(generator(["x" * 200])) == 1
    assert len(generator(["x" * 201], max_new_tokens=55)) == 1


def test_conversation_without_chat_template(monkeypatch):
    model, tokenizer = make_model(), make_tokenizer(chat_template=None)
    with pytest.raises(ValueError, match=r"prompts\[1\] is a conversation, .* no chat template.*chat_template_kwargs"):
        TransformersGenerator(model, tokenizer, max_new_tokens=4)([TEXTS[0], CHATS[0]])
    remedy = TransformersGenerator(
        model, tokenizer, temperature=0, max_new_tokens=8, chat_template_kwargs={"chat_template": TEMPLATE}
    )
    expected = TransformersGenerator(model, make_tokenizer(), temperature=0, max_new_tokens=8)(CHATS)
    assert remedy(CHATS) == expected


def test_empty_lists_and_empty_prompts(model_path):
    generator = TransformersGenerator(model_path)
    assert generator([]) == [] and generator._loaded is None
    assert OpenAIGenerator("m")([]) == []
    with pytest.raises(ValueError, match=r"prompts\[1\] has no tokens"):
        generator(["a", ""], max_new_tokens=4)


@pytest.mark.parametrize("generator", [TransformersGenerator("id"), OpenAIGenerator("m")], ids=["local", "openai"])
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a text", r"list of prompts, got one str. Pass \[prompt\]"),
        ({"role": "user", "content": "hi"}, "list of prompts, got one dict"),
        (CHATS[0], r"the messages of one conversation. Pass \[messages\]"),
        (["a", None], r"prompts\[1\] must be a text or a non-empty list of messages, got None"),
        (["a", []], r"prompts\[1\] must be a text or a non-empty list of messages, got \[\]"),
    ],
    ids=["str", "message", "conversation", "none", "empty"],
)
def test_prompts_of_the_wrong_type(generator, prompts, message):
    with pytest.raises(TypeError, match=message):
        generator(prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer from 1 to inf, got 0"),
        ({"temperature": -1}, "temperature must be a number from 0 to inf, got -1"),
        ({"top_p": 0}, "top_p must be a number from .* to 1, got 0"),
        ({"top_p": 1.5}, "top_p must be a number from .* to 1, got 1.5"),
        ({"top_k": -1}, "top_k must be an integer from 0 to inf, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer from 1 to inf, got 0"),
        ({"generation_kwargs": {"top_p": 0.5, "min_p": 0.1}}, r"generation_kwargs must not contain \['top_p'\]"),
        ({"generation_kwargs": {"stop_strings": [""]}}, "must be a text or a list of texts, got"),
        ({"generation_kwargs": {"stop_strings": []}}, "must be a text or a list of texts, got"),
        ({"generation_kwargs": {"stop_strings": [5]}}, "must be a text or a list of texts, got"),
        ({"generation_kwargs": {"stop": "a"}}, "has the key 'stop', which .* would be ignored. Write 'stop_strings'"),
        ({"processing_class": 3}, "processing_class must be a tokenizer or the id of one"),
    ],
    ids=str,
)
def test_local_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TransformersGenerator("id", **options)


def test_model_arguments_are_checked():
    with pytest.raises(TypeError, match="model must be a model id or an unwrapped model, got int"):
        TransformersGenerator(3)
    with pytest.raises(ValueError, match="model_init_kwargs are used only when model is an id"):
        TransformersGenerator(make_model(), make_tokenizer(), model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match="processing_class must be a tokenizer or the id of one"):
        TransformersGenerator(make_model())
    with pytest.raises(ValueError, match="max_new_tokens must be an integer from 1"):
        TransformersGenerator("id")(TEXTS, max_new_tokens=0)


# OpenAIGenerator against `transformers serve`


@pytest.mark.parametrize("prompts", [TEXTS, CHATS, TEXTS[:2] + CHATS[:2]], ids=["text", "chat", "mixed"])
def test_endpoint_equals_the_local_model(base_url, model_path, prompts):
    local = TransformersGenerator(model_path, temperature=0, max_new_tokens=16)
    remote = OpenAIGenerator(model_path, base_url, temperature=0, max_tokens=16, max_concurrency=4)
    assert remote(prompts) == local(prompts)
    assert remote.completion_tokens == local.completion_tokens > 0


def test_endpoint_cuts_at_the_length_asked_for(base_url, model_path):
    local = TransformersGenerator(model_path, temperature=0)(CHATS, max_new_tokens=3)
    remote = OpenAIGenerator(model_path, base_url, temperature=0)
    assert remote(CHATS, max_new_tokens=3) == local


def test_endpoint_samples(base_url, model_path):
    remote = OpenAIGenerator(model_path, base_url, max_tokens=16)
    assert len(set(remote([CHATS[0]] * 4))) > 1


def test_pickled_copy_and_other_threads(base_url, model_path):
    generator = OpenAIGenerator(model_path, base_url, temperature=0, max_tokens=8)
    expected, results = generator(TEXTS), {}
    copy = pickle.loads(pickle.dumps(generator))
    assert copy._client is None and copy.completion_tokens == generator.completion_tokens
    before = copy.completion_tokens
    threads = [threading.Thread(target=lambda i=i: results.update({i: copy(TEXTS)})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(3), expected)
    assert copy.completion_tokens == 4 * before


def test_endpoint_without_the_model_or_the_path(base_url, model_path):
    with pytest.raises(ValueError, match="127.0.0.1.*rejected the request.*HTTP 400.*other/model"):
        OpenAIGenerator("other/model", base_url, max_retries=0)(TEXTS)
    with pytest.raises(ValueError, match=r"wrong path \(HTTP 404\).*base_url usually ends in /v1"):
        OpenAIGenerator(model_path, base_url.removesuffix("/v1"), max_retries=0)(TEXTS)


# OpenAIGenerator against a faulty endpoint (a hand-written server: failure injection only)


def test_order_is_kept_and_concurrency_bounded():
    def respond(number, body):
        n = int(body["messages"][0]["content"])
        time.sleep(0.2 if n == 0 else 0.01)  # the first answer comes last
        return 200, chat_answer(str(n), {"prompt_tokens": 1, "completion_tokens": n, "total_tokens": n + 1})

    with FaultyEndpoint(respond) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url, max_concurrency=3)
        prompts = [[{"role": "user", "content": str(n)}] for n in range(12)]
        assert generator(prompts) == [str(n) for n in range(12)]
    assert endpoint.peak == 3
    assert generator.completion_tokens == sum(range(12))


def test_request_carries_the_options():
    with FaultyEndpoint(lambda *_: (200, chat_answer("ok"))) as endpoint:
        generator = OpenAIGenerator(
            "m", endpoint.base_url, temperature=0.5, top_p=0.9, max_tokens=7, extra_body={"top_k": 20}
        )
        generator(CHATS[:1])
        generator(CHATS[:1], max_new_tokens=9)
    path, body = endpoint.requests[0][1:]
    sent = {"model": "m", "messages": CHATS[0], "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "top_k": 20}
    assert (path, body) == ("/v1/chat/completions", sent)
    assert endpoint.requests[1][2] == {**sent, "max_tokens": 9}


def test_rate_limit_is_retried_with_back_off():
    def respond(number, body):
        return (429, {"error": {"message": "slow down"}}) if number < 2 else (200, chat_answer("ok"))

    with FaultyEndpoint(respond) as endpoint:
        assert OpenAIGenerator("m", endpoint.base_url)(CHATS[:1]) == ["ok"]
    times = [request[0] for request in endpoint.requests]
    assert len(times) == 3
    assert times[1] - times[0] > 0.3 and times[2] - times[1] > 0.7  # half a second, then one, less up to a quarter


@pytest.mark.parametrize(("status", "error"), [(500, "InternalServerError"), (429, "RateLimitError")])
def test_lasting_errors_end_in_a_clear_one(status, error):
    with FaultyEndpoint(lambda *_: (status, {"error": {"message": "worker died"}})) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url, max_retries=1)
        with pytest.raises(RuntimeError, match=rf"127.0.0.1.*failed, {error} after up to 2 attempts: .*worker died"):
            generator(CHATS[:1])
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_shows_nowhere(status, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    message = f"Incorrect API key provided: {KEY}"
    with FaultyEndpoint(lambda *_: (status, {"error": {"message": message}})) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url, KEY, max_concurrency=2)
        with pytest.raises(PermissionError, match=rf"127.0.0.1.*refused the API key \(HTTP {status}\)") as caught:
            generator(CHATS * 10)
    assert len(endpoint.requests) < len(CHATS * 10)  # the rest was not sent; how soon it stops is a race
    error = caught.value
    assert error.__cause__ is None and error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(generator) + str(generator)
    assert KEY not in shown + caplog.text + "".join(capfd.readouterr())
    assert "Incorrect API key provided: <key>" in shown
    assert caplog.records  # the clients did log


def test_key_comes_from_the_environment_and_is_not_pickled(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    generator = OpenAIGenerator("m", "http://127.0.0.1:1/v1")
    assert generator._connect().api_key == KEY
    assert KEY.encode() not in pickle.dumps(generator)
    assert OpenAIGenerator("m", "http://127.0.0.1:1/v1", "other")._connect().api_key == "other"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert pickle.loads(pickle.dumps(generator))._connect().api_key == "EMPTY"


@pytest.mark.parametrize("key", ["", KEY + "\n", "two words", "clé"], ids=["empty", "newline", "blank", "accent"])
def test_malformed_key_is_refused_without_quoting_it(key):
    generator = OpenAIGenerator("m", "http://127.0.0.1:1/v1", key)
    with pytest.raises(ValueError, match="api_key .* is empty, or has spaces") as caught:
        generator(TEXTS)
    assert not key or key.strip() not in str(caught.value)


def test_endpoint_that_is_down(caplog):
    caplog.set_level(logging.DEBUG)
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ConnectionError, match=rf"No answer from {url}/ in 2 attempts.*`vllm serve m`") as caught:
        OpenAIGenerator("m", url, KEY, max_retries=1)(TEXTS)
    assert KEY not in caplog.text + "".join(traceback.format_exception(caught.value))


def test_endpoint_that_is_too_slow():
    with FaultyEndpoint(lambda *_: time.sleep(1) or (200, chat_answer("late"))) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url, timeout=0.2, max_retries=0)
        with pytest.raises(ConnectionError, match=r"timed out.*raise timeout \(now 0.2 s\)"):
            generator(CHATS[:1])


def test_unknown_model():
    payload = {"error": {"message": "The model `m` does not exist.", "code": 404}}
    with FaultyEndpoint(lambda *_: (404, payload)) as endpoint:
        with pytest.raises(
            ValueError,
            match=r"has no model 'm', or base_url has the wrong path.*v1/models.*does "
            r"not exist",
        ):
            OpenAIGenerator("m", endpoint.base_url)(CHATS[:1])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "payload",
    [
        "<html>welcome</html>",
        {"choices": []},
        {"error": f"bad {KEY}"},
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        {"choices": [{"index": 0, "message": None}]},
        {"choices": [{"index": 0, "text": "of the other endpoint"}]},
        {"choices": [{"message": {"content": 5}}]},
    ],
    ids=str,
)
def test_answers_of_something_else(payload):
    with FaultyEndpoint(lambda *_: (200, payload)) as endpoint:
        with pytest.raises(
            RuntimeError, match="127.0.0.1.*does not answer like an OpenAI-compatible endpoint"
        ) as caught:
            OpenAIGenerator("m", endpoint.base_url, KEY)(CHATS[:1])
    assert KEY not in str(caught.value)


def test_missing_usage_is_told(caplog):
    with FaultyEndpoint(lambda *_: (200, chat_answer("a"))) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url)
        assert generator(CHATS[:2]) == ["a", "a"]
    assert generator.completion_tokens == 0
    assert "does not report how many tokens it used" in caplog.text


THOUGHT = {"content": None, "reasoning_content": "The answer is 5."}


@pytest.mark.parametrize(
    ("message", "finish", "why"),
    [
        ({"content": None}, "length", "cut at the limit before any text"),
        (THOUGHT, "length", "cut at the limit while still thinking"),
        ({"content": "", "reasoning": "hm"}, "length", "cut at the limit while still thinking"),
        (THOUGHT, "stop", "thoughts without an answer"),
        ({"content": None, "refusal": "I cannot."}, "stop", "refused by the model"),
        ({"content": None}, "content_filter", "taken out by a content filter"),
        (None, "content_filter", "taken out by a content filter"),
        ({}, "stop", "no content (finish_reason 'stop')"),
        ({"content": []}, None, "no content (finish_reason None)"),
        ({"content": "\n"}, "stop", "no content (finish_reason 'stop')"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", "a tool call"),
    ],
    ids=str,
)
def test_answers_without_text_are_counted_and_told_once_a_call(message, finish, why, caplog):
    usage = {"prompt_tokens": 1, "completion_tokens": 7}

    def respond(number, body):
        answer = chat_answer("fine", usage)
        if body["messages"][-1]["content"] != TEXTS[0]:
            answer["choices"][0] |= {"message": message, "finish_reason": finish}
        return 200, answer

    with FaultyEndpoint(respond) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url)
        texts = generator(CHATS[:3])
        assert texts[0] == "fine" and [text.strip() for text in texts[1:]] == ["", ""]
        assert generator.empty_answers == {why: 2}
        (record,) = caplog.records
        assert f"2 of 3 answers have no text: 2 {why}." in record.getMessage()
        assert ("The limit is max_tokens=512. Raise it." in record.getMessage()) == (finish == "length")
        generator(CHATS[:3])
    assert generator.empty_answers == {why: 4} and len(caplog.records) == 2 and generator.completion_tokens == 42


def test_the_text_of_an_answer_is_read_like_any_completion(caplog):
    parts = [{"type": "thinking", "thinking": "5?"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = iter([{"content": parts}, {"content": "x", "reasoning_content": "5"}, {"role": None, "content": "y"}])

    def respond(number, body):
        answer = chat_answer("", {"completion_tokens": 1})
        answer["choices"][0]["message"] = next(messages)
        return 200, answer

    with FaultyEndpoint(respond) as endpoint:
        assert OpenAIGenerator("m", endpoint.base_url, max_concurrency=1)(CHATS[:3]) == ["ab", "x", "y"]
    assert not caplog.records


def test_text_completions_without_text(caplog):
    choices = [{"text": "", "finish_reason": "length"}, {"text": None, "finish_reason": "stop"}, {"text": "a"}]
    answers = iter([{"choices": [choice], "usage": {"completion_tokens": 1}} for choice in choices])
    with FaultyEndpoint(lambda *_: (200, next(answers))) as endpoint:
        assert OpenAIGenerator("m", endpoint.base_url, max_concurrency=1)(TEXTS[:3]) == ["", "", "a"]
    assert "2 of 3 answers have no text" in caplog.text


def test_text_that_no_tokenizer_reads():
    """Half of a surrogate pair, and a byte order mark before the JSON."""
    body = b'\xef\xbb\xbf{"choices": [{"message": {"content": "a\\ud83d"}, "finish_reason": "length"}]}'
    with FaultyEndpoint(lambda *_: (200, body)) as endpoint:
        assert OpenAIGenerator("m", endpoint.base_url)(CHATS[:1]) == ["a?"]


def test_fields_of_the_request_are_a_dict():
    with pytest.raises(ValueError, match=r"extra_body must be a dict with fields of the request, got \[1\]"):
        OpenAIGenerator("m", "http://localhost:1/v1", extra_body=[1])


@pytest.mark.parametrize("status", [400, 422])
def test_the_limit_is_refused_in_a_body_without_the_key_error(status):
    """As FastAPI's servers answer; the client's own message has nothing of it."""
    refusal = {"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]}
    answer = lambda n, body: (status, refusal) if "max_tokens" in body else (200, chat_answer("ok"))  # noqa: E731
    with FaultyEndpoint(answer) as endpoint:
        assert OpenAIGenerator("m", endpoint.base_url)(CHATS[:1]) == ["ok"]
    assert len(endpoint.requests) == 2


LONG = "why " * 500


@pytest.mark.parametrize(
    ("body", "error", "match", "requests"),
    [
        ({"error": {"message": LONG, "code": 429}}, RuntimeError, "RateLimitError after up to 2 attempts", 2),
        ({"error": {"message": LONG, "code": "429"}}, RuntimeError, "RateLimitError", 2),
        ({"error": {"message": LONG, "code": "rate_limit_exceeded"}}, RuntimeError, "RateLimitError", 2),
        ({"error": {"message": LONG, "status": "RESOURCE_EXHAUSTED"}}, RuntimeError, "RateLimitError", 2),
        ([{"error": {"message": LONG, "code": 503, "status": "UNAVAILABLE"}}], RuntimeError, "InternalServerErr", 2),
        ({"object": "error", "message": LONG, "code": 503}, RuntimeError, "InternalServerError", 2),
        ({"error": {"message": LONG, "type": "overloaded_error"}, "choices": None}, RuntimeError, "InternalServer", 2),
        ({"choices": [{"error": {"message": LONG, "code": 502}, "message": {"content": ""}}]}, RuntimeError, "Int", 2),
        ({"error": {"message": LONG, "code": 503.0}}, RuntimeError, "InternalServerError", 2),
        ({"error": "Model is overloaded: " + LONG}, RuntimeError, "InternalServerError", 2),
        ({"error": LONG, "error_type": "overloaded"}, RuntimeError, "InternalServerError", 2),
        ({"error": "Rate limit reached: " + LONG}, RuntimeError, "RateLimitError", 2),
        ({"error": {"message": LONG, "code": 401}}, PermissionError, r"refused the API key \(HTTP 401\)", 1),
        ({"error": {"message": LONG, "type": "authentication_error"}}, PermissionError, "refused the API key", 1),
        ({"error": {"message": LONG, "code": 404}}, ValueError, "has no model 'm'", 1),
        ({"error": {"message": LONG, "code": "context_length_exceeded"}}, ValueError, "rejected the request", 1),
        ({"error": {"message": LONG}}, RuntimeError, "does not answer like an OpenAI-compatible endpoint", 1),
        ({"error": {"message": LONG, "code": 7}}, RuntimeError, "does not answer like", 1),
    ],
    ids=lambda value: str(value).replace(LONG, "why"),
)
def test_an_error_inside_http_200_is_an_error_of_its_code(body, error, match, requests):
    """Repeated if such an error is, and shown whole."""
    with FaultyEndpoint(lambda *_: (200, json.dumps(body).encode())) as endpoint:
        with pytest.raises(error, match=match) as caught:
            OpenAIGenerator("m", endpoint.base_url, max_retries=1)(CHATS[:1])
    assert len(endpoint.requests) == requests and LONG in str(caught.value)


def test_an_error_inside_http_200_passes():
    """And `null` beside an answer is none."""
    answers = iter([{"error": {"message": "busy", "code": 429}}, {**chat_answer("ok"), "error": None}])
    with FaultyEndpoint(lambda *_: (200, next(answers))) as endpoint:
        assert OpenAIGenerator("m", endpoint.base_url)(CHATS[:1]) == ["ok"]
    assert len(endpoint.requests) == 2


OPENAI_REFUSES = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, OPENAI_REFUSES),
        (422, "Extra inputs are not permitted: max_tokens"),
        (400, "Unknown parameter: 'max_tokens'"),
    ],
)
def test_an_endpoint_that_wants_max_completion_tokens(status, message):
    def respond(number, body):
        if "max_tokens" in body:
            return status, {"error": {"message": message, "param": "max_tokens"}}
        return 200, chat_answer(str(body["max_completion_tokens"]), {"completion_tokens": 1})

    with FaultyEndpoint(respond) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url, max_tokens=9)
        assert generator(CHATS[:1]) == ["9"] and len(endpoint.requests) == 2
        assert generator(CHATS[:2], max_new_tokens=5) == ["5", "5"]
        assert len(endpoint.requests) == 4  # remembered
        assert pickle.loads(pickle.dumps(generator))(CHATS[:1]) == ["9"] and len(endpoint.requests) == 5


@pytest.mark.parametrize(
    ("message", "requests"),
    [
        ("max_tokens is too large: 512. This model supports at most 256.", 1),
        ("'max_tokens' or 'max_completion_tokens' is too large: 512.", 2),
    ],
)
def test_a_limit_that_is_too_large_is_no_other_parameter(message, requests):
    with FaultyEndpoint(lambda *_: (400, {"error": {"message": message}})) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url)
        with pytest.raises(ValueError, match=r"rejected the request \(HTTP 400\).*too large"):
            generator(CHATS[:1])
        assert len(endpoint.requests) == requests and generator._limit_name == "max_tokens"


def mutations(value, rng, depth=0):
    """A JSON value like the given one, with parts replaced, left out or nested."""
    odd = [None, True, 0, -1, 1e400, "", "x", [], {}, [[]], [None], {"a": None}, "429", 429, "\ud800", [{}], "length"]
    if rng.random() < 0.15:
        return rng.choice(odd)
    if isinstance(value, dict):
        kept = {key: mutations(item, rng, depth + 1) for key, item in value.items() if rng.random() > 0.1}
        return kept | ({rng.choice(["error", "code", "refusal"]): rng.choice(odd)} if rng.random() < 0.1 else {})
    if isinstance(value, list):
        return [mutations(item, rng, depth + 1) for item in value] * rng.choice([0, 1, 1, 1, 2])
    return value


BODIES = [
    chat_answer("ok", {"completion_tokens": 3}),
    chat_answer([{"type": "text", "text": "a"}], {"completion_tokens": 3}),
    {"choices": [{"text": "ok", "finish_reason": "stop"}], "usage": {"completion_tokens": 3}},
    {"error": {"message": "m", "type": "t", "param": "max_tokens", "code": "unsupported_parameter"}},
    [{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}],
]


def test_no_body_stops_the_reader():
    rng = random.Random(0)
    statuses, texts = Counter(), Counter()
    for _ in range(20_000):
        body = mutations(rng.choice(BODIES), rng)
        reply = read_reply(body, chat=rng.random() < 0.7)
        texts[reply is None or type(reply.text)] += 1
        assert reply is None or reply.why_empty is None or not reply.text.strip()
        statuses[error_status(body)] += 1
    assert set(texts) == {True, str} and min(texts.values()) > 2000
    assert set(statuses) <= {None, *range(400, 600)} and len(statuses) > 2


def test_whatever_an_endpoint_answers_only_the_documented_errors_leave():
    rng = random.Random(0)
    bodies = [
        (rng.choice([200, 200, 200, 201, 400, 404, 422, 500]), mutations(rng.choice(BODIES), rng)) for _ in range(600)
    ]
    queue, outcomes = iter(bodies), Counter()

    def respond(number, body):
        status, payload = next(queue)
        return status, json.dumps(payload).encode()

    with FaultyEndpoint(respond) as endpoint:
        generator = OpenAIGenerator("m", endpoint.base_url, max_retries=0)
        while len(endpoint.requests) < len(bodies) - 1:  # a request may be made twice, for the limit's name
            generator._limit_name = "max_tokens"
            try:
                (text,) = generator([rng.choice([TEXTS[0], CHATS[0]])])
            except Exception as error:
                assert type(error) in (ConnectionError, PermissionError, ValueError, RuntimeError), repr(error)
                outcomes[type(error)] += 1
            else:
                assert isinstance(text, str)
                outcomes[str] += 1
    assert isinstance(generator.completion_tokens, int)
    assert min(outcomes[kind] for kind in (str, ValueError, RuntimeError)) > 20


def test_prompts_that_cannot_be_sent():
    generator = OpenAIGenerator("m", "http://127.0.0.1:1/v1")
    for prompt in ("\ud800", [{"role": "user", "content": object()}]):
        with pytest.raises(ValueError, match=r"prompts\[1\] cannot be sent as JSON"):
            generator(["a", prompt])


def test_missing_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'ccpo\[serve\]'"):
        OpenAIGenerator("m", "http://127.0.0.1:1/v1")(TEXTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000/v1"}, "base_url must look like http://localhost:8000/v1"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "without a user name, password or query"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "without a user name, password or query"),
        ({"max_tokens": 0}, "max_tokens must be an integer from 1"),
        ({"temperature": -1}, "temperature must be a number from 0"),
        ({"top_p": 2}, "top_p must be a number from .* to 1"),
        ({"max_concurrency": 0}, "max_concurrency must be an integer from 1"),
        ({"max_retries": -1}, "max_retries must be an integer from 0"),
        ({"timeout": 0}, "timeout must be a number from"),
    ],
    ids=str,
)
def test_endpoint_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        OpenAIGenerator("m", **options)
    assert KEY not in str(caught.value)


def test_address_from_the_environment_is_checked_too(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:{KEY}@host/v1")
    with pytest.raises(ValueError, match="base_url must look like") as caught:
        OpenAIGenerator("m")
    assert KEY not in str(caught.value)


def test_tokenizer_fixture_is_a_real_one(model_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    assert tokenizer.decode(tokenizer("0.9, 0.1")["input_ids"]) == "0.9, 0.1"


def test_an_end_of_ones_own():
    """As TRL's `generation_kwargs`: other ends than the model's."""
    model, tokenizer = make_model(), make_tokenizer()
    stops = list(range(len(SPECIAL), len(tokenizer)))  # every character
    generator = TransformersGenerator(model, tokenizer, max_new_tokens=8, generation_kwargs={"eos_token_id": stops})
    generator.seed = 0
    assert all(len(text) <= 1 for text in generator(TEXTS))
