"""Multiple choice by configuration: the recipe's pattern and prompts, and how docs/recipes.md writes its files."""

import re
from pathlib import Path

import datasets
import pytest
import yaml

from ccpo.data import load_problems
from ccpo.team.rollout import run_team
from ccpo.team.topology import ThinkSolve
from ccpo.verifier import MathVerifier

ROOT = Path(__file__).parents[1]
RECIPE = yaml.safe_load((ROOT / "recipes" / "Qwen2.5-1.5B-Instruct" / "ccpo" / "config_logiqa.yaml").read_text())
STATE_B = [
    "Answer: B",
    "(A) fails.\n\nAnswer: (B)",
    "**Answer:** B",
    "**Answer**: B",
    "Answer: **B**",
    "Answer: <B>",
    "The answer is B.",
    "answer: B. It is the only one left.",
    "Answer: A\nNo: C and D fail, too.\nAnswer: B",
    r"Answer: \boxed{B}",
    r"\boxed{\text{B}}",
]
STATE_NOTHING = ["B", "Answer: BAD", "Answer: E", "Answer A is wrong.", "the answer is a guess", "Option B it is.", ""]
ROW = {
    "id": 0,
    "answer": 1,
    "text": "All cats sleep.",
    "type": "{}",
    "question": "Which follows?",
    "options": ["No cat sleeps.", "Tom, a cat, sleeps.", "Dogs sleep.", "Nobody sleeps."],
}
PROBLEM = (
    "All cats sleep.\n\nWhich follows?\nA. No cat sleeps.\nB. Tom, a cat, sleeps.\nC. Dogs sleep.\nD. Nobody sleeps."
)


@pytest.fixture(scope="module")
def verifier():
    return MathVerifier(answer_pattern=RECIPE["answer_pattern"], num_workers=1)


def test_every_letter_against_every_letter(verifier):
    pairs = [(gold, said) for gold in "ABCD" for said in "ABCD"]
    scores = verifier.score(gold=[gold for gold, _ in pairs], prediction=[f"Answer: {said}" for _, said in pairs])
    assert scores == [1.0 if gold == said else -1.0 for gold, said in pairs]


def test_ways_to_state_a_letter(verifier):
    assert verifier.score(gold=["B"] * len(STATE_B), prediction=STATE_B) == [1.0] * len(STATE_B)
    assert verifier.score(gold=["C"] * len(STATE_B), prediction=STATE_B) == [-1.0] * len(STATE_B)
    assert [verifier.reader.extract(text) for text in STATE_NOTHING] == [None] * len(STATE_NOTHING)
    assert set(verifier.score(gold=["B"] * len(STATE_NOTHING), prediction=STATE_NOTHING)) == {-1.0}


def write_files(tmp_path, monkeypatch):
    """Run the block of docs/recipes.md on one row in the place of the Hub's."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL)
    (block,) = (text for text in blocks if "lettered" in text)
    rows = datasets.Dataset.from_list([ROW])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    monkeypatch.undo()
    return [tmp_path / RECIPE[name] for name in ("dataset_name", "eval_dataset_name")]


def test_from_the_rows_to_the_verdict(tmp_path, monkeypatch, verifier):
    for path in write_files(tmp_path, monkeypatch):
        columns = {name: RECIPE[name] for name in ("problem_column", "solution_column")}
        problems = load_problems(str(path), **columns)
        assert problems[0]["prompt"] == [{"role": "user", "content": PROBLEM}]
        assert problems["solution"] == ["B"]
    topology = ThinkSolve(**{name: RECIPE[name] for name in ("thinker_prompt", "solver_prompt", "solo_prompt")})
    generate = {
        "thinker": lambda prompts: ["Tom is a cat. The answer is B."] * len(prompts),
        "solver": lambda prompts: ["Tom sleeps.\nAnswer: B"] * len(prompts),
    }
    episodes = run_team(topology, list(problems["prompt"]), generate, reader=verifier.reader)
    asked = {role: texts.prompts[0][-1]["content"] for role, texts in episodes.said.items()}
    assert asked["thinker"].startswith(PROBLEM) and "Answer:" not in asked["thinker"]
    assert asked["solver"].startswith(PROBLEM) and asked["solver"].endswith("Answer: <letter>")
    assert episodes.leaked == [True] and "Tom is a cat. The ." in asked["solver"]
    assert verifier.score(gold=problems["solution"], prediction=episodes.answers) == [1.0]
