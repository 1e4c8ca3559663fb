"""Frozen agents: they play and are never updated."""

import copy
import json

import pytest
import torch
from agent_runs import (
    AGENTS,
    LORA,
    SHARING,
    WRITER,
    Watch,
    arguments,
    assert_equal,
    build,
    log_probs,
    log_probs_of,
)
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from test_resume import assert_identical, logged
from test_resume import run as run_to_the_end
from transformers import AutoModelForCausalLM, Trainer

from ccpo import ContextualCredit, TransformersGenerator
from ccpo.generation.bases import BASE_FILE
from ccpo.training.adapters import REFERENCE
from ccpo.training.policies import policy_of

FROZEN = {"solver": {"trainable": False}}

pytest_plugins = ("agent_runs",)  # fixtures


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
@pytest.mark.parametrize("sharing", SHARING)
def test_a_frozen_agent_plays_and_is_never_updated(sharing, schedule, model_dirs, problems, tmp_path):
    """No gradient, no optimizer group or state, no turn; its weights are what they were, to the bit."""
    base = model_dirs["qwen3"]
    model = {"thinker": base, "solver": model_dirs["llama"]} if sharing == "separate" else base
    settings = {"role_kwargs": FROZEN, "beta": 0.1, "max_steps": 4, "weight_decay": 0.5, "schedule": schedule}
    settings |= {"alternate_period": 1, "peft_config": LORA if sharing == "adapters" else None}
    watch = Watch()
    trainer = build(model, tmp_path / "run", problems, sharing, callbacks=[watch], **settings)
    assert trainer.trained_agents == ("thinker",) and trainer.roles_in_turn() == ("thinker",)
    assert trainer._role_state["solver"]["ref_model"] is None
    trainer.train()
    seen = {"moved": {"thinker"}, "graded": {"thinker"}, "held": {"thinker"}, "state": {"thinker"}}
    assert watch.steps[1:] == [seen] * 3
    row = trainer.state.log_history[0]
    assert "solver/completions/mean_length" in row and "thinker/kl" in row
    assert "solver/kl" not in row and "solver/reward" not in row
    trainer.save_model(str(tmp_path / "out"))
    saved = json.loads((tmp_path / "out" / "team.json").read_text())
    assert saved.pop("run")["sampling"].keys() == {"thinker", "solver"} and saved == trainer.topology.to_dict()
    if sharing == "separate":
        start = load_file(f"{model_dirs['llama']}/model.safetensors")
        assert_equal(load_file(tmp_path / "out" / "solver" / "model.safetensors"), start)


def test_a_frozen_agent_among_adapters_plays_the_base(model_dirs, problems, tmp_path):
    """With the adapter layers off, whoever spoke before; its folder names the base and is a start."""
    base = AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"])
    settings = {"peft_config": LORA, "role_kwargs": FROZEN}
    trainer = build(model_dirs["qwen3"], tmp_path / "run", problems, "adapters", **settings)
    assert set(trainer.model.peft_config) == {"thinker"}
    alone = log_probs_of(base)
    for _ in range(2):
        assert not torch.equal(log_probs(trainer, "thinker"), alone)
        assert torch.equal(log_probs(trainer, "solver"), alone)
        trainer.train()
    assert torch.equal(log_probs(trainer, "solver"), alone)
    trainer.save_model(str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out" / "solver").iterdir()}
    assert "tokenizer.json" in names and not names & {"config.json", "model.safetensors", "adapter_config.json"}
    cards = {agent: (tmp_path / "out" / agent / "README.md").read_text() for agent in AGENTS}
    assert "plays the base. Here are its tokenizer, and the base's name if it has one." in cards["solver"]
    assert f'AutoModelForCausalLM.from_pretrained("{model_dirs["qwen3"]}")' in cards["solver"]
    assert f"| solver | no | solver | {model_dirs['qwen3']} |" in cards["thinker"]
    assert "holds its tokenizer" not in cards["thinker"] and "AutoPeftModelForCausalLM" in cards["thinker"]
    again = {agent: str(tmp_path / "out" / agent) for agent in AGENTS}
    texts = [TransformersGenerator(m, temperature=0)(["1+2"]) for m in (again["solver"], model_dirs["qwen3"])]
    assert texts[0] == texts[1]
    trainer = build(again, tmp_path / "again", problems, "adapters", role_kwargs=FROZEN, beta=0.1)
    assert torch.equal(log_probs(trainer, "solver"), alone)
    assert trainer.tokenizers["solver"].name_or_path == again["solver"]
    trainer.train()
    apart = build(again, tmp_path / "apart", problems, "separate", role_kwargs=FROZEN)
    assert torch.equal(log_probs(apart, "solver"), alone)
    thawed = build(again, tmp_path / "thawed", problems, "adapters")
    assert set(thawed.model.peft_config) == {*AGENTS}
    thawed.save_model(str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob(f"*/{BASE_FILE}"))  # it has an adapter now
    (tmp_path / "out" / "solver" / BASE_FILE).write_text("{}")
    with pytest.raises(
        ValueError, match="solver/ccpo_base.json' names no base model, .* or give the base model itself"
    ):
        build(again, tmp_path / "unnamed", problems, "adapters")


@pytest.mark.parametrize("sharing", SHARING)
def test_a_frozen_agent_keeps_the_adapter_from_which_it_starts(sharing, model_dirs, problems, tmp_path):
    first = build(model_dirs["qwen3"], tmp_path / "run", problems, "adapters", peft_config=LORA)
    first.train()
    first.save_model(str(tmp_path / "out"))
    models = {"thinker": model_dirs["qwen3"], "solver": str(tmp_path / "out" / "solver")}
    watch = Watch()
    settings = {"role_kwargs": FROZEN, "beta": 0.1, "callbacks": [watch], "weight_decay": 0.5, "max_steps": 4}
    trainer = build(models, tmp_path / "again", problems, sharing, peft_config=LORA, **settings)
    assert torch.equal(log_probs(trainer, "solver"), log_probs(first, "solver"))
    assert not {"ref", REFERENCE.format(agent="solver")} & set(policy_of(trainer.model, "solver").peft_config)
    trainer.train()
    assert all(step["moved"] <= {"thinker"} and step["held"] == {"thinker"} for step in watch.steps)
    assert any(step["moved"] for step in watch.steps) and not any("solver" in step["graded"] for step in watch.steps)
    trainer.save_model(str(tmp_path / "saved"))
    one, two = (load_file(tmp_path / name / "solver" / "adapter_model.safetensors") for name in ("out", "saved"))
    assert_equal(one, two)


def test_a_frozen_agent_gets_no_new_adapter(model_dirs, problems, tmp_path):
    """`peft_config` is for those that are trained; with separate policies each agent has a whole model of its own."""
    settings = {"role_kwargs": {"thinker": {"trainable": False}}, "peft_config": LORA, "beta": 0.1}
    trainer = build(model_dirs["qwen3"], tmp_path / "run", problems, **settings)
    kinds = {agent: isinstance(policy_of(trainer.model, agent), PeftModel) for agent in AGENTS}
    assert kinds == {"thinker": False, "solver": True}
    trainer.train()
    assert trainer.beta == 0.1 and "solver/kl" in trainer.state.log_history[0]
    trainer.save_model(str(tmp_path / "out"))
    start = load_file(f"{model_dirs['qwen3']}/model.safetensors")
    assert_equal(load_file(tmp_path / "out" / "thinker" / "model.safetensors"), start)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
@pytest.mark.parametrize("role", AGENTS)
def test_a_model_without_a_weight_to_train_is_a_frozen_agent(role, kind, model_dirs, problems, tmp_path):
    frozen = AutoModelForCausalLM.from_pretrained(model_dirs["llama"]).requires_grad_(False)
    if kind == "adapter":  # PEFT's default is an adapter for inference
        get_peft_model(frozen, copy.deepcopy(LORA)).save_pretrained(tmp_path / "saved")
        loaded = AutoModelForCausalLM.from_pretrained(model_dirs["llama"])
        frozen = PeftModel.from_pretrained(loaded, tmp_path / "saved")
    start = {name: p.detach().clone() for name, p in frozen.named_parameters()}
    models = {**dict.fromkeys(AGENTS, model_dirs["qwen3"]), role: frozen}
    other = next(agent for agent in AGENTS if agent != role)
    trainer = build(models, tmp_path, problems, schedule="alternate", alternate_period=1, beta=0.1)
    assert trainer.trained_agents == (other,)
    trainer.train()
    assert_equal(dict(policy_of(trainer.model, role).named_parameters()), start)
    with pytest.raises(ValueError, match=f"'{role}'.*trainable.* is true, but its `model`, a .*, has no weight"):
        build(models, tmp_path, problems, role_kwargs={role: {"trainable": True}})
    if kind == "whole":  # an adapter brings weights to train
        assert build(models, tmp_path, problems, peft_config=LORA).trained_agents == AGENTS


def test_of_an_objects_adapters_the_one_loaded_for_inference_is_frozen(model_dirs, problems, tmp_path):
    first = build(model_dirs["qwen3"], tmp_path / "run", problems, "adapters", peft_config=LORA)
    first.save_model(str(tmp_path / "out"))
    for order in (AGENTS, AGENTS[::-1]):
        base = AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"])
        named = {"adapter_name": order[0], "is_trainable": order[0] == "thinker"}
        both = PeftModel.from_pretrained(base, tmp_path / "out" / order[0], **named)
        both.load_adapter(tmp_path / "out" / order[1], order[1], is_trainable=order[1] == "thinker")
        both.set_adapter("thinker")
        for sharing in SHARING:
            trainer = build(copy.deepcopy(both), tmp_path, problems, sharing)
            assert trainer.trained_agents == ("thinker",)
            for agent in AGENTS:
                assert torch.equal(log_probs(trainer, agent), log_probs(first, agent))


def test_what_cannot_be_frozen(model_dirs, problems, tmp_path):
    both = {agent: {"trainable": False} for agent in AGENTS}
    for sharing in ("separate", "shared"):
        with pytest.raises(
            ValueError, match=r"All agents are frozen \(\['thinker', 'solver'\]\), so nothing would be"
        ):
            build(model_dirs["qwen3"], tmp_path, problems, sharing, role_kwargs=both)
    with pytest.raises(ValueError, match="All agents are frozen .* load an adapter with `is_trainable=True`"):
        idle = AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"]).requires_grad_(False)
        build(idle, tmp_path, problems)
    with pytest.raises(
        ValueError, match=r"'shared'` has the same weights for all agents, so \['solver'\] cannot be frozen"
    ):
        build(model_dirs["qwen3"], tmp_path, problems, "shared", role_kwargs=FROZEN)
    for start in ("critic", "writer"):
        frozen = {start: {"trainable": False}}
        settings = {"topology": WRITER, "start_role": "final" if start == "writer" else start, "role_kwargs": frozen}
        with pytest.raises(
            ValueError, match=f"`start_role='{settings['start_role']}'` is frozen, so it is never trained"
        ):
            build(model_dirs["qwen3"], tmp_path, problems, schedule="alternate", **settings)
    with pytest.raises(ValueError, match=r"`role_kwargs\['solver'\]\['trainable'\]` must be true or false, got 'no'"):
        arguments(tmp_path, role_kwargs={"solver": {"trainable": "no"}})
    held = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="`optimizers` holds parameters that are not trainable"):
        optimizer = torch.optim.SGD([held], lr=0.1)
        build(model_dirs["qwen3"], tmp_path, problems, role_kwargs=FROZEN, optimizers=(optimizer, None)).train()


def test_a_scheme_of_siblings_asks_for_them_of_trained_agents_alone(model_dirs, problems, tmp_path):
    """C3 with K = 1 would never train the Solver: that is no fault where nobody wants it trained."""
    with pytest.raises(ValueError, match="the agent 'solver' would never be trained"):
        build(model_dirs["qwen3"], tmp_path, problems, credit=ContextualCredit)
    build(model_dirs["qwen3"], tmp_path, problems, credit=ContextualCredit, role_kwargs=FROZEN).train()


def test_what_is_saved_has_its_gradient_on(model_dirs, problems, tmp_path, monkeypatch):
    """Of adapters ZeRO-3 gathers nothing else: not a frozen one's, nor those that a reference has switched off."""
    first = build(model_dirs["qwen3"], tmp_path / "run", problems, "adapters", peft_config=LORA)
    first.save_model(str(tmp_path / "out"))
    models = {agent: str(tmp_path / "out" / agent) for agent in AGENTS}
    settings = {"beta": 0.1, "per_device_eval_batch_size": 4}
    for role_kwargs in (None, FROZEN):
        trainer = build(models, tmp_path, problems, "adapters", role_kwargs=role_kwargs, **settings)
        trainer.evaluate(problems.select(range(1)))
        seen = {}

        def look(*args, trainer=trainer, seen=seen, **kwargs):
            seen |= {name: p.requires_grad for name, p in trainer.model.named_parameters()}

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "save_model", look)
            trainer.save_model(str(tmp_path / "again"))
        assert {name for name, on in seen.items() if on} == {
            name for name in seen if ".thinker." in name or ".solver." in name
        }
        trainer.activate_role("thinker")
        now = {name: p.requires_grad for name, p in trainer.model.named_parameters()}
        assert {on for name, on in now.items() if ".solver." in name} == {role_kwargs is None}


@pytest.mark.parametrize("sharing", SHARING)
def test_a_run_with_a_frozen_agent_is_resumed_to_the_bit_and_can_be_merged(sharing, model_dirs, problems, tmp_path):
    settings = {"policy_sharing": sharing, "role_kwargs": FROZEN, "max_steps": 4, "save_strategy": "steps"}
    settings |= {"save_steps": 1, "schedule": "alternate", "alternate_period": 1, "beta": 0.1, "merge_adapters": True}
    base = model_dirs["qwen3"]
    whole, digest = run_to_the_end(base, arguments(tmp_path / "run", **settings), problems, peft_config=LORA)
    for step in (1, 3):
        again = arguments(tmp_path / str(step), **settings)
        checkpoint = str(tmp_path / "run" / f"checkpoint-{step}")
        resumed, other = run_to_the_end(base, again, problems, resume=checkpoint, peft_config=LORA)
        assert logged(resumed) == logged(whole)
        assert_identical(digest, other)
    thawed = arguments(tmp_path / "thawed", **{**settings, "role_kwargs": None})
    with pytest.raises(ValueError, match=r"`trained agents` was \['thinker'\] and is \['thinker', 'solver'\]"):
        run_to_the_end(base, thawed, problems, resume=checkpoint, peft_config=LORA)
    whole.save_model(str(tmp_path / "out"))
    for agent in AGENTS:
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / agent)
        torch.testing.assert_close(log_probs_of(merged), log_probs(whole, agent), atol=1e-4, rtol=1e-4)
        card = (tmp_path / "out" / agent / "README.md").read_text()
        assert "library_name: transformers" in card and "holds its tokenizer" not in card
    whole_models = (AutoModelForCausalLM.from_pretrained(path) for path in (base, tmp_path / "out" / "solver"))
    assert torch.equal(*map(log_probs_of, whole_models))
