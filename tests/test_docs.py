"""The documentation against the code: metrics, links and commands."""

import re
from pathlib import Path

import pytest
from conftest import digit_outcome

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SelfEvaluatedCredit

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_METRICS = {"step", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
NOT_METRICS |= {"total_flos"}


def documented() -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))


def general(name: str) -> str:
    """The name as the glossary writes it: roles and functions as placeholders."""
    name = re.sub(r"^(thinker|solver)/", "<role>/", name)
    name = re.sub(r"^credit/(thinker|solver)/", "credit/<role>/", name)
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
    for credit, beta in (
        (CounterfactualCredit(Judge()), 0.1),
        (SelfEvaluatedCredit(outcome, rating_max_tokens=4, rating_prompt="{role}"), 0.0),
    ):
        args = make_config(schedule="joint", beta=beta, per_device_train_batch_size=8)
        trainer = MultiAgentGRPOTrainer(model_dirs["qwen3"], credit, args, chat_dataset)
        trainer.train()
        emitted |= {general(name) for row in trainer.state.log_history for name in row} - NOT_METRICS
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
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b(?= |`|$)", page.read_text(), re.MULTILINE)) <= targets | {"sure", "up"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(page):
    assert not re.search(r"[A-Z]+_TABLE|TODO|TBD|FIXME", page.read_text())


def test_readme_map_names_every_module():
    text = (ROOT / "README.md").read_text()
    modules = [p.name for p in (ROOT / "src" / "ccpo").rglob("*.py") if p.name != "__init__.py"]
    assert not [name for name in modules if name not in text]
