"""The command `ccpo`: its commands, what is said of a wrong argument and where, the help, shipped recipes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from launching import needs_deepspeed, write_zero_config
from trl import GRPOConfig, ScriptArguments

from ccpo import MultiAgentGRPOConfig, cli
from ccpo import train as run_script
from ccpo.arguments import TeamArguments
from ccpo.evaluation import __main__ as evaluation
from ccpo.exits import LINE_FILE, CommandParser, nearest, one_line, refuse, refusing
from ccpo.parsing import GROUPS, TeamParser
from ccpo.shipped import RECIPES, copy_out, describe, find_launch, find_recipe, list_launches, list_recipes
from ccpo.tasks import TASKS

ROOT = Path(__file__).parents[1]
WRONG = ["--learnin_rate", "1e-6"]
LINE = "ccpo train: error: `--learnin_rate` is not an argument. Did you mean `--learning_rate`?"


# ---- A wrong argument, in real processes ----


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """Every way to start a run with a wrong argument: `{name: finished process}`."""
    folder = tmp_path_factory.mktemp("wrong")
    python, zero = [sys.executable, "-m"], write_zero_config(folder / "zero", 2, False)
    two = ["--num_processes", "2", "--main_process_port", "0"]
    commands = {
        "ccpo train": [*python, "ccpo", "train", *WRONG],
        "accelerate launch": [*python, "accelerate.commands.launch", "--cpu", "examples/train_ccpo.py", *WRONG],
        "ccpo train, two": [*python, "ccpo", "train", "--accelerate_config", str(zero), *two, *WRONG],
        "torchrun": [*python, "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
        + ["-m", "ccpo.train", *WRONG],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    del environment["WANDB_MODE"]  # which something that TRL imports speaks of

    def run(command):
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(run, commands.values()), strict=True))


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name", ["ccpo train", "accelerate launch", pytest.param("ccpo train, two", marks=needs_deepspeed), "torchrun"]
)
def test_a_wrong_argument_is_the_last_line_on_the_screen(name, endings):
    """With status 2, but where the launcher is not ours: accelerate and torchrun make 1 of it."""
    ended = endings[name]
    assert ended.stderr.splitlines()[-1] == LINE, ended.stderr
    assert ended.returncode == (2 if name.startswith("ccpo") else 1) and ended.stdout == ""
    if name == "ccpo train":
        assert ended.stderr == f"{LINE}\n"


# ---- Signals to several processes ----


def start_two(folder: Path) -> subprocess.Popen:
    """A long run of `ccpo train` on two processes, in a session of its own, as a terminal would have it."""
    rows = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(16)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--main_process_port", "0", "--config", "smoke/config_gsm8k.yaml", "--dataset_name", "train.jsonl"]
    words += ["--num_eval_problems", "0", "--max_steps", "1000", "--logging_steps", "1", "--save_strategy", "no"]
    words += ["--use_cpu", "true", "--bf16", "false", "--ddp_backend", "gloo", "--output_dir", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "ccpo", "train", *words]
        options = {"cwd": folder, "env": environment, "stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen(command, **options)
    metrics = folder / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-4000:]
        time.sleep(0.1)
    return process


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_signal_stops_all_processes_after_a_checkpoint(number, tmp_path):
    process = start_two(tmp_path)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C goes to the terminal's group
    assert process.wait(120) == 0, (tmp_path / "log").read_text()[-4000:]
    assert list((tmp_path / "out").glob("checkpoint-*/ccpo_checkpoint.json"))
    assert "--resume_from_checkpoint true" in (tmp_path / "log").read_text().splitlines()[-1]


@pytest.mark.distributed
@pytest.mark.full
def test_a_second_ctrl_c_ends_all_processes_at_once(tmp_path):
    process = start_two(tmp_path)
    workers = psutil.Process(process.pid).children()
    for worker in workers:
        worker.suspend()  # the step does not end
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    for worker in workers:
        worker.resume()
    assert process.wait(120) in (0, 130) and not any(worker.is_running() for worker in workers)


# ---- The words of a wrong argument ----


def train(*words):
    return TeamParser(launch_options=("--accelerate_config",)).parse_args_and_config([*words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--datset_name", "x"], "`--datset_name` is not an argument. Did you mean `--dataset_name`?"),
        (["--datset_name=x"], "`--datset_name` is not an argument. Did you mean `--dataset_name`?"),
        (["--accelerate_confg", "x"], "`--accelerate_confg` is not an argument. Did you mean `--accelerate_config`?"),
        (["--zzz", "x"], "`--zzz` is not an argument."),
        (["stray"], "`stray` is not an argument."),
        (["--num_generation", "4"], "`--num_generation` is not an argument. Did you mean `--num_generations`?"),
        (["--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'."),
        (["--learning_rate"], "argument --learning_rate/--learning-rate: expected one argument."),
        (["--credit", "luck"], "argument --credit: invalid choice: 'luck' .choose from .*"),
        (["--config"], "`--config` is given without a recipe. Give the path of a YAML file after it."),
        (["–config", "x"], "`–config` is not an argument. Did you mean `--config`?"),
        (["--config", "a", "--config=b"], "`--config` is given more than once. Put the fields into one recipe."),
        (["--accelerate_config", "zero2"], "`--accelerate_config` is the launcher's. Give it to `ccpo train`, .*"),
        (["--config", "smoke/config_gsm8.yaml"], ".*Did you mean `smoke/config_gsm8k.yaml`.*"),
    ],
)
def test_words_that_are_no_arguments(words, message):
    with pytest.raises(ValueError) as error:
        train(*words)
    assert re.fullmatch(message.replace("?", r"\?").replace("`.*", "`.*"), one_line(error.value)), error.value


def test_a_name_is_checked_before_the_values(tmp_path):
    """Else a misspelt dataset would be told that the columns have no effect."""
    with pytest.raises(ValueError, match="`--datset_name` is not an argument"):
        train("--datset_name", "x", "--problem_column", "q")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("datset_name: x\nproblem_column: q\n")
    with pytest.raises(ValueError, match=r"`datset_name` in .*r.yaml is not a field. Did you mean `dataset_name`\?"):
        train(f"--config={recipe}")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (b"max_steps: [", "`--config .*r.yaml` is not YAML: .*Correct the file."),
        ("run_name: Möwe".encode("latin-1"), "`--config .*r.yaml` is not a text in UTF-8: .*Save it as UTF-8."),
        (b"# nothing yet", "`--config .*r.yaml` has no fields. Write one a line, such as `learning_rate: 1e-6`."),
        (b"- max_steps", "`--config .*r.yaml` has no fields."),
        (b"on: 3", "`on` in .*r.yaml is not a field: YAML does not read it as a text."),
        (b"max_steps: 1\nbeta: 0\nmax_steps: 2", "`max_steps` stands in .*r.yaml 2 times. Leave one."),
        (b"save_strategy: no", "`save_strategy` in .*r.yaml is false: .* Put it in quotes. .*'no', 'steps'"),
        (b"output_dir: 2024-01-31", r"`output_dir` must be text, got datetime.date\(2024, 1, 31\). Put it in quotes."),
        (b"max_steps: 2.5", "`max_steps` must be a whole number, got 2.5."),
    ],
)
def test_a_recipe_that_cannot_be_read(recipe, message, tmp_path):
    (tmp_path / "r.yaml").write_bytes(recipe)
    with pytest.raises(ValueError, match=message):
        train("--config", str(tmp_path / "r.yaml"))


def test_a_recipe_may_be_written_on_windows(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfuse_cpu: true\r\nmax_steps: 3\r\n")
    assert train("--config", str(tmp_path / "r.yaml"))[1].max_steps == 3


def test_nearest():
    assert nearest("--lora_rr", ["--lora_r", "--bf16"]) == " Did you mean `--lora_r`?"
    assert nearest("--xyz", ["--lora_r"]) == "" == nearest("x", [])


def test_one_line():
    error = ValueError("first\n  second")
    error.add_note("and a\nnote")
    assert one_line(error) == "first second and a note"


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ImportError])
def test_what_a_user_can_mend_ends_with_status_2(kind, capsys, monkeypatch):
    with pytest.raises(SystemExit) as end, refusing("ccpo x"):
        raise kind("`a` is\nwrong")
    where = "(CCPO_TRACEBACK=1 in the environment shows where.)"
    assert end.value.code == 2 and capsys.readouterr().err == f"ccpo x: error: `a` is wrong {where}\n"
    monkeypatch.setenv("CCPO_TRACEBACK", "1")
    with pytest.raises(kind), refusing("ccpo x"):
        raise kind("x")


def test_errors_of_our_own_code_have_no_more_to_show(capsys):
    with pytest.raises(SystemExit), refusing("ccpo x"):
        find_recipe("nothing")
    assert capsys.readouterr().err.endswith("`ccpo recipes` lists those that are shipped.\n")


def test_a_run_time_error_is_the_users_where_our_code_raises_it():
    with pytest.raises(RuntimeError), refusing("ccpo x", RuntimeError):
        torch.zeros(2) + torch.zeros(3)
    with pytest.raises(SystemExit), refusing("ccpo x", RuntimeError):
        raise_in_the_package("RuntimeError")


def raise_in_the_package(kind):
    """As if a module of the package raised it."""
    code = compile(f"raise {kind}('x')", str(RECIPES.parent / "module.py"), "exec")
    exec(code, {})


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, BrokenPipeError, KeyboardInterrupt])
def test_what_a_user_cannot_mend_is_raised(kind):
    with pytest.raises(kind), refusing("ccpo x"):
        raise kind("x")


def test_ctrl_c_before_a_step_shows_no_traceback(monkeypatch):
    """Where models are built, or evaluated, there is no step to finish."""

    def build(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_script, "prepare", build)
    with pytest.raises(SystemExit) as end:
        run_script.main(["--config", "smoke/config_gsm8k.yaml", "--use_cpu", "true"])
    assert end.value.code == 128 + signal.SIGINT


def test_where_a_worker_leaves_its_line(tmp_path, monkeypatch, capsys):
    line = tmp_path / "line"
    monkeypatch.setenv(LINE_FILE, str(line))
    with pytest.raises(SystemExit):
        refuse("ccpo x", "no")
    assert line.read_text() == "ccpo x: error: no\n" and capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        refuse("ccpo x", "other")
    assert line.read_text() == "ccpo x: error: no\n" and capsys.readouterr().err == "[rank 1] ccpo x: error: other\n"


def test_a_line_is_said_once_where_no_launcher_is_above(monkeypatch):
    """A user, or a Slurm script, may set what accelerate sets; nothing is waited for then."""
    monkeypatch.delenv(LINE_FILE, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    code = "from ccpo.exits import refuse; refuse('ccpo x', 'no')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "ccpo x: error: no\n")


def test_arguments_of_the_other_commands(capsys):
    parser = CommandParser("ccpo x", None)
    parser.add_argument("--max_problems", type=int)
    for words, message in (
        (["--max_problem", "3"], "`--max_problem` is not an argument. Did you mean `--max_problems`?"),
        (["--max_problems", "few"], "argument --max_problems: invalid int value: 'few'."),
        (["stray"], "`stray` is not an argument."),
    ):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(words)
        assert end.value.code == 2
        assert capsys.readouterr().err == f"ccpo x: error: {message} `ccpo x --help` lists the arguments.\n"


# ---- The commands ----


def test_the_commands_have_a_help(capsys):
    cli.main([])
    text = capsys.readouterr().out
    for name in re.findall(r"^    ccpo (\w+) ", text, re.MULTILINE):
        if name == "train":
            continue
        with pytest.raises(SystemExit) as end:
            cli.main([name, "--help"])
        assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: ccpo {name} ")
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("ccpo 0.")


def test_a_command_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["trian"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(
        "ccpo: error: `trian` is not a command. Did you mean `train`? There are "
    )


def test_nobody_reads_on():
    process = subprocess.Popen(
        [sys.executable, "-m", "ccpo", "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_options_of_the_launcher_go_to_it():
    parser = launch_command_parser()
    words = "--accelerate_config zero2 --num_processes 4 --debug underflow_overflow --multi_gpu --config x --seed=3"
    options, rest = cli.split_options([*words.split(), "--main_process_port=0"], parser)
    config = str(RECIPES / "accelerate_configs" / "zero2.yaml")
    assert options == ["--config_file", config, "--num_processes", "4", "--multi_gpu", "--main_process_port=0"]
    assert rest == ["--debug", "underflow_overflow", "--config", "x", "--seed=3"]
    with pytest.raises(ValueError, match="`--accelerate_config` is given without a value"):
        cli.split_options(["--accelerate_config"], parser)


def test_options_that_the_launcher_and_training_share():
    """Those that training gets; of the others each word has one meaning."""
    launcher = {name for action in launch_command_parser()._actions for name in action.option_strings}
    training = {name for action in TeamParser()._actions for name in action.option_strings}
    assert launcher & training == {*cli.OF_TRAINING} - {"--help"}


# ---- The help ----


def test_the_help_has_every_field_of_ours_once():
    shown = Counter(name for names in GROUPS.values() for name in names)
    own = {field.name for kind in (TeamArguments, MultiAgentGRPOConfig) for field in fields(kind) if field.init}
    theirs = {field.name for kind in (GRPOConfig, ScriptArguments) for field in fields(kind)}
    assert set(shown.values()) == {1} and own - theirs <= {*shown}
    parser = TeamParser()
    assert {*shown} <= {action.dest for action in parser._actions}
    text, everything = parser.format_help(), parser.format_help(True)
    assert [line for line in text.splitlines() if re.fullmatch(r"\w.*:", line)] == [
        "Recipe:", "Launch (ccpo train alone):", *(f"{title}:" for title in GROUPS)
    ]  # fmt: skip
    names = [field.name for kind in parser.dataclass_types for field in fields(kind) if field.init]
    assert set(re.findall(r"^  --(\w+)", everything, re.MULTILINE)) == {
        "config",
        "accelerate_config",
        "num_processes",
        *names,
    }
    assert 3 * len(text.splitlines()) < len(everything.splitlines())
    assert f"{len({*names}) - len(shown)} more fields: ccpo train --help-all" in text


# ---- Shipped recipes ----


def test_recipes_that_are_shipped(capsys):
    files = {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml")}
    launches = {f"accelerate_configs/{name}.yaml" for name in list_launches()}
    assert files == {*list_recipes()} | launches and len(launches) == 6 and len(list_recipes()) > 20
    cli.main(["recipes"])
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed and describe(name) in printed for name in files)


def test_a_recipe_is_found_by_its_path_or_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = RECIPES / "smoke" / "config_gsm8k.yaml"
    assert find_recipe("smoke/config_gsm8k.yaml") == find_recipe("recipes/smoke/config_gsm8k.yaml") == shipped
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "config_gsm8k.yaml").write_text("credit: ccpo")
    assert find_recipe("smoke/config_gsm8k.yaml") == Path("smoke/config_gsm8k.yaml")  # the user's own
    with pytest.raises(ValueError, match=r"`--config smoke` is neither a file nor a shipped recipe"):
        find_recipe("smoke")
    assert find_launch("cpu") == RECIPES / "accelerate_configs" / "cpu.yaml"
    with pytest.raises(ValueError, match=r"`--accelerate_config zero` is neither a file nor one of \['2x8_zero3', "):
        find_launch("zero")


def test_a_recipe_is_copied_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["recipes", "smoke/config_gsm8k.yaml", "mine"])
    copy = tmp_path / "mine" / "config_gsm8k.yaml"
    assert capsys.readouterr().out == "mine/config_gsm8k.yaml\n"
    assert copy.read_text() == (ROOT / "recipes" / "smoke" / "config_gsm8k.yaml").read_text() and not copy.is_symlink()
    copy.write_text("mine")
    with pytest.raises(ValueError, match="config_gsm8k.yaml is there already. Move it"):
        copy_out("smoke/config_gsm8k.yaml", "mine")
    assert copy.read_text() == "mine"
    with pytest.raises(ValueError, match=r"`smoke/config_gsm8` is not a shipped recipe. Did you mean"):
        copy_out("smoke/config_gsm8")
    assert copy_out("accelerate_configs/zero2.yaml").name == "zero2.yaml"
    with pytest.raises(ValueError, match=r"mine.yaml is to be a folder. Name one: the copy is called config_math"):
        copy_out("smoke/config_math.yaml", "mine.yaml")
    with pytest.raises(ValueError, match=r"zero2.yaml/config_math.yaml cannot be written \(.*\). Name another folder"):
        copy_out("smoke/config_math.yaml", "zero2.yaml")


def test_a_run_is_told_apart_from_its_launcher():
    """The environment of a process that `ccpo train` became says that no launcher will speak after it."""
    code = "import os, json; from ccpo import cli; from accelerate.commands import launch;"
    code += "os.execvpe = lambda f, c, e: print(json.dumps([c, e[cli.LINE_FILE], e['ACCELERATE_USE_CPU']]));"
    code += "cli.train(['--accelerate_config', 'cpu', '--seed', '1'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    command, line, cpu = json.loads(done.stdout)
    assert command[1:] == ["-m", "ccpo.train", "--seed", "1"] and (line, cpu) == ("", "True")


def test_an_embedded_task_is_a_benchmark_by_its_name(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(evaluation, "run", lambda *had: given.update(had=had) or "")
    cli.main(["evaluate", "x", "--benchmarks", "arithmetic", "f.jsonl:q:a"])
    monkeypatch.setattr(evaluation, "load_benchmark", lambda name, conversational: (name, conversational))
    found = evaluation.read_benchmarks(*given["had"])
    held_out = TASKS["arithmetic"].build_dataset("test")
    assert found["arithmetic"].to_list() == held_out.to_list() and found["f.jsonl:q:a"] is True
    given["had"][0].benchmarks = ["MATH500", "arithmetics"]
    assert evaluation.read_benchmarks(*given["had"]) == ["MATH500", "arithmetics"]
    given["had"][0].benchmarks = ["arithmetic", "arithmetic"]
    with pytest.raises(ValueError, match="`--benchmarks` names one twice, got .*Leave one out"):
        evaluation.read_benchmarks(*given["had"])
