"""Every recipe and every accelerate configuration, read by the real parsers."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from trl import ModelConfig, TrlParser, get_peft_config

from ccpo import MultiAgentGRPOConfig
from ccpo.arguments import TeamArguments
from ccpo.tasks import TASKS
from ccpo.training.checks import check_arguments

ROOT = Path(__file__).parents[1]
ACCELERATE = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path not in ACCELERATE)
PAPER = [path for path in RECIPES if path.parts[-3].startswith("Qwen") and "lora" not in path.stem]
DEMOS = [path for path in RECIPES if path.stem == "config_demo" and "arithmetic" in path.parts]


def name(path):
    return str(path.relative_to(ROOT / "recipes"))


def parse(path, *arguments):
    """The recipe as `examples/train_ccpo.py` reads it; on a CPU without bf16 where the recipe asks for a GPU."""
    command = ["--config", str(path), "--use_cpu", "true", "--bf16", "false", *arguments]
    return TrlParser((TeamArguments, MultiAgentGRPOConfig, ModelConfig)).parse_args_and_config(command)


def header(path):
    lines = path.read_text().splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def launch_commands(path):
    """The commands of a recipe's header, their continuation lines joined, as lists of words."""
    text = re.sub(r"\\\n#\s*", "", "\n".join(header(path)))
    return [
        shlex.split(line.removeprefix("# ")) for line in text.splitlines() if line.startswith("# accelerate launch")
    ]


def test_there_are_recipes():
    assert {"ccpo", "sepo", "shared", "c3", "vote", "dacr", "chain"} <= {path.parent.name for path in RECIPES}
    assert len(RECIPES) >= 15 and len(PAPER) >= 9 and len(DEMOS) == 7
    assert {path.stem for path in ACCELERATE} >= {"cpu", "ddp", "zero2", "zero3"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_parses_and_passes_every_check(path, tmp_path):
    team, args, model = parse(path, "--output_dir", str(tmp_path))
    assert set(yaml.safe_load(path.read_text())) <= {*vars(team), *vars(args), *vars(model)}
    prompts = args.generation_batch_size // args.num_generations
    topology = team.make_topology(*(() if team.dataset_name else (TASKS[team.task].topology,)))
    rows = Dataset.from_dict({"prompt": ["1+1?"] * prompts, "solution": ["2"] * prompts})
    check_arguments({}, [team.make_credit()], args, rows, topology, get_peft_config(model))
    assert (team.dataset_name is None) == bool({*TASKS} & {*path.parts})
    makes_models = team.dataset_name is None and TASKS[team.task].build_models
    assert makes_models or model.model_name_or_path or (team.thinker_model and team.solver_model)
    assert team.dataset_name is not None or team.task in path.parts
    folder = {"chain": "ccpo", "wordproblems": "shared"}.get(path.parent.name, path.parent.name)
    assert team.credit == folder or "smoke" in path.parts


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_is_short_and_says_how_to_launch_it(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 70
    assert max(map(len, text.splitlines())) <= 119
    assert any(line.startswith("# Needs: ") for line in header(path))
    for block in ("# Model", "# Data", "# Training"):
        assert f"\n{block}" in text
    commands = launch_commands(path)
    assert commands
    for words in commands:
        files = [word for word in words if word.endswith((".py", ".yaml"))]
        assert "examples/train_ccpo.py" in files and all((ROOT / file).is_file() for file in files)
        options = words[words.index("examples/train_ccpo.py") + 1 :]
        recipe = "recipes/arithmetic/c3/config_demo.yaml"
        if "--config" in options:
            place = options.index("--config")
            recipe = options.pop(place + 1)
            options.pop(place)
        assert ROOT / recipe == path
        parse(path, *options)  # its options exist


def test_output_folders_differ():
    folders = [yaml.safe_load(path.read_text())["output_dir"] for path in RECIPES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_paper_batches(path):
    """192 prompts x 16 per generation, 24 x 16 per optimizer step and 390 generation batches, on 8 processes."""
    _, args, _ = parse(path)
    processes = load_config_from_file(str(ROOT / "recipes" / "accelerate_configs" / "zero2.yaml")).num_processes
    micro_batch = args.per_device_train_batch_size * processes
    assert args.num_generations == 16
    assert micro_batch * args.steps_per_generation == 192 * 16
    assert micro_batch * args.gradient_accumulation_steps == 24 * 16
    steps_per_batch = args.steps_per_generation // args.gradient_accumulation_steps
    assert args.max_steps == 390 * steps_per_batch
    assert (args.schedule, args.alternate_period, args.start_role) == ("alternate", 10, "thinker")
    assert args.save_steps % (2 * args.alternate_period * steps_per_batch) == 0
    lengths = [args.for_role(role, "max_completion_length") for role in ("thinker", "solver")]
    assert lengths == [4096, 6144]


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_paper_optimisation(path):
    team, args, _ = parse(path)
    assert (args.learning_rate, args.lr_scheduler_type, args.weight_decay) == (1e-6, "constant", 0.01)
    assert (args.adam_beta1, args.adam_beta2, args.max_grad_norm) == (0.9, 0.999, 1.0)
    assert (args.beta, args.temperature, args.top_p, args.scale_rewards) == (0.0, 1.0, 1.0, "none")
    assert (team.eval_temperature, team.eval_top_p) == (1.0, 0.7)
    gspo = args.importance_sampling_level == "sequence"
    assert (args.epsilon, args.epsilon_high) == ((3e-4, 4e-4) if gspo else (0.2, None))
    assert args.loss_type == "grpo" or not gspo
    assert args.advantage_estimator == ("reinforce++" if "reinforce_pp" in path.stem else "group")


def test_lora_recipe_is_one_gpu_and_whole_mini_batches():
    path = ROOT / "recipes" / "Qwen2.5-1.5B-Instruct" / "ccpo" / "config_math_lora.yaml"
    team, args, model = parse(path)
    assert args.policy_sharing == "adapters" and get_peft_config(model).r == 32
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 24 * 16
    batches_per_step = args.gradient_accumulation_steps // args.steps_per_generation
    assert args.gradient_accumulation_steps % args.steps_per_generation == 0
    assert args.alternate_period == 10 * batches_per_step  # a block never ends inside an optimizer step
    # The header's count of a role's weights: r x (inputs + outputs) of q, k, v, o, gate, up and down in 28 layers.
    hidden, mlp, heads = 1536, 8960, 256
    sizes = 2 * (hidden + hidden) + 2 * (hidden + heads) + 3 * (hidden + mlp)
    assert sizes == 41_216 and round(model.lora_r * sizes * 28 / 1e6, 1) == 36.9
    assert "41,216" in path.read_text() and "36.9 M" in path.read_text()


def test_demos_differ_in_the_credit_only():
    fields = {path.parent.name: yaml.safe_load(path.read_text()) for path in DEMOS}
    credit = {
        "shared": set(),
        "ccpo": {"coef", "bonus", "baseline"},
        "sepo": {
            "self_weight",
            "credit_coef",
            "blame_coef",
            "center",
            "rating_mode",
            "rating_expectation",
            "rating_prompt",
        },
    }
    common = [
        {key: value for key, value in fields[scheme].items() if key not in {"credit", "output_dir", *own}}
        for scheme, own in credit.items()
    ]
    assert common[0] == common[1] == common[2]


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_configuration(path):
    config = load_config_from_file(str(path))
    kind = {"cpu": "NO", "ddp": "MULTI_GPU"}.get(path.stem, "DEEPSPEED" if "zero" in path.stem else "FSDP")
    assert config.distributed_type.value == kind
    assert config.use_cpu == (path.stem == "cpu")
    if "zero" in path.stem:
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])


def test_unknown_keys_are_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPES[0].read_text() + "learning_rat: 1\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse(tmp_path / "recipe.yaml")
    (tmp_path / "accelerate.yaml").write_text(ACCELERATE[0].read_text() + "num_proceses: 1\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(tmp_path / "accelerate.yaml"))
