"""Prefix caching: the passes of a batch that reads its common prefix once are those of one that does not."""

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig
from test_generators import make_model as make_generator_model
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from ccpo import MultiAgentGRPOTrainer, Solo, TransformersGenerator
from ccpo.generation import prefix
from ccpo.generation.prefix import cache_common_prefix, caching_common_prefix, common_prefix, prefix_first
from ccpo.team.topology import ThinkSolve

torch.set_num_threads(1)
PREFIX, TAILS = list(range(4, 16)), ([20, 21, 22], [23, 24, 25, 26, 27], [20, 21], [20, 21])
COMPLETIONS = ([30, 31], [32], [33, 34, 35], [36])


def batch():
    """Left-padded prompts, and completions padded on the right: `(4, T)`."""
    width = len(PREFIX) + max(map(len, TAILS))
    rows, masks = [], []
    for tail, completion in zip(TAILS, COMPLETIONS, strict=True):
        lead, behind = width - len(PREFIX) - len(tail), 3 - len(completion)
        rows.append([0] * lead + PREFIX + tail + completion + [0] * behind)
        masks.append([0] * lead + [1] * (width - lead + len(completion)) + [0] * behind)
    return torch.tensor(rows), torch.tensor(masks), width


@pytest.mark.parametrize(
    ("rows", "masks", "expected"),
    [
        ([[1, 2, 3], [1, 2, 4]], [[1, 1, 1], [1, 1, 1]], 2),
        ([[0, 1, 2], [1, 2, 4]], [[0, 1, 1], [1, 1, 1]], 2),  # padded on the left
        ([[1, 2, 0], [1, 2, 4]], [[1, 1, 0], [1, 1, 1]], 2),  # padding is no token, whatever its id
        ([[1, 2, 3], [1, 2, 3]], [[1, 1, 1], [1, 1, 1]], 3),
        ([[1, 0, 3], [1, 0, 3]], [[1, 0, 1], [1, 0, 1]], 1),
        ([[1, 2, 3], [4, 2, 3]], [[1, 1, 1], [1, 1, 1]], 0),
        ([[1, 2, 3]], [[1, 1, 1]], 0),
    ],
)
def test_common_prefix(rows, masks, expected):
    assert common_prefix(torch.tensor(rows), torch.tensor(masks)) == expected


def test_the_padding_moves_behind_the_prefix():
    ids, mask, width = batch()
    moved, moved_mask = prefix_first(ids[:, :width], mask[:, :width])
    assert moved[:, : len(PREFIX)].tolist() == [PREFIX] * 4
    assert moved_mask[2].tolist() == [1] * 12 + [0] * 3 + [1] * 2
    for row, own_mask, tail in zip(moved, moved_mask, TAILS, strict=True):
        assert row[own_mask.bool()].tolist() == PREFIX + tail and own_mask[-1]  # what is generated from stands last


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, GPT2Config])
def test_logits_and_gradients_are_those_of_the_plain_pass(kind, train):
    still = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0) if kind is GPT2Config else {}
    model = make_generator_model(kind, **still)
    model.train(train)
    ids, mask, _ = batch()
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)

    def run():
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        chosen = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        (chosen * mask[:, 1:] * mask[:, :-1] * torch.arange(1, 5)[:, None]).sum().backward()  # rows count unequally
        return logits.detach() * mask[..., None], [p.grad.clone() for p in model.parameters()]

    plain, plain_gradients = run()
    with caching_common_prefix(model):
        cached, gradients = run()
    assert "forward" not in vars(model.get_decoder()) and "generate" not in vars(model)
    torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-4)
    for gradient, expected in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_the_prefix_is_read_as_one_row(monkeypatch):
    model, seen = make_generator_model(LlamaConfig), []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    ids, mask, _ = batch()
    with caching_common_prefix(model):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert seen == [(1, 12), (4, 8)]
    monkeypatch.setattr(prefix, "SHORTEST", 13)
    with caching_common_prefix(model):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert seen[2:] == [(4, 20)]


@pytest.mark.parametrize("padded", [True, False])
def test_generation_draws_the_same(padded):
    model, (ids, mask, width) = make_generator_model(LlamaConfig), batch()
    rows = slice(0, 4) if padded else slice(2, 4)
    ids, mask = ids[rows, width - 14 if not padded else 0 : width], mask[rows, width - 14 if not padded else 0 : width]
    options = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(input_ids=ids, attention_mask=mask, **options)
    with caching_common_prefix(model):
        assert model.generate(input_ids=ids, attention_mask=mask, **options).equal(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"num_return_sequences": 2, "num_beams": 2},
        {"return_dict_in_generate": True, "output_scores": True},
        {"repetition_penalty": 2.0},
    ],
    ids=str,
)
def test_whatever_generate_is_asked_for(options):
    model, (ids, mask, width) = make_generator_model(LlamaConfig).double(), batch()
    asked = {"input_ids": ids[:, :width], "attention_mask": mask[:, :width], "do_sample": False, "pad_token_id": 0}
    asked |= {"max_new_tokens": 8, "eos_token_id": None, **options}
    plain = model.generate(**asked)
    with caching_common_prefix(model):
        drawn = model.generate(**asked)
    if "return_dict_in_generate" in options:
        plain, drawn = plain.sequences, drawn.sequences
    assert drawn.equal(plain)


@pytest.mark.parametrize(
    "options", [{"output_hidden_states": True}, {"position_ids": torch.arange(20).expand(4, -1) * 2}, {}], ids=str
)
def test_whatever_a_pass_is_asked_for(options):
    model, (ids, mask, _) = make_generator_model(LlamaConfig).double(), batch()
    asked = {"input_ids": ids, "attention_mask": mask, **options}
    plain = model(**asked, use_cache=False)
    with caching_common_prefix(model):
        cached = model(**asked, use_cache=False)
    # Positions are rotated in float32, and those of padded rows are others.
    torch.testing.assert_close(cached.logits * mask[..., None], plain.logits * mask[..., None], atol=1e-4, rtol=1e-3)
    assert cached.past_key_values is None
    for one, other in zip(cached.hidden_states or [], plain.hidden_states or [], strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_that_checkpoints_activations_is_refused(make_config, text_dataset, outcome):
    tokenizer = make_tokenizer(kind="llama")
    model = make_model("llama", tokenizer)
    model.gradient_checkpointing_enable()
    args = make_config(prefix_caching=True, policy_sharing="shared")
    with pytest.raises(ValueError, match="does not work with activation checkpointing"):
        MultiAgentGRPOTrainer(model, outcome, args, text_dataset, processing_class=tokenizer)


def test_a_generator_reads_it_once(model_dirs):
    prompts = ["Here is an example: 1 + 1 = 2. " + rest for rest in ("3 + 4 =", "12 + 5 =", "3 =")]
    drawn = [
        TransformersGenerator(model_dirs["llama"], temperature=0, max_new_tokens=8, prefix_caching=caching)(prompts)
        for caching in (False, True)
    ]
    assert drawn[0] == drawn[1]


def test_a_window_of_attention_is_refused():
    with pytest.raises(
        ValueError,
        match=r"`prefix_caching` needs a model with full attention in every layer, .* "
        r"of Mistral",
    ):
        cache_common_prefix(make_generator_model(MistralConfig, sliding_window=8))


FEW_SHOT = ThinkSolve(
    thinker_prompt="One example: 1+1= is 2. Now {problem}",
    solver_prompt="One example: 1+1= is 2. Now {problem} {thought}",
    solo_prompt="One example: 1+1= is 2. Now {problem}",
)


@pytest.mark.parametrize("sharing", ["separate", "shared", "adapters", "solo"])
def test_a_run_is_the_same_up_to_rounding(sharing, model_dirs, make_config, text_dataset, outcome):
    """Greedy samples, so that rounding changes none; the weights after two steps are nearly the same."""
    topology = Solo() if sharing == "solo" else FEW_SHOT
    own = {} if sharing == "solo" else {"policy_sharing": sharing, "schedule": "joint"}
    dataset = text_dataset.map(lambda row: {"prompt": "Another one: 2+2= is 4. " + row["prompt"]})
    after = []
    for caching in (False, True):
        args = make_config(prefix_caching=caching, top_k=1, learning_rate=1e-3, **own)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        trainer = MultiAgentGRPOTrainer(
            model_dirs["llama"], outcome, args, dataset, topology=topology,
            peft_config=lora if sharing == "adapters" else None,
        )  # fmt: skip
        base = trainer.model.policies["solver"] if sharing == "separate" else trainer.model
        shapes = []
        layer = (base.get_base_model() if sharing == "adapters" else base).get_decoder().layers[0]
        layer.register_forward_pre_hook(lambda _, given, shapes=shapes: shapes.append(len(given[0])))
        trainer.train()
        assert (1 in shapes) == caching
        after.append([p.detach().clone() for p in trainer.model.parameters()])
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other, atol=5e-4, rtol=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gradient_checkpointing": True},
            "does not work with gradient_checkpointing=True, which does not keep the keys",
        ),
    ],
)
def test_what_it_does_not_go_with(settings, message, model_dirs, make_config, text_dataset, outcome):
    args = make_config(prefix_caching=True, **settings)
    with pytest.raises(ValueError, match=message):
        MultiAgentGRPOTrainer(model_dirs["llama"], outcome, args, text_dataset)


def test_the_head_gets_what_lies_side_by_side():
    """Of the last columns of a batch torch would copy a frozen head for every row."""
    model, seen = make_generator_model(LlamaConfig), []
    ids, mask, _ = batch()
    with caching_common_prefix(model):
        hook = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=3)
        hook.remove()
    assert seen == [True] and not model.lm_head._forward_pre_hooks
