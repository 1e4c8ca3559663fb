"""Stop and go on, on one process: the same to the bit at every step; and whatever else a checkpoint may be."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_trainer import mixed_outcome
from transformers import TrainerCallback

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SelfEvaluatedCredit

ROLES = ("thinker", "solver")
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
CLOCK = ("time", "runtime", "per_second", "flos")  # what differs by the clock, in the log's keys
CREDITS = {
    "ccpo": lambda: CounterfactualCredit(mixed_outcome),
    "sepo": lambda: SelfEvaluatedCredit(
        mixed_outcome, rating_mode="constrained", rating_prompt="{role} {outcome} {answer}"
    ),
}
torch.set_num_threads(1)


@pytest.fixture
def problems():
    """Six prompts, so that ten steps pass through several epochs."""
    prompts = [[{"role": "user", "content": f"{i}+1="}] for i in range(6)]
    return Dataset.from_dict({"prompt": prompts, "solution": [str(i + 1) for i in range(6)]})


class Digest(TrainerCallback):
    """Weights and optimizer state at the end."""

    def on_train_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.optimizer = optimizer.state_dict()


def run(model, args, dataset, credit="ccpo", resume=None, **kwargs):
    digest = Digest()
    trainer = MultiAgentGRPOTrainer(
        model=model, reward_funcs=CREDITS[credit](), args=args, train_dataset=dataset, callbacks=[digest], **kwargs
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, digest


def logged(trainer):
    """The log without what the clock decides, as text: NaN equals NaN."""
    rows = [
        {key: value for key, value in row.items() if not any(word in key for word in CLOCK)}
        for row in trainer.state.log_history
        if "train_loss" not in row
    ]
    return [json.dumps(row, sort_keys=True) for row in rows]


def assert_identical(one: Digest, two: Digest) -> None:
    assert one.weights.keys() == two.weights.keys()
    for name, weight in one.weights.items():
        assert torch.equal(weight, two.weights[name]), name
    first, second = one.optimizer, two.optimizer
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for index, state in first["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second["state"][index][key])), (index, key)


CASES = {
    # a block of 2 generation batches = 16 micro-batches = 8 steps; a generation batch is 4 steps, passed over twice
    "mid batch and block": (
        "separate",
        "ccpo",
        {"steps_per_generation": 4, "num_iterations": 2, "alternate_period": 1},
    ),
    "sepo": ("separate", "sepo", {"schedule": "joint", "steps_per_generation": 2}),
    "accumulation, epochs, sparse log": (
        "separate",
        "ccpo",
        {"gradient_accumulation_steps": 2, "alternate_period": 2, "logging_steps": 3, "lr_scheduler_type": "linear"},
    ),
    "shared": ("shared", "ccpo", {"num_solves": 2}),
    "adapters": ("adapters", "ccpo", {"alternate_period": 1, "steps_per_generation": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_resuming_at_every_step_is_the_run_that_never_stopped(case, model_dirs, make_config, problems, tmp_path):
    sharing, credit, settings = CASES[case]
    separate = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    model = separate if sharing == "separate" else model_dirs["qwen3"]
    peft = {"peft_config": LORA} if sharing == "adapters" else {}
    steps = 10
    settings = {
        "policy_sharing": sharing,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 1,
        "weight_decay": 0.1,
        "log_completions": False,
        **settings,
    }
    args = make_config(**settings)
    whole, digest = run(model, args, problems, credit, **peft)
    assert sum(json.loads(row)["epoch"] > 1 for row in logged(whole)) > 0 or "mid" in case
    for step in range(1, steps + 1):
        again = make_config(**settings, output_dir=str(tmp_path / f"again{step}"))
        checkpoint = f"{args.output_dir}/checkpoint-{step}"
        resumed, copy = run(model, again, problems, credit, resume=checkpoint, **peft)
        assert resumed.state.global_step == steps
        assert logged(resumed) == logged(whole), step
        if step < steps:  # at the end there is nothing to do, and the callback sees no optimizer state but the loaded
            assert_identical(digest, copy)
        else:
            assert all(torch.equal(w, copy.weights[n]) for n, w in digest.weights.items())
