"""
Time of one CCPO step (joint schedule, K = 1, S = G) against what stock TRL needs for the same sequences and updates.

    python benchmarks/step_time.py

Stock TRL is a GRPOTrainer step of the Thinker, a GRPOTrainer step of the Solver, and the generation of as many solo
answers by the Solver's trainer. All completions are numbers of the same fixed length, and the verifier judges as many.
Ours and stock run in turn, and the ratio is taken within each turn; the median over the turns is reported. Writes
`outputs/bench/step_time.json` with `ratio_vs_stock_trl`.
"""

import argparse
import statistics
import tempfile
import time

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as hf_logging
from trl import GRPOConfig, GRPOTrainer

from ccpo import CounterfactualCredit, MathVerifier, MultiAgentGRPOConfig, MultiAgentGRPOTrainer
from ccpo.prompts import build_solo_messages, build_solver_messages, build_thinker_messages
from ccpo.report import write_json
from ccpo.tasks import arithmetic


class StepTimer(TrainerCallback):
    """Seconds between the ends of optimizer steps, the first left out."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(time.perf_counter())

    @property
    def median(self) -> float:
        return statistics.median(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))


class SoloGRPOTrainer(GRPOTrainer):
    """Stock TRL; before each batch it also generates the solo answers, as many as there are rows, and judges them."""

    def _generate_and_score_completions(self, inputs):
        solo = [build_solo_messages(row["problem"], self.topology.solo_prompt) for row in inputs]
        prompt_ids, images, fields = self._tokenize_prompts(solo)
        ids, _ = self._generate_single_turn(prompt_ids, images, fields, self.num_generations)
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        self.reward_funcs[0](prompts=solo, completions=texts, solution=[row["solution"] for row in inputs])
        return super()._generate_and_score_completions(inputs)


def run(cls, config_class, *, folder, dataset, tokenizer, reward, options, **kwargs) -> float:
    """Median seconds of a step of a fresh trainer."""
    settings = {
        "output_dir": folder,
        "per_device_train_batch_size": options.batch_size,
        "num_generations": options.num_generations,
        "max_completion_length": options.length,
        "generation_kwargs": {"min_new_tokens": options.length, "suppress_tokens": options.suppress_tokens},
        "max_steps": options.steps + 1,
        "scale_rewards": "none",
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": options.cpu,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    if config_class is MultiAgentGRPOConfig:
        settings["schedule"] = "joint"
        model = {role: arithmetic.build_policy(tokenizer, seed) for seed, role in enumerate(arithmetic.ROLES)}
    else:
        model = arithmetic.build_policy(tokenizer, 0)
    timer = StepTimer()
    trainer = cls(
        model,
        reward,
        config_class(**settings),
        dataset,
        processing_class=tokenizer,
        callbacks=[timer],
        **kwargs,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.topology = arithmetic.topology()
    trainer.train()
    return timer.median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--output", default="outputs/bench/step_time.json")
    options = parser.parse_args()
    options.cpu = not torch.cuda.is_available()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()

    tokenizer, topology, verifier = arithmetic.build_tokenizer(), arithmetic.topology(), MathVerifier()
    options.suppress_tokens = [i for token, i in tokenizer.get_vocab().items() if not token.isdigit()]
    problems = arithmetic.build_dataset("train", size=512)
    thinker = problems.map(
        lambda row: {
            "prompt": build_thinker_messages(row["prompt"], topology.thinker_prompt),
            "problem": row["prompt"],
        }
    )
    thought = "7+12=19"  # the length of a thought that the Solver reads
    solver = thinker.map(
        lambda row: {"prompt": build_solver_messages(row["problem"], thought, topology.solver_prompt)}
    )

    def even(prompts, completions, **kwargs):
        return [float(len(completion) % 2) for completion in completions]  # the Thinker's credit costs stock nothing

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            credit = CounterfactualCredit(verifier)
            common = {"tokenizer": tokenizer, "options": options, "folder": folder}
            ours = run(
                MultiAgentGRPOTrainer,
                MultiAgentGRPOConfig,
                dataset=problems,
                reward=credit,
                topology=topology,
                **common,
            )
            think = run(GRPOTrainer, GRPOConfig, dataset=thinker, reward=even, **common)
            solve = run(SoloGRPOTrainer, GRPOConfig, dataset=solver, reward=verifier, **common)
            rows.append((ours, think, solve, ours / (think + solve)))
            print(f"turn {turn + 1}: ours {ours:.3f} s, stock {think:.3f} + {solve:.3f} s, ratio {rows[-1][-1]:.3f}")
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"\n{'':24}{'seconds per step':>18}")
    for label, value in zip(("CCPO, both roles", "TRL, Thinker", "TRL, Solver and solos"), medians, strict=False):
        print(f"{label:24}{value:18.3f}")
    print(f"{'ratio (median of turns)':24}{medians[-1]:18.3f}")
    result = {
        "ratio_vs_stock_trl": medians[-1],
        "ratios": [row[-1] for row in rows],
        "ccpo_seconds": medians[0],
        "stock_thinker_seconds": medians[1],
        "stock_solver_seconds": medians[2],
        "settings": {name: value for name, value in vars(options).items() if name != "suppress_tokens"},
    }
    print(write_json(result, options.output))


if __name__ == "__main__":
    main()
