"""Frozen agents and starts from saved adapters in several processes on CPU: no bit moves, and runs are resumed."""

import pytest
import torch
from launching import LORA, SET_UPS, assert_same_run, launch, marks
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed
SETTINGS = {"role_kwargs": {"solver": {"trainable": False}}, "weight_decay": 0.5, "watch": True}
SETTINGS |= {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model_dirs):
    """A run with adapters, on one process: where it saved them."""
    out = tmp_path_factory.mktemp("saved") / "out"
    settings = {"policy_sharing": "adapters", "max_steps": 1, "per_device_train_batch_size": 8}
    launch(out, model_dirs["qwen3"], 1, lora=LORA, **settings)
    return out


def models_of(case: str, model_dirs, saved) -> tuple:
    """Models, settings, and the Solver's weights at the start."""
    if case == "separate":
        models = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
        return models, SETTINGS, load_file(f"{model_dirs['llama']}/model.safetensors")
    settings = {**SETTINGS, "policy_sharing": "adapters", "beta": 0.1}
    if case == "the base":
        return {"thinker": str(saved / "thinker"), "solver": model_dirs["qwen3"]}, settings, None
    start = load_file(saved / "solver" / "adapter_model.safetensors")
    return {role: str(saved / role) for role in ("thinker", "solver")}, settings, start


# `make test` has one case of each backend; `make test-all` the others, too.
IN_TEST = {"DDP": "separate", "ZeRO-2": "the base", "ZeRO-3": "an adapter", "FSDP2": "the base"}
CASES = [
    pytest.param(set_up, case, marks=marks(set_up) + [pytest.mark.full] * (IN_TEST[set_up] != case))
    for set_up in IN_TEST
    for case in ("separate", "the base", "an adapter")
]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, model_dirs, saved):
    """The run of one process, of each case."""
    runs = {}

    def get(case: str) -> dict:
        if case not in runs:
            model, settings, _ = models_of(case, model_dirs, saved)
            out = tmp_path_factory.mktemp("whole") / "run"
            runs[case] = launch(out, model, 1, per_device_train_batch_size=8, **settings)
        return runs[case]

    return get


@pytest.mark.parametrize(("set_up", "case"), CASES)
def test_a_frozen_agent_does_not_move_by_a_bit(set_up, case, tmp_path, model_dirs, saved, whole_run):
    """The Solver plays a model of its own, the base of the Thinker's adapter, or an adapter that it had."""
    num_processes, kwargs = SET_UPS[set_up]
    model, settings, start = models_of(case, model_dirs, saved)
    one = whole_run(case)
    two = launch(tmp_path / "two", model, num_processes, **settings, **kwargs)
    assert_same_run(one, two, tolerance=5e-5)
    again = str(tmp_path / "two" / "run" / "checkpoint-2")
    rest = launch(tmp_path / "rest", model, num_processes, resume=again, **settings, **kwargs)
    whole = two | {key: two[key][2:] for key in ("history", "outcomes")}
    assert_same_run(whole, rest, tolerance=0)
    for run in (one, two, rest):
        assert set(run["weights"]) == ({"thinker"} if start is None else {"thinker", "solver"})
        for name, weight in (start or {}).items():
            assert torch.equal(run["weights"]["solver"][name], weight), name
        for row in (row for steps in run["watched"] for row in steps):
            assert row["solver/weights"] and not row["thinker/weights"], row
            assert row["solver/masters/count"] == row["solver/moments/count"] == 0
        assert all("solver/kl" not in row for row in run["log"])
