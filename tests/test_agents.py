"""Agents that play several roles: one policy, one turn, one learning rate; and what they are called."""

import json

import pytest
import torch
from agent_runs import LORA, SHARING, WRITER, Watch, arguments, build, log_probs
from test_resume import assert_identical, logged
from test_resume import run as run_to_the_end
from transformers import AutoModelForCausalLM, TrainerCallback

from ccpo import MultiAgentGRPOTrainer, Role, Topology
from ccpo.team.topology import make_topology
from ccpo.training.adapters import load_sharded_adapters
from ccpo.training.policies import policy_of

pytest_plugins = ("agent_runs",)  # fixtures


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
@pytest.mark.parametrize("sharing", ["separate", "adapters", "shared"])
def test_an_agent_plays_two_roles(sharing, schedule, model_dirs, problems, tmp_path):
    """One policy, one optimizer group with its own rate and one turn for both; out of turn no bit moves."""
    rates = {} if sharing == "shared" else {"writer": {"learning_rate": 3e-2}}
    settings = {"topology": WRITER, "max_steps": 4, "schedule": schedule, "alternate_period": 1, "weight_decay": 0.5}
    settings |= {"role_kwargs": rates, "peft_config": LORA if sharing == "adapters" else None}
    watch = None if sharing == "shared" else Watch()
    trainer = build(
        model_dirs["qwen3"], tmp_path / "run", problems, sharing, callbacks=[watch] if watch else None,
        lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    turns = []

    class Turn(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            turns.append(sorted(trainer._moved_agents))

    trainer.add_callback(Turn())
    trainer.train()
    both = ["critic", "writer"]
    assert turns == ([both] * 4 if schedule == "joint" else [["writer"], ["critic"]] * 2)
    for row in trainer.state.log_history[:4]:
        for role in WRITER.role_names:
            assert f"{role}/completions/mean_length" in row
    if sharing != "shared":
        agents = {group["agent"]: group["lr"] for group in trainer.optimizer.param_groups}
        assert agents == {"writer": 3e-2, "critic": 1e-2}
        for step, (turn, seen) in enumerate(zip(turns, watch.steps, strict=True)):
            assert seen["moved"] <= set(turn) and seen["held"] == set(both), step
        assert set.union(*(seen["moved"] for seen in watch.steps)) == set(both)
    trainer.save_model(str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == both
    assert make_topology(json.loads((tmp_path / "out" / "team.json").read_text())) == WRITER
    assert "| writer | yes | draft, final |" in (tmp_path / "out" / "critic" / "README.md").read_text()


def test_a_run_of_an_agent_of_two_roles_is_resumed_to_the_bit(model_dirs, problems, tmp_path):
    """In the middle of blocks and generation batches, with CCPO of every role but the last."""
    roles = (Role("draft", agent="writer"), Role("critic", reads=("draft",)))
    topology = Topology((*roles, Role("final", agent="writer", reads=("draft", "critic"))))
    settings = {"policy_sharing": "adapters", "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    settings |= {"schedule": "alternate", "alternate_period": 1, "steps_per_generation": 2, "weight_decay": 0.1}
    given = {"peft_config": LORA, "topology": topology}
    whole, digest = run_to_the_end(model_dirs["qwen3"], arguments(tmp_path / "run", **settings), problems, **given)
    for step in (1, 2, 3, 5):
        again, checkpoint = arguments(tmp_path / str(step), **settings), tmp_path / "run" / f"checkpoint-{step}"
        resumed, other = run_to_the_end(model_dirs["qwen3"], again, problems, resume=str(checkpoint), **given)
        assert logged(resumed) == logged(whole)
        assert_identical(digest, other)


def test_the_gradient_of_an_agent_is_the_sum_of_its_roles(model_dirs, problems, tmp_path):
    """One step of plain gradient descent, against the losses of the roles one by one."""
    models = {agent: AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"]) for agent in WRITER.agents}
    optimizer = torch.optim.SGD([p for model in models.values() for p in model.parameters()], lr=1.0)
    settings = {"max_steps": 1, "max_grad_norm": 1e9, "lr_scheduler_type": "constant"}
    slow: dict[str, torch.Tensor] = {}

    class Slow(MultiAgentGRPOTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            for role in self.roles if not slow else ():
                own = {name: value for name, value in inputs.items() if name.startswith(f"{role}/")}
                loss = super().compute_loss(model, own, *args, **kwargs)
                policy = policy_of(self.model, WRITER.agent_of(role))
                found = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
                for (name, parameter), grad in zip(policy.named_parameters(), found, strict=True):
                    key = f"{WRITER.agent_of(role)}.{name}"
                    slow[key] = slow.get(key, parameter.detach().clone()) - (0 if grad is None else grad)
                slow[role] = sum(grad.abs().sum() for grad in found if grad is not None)
            return super().compute_loss(model, inputs, *args, **kwargs)

    settings |= {"topology": WRITER, "optimizers": (optimizer, None), "cls": Slow}
    trainer = build(models, tmp_path, problems, **settings)
    trainer.train()
    assert all(slow[role] > 0 for role in WRITER.role_names)
    for agent in WRITER.agents:
        for name, parameter in policy_of(trainer.model, agent).named_parameters():
            torch.testing.assert_close(parameter, slow[f"{agent}.{name}"], rtol=1e-4, atol=1e-6, msg=name)


def test_what_role_kwargs_say_goes_from_the_role_to_the_agent_to_all(model_dirs, problems, tmp_path):
    entries = {
        "writer": {
            "max_completion_length": 6,
            "top_p": 0.9,
            "generation_kwargs": {"top_k": 5, "suppress_tokens": [3]},
        },
        "final": {"max_completion_length": 4, "top_k": 7},
        "critic": {"generation_kwargs": {"max_new_tokens": 3}, "learning_rate": 2e-2},
    }
    args = arguments(tmp_path, role_kwargs=entries, top_k=9, generation_kwargs={"suppress_tokens": [2], "top_p": 0.5})
    trainer = build(model_dirs["qwen3"], tmp_path, problems, topology=WRITER, **{
        name: getattr(args, name) for name in ("role_kwargs", "top_k", "generation_kwargs")
    })  # fmt: skip
    found = {role: trainer._role_state[role]["generation_config"].to_dict() for role in WRITER.role_names}
    names = ("max_new_tokens", "top_p", "top_k", "suppress_tokens")
    assert {role: tuple(config[name] for name in names) for role, config in found.items()} == {
        "draft": (6, 0.9, 5, [3]),  # the agent's
        "final": (4, 0.9, 7, [3]),  # its own length and top_k before the agent's options
        "critic": (3, 0.5, 9, [2]),
    }
    trainer.train()
    for role, limit in {"draft": 6, "final": 4, "critic": 3}.items():
        assert trainer.state.log_history[0][f"{role}/completions/max_length"] <= limit


def test_what_belongs_to_an_agent_is_refused_of_one_of_its_roles(model_dirs, problems, tmp_path):
    for key, value in {"learning_rate": 1e-3, "trainable": False, "vllm_server_port": 8001}.items():
        message = (
            rf"`role_kwargs\['final'\]` has \['{key}'\], which can be set only for a whole agent, but "
            rf"'final' is one of the roles"
        )
        with pytest.raises(
            ValueError, match=rf"{message} \['draft', 'final'\] of 'writer'. Set them in `role_kwargs\["
        ):
            build("no model loads", tmp_path, problems, topology=WRITER, role_kwargs={"final": {key: value}})
    with pytest.raises(ValueError, match=r"`role_kwargs` names \['author'\], which are not in the topology"):
        build("no model loads", tmp_path, problems, topology=WRITER, role_kwargs={"author": {"top_k": 3}})
    alone = Topology((Role("plan", agent="one"), Role("answer", agent="two", reads=("plan",))))
    entries = {"plan": {"learning_rate": 3e-2}, "two": {"learning_rate": 2e-2}, "answer": {"trainable": True}}
    trainer = build(model_dirs["qwen3"], tmp_path, problems, topology=alone, role_kwargs=entries)  # an only role's
    trainer.create_optimizer()
    assert {group["agent"]: group["lr"] for group in trainer.optimizer.param_groups} == {"one": 3e-2, "two": 2e-2}
    trainer = build(
        model_dirs["qwen3"], tmp_path, problems, topology=alone, role_kwargs={"plan": {"trainable": False}}
    )
    assert trainer.trained_agents == ("two",)


@pytest.mark.parametrize("name", ["train", "keys", "forward", "half", "to"])
def test_an_agent_with_the_name_of_a_modules_attribute(name, model_dirs, problems, tmp_path):
    topology = Topology((Role(name), Role("answer", reads=(name,))))
    for sharing in SHARING:
        with pytest.raises(ValueError, match=rf"`agent` '{name}' is the name of an attribute .*agent='{name}er'"):
            build(model_dirs["qwen3"], tmp_path, problems, sharing, topology=topology, peft_config=LORA)
    renamed = Topology((Role(name, agent=f"{name}er"), Role("answer", reads=(name,))))
    for sharing, team in (("separate", renamed), ("adapters", renamed), ("shared", topology)):
        peft = LORA if sharing == "adapters" else None
        build(model_dirs["qwen3"], tmp_path, problems, sharing, topology=team, peft_config=peft, max_steps=1).train()


def test_agents_whose_names_are_parts_of_others(model_dirs, problems, tmp_path):
    """DACR's agents are `a` and `b`, and `a` is a part of "lora_A" and of most modules' names."""
    topology = Topology((Role("a"), Role("ab", reads=("a",)), Role("self", reads=("ab",))))
    trainer = build(model_dirs["qwen3"], tmp_path, problems, "adapters", topology=topology, peft_config=LORA)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    models = {agent: str(tmp_path / "out" / agent) for agent in topology.agents}
    again = build(models, tmp_path, problems, "adapters", topology=topology)
    for agent in topology.agents:
        assert torch.equal(log_probs(again, agent), log_probs(trainer, agent))
    with torch.no_grad():  # as FSDP2 loads them
        for name, parameter in again.model.named_parameters():
            parameter.mul_(0 if "lora_" in name else 1)
    load_sharded_adapters(again.model, tmp_path / "out", topology.agents)
    for agent in topology.agents:
        assert torch.equal(log_probs(again, agent), log_probs(trainer, agent))
    spoke = [log_probs(again, agent) for agent in topology.agents]
    assert not any(torch.equal(spoke[i], spoke[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
