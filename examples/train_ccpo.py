"""
Train a Thinker and a Solver together, with CCPO, SEPO or shared credit.

The embedded default, two tiny policies on arithmetic, in minutes on a laptop:

    accelerate launch examples/train_ccpo.py

A recipe, with any field overridden:

    accelerate launch --config_file recipes/accelerate_configs/zero3.yaml examples/train_ccpo.py \
        --config recipes/Qwen2.5-1.5B-Instruct/ccpo/config_math.yaml --learning_rate 2e-6
"""

import sys
import time
from pathlib import Path

from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback
from trl import ModelConfig, TrlParser, get_peft_config

from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer, ThinkSolve, TransformersGenerator
from ccpo.arguments import TeamArguments
from ccpo.data import load_problems
from ccpo.evaluation import evaluate_team
from ccpo.report import TeamProgressCallback, plot_curves, show_summary, summarize, write_json
from ccpo.tasks import arithmetic

DEFAULT_RECIPE = Path(__file__).parents[1] / "recipes" / "arithmetic" / "ccpo" / "config_demo.yaml"
TASK_OF_ITS_OWN = ("--config", "--dataset_name", "-h", "--help")


def load_task(team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig):
    """Models per role, topology, training problems and held-out problems."""
    if team.dataset_name is None:
        folders = [Path(args.output_dir) / "warm_start" / role for role in ("thinker", "solver")]
        if PartialState().is_main_process:
            steps = {} if team.warm_start_steps is None else {"steps": team.warm_start_steps}
            arithmetic.warm_start(folders[0].parent, seed=args.seed, **steps)
        PartialState().wait_for_everyone()
        models = dict(zip(("thinker", "solver"), map(str, folders), strict=True))
        if args.policy_sharing != "separate":  # one model that knows both places
            models = dict.fromkeys(models, models["solver"])
        return models, arithmetic.topology(), arithmetic.build_dataset("train"), arithmetic.build_dataset("test")

    default = model.model_name_or_path
    models = {"thinker": team.thinker_model or default, "solver": team.solver_model or default}
    if None in models.values():
        raise ValueError("`model_name_or_path` is required with `dataset_name` (or `thinker_model` and `solver_model`).")
    columns = {
        "problem_column": team.problem_column,
        "solution_column": team.solution_column,
        "config": team.dataset_config,
        "conversational": team.conversational,
    }
    train = load_problems(team.dataset_name, split=team.dataset_train_split, max_rows=team.max_train_rows, **columns)
    held_out = None
    if team.num_eval_problems or args.eval_strategy != "no":
        name = team.eval_dataset_name or team.dataset_name
        held_out = load_problems(name, split=team.dataset_test_split, **columns)
    return models, ThinkSolve(), train, held_out


def main(team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig) -> None:
    started = time.perf_counter()
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
        **(args.model_init_kwargs or {}),
    }
    models, topology, train_dataset, held_out = load_task(team, args, model)
    if held_out is not None and team.num_eval_problems:
        held_out = held_out.select(range(min(team.num_eval_problems, len(held_out))))
    credit = team.make_credit(topology=topology)
    trainer = MultiAgentGRPOTrainer(
        model=models,
        reward_funcs=credit,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=held_out if args.eval_strategy != "no" else None,
        peft_config=get_peft_config(model),
        topology=topology,
    )
    if not args.disable_tqdm:
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(TeamProgressCallback)

    def evaluate(paths: dict[str, str]):
        """Each role's saved model, sampled as in training."""
        generators = {
            role: TransformersGenerator(
                path,
                max_new_tokens=args.for_role(role, "max_completion_length"),
                temperature=args.for_role(role, "temperature"),
                top_p=args.for_role(role, "top_p"),
                seed=args.seed,
            )
            for role, path in paths.items()
        }
        return evaluate_team(held_out, generators, credit.outcome, topology=topology, batch_size=256)

    evaluates = team.num_eval_problems > 0 and trainer.accelerator.is_main_process
    before = evaluate(models) if evaluates else None
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    output = Path(args.output_dir)
    trained = {role: str(output / role) for role in trainer.roles}
    if trainer.accelerator.is_main_process:
        paths = {role: Path(path) for role, path in trained.items()}
        title = f"{team.credit}, {team.dataset_name or 'arithmetic'}, {trainer.state.global_step} steps"
        paths["curves"] = plot_curves(trainer.state.log_history, output / "curves.png", title)
        if evaluates:
            after = evaluate(trained)
            seconds = time.perf_counter() - started
            summary = summarize(before, after, seconds=seconds, credit=team.credit, seed=args.seed)
            paths["summary"] = write_json(summary, output / "summary.json")
            show_summary(before, after, paths, seconds)
        else:
            print("\n".join(f"{label}: {path}" for label, path in paths.items()))
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] in TASK_OF_ITS_OWN for argument in arguments):
        arguments = ["--config", str(DEFAULT_RECIPE), *arguments]
    main(*TrlParser((TeamArguments, MultiAgentGRPOConfig, ModelConfig)).parse_args_and_config(arguments))
