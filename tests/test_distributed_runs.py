"""Real processes on CPU: what is resumed, stopped, saved, generated and rated in several of them."""

import pytest
import torch
from conftest import make_model, make_tokenizer
from launching import (
    AGENTS,
    BLOCKS,
    LORA,
    ROLES,
    SET_UPS,
    assert_same_run,
    launch,
    marks,
    mode,
    needs_deepspeed,
)

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("set_up", "sharing"),
    [
        pytest.param(set_up, sharing, marks=marks(set_up))
        for set_up, sharing in (
            ("DDP", "separate"),
            ("ZeRO-2", "separate"),
            ("ZeRO-3", "separate"),
            ("ZeRO-3", "adapters"),
            ("FSDP2", "separate"),
            ("FSDP2", "adapters"),
        )
    ],
)
def test_resuming_in_the_middle_of_a_batch_and_a_block(set_up, sharing, tmp_path, model_dirs):
    """Two processes: the generation batch is of 2 steps, gone through twice, and a block of 8."""
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode(sharing, model_dirs)
    kwargs = {**kwargs, **({"policy_sharing": sharing, "lora": LORA} if sharing == "adapters" else {})}
    settings = {
        "credit": "dacr",
        "steps_per_generation": 2,
        "num_iterations": 2,
        "schedule": "alternate",
        "alternate_period": 2,
    }
    settings |= {"max_steps": 10, "save_strategy": "steps", "save_steps": 3, **kwargs}
    whole = launch(tmp_path / "whole", model, num_processes, **settings)
    for step in (3, 9):
        checkpoint = tmp_path / "whole" / "run" / f"checkpoint-{step}"
        rest = launch(tmp_path / f"from{step}", model, num_processes, resume=str(checkpoint), **settings)
        begun = -(-step // 4)  # generation batches of which nothing is left to generate
        assert len(rest["history"]) == len(whole["history"]) - begun
        assert_same_run(whole | {key: whole[key][begun:] for key in ("history", "outcomes")}, rest, tolerance=5e-5)
        for mine, theirs in zip(whole["log"], rest["log"], strict=True):
            for key in mine.keys() - {"step_time", "train_runtime", "train_loss"}:
                if not key.endswith(("_second", "_seconds", "_flos", "_time")):
                    assert mine[key] == pytest.approx(theirs[key], abs=1e-5, nan_ok=True), key


@pytest.mark.parametrize("set_up", [pytest.param(name, marks=marks(name)) for name in ("DDP", "ZeRO-3", "FSDP2")])
def test_the_adapter_out_of_turn_does_not_move(set_up, tmp_path, model_dirs):
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode("adapters", model_dirs)
    run = launch(tmp_path / "run", model, num_processes, **{**settings, **BLOCKS, "max_steps": 4}, **kwargs)
    for steps in run["watched"]:
        for row in steps:
            moves, rests = (agent for agent in sorted(AGENTS, key=lambda agent: agent != row["in_turn"]))
            for what in ("weights", "masters", "moments"):
                assert row[f"{rests}/{what}"] and not row[f"{moves}/{what}"], (what, row)


def test_sigterm_to_one_process_stops_both_after_a_checkpoint(tmp_path, model_dirs):
    """Both save and leave `train` as stopped, and the run goes on from there."""
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    settings = {"max_steps": 4, "per_device_train_batch_size": 4}
    whole = launch(tmp_path / "whole", model, 2, **settings)
    first = launch(tmp_path / "first", model, 2, preempt=2, **settings)
    assert first["stopped"] == [True, True] and len(first["history"]) == 2
    assert [path.name for path in (tmp_path / "first" / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    checkpoint = str(tmp_path / "first" / "run" / "checkpoint-2")
    rest = launch(tmp_path / "rest", model, 2, resume=checkpoint, **settings)
    assert_same_run(whole | {key: whole[key][2:] for key in ("history", "outcomes")}, rest, tolerance=5e-5)


def test_tied_embeddings_are_saved_once(tmp_path):
    """Gathered from FSDP2, two tensors come back for a weight that is one."""
    model = {}
    for role, kind in zip(ROLES, ("qwen3", "llama"), strict=True):
        tokenizer = make_tokenizer(kind=kind)
        make_model(kind, tokenizer, tie_word_embeddings=True).save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
        model[role] = str(tmp_path / role)
    one = launch(tmp_path / "one", model, 1, per_device_train_batch_size=8, max_steps=2)
    two = launch(tmp_path / "two", model, 2, per_device_train_batch_size=4, max_steps=2, fsdp=True)
    assert_same_run(one, two, tolerance=5e-5)


@pytest.mark.parametrize("set_up", [pytest.param(name, marks=marks(name)) for name in ("ZeRO-3", "FSDP2")])
def test_sharded_policies_generate_with_ends_that_differ_by_process(set_up, tmp_path, model_dirs):
    """A process whose completions end early must take part in the others' forward passes."""
    num_processes, kwargs = SET_UPS[set_up]
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    settings = {"samples": True, "max_steps": 2, "max_completion_length": 40, **kwargs}
    run = launch(tmp_path / "run", model, num_processes, **settings)
    rows = [row for row in run["log"] if "loss" in row]
    for role in ROLES:
        assert all(row[f"{role}/completions/min_length"] < row[f"{role}/completions/max_length"] for row in rows)


@needs_deepspeed
def test_zero3_starts_every_step_from_no_gradient(tmp_path, model_dirs):
    """ZeRO-3 overwrites last step's gradients in a step's first backward pass only, and the Solver's is the second."""
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    one = launch(tmp_path / "one", model, 1, per_device_train_batch_size=6)
    two = launch(tmp_path / "two", model, 2, per_device_train_batch_size=3, zero=3)
    norms = [[row["grad_norm"] for row in run["log"] if "grad_norm" in row] for run in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert_same_run(one, two, tolerance=5e-5)


@needs_deepspeed
def test_constrained_ratings_under_zero3_with_verdicts_that_differ_by_rank(tmp_path, model_dirs):
    """Each forward pass gathers the sharded weights: ranks with unequally many answers to rate must not go apart."""
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    settings = {"per_device_train_batch_size": 3, "num_solves": 2, "max_steps": 2, "zero": 3}
    run = launch(tmp_path / "two", model, 2, "sepo_by_rank", **settings)
    assert [row["rating/thinker_valid_rate"] for row in run["log"] if "loss" in row] == [1.0, 1.0]
    assert torch.tensor(run["outcomes"][0]["joint"]).flatten().tolist() == [1.0] * 6 + [-1.0] * 5 + [1.0]


@pytest.mark.parametrize("what", ["rated", "generated"])
def test_zero3_trains_the_policy_that_has_just(what, tmp_path, model_dirs):
    """DeepSpeed fetches in the last pass's order, which ended in the LM head's module; TRL's loss does not call it."""
    settings = {"policy_sharing": "shared", "per_device_train_batch_size": 2, "max_steps": 2, "zero": 3}
    if what == "generated":
        settings |= {"samples": True, "ds3_gather_for_generation": False, "schedule": "alternate"}
    run = launch(tmp_path / "two", model_dirs["qwen3"], 2, "sepo" if what == "rated" else "shared", **settings)
    assert len([row for row in run["log"] if "loss" in row]) == 2


def test_drop_in_reward_with_groups_split_over_two_processes(tmp_path, model_dirs):
    """TRL's own trainer: the reward function sees a process's rows, the credit the whole group."""
    one = launch(tmp_path / "one", model_dirs["qwen3"], 1, "drop_in", per_device_train_batch_size=6)
    two = launch(tmp_path / "two", model_dirs["qwen3"], 2, "drop_in", per_device_train_batch_size=3)
    assert (one["rows"], two["rows"]) == ([6], [3, 3])
    assert len({reward for batch in one["history"] for reward in batch["rewards"]}) > 2  # outcomes and bonuses
    assert any(advantage != 0 for batch in one["history"] for advantage in batch["advantages"])
    assert_same_run(one, two)
