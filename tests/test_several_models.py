"""Several models in one trainer: what TRL and transformers do once to "the model", they do to each, and as to one."""

import copy
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import make_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ccpo import MultiAgentGRPOTrainer, SharedCredit
from ccpo.training.policies import AgentPolicies

KINDS = {"thinker": "qwen3", "solver": "llama"}
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
torch.set_num_threads(1)


class AtStart(TrainerCallback):
    """Calls a function when training has been set up."""

    def __init__(self, function):
        self.function = function

    def on_train_begin(self, *args, **kwargs):
        self.function()


def build(model, args, dataset, outcome, cls=MultiAgentGRPOTrainer, **kwargs):
    credit = SharedCredit(outcome) if cls is MultiAgentGRPOTrainer else outcome
    return cls(model=model, reward_funcs=credit, args=args, train_dataset=dataset, **kwargs)


def policy(trainer, role=None):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.policies[role] if isinstance(model, AgentPolicies) else model


def fingerprint(model) -> dict:
    """All that is done to a model: configurations, weights, their dtypes, what is trainable, hooks, dropout, tags."""
    if model is None:
        return {}
    hooks = {
        name: {hook.__qualname__ for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())}
        for name, m in model.named_modules()
    }
    return {
        "config": {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"},
        "generation_config": model.generation_config.to_dict(),
        "weights": {
            n: (p.dtype, p.requires_grad, p.detach().double().sum().item()) for n, p in model.named_parameters()
        },
        "hooks": {name: found for name, found in hooks.items() if found},
        "own forward": sorted(name for name, module in model.named_modules() if "forward" in vars(module)),
        "dropout": [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)],
        "adapters": sorted(getattr(model, "peft_config", {})),
        "tags": model.model_tags,
        "checkpointing": model.is_gradient_checkpointing,
        "training": model.training,
    }


def as_quantized(model):
    """A mark that bitsandbytes leaves, which needs a GPU to do more: TRL goes by it."""
    model.is_loaded_in_4bit = True
    return model


def with_adapter(model):
    torch.manual_seed(3)
    return get_peft_model(model, copy.deepcopy(LORA))


CASES = {
    "plain": ({}, None, None),
    "neftune": ({"neftune_noise_alpha": 5.0}, None, None),
    "checkpointing": ({"gradient_checkpointing": True}, None, None),
    "dropout": ({"disable_dropout": True}, None, None),
    "reference": ({"beta": 0.1, "temperature": 0.7}, None, None),
    "head": ({"cast_lm_head_to_fp32": True, "beta": 0.1, "model_init_kwargs": {"dtype": "bfloat16"}}, None, None),
    "cache": ({"use_cache": True}, None, None),
    "adapter": ({"beta": 0.1, "gradient_checkpointing": True}, LORA, None),
    "adapter of before": ({"beta": 0.1}, None, with_adapter),
    "quantized": ({}, LORA, as_quantized),
}


@pytest.mark.parametrize("case", CASES)
def test_each_policy_is_made_ready_as_a_stock_trainer_makes_its_one(
    case, model_dirs, chat_dataset, make_config, outcome
):
    settings, peft_config, change = CASES[case]

    def source(role):
        path = model_dirs[KINDS[role]]
        return path if change is None else change(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))

    def run(model, args, **kwargs):
        found = {}

        def look():
            for role in KINDS if isinstance(model, dict) else (None,):
                state = trainer._role_state[role] if role else vars(trainer)
                found[role] = {
                    "policy": fingerprint(policy(trainer, role)),
                    "reference": fingerprint(state["ref_model"]),
                    "generation": state["generation_config"].to_dict(),
                    "ends": state["eos_token_ids"],
                }

        trainer = build(
            model,
            args,
            chat_dataset,
            outcome,
            callbacks=[AtStart(look)],
            peft_config=copy.deepcopy(peft_config),
            **kwargs,
        )
        trainer.train()
        hooks = {role: fingerprint(policy(trainer, role))["hooks"] for role in found}
        return found, hooks, trainer

    ours, hooks, trainer = run(
        {role: source(role) for role in KINDS}, make_config(schedule="joint", max_steps=1, **settings)
    )
    for role in KINDS:
        stock, stock_hooks, one = run(source(role), make_config(GRPOConfig, max_steps=1, **settings), cls=GRPOTrainer)
        mine, theirs = ours[role], stock[None]
        mine["policy"]["tags"] = [tag for tag in mine["policy"]["tags"] if tag != "ccpo"]
        for part in theirs:
            assert mine[part] == theirs[part], (role, part)
        assert hooks[role] == stock_hooks[None]  # NEFTune's are gone again
    if case in ("reference", "head", "adapter of before"):  # the reference is the policy as it was
        first = trainer.state.log_history[0]
        limit = 1e-2 if case == "head" else 1e-6
        assert all(abs(first[f"{role}/kl"]) < limit for role in KINDS)


def test_special_tokens_stay_each_models_own(model_dirs, chat_dataset, make_config, outcome, tmp_path):
    """The models' configurations know none of these tokens: training aligns each with its own tokenizer."""
    paths = {role: model_dirs[kind] for role, kind in KINDS.items()}
    tokenizers = {role: AutoTokenizer.from_pretrained(path) for role, path in paths.items()}
    ids = {role: (t.bos_token_id, t.eos_token_id, t.pad_token_id) for role, t in tokenizers.items()}
    assert ids["thinker"][2] >= len(tokenizers["solver"])  # no such row in the Solver's embeddings
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "alternate_period": 1, "seed": 3}

    def run(name, **kwargs):
        args = make_config(output_dir=str(tmp_path / name), **settings)
        trainer = build(paths, args, chat_dataset, outcome, **kwargs)
        return trainer

    whole = run("whole")
    whole.train()
    other = run("whole")
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, other.model.get_parameter(name)), name
    other.save_model(str(tmp_path / "saved"))
    for role, tokenizer in tokenizers.items():
        end_of_turn = tokenizer.convert_tokens_to_ids("~")
        assert whole._role_state[role]["eos_token_ids"] == [tokenizer.eos_token_id, end_of_turn]
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / role)
        bos, eos, pad = ids[role]
        assert (model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id) == (eos, pad, bos)
        assert model.generation_config.eos_token_id == [eos, end_of_turn]
        assert model.generation_config.pad_token_id == pad
        assert AutoTokenizer.from_pretrained(tmp_path / "saved" / role).get_vocab() == tokenizer.get_vocab()
        assert torch.equal(model.lm_head.weight, policy(other, role).lm_head.weight)


def test_liger_reaches_each_model(model_dirs, chat_dataset, make_config, outcome, monkeypatch):
    """liger-kernel needs a GPU: in its place is a module that notes which models transformers hands to it."""
    reached = []

    def record(model, **config):
        reached.append((model, config))

    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    stub = SimpleNamespace(_apply_liger_kernel_to_instance=record)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", stub)
    args = make_config(schedule="joint", max_steps=1, use_liger_kernel=True)
    trainer = build({r: model_dirs[k] for r, k in KINDS.items()}, args, chat_dataset, outcome)
    trainer.train()
    assert [model for model, _ in reached] == [policy(trainer, role) for role in KINDS]
    assert all(config == {"fused_linear_cross_entropy": False} for _, config in reached)
    assert args.use_liger_kernel


@pytest.mark.parametrize("role", KINDS)
def test_an_adapter_on_the_head_is_refused_for_every_role(role, model_dirs, chat_dataset, make_config, outcome):
    models = {r: AutoModelForCausalLM.from_pretrained(model_dirs[k]) for r, k in KINDS.items()}
    models[role] = get_peft_model(models[role], LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match="PEFT adapter to `lm_head` is not supported"):
        build(models, make_config(), chat_dataset, outcome)


@pytest.mark.parametrize("role", KINDS)
def test_router_loss_of_a_model_without_router(role, model_dirs, chat_dataset, make_config, outcome, tmp_path):
    tokenizer = make_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = MixtralConfig(**size, **tokens, num_key_value_heads=2, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    models = {r: model_dirs["llama"] if r == role else str(tmp_path) for r in KINDS}
    with pytest.raises(ValueError, match="`router_aux_loss_coef` is set to 0.01 but LlamaForCausalLM"):
        build(models, make_config(router_aux_loss_coef=0.01), chat_dataset, outcome)


def test_a_failed_policy_leaves_the_arguments_as_they_were(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(temperature=0.9, report_to=["none"], role_kwargs={"solver": {"temperature": 0.5}})
    before = copy.deepcopy(args.to_dict())
    models = {r: AutoModelForCausalLM.from_pretrained(model_dirs[k]) for r, k in KINDS.items()}
    models["solver"] = get_peft_model(models["solver"], LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="lm_head"):
        build(models, args, chat_dataset, outcome)
    assert args.to_dict() == before


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        # a role's `generation_kwargs`, then its other overrides, then common `generation_kwargs`, then common fields
        (
            {"top_k": 5, "suppress_tokens": [3]},
            {"generation_kwargs": {"top_k": 7}},
            {"top_k": 7, "suppress_tokens": [3]},
        ),
        ({"top_k": 5, "suppress_tokens": [3]}, {"top_k": 9}, {"top_k": 9, "suppress_tokens": [3]}),
        ({"top_k": 5}, {"top_k": 9, "generation_kwargs": {"top_k": 7}}, {"top_k": 7}),
        ({"top_k": 5}, {}, {"top_k": 5}),
        ({"max_new_tokens": 6}, {"max_completion_length": 4}, {"max_new_tokens": 4}),
        ({"max_new_tokens": 6}, {"top_p": 0.5}, {"max_new_tokens": 6, "top_p": 0.5}),
        ({"eos_token_id": [4, 5]}, {}, {"eos_token_id": [4, 5]}),
        (None, {"generation_kwargs": {"eos_token_id": 4}}, {"eos_token_id": 4}),
        (None, {}, {"top_k": 3, "max_new_tokens": 8}),
    ],
)
@pytest.mark.parametrize("sharing", ["separate", "shared"])
def test_what_a_role_samples_with(sharing, common, own, expected, model_dirs, chat_dataset, make_config, outcome):
    args = make_config(policy_sharing=sharing, top_k=3, generation_kwargs=common, role_kwargs={"solver": own})
    trainer = build(model_dirs["qwen3"], args, chat_dataset, outcome)
    found = trainer._role_state["solver"]["generation_config"].to_dict()
    assert {name: found[name] for name in expected} == expected
    thinker = trainer._role_state["thinker"]["generation_config"].to_dict()
    assert {name: thinker[name] for name in common or {}} == (common or {})


class Counting(torch.optim.SGD):
    """An optimizer that counts its steps in its groups and steps by that, as StableAdamW and others do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for group in self.param_groups:
            group["decayed"] = torch.ones(1)

    def step(self, closure=None):
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1  # from the first step on
            group["decayed"].mul_(0.5)
        return super().step(closure)


def test_what_an_optimizer_counts_in_a_group_is_held_out_of_turn(model_dirs, chat_dataset, make_config, outcome):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, *args, optimizer, **kwargs):
            groups = {group["agent"]: group for group in trainer.optimizer.param_groups}
            seen.append({role: (group.get("taken"), group["decayed"].item()) for role, group in groups.items()})
            assert [len(group["params"]) for group in groups.values()] == [
                len(group["param_names"]) for group in groups.values()
            ]

    models = {role: AutoModelForCausalLM.from_pretrained(model_dirs[kind]) for role, kind in KINDS.items()}
    args = make_config(schedule="alternate", alternate_period=1, max_steps=4, steps_per_generation=1)
    optimizer = Counting([pair for model in models.values() for pair in model.named_parameters()], lr=1e-3)
    trainer = build(models, args, chat_dataset, outcome, callbacks=[Look()], optimizers=(optimizer, None))
    trainer.train()
    assert [step["thinker"] for step in seen] == [(1, 0.5), (1, 0.5), (2, 0.25), (2, 0.25)]
    assert [step["solver"] for step in seen] == [(None, 1.0), (1, 0.5), (1, 0.5), (2, 0.25)]


class TwoModes(torch.optim.SGD):
    """As schedulefree's: its weights in training and in evaluation differ."""

    def train(self):
        pass

    def eval(self):
        pass


def test_an_optimizer_with_two_modes(model_dirs, chat_dataset, make_config, outcome):
    models = {role: AutoModelForCausalLM.from_pretrained(model_dirs[kind]) for role, kind in KINDS.items()}
    optimizers = (TwoModes([p for model in models.values() for p in model.parameters()], lr=1e-3), None)
    with pytest.raises(ValueError, match=r"`optimizers=\(TwoModes, ...\)` does not go with `schedule='alternate'`"):
        build(models, make_config(), chat_dataset, outcome, optimizers=optimizers)
    build(models, make_config(schedule="joint"), chat_dataset, outcome, optimizers=optimizers).train()
    shared = models["thinker"]
    build(
        shared,
        make_config(policy_sharing="shared"),
        chat_dataset,
        outcome,
        optimizers=(TwoModes(shared.parameters()), None),
    )


def test_memory_metrics_end_with_the_training(model_dirs, chat_dataset, make_config, outcome):
    """`Trainer` measures in a thread that does not sleep."""
    args = make_config(schedule="joint", max_steps=1, skip_memory_metrics=False)
    before = threading.active_count()
    trainer = build({r: model_dirs[k] for r, k in KINDS.items()}, args, chat_dataset, outcome)
    trainer.train()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_one_shared_model_has_what_one_model_has(model_dirs, chat_dataset, make_config, outcome):
    """A reference that follows, and a head in float32."""
    args = make_config(
        policy_sharing="shared",
        schedule="joint",
        beta=0.1,
        sync_ref_model=True,
        ref_model_sync_steps=1,
        ref_model_mixup_alpha=1.0,
        cast_lm_head_to_fp32=True,
        model_init_kwargs={"dtype": "bfloat16"},
        learning_rate=1e-2,
    )
    trainer = build(model_dirs["qwen3"], args, chat_dataset, outcome)
    before = copy.deepcopy(trainer.ref_model.state_dict())
    trainer.train()
    assert trainer.model.lm_head.weight.dtype == torch.float32 and trainer.model.dtype == torch.bfloat16
    weights = trainer.model.state_dict()
    assert any(not torch.equal(before[name], weight) for name, weight in weights.items())
    for name, weight in trainer.ref_model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


def test_adapters_of_before_are_trained_from_where_they_are(model_dirs, chat_dataset, make_config, outcome, tmp_path):
    models = {r: with_adapter(AutoModelForCausalLM.from_pretrained(model_dirs[k])) for r, k in KINDS.items()}
    before = {role: copy.deepcopy(model.state_dict()) for role, model in models.items()}
    trainer = build(models, make_config(schedule="joint", beta=0.1, learning_rate=1e-2), chat_dataset, outcome)
    trainer.train()
    trainer.save_model(str(tmp_path))
    for role, kind in KINDS.items():
        now = policy(trainer, role).state_dict()
        moved = {name for name, weight in before[role].items() if not torch.equal(weight, now[name])}
        assert moved and all(".default." in name for name in moved)
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dirs[kind]), tmp_path / role)
        for name, weight in loaded.state_dict().items():
            assert torch.equal(weight, now[name]), name
