"""Policies as folders, one for each agent: written, linked where agents are one model, and read back."""

import os
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import nn
from trl.trainer.utils import get_config_model_id

from ..generation.bases import BASE_FILE, name_base
from .policies import AgentPolicies, adapters_of, is_shared, policy_of

WEIGHTS = (".safetensors", ".bin")  # what their files' names end with


def save_policies(
    model: nn.Module, output_dir: Path, tokenizers: dict[str, Any], state_dict: dict | None = None
) -> None:
    """
    Write `output_dir/<agent>` for every agent: weights or adapter, configuration and tokenizer. An agent that plays
    the base of others' adapters gets its tokenizer and the name of the base, see [`~ccpo.generation.bases.find_base`].

    A model that the agents share is written once: the weights in the further agents' folders are hard links.

    Args:
        model (`nn.Module`): the policies.
        output_dir (`Path`): where to.
        tokenizers (`dict[str, PreTrainedTokenizerBase]`): per agent.
        state_dict (`dict`, *optional*): the gathered weights, where a backend shards them.
    """
    agents = tuple(tokenizers)
    for agent in agents:
        unlink_shared(output_dir / agent)
    if adapters := adapters_of(model, agents):
        model.save_pretrained(output_dir, state_dict=state_dict, selected_adapters=adapters)  # a folder per adapter
    else:
        for agent in agents[:1] if is_shared(model, agents) else agents:
            policy, weights = model, state_dict
            if isinstance(model, AgentPolicies):
                policy, prefix = model.policies[agent], f"policies.{agent}."
                if state_dict is not None:
                    weights = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            if weights is not None:  # gathered, tied weights are two tensors
                tied = getattr(policy, "all_tied_weights_keys", {})
                weights = {name: weight for name, weight in weights.items() if name not in tied}
            # Beside an adapter that was trained on, TRL keeps a copy as the reference.
            own = {"selected_adapters": [policy.active_adapter]} if isinstance(policy, PeftModel) else {}
            policy.save_pretrained(output_dir / agent, state_dict=weights, **own)
        if is_shared(model, agents):
            link_saved(output_dir, agents)
    for agent, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(output_dir / agent)
        if adapters and agent not in adapters:
            name_base(output_dir / agent, get_config_model_id(model.config) or None)
        else:  # of an earlier run
            (output_dir / agent / BASE_FILE).unlink(missing_ok=True)


def link_saved(output_dir: Path, agents: tuple[str, ...]) -> None:
    """Put the first agent's model into the further agents' folders: weights as hard links, its other files copied."""
    first, *others = (output_dir / agent for agent in agents)
    for folder in others:
        for name in (*(f"*{end}" for end in WEIGHTS), "*.index.json", "adapter_config.json"):
            for file in folder.glob(name):  # of another save, maybe of a model in more files
                file.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        for file in first.iterdir():
            if file.suffix in (*WEIGHTS, ".json", ".py"):
                _link(file, folder / file.name)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    if source.suffix in WEIGHTS:
        try:
            return os.link(source, target)
        except OSError:  # no hard links there, or the disk is full, of which the copy tells
            pass
    shutil.copy2(source, target)


def unlink_shared(folder: Path) -> None:
    """Delete the files of a folder that have another name elsewhere: to write to them would write there, too."""
    for file in folder.glob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink > 1:
            file.unlink()


def load_policies(model: nn.Module, folder: Path, agents: tuple[str, ...]) -> None:
    """Load what [`save_policies`] wrote into policies that are neither wrapped nor sharded; in place, bit for bit."""
    for agent in adapters_of(model, agents) or agents:
        policy = policy_of(model, agent)
        if isinstance(policy, PeftModel):
            adapter = agent if agent in policy.peft_config else policy.active_adapter
            weights = load_peft_weights(str(folder / agent), device="cpu")
            set_peft_model_state_dict(policy, weights, adapter_name=adapter)
        else:
            saved = type(policy).from_pretrained(folder / agent, dtype=policy.dtype)
            policy.load_state_dict(saved.state_dict())
