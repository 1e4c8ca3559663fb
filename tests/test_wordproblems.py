"""Word problems: the split, the calculations, the prompts, the leak guard; and SmolLM2 where its package is there."""

import importlib.metadata
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo import MathVerifier, ThinkSolve
from ccpo.tasks import MODELS, TASKS
from ccpo.tasks.wordproblems import ANSWER_PATTERN, PACKAGE, build_dataset, build_smollm2, model, problems, teams
from ccpo.team.rollout import run_team

BOTH = {"two_steps": 0.5, "terms": (1, 20)}


def installed():
    return any(True for found in importlib.metadata.distributions() if found.name == PACKAGE)


def numbers(text):
    return sorted(map(int, re.findall(r"\d+", text)))


@pytest.mark.parametrize("options", [{}, BOTH], ids=["one step", "both"])
def test_no_training_problem_asks_for_a_held_out_calculation(options):
    held_out = build_dataset("test", **options)
    training = [row for seed in range(3) for row in build_dataset("train", 1500, seed=seed, **options)]
    assert len(held_out) == 600 and len(set(held_out["prompt"])) == 600
    assert not {row["prompt"] for row in training} & {*held_out["prompt"]}
    # in whatever order, and at whatever difficulty
    asked = {(re.sub(r"\d+", "", row["calculation"]), *numbers(row["calculation"])) for row in training}
    for other in ({}, BOTH):
        for calculation in build_dataset("test", **other)["calculation"]:
            if (
                "-" not in calculation
                and "(" not in calculation
                and calculation.count("*") + calculation.count("+") < 2
            ):
                assert (re.sub(r"\d+", "", calculation), *numbers(calculation)) not in asked


def test_a_reserved_calculation_is_reserved_in_both_orders():
    for form in problems.FORMS:
        if form != "{a} - {b}":
            assert all(
                problems.held_out(form, a, b, 3) == problems.held_out(form, b, a, 3)
                for a in range(1, 10)
                for b in range(1, 10)
            )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_problem_has_the_numbers_and_the_result_of_its_calculation(split):
    rows = build_dataset(split, 400, **BOTH)
    for row in rows:
        assert eval(row["calculation"]) == int(row["solution"]) > 0  # of our own text
        assert numbers(row["prompt"]) == numbers(row["calculation"])
        assert not re.search("[{}]", row["prompt"])
    two = sum(len(numbers(calculation)) == 3 for calculation in rows["calculation"])
    assert 140 < two < 260


def test_the_same_seed_gives_the_same_problems():
    assert build_dataset("train", 50, seed=3).to_dict() == build_dataset("train", 50, seed=3).to_dict()
    assert build_dataset("train", 50, seed=3)["prompt"] != build_dataset("train", 50, seed=4)["prompt"]
    assert build_dataset("test", 50, seed=3).to_dict() == build_dataset("test", 50, seed=4).to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "`split` must be 'train' or 'test', got 'dev'"),
        ({"size": 0}, "`size` must be an integer of at least 1, got 0"),
        ({"two_steps": 2}, r"`two_steps` must be a number in \[0, 1\], got 2"),
        ({"terms": (5, 1)}, "`terms` must be a pair of integers"),
        ({"factors": (1, 9)}, "`factors` must be a pair of integers, .* of at least 2"),
        (
            {"size": 10**6, "terms": (1, 2), "factors": (2, 3)},
            "this difficulty has only about .* Ask for fewer, or widen",
        ),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(**arguments)


def test_the_examples_are_right_and_not_held_out():
    held_out = {*build_dataset("test")["calculation"]}
    for problem, calculation, result in teams.EXAMPLES:
        assert eval(calculation) == int(result) and calculation not in held_out
        assert numbers(problem) == numbers(calculation)


def test_the_team_speaks_a_line_each():
    """The Solver reads the calculation behind the problem, with one blank; the guard takes a stated result out."""
    seen = {}

    def speaks(role, text):
        return lambda prompts: [seen.setdefault(role, prompts[0]), text][1:] * len(prompts)

    verifier, topology = MathVerifier(answer_pattern=ANSWER_PATTERN), TASKS["wordproblems"].topology("think_solve")
    assert isinstance(topology, ThinkSolve)
    problem = "Ida has 7 keys and finds 2. How many now?"
    for thought, read in (
        (" 7 + 2", " 7 + 2"),
        (" 7 + 2 = 9", " 7 + 2"),  # a leak
        (" 9", ""),
        (" (7 + 2) * 3", " (7 + 2) * 3"),
    ):
        generate = {"thinker": speaks("thinker", thought), "solver": speaks("solver", " = 9")}
        seen.clear()
        episodes = run_team(topology, [problem], generate, branches=[1, 1], reader=verifier.reader)
        assert seen["thinker"].splitlines()[-1] == problem and len(seen["thinker"].splitlines()) == 4
        assert seen["solver"].splitlines()[-1] == problem + read
        assert verifier.score(gold=["9"], prediction=episodes.answers) == [1.0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" = 9", True),
        ("9", True),
        (" 7 + 2 = 9", True),
        (" = 8", False),
        (" 9 + 2", False),
        ("9 keys", False),
        ("", False),
    ],
)
def test_where_an_answer_stands(text, right):
    (score,) = MathVerifier(answer_pattern=ANSWER_PATTERN).score(gold=["9"], prediction=[text])
    assert (score > 0) == right


def test_a_team_of_another_kind_is_taken_as_it_is():
    own = {"kind": "think_solve", "solo_prompt": "{problem}"}
    assert teams.topology(own).solo_prompt == "{problem}"
    assert teams.topology("solo").prompts == {"solver_prompt": teams.SINGLE_PROMPT}
    assert teams.topology("vote").kind == "vote"


@pytest.mark.parametrize("missing", [PACKAGE, "gguf"])
def test_a_missing_package_is_named_with_the_remedy(missing, monkeypatch, tmp_path):
    if missing == PACKAGE:
        monkeypatch.setattr(model.importlib.metadata, "files", lambda name: None)
    else:
        file = importlib.metadata.PackagePath("weights.gguf")
        file.dist = importlib.metadata.PathDistribution(tmp_path / "x.dist-info")
        (tmp_path / "weights.gguf").touch()
        monkeypatch.setattr(model.importlib.metadata, "files", lambda name: [file])
        monkeypatch.setattr(model, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{missing}, which .* is not installed. `make demo-llm` installs both"
    ):
        MODELS[PACKAGE](tmp_path / "model")


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason=f"the package {PACKAGE}, of 93 MB, is not installed")
def test_smollm2_is_a_folder_that_loads(tmp_path):
    folder = build_smollm2(tmp_path / "model")
    tokenizer, loaded = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32 and not hasattr(loaded.config, "quantization_config")
    assert tokenizer.chat_template is None
    ends = loaded.generation_config.eos_token_id
    assert tokenizer.eos_token_id in ends and tokenizer("\n")["input_ids"] == [198] and 198 in ends
    assert not any("\n" in tokenizer.decode(i) for i in range(len(tokenizer)) if i not in ends)
    assert tokenizer.pad_token_id == loaded.generation_config.pad_token_id is not None
    prompt = tokenizer(
        teams.SOLVER_PROMPT.format(problem="Sam has 5 pens and finds 4. How many now?", thought=" 5 + 4")
    )
    ids = torch.tensor([prompt["input_ids"]])
    said = loaded.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.size(1) :]
    assert tokenizer.decode(said[:-1]) == " = 9" and said[-1] in ends
    assert build_smollm2(tmp_path / "model") == folder  # not once more
