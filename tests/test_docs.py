"""The documentation against the code: metrics, links and commands."""

import functools
import importlib
import json
import math
import re
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from conftest import PRINTABLE, digit_outcome, make_model, make_tokenizer
from openai_server import transformers_serve
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import ccpo
from ccpo import Chain, CounterfactualCredit, MultiAgentGRPOTrainer, SelfEvaluatedCredit, Topology
from ccpo.arguments import TeamArguments
from ccpo.rewards import CreditAllocator
from ccpo.training.credit_checks import check_credit, check_role_kwargs
from ccpo.training.episodes import describe_columns

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_METRICS = {"step", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
NOT_METRICS |= {"total_flos", "runtime", "samples_per_second", "steps_per_second"}


def documented() -> set[str]:
    metrics, _ = (ROOT / "docs" / "metrics.md").read_text().split("## The completions table")
    return set(re.findall(r"^\| `([^`]+)` \|", metrics, re.MULTILINE))


def test_columns_of_the_completions_table_are_documented():
    _, page = (ROOT / "docs" / "metrics.md").read_text().split("## The completions table")
    cells = " ".join(re.findall(r"^\| (.*?) \|", page, re.MULTILINE))
    described = describe_columns(Chain(["first", "second"]), "")
    parts = [described["episode"], *(part["columns"] for part in described["roles"] + described["removals"])]
    names = {name.replace("first", "<role>").replace("second", "<role>") for part in parts for name in part.values()}
    assert {"step", *names} - {"<role>"} == set(re.findall("`(.*?)`", cells))


def general(name: str) -> str:
    """The name as the glossary writes it: roles and functions as placeholders."""
    role = "(thinker|solver|first|second)"
    name = re.sub(rf"^{role}/", "<role>/", name)
    name = re.sub(rf"^credit/{role}/", "credit/<role>/", name)
    name = re.sub(rf"^(credit|rollout)/(without|ablated|swapped)_{role}_", r"\1/\2_<role>_", name)
    name = re.sub(rf"^(rating|rollout)/{role}_", r"\1/<role>_", name)
    return re.sub(r"/rewards/[a-z_]+/", "/rewards/<function>/", name)


class Judge:
    """An outcome function that can say where an answer is."""

    __name__ = "judge"

    def __call__(self, completions, **kwargs):
        return digit_outcome(None, completions)

    def extract(self, text):
        return text or None


def test_glossary_is_what_runs_emit(model_dirs, chat_dataset, make_config, outcome):
    emitted = set()
    for credit, topology, beta in (
        (CounterfactualCredit(Judge()), None, 0.1),
        (SelfEvaluatedCredit(outcome, rating_max_tokens=4, rating_prompt="{role} {outcome}"), None, 0.0),
        (CounterfactualCredit(outcome), Chain(["first", "second"]), 0.0),
    ):
        sizes = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
        args = make_config(schedule="joint", beta=beta, eval_arms=["without", "ablated", "swapped"], **sizes)
        trainer = MultiAgentGRPOTrainer(model_dirs["qwen3"], credit, args, chat_dataset, topology=topology)
        trainer.train()
        trainer.evaluate(chat_dataset.select(range(2)))
        names = {name.removeprefix("eval_") for row in trainer.state.log_history for name in row}
        emitted |= {general(name) for name in names} - NOT_METRICS
    assert emitted - documented() == set(), "not in docs/metrics.md"
    assert documented() - emitted == set(), "in docs/metrics.md, but no run emits it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
    for path in re.findall(r"\b((?:examples|recipes|tests|benchmarks|src)/[\w./+-]+\.(?:py|yaml))\b", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_names_are_there(page):
    """`ccpo.team.prompts`, `ccpo.credit.robust_location`, `generation/replies.py`; no old import path among them."""
    text = page.read_text()
    for path in re.findall(r"`([\w-]+/[\w/-]+\.py)`", text):
        assert any((top / path).is_file() for top in (ROOT, ROOT / "src" / "ccpo")), path
    for name in re.findall(r"`ccpo\.((?:\w+\.)*\w+)", text):
        owner = ccpo
        for part in name.split("."):
            if not hasattr(owner, part):
                importlib.import_module(f"{owner.__name__}.{part}")
            owner = getattr(owner, part)
        assert name.split(".")[0] not in ("config", "checks", "prompts"), name


def test_the_page_on_recipes_names_every_folder_and_configuration():
    text = (ROOT / "docs" / "recipes.md").read_text()
    (row,) = re.findall(r"^\| `recipes/accelerate_configs` \| (.*) \|$", text, re.MULTILINE)
    assert set(re.findall("`(.*?)`", row)) == {path.stem for path in (ROOT / "recipes/accelerate_configs").iterdir()}
    for folder in (ROOT / "recipes").iterdir():
        assert f"`recipes/{folder.name}" in text, folder.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b(?= |`|$)", page.read_text(), re.MULTILINE)) <= targets | {"sure", "up"}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_reads_every_target():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 8 and len(targets) == len({*targets})
    subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(page):
    assert not re.search(r"[A-Z]+_TABLE|TODO|TBD|FIXME", page.read_text())


# ---- The code blocks, as they stand ----


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def readme_blocks(language: str) -> list[str]:
    return blocks(ROOT / "README.md", language)


def cases(pages: list[Path], language: str) -> list:
    """Every block of the pages, as cases of a test."""
    numbered = [(page, i, block) for page in pages for i, block in enumerate(blocks(page, language))]
    return [pytest.param(block, id=f"{page.stem}-{i}") for page, i, block in numbered]


TEAM_PAGES = [*sorted((ROOT / "docs" / "credit").glob("*.md")), ROOT / "docs" / "teams.md"]


@pytest.fixture(scope="module")
def saved_adapters(model_dirs, tmp_path_factory):
    """What a run with `policy_sharing: adapters` leaves: a folder for each agent."""
    folder = tmp_path_factory.mktemp("adapters") / "out"
    for agent in ("thinker", "solver"):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"]), LoraConfig(r=2))
        model.save_pretrained(folder / agent)
        AutoTokenizer.from_pretrained(model_dirs["qwen3"]).save_pretrained(folder / agent)
    return folder


@pytest.mark.parametrize("code", cases(TEAM_PAGES, "python"))
def test_python_blocks_of_the_pages_on_teams_and_credit(
    code, model_dirs, chat_dataset, saved_adapters, tmp_path, monkeypatch
):
    """A model and a dataset are given, and the folder in which they run; the trainers are built on a CPU."""
    shutil.copytree(saved_adapters, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    here = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    monkeypatch.setattr(ccpo, "MultiAgentGRPOConfig", functools.partial(ccpo.MultiAgentGRPOConfig, **here))
    namespace = {"model": model_dirs["qwen3"], "dataset": chat_dataset}
    exec(compile(code, "block", "exec"), namespace)
    trainer, team = namespace.get("trainer"), namespace.get("topology")
    if trainer is None:
        assert isinstance(team, Topology) or isinstance(namespace["credit"], CreditAllocator)
    else:
        assert isinstance(trainer, MultiAgentGRPOTrainer)


@pytest.mark.parametrize("text", cases(PAGES, "yaml"))
def test_yaml_blocks_are_read_by_the_parser_of_recipes(text, tmp_path):
    """And what they say of team, credit and roles goes together."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    parser = trl.TrlParser((TeamArguments, ccpo.MultiAgentGRPOConfig, trl.ModelConfig))
    words = ["--config", str(recipe), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false"]
    team, args, _ = parser.parse_args_and_config(words)
    topology = team.make_topology()
    team.models_of(topology)
    check_role_kwargs(args, topology)
    check_credit([team.make_credit(topology=topology)], topology, args, topology.agents, evaluates=False)


# ---- README's code blocks ----


@pytest.fixture(scope="module")
def brief_model(tmp_path_factory):
    """A tiny chat model that ends its text with every other token, so that long limits cost nothing."""
    path = tmp_path_factory.mktemp("brief")
    tokenizer = make_tokenizer(PRINTABLE)
    model = make_model("llama", tokenizer)
    with torch.no_grad():
        for layer in model.model.layers:  # the hidden state is the embedding's, and that is one vector
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = math.log(len(tokenizer)) / model.config.hidden_size
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def gsm8k(tmp_path):
    """A folder that `load_dataset` reads like GSM8K: its configuration, split and columns."""
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: main\n  data_files: train.jsonl\n---\n")
    rows = [{"question": f"What is {i} + 1?", "answer": f"Add one to {i}.\n#### {i + 1}"} for i in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_quickstart_on_a_laptop_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """With fewer steps."""
    code = readme_blocks("python")[0]
    for steps, fewer in (("use_cpu=True)", "use_cpu=True, steps=2)"), ("max_steps=40", "max_steps=1")):
        assert code.count(steps) == 1
        code = code.replace(steps, fewer)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "'thinker': " in capsys.readouterr().out and (tmp_path / "quickstart" / "solver").is_dir()


@pytest.mark.parametrize("was_stopped", [True, False])
def test_a_script_looks_whether_the_run_was_stopped(was_stopped):
    called = []
    trainer = SimpleNamespace(was_stopped=was_stopped, train=lambda: called.append("train"), save_model=called.append)
    with pytest.raises(SystemExit) if was_stopped else nullcontext():
        exec(compile(readme_blocks("python")[3], "README.md", "exec"), {"trainer": trainer})
    assert called == (["train"] if was_stopped else ["train", "out"])


@pytest.mark.parametrize("number", [1, 2], ids=["quickstart", "drop-in"])
def test_python_blocks_run_as_they_stand(number, brief_model, gsm8k, tmp_path, monkeypatch, caplog):
    """With other names for the model, the data, the address and the folder; on a CPU, two steps instead of all."""
    assert len(readme_blocks("python")) == 4
    code, log = readme_blocks("python")[number], tmp_path / "serve.log"
    served = ":8000" in code
    with transformers_serve(brief_model, log) if served else nullcontext("") as url:
        names = {"Qwen/Qwen2.5-1.5B-Instruct": brief_model, "openai/gsm8k": gsm8k, '"out': f'"{tmp_path}/out'}
        names |= {"http://localhost:8000/v1": url} if served else {}
        for name, local in names.items():
            assert name in code
            code = code.replace(name, local)
        here = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2, "logging_steps": 1}
        monkeypatch.setattr(trl, "GRPOConfig", functools.partial(trl.GRPOConfig, **here))
        monkeypatch.setattr(ccpo, "MultiAgentGRPOConfig", functools.partial(ccpo.MultiAgentGRPOConfig, **here))
        namespace = {}
        exec(compile(code, "README.md", "exec"), namespace)
    history = namespace["trainer"].state.log_history
    assert all("credit/joint_accuracy" in row and "credit/no_answer_rate" in row for row in history[:2])
    assert history[1]["step"] == 2 and "chat template" not in caplog.text
    if served:
        row = namespace["dataset"][0]
        assert row["prompt"][-1]["role"] == "user" and row["solution"].endswith("#### 1") and row["problem"]
        assert "/v1/chat/completions" in log.read_text() and "/v1/completions" not in log.read_text()
    else:
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"thinker", "solver"}


def test_the_map_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = [p.name for p in (ROOT / "src" / "ccpo").rglob("*.py") if p.name != "__init__.py"]
    assert not [name for name in modules if name not in text]
