"""What all schemes have in common: the outcome function, the partner, and TRL's reward function."""

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
    Base class of the credit schemes. A scheme turns the outcome of the team into a reward for each role's texts. To
    write your own, override [`allocate`]. If it needs to see more than the outcomes, override [`evidence`] too.

    Args:
        outcome (`Callable`, *optional*):
            A TRL reward function that judges an answer: +1 right, -1 wrong, `None` or NaN unscorable. Defaults to
            [`MathVerifier`]. It may be asynchronous. If it has a method `extract(text) -> str | None`, which returns
            the answer in a text, texts without an answer are counted in `credit/no_answer_rate`.
        partner (`Callable`, *optional*):
            Only under TRL's own `GRPOTrainer`, which trains the first role: a generator of the other role's texts,
            `partner(prompts) -> list[str]`, such as [`TransformersGenerator`] or [`OpenAIGenerator`]. It may be
            asynchronous.
        partners (`dict[str, Callable]`, *optional*): the same for a team of more roles: role -> generator.
        topology (*optional*):
            Only under TRL's own `GRPOTrainer`: the team, as [`~ccpo.team.topology.make_topology`] takes it. Defaults
            to [`ThinkSolve`].

    Attributes:
        teams (`str`): the teams that it is defined for: `"any"`, `"chain"`, `"vote"` (voters of any kind), or the kind
            of a topology.
        gives_advantages (`bool`): whether [`allocate`] returns advantages, which go to the loss as they are.
        branching (`bool`): whether several texts may continue one text.
        strict_outcomes (`bool`): whether outcomes must be -1 or +1.
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
        """Why the scheme cannot divide credit in this team. `None` if it can."""
        suits = {
            "any": True,
            "chain": topology.is_chain and len(topology.roles) > 1,
            "vote": topology.answer == "vote",
        }
        if suits.get(self.teams, topology.kind == self.teams):
            return None
        wanted = {
            "chain": "a chain of several roles, the last of which answers",
            "vote": "teams with `answer='vote'`",
        }.get(self.teams, self.teams)
        return f"it is defined for {wanted}, and the topology has {list(topology.role_names)} ({topology.kind})."

    def evidence(self, topology: Topology, roles: tuple[str, ...]) -> Evidence:
        """What the credit of these roles needs beside the team's outcomes. Only what is named here is generated."""
        return Evidence()

    def find_placebos(self, topology: Topology, branches: tuple[int, ...], args: Any) -> dict[str, str]:
        """
        The placebos: roles whose credit is provably shared credit up to a factor for each prompt.

        Args:
            topology ([`Topology`]): the team.
            branches (`tuple[int, ...]`): for each role, how many of its texts continue one text.
            args: has `advantage_estimator`, `scale_rewards` and `removal`, as [`MultiAgentGRPOConfig`] does.

        Returns:
            `dict[str, str]`: role -> the factor of its advantages, in words. Empty if the credit carries information.
        """
        return {}

    def announce_placebo(self, placebos: dict[str, str], estimator: str, also: str = "") -> None:
        """Say once that the credit of these roles is shared credit up to a factor for each prompt."""
        self._warn_once(
            "placebo",
            "`%s` with `advantage_estimator=%r` is shared credit up to a factor for each prompt: the group's mean has "
            "taken the prompt's baseline out already (factor of the advantages: %s). It orders no two texts of a "
            "group otherwise. Credit that carries information: `num_solves` >= 2 with C3 (`credit: c3`), SEPO, "
            "`removal='context'` for roles after the first.%s",
            self.__name__,
            estimator,
            "; ".join(f"{role}: {factor}" for role, factor in placebos.items()),
            also,
        )

    def allocate(self, outcomes: TeamOutcomes) -> dict[str, torch.Tensor]:
        """
        Rewards of each role over the global batch.

        Args:
            outcomes ([`TeamOutcomes`]):
                The batch: R of each leaf, the value of each text, and the evidence that [`evidence`] asked for.

        Returns:
            `dict[str, torch.Tensor]`: role -> the rewards of its texts, `(P, N_j)`, NaN where unscorable.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `allocate`.")

    def state_dict(self) -> dict[str, Any]:
        """What a scheme learns during a run, such as running statistics. It is saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned, tensors and plain values, when a run is resumed."""

    def check_outcomes(self, *outcomes: torch.Tensor | None) -> None:
        """Raise if an outcome is infinite. If the scheme is strict, raise also if one is not -1, +1 or NaN."""
        for values in outcomes:
            if values is not None and values.isinf().any():
                raise ValueError(
                    f"`outcome` of `{self.__name__}` returned {values[values.isinf()][0].item():g}, which no "
                    "model can be trained on. Return a finite number, or None where an answer cannot be scored."
                )
        for values in outcomes if self.strict_outcomes else ():
            if values is not None and (bad := values[(values.abs() != 1) & ~values.isnan()]).numel():
                raise ValueError(
                    f"`{self.__name__}` needs outcomes of -1 (wrong), +1 (right) or None (unscorable), but `outcome` "
                    f"returned {bad[0].item():g}. Wrap a 0/1 reward function as 2 * r - 1, e.g. use MathVerifier()."
                )

    def _warn_once(self, about: str, message: str, *args: Any) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message, *args)

    def warn_of_no_answers(self, missing: int, answers: int) -> None:
        """Warn once if the outcome function found no answer in any text of a batch."""
        if missing == answers > 0:
            self._warn_once(
                "answers",
                "All %d answers of a batch are without an answer that `%s` can read, so that none can be right. Look "
                "at the prompt of who answers: does it say where the answer is to stand? Or say where it stands "
                "(`answer_pattern`), or let the completions be longer.",
                answers,
                getattr(self.outcome, "__name__", type(self.outcome).__name__),
            )

    def _first_rater(self) -> Callable | None:
        """Who rates for the first role under TRL's own `GRPOTrainer`, whose reward functions have no model."""
        return None

    def rate(self, raters: dict[str, Callable], episodes: Episodes, outcome: torch.Tensor) -> torch.Tensor:
        """Ratings of each leaf, `(leaves, n, n)`, rater before rated role. For schemes that ask for ratings."""
        raise NotImplementedError(f"{type(self).__name__} asks for ratings and must define `rate`.")
