"""The command line of `ccpo train`: its names, what is said of a wrong one, and its help in groups."""

import argparse
from dataclasses import fields

import yaml
from trl import ModelConfig, TrlParser

from .arguments import TeamArguments
from .exits import nearest, one_line
from .shipped import find_recipe
from .team.think_solve_arguments import ThinkSolveArguments
from .training.config import MultiAgentGRPOConfig

# Titles of the help's groups -> fields. What stands in none of them is TRL's, and shown by `--help-all`.
GROUPS = {
    "Task and data": (
        *("task", "task_kwargs", "warm_start_steps", "dataset_name", "dataset_config", "dataset_train_split"),
        *("dataset_test_split", "problem_column", "solution_column", "conversational", "max_train_rows"),
        *("answer_pattern", "verifier_timeout"),
    ),
    "Team": (
        *("topology", "models", *(field.name for field in fields(ThinkSolveArguments))),
        *("policy_sharing", "role_kwargs", "merge_adapters", "prefix_caching", "vllm_engine_per_role"),
    ),
    "Credit": (
        *("credit", "coef", "bonus", "baseline", "mode", "gamma", "history"),
        *("self_weight", "credit_coef", "blame_coef", "center", "rating_mode", "rating_expectation"),
        *("rating_prompt", "rating_max_tokens"),
        *("advantage_estimator", "robust_alpha", "robust_c", "robust_blocks", "scale_rewards"),
    ),
    "Rollout and schedule": (
        *("num_generations", "num_solves", "num_solos", "removal", "skip_uninformative_solos", "removal_eval_steps"),
        *("schedule", "alternate_period", "start_role"),
    ),
    "Evaluation": (
        *("num_eval_problems", "eval_dataset_name", "eval_temperature", "eval_top_p", "eval_batch_size"),
        *("final_arms", "eval_arms", "eval_strategy", "eval_steps"),
    ),
    "Often set, of TRL": (
        *("model_name_or_path", "output_dir", "learning_rate", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "max_steps", "num_train_epochs", "max_completion_length", "temperature"),
        *("beta", "loss_type", "use_peft", "lora_r", "lora_alpha", "dtype", "bf16", "use_cpu"),
        *(
            "gradient_checkpointing",
            "use_vllm",
            "vllm_mode",
            "logging_steps",
            "save_steps",
            "resume_from_checkpoint",
            "report_to",
            "seed",
        ),
    ),
}
_USAGE = "%(prog)s [--config RECIPE] [--FIELD VALUE ...]"


class TeamParser(TrlParser):
    """
    [`~trl.TrlParser`] of the fields that `ccpo train` takes.

    Overrides `parse_args_and_config`, `set_defaults_with_config` and `parse_known_args` to say which name is wrong,
    and which is meant, before any field is read; `error` and `format_help` for what is shown.

    Args:
        prog (`str`): the command, as its help names it.
        launch_options (`tuple[str, ...]`): options of the launcher, which may be meant too.
    """

    def __init__(self, prog: str = "ccpo train", launch_options: tuple[str, ...] = ()):
        self._launch_options, self._config = launch_options, None
        own = (TeamArguments, MultiAgentGRPOConfig, ModelConfig)
        super().__init__(own, prog=prog, usage=_USAGE, allow_abbrev=False, add_help=False)

    def parse_args_and_config(self, args, *more, **kwargs):
        """
        As in TRL. `--config` may also name a recipe that is shipped.

        Raises:
            `ValueError`: a name that is not a field, a value that a field cannot have, or a recipe that is not there.
        """
        args = [word for a in args for word in (a.split("=", 1) if a.startswith("--config=") else [a])]
        if args.count("--config") > 1:
            raise ValueError("`--config` is given more than once. Put the fields into one recipe.")
        if "--config" in args:
            place = args.index("--config") + 1
            if place == len(args):
                raise ValueError("`--config` is given without a recipe. Give the path of a YAML file after it.")
            self._config = args[place] = str(find_recipe(args[place]))
            _check_recipe(self._config)
        return super().parse_args_and_config(args, *more, **kwargs)

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        for action in self._actions:
            value = kwargs.get(action.dest)
            if isinstance(value, bool) and action.choices is not None and value not in action.choices:
                raise ValueError(
                    f"`{action.dest}` in {self._config} is {str(value).lower()}: that is what YAML makes of yes, no, "
                    f"on and off. Put it in quotes. It may be one of {[*map(str, action.choices)]}."
                )
        rest = super().set_defaults_with_config(**kwargs)
        if rest:
            name = rest[0].removeprefix("--")
            raise ValueError(f"`{name}` in {self._config} is not a field.{nearest(name, self._names())}")
        return rest

    def parse_known_args(self, args=None, namespace=None):
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            name = rest[0].split("=")[0]
            if name in self._launch_options:
                raise ValueError(f"`{name}` is the launcher's. Give it to `ccpo train`, or before `-m ccpo.train`.")
            known = ["--config", *(f"--{known}" for known in self._names())]
            raise ValueError(f"`{name}` is not an argument.{nearest(name, [*known, *self._launch_options])}")
        return parsed, rest

    def error(self, message: str):
        raise ValueError(f"{message[:1].lower()}{message[1:].rstrip('.')}.")

    def _names(self) -> list[str]:
        return [action.option_strings[0].removeprefix("--") for action in self._actions if action.option_strings]

    def format_help(self, everything: bool = False) -> str:
        """
        The help: groups of fields, ours first.

        Args:
            everything (`bool`): whether TRL's other fields are shown too.
        """
        form = argparse.HelpFormatter(self.prog, max_help_position=34, width=110)
        form.add_usage(self.usage, [], [])
        form.add_text(
            "Train the models of a team together. Without a recipe, a dataset and a task: two tiny policies on "
            "arithmetic, in minutes on a laptop."
        )
        shown = {name for names in GROUPS.values() for name in names}
        fields_of = {field.name for kind in self.dataclass_types for field in fields(kind) if field.init}
        actions = {action.dest: action for action in reversed(self._actions)}
        groups = {title: [_as_shown(actions[name]) for name in names] for title, names in GROUPS.items()}
        if everything:
            groups["The other fields of TRL"] = [_as_shown(actions[name]) for name in sorted(fields_of - shown)]
        recipe = _shown("config", "RECIPE", "A YAML file of fields, or a recipe that `ccpo recipes` lists.")
        launch = [
            _shown("accelerate_config", "NAME", "How to launch: cpu, ddp, zero2, zero3, fsdp2, 2x8_zero3, or a file."),
            _shown("num_processes", "INT", "Processes, one for each GPU; with every option of `accelerate launch`."),
        ]
        for title, own in {"Recipe": [recipe], "Launch (ccpo train alone)": launch, **groups}.items():
            form.start_section(title)
            form.add_arguments(own)
            form.end_section()
        if not everything:
            form.add_text(f"TRL has {len(fields_of - shown)} more fields: {self.prog} --help-all")
        return form.format_help()


def _check_recipe(path: str) -> None:
    """Refuse a file that is not YAML, and one whose fields are not names, or stand in it twice."""
    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.compose(file, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"`--config {path}` is not YAML: {one_line(error)}. Correct the file.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"`--config {path}` is not a text in UTF-8: {error}. Save it as UTF-8.") from error
    if not isinstance(recipe, yaml.MappingNode):
        raise ValueError(f"`--config {path}` has no fields. Write one a line, such as `learning_rate: 1e-6`.")
    names = [key.value for key, _ in recipe.value]
    for key, _ in recipe.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise ValueError(f"`{key.value}` in {path} is not a field: YAML does not read it as a text.")
        if names.count(key.value) > 1:
            raise ValueError(f"`{key.value}` stands in {path} {names.count(key.value)} times. Leave one.")


def _as_shown(action: argparse.Action) -> argparse.Action:
    """An argument of which the help shows one spelling, the kind of its value, and its default."""
    if action.choices is not None:
        kind = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        kind = getattr(action.type, "__name__", "value").replace("string_to_bool", "bool").upper()
        kind = kind if kind.isidentifier() and kind not in ("PARSE", "DICT") else "VALUE"
    text = (action.help or "").replace("%%", "%").replace("%", "%%")
    default = action.default
    given = default is not None and default is not argparse.SUPPRESS and f"{default}" not in ("", "[]", "{}")
    return _shown(action.dest, kind, f"{text} (default: {default})".replace("%(", "%%(") if given else text)


def _shown(name: str, kind: str, text: str) -> argparse.Action:
    return argparse.Action([f"--{name}"], name, metavar=kind, help=text)
