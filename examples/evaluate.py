"""
Joint and solo accuracy of saved policies on any dataset, with 95 % intervals.

The embedded task's held-out problems; without the two models, its warm-started policies are built:

    python examples/evaluate.py --thinker_model outputs/demo/thinker --solver_model outputs/demo/solver

A recipe's evaluation data and sampling, or any dataset:

    python examples/evaluate.py --config recipes/Qwen2.5-1.5B-Instruct/ccpo/config_math.yaml \
        --thinker_model Qwen/Qwen2.5-1.5B-Instruct --solver_model Qwen/Qwen2.5-1.5B-Instruct
    python examples/evaluate.py --dataset_name problems.jsonl --problem_column question --solution_column answer \
        --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct --max_completion_length 2048 --eval_top_p 0.7 \
        --output_dir outputs/evaluate
"""

import sys
from pathlib import Path

from train_ccpo import evaluate, load_models, parse_arguments
from trl import ModelConfig

from ccpo import MultiAgentGRPOConfig
from ccpo.arguments import TeamArguments, read_model_config
from ccpo.data import load_problems
from ccpo.report import write_json
from ccpo.tasks import TASKS

DEFAULTS = ("--output_dir", "outputs/evaluate", "--num_eval_problems", "256", "--warm_start_steps", "20")


def main(team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig) -> None:
    quantization_config = read_model_config(model, args)["quantization_config"]
    if team.dataset_name is None:
        task = TASKS[team.task]
        topology, problems = team.make_topology(task.topology), task.build_dataset("test", **(team.task_kwargs or {}))
    else:
        topology = team.make_topology()
        problems = load_problems(
            team.eval_dataset_name or team.dataset_name,
            split=team.dataset_test_split,
            config=team.dataset_config,
            problem_column=team.problem_column,
            solution_column=team.solution_column,
            conversational=team.conversational,
        )
    if team.num_eval_problems:
        problems = problems.select(range(min(team.num_eval_problems, len(problems))))
    models = load_models(team, args, model, topology)
    result = evaluate(models, problems, team.make_credit().outcome, topology, team, args, quantization_config)
    summary = {"num_eval_problems": len(problems), "models": models, "seed": args.seed, **result.to_dict()}
    print(f"{len(problems)} problems, 95 % intervals")
    print(f"joint accuracy {result.joint}")
    for role, share in result.without.items():
        print(f"{'solo accuracy' if topology.kind == 'think_solve' else f'without {role}'} {share}")
    print(f"leak rate {result.leak}")
    if result.no_answer is not None:
        print(f"no answer found {result.no_answer}")
    print(f"evaluation: {write_json(summary, Path(args.output_dir) / 'evaluation.json')}")


if __name__ == "__main__":
    main(*parse_arguments(sys.argv[1:], DEFAULTS))
