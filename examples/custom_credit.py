"""
Write a credit scheme of your own: subclass `CreditAllocator` and say what each role earns.

    accelerate launch examples/custom_credit.py

In this example, a thought is only as good as the worst answer to it. There are K = 2 answers to every thought, and the
Thinker earns the lower of their outcomes. Shared credit would give it their mean.

By default the models are trained for a few steps only and mostly fail. To start from the models that `make demo` has
trained, add `--thinker_model outputs/demo/thinker --solver_model outputs/demo/solver`.
"""

import sys
from pathlib import Path

import torch
from trl import ModelConfig

from ccpo import CreditAllocator, MathVerifier, MultiAgentGRPOConfig, MultiAgentGRPOTrainer
from ccpo.arguments import TeamArguments
from ccpo.train import load_models, load_task, parse_arguments

DEFAULTS = ("--output_dir", "outputs/custom_credit", "--max_steps", "5", "--warm_start_steps", "20", "--num_solves=2")


class WorstAnswerCredit(CreditAllocator):
    """
    Every text earns the lowest outcome of the answers that follow from it. Answers that cannot be scored are left out.

    For Think-Solve: r_thinker = min over the K answers to the thought, r_solver = R.
    """

    __name__ = "worst_answer_credit"  # the metrics' name

    def allocate(self, outcomes):
        rewards = {}
        for role, values in outcomes.values.items():  # (P, N_j) each
            below = outcomes.team.view(*values.shape, -1)  # (P, N_j, leaves below a text)
            worst = below.nan_to_num(nan=torch.inf).amin(dim=-1)
            rewards[role] = worst.masked_fill(worst.isinf(), torch.nan)
        return rewards


def main(team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig) -> None:
    topology, train_dataset, _ = load_task(team, args)
    trainer = MultiAgentGRPOTrainer(
        model=load_models(team, args, model, topology),
        reward_funcs=WorstAnswerCredit(MathVerifier(timeout=team.verifier_timeout)),
        args=args,
        train_dataset=train_dataset,
        topology=topology,
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    correlations = [row.get("credit/thinker/shared_correlation") for row in trainer.state.log_history]
    print("correlation of the Thinker's advantages with shared credit's:", [c for c in correlations if c is not None])
    for role in trainer.roles:
        print(f"{role}: {Path(args.output_dir) / role}")


if __name__ == "__main__":
    main(*parse_arguments(sys.argv[1:], DEFAULTS))
