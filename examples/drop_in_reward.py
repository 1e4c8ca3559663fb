"""
CCPO credit in TRL's own GRPOTrainer: train only the Thinker, against a Solver that any generator answers for.

    python examples/drop_in_reward.py

Every field of `GRPOConfig` can be set, e.g. `--max_steps 100`. The Solver here is a local frozen model; for a served
one pass `partner=OpenAIGenerator("my-model", base_url="http://localhost:8000/v1")`. Both policies are hardly
warm-started by default and mostly fail; `--warm_start_steps 350 --max_steps 200` takes minutes.
"""

from pathlib import Path

from trl import GRPOConfig, GRPOTrainer, TrlParser

from ccpo import CounterfactualCredit, MathVerifier, TransformersGenerator
from ccpo.arguments import TeamArguments
from ccpo.tasks import arithmetic
from ccpo.team.prompts import build_thinker_messages

DEFAULTS = {
    "output_dir": "outputs/drop_in_reward",
    "max_steps": 5,
    "warm_start_steps": 20,
    "per_device_train_batch_size": 32,
    "max_completion_length": 12,
    "learning_rate": 1e-4,
    "scale_rewards": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}


def main(team: TeamArguments, args: GRPOConfig) -> None:
    steps = {"thinker_steps": team.warm_start_steps, "solver_steps": team.warm_start_steps}
    models = arithmetic.warm_start(Path(args.output_dir) / "warm_start", seed=args.seed, **steps)
    topology = arithmetic.topology()

    # The trainer's prompt is the Thinker's. The reward function reads the problem itself in the column `problem`.
    dataset = arithmetic.build_dataset("train").rename_column("prompt", "problem")
    dataset = dataset.map(lambda row: {"prompt": build_thinker_messages(row["problem"], topology.thinker_prompt)})

    credit = CounterfactualCredit(
        outcome=MathVerifier(timeout=team.verifier_timeout),
        partner=TransformersGenerator(models["solver"], max_new_tokens=args.max_completion_length, seed=args.seed),
        topology=topology,
    )
    trainer = GRPOTrainer(model=models["thinker"], reward_funcs=credit, args=args, train_dataset=dataset)
    trainer.train()
    trainer.save_model(args.output_dir)
    last = trainer.state.log_history[-2]
    print(f"joint accuracy of the last batch: {last['credit/joint_accuracy']:.2f}")
    print(f"solo accuracy of the last batch: {last['credit/solo_accuracy']:.2f}")
    print(f"thinker: {args.output_dir}")


if __name__ == "__main__":
    parser = TrlParser((TeamArguments, GRPOConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
