"""
Real vLLM on CPU (`make test-vllm`): colocated engines of TRL's `VLLMGeneration` in every sharing mode.

`sampling/sampling_logp_difference/mean` compares the log-probabilities that vLLM sampled with and those of the policy
in training: it is small only if the right role's newest weights are in the right engine.
"""

import functools
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SelfEvaluatedCredit, SharedCredit
from ccpo.evaluation import Team
from ccpo.generation import TransformersGenerator, VLLMGenerator
from ccpo.ratings import rating_choices
from ccpo.training.generator import PolicyGenerator

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`")

ROLES = ("thinker", "solver")
DIFFERENCE = "sampling/sampling_logp_difference/mean"
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
RATING_PROMPT = "{role} {outcome} {answer}"


@pytest.fixture(scope="module", autouse=True)
def vllm_on_cpu():
    """
    vLLM's CPU build packs weights at load into a buffer that a reload does not reach; TRL gives the engine no dtype,
    and vLLM's own choice for float32 weights is bfloat16. On a GPU neither is needed.
    """
    import trl.generation.vllm_generation as generation
    import vllm.model_executor.layers.utils as layers

    def plain(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "dispatch_cpu_unquantized_gemm", plain)
        small = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
        patch.setattr(generation, "LLM", functools.partial(generation.LLM, **small))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three tiny models of the smallest head that vLLM has on a CPU: a Qwen3, another one, and a Llama."""
    paths = {}
    for i, (name, kind) in enumerate((("qwen3", "qwen3"), ("other", "qwen3"), ("llama", "llama"))):
        folder, tokenizer = tmp_path_factory.mktemp("models") / name, make_tokenizer(kind=kind)
        make_model(kind, tokenizer, seed=i, hidden_size=64, head_dim=32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        paths[name] = str(folder)
    return paths


@pytest.fixture
def problems():
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": f"{i}+1="}] for i in range(8)]})


@pytest.fixture
def build(make_config, models, problems):
    """A trainer whose engines are shut down after the test."""
    trainers = []

    def build(model, credit=None, peft_config=None, eval_dataset=None, **settings):
        settings = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 1024, **settings}
        settings = {
            "max_steps": 1,
            "schedule": "joint",
            "model_init_kwargs": {"dtype": "float32"},
            "learning_rate": 5e-3,
            **settings,
        }
        trainer = MultiAgentGRPOTrainer(
            model={role: models[name] for role, name in model.items()} if isinstance(model, dict) else models[model],
            reward_funcs=credit or CounterfactualCredit(judge),
            args=make_config(**settings),
            train_dataset=problems,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
        )
        trainers.append(trainer)
        return trainer

    yield build
    for trainer in trainers:
        for engine in {id(engine): engine for engine in trainer.engines.engines.values()}.values():
            if hasattr(engine, "llm"):
                engine.llm.llm_engine.engine_core.shutdown()


def judge(prompts, completions, **kwargs):
    return [1.0 if len(set(completion[-1]["content"])) % 2 else -1.0 for completion in completions]


def differences(trainer, role):
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [row[f"{role}/{DIFFERENCE}"] for row in rows if f"{role}/{DIFFERENCE}" in row]


def weights_of(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


MODES = {
    "an engine per agent": ({"thinker": "qwen3", "solver": "llama"}, {}, 2),
    "one engine in turn": ({"thinker": "qwen3", "solver": "other"}, {"vllm_engine_per_role": False}, 1),
    "shared": ("qwen3", {"policy_sharing": "shared"}, 1),
    "adapters": ("qwen3", {"policy_sharing": "adapters", "peft_config": LORA}, 1),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_role_samples_from_its_newest_weights(mode, build):
    """Twenty steps in which both roles learn: every batch is of the weights in training."""
    model, settings, engines = MODES[mode]
    trainer = build(model, max_steps=20, **settings)
    assert len({id(engine) for engine in trainer.engines.engines.values()}) == engines
    for role, engine in trainer.engines.engines.items():  # room for four joint and four solo answers at once
        scheduler = engine.llm.llm_engine.vllm_config.scheduler_config
        assert scheduler.max_num_seqs == (4 if role == "thinker" and engines == 2 else 8)
    before = weights_of(trainer)
    trainer.train()
    for role in ROLES:
        values = differences(trainer, role)
        assert len(values) == 20 and max(values) < 0.01, (role, values)
    pushes = {"thinker": 20, "solver": 0} if mode == "shared" else dict.fromkeys(ROLES, 20)
    assert trainer.engines.pushes == pushes
    after = weights_of(trainer)
    moved = {name: not torch.equal(before[name], after[name]) for name in before}
    if mode == "adapters":  # merged twenty times and more, and the base is what it was, to the bit
        assert {name for name in moved if moved[name]} == {name for name in moved if "lora" in name}
    else:
        assert all(moved.values())


def test_a_frozen_agent_among_adapters_samples_from_the_base(build):
    """The engine gets the base for it and the merged adapter for the Thinker, in turn; the base stays to the bit."""
    settings = {"policy_sharing": "adapters", "peft_config": LORA, "role_kwargs": {"solver": {"trainable": False}}}
    trainer = build("qwen3", max_steps=4, **settings)
    drawn = []
    generate = PolicyGenerator._generate

    def keep(self, prompt_ids, *args, **kwargs):
        completion_ids, log_probs = generate(self, prompt_ids, *args, **kwargs)
        drawn.append((self.role, prompt_ids, completion_ids, log_probs))
        return completion_ids, log_probs

    before = weights_of(trainer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyGenerator, "_generate", keep)
        trainer.train()
    assert max(differences(trainer, "thinker")) < 0.01 and trainer.engines.pushes == dict.fromkeys(ROLES, 4)
    base = AutoModelForCausalLM.from_pretrained(trainer.model.config._name_or_path, dtype=torch.float32).eval()
    off = dict.fromkeys(ROLES, 0.0)
    for role, prompt_ids, completion_ids, log_probs in drawn:
        for prompt, completion, sampled in zip(prompt_ids, completion_ids, log_probs, strict=True):
            with torch.no_grad():
                logits = base(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = logits.gather(1, torch.tensor(completion)[:, None])[:, 0]
            off[role] = max(off[role], (expected - torch.tensor(sampled)).abs().max().item())
    assert off["solver"] < 0.01 < off["thinker"], off
    after = weights_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if "lora" not in name)


@pytest.mark.parametrize("mode", MODES)
def test_a_push_that_is_left_out_shows(mode, build, monkeypatch):
    model, settings, _ = MODES[mode]
    trainer = build(model, max_steps=8, **settings)
    engine, asked = trainer.engines.engines["solver"], []
    prepare, sync = trainer.engines.prepare, engine.sync_weights

    def prepare_and_tell(role, settings):
        asked.append(role)
        return prepare(role, settings)

    def leave_out():
        if asked[-1] == "thinker" and (mode != "shared" or len(asked) == 1):
            sync()

    monkeypatch.setattr(trainer.engines, "prepare", prepare_and_tell)
    monkeypatch.setattr(engine, "sync_weights", leave_out)
    trainer.train()
    assert max(differences(trainer, "solver")) > 0.02


def test_alternating_pushes_only_the_role_that_moved(build):
    """Periods of 2, the Thinker first: a role is pushed once, and after each of its steps that a batch follows."""
    trainer = build({"thinker": "qwen3", "solver": "llama"}, schedule="alternate", alternate_period=2, max_steps=8)
    trainer.train()
    assert trainer.engines.pushes == {"thinker": 1 + 4, "solver": 1 + 3}
    for role in ROLES:
        assert max(differences(trainer, role)) < 0.01


@pytest.mark.parametrize("engine_per_role", [True, False])
@pytest.mark.parametrize("expectation", [True, False])
def test_constrained_ratings(engine_per_role, expectation, build):
    credit = SelfEvaluatedCredit(
        judge, rating_mode="constrained", rating_expectation=expectation, rating_prompt=RATING_PROMPT
    )
    trainer = build({"thinker": "qwen3", "solver": "other"}, credit, vllm_engine_per_role=engine_per_role, max_steps=3)
    trainer.train()
    for row in trainer.state.log_history[:3]:
        assert row["rating/thinker_valid_rate"] == row["rating/solver_valid_rate"] == 1.0
        assert 0 < row["rollout/rating_tokens"] <= 8 * 12  # characters are tokens here: 4 answers, two roles
    for role in ROLES:
        assert max(differences(trainer, role)) < 0.01


def test_the_choice_is_drawn_from_the_policy(build):
    """The first digit decides, what follows it is forced: drawn with the policy's probabilities of nine digits."""
    trainer = build("qwen3", SharedCredit(judge), policy_sharing="shared", max_steps=1)
    rater = PolicyGenerator(trainer, "solver")
    prefix, choices = rating_choices("correct")
    prompt, count = [{"role": "user", "content": "rate"}], 2000
    drawn = torch.tensor(rater.choose([prompt] * count, [prefix] * count, choices))
    digits = [prefix + choice[:3] for choice in choices]  # "0.1" to "0.9"
    expected = rater.score([prompt], [digits]).softmax(-1)[0]
    assert expected.max() > 2 * expected.min()
    error = 4 * (expected * (1 - expected) / count).sqrt()
    assert ((torch.bincount(drawn, minlength=9) / count - expected).abs() <= error + 1e-3).all()


def test_free_text_ratings_and_several_answers(build):
    credit = SelfEvaluatedCredit(judge, rating_max_tokens=5, rating_prompt=RATING_PROMPT)
    trainer = build({"thinker": "qwen3", "solver": "llama"}, credit, num_solves=2, max_steps=2)
    trainer.train()
    row = trainer.state.log_history[0]
    assert 0 < row["rollout/rating_tokens"] <= 2 * 8 * 5
    assert row["solver/completions/mean_length"] <= 8


def test_settings_of_a_role_reach_its_engine(build):
    kwargs = {
        "thinker": {"max_completion_length": 3, "temperature": 0.5},
        "solver": {"generation_kwargs": {"seed": 1}},
    }
    trainer = build({"thinker": "qwen3", "solver": "llama"}, role_kwargs=kwargs, max_steps=1)
    trainer.train()
    thinker, solver = (trainer.engines.engines[role] for role in ROLES)
    assert (thinker.max_completion_length, thinker.temperature) == (3, 0.5)
    assert (solver.max_completion_length, solver.temperature) == (8, 1.0)
    assert solver.generation_kwargs == {"seed": 1} and thinker.generation_kwargs == {}
    assert trainer.state.log_history[0]["thinker/completions/max_length"] <= 3
    assert isinstance(solver.processing_class, type(AutoTokenizer.from_pretrained(solver.model.name_or_path)))


def test_stop_strings_end_completions(build):
    """vLLM returns the tokens of the stop string, too; TRL counts such a completion as ended."""
    stops = list("aeiou0123456789")
    trainer = build("qwen3", policy_sharing="shared", generation_kwargs={"stop_strings": stops}, log_completions=True)
    trainer.train()
    (table,) = Path(trainer.args.output_dir, "completions").glob("*_00001.parquet")
    texts = pd.read_parquet(table)["joint_answer"].tolist()
    assert texts and not any(stop in text[:-1] for text in texts for stop in stops)
    ended = [text[-1:] in stops for text in texts]
    assert any(ended)
    row = next(row for row in trainer.state.log_history if "solver/completions/clipped_ratio" in row)
    assert row["solver/completions/clipped_ratio"] <= 1 - sum(ended) / len(ended)


def test_resuming_and_loading_the_best_model_push_anew(build, problems):
    """Engines that an evaluation gave the weights of the start, or of the end, get the loaded ones."""
    model = {"thinker": "qwen3", "solver": "llama"}
    build(model).train()  # TRL's first engine sets RANK and WORLD_SIZE: all that follow see one process
    trainer = build(model, max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    best |= {"per_device_eval_batch_size": 4, "eval_dataset": problems}
    resumed = build(model, max_steps=7, save_strategy="steps", save_steps=1, **best)
    resumed.evaluate()
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-4")
    for role in ROLES:
        assert len(differences(resumed, role)) == 7 and max(differences(resumed, role)) < 0.01
    metrics = resumed.evaluate()
    assert max(metrics[f"eval_{role}/{DIFFERENCE}"] for role in ROLES) < 0.01


def test_a_server_and_a_port_per_role(build, monkeypatch, caplog):
    """
    A server gets weights over NCCL, which a CPU has not: the client is a recorder, the way to it is real.
    """
    import trl.generation.vllm_generation as generation

    clients = []

    class Client:
        def __init__(self, base_url, group_port, connection_timeout):
            clients.append(self)
            self.base_url, self.group_port, self.pushed, self.asked = base_url, group_port, 0, 0

        def init_communicator(self, device):
            pass

        def get_server_info(self):
            right = self.base_url == "http://one:8000"
            return {"model_config": {"logprobs_mode": "processed_logprobs" if right else "raw_logprobs"}}

        def update_named_params(self, metadata, params):
            self.names = [name for name, _ in params]
            self.pushed += 1

        def reset_prefix_cache(self):
            pass

        def generate(self, prompts, features, n, **kwargs):
            self.asked += len(prompts)
            return {
                "prompt_ids": prompts,
                "completion_ids": [[5, 6, 1]] * len(prompts),
                "logprobs": [[[-1.0]] * 3] * len(prompts),
            }

    monkeypatch.setattr(generation, "VLLMClient", Client)
    kwargs = {
        "thinker": {"vllm_server_base_url": "http://one:8000", "vllm_group_port": 51216},
        "solver": {"vllm_server_host": "two", "vllm_server_port": 8001, "vllm_group_port": 51217},
    }
    trainer = build({"thinker": "qwen3", "solver": "llama"}, vllm_mode="server", role_kwargs=kwargs, max_steps=2)
    warnings = [record.getMessage() for record in caplog.records if "logprobs-mode" in record.getMessage()]
    assert len(warnings) == 1 and "server of agent 'solver' runs with `--logprobs-mode raw_logprobs`" in warnings[0]
    trainer.train()
    assert [(client.base_url, client.group_port) for client in clients] == [
        ("http://one:8000", 51216),
        ("http://two:8001", 51217),
    ]
    assert [client.pushed for client in clients] == [2, 2]
    assert [client.asked for client in clients] == [2 * 4, 2 * 8]  # thoughts; joint answers and solos
    for client, policy in zip(clients, trainer.model.policies.values(), strict=True):
        assert client.names == [name for name, _ in policy.named_parameters()]


def test_a_team_in_offline_engines(models, tmp_path):
    """Greedy texts, tokens and cuts are those of transformers; adapters share their base's engine."""
    prompts = [[{"role": "user", "content": f"{i}+1="}] for i in range(3)] + [
        [{"role": "user", "content": "long " * 9}]
    ]
    tokenizer = AutoTokenizer.from_pretrained(models["qwen3"])
    for i, name in enumerate(ROLES):
        torch.manual_seed(i)
        get_peft_model(AutoModelForCausalLM.from_pretrained(models["qwen3"]), LORA).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    greedy = {"temperature": 0.0, "max_new_tokens": 12, "generation_kwargs": {"stop_strings": ["DQ", "Eö"]}}
    engine = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "max_model_len": 1024}
    engine["gpu_memory_utilization"] = 0.5
    folders = {name: str(tmp_path / name) for name in ROLES}
    team = Team.from_models(folders, "think_solve", backend="vllm", model_init_kwargs=engine, **greedy)
    found, expected = team(prompts), Team.from_models(folders, "think_solve", **greedy)(prompts)
    assert [answer.completions for answer in found] == [answer.completions for answer in expected]
    assert {completion.truncated for answer in found for completion in answer.completions.values()} == {True, False}
    thinker, solver = team.generate["thinker"], team.generate["solver"]
    assert thinker._load()[0] is solver._load()[0] and thinker._load()[2] != solver._load()[2]
    assert thinker.prompt_limit == 1024 - 12
    assert thinker.count_tokens(prompts) == TransformersGenerator(models["qwen3"]).count_tokens(prompts)
    for options, message in (({"beams": 3}, "are not options of vLLM's"), ({"seed": 1}, "must not contain")):
        with pytest.raises(ValueError, match=message):
            VLLMGenerator(folders["thinker"], lora_rank=4, model_init_kwargs=engine, generation_kwargs=options)(
                prompts
            )
    drawn = VLLMGenerator(folders["thinker"], max_new_tokens=12, lora_rank=4, model_init_kwargs=engine)
    assert drawn._load()[0] is thinker._load()[0]
    drawn.reseed(5)
    first = drawn(prompts)
    drawn.reseed(5)
    assert drawn(prompts) == first != drawn(prompts)
    with pytest.raises(ValueError, match="exceeds the model's limit of 1024 .`max_model_len`"):
        drawn(["x" * 1020])
    other = thinker.sampled(seed=5, temperature=1.0, max_new_tokens=8)
    assert other._load() == thinker._load() and other.prompt_limit == 1024 - 8
    assert other(prompts) == thinker.sampled(seed=5, temperature=1.0, max_new_tokens=8)(prompts)
    said = thinker(prompts[:1])[0]
    (cut,) = thinker.sampled(stop=[said[2]]).generate(prompts[:1])
    assert cut.text == said[: said.index(said[2]) + 1] and cut.tokens == len(cut.text) and cut.truncated is False
    own = [answer.completions["thinker"] for answer in found]
    asked = [answer.prompts["thinker"] for answer in found]
    assert thinker.sampled(stop=["no such text"]).generate(asked) == own  # its own stop strings stay
    thinker._load()[0].llm_engine.engine_core.shutdown()
