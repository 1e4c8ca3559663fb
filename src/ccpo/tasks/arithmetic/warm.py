"""The warm start: supervised training of the policies on their demonstrations."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping

from accelerate.state import AcceleratorState
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from ccpo.quiet import name_accelerator_to_deepspeed, no_dataset_bars, patient_bars
from ccpo.team.topology import Topology

from .family import Family, part_name
from .policies import build_policy, build_tokenizer
from .teams import demonstrations, family_of, topology

logger = logging.getLogger(__name__)

BATCH, COMMON_BATCH = 32, 16  # demonstrations of an optimizer step: without and with a common start
SHARED = "shared"  # the folder of the common start, or of a policy that all agents share
# Half the batch at this rate learns the sums and products in half the demonstrations; Think-Solve keeps its own.
COMMON_LEARNING_RATE, OWN_LEARNING_RATE = 1.2e-3, 5e-4


def warm_start(
    output_dir: str | os.PathLike, seed: int = 0, thinker_steps: int = 300, solver_steps: int = 600, **kwargs
) -> dict[str, str]:
    """
    Train Think-Solve's policies on their demonstrations, each seen once, and save them with their tokenizer.

    With the defaults it takes 40 CPU seconds. Sampled at temperature 1 on the held-out problems, the team is then
    right about 0.35 of the time and the Solver alone 0.23; 0.1 of the thoughts leak; the Solver is right 0.6 of the
    time given a right thought. It would be right 0.9 of the time if both did what half of their demonstrations do.

    Args:
        output_dir (`str` or `os.PathLike`): the policies go to its folders `thinker` and `solver`.
        seed (`int`, defaults to 0): seed of the weights, the demonstrations and their order; sets the global ones too.
        thinker_steps (`int`, defaults to 300): optimizer steps of 32 demonstrations.
        solver_steps (`int`, defaults to 600): optimizer steps of 32 demonstrations.
        kwargs: fields of [`~trl.SFTConfig`] to change, e.g. `disable_tqdm=True`. `use_cpu` is `True` by default; give
            it the later trainer's value, since Accelerate keeps one device per process.

    Returns:
        `dict[str, str]`: role -> folder, loadable by `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`.
    """
    return _warm_start(topology(), output_dir, seed, {"thinker": thinker_steps, "solver": solver_steps}, kwargs)


def warm_start_team(
    team: Topology,
    output_dir: str | os.PathLike,
    seed: int = 0,
    *,
    steps: int | None = None,
    shared: bool = False,
    **kwargs,
) -> dict[str, str]:
    """
    Train each agent's policy on demonstrations of all its roles, each seen once, and save it with its tokenizer.

    Think-Solve's policies are trained one by one, see [`warm_start`]. Those of the other teams have a common start, on
    demonstrations of all roles, from which each agent goes on with its own. Roles that do the same, such as voters,
    count once.

    Args:
        team ([`~ccpo.team.topology.Topology`]): from [`topology`].
        output_dir (`str` or `os.PathLike`): the policies go to folders of it with the agents' names.
        seed (`int`, defaults to 0): seed of the weights, the demonstrations and their order; sets the global ones too.
        steps (`int`, *optional*):
            Optimizer steps of 32 demonstrations of the common start, and of each agent. By default the family's.
        shared (`bool`, defaults to `False`): one policy for all agents, in the folder `shared`.
        kwargs: fields of [`~trl.SFTConfig`], see [`warm_start`].

    Returns:
        `dict[str, str]`: agent -> folder, loadable by `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`.

    Raises:
        `ValueError`: a team that the task cannot play.
    """
    family, common, model = family_of(team), {part_name(role): role for role in team.role_names}, None
    if shared or family.common_steps:
        count = family.common_steps or sum(part.steps for part in family.parts.values())
        rows = _mixed(team, common.values(), COMMON_BATCH * (steps or count), -1 - seed)
        changes = {"per_device_train_batch_size": COMMON_BATCH, "learning_rate": COMMON_LEARNING_RATE, **kwargs}
        model = _train(SHARED, os.path.join(output_dir, SHARED), rows, family, seed, changes)
    if shared:
        return dict.fromkeys(team.agents, os.path.join(output_dir, SHARED))
    counts = {}
    for agent in team.agents:
        counts[agent] = steps or sum(family.parts[part].steps for part in set(map(part_name, team.roles_of(agent))))
    return _warm_start(team, output_dir, seed, counts, kwargs, model)


def _warm_start(
    team: Topology,
    output_dir: str | os.PathLike,
    seed: int,
    steps: Mapping[str, int],
    changes: dict,
    start: PreTrainedModel | None = None,
) -> dict[str, str]:
    """Train each agent's policy, from common weights or from random ones."""
    family, paths, batch = family_of(team), {}, BATCH
    if start is not None:
        batch = COMMON_BATCH
        changes = {"per_device_train_batch_size": batch, "learning_rate": OWN_LEARNING_RATE, **changes}
    for agent, count in steps.items():
        paths[agent] = os.path.join(output_dir, agent)
        roles = {part_name(role): role for role in team.roles_of(agent)}  # one of each part
        rows = _mixed(team, roles.values(), batch * count, seed)
        _train(agent, paths[agent], rows, family, seed, changes, start)
    return paths


def _mixed(team: Topology, roles: Iterable[str], size: int, seed: int) -> Dataset:
    """Demonstrations of several roles, shared out by the steps that their parts take."""
    roles, family = tuple(roles), family_of(team)
    weights = [family.parts[part_name(role)].steps for role in roles]
    ends = [size * sum(weights[: i + 1]) // sum(weights) for i in range(len(roles))]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    parts = [demonstrations(role, n, seed, team) for role, n in zip(roles, sizes, strict=True) if n]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _checkpointing_field(config: type) -> str:
    """The field that switches checkpointing on: transformers below 5.23 has the older name, of which 5.23 warns."""
    new = "activation_checkpointing"
    return new if new in {field.name for field in dataclasses.fields(config)} else "gradient_checkpointing"


class WarmUpProgress(ProgressCallback):
    """
    A bar that says whose warm-up it is, and no metrics.

    Args:
        name (`str`): the agent, or the folder of what all agents start with.
    """

    def __init__(self, name: str):
        super().__init__()
        self.label = "Warm-up of all agents together" if name == SHARED else f"Warm-up of the {name}"

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(f"{self.label}, {state.max_steps} steps")

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


def _train(
    name: str,
    path: str,
    rows: Dataset,
    family: Family,
    seed: int,
    changes: dict,
    start: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Train a policy from the start's weights, random ones by default, save it and return it."""
    from trl import SFTConfig, SFTTrainer  # only here: slow to import, and not needed for the problems

    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 20,
        "adam_beta2": 0.98,
        "bf16": False,
        "use_cpu": True,
        _checkpointing_field(SFTConfig): False,
        "dataloader_pin_memory": False,
        "max_length": None,
        "logging_steps": 100,
        "save_strategy": "no",
        "report_to": "none",
        **changes,
    }
    tokenizer = build_tokenizer(family.words)
    model = build_policy(tokenizer, seed)
    if start is not None:
        model.load_state_dict(start.state_dict())
    name_accelerator_to_deepspeed()
    args = SFTConfig(output_dir=path, seed=seed, **settings)
    with no_dataset_bars():
        trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
    if not args.disable_tqdm:
        trainer.add_callback(WarmUpProgress(name))
    result = trainer.train()
    with patient_bars():
        trainer.save_model(path)
    AcceleratorState._reset_state()  # else what is trained next in this process must have the same `bf16`
    logger.info("Warm-started the %s: mean loss %.3f, saved to %s", name, result.training_loss, path)
    return model
