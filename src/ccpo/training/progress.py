"""What a run shows while it goes on: a bar with the team's accuracy, or a line for each log."""

import sys
from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, TrainerCallback

# Metric -> what it is called.
_SHOWN = {
    "credit/joint_accuracy": "joint",
    "credit/solo_accuracy": "solo",
    "credit/leak_rate": "leak",
    "credit/no_answer_rate": "no answer",
}
_WITHOUT = ("credit/without_", "_accuracy")  # around a role's name
_MOST = 3  # roles that are shown without; of more, the line would be too long


def shown_metrics(logs: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """
    What of a log is shown, by name: the team's accuracy, that without each role, leaks, and answers that are none; of
    one role alone its reward.

    Args:
        logs (`Mapping[str, Any]`): a log.
        prefix (`str`, *optional*): of its names, e.g. `"eval_"`.
    """
    own = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
    names = dict(_SHOWN)
    start, end = _WITHOUT
    without = [name for name in own if name.startswith(start) and name.endswith(end)]
    if len(without) <= _MOST:
        names |= {name: f"without {name[len(start) : -len(end)]}" for name in without}
    shown = {label: own[name] for name, label in names.items() if own.get(name) is not None}
    if not shown.get("no answer"):  # only where there is something to say
        shown.pop("no answer", None)
    if not shown and own.get("reward") is not None:
        shown = {"reward": own["reward"]}
    return {label: f"{value:.2f}" for label, value in shown.items()}


class TeamProgressCallback(ProgressCallback):
    """TRL's progress bar, with the team's accuracy behind it instead of every metric printed."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = shown_metrics(logs or {})
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)


class LogLineCallback(TrainerCallback):
    """With `disable_tqdm`: a line for each log, instead of every metric printed."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        prefix = next((name.removesuffix("runtime") for name in logs if name.endswith("_runtime")), "")
        if prefix == "train_":
            told = [f"trained in {logs['train_runtime']:.0f} s"]
        else:
            told = [f"{name} {value}" for name, value in shown_metrics(logs, prefix).items()]
            if isinstance(loss := logs.get(f"{prefix}loss"), float):
                told.append(f"loss {loss:.4f}")
        label = f", {prefix.removesuffix('_')}" if prefix not in ("", "train_") else ""
        sys.stdout.write(f"step {state.global_step}/{state.max_steps}{label}: {', '.join(told)}\n")
        sys.stdout.flush()
