"""
Which engine gets whose weights, and when. TRL's `VLLMGeneration` is a recorder here, so that this runs without vLLM;
tests/test_vllm.py has the real one.
"""

import inspect
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import digit_outcome
from peft import LoraConfig
from transformers import Qwen3Config
from trl.generation.vllm_generation import VLLMGeneration

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SelfEvaluatedCredit, SharedCredit
from ccpo.generation import VLLMGenerator
from ccpo.training.engines import AgentEngines
from ccpo.training.generator import PolicyGenerator

THINKER, SOLVER = "thinker", "solver"


class Recorder:
    """What `VLLMGeneration` is asked; it generates three tokens, or the first choice that it may."""

    __signature__ = inspect.signature(VLLMGeneration)

    def __init__(self, **kwargs):
        arguments = self.__signature__.bind(**kwargs)
        arguments.apply_defaults()
        vars(self).update(arguments.arguments)
        self.log, self.pushed, self._llm_weights_sleeping = [], [], False

    def sync_weights(self):
        self.log.append("push")
        if hasattr(self.model, "merge_adapter"):
            self.model.merge_adapter()
            base = [p for name, p in self.model.named_parameters() if "base_layer" in name]
            self.pushed.append(torch.cat([p.detach().flatten() for p in base]))
            self.model.unmerge_adapter()

    def generate(self, prompts, images, num_generations, profiler=None):
        self.log.append(len(prompts))
        choices = ((self.generation_kwargs or {}).get("structured_outputs") or {}).get("choice")
        choice = self.processing_class(choices[0], add_special_tokens=False)["input_ids"] if choices else None
        drawn = [choice or [5 + i % 2, 6, 1] for i in range(len(prompts))]
        return prompts, drawn, [[[-1.0]] * len(ids) for ids in drawn], None


@pytest.fixture
def build(model_dirs, chat_dataset, make_config, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Recorder)

    def build(sharing, credit=None, lora=None, **settings):
        args = make_config(**{"policy_sharing": sharing, "use_vllm": True, "vllm_mode": "colocate", **settings})
        kwargs = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **(lora or {})}
        peft = {"peft_config": LoraConfig(**kwargs)} if lora or sharing == "adapters" else {}
        credit = credit or CounterfactualCredit(digit_outcome)
        return MultiAgentGRPOTrainer(model_dirs["qwen3"], credit, args, chat_dataset, **peft)

    return build


def sepo():
    return SelfEvaluatedCredit(digit_outcome, rating_mode="constrained", rating_prompt="{role} {answer}")


def logs(trainer):
    return [engine.log for engine in dict.fromkeys(trainer.engines.engines.values())]


def test_an_engine_per_role_gets_weights_that_moved(build):
    """Thoughts; joint answers and solos; the weights of a role whose turn it is not stay where they are."""
    trainer = build("separate", schedule="joint")
    trainer.train()
    assert logs(trainer) == [["push", 4, "push", 4], ["push", 8, "push", 8]]
    trainer = build("separate", schedule="alternate", alternate_period=1, max_steps=4)
    trainer.train()
    assert logs(trainer) == [["push", 4, "push", 4, 4, "push", 4], ["push", 8, 4, "push", 8, 4]]
    assert trainer.engines.pushes == {THINKER: 3, SOLVER: 2}


@pytest.mark.parametrize("sharing", ["separate", "adapters"])
def test_one_engine_is_pushed_no_more_than_needed(sharing, build):
    """Ratings begin with the Solver, whose weights the engine holds; a resting Thinker that rated last stays there."""
    one = {"vllm_engine_per_role": False} if sharing == "separate" else {}
    trainer = build(sharing, sepo(), schedule="joint", **one)
    trainer.train()
    step = ["push", 4, "push", 4, 4, "push", 4]
    assert logs(trainer) == [step * 2]
    trainer = build(sharing, sepo(), schedule="alternate", start_role="solver", **one)
    trainer.train()
    assert logs(trainer) == [step + step[1:]]


def test_one_policy_is_pushed_once_a_step(build):
    trainer = build("shared", sepo(), schedule="joint", num_solves=3)
    trainer.train()
    assert logs(trainer) == [["push", 4, 12, 24] * 2] and trainer.engines.pushes == {THINKER: 2, SOLVER: 0}


def test_an_engine_that_slept_without_weights_gets_them(build):
    trainer = build("shared", schedule="joint", max_steps=1)
    trainer.train()
    engine = trainer.vllm_generation
    assert engine.log == ["push", 4, 8]
    trainer.engines._changed.clear()
    generator = PolicyGenerator(trainer, "solver")
    prompt = [[{"role": "user", "content": "x"}]]
    generator(prompt)
    engine._llm_weights_sleeping = True
    generator(prompt)
    assert engine.log[3:] == [1, "push", 1]


def test_the_base_of_adapters_is_kept_to_the_bit(build):
    trainer = build("adapters", schedule="joint", max_steps=3, model_init_kwargs={"dtype": "bfloat16"})
    base = {name: p.clone() for name, p in trainer.model.named_parameters() if "lora" not in name}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert "lora" in name or torch.equal(parameter, base[name])
    trainer.vllm_generation.sync_weights()  # without protection
    rounded = {name: p for name, p in trainer.model.named_parameters() if "lora" not in name}
    assert any(not torch.equal(rounded[name], base[name]) for name in base)


def test_a_frozen_agent_among_adapters_gets_the_base(build):
    trainer = build("adapters", schedule="joint", max_steps=3, role_kwargs={SOLVER: {"trainable": False}})
    base = torch.cat([p.flatten() for name, p in trainer.model.named_parameters() if "base_layer" in name]).clone()
    trainer.train()
    assert logs(trainer) == [["push", 4, "push", 8] * 3] and trainer.engines.pushes == {THINKER: 3, SOLVER: 3}
    pushed = trainer.vllm_generation.pushed
    assert [torch.equal(weights, base) for weights in pushed] == [False, True] * 3
    assert not {"merge_adapter", "unmerge_adapter"} & set(vars(trainer.model))


def test_biases_that_train_beside_adapters_keep_what_they_learned(build, monkeypatch):
    config = Qwen3Config.from_pretrained
    monkeypatch.setattr(Qwen3Config, "from_pretrained", lambda *a, **k: config(*a, **k | {"attention_bias": True}))
    credit = SharedCredit(lambda prompts, completions, **kwargs: [float(i % 2) for i in range(len(prompts))])
    trainer = build("shared", credit, lora={"bias": "lora_only"}, schedule="joint", max_steps=4)
    biases = {name: p for name, p in trainer.model.named_parameters() if name.endswith("bias") and p.requires_grad}
    moments, before = [], {name: p.detach().clone() for name, p in biases.items()}
    sync = trainer.vllm_generation.sync_weights
    note = lambda: moments.append(sum(p.abs().sum().item() for p in biases.values())) or sync()  # noqa: E731
    monkeypatch.setattr(trainer.vllm_generation, "sync_weights", note)
    trainer.train()
    assert len(before) == 4 and len(set(moments)) == 4  # every push has newer ones
    steps = [(p - before[name]).abs().max().item() for name, p in biases.items()]
    assert min(steps) > trainer.args.learning_rate  # more than the last of four steps, of a decaying rate, alone


@pytest.mark.parametrize(
    ("sharing", "settings", "rows"),
    [
        ("separate", {}, [4, 8]),  # thoughts; joint and solo answers
        # ratings of three answers; a solo for every two rows
        ("separate", {"num_solves": 3, "num_solos": 2}, [12, 16]),
        ("separate", {"vllm_engine_per_role": False}, [8]),
        ("adapters", {"num_solos": 8}, [12]),
        ("shared", {"num_solves": 3}, [24]),  # both roles' ratings in one call
        # not more than vLLM should reserve memory for
        ("shared", {"per_device_train_batch_size": 600, "num_generations": 75}, [1024]),
        # nor fewer than TRL's
        ("shared", {"per_device_train_batch_size": 1200, "num_generations": 150}, [1200]),
    ],
)
def test_engines_have_room_for_one_wave(sharing, settings, rows, build):
    trainer = build(sharing, **settings)
    assert [engine.max_num_seqs for engine in dict.fromkeys(trainer.engines.engines.values())] == rows


def test_a_context_is_the_shorter_of_model_and_engine(build):
    trainer = build("separate", vllm_max_model_length=1000)
    assert PolicyGenerator(trainer, "solver").context_length == 1000
    assert PolicyGenerator(trainer, "solver").prompt_limit == 1000 - 8
    trainer = build("separate")
    length = trainer.model.config.max_position_embeddings
    assert PolicyGenerator(trainer, "solver").context_length == length


def test_one_server_for_models_of_two_dtypes(model_dirs, chat_dataset, build, make_config):
    trainer = build("separate", vllm_engine_per_role=False)
    trainer.args.vllm_mode = "server"
    policies = trainer.model.policies
    policies["solver"].to(torch.bfloat16)
    with pytest.raises(
        ValueError, match="in one dtype, but the models have .*float32.*bfloat16.*Load them in the same"
    ):
        AgentEngines(
            trainer.vllm_generation, trainer.topology, trainer.args, trainer.tokenizers, policies.__getitem__, True
        )


def test_the_tokenizer_of_an_engine_is_of_the_same_revision(monkeypatch):
    asked, engine = [], type("Engine", (), {"__init__": lambda self, model, **options: None})
    lora = SimpleNamespace(LoRARequest=None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    monkeypatch.setattr(
        "ccpo.generation.offline.AutoTokenizer.from_pretrained", lambda name, **options: asked.append((name, options))
    )
    loading = {"revision": "v2", "trust_remote_code": True, "max_model_len": 64}
    VLLMGenerator("org/m", model_init_kwargs=loading)._load()
    VLLMGenerator("org/m", model_init_kwargs={**loading, "tokenizer_revision": "v3"})._load()
    VLLMGenerator("org/m", "org/other", model_init_kwargs=loading)._load()
    hub = {"revision": "v2", "trust_remote_code": True}
    assert asked == [("org/m", hub), ("org/m", {**hub, "revision": "v3"}), ("org/other", {})]
