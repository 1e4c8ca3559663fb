"""
One run with canned completions, the same in every set-up: on one process, or under torch.distributed.run.

    python tests/canned.py '{"model": …, "args": {…}, "out": …}'

Completions are drawn from a generator seeded with the generation batch, the arm and the row's place in the global
batch, so that every set-up replays the same episodes. Writes the weights, the gathered advantages and the log.
"""

import json
import random
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig

from ccpo import CounterfactualCredit, MultiAgentGRPOConfig, MultiAgentGRPOTrainer, SelfEvaluatedCredit, SharedCredit

CREDITS = {
    "shared": SharedCredit,
    "ccpo": CounterfactualCredit,
    "sepo": lambda outcome: SelfEvaluatedCredit(
        outcome, rating_mode="constrained", rating_expectation=True, rating_prompt="{role} {outcome} {answer}"
    ),
}


def judge(prompts, completions, **kwargs):
    """Right, wrong or unscorable by the text alone."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [None if text.startswith("z") else 1.0 if sum(map(ord, text)) % 2 else -1.0 for text in texts]


class CannedTrainer(MultiAgentGRPOTrainer):
    """Generation replaced by canned completions; everything else is the trainer."""

    calls = 0

    def _roll_out(self, inputs, in_turn):
        self.rows = len(inputs)
        rollout = super()._roll_out(inputs, in_turn)
        self.advantages_seen = []
        return rollout

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        self.calls += 1
        completions = []
        for i in range(len(prompt_ids)):
            arm, row = divmod(i, self.rows)  # joint answers, then solos: as many as rows here
            place = self.accelerator.process_index * self.rows + row
            draw = random.Random(f"{self.calls}/{arm}/{place}")
            ids = [draw.randrange(3, len(self._tokenizer)) for _ in range(draw.randrange(1, 7))]
            completions.append([*ids, self._tokenizer.eos_token_id])
        return completions, None

    def _log_rollout(self, rollout, rewards, advantages):
        super()._log_rollout(rollout, rewards, advantages)
        self.history.append({role: values.tolist() for role, values in advantages.items()})


def main(spec: dict) -> None:
    torch.set_num_threads(1)
    dataset = Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": f"{i}+1="}] for i in range(12)], "solution": ["1"] * 12}
    )
    args = MultiAgentGRPOConfig(**spec["args"])
    trainer = CannedTrainer(
        spec["model"],
        CREDITS[spec.get("credit", "ccpo")](judge),
        args,
        dataset,
        peft_config=LoraConfig(**spec["lora"]) if "lora" in spec else None,
    )
    trainer.history = []
    trainer.train()
    trainer.save_model(spec["out"])
    rows = gather_object([trainer.rows])
    if trainer.accelerator.is_main_process:
        result = {"history": trainer.history, "rows": rows, "log": trainer.state.log_history}
        (Path(spec["out"]) / "result.json").write_text(json.dumps(result))
    trainer.accelerator.end_training()  # gloo's threads abort a process that leaves its group open


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
