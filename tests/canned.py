"""
One run with canned completions, the same in every set-up: on one process, under torch.distributed.run or accelerate.

    python tests/canned.py '{"model": …, "args": {…}, "out": …}'

Completions are drawn from a generator seeded with the generation batch, the call in it, the prompt and the row's place
in the global batch, so that every set-up replays the same episodes, resumed or not. Writes the weights, the gathered
advantages and the log.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, gather, gather_object
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ccpo import (
    AnswerCritiqueRewrite,
    CounterfactualCredit,
    CrossImprovementCredit,
    MultiAgentGRPOConfig,
    MultiAgentGRPOTrainer,
    SelfEvaluatedCredit,
    SharedCredit,
    ThinkSolve,
)
from ccpo.team.rollout import assign_solos


def text_of(completion) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def judge(prompts, completions, **kwargs):
    """Right, wrong or unscorable by the text alone."""
    texts = [text_of(completion) for completion in completions]
    return [None if text.startswith("z") else 1.0 if sum(map(ord, text)) % 2 else -1.0 for text in texts]


def judge_by_rank(prompts, completions, **kwargs):
    """All right on the first process; on the others all wrong but the last: the verdicts differ in number and kind."""
    first = torch.distributed.get_rank() == 0
    return [1.0 if first or i == len(completions) - 1 else -1.0 for i in range(len(completions))]


def partner(prompts):
    """The Solver's answers by the prompt's text, and by nothing else."""
    draws = [random.Random(text_of(prompt)) for prompt in prompts]
    return ["".join(draw.choices("abcxyz01", k=draw.randrange(1, 7))) for draw in draws]


CREDITS = {
    "shared": lambda: SharedCredit(judge),
    "ccpo": lambda: CounterfactualCredit(judge),
    "sepo": lambda: SelfEvaluatedCredit(
        judge, rating_mode="constrained", rating_expectation=True, rating_prompt="{role} {outcome} {answer}"
    ),
    "sepo_by_rank": lambda: SelfEvaluatedCredit(
        judge_by_rank, rating_mode="constrained", rating_prompt="{role} {outcome} {answer}"
    ),
    "drop_in": lambda: CounterfactualCredit(judge, partner=partner),
    "dacr": lambda: CrossImprovementCredit(judge),
}
TEAMS = {"dacr": AnswerCritiqueRewrite}  # of a credit; else Think-Solve


class Canned:
    """Generation replaced by canned completions; everything else is the trainer."""

    calls = rows = 0
    samples = False  # whether the policies generate, after all

    def _places(self, count: int) -> list[int | str]:
        """Who each completion of a call is in the global order: its joint row, or its rank among the solos."""
        rank, rows = self.accelerator.process_index, self.rows
        topology = getattr(self, "topology", None)  # stock TRL's trainer has none
        if topology is not None and not topology.is_chain:  # a text of each role that speaks in this call
            assert count % rows == 0
            return [f"{part}/{rank * rows + i}" for part in range(count // rows) for i in range(rows)]
        answers = getattr(self.args, "num_solves", 1) if count > rows else 1  # only the Solver's call has more
        places = [rank * rows * answers + i for i in range(min(count, rows * answers))]
        if count > len(places):
            group = self.args.num_generations  # `self.num_generations` is the role's: times the answers
            solos = self.args.num_solos or group
            mine, valid = assign_solos(rows, self.accelerator.num_processes, group, solos)
            assert count - len(places) == len(mine[rank])
            for i in range(rank * len(mine[rank]), (rank + 1) * len(mine[rank])):
                problem, ordinal = divmod(sum(valid[:i]), solos)  # sorted by prompt
                places.append(f"solo/{problem}/{ordinal}" if valid[i] else f"padding/{i}")
        return places

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        if self.samples:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        self.calls += 1
        batch = self._step // (self.args.steps_per_generation * self.num_iterations)
        special, completions = set(self._tokenizer.all_special_ids), []
        ordinary = [i for i in range(len(self._tokenizer)) if i not in special]
        for prompt, place in zip(prompt_ids, self._places(len(prompt_ids)), strict=True):
            draw = random.Random(f"{batch}/{self.calls}/{place}/{list(prompt)}")
            ids = draw.choices(ordinary, k=draw.randrange(1, 7))
            completions.append([*ids, self._tokenizer.eos_token_id])
        return completions, None


class CannedTrainer(Canned, MultiAgentGRPOTrainer):
    def _roll_out(self, inputs, in_turn):
        self.rows, self.calls = len(inputs), 0
        return super()._roll_out(inputs, in_turn)

    def _log_rollout(self, rollout, rewards, advantages):
        super()._log_rollout(rollout, rewards, advantages)
        self.history.append({role: values.tolist() for role, values in advantages.items()})
        seen = rollout.outcomes[0]
        without = {role: outcomes.nan_to_num().tolist() for role, outcomes in seen.without.items()}
        self.outcomes.append({"joint": seen.team.nan_to_num().tolist(), "without": without})


class CannedStockTrainer(Canned, GRPOTrainer):
    """TRL's own trainer: the allocator is a reward function of a single Thinker."""

    def _generate_and_score_completions(self, inputs):
        self.rows, self.calls = len(inputs), 0
        output = super()._generate_and_score_completions(inputs)
        advantages = gather(output["advantages"].to(self.accelerator.device)).tolist()
        self.history.append({"rewards": self.rewards_seen, "advantages": advantages})
        return output

    def _calculate_rewards(self, *args):
        rewards = super()._calculate_rewards(*args)
        self.rewards_seen = rewards.nan_to_num(7.0).flatten().tolist()
        return rewards


class Watch(TrainerCallback):
    """
    What an optimizer step leaves alone, under `schedule="alternate"`.

    `steps` gets, per step, whether each role's weights, master weights and moments are bit-identical to before it.
    """

    def __init__(self):
        self.trainer, self.steps = None, []

    def snapshot(self) -> dict[str, dict[str, list]]:
        optimizer = zero = self.trainer.optimizer
        while hasattr(optimizer, "optimizer"):  # accelerate's wrapper, ZeRO's, torch's
            zero, optimizer = optimizer, optimizer.optimizer
        groups = [(group["agent"], group["params"]) for group in optimizer.param_groups]
        if hasattr(zero, "sub_group_to_group_id"):  # ZeRO-3 keeps the groups empty but while it steps
            flat = enumerate(zero.fp32_partitioned_groups_flat)
            groups = [(optimizer.param_groups[zero.sub_group_to_group_id[i]]["agent"], [part]) for i, part in flat]
        agents = self.trainer.agents
        seen = {agent: {"weights": [], "masters": [], "moments": []} for agent in agents}
        for role, parameters in groups:
            for parameter in parameters:
                seen[role]["masters"].append(parameter.detach().clone())
                state = optimizer.state.get(parameter, {})
                seen[role]["moments"] += [torch.as_tensor(state[key]).clone() for key in sorted(state)]
        for name, parameter in self.trainer.model.named_parameters():
            agent = next((agent for agent in agents if f".{agent}." in name), None)
            if agent is None:  # the base of adapters
                continue
            seen[agent]["weights"].append(getattr(parameter, "ds_tensor", parameter).detach().clone())
        return seen

    def on_step_begin(self, args, state, control, **kwargs):
        agents = self.trainer.trained_agents
        self.before = self.snapshot()
        self.role = agents[state.global_step // args.alternate_period % len(agents)]

    def on_step_end(self, args, state, control, **kwargs):
        after, row = self.snapshot(), {"in_turn": self.role}
        for role, kinds in self.before.items():
            for kind, tensors in kinds.items():
                now = after[role][kind]
                same = len(now) == len(tensors) and all(map(torch.equal, tensors, now))
                pairs = [(a, b) for a, b in zip(tensors, now, strict=False) if a.numel()]
                drift = max([(a - b).abs().max().item() for a, b in pairs], default=0.0)
                row |= {f"{role}/{kind}": same, f"{role}/{kind}/drift": drift, f"{role}/{kind}/count": len(now)}
        self.steps.append(row)


class Preempt(TrainerCallback):
    """SIGTERM to the last process only, within a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def allow_fsdp_on_cpu() -> None:
    """
    accelerate gives FSDP to accelerators only: `AcceleratorState.__init__` leaves a run on CPUs what it is. This sets
    what is not set there; all else, accelerate's way to PyTorch's FSDP2 and FSDP2 itself, is the real thing.
    """
    init = AcceleratorState.__init__

    def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init_with_fsdp


def main(spec: dict) -> None:
    torch.set_num_threads(1)
    if spec.get("fsdp"):
        allow_fsdp_on_cpu()
    dataset = Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": f"{i}+1="}] for i in range(12)], "solution": ["1"] * 12}
    )
    credit = CREDITS[spec.get("credit", "ccpo")]()
    if spec.get("credit") == "drop_in":
        trainer = CannedStockTrainer(spec["model"], credit, GRPOConfig(**spec["args"]), dataset)
    else:
        args = MultiAgentGRPOConfig(**spec["args"])
        lora = LoraConfig(**spec["lora"]) if spec.get("lora") else None
        topology = TEAMS.get(spec.get("credit"), ThinkSolve)()
        trainer = CannedTrainer(spec["model"], credit, args, dataset, peft_config=lora, topology=topology)
    watch = Watch()
    if spec.get("watch"):
        watch.trainer = trainer
        trainer.add_callback(watch)
    if spec.get("preempt"):
        trainer.add_callback(Preempt(spec["preempt"]))
    trainer.history, trainer.outcomes = [], []
    trainer.samples = spec.get("samples", False)
    trainer.train(resume_from_checkpoint=spec.get("resume"))
    trainer.save_model(spec["out"])
    rows, steps = gather_object([trainer.rows]), gather_object([watch.steps])
    stopped = gather_object([trainer.was_stopped] if isinstance(trainer, CannedTrainer) else [])
    if trainer.accelerator.is_main_process:
        result = {"history": trainer.history, "outcomes": trainer.outcomes, "rows": rows, "watched": steps}
        result |= {"stopped": stopped}
        result |= {"log": trainer.state.log_history, "backend": str(trainer.accelerator.distributed_type)}
        (Path(spec["out"]) / "result.json").write_text(json.dumps(result))
    trainer.accelerator.end_training()
    if trainer.accelerator.num_processes > 1:
        sys.stdout.flush()
        os._exit(0)  # gloo's threads abort the interpreter's exit now and then, with the groups closed too


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
