"""The model card: its recipe is one that the command reads, its snippet runs as it stands."""

import re
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from test_checkpoints import make_args, make_trainer
from trl import ModelConfig, TrlParser

from ccpo import (
    ContextualCredit,
    CounterfactualCredit,
    CrossImprovementCredit,
    MathVerifier,
    MultiAgentGRPOConfig,
    SelfEvaluatedCredit,
    SharedCredit,
    ThinkSolve,
    VoteCredit,
    train,
)
from ccpo.arguments import TeamArguments, told_by
from ccpo.credit import HistoryNormalizer
from ccpo.rewards.schemes import SCHEMES
from ccpo.team.topology import make_topology
from ccpo.training.checkpoints import describe
from ccpo.training.recipe import credit_in_words, credit_of, recipe_of

VERIFIER = MathVerifier(timeout=2.0, answer_pattern="RESULT = (.+)")
ALLOCATORS = {
    "shared": SharedCredit(VERIFIER),
    "ccpo": CounterfactualCredit(VERIFIER, coef=0.0, history=HistoryNormalizer(decay=0.5)),
    "sepo": SelfEvaluatedCredit(VERIFIER, center=False, rating_mode="constrained", rating_expectation=True),
    "vote": VoteCredit(VERIFIER, mode="marginal"),
    "dacr": CrossImprovementCredit(VERIFIER, gamma=0.25, mode="segment"),
    "c3": ContextualCredit(VERIFIER),
}


def blocks(card: str, kind: str) -> dict[str, str]:
    """Heading -> its block."""
    found = re.findall(rf"^## ([^\n]*)\n(?:(?!^## ).)*?^(`{{3,}}){kind}\n(.*?)^\2$", card, re.DOTALL | re.MULTILINE)
    return {title: text for title, _, text in found}


def parse(recipe: str, folder: Path, *more: str):
    file = folder / "recipe.yaml"
    file.write_text(recipe)
    parser = TrlParser((TeamArguments, MultiAgentGRPOConfig, ModelConfig))
    return parser.parse_args_and_config(["--config", str(file), "--output_dir", str(folder / "again"), *more])


def snippet_of(card: str) -> str:
    return re.search(r"```python\n((?:(?!```).)*Team\.from_pretrained.*?)```", card, re.DOTALL)[1]


def test_every_scheme_has_words_and_fields_that_make_it_again(tmp_path):
    assert ALLOCATORS.keys() == SCHEMES.keys()
    args = make_args(tmp_path, policy_sharing="shared", schedule="joint")
    for name, allocator in ALLOCATORS.items():
        recipe = recipe_of(ThinkSolve(), [allocator], args)
        team, *_ = parse(yaml.safe_dump(recipe), tmp_path)
        assert team.credit == name and describe(team.make_credit()) == describe(allocator)
        assert team.make_credit().outcome.timeout == 2.0 and team.answer_pattern == "RESULT = (.+)"
        assert credit_in_words([allocator], []).endswith("An answer is judged by `math_verifier`.")
    own = [SharedCredit(VERIFIER), ContextualCredit(VERIFIER)]
    assert credit_of(own) == {} and "no fields for it: A(), B()" in credit_in_words(own, ["A()", "B()"])


@pytest.mark.parametrize("sharing", ["separate", "shared", "adapters"])
def test_a_script_leaves_a_card_whose_snippet_answers(sharing, model_dirs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = make_args("run", policy_sharing=sharing, max_steps=1, model_init_kwargs={"dtype": "float32"})
    lora = LoraConfig(r=4, target_modules=["q_proj"]) if sharing == "adapters" else None
    trainer = make_trainer(model_dirs, args, peft_config=lora)
    trainer.save_model()
    for agent in ("thinker", "solver"):
        card = Path("run", agent, "README.md").read_text()
        found = blocks(card, "yaml")
        assert make_topology(yaml.safe_load(found["The team"])["topology"]) == ThinkSolve()
        assert yaml.safe_load(found["Credit"])["credit"] == "ccpo"
        assert "A dataset without a name, made in memory, 8 rows, columns prompt, solution." in card
        assert "A script trained it: add `dataset_name`" in card and "'{" not in found["Recipe"]
        team, again, _ = parse(found["Recipe"], tmp_path)
        assert team.make_topology() == ThinkSolve()
        for name in ("policy_sharing", "alternate_period", "learning_rate", "steps_per_generation", "max_steps"):
            assert getattr(again, name) == getattr(args, name)
        assert again.model_init_kwargs == {"dtype": "float32"} and again.gradient_checkpointing is False
    capsys.readouterr()
    exec(snippet_of(card), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_command_leaves_a_card_that_trains_the_same_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--output_dir", "run", "--max_steps", "1", "--num_eval_problems", "0", "--warm_start_steps", "1"]
    options = ["--topology", "chain", "--credit", "ccpo", "--num_solves", "1", "--disable_tqdm", "true"]
    arguments = [*command, *options, "--per_device_train_batch_size", "8"]
    train.main(arguments)
    given = train.parse_arguments(arguments)
    card = Path("run", "adder", "README.md").read_text()
    again = parse(blocks(card, "yaml")["Recipe"], tmp_path)
    assert "`arithmetic`, " in card and again[0].task == "arithmetic" and again[0].warm_start_steps == 1
    (first, *_), (second, *_) = train.load_task(*given[:2]), train.load_task(*again[:2])
    assert first == second and describe(given[0].make_credit()) == describe(again[0].make_credit())
    differ = {name for name, value in vars(given[1]).items() if value != vars(again[1])[name]}
    of_the_run = {"output_dir", "logging_dir", "disable_tqdm", "distributed_state"}
    assert differ <= of_the_run | {"model_init_kwargs"} and again[1].model_init_kwargs["dtype"] == "float32"
    assert told_by(given[2]) == told_by(again[2])
    capsys.readouterr()
    exec(snippet_of(card), {})
    assert "7 + 12" in snippet_of(card) and capsys.readouterr().out.endswith("\n")
