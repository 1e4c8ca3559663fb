"""What every scheme has in common: the outcome function, the partner, and TRL's reward function."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from ..team.rollout import Episodes
from ..team.topology import ThinkSolve, Topology, make_topology
from ..verifier.math_verifier import MathVerifier
from .drop_in import RewardFunction
from .evidence import Evidence, TeamOutcomes

logger = logging.getLogger(__name__)


class CreditAllocator(RewardFunction):
    """
    Base class: how one team outcome becomes a reward for each role's texts. A scheme of your own overrides
    [`allocate`], and [`evidence`] where it needs to see more than the outcomes.

    Args:
        outcome (`Callable`, *optional*):
            A TRL reward function that judges an answer: +1 right, -1 wrong, `None` or NaN unscorable. Defaults to
            [`MathVerifier`]. It may be asynchronous. With a method `extract(text) -> str | None`, the answer in a
            text, answers without one are counted (`credit/no_answer_rate`).
        partner (`Callable`, *optional*):
            Under TRL's own `GRPOTrainer`, which trains the first role: generator of what the other says,
            `partner(prompts) -> list[str]`, e.g. [`TransformersGenerator`] or [`OpenAIGenerator`]. It may be
            asynchronous.
        partners (`dict[str, Callable]`, *optional*): the same in a team of more: role -> generator.
        topology (*optional*):
            The team, as [`~ccpo.team.topology.make_topology`] takes it, under TRL's own `GRPOTrainer` only;
            [`ThinkSolve`] by default.

    Attributes:
        teams (`str`): which teams it is defined for: `"any"`, `"chain"`, `"vote"` (voters of any kind), or a
            topology's kind.
        gives_advantages (`bool`): whether [`allocate`] returns advantages, which go to the loss as they are.
        branching (`bool`): whether several texts may continue one.
        strict_outcomes (`bool`): whether it rests on outcomes being -1 or +1.
    """

    __name__ = "credit"
    teams = "any"
    gives_advantages = False
    branching = True
    strict_outcomes = True

    def __init__(
        self,
        outcome: Callable | None = None,
        *,
        partner: Callable | None = None,
        partners: dict[str, Callable] | None = None,
        topology: Any = None,
    ):
        self.outcome = MathVerifier() if outcome is None else outcome
        self.partner, self.partners = partner, partners
        self.topology = ThinkSolve() if topology is None else make_topology(topology)
        self._has_topology = topology is not None
        self._warned: set[str] = set()  # of what

    def refuses(self, topology: Topology) -> str | None:
        """Why the scheme cannot divide credit in this team; `None` where it can."""
        suits = {
            "any": True,
            "chain": topology.is_chain and len(topology.roles) > 1,
            "vote": topology.answer == "vote",
        }
        if suits.get(self.teams, topology.kind == self.teams):
            return None
        wanted = {
            "chain": "teams that are a chain of several roles, the last of which answers",
            "vote": "teams with `answer='vote'`",
        }.get(self.teams, self.teams)
        return f"it works with {wanted}, but the topology has the roles {list(topology.role_names)} ({topology.kind})."

    def evidence(self, topology: Topology, roles: tuple[str, ...]) -> Evidence:
        """What the credit of these roles needs beside the outcomes of what the team wrote: generated only if named."""
        return Evidence()

    def find_placebos(self, topology: Topology, branches: tuple[int, ...], args: Any) -> dict[str, str]:
        """
        The roles whose credit is provably shared credit up to a factor for each prompt, with the factor in words.

        Args:
            topology ([`Topology`]): the team.
            branches (`tuple[int, ...]`): how many texts continue one, by role.
            args: has `advantage_estimator`, `scale_rewards` and `removal`, as [`MultiAgentGRPOConfig`] does.

        Returns:
            `dict[str, str]`: role -> the factor of its advantages; empty where the credit carries information.
        """
        return {}

    def announce_placebo(self, placebos: dict[str, str], estimator: str, also: str = "") -> None:
        """Say once that the credit of these roles is shared credit up to a factor for each prompt."""
        self._warn_once(
            "placebo",
            "`%s` with `advantage_estimator=%r` is shared credit up to a factor for each prompt: it tells no "
            "two texts of a prompt apart beyond what the team's outcome says. The estimator subtracts the "
            "mean of the prompt's group, and this removes the team's score without the role, too. What "
            "remains is the factor (of the advantages: %s). For credit that tells them apart, use "
            "`num_solves` >= 2 with C3 (`credit: c3`), SEPO (`credit: sepo`), or `removal='context'` for the "
            "roles after the first.%s",
            self.__name__,
            estimator,
            "; ".join(f"{role}: {factor}" for role, factor in placebos.items()),
            also,
        )

    def allocate(self, outcomes: TeamOutcomes) -> dict[str, torch.Tensor]:
        """
        Rewards of each role over the global batch.

        Args:
            outcomes ([`TeamOutcomes`]): the batch: R of each leaf, values of each text, and the evidence asked for.

        Returns:
            `dict[str, torch.Tensor]`: role -> rewards of its texts, `(P, N_j)`, NaN unscorable.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `allocate`.")

    def state_dict(self) -> dict[str, Any]:
        """What a scheme learns in the course of a run, such as running statistics: saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what [`state_dict`] gave, tensors and plain values, when a run is resumed."""

    def check_outcomes(self, *outcomes: torch.Tensor | None) -> None:
        """Raise where an outcome is infinite, or neither -1 nor +1 nor NaN and the scheme rests on that."""
        for values in outcomes:
            if values is not None and values.isinf().any():
                raise ValueError(
                    f"`outcome` of `{self.__name__}` returned {values[values.isinf()][0].item():g}, which "
                    "cannot be used for training. Return a finite number, or None where an answer cannot be "
                    "scored."
                )
        for values in outcomes if self.strict_outcomes else ():
            if values is not None and (bad := values[(values.abs() != 1) & ~values.isnan()]).numel():
                raise ValueError(
                    f"`{self.__name__}` needs outcomes of -1 (wrong), +1 (right) or None (cannot be scored), "
                    f"but `outcome` returned {bad[0].item():g}. Turn a 0/1 reward function into 2 * r - 1, or "
                    "use MathVerifier()."
                )

    def _warn_once(self, about: str, message: str, *args: Any) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message, *args)

    def warn_of_no_answers(self, missing: int, answers: int) -> None:
        """Say it once where the outcome function found no answer in any of a batch's answers."""
        if missing == answers > 0:
            self._warn_once(
                "answers",
                "In all %d answers of a batch, `%s` found no final answer, so all of them count as wrong. "
                "Check the prompt of the role that answers: it must say where to put the answer. Or set "
                "`answer_pattern`, which says how to find it, or allow longer completions.",
                answers,
                getattr(self.outcome, "__name__", type(self.outcome).__name__),
            )

    def _first_rater(self) -> Callable | None:
        """Who rates for the first role under TRL's own `GRPOTrainer`, which gives reward functions no model."""
        return None

    def rate(self, raters: dict[str, Callable], episodes: Episodes, outcome: torch.Tensor) -> torch.Tensor:
        """Ratings of each leaf, `(leaves, n, n)`, the rater before the rated; for schemes that ask for them."""
        raise NotImplementedError(f"{type(self).__name__} needs ratings, so it must define `rate`.")
