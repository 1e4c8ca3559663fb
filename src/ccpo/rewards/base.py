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
from ..team.prompts import problem_text
from ..team.rollout import Episodes, Prompt, run_solver
from ..team.topology import ThinkSolve
from ..verifier.math_verifier import MathVerifier

logger = logging.getLogger(__name__)


class CreditAllocator:
    """
    Base class: how one team outcome becomes a reward for each role. A scheme of your own overrides [`allocate`].

    Args:
        outcome (`Callable`, *optional*):
            A TRL reward function that judges the team's answer: +1 right, -1 wrong, `None` or NaN unscorable. Defaults
            to [`MathVerifier`]. It may be asynchronous. With a method `extract(text) -> str | None`, the answer in a
            text, answers without one are counted (`credit/no_answer_rate`).
        partner (`Callable`, *optional*):
            Generator of the Solver's answers, `partner(prompts) -> list[str]`, e.g. [`TransformersGenerator`] or
            [`OpenAIGenerator`]. It may be asynchronous. Needed under TRL's own `GRPOTrainer` only.
        topology ([`ThinkSolve`], *optional*):
            The prompts' templates, under TRL's own `GRPOTrainer` only.
    """

    __name__ = "credit"
    strict_outcomes = True  # whether `allocate` rests on outcomes being -1 or +1

    def __init__(
        self,
        outcome: Callable | None = None,
        *,
        partner: Callable | None = None,
        topology: ThinkSolve | None = None,
    ):
        self.outcome = MathVerifier() if outcome is None else outcome
        self.partner = partner
        self.topology = topology or ThinkSolve()
        self._warned: set[str] = set()  # of what

    def needs_solo(self, roles: tuple[str, ...]) -> bool:
        """Whether the credit of these roles uses solo answers."""
        return False

    def needs_ratings(self, roles: tuple[str, ...]) -> bool:
        """Whether the credit of these roles uses ratings."""
        return False

    def allocate(
        self,
        joint: torch.Tensor,
        solo: torch.Tensor | None = None,
        thinker_share: torch.Tensor | None = None,
        solver_share: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Rewards of each role over the global batch.

        Args:
            joint (`torch.Tensor` of shape `(P, G, K)`): outcomes of the team's answers, NaN unscorable.
            solo (`torch.Tensor` of shape `(P, S)`, *optional*): outcomes of the solo answers, if asked for.
            thinker_share, solver_share (`torch.Tensor` of shape `(P, G, K)`, *optional*): ratings, if asked for.

        Returns:
            `dict[str, torch.Tensor]`: `"thinker"` of shape `(P, G)` and `"solver"` of shape `(P, G, K)`.
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
        TRL's reward function of a single Thinker: `completions` are thoughts, `partner` is the Solver.

        A group may be split over processes: outcomes are gathered, and every process returns the rewards of its rows.
        Rows of one problem are one group, also where a batch holds it twice. Of a conversational prompt the Solver
        gets the problem only, not the Thinker's system message.

        Args:
            prompts (`list`): the Thinker's prompts. The problem is read from the dataset's `problem` column if there
                is one, else from the prompt.
            completions (`list`): the thoughts.
            kwargs: the dataset's columns, and TRL's `log_metric` and `log_extra`.

        Returns:
            `list[float | None]`: the Thinker's rewards, `None` where unscorable.
        """
        if self.partner is None:
            raise ValueError(
                f"`{self.__name__}` trains a single Thinker here, so it needs the Solver: pass `partner`, e.g. "
                "TransformersGenerator(model) or OpenAIGenerator(model, base_url=...)."
            )
        roles = ("thinker",)
        problems = kwargs.get("problem")
        if problems is None:
            self._warn_once(
                "problem",
                "The dataset has no column `problem`, so the Solver is given the Thinker's prompt. If that holds the "
                "Thinker's instructions too, add `problem`, the problem alone.",
            )
            problems = [problem_text(prompt) for prompt in prompts]
        if bad := [problem for problem in problems if not isinstance(problem, str)]:
            raise TypeError(f"The column `problem` must hold strings, got {bad[0]!r}.")
        self._check_template(prompts, kwargs)
        asked = [_like(prompt, problem) for prompt, problem in zip(prompts, problems, strict=True)]
        thoughts = [completion_text(completion) for completion in completions]
        solo_rows = range(len(asked)) if self.needs_solo(roles) else ()
        reader = reader_of(self.outcome)
        episodes = run_solver(self.topology, asked, thoughts, self.partner, solo_rows=solo_rows, reader=reader)
        outcomes = self._judge(asked + asked if len(solo_rows) else asked, episodes.answers + episodes.solos, kwargs)
        joint, solo = outcomes[: len(asked)], outcomes[len(asked) :]
        shares = self.rate(self._raters(), episodes, torch.tensor(joint)) if self.needs_ratings(roles) else {}
        rows = [
            (repr(problem), joint[i], solo[i] if solo else None, *(share[i].item() for share in shares.values()))
            for i, problem in enumerate(problems)
        ]
        rewards = self._allocate_rows(gather_object(rows), offset=self._offset(len(rows)), count=len(rows))
        self._log(episodes, joint, solo, kwargs)
        return rewards

    def _warn_once(self, about: str, message: str, *args: Any) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message, *args)

    def _check_template(self, prompts: list[Prompt], kwargs: dict[str, Any]) -> None:
        """
        Say it once where a chat model is trained on plain texts.

        TRL hands a reward function no tokenizer, and knows the Thinker's: it is asked through `log_metric`, a method
        of the trainer's. The partner, a [`TransformersGenerator`], says the same of its own.
        """
        trainer = getattr(kwargs.get("log_metric"), "__self__", None)
        processing_class = getattr(trainer, "processing_class", None)
        if isinstance(prompts[0], str) and getattr(processing_class, "chat_template", None):
            self._warn_once("template", TEXT_FOR_A_CHAT_MODEL, "The Thinker")

    def warn_of_no_answers(self, missing: int, answers: int) -> None:
        """Say it once where the outcome function found no answer in any of a batch's answers."""
        if missing == answers > 0:
            self._warn_once(
                "answers",
                "All %d answers of a batch are without an answer that `%s` can read, so that none can be right. Look "
                "at the Solver's prompt: does it say where the answer is to stand? Or say where it stands "
                "(`answer_pattern`), or let the completions be longer.",
                answers,
                getattr(self.outcome, "__name__", type(self.outcome).__name__),
            )

    def _raters(self) -> dict[str, Callable]:
        return {}

    def rate(self, raters: dict[str, Callable], episodes: Episodes, outcome: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each role's rating of each answer; schemes that use none rate nothing."""
        return {}

    @staticmethod
    def _offset(count: int) -> int:
        """Index of this process's first row in the gathered rows."""
        from accelerate import PartialState

        state = PartialState()
        counts = gather_object([count])
        return sum(counts[: state.process_index]) if state.num_processes > 1 else 0

    def _judge(self, prompts: list, answers: list[str], kwargs: dict[str, Any]) -> list[float]:
        """Outcomes of answers to prompts; the columns of `kwargs` repeat with the prompts."""
        times, rows = len(answers) // len(next(iter(_columns(kwargs).values()), answers)), len(answers)
        columns = {name: list(values) * times for name, values in _columns(kwargs).items()}
        scalars = {k: v for k, v in kwargs.items() if k not in columns and k not in ("log_extra", "completion_ids")}
        completions = [
            answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return call_outcome(self.outcome, rows, prompts=prompts, completions=completions, **{**scalars, **columns})

    def _allocate_rows(self, rows: list[tuple], offset: int, count: int) -> list[float | None]:
        """Lay gathered rows out as (P, G), a prompt's rows padded with NaN to the largest group, and allocate."""
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row[0], []).append(i)
        size = max(map(len, groups.values()))

        def column(c: int) -> torch.Tensor | None:
            if len(rows[0]) <= c or rows[0][c] is None:
                return None
            nan = float("nan")
            return torch.tensor([[rows[i][c] for i in g] + [nan] * (size - len(g)) for g in groups.values()])

        joint, solo, thinker_share, solver_share = (column(c) for c in range(1, 5))
        self.check_outcomes(joint, solo)
        share = {
            name: value.unsqueeze(-1)
            for name, value in (("thinker_share", thinker_share), ("solver_share", solver_share))
            if value is not None
        }
        reward = self.allocate(joint.unsqueeze(-1), solo, **share)["thinker"]  # (P, G)
        flat: list[float | None] = [None] * len(rows)
        for p, group in enumerate(groups.values()):
            for g, i in enumerate(group):
                value = reward[p, g].item()
                flat[i] = None if value != value else value
        return flat[offset : offset + count]

    def _log(self, episodes: Episodes, joint: list[float], solo: list[float], kwargs: dict[str, Any]) -> None:
        """Log the outcomes under the names that the trainer uses, and the texts in the completions table."""
        if (missing := unanswered(self.outcome, episodes.answers)) is not None:
            self.warn_of_no_answers(sum(missing), len(missing))
        if (log_metric := kwargs.get("log_metric")) is not None:
            for name, values in (("joint", joint), ("solo", solo)):
                scored = [value > 0 for value in values if value == value]
                if scored:
                    log_metric(f"credit/{name}_accuracy", sum(scored) / len(scored))
            log_metric("credit/leak_rate", sum(episodes.leaked) / len(episodes.leaked))
            if missing is not None:
                log_metric("credit/no_answer_rate", sum(missing) / len(missing))
        if (log_extra := kwargs.get("log_extra")) is not None:
            log_extra("joint_answer", episodes.answers)
            log_extra("outcome", joint)
            if solo:
                log_extra("solo_answer", episodes.solos)


def _columns(kwargs: dict[str, Any]) -> dict[str, list]:
    """The dataset's columns among a reward function's keyword arguments."""
    return {k: v for k, v in kwargs.items() if isinstance(v, list) and k != "completion_ids"}


def _like(prompt: Prompt, problem: str) -> Prompt:
    """The problem as a prompt of the dataset's kind, without the Thinker's own instructions."""
    return problem if isinstance(prompt, str) else [{"role": "user", "content": problem}]
