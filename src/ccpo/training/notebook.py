"""[`TeamNotebookCallback`]: a run in a notebook. Needs IPython, which is there."""

from transformers.utils.notebook import NotebookProgressCallback

from .progress import shown_metrics


class TeamNotebookCallback(NotebookProgressCallback):
    """
    transformers' bar and table of a notebook, with the team's accuracies in the table.

    Overrides `on_log`, which adds columns where there is no evaluation, and `on_evaluate`, which leaves of an
    evaluation's metrics the same ones: as columns there would be fifty.
    """

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=logs, **kwargs)
        shown = shown_metrics(logs or {})
        if args.eval_strategy == "no" and "loss" in (logs or {}) and shown:
            columns = {name.capitalize(): value for name, value in shown.items()}
            self.training_tracker.write_line({"Step": state.global_step, **columns})

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics = metrics or {}
        prefix = next((name.removesuffix("runtime") for name in metrics if name.endswith("_runtime")), "eval_")
        own = {name: value for name, value in metrics.items() if name == f"{prefix}loss"}
        own |= {f"{prefix}{name}": value for name, value in shown_metrics(metrics, prefix).items()}
        super().on_evaluate(args, state, control, metrics=own, **kwargs)
