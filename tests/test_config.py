"""Bad input: an error that names field, value and remedy, before any model loads."""

import dataclasses
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from datasets import Dataset
from peft import LoraConfig
from trl import ModelConfig, TrlParser

from ccpo import (
    AnswerCritiqueRewrite,
    Chain,
    CounterfactualCredit,
    MathVerifier,
    MultiAgentGRPOConfig,
    MultiAgentGRPOTrainer,
    SelfEvaluatedCredit,
    SharedCredit,
    Solo,
    ThinkSolve,
    Vote,
)
from ccpo import train as module
from ccpo.arguments import TeamArguments
from ccpo.rewards import Evidence
from ccpo.training.models import models_by_agent
from ccpo.training.numbers import ROLE_NUMBERS, read_number

ROOT = Path(__file__).parents[1]
PARSER = (TeamArguments, MultiAgentGRPOConfig, ModelConfig)
CPU = ["--output_dir", "out", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Loading or building a model fails the test."""

    def fail(*args, **kwargs):
        pytest.fail("a model was loaded before the arguments were checked")

    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", fail)
    monkeypatch.setattr(transformers.PreTrainedModel, "__init__", fail)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", fail)


@pytest.fixture
def build(model_dirs, chat_dataset, make_config, outcome):
    """Build a trainer; keyword arguments replace its arguments, `config` fields of the configuration."""

    def build(config=None, **kwargs):
        arguments = {
            "model": model_dirs["qwen3"],
            "reward_funcs": CounterfactualCredit(outcome),
            "args": make_config(**config or {}),
            "train_dataset": chat_dataset,
        }
        return MultiAgentGRPOTrainer(**arguments | kwargs)

    return build


def test_the_guard_sees_a_model_load(build):
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        build()


# ---- The configuration alone ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"policy_sharing": "both"},
            r"`policy_sharing` must be one of \['separate', 'shared', 'adapters'\], got 'both'",
        ),
        ({"schedule": "random"}, r"`schedule` must be one of \['alternate', 'joint'\], got 'random'"),
        ({"advantage_estimator": "gae"}, r"`advantage_estimator` must be one of \['group', .*\], got 'gae'"),
        ({"num_solves": 0}, "`num_solves` must be an integer of at least 1, got 0"),
        ({"num_solos": -1}, "`num_solos` must be an integer of at least 1, got -1"),
        ({"alternate_period": 0.5}, "`alternate_period` must be an integer of at least 1, got 0.5"),
        (
            {"advantage_estimator": "reinforce++", "scale_rewards": "group"},
            r"`advantage_estimator='reinforce\+\+'` already divides .* `scale_rewards` must be 'none', got 'group'",
        ),
        (
            {"advantage_estimator": "counterfactual", "multi_objective_aggregation": "normalize_then_sum"},
            "`multi_objective_aggregation='normalize_then_sum'` .* needs `advantage_estimator='group'`, got 'counterf",
        ),
        (
            {"advantage_estimator": "counterfactual", "scale_rewards": "batch"},
            "`advantage_estimator='counterfactual'` needs `scale_rewards='none'`, got 'batch', .* Set `scale_rewards",
        ),
        ({"robust_alpha": -5}, r"`robust_alpha=-5` works only with `advantage_estimator='robust'`, got 'group'"),
        (
            {"advantage_estimator": "robust", "eval_strategy": "steps", "num_generations_eval": 2},
            "`robust_blocks` must be an odd number from 1 to `num_generations_eval=2`, got 3",
        ),
        ({"role_kwargs": {"thinker": 4096}}, r"`role_kwargs\['thinker'\]` must be a mapping, got 4096"),
        (
            {"role_kwargs": {"thinker": {"max_tokens": 1}}},
            r"`role_kwargs\['thinker'\]` has the unknown keys \['max_tokens'\]. Known keys are "
            r"\['max_completion_length'",
        ),
        (
            {"role_kwargs": {"solver": {"temperature": 0}}},
            r"`role_kwargs\['solver'\]\['temperature'\]` must be a finite number > 0, got 0",
        ),
        (
            {"role_kwargs": {"solver": {"max_completion_length": None}}},
            r"`role_kwargs\['solver'\]\['max_completion_length'\]` must be an integer of at least 1, got None",
        ),
        (
            {"role_kwargs": {"solver": {"learning_rate": "fast"}}},
            r"`role_kwargs\['solver'\]\['learning_rate'\]` must be a finite number >= 0, got 'fast'",
        ),
        (
            {"policy_sharing": "shared", "role_kwargs": {"solver": {"learning_rate": 1e-6}}},
            r"\['learning_rate'\]` cannot be set with `policy_sharing='shared'`.*Set `learning_rate`, or use",
        ),
        (
            {"per_device_train_batch_size": 6, "num_generations": 4},
            r"\(6\) must be divisible by num_generations \(4\).*`per_device_train_batch_size=6` x 1 processes x "
            "`steps_per_generation=1`.*Change one of these",
        ),
        (
            {"per_device_train_batch_size": 4, "generation_batch_size": 6},
            r"generation_batch_size \(6\) must be divisible by the global batch size \(4\).*Change one of these",
        ),
        (
            {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3},
            r"eval batch size \(3 \* 1\) must be divisible .*\(4\).*`per_device_eval_batch_size=3`.*Change one",
        ),
        ({"num_generations": 1}, "at least 2 generations per prompt"),
    ],
)
def test_configuration(fields, message, make_config):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("vllm_gpu_memory_utilization", (0, 1.5), r"a number in \(0, 1\]"),
        ("vllm_server_port", (0, 65536, "x"), "a port, 1 to 65535"),
        ("max_completion_length", (8.5, "8.5", 8.0, 0, True, float("inf")), "an integer of at least 1"),
        ("learning_rate", (-1e-6, float("inf"), "nan", None, False), "a finite number >= 0"),
        ("temperature", (0, -1, "inf", float("nan"), None), "a finite number > 0"),
        ("top_p", (0, 1.1, "much", None), r"a number in \(0, 1\]; 1 switches it off"),
        ("top_k", (-1, 0.5, None), "an integer >= 0; 0 switches it off"),
        ("min_p", (-0.1, 1.5, "nan"), r"None or a number in \[0, 1\]; None switches it off"),
        ("repetition_penalty", (0, "inf", None), "a finite number > 0; 1 switches it off"),
    ],
)
def test_number_values(key, values, words, make_config):
    """One rule for the common field, a role's own and what overrides it."""
    for value in values:
        with pytest.raises(ValueError, match=rf"`role_kwargs\['solver'\]\['{key}'\]` must be {words}, got .+"):
            make_config(role_kwargs={"solver": {key: value}})
        if (key, value) != ("max_completion_length", None):  # TRL's for "no limit"
            with pytest.raises(ValueError, match=rf"^`{key}` must be {words}, got .+"):
                make_config(**{key: value})
        if key in ("temperature", "top_p", "min_p", "repetition_penalty") and value is not None:
            with pytest.raises(ValueError, match=rf"^`generation_kwargs\['{key}'\]` must be {words}, got .+"):
                make_config(generation_kwargs={key: value})
            with pytest.raises(ValueError, match=rf"\['solver'\]\['generation_kwargs'\]\['{key}'\]` must be {words}"):
                make_config(role_kwargs={"solver": {"generation_kwargs": {key: value}}})


def test_every_number_of_a_role_is_a_field_whose_default_keeps_its_rule(make_config):
    config = make_config()
    for key in ROLE_NUMBERS:
        assert read_number(key, key, getattr(config, key), may_be_none=True) == getattr(config, key)
    assert make_config(max_completion_length=None).max_completion_length is None
    assert make_config(temperature="0.5").temperature == 0.5 and make_config(top_k=np.int64(3)).top_k == 3


def test_role_kwargs_values_at_their_limits_and_as_strings(make_config):
    good = {"learning_rate": 0, "top_p": 1, "top_k": 0, "min_p": None, "repetition_penalty": 1.1}
    texts = {"max_completion_length": "4096", "learning_rate": "1e-6", "top_p": "0.5", "top_k": "20", "min_p": "1"}
    config = make_config(role_kwargs={"thinker": good, "solver": texts})
    assert config.role_kwargs["thinker"] == good
    read = config.role_kwargs["solver"]
    assert list(read.values()) == [4096, 1e-6, 0.5, 20, 1]
    assert [type(value) for value in read.values()] == [int, float, float, int, float]


def test_role_kwargs_override_and_yaml_numbers_are_read(make_config):
    config = make_config(
        role_kwargs={"thinker": {"learning_rate": "1e-6", "max_completion_length": 4}}, temperature=0.9
    )
    assert config.for_role("thinker", "learning_rate") == 1e-6
    assert config.for_role("thinker", "max_completion_length") == 4
    assert config.for_role("solver", "max_completion_length") == 8
    assert config.for_role("thinker", "temperature") == config.for_role("solver", "temperature") == 0.9


def test_one_temperature_for_all_roles_may_stand_in_role_kwargs(make_config):
    temperatures = {role: {"temperature": 0.7} for role in ("thinker", "solver")}
    make_config(policy_sharing="adapters", role_kwargs=temperatures)


def test_paper_values_are_the_defaults(make_config):
    config = make_config()
    assert (config.policy_sharing, config.schedule, config.alternate_period) == ("separate", "alternate", 10)
    assert (config.advantage_estimator, config.scale_rewards, config.num_solves) == ("group", "none", 1)
    assert config.ddp_find_unused_parameters is True  # the role out of turn has unused parameters
    assert make_config(policy_sharing="shared").ddp_find_unused_parameters is None
    assert make_config(scale_rewards=True).scale_rewards == "group"


# ---- The trainer's arguments together ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"policy_sharing": "adapters"},
            r"`policy_sharing='adapters'` needs `peft_config` \(got None\): pass peft.LoraC",
        ),
        (
            {"start_role": "judge"},
            r"`start_role='judge'` is neither a role nor an agent .* agents \['thinker', 'solver'\]: name",
        ),
        (
            {"role_kwargs": {"judge": {}}},
            r"`role_kwargs` names \['judge'\], which are not in the topology. It has \[",
        ),
        (
            {"policy_sharing": "adapters", "role_kwargs": {"solver": {"temperature": 0.5}}},
            r"`temperature` must be the same for all roles of one model, .* got {'thinker': 1.0, 'solver': 0.5} with "
            "`policy_sharing='adapters'`. Set `temperature`",
        ),
        (
            {
                "use_vllm": True,
                "role_kwargs": {role: {"vllm_gpu_memory_utilization": 0.6} for role in ("thinker", "solver")},
            },
            r"`vllm_gpu_memory_utilization` of the agents' engines is {'thinker': 0.6, 'solver': 0.6}. Together "
            r"this is more th",
        ),
        (
            {"use_vllm": True, "vllm_mode": "server"},
            "`vllm_mode='server'` needs a different server for each agent, got .*8000.* Set them in "
            "`role_kwargs`, or set `vllm_",
        ),
        (
            {"use_vllm": True, "vllm_mode": "server", "role_kwargs": {"solver": {"vllm_server_port": 8001}}},
            r"`vllm_mode='server'` needs a different group port \(`vllm_group_port`\) for each agent, got .*51216.*",
        ),
        (
            {
                "use_vllm": True,
                "vllm_mode": "server",
                "vllm_server_base_url": "http://one:8000",
                "role_kwargs": {"solver": {"vllm_server_port": 8001, "vllm_group_port": 51217}},
            },
            "needs a different server for each agent, got {'thinker': 'http://one:8000', 'solver': 'http://one:8000'}",
        ),
        (
            {"use_vllm": True, "vllm_enable_sleep_mode": True},
            "`vllm_enable_sleep_mode=True` allows only one vLLM engine per process.* Set `vllm_engine_per_role=False`",
        ),
        (
            {"use_vllm": True, "policy_sharing": "shared", "role_kwargs": {"solver": {"vllm_server_port": 8001}}},
            r"`role_kwargs` sets {'solver': \['vllm_server_port'\]}, but all agents use one vLLM engine",
        ),
        ({"role_kwargs": {"solver": {"vllm_server_port": 0}}}, r"\['vllm_server_port'\]` must be a port, 1 to 65535"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "FSDP1 flattens .* Use FSDP2: `fsdp_version: 2`"),
        (
            {"enable_jit_checkpoint": True},
            "`enable_jit_checkpoint=True` saves inside a step.*SIGTERM saves after the step",
        ),
        ({"merge_adapters": True}, r"`merge_adapters=True` needs `peft_config` \(got None\)"),
        (
            {"alternate_period": 5, "steps_per_generation": 2, "num_iterations": 3, "gradient_accumulation_steps": 4},
            "`alternate_period=5` x `steps_per_generation=2` x `num_iterations=3` = 30 micro-batches .*"
            "`gradient_accumulation_steps=4`.* Make `alternate_period` a multiple of 2, e.g. 6, or use `schedule='j",
        ),
    ],
)
def test_configuration_against_the_topology(config, message, build):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_what_is_an_agents_is_said_of_agents(build, outcome):
    """Of a team whose agents have other names than its roles."""
    team = {"topology": AnswerCritiqueRewrite(), "reward_funcs": SharedCredit(outcome)}
    names = r"has the roles \['answer_a', .*\] and the agents \['a', 'b'\]: name one"
    with pytest.raises(ValueError, match=f"`start_role='judge'` is neither a role nor an agent .* {names}"):
        build({"start_role": "judge"}, **team)
    with pytest.raises(ValueError, match="`model` of agent 'a': './nowhere' could not be found"):
        build(model="./nowhere", **team)


@pytest.mark.parametrize(
    ("config", "topology"),
    [
        ({"alternate_period": 6}, ThinkSolve()),
        ({"alternate_period": 5, "schedule": "joint"}, ThinkSolve()),
        ({"alternate_period": 5}, Solo()),
    ],
)
def test_blocks_of_whole_optimizer_steps(config, topology, build, outcome):
    accumulation = {"steps_per_generation": 2, "num_iterations": 3, "gradient_accumulation_steps": 4}
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # all checks passed
        build(accumulation | config, topology=topology, reward_funcs=SharedCredit(outcome))


def test_one_engine_for_two_architectures(build, make_config, model_dirs):
    args = make_config(use_vllm=True, vllm_engine_per_role=False)
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    with pytest.raises(
        ValueError, match=r"the models of 'thinker' and 'solver' differ in \[.*'model_type'.*\]. Set `vllm_e"
    ):
        build(args=args, model=model)


def test_vllm_with_whole_modules_in_the_adapters(build, make_config):
    args = make_config(use_vllm=True, policy_sharing="adapters")
    with pytest.raises(
        ValueError, match=r"cannot load `modules_to_save=\['lm_head'\]` of several adapters into vLLM. Set it to N"
    ):
        build(args=args, peft_config=LoraConfig(modules_to_save=["lm_head"]))


def test_a_regex_would_be_forced_on_ratings(build, make_config, outcome):
    args = make_config(use_vllm=True, vllm_structured_outputs_regex="[ab]+")
    with pytest.raises(
        ValueError, match=r"`vllm_structured_outputs_regex='\[ab\]\+'` would also be forced on the ratings"
    ):
        build(args=args, reward_funcs=SelfEvaluatedCredit(outcome))


def test_one_engine_has_one_tokenizer(build, make_config, model_dirs):
    kinds = {"thinker": "qwen3", "solver": "llama"}
    tokenizers = {role: transformers.AutoTokenizer.from_pretrained(model_dirs[kind]) for role, kind in kinds.items()}
    args = make_config(use_vllm=True, vllm_engine_per_role=False)
    with pytest.raises(
        ValueError, match="`processing_class`: one vLLM engine has one tokenizer, but those of the agents"
    ):
        build(args=args, processing_class=tokenizers)


def test_vllm_of_a_model_from_nowhere(build, make_config, model_dirs):
    class Model:
        config = transformers.AutoConfig.from_pretrained(model_dirs["qwen3"])

    Model.config._name_or_path = ""
    args = make_config(use_vllm=True, policy_sharing="shared")
    with pytest.raises(
        ValueError, match="`use_vllm=True` needs an id or a folder .* agent 'thinker', .* Save it with save_pr"
    ):
        build(args=args, model=Model())


def test_zero3_without_gathered_weights(build, make_config):
    args = make_config()
    config = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}}
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config=config, zero_stage=3)
    with pytest.raises(ValueError, match="weights_on_model_save=False`, with which the agents cannot be saved"):
        build(args=args)


@pytest.mark.parametrize("sharing", ["separate", "adapters"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ddp_find_unused_parameters": False}, "`ddp_find_unused_parameters=False` does not go with DDP"),
        ({"ddp_static_graph": True}, "`ddp_static_graph=True` does not go with DDP"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            r"`gradient_checkpointing_kwargs={'use_reentrant': True}` does .* Set 'use_reentrant' to False, or use",
        ),
    ],
)
def test_what_ddp_cannot_do_while_roles_take_turns(config, message, sharing, build, monkeypatch):
    peft = LoraConfig(r=4) if sharing == "adapters" else None
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # one process: no DDP
        build({"policy_sharing": sharing, **config}, peft_config=peft)
    monkeypatch.setattr(MultiAgentGRPOConfig, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match=message):
        build({"policy_sharing": sharing, **config}, peft_config=peft)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        build({"policy_sharing": "shared", **config})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        build({"policy_sharing": sharing, **config}, peft_config=peft)


def test_peft_config_that_is_a_mapping(build):
    with pytest.raises(TypeError, match=r"`peft_config` must be a peft.PeftConfig .* got dict {'r': 4}. Build one"):
        build(peft_config={"r": 4})


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_images_for_roles_that_read_text(name, build, chat_dataset, make_config):
    pictures = chat_dataset.add_column("image", [None] * len(chat_dataset))
    with pytest.raises(ValueError, match=rf"`{name}` has the column 'image'.*`{name}.remove_columns\(\['image'\]\)`"):
        build(**{name: pictures})


def test_one_model_has_one_set_of_special_tokens(build, model_dirs):
    kinds = {"thinker": "qwen3", "solver": "llama"}
    tokenizers = {role: transformers.AutoTokenizer.from_pretrained(model_dirs[kind]) for role, kind in kinds.items()}
    with pytest.raises(ValueError, match="`processing_class`: one model has one set of special tokens, but those of"):
        build({"policy_sharing": "shared"}, processing_class=tokenizers)


def test_fsdp1_from_accelerate(build, monkeypatch, make_config):
    args = make_config()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP1 flattens"):
        build(args=args)


def test_deepspeed_optimizer(build, make_config):
    args = make_config()
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={"optimizer": {"type": "AdamW"}}, zero_stage=2)
    with pytest.raises(
        ValueError, match="config must not define an optimizer with several roles: .*'AdamW'.* Remove the block; lr, b"
    ):
        build(args=args)
    args.deepspeed_plugin.deepspeed_config = {"zero_optimization": {"stage": 2}}
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # all checks passed
        build(args=args)


def test_paired_baseline_needs_as_many_solos_as_thoughts(build, outcome):
    with pytest.raises(
        ValueError, match="`baseline='paired'` .* without 'thinker' .*`num_solos=2` and 4. Make them equal"
    ):
        build({"num_solos": 2}, reward_funcs=CounterfactualCredit(outcome, baseline="paired"))
    settings = {"num_solos": 4, "num_generations_eval": 2, "eval_strategy": "steps", "per_device_eval_batch_size": 4}
    with pytest.raises(ValueError, match="fits `num_generations=4`, but not `num_generations_eval=2`"):
        build(settings, reward_funcs=CounterfactualCredit(outcome, baseline="paired"))


@pytest.mark.parametrize(
    "fields",
    [{"num_solos": 2}, {"removal": "context"}, {"skip_uninformative_solos": True}],
    ids=lambda f: next(iter(f)),
)
def test_what_is_of_passes_that_nobody_draws(fields, build, outcome, chat_dataset):
    ((name, value),) = fields.items()
    with pytest.raises(
        ValueError,
        match=f"`{name}={value!r}` has no effect: it is for answers of the team without a role, and "
        f"`shared_credit` needs none",
    ):
        build(fields, reward_funcs=SharedCredit(outcome))
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        build(fields, reward_funcs=CounterfactualCredit(outcome))
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # its bonus switched off
        build(fields, reward_funcs=CounterfactualCredit(outcome, coef=0))
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # evaluated by hand
        build(fields, reward_funcs=SharedCredit(outcome), eval_dataset=chat_dataset)
    evaluates = fields | {"eval_strategy": "steps"}
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # an evaluation draws them
        build(evaluates, reward_funcs=SharedCredit(outcome), eval_dataset=chat_dataset)
    with pytest.raises(
        ValueError, match=f"`{name}={value!r}` has no effect: it is for answers of the team without a role"
    ):  # but of no such team
        build(evaluates, reward_funcs=SharedCredit(MathVerifier()), eval_dataset=chat_dataset, topology=Vote(2))


def test_what_is_for_the_stock_trainer_is_refused(build, outcome):
    for name, value in (("partner", len), ("partners", {"solver": len}), ("topology", Chain(["first", "second"]))):
        with pytest.raises(
            ValueError, match=f"`{name}` of `shared_credit` has no effect here: it is for TRL's own GRPOTrainer"
        ):
            build(reward_funcs=SharedCredit(outcome, **{name: value}))
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        build(reward_funcs=SharedCredit(outcome, topology="think_solve"))  # the trainer's


def test_evidence_that_cannot_be_shown(build, outcome):
    class Asks(SharedCredit):
        def evidence(self, topology, roles):
            return self.asked

    for asked, message in (
        (Evidence(("nobody",)), r"asks for `removals` of \['nobody'\]"),
        (Evidence("thinker"), "asks for `removals` of 'thinker', which cannot be. Give a tuple"),
        (Evidence(ratings=True), "asks for `ratings`, but the class has no `rate`"),
    ):
        credit = Asks(outcome)
        credit.asked = asked
        with pytest.raises(ValueError, match=message):
            build(reward_funcs=credit)


@pytest.mark.parametrize("weights", [[float("nan")], ["a"], [True], "1"])
def test_weights_are_finite_numbers(weights, build):
    with pytest.raises(ValueError, match="`reward_weights` must be a list of finite numbers"):
        build({"reward_weights": weights})


@pytest.mark.parametrize("credit", [CounterfactualCredit, SelfEvaluatedCredit])
def test_credit_between_roles_needs_two(credit, build, outcome):
    with pytest.raises(
        ValueError,
        match=r"cannot divide credit in this `topology`: .* has the roles \['solver'\] \(solo\). Use SharedCredit, or",
    ):
        build(reward_funcs=credit(outcome), topology=Solo())


def test_counterfactual_estimator_needs_a_thinker(build, outcome):
    with pytest.raises(ValueError, match="`advantage_estimator='counterfactual'` needs a chain .*'solver'"):
        build({"advantage_estimator": "counterfactual"}, reward_funcs=SharedCredit(outcome), topology=Solo())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"thinker": "a", "judge": "b"}, r"`model` names \['judge'\], .* agents are \['thinker', 'solver'\]"),
        ({"thinker": "a"}, r"`model` has no entry for \['solver'\]. Give one model, or one per agent"),
    ],
)
def test_model_per_role(model, message, build):
    with pytest.raises(ValueError, match=message):
        build(model=model)


def test_several_models_need_separate_policies():
    with pytest.raises(
        ValueError, match="`policy_sharing='shared'` uses one model .* set `policy_sharing='separate'`"
    ):
        models_by_agent({"thinker": "a", "solver": "b"}, "shared", ThinkSolve())
    one = object()
    with pytest.raises(ValueError, match="the same object to several agents .* set `policy_sharing='shared'`"):
        models_by_agent({"thinker": one, "solver": one}, "separate", ThinkSolve())
    assert models_by_agent("a", "separate", ThinkSolve()) == {"thinker": "a", "solver": "a"}


@pytest.mark.parametrize("model", ["nobody/no-such-model", "./no_such_folder"])
def test_model_that_is_not_there(model, build):
    with pytest.raises(
        ValueError, match=f"`model` of agent 'thinker': '{model}' could not be found or read. Give a fold"
    ):
        build(model=model)


def test_model_of_one_role_that_is_not_there(build, model_dirs):
    with pytest.raises(ValueError, match="`model` of agent 'solver': './nowhere' could not be found"):
        build(model={"thinker": model_dirs["qwen3"], "solver": "./nowhere"})


def test_reference_of_an_object_from_nowhere(build, model_dirs):
    class Model:
        config = transformers.AutoConfig.from_pretrained(model_dirs["qwen3"])

    Model.config._name_or_path = ""
    with pytest.raises(ValueError, match="`beta=0.1` needs a reference.*agent 'thinker' came from nowhere. Save it"):
        build({"beta": 0.1}, model=Model())


def test_dataset_missing_or_empty(build, chat_dataset):
    with pytest.raises(ValueError, match="`train_dataset` is required, got None"):
        build(train_dataset=None)
    with pytest.raises(ValueError, match=r"`train_dataset` is empty \(0 rows\). Check its split and filters"):
        build(train_dataset=chat_dataset.select([]))


@pytest.mark.parametrize("column", ["prompt", "solution"])
def test_dataset_without_a_column(column, build, chat_dataset):
    dataset = chat_dataset.rename_column(column, "other")
    with pytest.raises(
        ValueError, match=rf"`train_dataset` has no column '{column}'; it has .*'other'.*Rename it, e.g"
    ):
        build(train_dataset=dataset, reward_funcs=SharedCredit(MathVerifier()))


@pytest.mark.parametrize("column", ["prompt", "solution"])
def test_eval_dataset_without_a_column(column, build, chat_dataset):
    bad = chat_dataset.rename_column(column, "other")
    for given, name in ((bad, "`eval_dataset`"), ({"easy": chat_dataset, "hard": bad}, r"`eval_dataset\['hard'\]`")):
        with pytest.raises(ValueError, match=rf"{name} has no column '{column}'; it has .*'other'.*Rename it, e.g"):
            build(eval_dataset=given, reward_funcs=SharedCredit(MathVerifier()))


def test_eval_dataset_empty(build, chat_dataset):
    empty = chat_dataset.select([])
    for given, name in ((empty, "`eval_dataset`"), ({"easy": empty}, r"`eval_dataset\['easy'\]`")):
        with pytest.raises(ValueError, match=rf"{name} is empty \(0 rows\). Check its split and filters"):
            build(eval_dataset=given)


def test_processing_class_of_a_role_that_is_not_there(build, model_dirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    with pytest.raises(
        ValueError, match=r"`processing_class` names \['judge'\], .* agents are \['thinker', 'solver'\]. Rename"
    ):
        build(processing_class={"thinker": tokenizer, "judge": tokenizer})
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # a missing role is loaded with its model
        build(processing_class={"thinker": tokenizer})


@pytest.mark.parametrize("role", ["thinker", "solver"])
def test_conversational_prompts_need_a_chat_template(role, build, model_dirs):
    tokenizers = {
        name: transformers.AutoTokenizer.from_pretrained(model_dirs["qwen3"]) for name in ("thinker", "solver")
    }
    tokenizers[role].chat_template = None
    with pytest.raises(
        ValueError, match=f"conversational prompts, but the tokenizer of agent '{role}' has no chat tem.*Set"
    ):
        build(processing_class=tokenizers)


def test_object_from_nowhere_needs_its_tokenizer(build, model_dirs):
    class Model:
        config = transformers.AutoConfig.from_pretrained(model_dirs["qwen3"])

    Model.config._name_or_path = ""
    with pytest.raises(ValueError, match="`processing_class` of agent 'thinker' is None .* Pass it"):
        build(model=Model())


def test_several_roles_exchange_text_only(build):
    with pytest.raises(ValueError, match="`processing_class` of agent 'thinker' must be a tokenizer, got object"):
        build(processing_class=object())


@pytest.mark.parametrize("name", ["thinker_prompt", "solver_prompt", "solo_prompt"])
def test_template_without_its_fields(name):
    with pytest.raises(ValueError, match=rf"`{name}` must contain {{problem}}, got 'Solve it.'"):
        ThinkSolve(**{name: "Solve it."})


# ---- The command line ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coef", "-0.1"], "`coef` must be a finite number >= 0, got -0.1. Use 0 to switch"),
        (["--coef", "nan"], "`coef` must be a finite number >= 0, got nan"),
        (["--credit", "sepo", "--credit_coef", "-1"], "`credit_coef` must be a finite number >= 0, got -1"),
        (["--credit", "sepo", "--blame_coef", "-1"], "`blame_coef` must be a finite number >= 0, got -1"),
        (["--credit", "sepo", "--self_weight", "1.5"], "`self_weight` must be between 0 and 1, got 1.5"),
        (["--bonus", "prize"], "`bonus` must be 'event' or 'difference', got 'prize'"),
        (["--baseline", "mean"], "`baseline` must be 'group' or 'paired', got 'mean'"),
        (["--credit", "sepo", "--rating_mode", "stars"], "`rating_mode` must be .*, got 'stars'"),
        (["--credit", "sepo", "--rating_expectation", "true"], "`rating_expectation=True` needs .*'constrained'"),
        (
            ["--credit", "sepo", "--rating_max_tokens", "0"],
            "`rating_max_tokens` must be an integer of at least 1, got 0",
        ),
        (["--answer_pattern", "RESULT"], "`answer_pattern` must have exactly one group, got 0 in 'RESULT'"),
        (["--answer_pattern", "("], "`answer_pattern` must be a regular expression, got"),
        (["--verifier_timeout", "-1"], "timeout must be a positive number of seconds, got -1"),
    ],
)
def test_credit_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrlParser(PARSER).parse_args_and_config([*CPU, *arguments])


def test_unknown_credit(capsys):
    with pytest.raises(ValueError, match=r"`credit` must be one of \['shared', 'ccpo', 'sepo', .*\], got 'luck'"):
        TeamArguments(credit="luck")
    with pytest.raises(SystemExit):
        TrlParser(PARSER).parse_args_and_config([*CPU, "--credit", "luck"])
    assert "--credit: invalid choice: 'luck'" in capsys.readouterr().err


def test_unknown_yaml_key(tmp_path):
    (tmp_path / "recipe.yaml").write_text("credit: ccpo\nalternate_periode: 10\n")
    with pytest.raises(
        ValueError, match=r"Unknown arguments from config file: \['--alternate_periode', '10'\].*remove"
    ):
        TrlParser(PARSER).parse_args_and_config([*CPU, "--config", str(tmp_path / "recipe.yaml")])


def test_yaml_values_arrive(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("credit: sepo\nself_weight: 0.5\nrole_kwargs:\n  thinker: {max_completion_length: 7}\n")
    team, args, _ = TrlParser(PARSER).parse_args_and_config([*CPU, "--config", str(recipe), "--blame_coef", "0"])
    credit = team.make_credit()
    assert isinstance(credit, SelfEvaluatedCredit) and (credit.self_weight, credit.blame_coef) == (0.5, 0)
    assert args.for_role("thinker", "max_completion_length") == 7


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("role_kwargs", "{'thinker': {'max_completion_length': 4096}}", {"thinker": {"max_completion_length": 4096}}),
        ("role_kwargs", '{"thinker": {"max_completion_length": 4}}', {"thinker": {"max_completion_length": 4}}),
        ("role_kwargs", "{solver: {top_p: 5e-1, min_p: None}}", {"solver": {"top_p": 0.5, "min_p": None}}),
        ("role_kwargs", " thinker: {top_k: 3}", {"thinker": {"top_k": 3}}),
        (
            "generation_kwargs",
            "{'eta_cutoff': 3e-4, 'eos_token_id': [1, 2]}",
            {"eta_cutoff": 3e-4, "eos_token_id": [1, 2]},
        ),
        ("model_init_kwargs", "{'low_cpu_mem_usage': True}", {"low_cpu_mem_usage": True}),
        ("lr_scheduler_kwargs", '{"a": "true"}', {"a": True}),  # JSON is read by TRL
    ],
)
def test_mappings_on_the_command_line(field, text, value):
    """As `--help` writes them, in JSON or in YAML."""
    _, args, _ = TrlParser(PARSER).parse_args_and_config([*CPU, f"--{field}", text])
    assert getattr(args, field) == value


@pytest.mark.parametrize("field", MultiAgentGRPOConfig._VALID_DICT_FIELDS)
def test_mappings_that_are_none(field):
    with pytest.raises(
        ValueError, match=f"`{field}` must be a mapping in JSON or YAML, got \"{{'a': 1\". Check its braces"
    ):
        TrlParser(PARSER).parse_args_and_config([*CPU, f"--{field}", "{'a': 1"])
    if field not in ("accelerator_config", "fsdp_config", "deepspeed"):  # a file's name there
        for text in ("thinker=1", "[1]", "7"):
            with pytest.raises(ValueError, match=rf"`{field}` must be a mapping, got .*Write it in braces"):
                TrlParser(PARSER).parse_args_and_config([*CPU, f"--{field}", text])


@pytest.mark.parametrize("value", [["thinker"], 3, {"thinker"}])
def test_role_kwargs_of_another_type(value, make_config):
    with pytest.raises(
        ValueError, match="`role_kwargs` must be a mapping of roles or agents, got .*Write it as {'<role>'"
    ):
        make_config(role_kwargs=value)
    with pytest.raises(ValueError, match=r"`role_kwargs\['solver'\]\['generation_kwargs'\]` must be a mapping, got"):
        make_config(role_kwargs={"solver": {"generation_kwargs": value}})


@pytest.fixture
def train_ccpo(monkeypatch):
    """The command `ccpo.train`, which must not get as far as building models."""

    def build(*args, **kwargs):
        pytest.fail("a model was built")

    monkeypatch.setitem(module.MODELS, "tiny-random", build)
    monkeypatch.setitem(
        module.TASKS, "arithmetic", dataclasses.replace(module.TASKS["arithmetic"], build_models=build)
    )
    return lambda *arguments: module.run(module.prepare(*module.parse_arguments([*arguments])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start_role", "judge"], "`start_role='judge'` is neither a role nor an agent"),
        (["--policy_sharing", "adapters"], "`policy_sharing='adapters'` needs `peft_config`"),
        (
            ["--credit=ccpo", "--baseline", "paired", "--num_solos", "3"],
            "`baseline='paired'` needs as many answers without 'thinker'",
        ),
        (["--num_generations", "7"], "must be divisible by num_generations"),
    ],
)
def test_the_embedded_task_is_checked_before_its_warm_start(arguments, message, train_ccpo, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_ccpo("--output_dir", str(tmp_path), *arguments)


def test_dataset_arguments(train_ccpo, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1?", "answer": "2"}\n' * 4)
    command = ("--dataset_name", str(rows), *CPU)
    with pytest.raises(ValueError, match="`model_name_or_path` is required with `dataset_name`"):
        train_ccpo(*command, "--num_generations", "2")
    with pytest.raises(ValueError, match="rows.jsonl'` is one file, with no test split.*Set `eval_dataset_name`"):
        train_ccpo(*command, "--model_name_or_path", "tiny-random", "--num_eval_problems", "8")
    with pytest.raises(ValueError, match="`solution_column='gold'` is not a column"):
        train_ccpo(*command, "--model_name_or_path", "tiny-random", "--solution_column", "gold")


def test_adapters_need_one_base(build, model_dirs):
    with pytest.raises(ValueError, match="`policy_sharing='adapters'` has one base model for all agents"):
        build(
            {"policy_sharing": "adapters"},
            model={"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]},
            peft_config=LoraConfig(),
        )


def test_text_prompts_need_no_template_check(build, text_dataset, model_dirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    tokenizer.chat_template = None
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):  # all checks passed
        build(train_dataset=text_dataset, processing_class=tokenizer)


def test_iterable_datasets_are_checked_where_they_name_their_columns(build, chat_dataset):
    with pytest.raises(ValueError, match="`train_dataset` has no column 'prompt'"):
        build(train_dataset=Dataset.from_dict({"question": ["1"]}).to_iterable_dataset())


# ---- The installation ----


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_old_python_is_refused_before_the_environment_is_made(tmp_path):
    old = tmp_path / "python3.10"
    pretend = "import sys; sys.version_info = (3, 10, 12); sys.version = '3.10.12 (main)'; exec(sys.argv[2])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$@"\n')
    old.chmod(0o755)
    command = ["make", "-C", str(ROOT), "install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    assert "ccpo needs Python 3.11 or newer (TRL 1.16 does); this is 3.10.12. Set PYTHON=python3.12" in done.stderr


def test_constraints_pin_what_is_installed():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    names = "antlr4-python3-runtime fastapi matplotlib numpy pandas pyarrow pytest starlette sympy uvicorn".split()
    assert len(pins) == len(lines) and set(names) <= set(pins)
    if version("trl") == pins["trl"] and version("numpy") == pins["numpy"]:  # installed with the constraints
        assert {name: pins[name] for name in names} == {name: version(name) for name in names}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be an integer of at least 1, got 0"),
        ({"steps_per_generation": -1}, "`steps_per_generation` must be an integer of at least 1, got -1"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be an integer of at least 1, got 0"),
        ({"num_iterations": 0}, "`num_iterations` must be an integer of at least 1, got 0"),
        ({"num_generations": 0}, "`num_generations` must be an integer of at least 1, got 0"),
        ({"beta": -0.1}, "`beta` must be a number >= 0, got -0.1"),
        ({"epsilon": -0.1}, "`epsilon` must be a number >= 0, got -0.1"),
        ({"loss_type": "ppo"}, "`loss_type` must be one of .*'dapo'.*, got 'ppo'"),
        ({"importance_sampling_level": "word"}, "`importance_sampling_level` must be one of .*, got 'word'"),
        ({"max_steps": [3]}, r"`max_steps` must be a whole number, got \[3\]"),
        ({"num_solves": True}, "`num_solves` must be a whole number, got True"),
        ({"run_name": 3}, "`run_name` must be text, got 3. Put it in quotes"),
        ({"merge_adapters": "false"}, "`merge_adapters` must be true or false, got 'false'"),
        ({"model_init_kwargs": [1]}, r"`model_init_kwargs` must be a mapping, got \[1\]"),
        ({"role_kwargs": {"thinker": {1: 2, "a": 3}}}, r"has the unknown keys \[1, 'a'\]"),
        (
            {"generation_kwargs": {"beams": 3}},
            "`generation_kwargs` has the key 'beams', which is not an option of transformers'",
        ),
        ({"generation_kwargs": {"max_new_tokens": -3}}, r"`generation_kwargs\['max_new_tokens'\]` must be an integer"),
        ({"generation_kwargs": {"num_return_sequences": 3}}, "cannot be set: `num_generations` sets how many"),
        ({"generation_kwargs": {"stop": ["x"]}}, "Write 'stop_strings'."),
        (
            {"role_kwargs": {"solver": {"generation_kwargs": {"stop_strings": [""]}}}},
            r"`role_kwargs\['solver'\]\['generation_kwargs'\]\['stop_strings'\]` must be a text or a list of texts",
        ),
    ],
)
def test_values_of_every_field(settings, message, make_config):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_whole_numbers_for_fractions(make_config):
    """transformers takes no `2` for a temperature."""
    own = {"temperature": 2, "generation_kwargs": {"repetition_penalty": 3}}
    args = make_config(temperature=1, role_kwargs={"solver": own})
    values = [args.temperature, args.for_role("solver", "temperature")]
    values.append(args.for_role("solver", "generation_kwargs")["repetition_penalty"])
    assert values == [1, 2, 3] and all(isinstance(value, float) for value in values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_weights": 1}, "`reward_weights` must be a list of finite numbers, got 1"),
        ({"reward_weights": [1.0, 2.0]}, "has 2 weights for 1 reward functions"),
        (
            {"num_train_epochs": 0, "max_steps": -1},
            "`num_train_epochs=0` and `max_steps=-1`: nothing would be trained",
        ),
        ({"remove_unused_columns": True}, "`remove_unused_columns=True` removes the gold answers"),
        ({"role_kwargs": {1: {}, "planner": {}}}, r"`role_kwargs` names \[1, 'planner'\]"),
    ],
)
def test_settings_that_fail_in_the_first_step(settings, message, make_config, text_dataset):
    with pytest.raises(ValueError, match=message):
        MultiAgentGRPOTrainer("nowhere/at-all", SharedCredit(), make_config(**settings), text_dataset)
