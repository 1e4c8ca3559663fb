"""Agents that start from adapters which another run saved, and what is refused of them."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, load_peft_weights
from safetensors.torch import load_file
from test_resume import assert_identical, logged
from test_resume import run as run_to_the_end
from test_trainer import mixed_outcome
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOTrainer

from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer, SharedCredit, Solo, ThinkSolve
from ccpo.training.adapters import REFERENCE
from ccpo.training.policies import policy_of

AGENTS = ("thinker", "solver")
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
IDS = torch.tensor([[5, 6, 7, 8, 9]])
SHARING = ("adapters", "separate")
torch.set_num_threads(1)


def arguments(out, **settings) -> MultiAgentGRPOConfig:
    common = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, "max_steps": 2}
    common |= {"logging_steps": 1, "report_to": "none", "bf16": False, "gradient_checkpointing": False}
    common |= {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "schedule": "joint"}
    return MultiAgentGRPOConfig(str(out), **common | {"learning_rate": 1e-2} | settings)


def build(model, out, dataset, sharing="adapters", peft_config=None, topology=None, processing_class=None, **settings):
    return MultiAgentGRPOTrainer(
        model,
        SharedCredit(mixed_outcome),
        arguments(out, policy_sharing=sharing, **settings),
        dataset,
        peft_config=peft_config,
        topology=topology,
        processing_class=processing_class,
    )


def log_probs(trainer, agent) -> torch.Tensor:
    trainer.activate_role(agent)
    return log_probs_of(policy_of(trainer.model, agent))


def log_probs_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.log_softmax(-1)


def adapter_weights(trainer, agent, folder) -> dict[str, torch.Tensor]:
    trainer.save_model(str(folder))
    return load_file(folder / agent / "adapter_model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


@pytest.fixture(scope="module")
def problems():
    from datasets import Dataset

    prompts = [[{"role": "user", "content": f"{i}+1="}] for i in range(6)]
    return Dataset.from_dict({"prompt": prompts, "solution": [str(i + 1) for i in range(6)]})


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model_dirs, problems):
    """A run with adapters, saved: its folder, its base, and its agents' log-probabilities."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = build(model_dirs["qwen3"], folder / "run", problems, peft_config=LORA)
    trainer.train()
    trainer.save_model(str(folder / "out"))
    spoke = {agent: log_probs(trainer, agent) for agent in AGENTS}
    assert not torch.equal(spoke["thinker"], spoke["solver"])
    return folder / "out", model_dirs["qwen3"], spoke


def folders(out) -> dict[str, str]:
    return {agent: str(out / agent) for agent in AGENTS}


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
        assert f"| {agent} | {agent} | {out / agent} | yes | yes |" in card
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
    trainer = build(models, tmp_path / "both", problems)
    assert torch.equal(log_probs(trainer, "thinker"), log_probs(first, "thinker"))
    assert torch.equal(log_probs(trainer, "solver"), spoke["solver"])
    trainer.train()
    with pytest.raises(ValueError, match=r"`peft_config` differs from the adapter that 'thinker' starts from .*'r'"):
        build(models, tmp_path, problems, peft_config=LORA)


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
    import shutil

    out, base, _ = saved
    shutil.copytree(out, tmp_path / "own")
    for agent in AGENTS:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = f"{agent}: {tokenizer.chat_template}"
        tokenizer.save_pretrained(tmp_path / "own" / agent)
    trainer = build(folders(tmp_path / "own"), tmp_path, problems)
    assert all(trainer.tokenizers[agent].chat_template.startswith(f"{agent}: ") for agent in AGENTS)
    for file in (tmp_path / "own" / "thinker").iterdir():
        if not file.name.startswith("adapter"):
            file.unlink()
    trainer = build(folders(tmp_path / "own"), tmp_path, problems, "separate")
    assert trainer.tokenizers["thinker"].chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_an_evaluation_before_the_training_leaves_every_adapter_trainable(saved, problems, tmp_path):
    """A reference switches the other adapters' gradients off."""
    settings = {"beta": 0.1, "per_device_eval_batch_size": 4}
    trainer = build(folders(saved[0]), tmp_path, problems, **settings)
    trainer.evaluate(problems.select(range(2)))
    trainer.train()
    held = {group["agent"]: len(group["params"]) for group in trainer.optimizer.param_groups}
    assert held == dict.fromkeys(AGENTS, 8)
    assert not any(torch.equal(log_probs(trainer, agent), saved[2][agent]) for agent in AGENTS)


# ---- What cannot be ----


def change_config(folder: Path, **values) -> str:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return str(folder)


@pytest.fixture
def copied(saved, tmp_path):
    import shutil

    shutil.copytree(saved[0], tmp_path / "copied")
    return tmp_path / "copied"


def test_two_bases(saved, copied, model_dirs, problems, tmp_path):
    change_config(copied / "thinker", base_model_name_or_path=model_dirs["llama"])
    names = f"'thinker': '{model_dirs['llama']}', 'solver': '{saved[1]}'"
    with pytest.raises(ValueError, match=f"has one model for all agents, the base .* gives several: .*{names}"):
        build(folders(copied), tmp_path, problems)
    with pytest.raises(ValueError, match="has one model for all agents, the base"):
        build({**folders(saved[0]), "solver": model_dirs["llama"]}, tmp_path, problems)
    with pytest.raises(ValueError, match="gives several: .*'solver': 'an object from nowhere'"):
        nowhere = make_model("qwen3", make_tokenizer())
        build({**folders(saved[0]), "solver": nowhere}, tmp_path, problems)


@pytest.mark.parametrize("sharing", SHARING)
def test_a_peft_config_that_says_something_else(sharing, saved, problems, tmp_path):
    message = r"`peft_config` differs from the adapter that .* starts from \(given, saved\): {'r': \(8, 4\)}. Leave"
    with pytest.raises(ValueError, match=message):
        other = copy.deepcopy(LORA)
        other.r = 8
        build(folders(saved[0]), tmp_path, problems, sharing, other)
    with pytest.raises(ValueError, match="differs from .*'target_modules'"):
        words = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        build(folders(saved[0]), tmp_path, problems, sharing, words)


def test_words_that_mean_the_modules_that_were_saved(saved, problems, tmp_path):
    words = LoraConfig(r=4, target_modules="all-linear")
    trainer = build(saved[1], tmp_path / "run", problems, peft_config=copy.deepcopy(words), max_steps=1)
    trainer.save_model(str(tmp_path / "out"))
    again = build(folders(tmp_path / "out"), tmp_path / "again", problems, peft_config=words, max_steps=1)
    assert torch.equal(log_probs(again, "solver"), log_probs(trainer, "solver"))


def test_adapters_that_cannot_be_read_or_trained(saved, copied, problems, tmp_path):
    gone = change_config(copied / "thinker", base_model_name_or_path="/gone")
    with pytest.raises(ValueError, match=f"'thinker': '{gone}' is an adapter of '/gone', which could not be found"):
        build(gone, tmp_path, problems)
    nameless = change_config(copied / "thinker", base_model_name_or_path=None)
    with pytest.raises(ValueError, match=f"the adapter in '{nameless}' names no base model. Set `base_model_name_or"):
        build(nameless, tmp_path, problems)
    (copied / "thinker" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="the adapter in '.*' could not be read"):
        build(folders(copied), tmp_path, problems)
    base = AutoModelForCausalLM.from_pretrained(saved[1])
    prompt = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="'thinker' is an adapter of the kind PROMPT_TUNING, which PEFT does not"):
        build(prompt, tmp_path, problems)
    strangers = get_peft_model(AutoModelForCausalLM.from_pretrained(saved[1]), LORA, adapter_name="one")
    strangers.add_adapter("two", LORA)
    with pytest.raises(ValueError, match=r"'thinker' has the adapters \['one', 'two'\], none of them named 'thinker'"):
        build(strangers, tmp_path, problems)
    change_config_back = change_config(saved_copy(saved, tmp_path), target_modules=["q_proj"])
    with pytest.raises(ValueError, match="has other weights than its adapter_config.json says: .*v_proj"):
        build(change_config_back, tmp_path, problems)


def saved_copy(saved, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(saved[0] / "solver", tmp_path / "solver"))


def test_a_stock_trainer_takes_the_same_object(saved, problems, tmp_path):
    """What `separate` hands to TRL is what a user of TRL would: its reference is a copy of the adapter."""
    out, base, _ = saved
    own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "solver", is_trainable=True)
    args = arguments(tmp_path, beta=0.1)
    stock = GRPOTrainer(own, mixed_outcome, args, problems)
    trainer = build(folders(out), tmp_path, problems, "separate", beta=0.1)
    assert_equal(dict(stock.model.named_parameters()), dict(policy_of(trainer.model, "solver").named_parameters()))


# ---- Of the version before ----


def test_a_checkpoint_of_the_version_before_is_refused(model_dirs, problems, tmp_path):
    """Format 1: no `format` in its manifest, roles where agents are now."""
    args = arguments(tmp_path / "run", policy_sharing="adapters", save_strategy="steps", save_steps=1)
    run_to_the_end(model_dirs["qwen3"], args, problems, peft_config=LORA)
    file = tmp_path / "run" / "checkpoint-1" / "ccpo_checkpoint.json"
    manifest = json.loads(file.read_text())
    del manifest["format"]
    manifest["settings"]["roles"] = manifest["settings"].pop("agents")
    manifest["versions"]["ccpo"] = "0.1.0"
    file.write_text(json.dumps(manifest))
    message = (
        "is of format 1, which ccpo 0.1.0 wrote, and this version continues format 2. Finish that run with the "
        "version that began it, or start a new run from its models, model={'thinker': ..., 'solver': ...}."
    )
    again = arguments(tmp_path / "again", policy_sharing="adapters")
    for resume in (str(file.parent),):
        with pytest.raises(ValueError, match=re.escape(message)):
            run_to_the_end(model_dirs["qwen3"], again, problems, resume=resume, peft_config=LORA)
    models = folders(file.parent)  # the remedy
    trainer = build(models, tmp_path / "new", problems, topology=ThinkSolve())
    weights = load_peft_weights(models["solver"], "cpu")
    trainer.save_model(str(tmp_path / "new"))
    assert_equal(weights, load_peft_weights(str(tmp_path / "new" / "solver"), "cpu"))
