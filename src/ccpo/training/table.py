"""[`TableMixin`]: what a generation batch is logged as, metrics, the completions table, and on the screen."""

import copy
import json
import math
from collections import defaultdict, deque
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler

from ..calls import unanswered
from ..rewards import credit_metrics, shares_metrics
from ..rewards.evidence import at_leaves
from ..team.prompts import problem_text
from ..team.rollout import Texts
from ..verifier import plurality
from .collection import Rollout
from .episodes import as_text, describe_columns, effect_of, print_episodes, write_table
from .generator import Sample
from .model_card import installed_versions
from .policies import replaced
from .progress import LogLineCallback, TeamProgressCallback
from .recipe import recipe_of
from .run_record import RunRecord


class TableMixin:
    """
    Over a trainer of several roles: the credit metrics, and one row of the completions table per leaf.

    Overrides `log`: TRL's, which logs the metrics; of a team the table is ours, since TRL's has the columns `prompt`,
    `completion` and `advantage` of one model, beside which each would stand a second time under its role's name.
    """

    def _init_table(self) -> None:
        """To be called when the trainer is built."""
        use_team_progress(self.callback_handler)
        self.add_callback(RunRecord(self._describe_run))
        if not self.topology.is_solo:
            leaves = self.args.generation_batch_size * self._texts_per_row(self.roles[-1])
            self._logs |= {key: deque(maxlen=leaves) for key in ("prompt", "completion", "advantages")}
            self._logs |= {key: defaultdict(lambda: deque(maxlen=leaves)) for key in ("rewards", "extra", "eval")}
            self._empty_logs = copy.deepcopy(self._logs)

    def _describe_run(self) -> dict[str, Any]:
        """What `run.json` holds."""
        return {
            "columns": describe_columns(self.topology, self.reward_func_names[0]),
            "recipe": recipe_of(self.topology, self.allocators, self.args, self.told),
            "credit": self._credit,
            "versions": installed_versions(),
        }

    def _log_rollout(self, rollout: Rollout, rewards: dict, advantages: dict) -> None:
        """
        Log a batch.

        Args:
            rollout ([`~ccpo.training.collection.Rollout`]): what was said and how it went.
            rewards (`dict`): role -> rewards `(P, N, F)`.
            advantages (`dict`): role in turn -> advantages `(P, N)`.
        """
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in self._credit_metrics(rollout).items():
            metrics[name].append(value)
        self._log_table(rollout, rewards, advantages)

    def _credit_metrics(self, rollout: Rollout) -> dict[str, float]:
        episodes, topology, state = rollout.episodes, self.topology, self.accelerator
        judge = self._judge()
        seen = rollout.outcomes[judge]
        values = credit_metrics(seen) | rollout.arms
        for rated in rollout.outcomes:
            if rated.shares is not None:
                values |= shares_metrics(rated.team, rated.shares, topology.role_names)
        answers = [text for role in topology.answer_roles for text in episodes.said[role].texts]
        leaked, missing = episodes.leaked, unanswered(self.allocators[judge].outcome, answers)
        cuts = {name: episodes.cuts(name) for name in topology.role_names if topology[name].reads}
        counts = [sum(leaked), sum(missing or []), *map(sum, cuts.values())]
        counts = torch.tensor(counts, device=state.device)
        leaks, without, *cut = state.reduce(counts, reduction="sum").tolist()
        total = len(answers) * state.num_processes
        if leaked:
            values["credit/leak_rate"] = leaks / (len(leaked) * state.num_processes)
        for (name, prompts), number in zip(cuts.items(), cut, strict=True):
            values[f"rollout/{name}_cut_rate"] = number / (len(prompts) * state.num_processes)
        if missing is not None:
            values["credit/no_answer_rate"] = without / total
            if self.model.training and state.is_main_process:
                self.allocators[judge].warn_of_no_answers(without, total)
        if not self.model.training:  # an optimizer step logs its own at its end
            values |= {f"{arm}_tokens": count for arm, count in self._clock.total_tokens("eval").items()}
        return values

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.topology.is_solo:
            return super().log(logs, start_time)
        with replaced(self, log_completions=False):  # the team's table is not TRL's
            super().log(logs, start_time)
        table, prefix = self._table_rows()
        if self.accelerator.is_main_process and self.log_completions and any(table.values()):
            columns = describe_columns(self.topology, self.reward_func_names[0])
            print_episodes(table, columns, self.state.global_step, self.num_completions_to_print)
            write_table(table, self.state.global_step, self.args, prefix)
        for values in table.values():
            values.clear()  # a batch is written once, however many steps it is trained in

    def _table_rows(self) -> tuple[dict[str, deque], str]:
        """The rows that are not written yet, and what their file's name begins with."""
        return (self._logs["extra"], "") if self.model.training else (self._logs["eval"], "eval_")

    def _log_table(self, rollout: Rollout, rewards: dict, advantages: dict) -> None:
        """Keep a row for each leaf of the global batch, until [`log`] writes them."""
        described = describe_columns(self.topology, self.reward_func_names[0])
        parts = [described["episode"], *(part["columns"] for part in described["roles"] + described["removals"])]
        known = ["step", *(name for part in parts for name in part.values())]
        extras = sorted({*gather_object(list(rollout.extras))})
        if taken := [name for name in extras if name in known and name != described["episode"]["gold"]]:
            raise ValueError(
                f"`log_extra({taken[0]!r}, ...)` of an outcome function is another column of the completions table. "
                "Give it another name, or rename the role."
            )
        if not self.log_completions:
            return
        own = self._own_columns(rollout)
        size = len(own["problem"])
        own |= {name: list(map(_plain, rollout.extras.get(name) or [None] * size)) for name in extras}
        gathered = zip(*gather_object(list(zip(*own.values(), strict=True))), strict=True)
        table = dict(zip(own, gathered, strict=True)) | self._judged_columns(rollout, rewards, advantages)
        kept, _ = self._table_rows()
        earlier = max(map(len, kept.values()), default=0)
        in_order = [name for name in dict.fromkeys([*known, *table]) if name in table]
        for name in dict.fromkeys([*kept, *in_order]):  # of a batch that drew what another did not
            kept[name].extend([None] * (earlier - len(kept[name])))
            kept[name].extend(table.get(name) or [None] * len(table["problem"]))

    def _own_columns(self, rollout: Rollout) -> dict[str, list]:
        """Of this process: what was asked and written, a row for each of its leaves."""
        episodes, topology, outcome = rollout.episodes, self.topology, self.allocators[self._judge()].outcome
        rows = episodes.said[topology.role_names[-1]].rows
        problems = [as_text(problem_text(prompt)) for prompt in episodes.prompts]
        columns, unread = {"problem": [problems[row] for row in rows]}, []
        for name in topology.role_names:
            said = episodes.said[name]
            of_texts = {
                topology.label(name): list(map(as_text, said.texts)),
                f"{name}_prompt": list(map(as_text, said.prompts)),
                f"{name}_truncated": self._truncated(name, rollout.samples[name]),
            }
            if topology.guarded(name):
                of_texts[f"{name}_leaked"] = list(map(episodes.reader.has, said.texts))
            if name in topology.answer_roles:
                of_texts["no_answer"] = unanswered(outcome, said.texts)
            for column, values in of_texts.items():
                columns[column] = values and [values[episodes.above(name, leaf)] for leaf in range(len(rows))]
            unread.append(columns.pop("no_answer", None))
        if any(unread):  # what the outcome function can say of one text, it can of all
            columns["no_answer"] = list(map(all, zip(*filter(None, unread), strict=True)))
        return columns | {f"{name}_rating": list(map(as_text, said)) for name, said in episodes.ratings.items()}

    def _truncated(self, role: str, samples: list[Sample]) -> list[bool]:
        """Which of a role's texts did not end by themselves, by TRL's rule."""
        state = self._role_state[role]
        own = {name: state[name] for name in ("eos_token_ids", "_tokenizer", "stop_strings")}
        with replaced(self, **own):
            ids = self._with_ends([prompt for prompt, *_ in samples], [drawn for _, drawn, _ in samples])
        ends = {*state["eos_token_ids"], state["_tokenizer"].pad_token_id}
        return [bool(drawn) and drawn[-1] not in ends for drawn in ids]

    def _judged_columns(self, rollout: Rollout, rewards: dict, advantages: dict) -> dict[str, list]:
        """Of all processes: outcomes, credit, shares, and the passes without a role."""
        topology, seen, episodes = self.topology, rollout.outcomes[self._judge()], rollout.episodes
        leaves = seen.leaves
        outcome = seen.team.flatten().tolist()
        columns: dict[str, list] = {"outcome": outcome}
        if topology.answer == "vote":
            ballots = [[""] * len(topology.answer_roles)] * len(outcome)
            shown = plurality(ballots, seen.clusters.flatten(0, 1))
            columns["answer_role"] = [topology.answer_roles[voter] for voter in shown]
        for role in topology.judged if topology.answer != "last" else ():
            columns[f"{role}_outcome"] = at_leaves(seen.own[role], leaves).flatten().tolist()
        for role in topology.role_names:
            for kind, values in (("credit", self._combine(rewards[role], role)), ("advantage", advantages.get(role))):
                in_turn = role in advantages  # out of turn, the credit lacks what only its own turn draws
                columns[f"{role}_{kind}"] = (
                    at_leaves(values, leaves).flatten().tolist() if in_turn else [None] * len(outcome)
                )
        shares = next((judged.shares for judged in rollout.outcomes if judged.shares is not None), None)
        for i, role in enumerate(topology.role_names if shares is not None else ()):
            rated = shares[:, :, i].flatten(0, 1).tolist()
            columns[f"{role}_shares"] = [_shares_as_text(topology.role_names, values) for values in rated]
        for removed, said in episodes.without.items():
            final = next((said[name] for name in reversed(topology.role_names) if name in said), Texts([], [], []))
            texts, counted = gather_object(list(map(as_text, final.texts))), rollout.counted[removed]
            if counted is not None:
                texts = [text for text, counts in zip(texts, counted, strict=True) if counts]
            values = seen.without[removed].flatten(1)  # (P, S) or (P, N_(k-1)·S): the passes of a prompt
            passes = values.shape[1]
            place = [p * passes + leaf * passes // leaves for p in range(len(values)) for leaf in range(leaves)]
            without = values.flatten()[place].tolist()
            columns[topology.label(f"without_{removed}")] = [texts[i] for i in place]
            columns[f"without_{removed}_outcome"] = without
            columns[f"{removed}_effect"] = list(map(effect_of, outcome, without))
        return columns


def use_team_progress(handler: CallbackHandler) -> None:
    """
    Put ours in the place of the callback with which `Trainer` shows a run. What a user has given stays.

    Args:
        handler ([`~transformers.trainer_callback.CallbackHandler`]): the trainer's.
    """
    if DEFAULT_PROGRESS_CALLBACK is ProgressCallback:
        bar = TeamProgressCallback
    else:  # in a notebook
        from .notebook import TeamNotebookCallback as bar
    ours = {PrinterCallback: LogLineCallback, DEFAULT_PROGRESS_CALLBACK: bar}
    place = max(i for i, callback in enumerate(handler.callbacks) if type(callback) in ours)  # behind a user's
    kind = ours[type(handler.callbacks.pop(place))]
    if not any(isinstance(callback, kind) for callback in handler.callbacks):
        handler.callbacks.insert(place, kind())


def _shares_as_text(roles: tuple[str, ...], shares: list[float]) -> str | None:
    """A rating as JSON, role -> share; `None` of an invalid one."""
    if any(map(math.isnan, shares)):
        return None
    return json.dumps({role: round(share, 4) for role, share in zip(roles, shares, strict=True)})


def _plain(value: Any) -> Any:
    """A cell as a file takes it: numbers, NumPy's and torch's too, as they are, all else as text."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return value if value is None or isinstance(value, bool | int | float) else as_text(value)
