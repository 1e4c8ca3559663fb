"""
The time of one CCPO step, against stock TRL on the same sequences, against shared credit, and by its parts.

    python benchmarks/step_time.py [--turns 15] [--steps 3]

CCPO has K = 1 answer to each thought here, and S = G solo answers to each problem. Six trainers of the same tiny
models are built once and train in turn, a few steps each. Ratios are computed within a turn, and the median over the
turns is reported. All completions are numbers of one fixed length, and a verifier judges every answer, joint or solo.

1. `ratio_vs_stock_trl`: CCPO with both roles trained, divided by stock TRL doing the same: a GRPOTrainer step of the
   Thinker, a GRPOTrainer step of the Solver, and the generation and judging of as many solo answers by the Solver's
   trainer.
2. `ccpo_over_shared`: CCPO divided by shared credit, with both roles trained. The excess over 1 may be at most
   `solo_token_share`, which is solo tokens / (thought + joint + solo tokens). `ccpo_over_shared_solver_block`: the
   same if only the Solver is trained (schedule "alternate"). CCPO then needs no solo answers either.
3. `arms`: seconds and tokens of each part of those CCPO steps, as logged (`rollout/<arm>_seconds`). `accounted_share`
   is the sum of these seconds divided by the step's wall time, which includes logging.

Writes `outputs/bench/step_time.json`.
"""

import argparse
import os
import random
import statistics
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as hf_logging
from trl import GRPOConfig, GRPOTrainer

from ccpo import CounterfactualCredit, MathVerifier, MultiAgentGRPOConfig, MultiAgentGRPOTrainer, SharedCredit
from ccpo.report import write_json
from ccpo.tasks import arithmetic
from ccpo.team.prompts import build_solo_messages, build_solver_messages, build_thinker_messages

ARMS = ("thought", "joint", "solo", "rating", "verify", "update")


class StepTimer(TrainerCallback):
    """Seconds of every step of the current `train()` but the first: from one's begin to the next, logging included."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.moments = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.moments.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step == state.max_steps and len(self.moments) == state.max_steps:
            self.moments.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.moments[1:], self.moments[2:], strict=False)]


class SoloGRPOTrainer(GRPOTrainer):
    """Stock TRL; before each batch it also generates the solo answers, as many as there are rows, and judges them."""

    def _generate_and_score_completions(self, inputs):
        solo = [build_solo_messages(row["problem"], self.topology.solo_prompt) for row in inputs]
        prompt_ids, images, fields = self._tokenize_prompts(solo)
        ids, _ = self._generate_single_turn(prompt_ids, images, fields, self.num_generations)
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        self.reward_funcs[0](prompts=solo, completions=texts, solution=[row["solution"] for row in inputs])
        return super()._generate_and_score_completions(inputs)


class Arm:
    """
    A trainer that trains a few steps whenever asked, and is timed.

    Args:
        reward: allocator or reward function.
        options (`argparse.Namespace`): `steps`, `batch_size`, `num_generations`, `length`, `cpu`.
        dataset ([`~datasets.Dataset`]): the problems.
        folder (`str`): the output directory, never written to.
        cls (`type`): the trainer's class.
        models (`dict`, model or folder, *optional*): built unless given.
        topology ([`~ccpo.Topology`], *optional*): the embedded task's unless given, with its tokenizer.
        peft_config (*optional*): of adapters to train.
        settings: fields of the configuration to change.
    """

    def __init__(
        self,
        reward,
        options,
        dataset,
        folder,
        cls=MultiAgentGRPOTrainer,
        models=None,
        topology=None,
        peft_config=None,
        **settings,
    ):
        team, tokenizer = issubclass(cls, MultiAgentGRPOTrainer), None
        if topology is None:
            topology, tokenizer = arithmetic.topology(), arithmetic.build_tokenizer()
            digits = [i for token, i in tokenizer.get_vocab().items() if not token.isdigit()]
            settings = {
                "generation_kwargs": {"min_new_tokens": options.length, "suppress_tokens": digits},
                **settings,
            }
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": options.batch_size,
            "num_generations": options.num_generations,
            "max_completion_length": options.length,
            "max_steps": options.steps + 1,
            "lr_scheduler_type": "constant",
            "scale_rewards": "none",
            "report_to": "none",
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": options.cpu,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            **settings,
        }
        if models is None:
            models = {role: arithmetic.build_policy(tokenizer, seed) for seed, role in enumerate(arithmetic.ROLES)}
            models = models if team else models["solver"]
        self.timer, self.accounts, self.turns = StepTimer(), [], []
        self.trainer = cls(
            models,
            reward,
            (MultiAgentGRPOConfig if team else GRPOConfig)(**settings),
            dataset,
            processing_class=tokenizer,
            callbacks=[self.timer],
            peft_config=peft_config,
            **({"topology": topology} if team else {}),
        )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.topology = topology

    def turn(self) -> float:
        """Median seconds of a step; what the arms of those steps took is added to `accounts`."""
        self.trainer.train()
        seconds = self.timer.seconds
        rows = [row for row in self.trainer.state.log_history if "loss" in row][1:]
        for row, wall in zip(rows, seconds, strict=True):
            arms = {arm: row.get(f"rollout/{arm}_seconds", 0.0) for arm in ARMS}
            tokens = {f"{arm}_tokens": row.get(f"rollout/{arm}_tokens", 0.0) for arm in ARMS}
            self.accounts.append({**arms, **tokens, "wall": wall, "share": sum(arms.values()) / wall})
        self.turns.append(statistics.median(seconds))
        return self.turns[-1]

    def median(self, name: str) -> float:
        """The median over all steps of an arm's seconds, `<arm>_tokens`, `wall` or `share`."""
        return statistics.median(account[name] for account in self.accounts)


def median_ratio(above: Arm, *below: Arm) -> tuple[float, list[float]]:
    """The median over the turns of one arm's time over the sum of the others', and all of them."""
    ratios = [one / sum(others) for one, *others in zip(above.turns, *(arm.turns for arm in below), strict=True)]
    return statistics.median(ratios), ratios


def take_turns(arms: dict[str, Arm], turns: int) -> None:
    """One turn to warm up, then `turns` of them; every other one in the opposite order."""
    for turn in range(turns + 1):
        for arm in list(arms.values())[:: 1 if turn % 2 == 0 else -1]:
            arm.turn()
            if turn == 0:
                arm.turns.clear(), arm.accounts.clear()
        if turn:
            print(f"turn {turn}:", *(f"{name} {arm.turns[-1]:.3f} s" for name, arm in arms.items()), sep="  ")


def show_accounts(arm: Arm) -> None:
    """Print the table of an arm's time and tokens."""
    print(f"\n{'arm of a step':24}{'tokens':>10}{'seconds':>10}{'of the step':>13}")
    for name in ARMS:
        seconds, share = arm.median(name), statistics.median(a[name] / a["wall"] for a in arm.accounts)
        print(f"{name:24}{arm.median(f'{name}_tokens'):10.0f}{seconds:10.4f}{share:13.1%}")
    print(f"{'all of them':24}{'':10}{'':10}{arm.median('share'):13.1%}")
    print(f"{'wall time':24}{'':10}{arm.median('wall'):10.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="timed in a turn, after one that is not")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--length", type=int, default=12, help="tokens of every completion")
    parser.add_argument("--output", default="outputs/bench/step_time.json")
    options = parser.parse_args()
    options.cpu = not torch.cuda.is_available()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bars()

    topology, verifier = arithmetic.topology(), MathVerifier()
    problems = arithmetic.build_dataset("train", size=512)
    thinker = problems.map(
        lambda row: {
            "prompt": build_thinker_messages(row["prompt"], topology.thinker_prompt),
            "problem": row["prompt"],
        }
    )
    # What stock TRL's Solver reads: thoughts of the kind that the random Thinker writes, numbers below 300.
    rng = random.Random(0)
    thoughts = ["".join(str(rng.randrange(300)) for _ in range(options.length)) for _ in problems]
    solver = thinker.map(
        lambda row, i: {"prompt": build_solver_messages(row["problem"], thoughts[i], topology.solver_prompt)},
        with_indices=True,
    )

    def even(prompts, completions, **kwargs):
        return [float(len(completion) % 2) for completion in completions]  # the Thinker's credit costs stock nothing

    block = {"schedule": "alternate", "start_role": "solver", "alternate_period": 10**9}
    with tempfile.TemporaryDirectory() as folder:
        common = {"options": options, "folder": folder}
        arms = {
            "ccpo": Arm(CounterfactualCredit(verifier), dataset=problems, schedule="joint", **common),
            "shared": Arm(SharedCredit(verifier), dataset=problems, schedule="joint", **common),
            "stock_thinker": Arm(even, dataset=thinker, cls=GRPOTrainer, **common),
            "stock_solver": Arm(verifier, dataset=solver, cls=SoloGRPOTrainer, **common),
            "ccpo_solver_block": Arm(CounterfactualCredit(verifier), dataset=problems, **block, **common),
            "shared_solver_block": Arm(SharedCredit(verifier), dataset=problems, **block, **common),
        }
        take_turns(arms, options.turns)

    ccpo = arms["ccpo"]
    against_stock, stock_ratios = median_ratio(ccpo, arms["stock_thinker"], arms["stock_solver"])
    against_shared, shared_ratios = median_ratio(ccpo, arms["shared"])
    in_block, block_ratios = median_ratio(arms["ccpo_solver_block"], arms["shared_solver_block"])
    tokens = {arm: ccpo.median(f"{arm}_tokens") for arm in ("thought", "joint", "solo")}
    result = {
        "ratio_vs_stock_trl": against_stock,
        "ccpo_over_shared": against_shared,
        "solo_token_share": tokens["solo"] / sum(tokens.values()),
        "ccpo_over_shared_solver_block": in_block,
        "accounted_share": ccpo.median("share"),
        "seconds": {name: statistics.median(arm.turns) for name, arm in arms.items()},
        "arms": {arm: {"seconds": ccpo.median(arm), "tokens": ccpo.median(f"{arm}_tokens")} for arm in ARMS},
        "solver_block_accounted_share": arms["ccpo_solver_block"].median("share"),
        "solver_block_solo_tokens": arms["ccpo_solver_block"].median("solo_tokens"),
        "ratios": {"stock_trl": stock_ratios, "shared": shared_ratios, "shared_solver_block": block_ratios},
        "settings": vars(options),
    }
    labels = ("CCPO", "shared credit", "TRL, Thinker", "TRL, Solver and solos", "CCPO, Solver block")
    print(f"\n{'':36}{'seconds per step':>18}")
    for label, value in zip((*labels, "shared credit, Solver block"), result["seconds"].values(), strict=True):
        print(f"{label:36}{value:18.4f}")
    print(f"\n{'median of the turns':36}{'figure':>18}{'goal':>12}")
    for label, value, goal in (
        ("CCPO / stock TRL", against_stock, 1.10),
        ("CCPO / shared credit", against_shared, 1 + result["solo_token_share"]),
        ("CCPO / shared, Solver block", in_block, 1.0),
    ):
        print(f"{label:36}{value:18.3f}{goal:12.3f}")
    show_accounts(ccpo)
    print(write_json(result, options.output))


if __name__ == "__main__":
    main()
