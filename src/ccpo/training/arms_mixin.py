"""[`ArmsMixin`] runs the other arms of an evaluation during training, with the current policies."""

import copy
from collections import defaultdict
from typing import Any

from accelerate.utils import gather_object

from ..rewards.metrics import right_share
from ..team.rollout import Episodes, run_team


class ArmsMixin:
    """Part of the trainer: measures the accuracy of the team if a role says nothing, or speaks of another problem."""

    def _evaluate_arms(self, inputs: list[dict[str, Any]], episodes: Episodes, group: int) -> dict[str, float]:
        """
        Compute `credit/ablated_<role>_accuracy` and `credit/swapped_<role>_accuracy`, as `eval_arms` names them.

        There is one for each role that another role reads. The texts of the roles before it are kept.

        Args:
            inputs (`list[dict]`): The rows of this process.
            episodes ([`~ccpo.team.rollout.Episodes`]): What the team wrote about them.
            group (`int`): The number of rows of a prompt.

        Returns:
            `dict[str, float]`: The metrics of the batch.
        """
        topology, accuracies = self.topology, {}
        read = [role for role in topology.role_names if any(role in other.reads for other in topology.roles)]
        for arm in (arm for arm in self.args.eval_arms if arm != "without"):
            for role in read:
                before = topology.role_names[: topology.role_names.index(role)]
                given = {name: episodes.said[name].texts for name in before}
                given[role] = [""] * len(episodes.said[role].texts)
                if arm == "swapped":
                    given[role] = self._of_another_problem(role, episodes, group)
                if given[role] is not None:
                    accuracies[f"credit/{arm}_{role}_accuracy"] = self._accuracy(inputs, episodes, given, group)
        return accuracies

    def _of_another_problem(self, role: str, episodes: Episodes, group: int) -> list[str] | None:
        """What a role said about the next other problem in the batch of all processes; `None` if there is none."""
        said, state, size = episodes.said[role], self.accelerator, group * episodes.texts_per_row(role)
        own = [(repr(episodes.prompts[row]), text) for row, text in zip(said.rows, said.texts, strict=True)]
        everyone = gather_object(own)
        problems = [everyone[i : i + size] for i in range(0, len(everyone), size)]
        moved = []
        for i, (problem, _) in enumerate(texts[0] for texts in problems):
            others = (texts for texts in problems[i + 1 :] + problems[:i] if texts[0][0] != problem)
            moved += next(others, [])
        if len(moved) < len(everyone):
            return None
        return [text for _, text in moved][state.process_index * len(own) : (state.process_index + 1) * len(own)]

    def _accuracy(self, inputs: list[dict[str, Any]], before: Episodes, given: dict, group: int) -> float:
        """The share of right answers if the texts of some roles are given. Nothing is logged."""
        topology, generators = self.topology, self._generators()
        episodes = run_team(
            topology, before.prompts, generators, branches=self.branches, given=given, reader=before.reader
        )
        logged = copy.deepcopy(self._pending_metrics)
        outcomes, _ = self._outcomes(inputs, episodes, generators, {}, group, defaultdict(int), topology.answer_roles)
        self._pending_metrics = logged
        seen = outcomes[self._judge()]
        return right_share(topology, seen.own, seen.clusters, seen.leaves).nanmean().item()
