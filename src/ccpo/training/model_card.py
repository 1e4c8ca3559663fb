"""The model card of each role: which pair it belongs to, how it was trained, with which versions."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from trl.trainer.utils import get_config_model_id

from .policies import RolePolicies

if TYPE_CHECKING:
    from .trainer import MultiAgentGRPOTrainer

_PACKAGES = ("ccpo", "trl", "transformers", "torch", "accelerate", "peft", "deepspeed", "datasets", "tokenizers")
_NOT_RECIPE = ("output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "deepspeed", "fsdp", "fsdp_config")

_TEXT = """---
{metadata}
---

# The {role} of a team of {count}

Trained by `ccpo.MultiAgentGRPOTrainer`, step {step}. Its role is to be used together with the others:

| role | started from | this folder |
| --- | --- | --- |
{team}

```python
from {library} import {auto_class}

{role} = {auto_class}.from_pretrained("{source}"{subfolder})
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


def write_model_cards(trainer: MultiAgentGRPOTrainer, folder: Path) -> None:
    """
    Write `folder/<role>/README.md` for every role.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): the trainer.
        folder (`Path`): where `save_model` wrote the roles.
    """
    hub_id, model = trainer.hub_model_id, trainer.model
    policies = model.policies if isinstance(model, RolePolicies) else dict.fromkeys(trainer.roles, model)
    origins = {role: get_config_model_id(policies[role].config) or None for role in trainer.roles}
    recipe = yaml.dump(_recipe(trainer), Dumper=_Dumper, sort_keys=False, allow_unicode=True).strip()
    fence = max(re.findall("`{3,}", recipe), key=len, default="``") + "`"  # longer than any in a prompt
    for role in trainer.roles:
        is_adapter = (folder / role / "adapter_config.json").is_file()
        metadata = ModelCardData(
            library_name="peft" if is_adapter else "transformers",
            base_model=_on_the_hub(origins[role]),
            tags=[*trainer._tag_names, trainer.args.policy_sharing, role],
        )
        rows = (
            f"| {r} | {origins[r] or 'an object in memory'} | {'yes' if r == role else ''} |" for r in trainer.roles
        )
        text = _TEXT.format(
            metadata=metadata.to_yaml(),
            role=role,
            count=len(trainer.roles),
            step=trainer.state.global_step,
            team="\n".join(rows),
            library="peft" if is_adapter else "transformers",
            auto_class="AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM",
            source=hub_id or f"path/to/{role}",
            subfolder=f', subfolder="{role}"' if hub_id else "",
            recipe=recipe,
            fence=fence,
            versions="\n".join(f"- {name} {_version(name)}" for name in _PACKAGES),
        )
        ModelCard(text).save(folder / role / "README.md")


def _recipe(trainer: MultiAgentGRPOTrainer) -> dict[str, Any]:
    args, values = trainer.args, trainer.args.to_dict()  # tokens are masked there
    recipe: dict[str, Any] = {
        "topology": type(trainer.topology).__name__,
        **trainer.topology.prompts,
        "credit": trainer._credit,
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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # deepspeed is an extra
        return "not installed"
