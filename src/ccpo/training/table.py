"""[`TableMixin`]: what a generation batch is logged as, metrics and the completions table."""

from typing import Any

import torch
from accelerate.utils import gather_object

from ..calls import unanswered
from ..rewards import credit_metrics, shares_metrics
from ..rewards.evidence import at_leaves
from ..team.rollout import Texts
from ..verifier import plurality
from .collection import Rollout


class TableMixin:
    """Over a trainer of several roles: the credit metrics, and one row of the completions table per leaf."""

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

    def _log_table(self, rollout: Rollout, rewards: dict, advantages: dict) -> None:
        episodes, topology = rollout.episodes, self.topology
        names, last = topology.role_names, topology.role_names[-1]
        firsts = {}  # removed role -> row -> what the last to speak said in its first pass
        for removed, said in episodes.without.items():
            final = next((said[name] for name in reversed(names) if name in said), Texts([], [], []))
            firsts[removed] = dict(zip(reversed(final.rows), reversed(final.texts), strict=True))
        texts = []
        for leaf, row in enumerate(episodes.said[last].rows):
            spoken = [episodes.said[name].texts[episodes.above(name, leaf)] for name in names]
            texts.append((episodes.prompts[row], *spoken, *(first.get(row) for first in firsts.values())))
        prompts, *columns = zip(*gather_object(texts), strict=True)
        texts_by_name = dict(zip([*names, *(f"without_{name}" for name in firsts)], columns, strict=True))
        table: dict[str, Any] = {topology.label(name): values for name, values in texts_by_name.items()}
        seen = rollout.outcomes[self._judge()]
        answers = texts_by_name[last]
        if topology.answer == "vote":
            ballots = list(zip(*(texts_by_name[name] for name in topology.answer_roles), strict=True))
            shown = plurality(ballots, seen.clusters.flatten(0, 1))
            answers = [said[voter] for said, voter in zip(ballots, shown, strict=True)]
        self._logs["prompt"].extend(prompts)
        self._logs["completion"].extend(answers)
        leaves = seen.team.shape[1]
        table["outcome"] = seen.team.flatten().tolist()
        for role in topology.judged if topology.answer != "last" else ():
            table[f"{role}_outcome"] = at_leaves(seen.own[role], leaves).flatten().tolist()
        for role in names:
            for kind, values in (("credit", self._combine(rewards[role], role)), ("advantage", advantages.get(role))):
                in_turn = role in advantages  # out of turn, the credit lacks what only its own turn draws
                table[f"{role}_{kind}"] = (
                    at_leaves(values, leaves).flatten().tolist() if in_turn else [None] * len(answers)
                )
        for name in sorted(set(gather_object(list(rollout.extras)))):
            if name in table or name in ("step", "prompt", "completion", "advantage"):
                raise ValueError(
                    f"`log_extra({name!r}, ...)` of an outcome function is another column of the completions table. "
                    "Give it another name, or rename the role."
                )
            table[name] = gather_object(rollout.extras.get(name, [None] * len(texts)))
        for name in self._logs["extra"].keys() - table.keys():  # of a batch that drew what this one did not
            table[name] = [None] * len(texts_by_name[last])
        for name, values in table.items():
            self._logs["extra"][name].extend(values)
        shown = advantages[last].flatten().tolist() if last in advantages else [float("nan")] * len(answers)
        self._logs["advantages"].extend(shown)
