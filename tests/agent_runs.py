"""What the tests of agents and of their starts have in common: small runs, and what an agent would say."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_trainer import mixed_outcome
from transformers import TrainerCallback

from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer, Role, SharedCredit, Topology
from ccpo.training.policies import AgentPolicies, parameter_agents, policy_of

AGENTS = ("thinker", "solver")
SHARING = ("separate", "adapters")
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
IDS = torch.tensor([[5, 6, 7, 8, 9]])
# One agent plays two roles of three.
WRITER = Topology(
    (
        Role("draft", agent="writer", prompt="Draft {problem}"),
        Role("critic", reads=("draft",), prompt="Judge {problem} {draft}"),
        Role("final", agent="writer", reads=("draft", "critic"), prompt="{problem} {draft} {critic}"),
    )
)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def problems():
    prompts = [[{"role": "user", "content": f"{i}+1="}] for i in range(6)]
    return Dataset.from_dict({"prompt": prompts, "solution": [str(i + 1) for i in range(6)]})


def arguments(out, **settings) -> MultiAgentGRPOConfig:
    common = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, "max_steps": 2}
    common |= {"logging_steps": 1, "report_to": "none", "bf16": False, "gradient_checkpointing": False}
    common |= {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "schedule": "joint"}
    return MultiAgentGRPOConfig(str(out), **common | {"learning_rate": 1e-2} | settings)


def build(model, out, dataset, sharing="separate", peft_config=None, credit=SharedCredit, cls=None, **settings):
    """A trainer; settings are the configuration's, or the trainer's own."""
    names = ("topology", "optimizers", "processing_class", "callbacks")
    given = {name: settings.pop(name) for name in names if name in settings}
    args = arguments(out, policy_sharing=sharing, **settings)
    cls = cls or MultiAgentGRPOTrainer
    return cls(model, credit(mixed_outcome), args, dataset, peft_config=peft_config, **given)


def log_probs(trainer, agent) -> torch.Tensor:
    """What an agent would say, as it is now."""
    trainer.activate_role(trainer.topology.roles_of(agent)[0])
    return log_probs_of(policy_of(trainer.model, agent))


def log_probs_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.log_softmax(-1)


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model_dirs, problems):
    """A run with adapters, saved: its folder, its base, and its agents' log-probabilities."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = build(model_dirs["qwen3"], folder / "run", problems, "adapters", LORA)
    trainer.train()
    trainer.save_model(str(folder / "out"))
    spoke = {agent: log_probs(trainer, agent) for agent in AGENTS}
    assert not torch.equal(spoke["thinker"], spoke["solver"])
    return folder / "out", model_dirs["qwen3"], spoke


def folders(out) -> dict[str, str]:
    return {agent: str(out / agent) for agent in AGENTS}


def agents_of(model) -> dict[str, dict]:
    """Agent -> its parameters by name."""
    model = getattr(model, "module", model)
    names = [name for name, _ in model.named_parameters()]
    found: dict[str, dict] = {}
    agents = tuple(model.policies) if isinstance(model, AgentPolicies) else tuple(model.peft_config)
    for name, (parameter, agent) in zip(names, parameter_agents(model, agents), strict=True):
        found.setdefault(agent, {})[name] = parameter
    return found


class Watch(TrainerCallback):
    """Per step the agents of which a weight moved, whose gradient was there, and which have optimizer state."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.before = {a: {n: p.detach().clone() for n, p in own.items()} for a, own in agents_of(model).items()}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.graded = {a for a, own in agents_of(model).items() if any(p.grad is not None for p in own.values())}

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        now = agents_of(model)
        moved = {a for a, own in now.items() if any(not torch.equal(p, self.before[a][n]) for n, p in own.items())}
        held = {group["agent"] for group in optimizer.param_groups}
        have = optimizer.optimizer.state if hasattr(optimizer, "optimizer") else optimizer.state
        with_state = {a for a, own in now.items() if any(p in have and have[p] for p in own.values())}
        self.steps.append({"moved": moved, "graded": self.graded, "held": held, "state": with_state})
