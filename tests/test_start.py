"""Agents that start from adapters which another run saved: as they were, and trained on from there."""

import json
import shutil

import pytest
import torch
from agent_runs import (
    AGENTS,
    IDS,
    LORA,
    SHARING,
    arguments,
    assert_equal,
    build,
    folders,
    log_probs,
    log_probs_of,
)
from peft import LoraConfig, PeftModel, load_peft_weights
from safetensors.torch import load_file
from test_resume import assert_identical, logged
from test_resume import run as run_to_the_end
from test_trainer import mixed_outcome
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOTrainer

from ccpo import Solo
from ccpo.training.adapters import REFERENCE
from ccpo.training.policies import policy_of

pytest_plugins = ("agent_runs",)  # fixtures


def adapter_weights(trainer, agent, folder) -> dict[str, torch.Tensor]:
    trainer.save_model(str(folder))
    return load_file(folder / agent / "adapter_model.safetensors")


def with_both(saved) -> PeftModel:
    """One object with the adapters of both agents, by their names."""
    out, base, _ = saved
    loaded = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(loaded, out / "solver", adapter_name="solver", is_trainable=True)
    model.load_adapter(out / "thinker", adapter_name="thinker", is_trainable=True)
    return model


def with_each(saved) -> dict[str, PeftModel]:
    out, base, _ = saved
    loaded = {agent: AutoModelForCausalLM.from_pretrained(base) for agent in AGENTS}
    return {agent: PeftModel.from_pretrained(loaded[agent], out / agent, is_trainable=True) for agent in AGENTS}


GIVEN = {
    "folders": lambda saved: folders(saved[0]),
    "one object": with_both,
    "two objects": with_each,
    "an object and a folder": lambda saved: {**folders(saved[0]), "solver": with_each(saved)["solver"]},
}


# ---- As the run that saved ----


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("sharing", SHARING)
def test_an_agent_starts_as_it_was_saved(sharing, given, saved, problems, tmp_path):
    """To the bit, with `peft_config` left out or given again; one base is loaded once."""
    for peft_config in (None, LORA):
        trainer = build(GIVEN[given](saved), tmp_path, problems, sharing, peft_config, max_steps=1)
        for agent in AGENTS:
            assert torch.equal(log_probs(trainer, agent), saved[2][agent])
        names = {agent: set(policy_of(trainer.model, agent).peft_config) for agent in AGENTS}
        assert names == dict.fromkeys(AGENTS, set(AGENTS) if sharing == "adapters" else {"default"})
        trainer.train()


@pytest.mark.parametrize("sharing", SHARING)
def test_training_goes_on_with_the_adapter_alone_and_what_it_saves_is_a_start(sharing, saved, problems, tmp_path):
    out, base, _ = saved
    trainer = build(folders(out), tmp_path / "run", problems, sharing, beta=0.1)
    trainer.train()
    bases = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    for agent in AGENTS:
        own = policy_of(trainer.model, agent).get_base_model()
        seen = {n.replace(".base_layer", ""): p for n, p in own.named_parameters() if "lora_" not in n}
        assert_equal(seen, bases)
        now = adapter_weights(trainer, agent, tmp_path / "again")
        assert not any(torch.equal(w, now[n]) for n, w in load_peft_weights(str(out / agent), "cpu").items())
        assert not list((tmp_path / "again" / agent).glob("*ref*"))  # the reference is the trainer's
        config = json.loads((tmp_path / "again" / agent / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base
        card = (tmp_path / "again" / agent / "README.md").read_text()
        assert f"| {agent} | yes | {agent} | {out / agent} | yes |" in card
    assert json.loads((tmp_path / "again" / "team.json").read_text())["kind"] == "think_solve"
    third = build(folders(tmp_path / "again"), tmp_path / "third", problems, sharing)
    assert all(torch.equal(log_probs(third, agent), log_probs(trainer, agent)) for agent in AGENTS)


def test_adapters_on_one_base_go_on_as_those_on_their_own(saved, problems, tmp_path):
    """The same run twice: one base for both agents, and TRL's own way, a base and a reference for each."""
    ends = {}
    for sharing in SHARING:
        trainer = build(folders(saved[0]), tmp_path, problems, sharing, beta=0.1, max_steps=3)
        trainer.train()
        ends[sharing] = [adapter_weights(trainer, agent, tmp_path / sharing) for agent in AGENTS]
        ends[sharing].append([{k: v for k, v in row.items() if "kl" in k} for row in trainer.state.log_history])
    for one, two in zip(*(ends[sharing][:2] for sharing in SHARING), strict=True):
        for name, weight in one.items():
            torch.testing.assert_close(weight, two[name], rtol=0, atol=1e-6)
    assert ends["adapters"][2][1]["thinker/kl"] > 0
    for mine, theirs in zip(ends["adapters"][2], ends["separate"][2], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("sharing", SHARING)
def test_the_reference_is_the_start_of_a_saved_adapter_and_the_base_of_a_new_one(sharing, saved, problems, tmp_path):
    """As TRL has it: a copy of an adapter that there was, and the base without one that it made."""
    out, base, _ = saved
    models = {"thinker": str(out / "thinker"), "solver": base}
    seen = {}

    class Look(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            for agent in AGENTS:
                model, reference = policy_of(trainer.model, agent), trainer._role_state[agent]["ref_model"]
                names = {"adapters": REFERENCE.format(agent=agent), "separate": "ref"}
                assert (names[sharing] in model.peft_config) == (agent == "thinker")
                assert (reference is not None) == (sharing == "adapters" and agent == "thinker")
                trainer.activate_role(agent)
                if reference is not None:
                    with torch.no_grad():
                        seen[agent] = reference(input_ids=IDS).logits.log_softmax(-1)
                elif agent == "thinker":
                    model.set_adapter("ref")
                    seen[agent] = log_probs_of(model)
                    model.set_adapter("default")

    trainer = build(models, tmp_path, problems, sharing, LORA, beta=0.1, max_steps=4)
    trainer.add_callback(Look())
    trainer.train()
    assert torch.equal(seen["thinker"], saved[2]["thinker"])
    assert not torch.equal(log_probs(trainer, "thinker"), saved[2]["thinker"])
    first = trainer.state.log_history[0]
    assert abs(first["thinker/kl"]) < 1e-6 < first["solver/kl"]


@pytest.mark.parametrize("sharing", SHARING)
def test_a_run_from_adapters_is_resumed_to_the_bit(sharing, saved, model_dirs, problems, tmp_path):
    """The reference is that of the run's start, not of the checkpoint."""
    settings = {"policy_sharing": sharing, "beta": 0.1, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    settings |= {"schedule": "alternate", "alternate_period": 1, "weight_decay": 0.1}
    whole, digest = run_to_the_end(folders(saved[0]), arguments(tmp_path / "whole", **settings), problems)
    for step in (1, 2, 3):
        again = arguments(tmp_path / str(step), **settings)
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed, copy_ = run_to_the_end(folders(saved[0]), again, problems, resume=checkpoint)
        assert logged(resumed) == logged(whole), step
        assert_identical(digest, copy_)


# ---- Beside others ----


@pytest.mark.parametrize("sharing", SHARING)
def test_an_agent_without_an_adapter_starts_anew_beside_one_that_has_one(sharing, saved, problems, tmp_path):
    out, base, spoke = saved
    models = {"thinker": base, "solver": str(out / "solver")}
    trainer = build(models, tmp_path, problems, sharing)
    assert torch.equal(log_probs(trainer, "solver"), spoke["solver"])
    thinker = policy_of(trainer.model, "thinker")
    if sharing == "separate":  # nothing said of an adapter: the whole model is trained
        assert not isinstance(thinker, PeftModel)
    else:
        own, theirs = thinker.peft_config["thinker"], thinker.peft_config["solver"]
        assert (own.r, own.target_modules) == (theirs.r, theirs.target_modules) == (4, {"q_proj", "v_proj"})
        assert not torch.equal(log_probs(trainer, "thinker"), spoke["thinker"])
    trainer.train()


def test_adapters_of_two_sizes_and_embeddings_stand_on_one_base(saved, problems, tmp_path):
    """Each keeps its own configuration; one that begins anew must say which."""
    out, base, spoke = saved
    wide = LoraConfig(r=7, target_modules=["o_proj"], modules_to_save=["embed_tokens"], init_lora_weights=False)
    first = build(base, tmp_path / "run", problems, "separate", wide, max_steps=1)
    first.train()
    first.save_model(str(tmp_path / "wide"))
    models = {"thinker": str(tmp_path / "wide" / "thinker"), "solver": str(out / "solver")}
    trainer = build(models, tmp_path / "both", problems, "adapters")
    assert torch.equal(log_probs(trainer, "thinker"), log_probs(first, "thinker"))
    assert torch.equal(log_probs(trainer, "solver"), spoke["solver"])
    trainer.train()
    with pytest.raises(ValueError, match=r"`peft_config` differs from the adapter that 'thinker' starts from .*'r'"):
        build(models, tmp_path, problems, "adapters", peft_config=LORA)


def test_one_folder_for_all_for_one_shared_model_and_for_a_solo(saved, problems, tmp_path):
    out, _, spoke = saved
    for sharing in ("adapters", "separate", "shared"):
        trainer = build(str(out / "solver"), tmp_path, problems, sharing, max_steps=1)
        assert all(torch.equal(log_probs(trainer, agent), spoke["solver"]) for agent in AGENTS)
        trainer.train()
    trainer = build(str(out / "solver"), tmp_path, problems, "separate", topology=Solo(), max_steps=1)
    assert torch.equal(log_probs_of(trainer.model), spoke["solver"])
    trainer.train()


def test_a_tokenizer_is_the_adapters_own_or_the_bases(saved, problems, tmp_path):
    out, base, _ = saved
    shutil.copytree(out, tmp_path / "own")
    for agent in AGENTS:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = f"{agent}: {tokenizer.chat_template}"
        tokenizer.save_pretrained(tmp_path / "own" / agent)
    trainer = build(folders(tmp_path / "own"), tmp_path, problems, "adapters")
    assert all(trainer.tokenizers[agent].chat_template.startswith(f"{agent}: ") for agent in AGENTS)
    for file in (tmp_path / "own" / "thinker").iterdir():
        if not file.name.startswith("adapter"):
            file.unlink()
    trainer = build(folders(tmp_path / "own"), tmp_path, problems, "separate")
    assert trainer.tokenizers["thinker"].chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_an_evaluation_before_the_training_leaves_every_adapter_trainable(saved, problems, tmp_path):
    """A reference switches the other adapters' gradients off."""
    settings = {"beta": 0.1, "per_device_eval_batch_size": 4}
    trainer = build(folders(saved[0]), tmp_path, problems, "adapters", **settings)
    trainer.evaluate(problems.select(range(2)))
    trainer.train()
    held = {group["agent"]: len(group["params"]) for group in trainer.optimizer.param_groups}
    assert held == dict.fromkeys(AGENTS, 8)
    assert not any(torch.equal(log_probs(trainer, agent), saved[2][agent]) for agent in AGENTS)


def test_a_stock_trainer_takes_the_same_object(saved, problems, tmp_path):
    """What `separate` hands to TRL is what a user of TRL would: its reference is a copy of the adapter."""
    out, base, _ = saved
    own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "solver", is_trainable=True)
    args = arguments(tmp_path, beta=0.1)
    stock = GRPOTrainer(own, mixed_outcome, args, problems)
    trainer = build(folders(out), tmp_path, problems, "separate", beta=0.1)
    assert_equal(dict(stock.model.named_parameters()), dict(policy_of(trainer.model, "solver").named_parameters()))
