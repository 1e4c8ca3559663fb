"""The model card of each agent: which team it belongs to, how it was trained, with which versions."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from keyword import iskeyword
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from trl.trainer.utils import get_config_model_id

from ..team.topology import Topology
from .policies import policy_of

_PACKAGES = ("ccpo", "trl", "transformers", "torch", "accelerate", "peft", "deepspeed", "datasets", "tokenizers")
_NOT_RECIPE = ("output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "deepspeed", "fsdp", "fsdp_config")

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

## Recipe

The prompts, `policy_sharing` and `schedule`, and what differs from the defaults of `MultiAgentGRPOConfig`.

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
        credit (`list[str]`): the allocators with their settings.
        args ([`MultiAgentGRPOConfig`]): the recipe.
        step (`int`): optimizer steps.
        tags (`list[str]`): for the Hub.
        origins (`dict[str, str | None]`): where each agent started from; `None` for an object from nowhere.
        trained (`tuple[str, ...]`): the agents that were trained.
        hub_id (`str`, *optional*): the repository.
    """

    topology: Topology
    credit: list[str]
    args: Any
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
    recipe = yaml.dump(
        recipe_of(card.topology, card.credit, card.args), Dumper=_Dumper, sort_keys=False, allow_unicode=True
    ).strip()
    fence = max(re.findall("`{3,}", recipe), key=len, default="``") + "`"  # longer than any in a prompt
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
            recipe=recipe,
            fence=fence,
            versions="\n".join(f"- {name} {version}" for name, version in installed_versions().items()),
        )
        ModelCard(text).save(folder / agent / "README.md")


def recipe_of(topology: Topology, credit: list[str], args: Any) -> dict[str, Any]:
    """
    The prompts, the credit, and what differs from the defaults, in plain values; no tokens.

    Args:
        topology ([`Topology`]): who speaks.
        credit (`list[str]`): the allocators with their settings.
        args ([`MultiAgentGRPOConfig`]): the configuration.
    """
    values = args.to_dict()  # tokens are masked there
    recipe: dict[str, Any] = {
        "topology": type(topology).__name__,
        **topology.prompts,
        "credit": credit,
        "policy_sharing": args.policy_sharing,
        "schedule": args.schedule,
    }
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = values.get(field.name)
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if not key.endswith("token")}
        if field.init and value is not None and value != default and field.name not in _NOT_RECIPE:
            if not field.name.endswith("_token"):
                recipe.setdefault(field.name, value if isinstance(value, bool | int | float | str) else repr(value))
    return recipe


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
