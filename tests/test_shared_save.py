"""A model that agents share is on the disk once, under the name of each; and no later run writes through a name."""

import os
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig
from safetensors.torch import load_file
from test_checkpoints import LORA, make_args, make_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo.training.saving import link_saved, save_policies, unlink_shared

AGENTS = ("thinker", "solver")
FILE = "model.safetensors"


def inode(folder: Path, name: str = FILE) -> int:
    return (folder / name).stat().st_ino


@pytest.mark.parametrize("peft", [None, LORA], ids=["whole", "adapter"])
def test_shared_weights_are_one_file_and_load_for_each_agent(peft, model_dirs, tmp_path):
    args = make_args(tmp_path / "run", policy_sharing="shared", max_steps=2, save_steps=1)
    trainer = make_trainer(model_dirs, args, peft_config=peft)
    trainer.train()
    trainer.save_model()
    name = "adapter_model.safetensors" if peft else FILE
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        assert inode(folder / "thinker", name) == inode(folder / "solver", name)
        assert inode(folder / "thinker", "config.json" if not peft else "adapter_config.json") != inode(
            folder / "solver", "config.json" if not peft else "adapter_config.json"
        )
        for agent in AGENTS:
            model = AutoModelForCausalLM.from_pretrained(folder / agent)
            tokenizer = AutoTokenizer.from_pretrained(folder / agent)
            assert f"# The {agent} of a team" in (folder / agent / "README.md").read_text()
            with torch.no_grad():
                ids = tokenizer("1+1=", return_tensors="pt").input_ids
                expected = trainer.model.eval()(ids).logits
                torch.testing.assert_close(model(ids).logits, expected)
    resumed = make_trainer(
        model_dirs, make_args(tmp_path / "run", policy_sharing="shared", max_steps=3), peft_config=peft
    )
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_a_later_run_of_separate_policies_does_not_write_into_the_others_folder(model_dirs, tmp_path):
    """Into folders that hold one file under two names: each policy's weights stay its own."""
    run, models = tmp_path / "run", {"thinker": model_dirs["qwen3"], "solver": model_dirs["qwen3"]}
    make_trainer(model_dirs, make_args(run, policy_sharing="shared", max_steps=1)).save_model()
    assert inode(run / "thinker") == inode(run / "solver")
    trainer = make_trainer(model_dirs, make_args(run, policy_sharing="separate"), model=models)
    with torch.no_grad():
        for i, agent in enumerate(AGENTS, start=1):
            next(trainer.model.policies[agent].parameters()).fill_(float(i))
    trainer.save_model()
    assert inode(run / "thinker") != inode(run / "solver")
    for i, agent in enumerate(AGENTS, start=1):
        saved = load_file(run / agent / FILE)
        assert (saved["model.embed_tokens.weight"] == i).all(), agent


def test_a_merged_model_is_one_file_too(model_dirs, tmp_path):
    args = make_args(tmp_path / "run", policy_sharing="shared", max_steps=1, merge_adapters=True, save_strategy="no")
    trainer = make_trainer(model_dirs, args, peft_config=LoraConfig(r=4, target_modules=["q_proj"]))
    for _ in range(2):  # over itself as well
        trainer.save_model()
        assert inode(tmp_path / "run" / "thinker") == inode(tmp_path / "run" / "solver")
        assert not [*(tmp_path / "run").glob("*/adapter_*")]


def test_what_is_of_another_save_goes_and_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    tokenizer = make_tokenizer(kind="qwen3")
    model, tokenizers = make_model("qwen3", tokenizer), dict.fromkeys(AGENTS, tokenizer)
    stale = tmp_path / "solver" / "model-00001-of-00002.safetensors"
    stale.parent.mkdir()
    for file in (stale, stale.with_name("model.safetensors.index.json")):
        file.write_text("{}")
    save_policies(model, tmp_path, tokenizers)
    assert not stale.exists() and not [*tmp_path.glob("*/*.index.json")]

    def refuse(*args):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    save_policies(model, tmp_path, tokenizers)
    assert inode(tmp_path / "thinker") != inode(tmp_path / "solver")
    assert (tmp_path / "thinker" / FILE).read_bytes() == (tmp_path / "solver" / FILE).read_bytes()


def test_only_files_with_other_names_are_deleted(tmp_path):
    for agent in AGENTS:
        (tmp_path / agent).mkdir()
        (tmp_path / agent / "notes.txt").write_text(agent)
    (tmp_path / "thinker" / FILE).write_text("weights")
    link_saved(tmp_path, AGENTS)
    unlink_shared(tmp_path / "solver")
    assert (tmp_path / "thinker" / FILE).read_text() == "weights" and not (tmp_path / "solver" / FILE).exists()
    assert (tmp_path / "solver" / "notes.txt").read_text() == "solver"
