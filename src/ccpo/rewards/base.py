"""The base class of the credit schemes: who judges the answers, who else is in the team, and what a scheme gives."""

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
    Base class of the credit schemes: turns the outcome of a team into a reward for each text of each role.

    For a scheme of your own, write a subclass that overrides [`allocate`]. If it needs to see more than the outcomes
    of what the team wrote, override [`evidence`], too.

    Args:
        outcome (`Callable`, *optional*):
            The outcome function: a TRL reward function that judges an answer. It returns +1 if the answer is right,
            -1 if it is wrong, and `None` or NaN if it cannot be scored. It may be asynchronous. Defaults to
            [`MathVerifier`]. If it has a method `extract(text) -> str | None`, which finds the answer in a text, the
            trainer logs the share of texts without an answer as `credit/no_answer_rate`.
        partner (`Callable`, *optional*):
            Only with TRL's own `GRPOTrainer`, which trains the first role, and in a team of two: the generator that
            writes the texts of the other role, `partner(prompts) -> list[str]`, such as [`TransformersGenerator`] or
            [`OpenAIGenerator`]. It may be asynchronous.
        partners (`dict[str, Callable]`, *optional*):
            The same for larger teams: maps the name of each role but the first to its generator.
        topology (*optional*):
            Only with TRL's own `GRPOTrainer`: the team, in any form that [`~ccpo.team.topology.make_topology`] takes.
            Defaults to [`ThinkSolve`].

    Attributes:
        teams (`str`):
            The teams for which the scheme is defined: `"any"`, `"chain"`, `"vote"` (all teams that vote), or the kind
            of one topology.
        gives_advantages (`bool`):
            Whether [`allocate`] returns advantages. They go to the loss unchanged; rewards are first turned into
            advantages.
        branching (`bool`): Whether several texts of a role may continue the same text.
        strict_outcomes (`bool`): Whether every outcome must be -1, +1 or unscorable.
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
        self._warned: set[str] = set()  # the subjects of the warnings given so far

    def refuses(self, topology: Topology) -> str | None:
        """The reason why the scheme cannot divide credit in this team, or `None` if it can."""
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
        """
        What the scheme must see to give credit to these roles, besides the outcomes of what the team wrote.

        The trainer generates only the evidence that is named here.

        Args:
            topology ([`Topology`]): The team.
            roles (`tuple[str, ...]`): The roles that are trained from this batch.

        Returns:
            [`~ccpo.rewards.Evidence`]: Nothing, by default.
        """
        return Evidence()

    def find_placebos(self, topology: Topology, branches: tuple[int, ...], args: Any) -> dict[str, str]:
        """
        The roles whose credit is provably the same as shared credit, except for one factor for each prompt.

        Args:
            topology ([`Topology`]): The team.
            branches (`tuple[int, ...]`): For each role, how many of its texts continue one text of the role before it.
            args: An object with the fields `advantage_estimator`, `scale_rewards` and `removal` of
                [`MultiAgentGRPOConfig`].

        Returns:
            `dict[str, str]`: Maps each such role to a description of the factor. Empty if there is no such role.
        """
        return {}

    def announce_placebo(self, placebos: dict[str, str], estimator: str, also: str = "") -> None:
        """Log once that the credit of these roles is shared credit up to a factor for each prompt."""
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
        Compute the reward of each text of each role, over the batch of all processes.

        Args:
            outcomes ([`TeamOutcomes`]):
                The batch: the outcome R of each answer, the value of each text, and the evidence that [`evidence`]
                asked for.

        Returns:
            `dict[str, torch.Tensor]`: Maps each role to the rewards of its texts, of shape `(P, N_j)`. NaN where a
            text cannot be scored.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `allocate`.")

    def state_dict(self) -> dict[str, Any]:
        """What the scheme has learned during a run, such as running statistics. It is saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned, when a run is resumed. It holds tensors and plain values."""

    def check_outcomes(self, *outcomes: torch.Tensor | None) -> None:
        """
        Check that the scheme can use these outcomes.

        Raises:
            `ValueError`: If an outcome is infinite, or if `strict_outcomes` holds and one is not -1, +1 or NaN.
        """
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
        """Log once that the outcome function found no answer in any text of a batch, if that is so."""
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
        """The generator of the first role's ratings with TRL's own `GRPOTrainer`, which passes on no model."""
        return None

    def rate(self, raters: dict[str, Callable], episodes: Episodes, outcome: torch.Tensor) -> torch.Tensor:
        """
        Collect the ratings of each answer; only schemes that ask for ratings define this.

        Args:
            raters (`dict[str, Callable]`): Maps each role to the generator that writes its ratings.
            episodes ([`~ccpo.team.rollout.Episodes`]): What the team wrote.
            outcome (`torch.Tensor` of shape `(leaves,)`): The outcome of each answer.

        Returns:
            `torch.Tensor` of shape `(leaves, n, n)`: The shares, with the axis of the rater before that of the rated
            role.
        """
        raise NotImplementedError(f"{type(self).__name__} needs ratings, so it must define `rate`.")
