"""Saved adapters, and checkpoints of the version before, that are refused: with name, value and remedy."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from agent_runs import (
    LORA,
    SHARING,
    arguments,
    assert_equal,
    build,
    folders,
    log_probs,
)
from conftest import make_model, make_tokenizer
from peft import LoraConfig, PromptTuningConfig, get_peft_model, load_peft_weights
from test_resume import run as run_to_the_end
from transformers import AutoModelForCausalLM

# ---- What cannot be ----

pytest_plugins = ("agent_runs",)  # fixtures


def change_config(folder: Path, **values) -> str:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return str(folder)


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "copied")
    return tmp_path / "copied"


def test_two_bases(saved, copied, model_dirs, problems, tmp_path):
    change_config(copied / "thinker", base_model_name_or_path=model_dirs["llama"])
    names = f"'thinker': '{model_dirs['llama']}', 'solver': '{saved[1]}'"
    with pytest.raises(ValueError, match=f"has one base model for all agents, .* gives several: .*{names}"):
        build(folders(copied), tmp_path, problems, "adapters")
    with pytest.raises(ValueError, match="has one base model for all agents"):
        build({**folders(saved[0]), "solver": model_dirs["llama"]}, tmp_path, problems, "adapters")
    with pytest.raises(ValueError, match="gives several: .*'solver': 'an object from nowhere'"):
        nowhere = make_model("qwen3", make_tokenizer())
        build({**folders(saved[0]), "solver": nowhere}, tmp_path, problems, "adapters")


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
    trainer = build(saved[1], tmp_path / "run", problems, "adapters", peft_config=copy.deepcopy(words), max_steps=1)
    trainer.save_model(str(tmp_path / "out"))
    again = build(folders(tmp_path / "out"), tmp_path / "again", problems, "adapters", peft_config=words, max_steps=1)
    assert torch.equal(log_probs(again, "solver"), log_probs(trainer, "solver"))


def test_adapters_that_cannot_be_read_or_trained(saved, copied, problems, tmp_path):
    gone = change_config(copied / "thinker", base_model_name_or_path="/gone")
    with pytest.raises(ValueError, match=f"'thinker': '{gone}' is an adapter of '/gone', which could not be found"):
        build(gone, tmp_path, problems, "adapters")
    nameless = change_config(copied / "thinker", base_model_name_or_path=None)
    with pytest.raises(
        ValueError, match=f"the adapter in '{nameless}' does not name its base model. Set `base_model_name_or"
    ):
        build(nameless, tmp_path, problems, "adapters")
    (copied / "thinker" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="the adapter in '.*' could not be read"):
        build(folders(copied), tmp_path, problems, "adapters")
    base = AutoModelForCausalLM.from_pretrained(saved[1])
    prompt = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    prompt.save_pretrained(tmp_path / "prompt")
    with pytest.raises(
        ValueError, match="has an adapter of the kind PROMPT_TUNING, which PEFT cannot continue to train"
    ):
        build(str(tmp_path / "prompt"), tmp_path, problems, "separate")
    for model, peft_config in ((prompt, None), (saved[1], prompt.peft_config["default"])):
        with pytest.raises(ValueError, match="adapters of which a model may have several, got one of the kind PROMPT"):
            build(model, tmp_path, problems, "adapters", peft_config)
    for path in (str(tmp_path / "no folder"), "no/such-model", "no id!"):
        with pytest.raises(ValueError, match=f"'thinker': '{path}' could not be found or read"):
            build(path, tmp_path, problems, "separate")
    strangers = get_peft_model(AutoModelForCausalLM.from_pretrained(saved[1]), LORA, adapter_name="one")
    strangers.add_adapter("two", LORA)
    with pytest.raises(ValueError, match=r"'thinker' has the adapters \['one', 'two'\], but none is named 'thinker'"):
        build(strangers, tmp_path, problems, "adapters")
    narrower = change_config(Path(shutil.copytree(saved[0] / "solver", tmp_path / "q")), target_modules=["q_proj"])
    with pytest.raises(ValueError, match="do not fit its adapter_config.json: .*v_proj"):
        build(narrower, tmp_path, problems, "adapters")


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
    with pytest.raises(ValueError, match=re.escape(message)):
        run_to_the_end(model_dirs["qwen3"], again, problems, resume=str(file.parent), peft_config=LORA)
    models = folders(file.parent)  # the remedy
    trainer = build(models, tmp_path / "new", problems, "adapters")
    weights = load_peft_weights(models["solver"], "cpu")
    trainer.save_model(str(tmp_path / "new"))
    assert_equal(weights, load_peft_weights(str(tmp_path / "new" / "solver"), "cpu"))
