"""Every recipe and every accelerate configuration, read by the real parsers."""

import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from trl import ModelConfig, TrlParser, get_peft_config

from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer
from ccpo.arguments import TeamArguments
from ccpo.rewards.schemes import SCHEMES
from ccpo.tasks import TASKS, arithmetic
from ccpo.training.checks import check_arguments

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "study"))
from study_settings import count_tokens  # noqa: E402 (found by the line before)

ACCELERATE = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path not in ACCELERATE)
SINGLES = [path for path in RECIPES if path.parent.name == "single"]
PAPER = [path for path in RECIPES if path.parts[-3].startswith("Qwen") and "lora" not in path.stem]
PAPER_TEAMS = [path for path in PAPER if path not in SINGLES]
DEMOS = [path for path in RECIPES if path.stem == "config_demo" and "arithmetic" in path.parts]


def name(path):
    return str(path.relative_to(ROOT / "recipes"))


def parse(path, *arguments):
    """The recipe as `examples/train_ccpo.py` reads it; on a CPU without bf16 where the recipe asks for a GPU."""
    command = ["--config", str(path), "--use_cpu", "true", "--bf16", "false", *arguments]
    return TrlParser((TeamArguments, MultiAgentGRPOConfig, ModelConfig)).parse_args_and_config(command)


def topology_of(team):
    return team.make_topology(*(() if team.dataset_name else (TASKS[team.task].topology,)))


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
    assert len(RECIPES) >= 15 and len(PAPER_TEAMS) >= 9 and len(DEMOS) == 8
    assert {path.stem for path in ACCELERATE} >= {"cpu", "ddp", "zero2", "zero3"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_parses_and_passes_every_check(path, tmp_path):
    team, args, model = parse(path, "--output_dir", str(tmp_path))
    assert set(yaml.safe_load(path.read_text())) <= {*vars(team), *vars(args), *vars(model)}
    prompts = args.generation_batch_size // args.num_generations
    topology = topology_of(team)
    rows = Dataset.from_dict({"prompt": ["1+1?"] * prompts, "solution": ["2"] * prompts})
    check_arguments({}, [team.make_credit()], args, rows, topology, get_peft_config(model))
    assert (team.dataset_name is None) == any(task in name(path) for task in TASKS)
    makes_models = team.dataset_name is None and TASKS[team.task].build_models
    assert makes_models or model.model_name_or_path or (team.thinker_model and team.solver_model)
    assert team.dataset_name is not None or team.task in name(path)
    folders = {"chain": "ccpo", "single": "shared", "wordproblems": "shared"}
    assert team.credit == folders.get(path.parent.name, path.parent.name) or path.parent.name == "smoke"
    assert topology.is_solo == (path in SINGLES)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_is_short_and_says_how_to_launch_it(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 70
    assert max(map(len, text.splitlines())) <= 119
    assert header(path)[0].endswith(".")  # `ccpo recipes` lists it by this line
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


@pytest.mark.parametrize("path", PAPER_TEAMS, ids=name)
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


# ---- A policy alone at the team's cost ----

CLOSE = 0.03  # of a prompt's tokens


def tokens_of_a_prompt(team, args):
    """
    The most tokens that a prompt's texts may have in a generation batch, the mean over the turns of the schedule:
    every role's texts, passes without the roles that the credit asks about, and ratings in free text.
    """
    topology = topology_of(team)
    credit, names = team.make_credit(), topology.role_names
    longest = {role: args.sampling_of(role, topology.agent_of(role))["max_new_tokens"] for role in names}
    branches = topology.branches(args.num_solves)
    texts = {
        role: args.num_generations * math.prod(branches[: place + 1]) for place, role in enumerate(names)
    }  # of a prompt
    turns = [topology.roles_of(agent) for agent in topology.agents]
    totals = []
    for in_turn in [names] if args.schedule == "joint" or topology.is_solo else turns:
        total, evidence = sum(texts[role] * longest[role] for role in names), credit.evidence(topology, in_turn)
        for removed in evidence.removals:
            place = names.index(removed)
            if args.removal == "context" and place:
                passes, spoken = texts[names[place - 1]] * (args.num_solos or 1), names[:place]
            else:
                passes, spoken = args.num_solos or args.num_generations, ()
            total += passes * sum(longest[r.name] for r in topology.without(removed) if r.name not in spoken)
        if evidence.ratings and team.rating_mode == "generate":
            total += len(names) * texts[names[-1]] * team.rating_max_tokens
        totals.append(total)
    return sum(totals) / len(totals)


def test_tokens_of_a_prompt_by_hand():
    counts = {
        "arithmetic/shared/config_demo": 8 * (12 + 12),
        "arithmetic/ccpo/config_demo": 8 * (12 + 12) + 8 * 12,  # solos
        "arithmetic/sepo/config_demo": 8 * (12 + 12),  # ratings are read
        "arithmetic/c3/config_demo": 8 * 12 + 16 * 12,
        "arithmetic/vote/config_demo": 3 * 8 * 12,
        "arithmetic/dacr/config_demo": 6 * 8 * 12,
        # without the planner 8 passes of adder and solver; without the adder one solver behind each of 8 plans
        "arithmetic/chain/config_demo": 3 * 8 * 12 + 8 * (12 + 12) + 8 * 12,
        "Qwen2.5-1.5B-Instruct/sepo/config_math": 16 * (4096 + 6144) + 2 * 16 * 512,
        "Qwen2.5-1.5B-Instruct/ccpo/config_math": 16 * (4096 + 6144) + 16 * 6144 / 2,
        "Qwen2.5-1.5B-Instruct/ccpo/config_math_lora": 16 * (1024 + 2048) + 8 * 2048 / 2,
        # 4 + 8 + 8 + 8 texts. The strategist's turns: 4 passes of three without the planner, 8 answers without the
        # coder; the reviewer's: 4 passes of two without the critic.
        "smoke/config_team": 16 * (28 + (4 * 3 + 8 + 4 * 2) / 2),
    }
    for recipe, expected in counts.items():
        team, args, _ = parse(ROOT / "recipes" / f"{recipe}.yaml")
        assert tokens_of_a_prompt(team, args) == expected, recipe


def family(path):
    """Folder of the models, data, and whether LoRA is trained: what a team and a policy alone have in common."""
    team, _, model = parse(path)
    return path.relative_to(ROOT / "recipes").parts[0], team.dataset_name, model.use_peft


def test_every_family_of_recipes_has_a_policy_alone():
    missing = {family(path) for path in RECIPES} - {family(path) for path in SINGLES}
    assert not missing, f"no single/config_*.yaml for {missing}"


@pytest.mark.parametrize("path", SINGLES, ids=name)
def test_a_policy_alone_costs_what_its_team_costs(path):
    """Tokens and prompts of an update, and the steps made of it, from both recipes as they are parsed."""
    (other,) = re.findall(r"^# Tokens per update, at full length, match (\S+?)[:;]", path.read_text(), re.MULTILINE)
    assert family(ROOT / other) == family(path)
    (mine, my_args, my_model), (theirs, their_args, their_model) = parse(path), parse(ROOT / other)
    assert tokens_of_a_prompt(mine, my_args) == pytest.approx(tokens_of_a_prompt(theirs, their_args), rel=CLOSE)
    alone = None if theirs.dataset_name else TASKS[theirs.task].single_prompt
    lengths = {role: their_args.for_role(role, "max_completion_length") for role in ("thinker", "solver")}
    assert my_args.max_completion_length == (sum(lengths.values()) if alone else lengths["solver"])
    alone = alone or topology_of(theirs).prompts["solo_prompt"]
    assert topology_of(mine).prompts == {"solver_prompt": alone}
    assert my_model.model_name_or_path == (their_model.model_name_or_path or theirs.solver_model)
    for args in (my_args, their_args):
        assert args.generation_batch_size % args.num_generations == 0
    prompts = [args.generation_batch_size // args.num_generations for args in (my_args, their_args)]
    steps = [args.gradient_accumulation_steps / args.steps_per_generation for args in (my_args, their_args)]
    assert prompts[0] == prompts[1] and steps[0] == steps[1] and my_args.max_steps == their_args.max_steps


def length_is_even(completions, **kwargs):
    return [1.0 if len(text) % 2 == 0 else -1.0 for text in completions]


def test_what_a_run_generates_is_what_the_recipes_say(tmp_path):
    """
    Random policies write to the limit, but for the end that they may happen upon: one step of both recipes. A verifier
    that has little to say of what they write stands in for the real one.
    """
    tokenizer, counts = arithmetic.build_tokenizer(), {}
    arithmetic.build_policy(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for scheme in ("c3", "single"):
        given = ["--max_steps", "1", "--logging_steps", "1", "--output_dir", str(tmp_path / scheme)]
        path = ROOT / "recipes" / "arithmetic" / scheme / "config_demo.yaml"
        team, args, _ = parse(path, *given, "--disable_tqdm", "true")
        topology = team.make_topology(arithmetic.topology)
        trainer = MultiAgentGRPOTrainer(
            str(tmp_path / "model"),
            SCHEMES[team.credit](length_is_even),
            args,
            arithmetic.build_dataset("train"),
            topology=topology,
        )
        trainer.train()
        counts[scheme] = count_tokens(trainer.state.log_history[0], args.generation_batch_size)
        prompts = args.generation_batch_size // args.num_generations
        assert counts[scheme] == pytest.approx(prompts * tokens_of_a_prompt(team, args), rel=0.1)
    assert counts["single"] == pytest.approx(counts["c3"], rel=0.1)


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
