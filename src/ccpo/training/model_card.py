"""The model card of each agent: which team it belongs to, how it was trained, with which versions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from keyword import iskeyword
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from trl.trainer.utils import get_config_model_id

from ..rewards import CreditAllocator
from ..team.topology import Topology
from .policies import policy_of
from .recipe import credit_in_words, credit_of, recipe_of

_PACKAGES = ("ccpo", "trl", "transformers", "torch", "accelerate", "peft", "deepspeed", "datasets", "tokenizers")
_BASE_ALONE = "\nIt was not trained: it plays the base. Here are its tokenizer, and the base's name if it has one.\n"
_TEXT = """---
{metadata}
---

# The {agent} of a team of {count}

Trained by `ccpo.MultiAgentGRPOTrainer`, step {step}. It is to be used together with the others:

| agent | trained | roles | started from | this folder |
| --- | --- | --- | --- | --- |
{team}
{base_alone}
```python
from {library} import {auto_class}

{variable} = {auto_class}.from_pretrained("{source}"{subfolder})
```

The whole team answers a problem:

```python
{whole}
```

## The team

Who speaks, who reads whom, and what each is asked.

{fence}yaml
{team_yaml}
{fence}

## Data

{data}

## Credit

{credit}

{fence}yaml
{credit_yaml}
{fence}

## Recipe

What `ccpo train --config` reads: the team, the credit, and what differs from the defaults.{unsaid}

{fence}yaml
{recipe}
{fence}

## Versions

{versions}
"""


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, to be read and copied."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


@dataclass
class TeamCard:
    """
    What the cards of a team's agents say.

    Attributes:
        topology ([`Topology`]): who speaks.
        allocators (`list[CreditAllocator]`), names (`list[str]`): how credit is divided, and what they are called.
        args ([`MultiAgentGRPOConfig`]): the configuration.
        told (`dict`): the command's other fields, see [`~ccpo.training.recipe.recipe_of`].
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): what was trained on.
        is_chat (`bool`): whether its problems are chat messages.
        step (`int`): optimizer steps.
        tags (`list[str]`): for the Hub.
        origins (`dict[str, str | None]`): where each agent started from; `None` for an object from nowhere.
        trained (`tuple[str, ...]`): the agents that were trained.
        hub_id (`str`, *optional*): the repository.
    """

    topology: Topology
    allocators: list[CreditAllocator]
    names: list[str]
    args: Any
    told: dict[str, Any]
    dataset: Any
    is_chat: bool
    step: int
    tags: list[str]
    origins: dict[str, str | None]
    trained: tuple[str, ...]
    hub_id: str | None = None


def write_model_cards(folder: Path, card: TeamCard, model: Any) -> None:
    """
    Write `folder/<agent>/README.md` for every agent.

    Args:
        folder (`Path`): where `save_model` wrote the agents.
        card ([`TeamCard`]): what they say.
        model (`nn.Module`): the policies, for where each came from.
    """
    agents = card.topology.agents
    bases = {agent: get_config_model_id(policy_of(model, agent).config) or None for agent in agents}
    recipe = _as_yaml(recipe_of(card.topology, card.allocators, card.args, card.told))
    team_yaml = _as_yaml({"topology": card.topology.to_dict()})
    fence = max(re.findall("`{3,}", recipe + team_yaml), key=len, default="``") + "`"  # longer than any in a prompt
    for agent in agents:
        is_adapter = (folder / agent / "adapter_config.json").is_file()
        is_bare = not is_adapter and not (folder / agent / "config.json").is_file()
        metadata = ModelCardData(
            library_name="peft" if is_adapter else "transformers",
            base_model=_on_the_hub(bases[agent]),
            tags=[*card.tags, card.args.policy_sharing, agent],
        )
        rows = (
            f"| {a} | {'yes' if a in card.trained else 'no'} | {', '.join(card.topology.roles_of(a))} | "
            f"{card.origins[a] or 'an object in memory'} | {'yes' if a == agent else ''} |"
            for a in agents
        )
        text = _TEXT.format(
            metadata=metadata.to_yaml(),
            agent=agent,
            variable=f"{agent}_" if iskeyword(agent) else agent.replace("-", "_"),
            count=len(agents),
            step=card.step,
            team="\n".join(rows),
            library="peft" if is_adapter else "transformers",
            auto_class="AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM",
            base_alone=_BASE_ALONE if is_bare else "",
            source=(bases[agent] or "path/to/base") if is_bare else card.hub_id or f"path/to/{agent}",
            subfolder=f', subfolder="{agent}"' if card.hub_id and not is_bare else "",
            whole=_whole(folder, card),
            team_yaml=team_yaml,
            data=_describe_data(card),
            credit=credit_in_words(card.allocators, card.names),
            credit_yaml=_as_yaml(credit_of(card.allocators)),
            unsaid=_unsaid(card),
            recipe=recipe,
            fence=fence,
            versions="\n".join(f"- {name} {version}" for name, version in installed_versions().items()),
        )
        ModelCard(text).save(folder / agent / "README.md")


def _unsaid(card: TeamCard) -> str:
    """What a recipe of a script does not know."""
    if card.told:
        return ""
    lora = (
        ", and `use_peft` with the `lora_*` fields of its adapters" if card.args.policy_sharing == "adapters" else ""
    )
    return f" A script trained it: add `dataset_name` and the models{lora}."


def _as_yaml(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True).strip()


def _whole(folder: Path, card: TeamCard) -> str:
    """Lines that answer one problem with the team."""
    problem = "What is 7 + 12 * 4?"
    asked = [{"role": "user", "content": problem}] if card.is_chat else problem
    lines = ["from ccpo.evaluation import Team", "", f"team = Team.from_pretrained({json.dumps(str(folder))})"]
    if card.hub_id:
        lines = ["from huggingface_hub import snapshot_download", *lines]
        lines[-1] = f"team = Team.from_pretrained(snapshot_download({json.dumps(card.hub_id)}))"
    return "\n".join([*lines, f"answer = team([{json.dumps(asked)}])[0]", "print(answer.text)"])


def _describe_data(card: TeamCard) -> str:
    """The training data: its name where it has one, and its size."""
    info, told = getattr(card.dataset, "info", None), card.told
    name = told.get("dataset_name") or told.get("task") or getattr(info, "dataset_name", None)
    named = f"`{name}`" if name else "A dataset without a name, made in memory"
    rows = f", {len(card.dataset):,} rows" if hasattr(card.dataset, "__len__") else ", a stream"
    columns = f", columns {', '.join(card.dataset.column_names)}" if card.dataset.column_names else ""
    return f"{named}{rows}{columns}."


def _on_the_hub(origin: str | None) -> str | None:
    return origin if origin and not Path(origin).is_dir() else None


def installed_versions() -> dict[str, str]:
    """What a run rests on: package -> version."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # deepspeed is an extra
        return "not installed"
