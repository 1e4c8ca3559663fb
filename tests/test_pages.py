"""The pages of the documentation: every command is read, every block runs, and their tables are what the code says."""

import dataclasses
import functools
import importlib
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import huggingface_hub
import matplotlib
import pytest
import trl
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from recipe_memory import RECIPES, TINY_ONES, row
from test_docs import PAGES, ROOT, TEAM_PAGES, blocks, brief_model, cases, documented, general, saved_adapters
from transformers import TrainerCallback

import ccpo
from ccpo import MathVerifier, MultiAgentGRPOConfig, SharedCredit, ThinkSolve
from ccpo.cli import split_options
from ccpo.evaluation.__main__ import parse_arguments as parse_evaluation
from ccpo.evaluation.report.__main__ import main as report
from ccpo.evaluation.serving.__main__ import parse_arguments as parse_serving
from ccpo.tasks import arithmetic
from ccpo.train import parse_arguments as parse_training
from ccpo.training.checks import check_arguments
from ccpo.training.config import AGENT_KEYS, ROLE_KEYS

__all__ = ["brief_model", "saved_adapters"]  # fixtures
DOCS = ROOT / "docs"
HOOKS = DOCS / "hooks"
ON_A_CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}

# ---- Commands ----

# Commands of others, which are not read: first word -> why.
NOT_READ = {
    "vllm": "vLLM is installed by `make test-vllm` alone",
    "git": "needs the network",
    "source": "the shell's own",
    "cd": "the shell's own",
    "python3": "makes an environment",
}


def commands(block: str) -> list[list[str]]:
    """The commands of a block as words, without what is set in their environment."""
    lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    for words in lines:
        while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
            del words[0]
    return [part for words in lines if words for part in split(words, "&&")]


def split(words: list[str], at: str) -> list[list[str]]:
    parts = [[]]
    for word in words:
        parts.append([]) if word == at else parts[-1].append(word)
    return parts


def read_training(words: list[str], launched: bool = False) -> None:
    """The words of `ccpo train`, or those behind a script, where none is the launcher's."""
    words = words if launched else split_options(words, launch_command_parser())[1]
    parse_training([*words, "--use_cpu", "true", "--bf16", "false"])


def read_launch(words: list[str]) -> None:
    given = launch_command_parser().parse_args(words)
    if given.config_file is not None:
        load_config_from_file(str(ROOT / given.config_file))
    assert given.training_script == ("ccpo.train" if given.module else "examples/train_ccpo.py"), words
    read_training(given.training_script_args, launched=True)


def read_ccpo(command: str, words: list[str]) -> None:
    """`ccpo <command>`."""
    if command == "--help":
        assert not words
    elif command == "recipes":
        assert all((ROOT / "recipes" / word).exists() for word in words[:1]) and len(words) < 3, words
    else:
        read = {"train": read_training, "evaluate": parse_evaluation, "serve": parse_serving, "report": report}
        read[command](words)


def extras() -> set[str]:
    """What `pip install ccpo[...]` may name."""
    declared = (ROOT / "setup.cfg").read_text() + (ROOT / "pyproject.toml").read_text()
    section = re.split(r"^\[.*(?:extras_require|optional-dependencies)\]$", declared, flags=re.MULTILINE)[1]
    return set(re.findall(r"^(\w+) ?=", section.split("\n[")[0], re.MULTILINE))


def read_command(words: list[str]) -> None:
    head, second = words[0], words[1] if len(words) > 1 else ""
    if head == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert second in targets, words
    elif words[:2] == ["accelerate", "launch"]:
        read_launch(words[2:])
    elif head == "ccpo":
        read_ccpo(second, words[2:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("ccpo.evaluation"):
        names = {"ccpo.evaluation": "evaluate", "ccpo.evaluation.serving": "serve", "ccpo.evaluation.report": "report"}
        read_ccpo(names[words[2]], words[3:])
    elif words[:2] == ["python", "examples/evaluate.py"]:
        own = words.index("--k")  # the script's own
        read_training(words[2:own] + words[own + 2 :], launched=True)
    elif head == "python" and second.startswith(("examples/", "benchmarks/")):
        assert (ROOT / second).exists(), words
        text = "".join(path.read_text() for path in [ROOT / second, *(ROOT / second).glob("*.py")] if path.is_file())
        assert all(f'"{word}"' in text for word in words[2:] if word.startswith("--")), words
    elif head == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-")), words
    elif head == "sbatch":
        assert (ROOT / second).is_file(), words
        read_training(["--config", words[2], "--output_dir", *words[3:]])
    elif head == "lm_eval":
        harness = pytest.importorskip("lm_eval.__main__").HarnessCLI()
        harness._parser.parse_args(["run", *words[1:]])
    elif head == "pip" and second == "install":
        named = re.findall(r"\[([\w,-]+)\]", " ".join(words))
        assert {extra for group in named for extra in group.split(",")} <= extras(), words
        assert all(word in ("-e", "-U", "--no-deps") for word in words[2:] if word.startswith("-")), words
    else:
        assert head in NOT_READ, f"{words}: read it, or say in NOT_READ why not"


@pytest.mark.parametrize("block", cases(PAGES, "bash"))
def test_every_command_of_every_page_is_read(block, monkeypatch, tmp_path):
    monkeypatch.setattr("ccpo.evaluation.report.__main__.write_report", lambda *args, **kwargs: tmp_path)
    monkeypatch.chdir(ROOT)
    assert commands(block)
    for words in commands(block):
        read_command(words)


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "ccpo train --learning_rat 1",
        "ccpo train --config recipes/none.yaml",
        "accelerate launch examples/train_ccpo.py --num_processes 2",
        "accelerate launch examples/other.py",
        "ccpo evaluate out --benchmarks A --kk 4",
        "ccpo recipes nowhere.yaml",
        "pip install ccpo[nothing]",
        "curl example.org",
    ],
)
def test_a_command_that_is_wrong_is_found(line):
    with pytest.raises((AssertionError, SystemExit, ValueError, StopIteration)):
        read_command(shlex.split(line))


# ---- Blocks of Python ----

# Pages whose blocks other tests run -> which.
RUN_ELSEWHERE = {
    "evaluation.md": "test_team.py",
    "serving.md": "test_serving.py",
    "recipes.md": "test_multiple_choice.py",
}
RUN_HERE = ("from_trl.md", "notebooks.md", "troubleshooting.md", "using.md", "verifier.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_python_is_run_somewhere(page):
    if blocks(page, "python") and page != ROOT / "README.md" and page not in TEAM_PAGES and page.name not in RUN_HERE:
        assert page.name in (ROOT / "tests" / RUN_ELSEWHERE[page.name]).read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the first cell of the page on notebooks leaves, as `outputs/demo`: one step of it, and of its start."""
    folder = tmp_path_factory.mktemp("demo") / "outputs" / "demo"
    fewer = {"warm_start_steps": 1, "num_eval_problems": 4, "per_device_train_batch_size": 8, "save_steps": 1}
    words = [word for name, value in fewer.items() for word in (f"--{name}", str(value))]
    words += ["--save_strategy", "steps", "--max_steps", "1", "--output_dir", str(folder)]
    (first, *_), given = (
        blocks(DOCS / "notebooks.md", "python"),
        '"--max_steps", "20", "--output_dir", "outputs/notebook"',
    )
    assert given in first
    exec(compile(first.replace(f"[{given}]", repr(words)), "notebooks.md, block 0", "exec"), {})
    return folder


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch, demo, saved_adapters):
    """A folder with what earlier commands have left in it."""
    shutil.copytree(demo, tmp_path / "outputs" / "demo")
    shutil.copytree(saved_adapters, tmp_path / "outputs" / "lora")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(name: str, replaced: dict[str, str], before=None, start: int = 0, **namespace):
    """Run the blocks of a page, one after the other as cells of a notebook are, with other names for some things."""
    for old in replaced:
        assert any(old in code for code in blocks(DOCS / name, "python")), old
    for i, code in enumerate(blocks(DOCS / name, "python")[start:], start):
        for old, new in replaced.items():
            code = code.replace(old, new)
        if before is not None:
            before(code, namespace)
        exec(compile(code, f"{name}, block {i}", "exec"), namespace)
    return namespace


def test_blocks_of_using(in_a_folder, monkeypatch, capsys):
    """The Hub is a folder here: what is pushed to it is recorded."""
    pushed = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, *args, **kwargs: pushed.append(args))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **kwargs: pushed.append(kwargs))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: name)
    run_page("using.md", {"you/my-team": "outputs/demo"})
    assert {"thinker", "solver"} <= set(re.findall(r"'(\w+)':", capsys.readouterr().out))
    assert pushed[1]["folder_path"] == "outputs/demo" and pushed[0] == ("outputs/demo",)
    assert (in_a_folder / "outputs" / "merged" / "solver" / "model.safetensors").is_file()


def test_the_files_of_a_run_are_those_of_the_page(in_a_folder):
    _, table = (DOCS / "using.md").read_text().split("## What lies in a run's folder")
    cells = re.findall(r"^\| (`.*?) \|", table.split("## Ask it")[0], re.MULTILINE)
    named = {name.rstrip("/") for cell in cells for name in re.findall("`(.*?)`", cell)}
    unnamed = {"training_args.bin", "README.md", "warm_start"}
    there = {re.sub(r"-\d+$", "-*", path.name) for path in (in_a_folder / "outputs" / "demo").iterdir()}
    assert named == there - unnamed


class Stop(TrainerCallback):
    """The stop button: the signal comes in the first step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            signal.raise_signal(signal.SIGINT)


def test_blocks_of_notebooks(in_a_folder, monkeypatch, capsys):
    """But the first, which [`demo`] runs. The start is that one's, and two small steps stand for twenty."""
    matplotlib.use("Agg")
    notebook, display = ModuleType("IPython"), ModuleType("IPython.display")
    notebook.get_ipython, display.Image = lambda: None, lambda path: Path(path).stat()
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    started = {agent: str(in_a_folder / "outputs/demo/warm_start" / agent) for agent in ("thinker", "solver")}
    monkeypatch.setattr(arithmetic, "warm_start_team", lambda *args, seed, use_cpu: started)
    stop = Stop()

    def before(code, namespace):
        if "was_stopped" in code:
            namespace["trainer"].add_callback(stop)
        elif "resume" in code:
            assert namespace["trainer"].was_stopped and namespace["trainer"].state.global_step == 1
            namespace["trainer"].remove_callback(stop)

    fewer = {"max_steps=20": "max_steps=2", "per_device_train_batch_size=64": "per_device_train_batch_size=8"}
    namespace = run_page("notebooks.md", fewer, before, start=1)
    assert "Stopped." in capsys.readouterr().out and namespace["trainer"].state.global_step == 2
    assert (in_a_folder / "outputs" / "notebook" / "curves.png").is_file()


def test_blocks_of_from_trl(in_a_folder, monkeypatch, brief_model, chat_dataset):
    here = ON_A_CPU | {"max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 8}
    monkeypatch.setattr(trl, "GRPOConfig", functools.partial(trl.GRPOConfig, **here))
    monkeypatch.setattr(ccpo, "MultiAgentGRPOConfig", functools.partial(MultiAgentGRPOConfig, **here))
    run_page("from_trl.md", {"Qwen/Qwen2.5-1.5B-Instruct": brief_model}, dataset=chat_dataset)
    assert {path.name for path in (in_a_folder / "out").iterdir()} >= {"thinker", "solver", "team.json"}


def test_blocks_of_troubleshooting_and_of_the_verifier(capsys):
    assert run_page("verifier.md", {})["outcome"] == [1.0]
    run_page("troubleshooting.md", {})
    said = [
        line.split("  # ")[1]
        for line in blocks(DOCS / "troubleshooting.md", "python")[0].splitlines()
        if "  #" in line
    ]
    assert capsys.readouterr().out.split("\n")[:2] == [said[0].split(":")[0], said[1]]


# ---- Metrics ----


def test_metrics_that_pages_name_are_in_the_glossary():
    known, missing = documented(), []
    for page in PAGES:
        for name in re.findall(r"`((?:credit|rating|rollout|<role>|thinker|solver)/[\w/<>]+)`", page.read_text()):
            generally = re.sub(r"^credit/[^/]+/", "credit/<role>/", general(name.replace("<arm>", "<role>")))
            is_path = (ROOT / "src" / "ccpo" / name).exists() or re.fullmatch("(?:thinker|solver)/", name)
            if generally not in known and "/sampling/" not in name and not is_path:
                missing.append((page.name, name))
    assert not missing


# ---- The table of GRPOConfig's fields ----


def fields_of_the_table() -> dict[str, tuple[str, str]]:
    """Field -> how it is here, and what there is to know."""
    _, table = (DOCS / "from_trl.md").read_text().split("## Every field of GRPOConfig")
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| ?(.*?) ?\|$", table, re.MULTILINE)
    named = [(field, here, more) for cell, here, more in rows for field in re.findall("`(.*?)`", cell)]
    assert len(named) == len({field for field, _, _ in named}), "a field stands there twice"
    return {field: (here, more) for field, here, more in named}


def test_every_field_of_grpo_config_is_in_the_table():
    assert set(fields_of_the_table()) == {field.name for field in dataclasses.fields(trl.GRPOConfig)}


def test_the_fields_by_role_and_with_another_default_are_those():
    table = fields_of_the_table()
    assert {name for name, (here, _) in table.items() if here == "by agent"} == set(AGENT_KEYS) & set(table)
    assert {name for name, (here, _) in table.items() if here == "by role"} == set(ROLE_KEYS) - set(AGENT_KEYS)
    defaults = {field.name: field.default for field in dataclasses.fields(MultiAgentGRPOConfig)}
    other = {f.name for f in dataclasses.fields(trl.GRPOConfig) if defaults[f.name] != f.default}
    assert {name for name, (here, _) in table.items() if here == "other default"} == {
        *other,
        "ddp_find_unused_parameters",
    }
    assert MultiAgentGRPOConfig("out", **ON_A_CPU).ddp_find_unused_parameters is True
    assert MultiAgentGRPOConfig("out", policy_sharing="shared", **ON_A_CPU).ddp_find_unused_parameters is None
    assert {here for here, _ in table.values()} == {
        "as in TRL",
        "by role",
        "by agent",
        "no effect",
        "other default",
        "refused",
    }


def refused() -> list:
    """The values that the table calls refused, as cases of a test."""
    cases = []
    for field, (here, more) in fields_of_the_table().items():
        told = more if here == "refused" else more.partition("Refused:")[2]
        for i, given in enumerate(re.findall(r"`(\{.*?\}+)`", told)):
            cases.append(pytest.param(field, given, id=f"{field}-{i}"))
    return cases


REFUSED = refused()


@pytest.mark.parametrize("field, given", REFUSED)
def test_what_the_table_calls_refused_is_refused(field, given, chat_dataset, tmp_path):
    sizes = {"per_device_train_batch_size": 4, "num_generations": 4}
    with pytest.raises(ValueError, match=re.compile(field.removesuffix("_config"), re.IGNORECASE)):
        args = MultiAgentGRPOConfig(str(tmp_path), **ON_A_CPU | sizes | yaml.safe_load(given))
        check_arguments({}, [SharedCredit(MathVerifier())], args, chat_dataset, ThinkSolve(), None)


def test_every_refusal_names_values():
    assert len(REFUSED) > 12
    named = {field for field, (here, _) in fields_of_the_table().items() if here == "refused"}
    assert named <= {case.values[0] for case in REFUSED}


# ---- The tables of memory ----


def expand(pattern: str) -> list[str]:
    """`a/{b,c}/*` as patterns of paths."""
    found = re.search(r"\{(.*?)\}", pattern)
    return [pattern.replace(found[0], part) for part in found[1].split(",")] if found else [pattern]


@functools.cache
def computed(path: Path) -> list[str]:
    return row(path)


@pytest.mark.parametrize(("columns", "cells"), [(11, slice(0, 10)), (3, slice(10, 12))], ids=["memory", "tokens"])
def test_the_tables_of_memory_are_computed(columns, cells):
    lines = re.findall(r"^\| `(.*?)` \| (.*) \|$", (DOCS / "memory.md").read_text(), re.MULTILINE)
    table = {pattern: line.split(" | ") for pattern, line in lines if line.count(" | ") == columns - 2}
    left = [path for path in RECIPES if path not in TINY_ONES]
    for pattern in sorted(table, key=lambda pattern: "*" in pattern):  # a recipe with a row of its own has no other
        paths = [path for part in expand(pattern) for path in (ROOT / "recipes").glob(f"{part}.yaml")]
        paths = [path for path in paths if path in left]
        assert paths, pattern
        for path in paths:
            assert computed(path)[cells] == table[pattern], path
            left.remove(path)
    assert not left


# ---- The site ----


def test_the_reference_has_every_public_name():
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    named = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(named) == len({*named})
    expected = {f"ccpo.{name}" for name in ccpo.__all__}
    expected |= {f"ccpo.credit.{name}" for name in importlib.import_module("ccpo.credit").__all__}
    expected |= {"ccpo.ratings.parse_rating", "ccpo.evaluation.Team", "ccpo.evaluation.evaluate"}
    assert expected | {"ccpo.data.load_problems"} <= {*named}
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_a_broken_link_fails_make_docs(tmp_path):
    pytest.importorskip("mkdocs")
    (words,) = re.findall(r"mkdocs (build [^#\n]*)", (ROOT / "Makefile").read_text())
    (tmp_path / "mkdocs.yml").write_text("site_name: x\n")
    (tmp_path / "docs").mkdir()
    for text, status in (("# A page", 0), ("[a](none.md)", 1)):
        (tmp_path / "docs" / "index.md").write_text(text)
        built = subprocess.run([sys.executable, "-m", "mkdocs", *words.split()], cwd=tmp_path, capture_output=True)
        assert built.returncode == status, built.stderr.decode()


def load_hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def render(markdown: str, source: str = "credit/page.md") -> str:
    extra = {"repository": "https://github.com/x/y"}
    config = SimpleNamespace(docs_dir=str(DOCS), config_file_path=str(ROOT / "mkdocs.yml"), extra=extra)
    page = SimpleNamespace(file=SimpleNamespace(src_uri=source))
    return load_hook("pages").on_page_markdown(markdown, page, config, None)


def test_links_out_of_the_docs_lead_to_the_repository(caplog):
    here = "[a](ccpo.md), [b](#x), [c](https://x.y/../z)"
    assert render(here) == here
    assert render("[a](../../LOG.md)") == "[a](https://github.com/x/y/blob/main/LOG.md)"
    assert render("[a](../README.md#install)", "a.md") == "[a](https://github.com/x/y/blob/main/README.md#install)"
    assert render("[a](../../src)") == "[a](https://github.com/x/y/tree/main/src)"
    assert render("```\n[a](../../LOG.md)\n```\n") == "```\n[a](../../LOG.md)\n```\n"
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        render("[a](../../NONE.md) [b](../../README.md#no-such-heading)")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "NONE.md" in caplog.text and "#no-such-heading" in caplog.text


def test_lists_and_pipes_are_as_on_github():
    assert render("text:\n- one\n- two\n") == "text:\n\n- one\n- two\n"
    assert render("- one\n  more\n- two\n1. three\n") == "- one\n  more\n- two\n1. three\n"
    assert render(r"| `a \| b` | c |") == "| `a | b` | c |"


def test_docstrings_become_markdown():
    griffe = pytest.importorskip("griffe", reason="needs griffe: `pip install ccpo[docs]`")
    hook = load_hook("docstrings")
    docstring = (
        "Does.\n\nArgs:\n    > Parameters of one\n\n    a (`str`, *optional*, defaults to `x`): an [`~ccpo.Solo`].\n"
        "    b, c (`dict[str, int]`):\n        Two: each.\n\nReturns:\n    `str`: it.\n"
    )
    text = hook.to_markdown(docstring, griffe.Module("ccpo"))
    assert "*Parameters of one*" in text and "- **`a`** (`str`, *optional*, defaults to `x`): an <autoref" in text
    assert 'identifier="ccpo.Solo" optional><code>Solo</code>' in text
    assert "- **`b`**, **`c`** (`dict[str, int]`):\n    Two: each." in text
    assert "**Returns**\n\n`str`: it." in text
