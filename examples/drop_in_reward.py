"""
Use CCPO credit in TRL's own GRPOTrainer: train only the Thinker, with a Solver that is not trained.

    python examples/drop_in_reward.py

You can set every field of `GRPOConfig`, such as `--max_steps 100`. Here, the Solver is a local model. If yours is
behind an endpoint, pass `partner=OpenAIGenerator("my-model", base_url="http://localhost:8000/v1")`.

By default the models are prepared for a few steps only and mostly fail. `--warm_start_steps 350 --max_steps 200` makes
them better and takes minutes.
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

    # The column `prompt` holds the Thinker's prompt. The reward function reads the problem from the column `problem`.
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
