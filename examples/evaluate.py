"""
Does the team help? Compare a team with its arms, with intervals, on a recipe's data or any dataset.

On held-out problems of the arithmetic task. Without the two models, small ones are built and warm-started:

    python examples/evaluate.py --thinker_model outputs/demo/thinker --solver_model outputs/demo/solver --k 4

On the evaluation data of a recipe, with its sampling settings, or on any dataset:

    python examples/evaluate.py --config recipes/Qwen2.5-1.5B-Instruct/ccpo/config_math.yaml \
        --thinker_model Qwen/Qwen2.5-1.5B-Instruct --solver_model Qwen/Qwen2.5-1.5B-Instruct
    python examples/evaluate.py --dataset_name problems.jsonl --problem_column question --solution_column answer \
        --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct --max_completion_length 2048 --eval_top_p 0.7 \
        --output_dir outputs/evaluate

To evaluate the folder of a run, you need no recipe: use `ccpo evaluate outputs/demo --benchmarks ...`. See
docs/evaluation.md.
"""

import argparse
from pathlib import Path

from trl import ModelConfig

from ccpo import MultiAgentGRPOConfig
from ccpo.arguments import TeamArguments, read_model_config
from ccpo.data import load_problems
from ccpo.evaluation import Team, evaluate, to_markdown
from ccpo.tasks import TASKS
from ccpo.train import load_generators, load_models, parse_arguments

DEFAULTS = ("--output_dir", "outputs/evaluate", "--num_eval_problems", "256", "--warm_start_steps", "20")


def main(
    team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig, k: int = 1, arms: list[str] | None = None
) -> None:
    quantization_config = read_model_config(model, args)["quantization_config"]
    if team.dataset_name is None:
        task, name = TASKS[team.task], team.task
        topology, problems = team.make_topology(task.topology), task.build_dataset("test", **(team.task_kwargs or {}))
    else:
        name, topology = Path(team.eval_dataset_name or team.dataset_name).stem, team.make_topology()
        problems = load_problems(
            team.eval_dataset_name or team.dataset_name,
            split=team.dataset_test_split,
            config=team.dataset_config,
            problem_column=team.problem_column,
            solution_column=team.solution_column,
            conversational=team.conversational,
        )
    generators = load_generators(load_models(team, args, model, topology), topology, team, args, quantization_config)
    results = evaluate(
        Team(topology, generators, team.make_credit().outcome),
        {name: problems},
        output_dir=args.output_dir,
        k=k,
        arms=arms,
        batch_size=team.eval_batch_size,
        seed=args.seed,
        max_problems=team.num_eval_problems or None,
    )
    print(to_markdown(results))
    print(f"evaluation: {Path(args.output_dir) / 'results.json'}, results.md, samples.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--arms", nargs="+")
    own, rest = parser.parse_known_args()
    main(*parse_arguments(rest, DEFAULTS), own.k, own.arms)
