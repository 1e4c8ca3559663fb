"""Real processes on CPU: what is sampled is canned, so that every set-up must end with the same weights."""

import pytest
from launching import (
    AGENTS,
    LORA,
    SET_UPS,
    assert_same_run,
    launch,
    marks,
    mode,
)

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("sharing", "credit", "settings"),
    [
        ("separate", "ccpo", {"schedule": "alternate", "alternate_period": 1, "loss_type": "dapo"}),
        ("separate", "sepo", {"loss_type": "grpo"}),
        ("adapters", "ccpo", {"advantage_estimator": "reinforce++", "loss_type": "grpo"}),
        ("shared", "ccpo", {"loss_type": "grpo"}),
        ("separate", "ccpo", {"num_solves": 2, "num_solos": 3, "loss_type": "grpo"}),  # 4 and 5 solos
    ],
)
def test_groups_split_over_two_processes(sharing, credit, settings, tmp_path, model_dirs):
    """3 rows per process and groups of 2: the second prompt's group lies on both. Credit must see it whole."""
    model = (
        {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
        if sharing == "separate"
        else model_dirs["qwen3"]
    )
    lora = LORA if sharing == "adapters" else None
    settings = {"policy_sharing": sharing, **settings}
    one = launch(tmp_path / "one", model, 1, credit, lora, per_device_train_batch_size=6, **settings)
    two = launch(tmp_path / "two", model, 2, credit, lora, per_device_train_batch_size=3, **settings)
    assert (one["rows"], two["rows"]) == ([6], [3, 3])
    assert any(a != 0 for batch in one["history"] for role in batch.values() for row in role for a in row)
    assert_same_run(one, two)
    tokens = [f"rollout/{arm}_tokens" for arm in ("thought", "joint", "update")]
    for key in ("credit/joint_accuracy", "credit/solo_accuracy", "thinker/reward", "credit/leak_rate", *tokens):
        mine, theirs = ([row.get(key) for row in run["log"]] for run in (one, two))
        assert mine == pytest.approx(theirs, abs=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, model_dirs):
    """The run of one process with the batch in one piece, of each sharing mode."""
    runs = {}

    def get(sharing: str) -> dict:
        if sharing not in runs:
            model, settings = mode(sharing, model_dirs)
            out = tmp_path_factory.mktemp("whole") / sharing
            runs[sharing] = launch(out, model, 1, per_device_train_batch_size=8, **settings)
        return runs[sharing]

    return get


@pytest.mark.parametrize("set_up", [pytest.param(name, marks=marks(name)) for name in SET_UPS])
def test_three_blocks_are_the_same_in_every_set_up(set_up, tmp_path, model_dirs, whole_run):
    """The same weights after three blocks, and out of turn no bit of a role moves: no weight, master or moment."""
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode("separate", model_dirs)
    run = launch(tmp_path / "run", model, num_processes, **settings, **kwargs)
    kind = {"Ze": "DEEPSPEED", "FS": "FSDP", "DD": "MULTI_CPU", "on": "NO"}[set_up[:2]]
    assert run["backend"].endswith(kind)
    assert_same_run(whole_run("separate"), run, tolerance=5e-5)
    assert len(run["watched"]) == num_processes
    for steps in run["watched"]:
        assert [row["in_turn"] for row in steps] == [agent for agent in ("a", "b", "a") for _ in "12"]
        for i, row in enumerate(steps):
            moves, rests = (agent for agent in sorted(AGENTS, key=lambda agent: agent != row["in_turn"]))
            for what in ("weights", "masters", "moments"):
                assert row[f"{rests}/{what}"], (what, row)
                assert not row[f"{moves}/{what}"], (what, row)
            assert i < 2 or row[f"{rests}/moments/count"] > 0  # there are moments to keep


@pytest.mark.parametrize("sharing", ["shared", "adapters"])
@pytest.mark.parametrize(
    "set_up", [pytest.param(name, marks=marks(name)) for name in ("DDP", "ZeRO-2", "ZeRO-3", "FSDP2")]
)
def test_one_base_is_trained_the_same_in_every_set_up(set_up, sharing, tmp_path, model_dirs, whole_run):
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode(sharing, model_dirs)
    run = launch(tmp_path / "run", model, num_processes, **settings, **kwargs)
    assert_same_run(whole_run(sharing), run, tolerance=5e-5)


@pytest.mark.parametrize("set_up", [pytest.param(name, marks=marks(name)) for name in ("DDP", "ZeRO-2")])
def test_a_launcher_starts_the_run_of_the_forked_processes(set_up, tmp_path, model_dirs, whole_run):
    """torch.distributed.run and `accelerate launch`; every other test forks its processes, for the time's sake."""
    num_processes, kwargs = SET_UPS[set_up]
    model, settings = mode("shared", model_dirs)
    run = launch(tmp_path / "run", model, num_processes, launcher=True, **settings, **kwargs)
    assert_same_run(whole_run("shared"), run, tolerance=5e-5)
