"""
Train one LoRA adapter per role on one frozen model, which is in memory only once.

    accelerate launch examples/lora_per_role.py

For a model of your own, set `--model_name_or_path`, `--dataset_name` and the other fields of
`recipes/Qwen2.5-1.5B-Instruct/ccpo/config_math_lora.yaml`.
"""

import sys
from pathlib import Path

from peft import LoraConfig
from trl import ModelConfig

from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer
from ccpo.arguments import TeamArguments
from ccpo.train import load_models, load_task, parse_arguments

DEFAULTS = ("--output_dir", "outputs/lora_per_role", "--max_steps", "5", "--warm_start_steps", "20")


def main(team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig) -> None:
    args.policy_sharing = "adapters"
    topology, train_dataset, _ = load_task(team, args)
    trainer = MultiAgentGRPOTrainer(
        model=load_models(team, args, model, topology),
        reward_funcs=team.make_credit(),
        args=args,
        train_dataset=train_dataset,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        topology=topology,
    )
    sizes = dict.fromkeys(trainer.roles, 0)
    for name, parameter in trainer.model.named_parameters():
        for role in trainer.roles:
            sizes[role] += parameter.numel() * (f".{role}." in name)
    base = sum(parameter.numel() for parameter in trainer.model.parameters()) - sum(sizes.values())
    print(f"base: {base:,} frozen weights; adapters: {sizes}")
    trainer.train()
    trainer.save_model(args.output_dir)
    for role in trainer.roles:
        print(f"{role}: {Path(args.output_dir) / role}")


if __name__ == "__main__":
    main(*parse_arguments(sys.argv[1:], DEFAULTS))
