"""
Train teams of language models, and evaluate, serve and show what came of it.

    ccpo train       train a team: a recipe, or the embedded default in minutes on a laptop
    ccpo evaluate    compare a trained team with itself without each role, and with one policy alone
    ccpo serve       serve a trained team behind an OpenAI-compatible endpoint, as one model
    ccpo report      write the report of one run or of several: one HTML file
    ccpo recipes     list the recipes that are shipped, or copy one out

`ccpo COMMAND --help` says what each takes. With CCPO_TRACEBACK=1 in the environment, an error has its traceback.
"""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import psutil

from .exits import LINE_FILE, CommandParser, nearest, one_line, refuse, refusing
from .shipped import LAUNCHES, copy_out, describe, find_launch, list_launches, list_recipes

_ROOMS = {"serve": "evaluation.serving", "report": "evaluation.report"}
# Options that accelerate's launcher and training both have: training gets them, as in TRL's command line.
OF_TRAINING = ("--debug", "--gradient_accumulation_steps", "--gradient-accumulation-steps", "--help")


def main(arguments: list[str] | None = None) -> None:
    """
    The command `ccpo`.

    Args:
        arguments (`list[str]`, *optional*): the command line's words; by default those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    own = {"train": train, "evaluate": evaluate, "recipes": recipes}
    try:
        if name in ("-h", "--help"):
            sys.stdout.write(__doc__.lstrip())
        elif name == "--version":
            sys.stdout.write(f"ccpo {version('ccpo')}\n")
        elif name in own:
            own[name](rest)
        elif name in _ROOMS:
            importlib.import_module(f".{_ROOMS[name]}.__main__", __package__).main(rest)
        else:
            commands = [*own, *_ROOMS]
            refuse("ccpo", f"`{name}` is not a command.{nearest(name, commands)} There are {', '.join(commands)}.")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def evaluate(arguments: list[str]) -> None:
    """The command `ccpo evaluate`, which knows the embedded tasks by their names."""
    from .evaluation.__main__ import main as evaluate_team

    def held_out(name: str):
        from .tasks import TASKS

        return TASKS[name].build_dataset("test") if name in TASKS else None

    evaluate_team(arguments, held_out)


def recipes(arguments: list[str]) -> None:
    """The command `ccpo recipes`."""
    parser = CommandParser("ccpo recipes", "List the recipes that are shipped, or copy one out.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to copy, as the list names it")
    parser.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="where to; by default here")
    options = parser.parse_args(arguments)
    with refusing("ccpo recipes"):
        if options.name is not None:
            sys.stdout.write(f"{copy_out(options.name, options.folder)}\n")
            return
        names = list_recipes()
        width = max(map(len, names))
        sys.stdout.writelines(f"{name:{width}}  {describe(name)}\n" for name in names)
        sys.stdout.write("\nFor `--accelerate_config`:\n")
        files = [f"{LAUNCHES}/{name}.yaml" for name in list_launches()]
        sys.stdout.writelines(f"{name:{width}}  {describe(name)}\n" for name in files)


def train(arguments: list[str]) -> None:
    """The command `ccpo train`: `accelerate launch -m ccpo.train`, with the launcher's options among the others."""
    if {"-h", "--help", "--help-all"} & {*arguments}:
        from .train import main as show_help

        return show_help(arguments)
    from accelerate.commands import launch

    parser = launch.launch_command_parser()
    parser.error = lambda message: refuse("ccpo train", message)
    with refusing("ccpo train"):
        options, fields = split_options(arguments, parser)
        parsed = parser.parse_args([*options, "--module", "ccpo.train", *fields])
    if parsed.config_file is None and not Path(launch.default_config_file).is_file():
        _set_defaults(parsed)
    # torchrun kills the workers 30 seconds after a signal, and saving may take longer: `_launch` hands these two on.
    parsed.signals_to_handle = "SIGHUP,SIGQUIT"
    with tempfile.TemporaryDirectory() as folder, patch.object(launch, "simple_launcher", _become(folder)):
        _launch(launch.launch_command, parsed, Path(folder) / "line")


def split_options(arguments: list[str], parser) -> tuple[list[str], list[str]]:
    """
    The launcher's options, and the rest, which is training's.

    Args:
        arguments (`list[str]`): the words after `ccpo train`.
        parser (`argparse.ArgumentParser`): accelerate's.

    Raises:
        `ValueError`: an `--accelerate_config` that is not there.
    """
    known = {name: action for action in parser._actions for name in action.option_strings if name.startswith("--")}
    options, fields, words = [], [], iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--accelerate_config":
            value = value if equals else next(words, None)
            if value is None:
                raise ValueError("`--accelerate_config` is given without a value: a name such as zero3, or a file.")
            options += ["--config_file", str(find_launch(value))]
        elif name in known and name not in OF_TRAINING:
            options += [word]
            options += [] if equals or known[name].nargs == 0 else [w for w in [next(words, None)] if w is not None]
        else:
            fields.append(word)
    return options, fields


def _set_defaults(args) -> None:
    """What accelerate takes where it has no configuration, said outright: else it warns of each."""
    import torch

    if args.num_processes is None and torch.cuda.device_count() < 2:
        args.num_processes = 1
    for name, default in {"num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}.items():
        if getattr(args, name) is None:
            setattr(args, name, default)


def _become(folder: str):
    """A launcher of one process: this process becomes it, so that signals and the exit status are its own."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    def launcher(args) -> None:
        os.environ[LINE_FILE] = ""
        if args.num_processes not in (None, 1):
            refuse(
                "ccpo train",
                f"`--num_processes {args.num_processes}` needs a way to start so many. Add `--accelerate_config ddp` "
                "(or zero2, zero3, fsdp2), or `--multi_gpu`; or leave it out for one process.",
            )
        command, environment = prepare_simple_launcher_cmd_env(args)
        shutil.rmtree(folder)
        sys.stdout.flush()
        os.execvpe(command[0], command, {**environment, LINE_FILE: ""})

    return launcher


def _launch(start, args, line: Path) -> None:
    """Start the workers, and end as the first that failed: with its status, and its line last on the screen."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    before = {number: signal.signal(number, _hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ[LINE_FILE] = str(line)
    try:
        start(args)
    except ChildFailedError as error:
        if line.is_file():
            sys.stderr.write(line.read_text(encoding="utf-8"))
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(next((code if code > 0 else 128 - code for code in codes if code), 1))
    except SignalException as error:  # where torchrun heeds the signal itself
        sys.exit(128 + error.sigval)
    except (ValueError, ImportError) as error:  # of the launcher's own options
        os.environ[LINE_FILE] = ""
        refuse("ccpo train", one_line(error))
    finally:
        del os.environ[LINE_FILE]
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_on(number: int, frame) -> None:
    """Give the workers the signal, which stops them when they have saved; with no worker yet, end."""
    workers = psutil.Process().children()
    if not workers:
        sys.exit(128 + number)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


if __name__ == "__main__":
    main()
