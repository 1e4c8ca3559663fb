"""[`AdvantagesMixin`] turns outcomes into credit, and credit into advantages."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import gather
from trl.data_utils import is_conversational
from trl.trainer.utils import get_callable_name

from ..calls import call_outcome
from ..credit import removal_baseline
from ..credit.advantages import correlation, estimate_advantages, within_group_correlation
from ..rewards import TeamOutcomes
from .collection import Rollout


class AdvantagesMixin:
    """Part of the trainer: computes the rewards of each role's texts, and replaces TRL's advantages."""

    def _init_role_rewards(self, role_rewards: dict[str, list] | None) -> None:
        """
        Read the argument `role_rewards` of the trainer.

        Raises:
            `ValueError`: If a role is unknown or not trained, if an item is not a function, or if the credit scheme
                gives advantages, to which no reward can be added.
        """
        self._role_rewards: dict[str, list[tuple[Callable, float]]] = {}
        given = {} if role_rewards is None else role_rewards
        if given and self.topology.is_solo:
            raise ValueError("`role_rewards` is for teams. With one role, give its functions as `reward_funcs`.")
        if not isinstance(given, dict) or (unknown := sorted(set(given) - set(self.roles), key=str)):
            names = "" if not isinstance(given, dict) else f" It names {unknown}."
            raise ValueError(
                f"`role_rewards` must map roles, {list(self.roles)}, to reward functions, got {given!r:.80}.{names}"
            )
        if given and (credit := next((a.__name__ for a in self.allocators if a.gives_advantages), None)):
            raise ValueError(
                f"`role_rewards` (of {list(given)}) are rewards, but `{credit}` gives finished advantages, so "
                "the two cannot be summed. Leave `role_rewards` out, or use another credit."
            )
        for role, functions in given.items():
            if (agent := self.topology.agent_of(role)) not in self.trained_agents:
                raise ValueError(
                    f"`role_rewards` names {role!r}, but its agent {agent!r} is not trained. Leave it out."
                )
            pairs = []
            for entry in functions if isinstance(functions, list) else [functions]:
                function, weight = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1.0)
                is_number = isinstance(weight, int | float) and math.isfinite(weight)
                if not callable(function) or isinstance(function, type) or not is_number:
                    raise ValueError(
                        f"`role_rewards[{role!r}]` must hold reward functions, or pairs (function, finite "
                        f"weight), got {entry!r:.80}."
                    )
                pairs.append((function, float(weight)))
            self._role_rewards[role] = pairs

    def _rewards_of(self, role: str) -> dict[str, Any]:
        """The role's values for the attributes in which TRL keeps names and weights of reward functions."""
        own = self._role_rewards.get(role, [])
        weights = torch.tensor([weight for _, weight in own], dtype=self.reward_weights.dtype)
        return {
            "reward_func_names": [*self.reward_func_names, *(get_callable_name(function) for function, _ in own)],
            "reward_weights": torch.cat([self.reward_weights, weights.to(self.reward_weights.device)]),
            "reward_funcs": [*self.reward_funcs, *(function for function, _ in own)],
        }

    def _allocate(self, rollout: Rollout, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The rewards `(P, N, F)` of each role over all processes: a column for each scheme and each own reward."""
        columns = [
            _checked(allocator.__name__, allocator.allocate(outcomes), outcomes)
            for allocator, outcomes in zip(self.allocators, rollout.evidence, strict=True)
        ]
        rewards = {role: torch.stack([credit[role] for credit in columns], dim=-1) for role in self.roles}
        for role in self._role_rewards:
            own = self._own_rewards(role, rollout, inputs)
            rewards[role] = torch.cat([rewards[role], own.view(*rewards[role].shape[:2], -1)], dim=-1)
        return rewards

    def _own_rewards(self, role: str, rollout: Rollout, inputs: list[dict[str, Any]]) -> torch.Tensor:
        """The values of a role's own reward functions for its texts, of all processes, `(W·n, E)`."""
        said = rollout.episodes.said[role]
        rows = [inputs[row] for row in said.rows]
        chat = is_conversational(inputs[0])
        completions = [[{"role": "assistant", "content": text}] if chat else text for text in said.texts]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
        columns["completion_ids"] = [ids for _, ids, _ in rollout.samples[role]]
        columns |= {"trainer_state": self.state, "log_metric": self._log_metric}
        values = [
            call_outcome(
                function,
                len(rows),
                f"role_rewards[{role!r}]",
                "one number, or None, per completion",
                prompts=said.prompts,
                completions=completions,
                **columns,
            )
            for function, _ in self._role_rewards[role]
        ]
        return gather(torch.tensor(values, device=self.accelerator.device).T.contiguous())

    def _combine(self, rewards: torch.Tensor, role: str | None = None) -> torch.Tensor:
        """The weighted sum over the last axis, as in TRL. NaN only if all columns are NaN."""
        weights = self.reward_weights if role is None else self._role_state[role]["reward_weights"]
        weights = weights[: rewards.shape[-1]]  # while a role is active, its own rewards have weights, too
        return self._sum(rewards, weights)

    @staticmethod
    def _sum(columns: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        total = (columns * weights.to(columns.device)).nansum(dim=-1)
        return total.masked_fill(columns.isnan().all(dim=-1), torch.nan)

    def _set_advantages(self, output: dict, role: str, rewards: torch.Tensor, rollout: Rollout) -> torch.Tensor:
        """
        Replace TRL's advantages, which are those of the estimator `"group"`.

        Returns:
            `torch.Tensor` of shape `(P, N)`: The role's advantages over the batch of all processes.
        """
        estimator = self.args.advantage_estimator
        shared = self._shared(rollout, role)  # (P, N)
        advantages = gather(output["advantages"]).view(shared.shape)
        options = {}
        if estimator == "robust":
            options = {name: getattr(self.args, f"robust_{name}") for name in ("alpha", "c", "blocks")}
        if all(allocator.gives_advantages for allocator in self.allocators):
            advantages = self._combine(rewards, role).nan_to_num(nan=0.0)
        elif estimator == "counterfactual" and role != self.roles[-1]:
            deltas = [
                seen.values[role]
                - removal_baseline(seen.without[role], shared.shape[1], getattr(allocator, "baseline", "group"))
                for allocator, seen in zip(self.allocators, rollout.outcomes, strict=True)
            ]  # NaN if one of the two is NaN, because then there is no difference
            delta = self._combine(torch.stack(deltas, dim=-1))
            advantages = estimate_advantages(delta, estimator, baseline=torch.zeros_like(delta))
            if role in self._role_rewards:  # passes without the role have none, so the mean of its own is subtracted
                own = rewards[..., len(self.allocators) :]
                weights = self._role_state[role]["reward_weights"][len(self.allocators) :]
                own = self._sum(own, weights)
                advantages = advantages + (own - own.nanmean(dim=-1, keepdim=True)).nan_to_num(nan=0.0)
        elif estimator not in ("group", "counterfactual"):
            advantages = estimate_advantages(self._combine(rewards, role), estimator, **options)
        output["advantages"] = self._local(advantages)
        reference = estimate_advantages(
            shared,
            "group" if estimator == "counterfactual" else estimator,
            scale_rewards=self.scale_rewards,
            **options,
        )
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics[f"credit/{role}/advantage_size"].append(advantages.abs().mean().item())
        metrics[f"credit/{role}/shared_correlation"].append(correlation(advantages, reference))
        metrics[f"credit/{role}/within_group_correlation"].append(within_group_correlation(advantages, shared))
        return advantages

    def _shared(self, rollout: Rollout, role: str) -> torch.Tensor:
        """The rewards of a role's texts by shared credit, `(P, N)`."""
        return self._combine(torch.stack([outcomes.values[role] for outcomes in rollout.outcomes], dim=-1))

    def _local(self, values: torch.Tensor) -> torch.Tensor:
        """The part of this process in values over all W processes, `(P, N)` -> `(P * N / W,)`."""
        return values.reshape(self.accelerator.num_processes, -1)[self.accelerator.process_index].clone()

    def _estimate_solo(self, output: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """TRL's output for a team of one role, with the advantages of another estimator if one is set."""
        if self.args.advantage_estimator != "group":
            group = self.num_generations if self.model.training else self.num_generations_eval
            rewards = self._combine(self._rewards_per_func).view(-1, group)
            options = {}
            if self.args.advantage_estimator == "robust":
                options = {name: getattr(self.args, f"robust_{name}") for name in ("alpha", "c", "blocks")}
            advantages = estimate_advantages(rewards, self.args.advantage_estimator, **options)
            output["advantages"] = self._local(advantages)
            logged = list(self._logs["advantages"])[: -advantages.numel()] + advantages.flatten().tolist()
            self._logs["advantages"].clear()
            self._logs["advantages"].extend(logged)
        return output


def _checked(name: str, credit: Any, outcomes: TeamOutcomes) -> Mapping[str, torch.Tensor]:
    """
    Check what a scheme's `allocate` returned, because with a wrong shape texts would get the credit of others.

    Raises:
        `ValueError`: If a role is missing, or if its rewards have a wrong shape or type.
    """
    if not isinstance(credit, Mapping):
        raise ValueError(f"`allocate` of `{name}` must return a mapping from roles to tensors, got {credit!r:.80}.")
    for role, value in outcomes.values.items():
        wanted, got = tuple(value.shape), credit.get(role)
        if not isinstance(got, torch.Tensor) or tuple(got.shape) != wanted or not got.is_floating_point():
            what = f"{got.dtype} of shape {tuple(got.shape)}" if isinstance(got, torch.Tensor) else repr(got)
            raise ValueError(
                f"`allocate` of `{name}` must return for role {role!r} a floating-point tensor of shape "
                f"{wanted}, one number for each of its texts (NaN where it cannot be scored), got {what:.80}."
            )
        if got.isinf().any():
            raise ValueError(
                f"`allocate` of `{name}` returned an infinite credit for role {role!r}. Return finite numbers, or NaN."
            )
    return credit
