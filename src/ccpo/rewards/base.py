"""What every scheme has in common: the outcome function, the partner, and TRL's reward function."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object

from ..calls import call_outcome, unanswered
from ..generation.inputs import TEXT_FOR_A_CHAT_MODEL
from ..team.answers import reader_of
from ..team.completions import completion_text
from ..team.prompts import Prompt, problem_text
from ..team.rollout import Episodes, Passes, run_team
from ..team.topology import ThinkSolve, Topology
from ..verifier.math_verifier import MathVerifier
from .evidence import Evidence, TeamOutcomes

logger = logging.getLogger(__name__)


class CreditAllocator:
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
        topology ([`Topology`], *optional*): the team, under TRL's own `GRPOTrainer` only; [`ThinkSolve`] by default.

    Attributes:
        teams (`str`): which teams it is defined for: `"any"`, `"chain"`, `"vote"` (voters of any kind), or a
            topology's kind.
        gives_advantages (`bool`): whether [`allocate`] returns advantages, which go to the loss as they are.
        strict_outcomes (`bool`): whether it rests on outcomes being -1 or +1.
    """

    __name__ = "credit"
    teams = "any"
    gives_advantages = False
    strict_outcomes = True

    def __init__(
        self,
        outcome: Callable | None = None,
        *,
        partner: Callable | None = None,
        partners: dict[str, Callable] | None = None,
        topology: Topology | None = None,
    ):
        self.outcome = MathVerifier() if outcome is None else outcome
        self.partner, self.partners = partner, partners
        self.topology = topology or ThinkSolve()
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
            "chain": "a chain of several roles, the last of which answers",
            "vote": "teams with `answer='vote'`",
        }.get(self.teams, self.teams)
        return f"it is defined for {wanted}, and the topology has {list(topology.role_names)} ({topology.kind})."

    def evidence(self, topology: Topology, roles: tuple[str, ...]) -> Evidence:
        """What the credit of these roles needs beside the outcomes of what the team wrote: generated only if named."""
        return Evidence()

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
        """Raise where an outcome is neither -1 nor +1 nor NaN and the scheme rests on that."""
        for values in outcomes if self.strict_outcomes else ():
            if values is not None and (bad := values[(values.abs() != 1) & ~values.isnan()]).numel():
                raise ValueError(
                    f"`{self.__name__}` needs outcomes of -1 (wrong), +1 (right) or None (unscorable), but `outcome` "
                    f"returned {bad[0].item():g}. Wrap a 0/1 reward function as 2 * r - 1, e.g. use MathVerifier()."
                )

    def __call__(self, prompts: list[Prompt], completions: list, **kwargs: Any) -> list[float | None]:
        """
        TRL's reward function of a chain's first role: `completions` are its texts, `partners` say the rest.

        A group may be split over processes: outcomes are gathered, and every process returns the rewards of its rows.
        Rows of one problem are one group, also where a batch holds it twice. Of a conversational prompt the partners
        get the problem only, not the first role's system message.

        Args:
            prompts (`list`): the first role's prompts. The problem is read from the dataset's `problem` column if
                there is one, else from the prompt.
            completions (`list`): its texts.
            kwargs: the dataset's columns, and TRL's `log_metric` and `log_extra`.

        Returns:
            `list[float | None]`: its rewards, `None` where unscorable.
        """
        topology, generate = self.topology, self._partners()
        problems = kwargs.get("problem")
        if problems is None:
            self._warn_once(
                "problem",
                "The dataset has no column `problem`, so the partners are given the prompt of the role in training. "
                "If that holds the role's instructions too, add `problem`, the problem alone.",
            )
            problems = [problem_text(prompt) for prompt in prompts]
        if bad := [problem for problem in problems if not isinstance(problem, str)]:
            raise TypeError(f"The column `problem` must hold strings, got {bad[0]!r}.")
        self._check_template(prompts, kwargs)
        first, last = topology.role_names[0], topology.role_names[-1]
        asked = [_like(prompt, problem) for prompt, problem in zip(prompts, problems, strict=True)]
        needed = self.evidence(topology, (first,))
        episodes = run_team(
            topology,
            asked,
            generate,
            given={first: [completion_text(completion) for completion in completions]},
            removals={first: Passes(tuple(range(len(asked))))} if first in needed.removals else {},
            reader=reader_of(self.outcome),
        )
        alone = episodes.without[first][last].texts if episodes.without else []
        rows = episodes.said[last].rows + list(range(len(asked)))[: len(alone)]
        outcomes = self._judge([asked[row] for row in rows], rows, episodes.answers + alone, kwargs)
        joint, solo = outcomes[: len(episodes.answers)], outcomes[len(episodes.answers) :]
        shares = None
        if needed.ratings:
            shares = self.rate({**generate, first: self._first_rater()}, episodes, torch.tensor(joint)).tolist()
        size = len(joint) // len(asked)
        parts = [
            (
                repr(problem),
                joint[i * size : (i + 1) * size],
                solo[i] if solo else None,
                shares and shares[i * size : (i + 1) * size],
            )
            for i, problem in enumerate(problems)
        ]
        rewards = self._allocate_rows(gather_object(parts), offset=self._offset(len(parts)), count=len(parts))
        self._log(episodes, joint, solo, kwargs)
        return rewards

    def _partners(self) -> dict[str, Callable]:
        """The generator of each role but the first."""
        first, *others = self.topology.role_names
        if (why := self.refuses(self.topology)) or not self.topology.is_chain or not others:
            why = why or "the reward function trains the first role of a chain of several."
            raise ValueError(f"`{self.__name__}` cannot train the first role of this `topology`: {why}")
        partners = dict(self.partners or {})
        if self.partner is not None:
            if len(others) > 1 or partners:
                raise ValueError(
                    f"`partner` is for one other role. Set `partners` to a generator for each of {others}."
                )
            partners = {others[0]: self.partner}
        if unknown := sorted(set(partners) - set(others), key=str):
            raise ValueError(f"`partners` names {unknown}; the roles beside {first!r} are {others}.")
        if missing := [name for name in others if name not in partners]:
            field = "partner" if len(others) == 1 else "partners"
            raise ValueError(
                f"`{self.__name__}` trains the {first} alone here, so it needs the roles {missing}: pass `{field}`, "
                "e.g. TransformersGenerator(model) or OpenAIGenerator(model, base_url=...)."
            )
        return partners

    def _warn_once(self, about: str, message: str, *args: Any) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message, *args)

    def _check_template(self, prompts: list[Prompt], kwargs: dict[str, Any]) -> None:
        """
        Say it once where a chat model is trained on plain texts.

        TRL hands a reward function no tokenizer, and knows one, of the role in training: it is asked through
        `log_metric`, a method of the trainer's. The partner, a [`TransformersGenerator`], says the same of its own.
        """
        trainer = getattr(kwargs.get("log_metric"), "__self__", None)
        processing_class = getattr(trainer, "processing_class", None)
        if isinstance(prompts[0], str) and getattr(processing_class, "chat_template", None):
            self._warn_once("template", TEXT_FOR_A_CHAT_MODEL, f"The {self.topology.role_names[0]}")

    def warn_of_no_answers(self, missing: int, answers: int) -> None:
        """Say it once where the outcome function found no answer in any of a batch's answers."""
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
        """Who rates for the first role under TRL's own `GRPOTrainer`, which gives reward functions no model."""
        return None

    def rate(self, raters: dict[str, Callable], episodes: Episodes, outcome: torch.Tensor) -> torch.Tensor:
        """Ratings of each leaf, `(leaves, n, n)`, the rater before the rated; for schemes that ask for them."""
        raise NotImplementedError(f"{type(self).__name__} asks for ratings and must define `rate`.")

    @staticmethod
    def _offset(count: int) -> int:
        """Index of this process's first row in the gathered rows."""
        from accelerate import PartialState

        state = PartialState()
        counts = gather_object([count])
        return sum(counts[: state.process_index]) if state.num_processes > 1 else 0

    def _judge(self, prompts: list, rows: list[int], answers: list[str], kwargs: dict[str, Any]) -> list[float]:
        """Outcomes of answers to prompts, each of a row of the batch."""
        columns = _columns(kwargs)
        scalars = {k: v for k, v in kwargs.items() if k not in columns and k not in ("log_extra", "completion_ids")}
        columns = {name: [values[row] for row in rows] for name, values in columns.items()}
        completions = [
            answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return call_outcome(
            self.outcome, len(rows), prompts=prompts, completions=completions, **{**scalars, **columns}
        )

    def _allocate_rows(self, rows: list[tuple], offset: int, count: int) -> list[float | None]:
        """Lay gathered rows out as (P, G, ...), a prompt's rows padded with NaN to the largest group, and allocate."""
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row[0], []).append(i)
        size, nan = max(map(len, groups.values())), float("nan")

        def column(c: int) -> torch.Tensor | None:
            """`(P, G, …)` of what each row has in place c."""
            if rows[0][c] is None:
                return None
            values = torch.tensor([row[c] for row in rows], dtype=torch.float32)
            padding = torch.full_like(values[:1], nan)
            padded = [torch.cat([values[g], *[padding] * (size - len(g))]) for g in groups.values()]
            return torch.stack(padded)

        joint, solo, shares = (column(c) for c in (1, 2, 3))
        self.check_outcomes(joint, solo)
        first, last = self.topology.role_names[0], self.topology.role_names[-1]
        outcomes = TeamOutcomes(
            self.topology,
            self.topology.branches(),
            own={last: joint.flatten(1)},
            without={} if solo is None else {first: solo},
            shares=None if shares is None else shares.flatten(1, 2),
        )
        reward = self.allocate(outcomes)[first]  # (P, G)
        flat: list[float | None] = [None] * len(rows)
        for p, group in enumerate(groups.values()):
            for g, i in enumerate(group):
                value = reward[p, g].item()
                flat[i] = None if value != value else value
        return flat[offset : offset + count]

    def _log(self, episodes: Episodes, joint: list[float], solo: list[float], kwargs: dict[str, Any]) -> None:
        """Log the outcomes under the names that the trainer uses, and the texts in the completions table."""
        topology = episodes.topology
        first, last = topology.role_names[0], topology.role_names[-1]
        if (missing := unanswered(self.outcome, episodes.answers)) is not None:
            self.warn_of_no_answers(sum(missing), len(missing))
        if (log_metric := kwargs.get("log_metric")) is not None:
            for name, values in (("credit/joint_accuracy", joint), (f"credit/without_{first}_accuracy", solo)):
                scored = [value > 0 for value in values if value == value]
                if scored:
                    log_metric(topology.label(name), sum(scored) / len(scored))
            log_metric("credit/leak_rate", sum(episodes.leaked) / max(1, len(episodes.leaked)))
            for name in topology.role_names[1:]:
                if topology[name].reads:
                    cut = episodes.cuts(name)
                    log_metric(f"rollout/{name}_cut_rate", sum(cut) / len(cut))
            if missing is not None:
                log_metric("credit/no_answer_rate", sum(missing) / len(missing))
        if (log_extra := kwargs.get("log_extra")) is not None:
            size = len(episodes.answers) // len(episodes.prompts)
            for name in topology.role_names[1:]:  # a row's first
                texts = episodes.said[name].texts
                log_extra(topology.label(name), texts[:: len(texts) // len(episodes.prompts)])
            log_extra("outcome", joint[::size])
            if solo:
                log_extra(topology.label(f"without_{first}"), episodes.without[first][last].texts)


def _columns(kwargs: dict[str, Any]) -> dict[str, list]:
    """The dataset's columns among a reward function's keyword arguments."""
    return {k: v for k, v in kwargs.items() if isinstance(v, list) and k != "completion_ids"}


def _like(prompt: Prompt, problem: str) -> Prompt:
    """The problem as a prompt of the dataset's kind, without the role's own instructions."""
    return problem if isinstance(prompt, str) else [{"role": "user", "content": problem}]
