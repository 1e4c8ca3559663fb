"""[`ArmsMixin`]: the evaluation's arms during training, with the policies as they are."""

import copy
from collections import defaultdict
from typing import Any

from accelerate.utils import gather_object

from ..rewards.metrics import right_share
from ..team.rollout import Episodes, run_team


class ArmsMixin:
    """Over a trainer of several roles: how the team does if a role is silent, or speaks of another problem."""

    def _evaluate_arms(self, inputs: list[dict[str, Any]], episodes: Episodes, group: int) -> dict[str, float]:
        """
        Metrics of a batch, `credit/ablated_<role>_accuracy` and `credit/swapped_<role>_accuracy` if `eval_arms` names
        them, for each role that another reads. The roles before it stay as they spoke.

        Args:
            inputs (`list[dict]`): this process's rows.
            episodes ([`~ccpo.team.rollout.Episodes`]): what the team said about them.
            group (`int`): rows of a prompt.
        """
        topology, accuracies = self.topology, {}
        read = [role for role in topology.role_names if any(role in other.reads for other in topology.roles)]
        for arm in (arm for arm in self.args.eval_arms if arm != "without"):
            for role in read:
                texts = episodes.said[role].texts
                before = topology.role_names[: topology.role_names.index(role)]
                given = {name: episodes.said[name].texts for name in before}
                given[role] = [""] * len(texts)
                if arm == "swapped":
                    given[role] = self._of_the_next_problem(texts, group * episodes.texts_per_row(role))
                accuracies[f"credit/{arm}_{role}_accuracy"] = self._accuracy(inputs, episodes, given, group)
        return accuracies

    def _of_the_next_problem(self, texts: list[str], size: int) -> list[str]:
        """What a role said about the problem after each one's, of all processes' batch; `size` texts are of one."""
        everyone, state = gather_object(texts), self.accelerator
        moved = everyone[size:] + everyone[:size]
        return moved[state.process_index * len(texts) : (state.process_index + 1) * len(texts)]

    def _accuracy(self, inputs: list[dict[str, Any]], before: Episodes, given: dict, group: int) -> float:
        """The share of right answers where some roles' texts are given, and nothing else is logged of it."""
        topology, generators = self.topology, self._generators()
        episodes = run_team(
            topology, before.prompts, generators, branches=self.branches, given=given, reader=before.reader
        )
        logged = copy.deepcopy(self._pending_metrics)
        outcomes, _ = self._outcomes(inputs, episodes, generators, {}, group, defaultdict(int), topology.answer_roles)
        self._pending_metrics = logged
        seen = outcomes[self._judge()]
        return right_share(topology, seen.own, seen.clusters, seen.leaves).nanmean().item()
