"""Stop and go on, on one process: the same to the bit at every step; and whatever else a checkpoint may be."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_trainer import mixed_outcome
from transformers import TrainerCallback

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SelfEvaluatedCredit
from ccpo.training.checkpoints import (
    check_checkpoint,
    find_defects,
    find_last_checkpoint,
    put_aside,
    rotate_complete_checkpoints,
    write_manifest,
)

ROLES = ("thinker", "solver")
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
CLOCK = ("time", "_second", "flos")  # what differs by the clock, in the log's keys
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
    "evaluated and logged at the ends of epochs": (
        "separate",
        "ccpo",
        {
            "eval_strategy": "epoch",
            "logging_strategy": "epoch",
            "schedule": "joint",
        },
    ),
    "adapters of their own, a reference, data workers": (
        "peft",
        "ccpo",
        {"beta": 0.1, "dataloader_num_workers": 1, "log_completions": True, "logging_steps": 4, "max_steps": 5},
    ),
    "adapters": ("adapters", "ccpo", {"alternate_period": 1, "steps_per_generation": 2}),
}


# `make test` resumes one policy of two roles in test_agents.py, and adapters in test_start.py and under ZeRO.
IN_TEST_ALL = ("shared", "adapters")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.full] * (case in IN_TEST_ALL)) for case in CASES]
)
def test_resuming_at_every_step_is_the_run_that_never_stopped(case, model_dirs, make_config, problems, tmp_path):
    sharing, credit, settings = CASES[case]
    separate = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    model = separate if sharing in ("separate", "peft") else model_dirs["qwen3"]
    peft = {"peft_config": LORA} if sharing in ("adapters", "peft") else {}
    if "eval_strategy" in settings:
        peft["eval_dataset"] = problems.select(range(2))
        settings = {**settings, "per_device_eval_batch_size": 4}
    steps = settings.get("max_steps", 10)
    settings = {
        "policy_sharing": "separate" if sharing == "peft" else sharing,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 1,
        "weight_decay": 0.1,
        **settings,
    }
    args = make_config(**settings)
    whole, digest = run(model, args, problems, credit, **peft)
    assert sum(json.loads(row)["epoch"] > 1 for row in logged(whole)) > 0 or "mid" in case or steps < 6
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


def test_an_iterable_dataset_is_continued_in_its_first_pass_and_refused_after(
    model_dirs, make_config, problems, tmp_path
):
    model, stream = model_dirs["qwen3"], problems.to_iterable_dataset()
    settings = {"policy_sharing": "shared", "max_steps": 8, "save_strategy": "steps", "save_steps": 1}
    args = make_config(**settings)
    whole, digest = run(model, args, stream)
    again = make_config(**settings, output_dir=str(tmp_path / "again"))
    resumed, copy = run(model, again, stream, resume=f"{args.output_dir}/checkpoint-4")
    assert logged(resumed) == logged(whole)
    assert_identical(digest, copy)
    with pytest.raises(ValueError, match="`train_dataset` is an iterable in its 2. pass, and only the first"):
        run(model, again, stream, resume=f"{args.output_dir}/checkpoint-7")


def test_a_checkpoint_saved_over_another_leaves_one_complete_at_any_time(tmp_path):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "weights").write_text("old")
    write_manifest(folder, {}, ranks=())
    put_aside(folder)
    assert not folder.exists() and find_last_checkpoint(tmp_path).name == "replaced-checkpoint-2"
    folder.mkdir()
    (folder / "weights").write_text("ne")
    assert find_last_checkpoint(tmp_path).name == "replaced-checkpoint-2"  # the new one is half-written
    write_manifest(folder, {}, ranks=())
    assert find_last_checkpoint(tmp_path) == folder
    rotate_complete_checkpoints(tmp_path, None, {folder})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_checkpoint_without_a_processs_part_is_not_declared_complete(tmp_path):
    (tmp_path / "run_state_0.pth").write_text("state")
    with pytest.raises(OSError, match=r"lacks \['run_state_1.pth'\].* `save_on_each_node=True`"):
        write_manifest(tmp_path, {}, ranks=range(2))
    assert find_defects(tmp_path)


def test_each_process_looks_for_its_own_part(tmp_path):
    """With a disk per node, the second node's checkpoint has the second process's part only."""
    (tmp_path / "run_state_1.pth").write_text("state")
    settings = {"agents": ["thinker", "solver"], "world_size": 2, "train_dataset rows": 6}
    write_manifest(tmp_path, settings, ranks=[1])
    check_checkpoint(tmp_path, settings, rank=1)
    with pytest.raises(ValueError, match="has no run_state_0.pth, this process's part"):
        check_checkpoint(tmp_path, settings, rank=0)
    with pytest.raises(ValueError, match="`world_size` was 2 and is 4"):
        check_checkpoint(tmp_path, {**settings, "world_size": 4}, rank=1)
