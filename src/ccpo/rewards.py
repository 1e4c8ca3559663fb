"""
The credit allocators as TRL reward functions.

The same object serves two masters. [`MultiAgentGRPOTrainer`] reads its `outcome` and calls
[`~CreditAllocator.allocate`] with tensors of the global batch. TRL's own `GRPOTrainer` calls it as a reward function
of a single Thinker, whose Solver is then reached through `partner`.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object

from .answers import completion_text, reader_of
from .credit import counterfactual_credit, self_evaluated_credit, shared_credit
from .credit.groups import check_coefficient, team_outcome
from .prompts import fill, problem_text
from .ratings import (
    MAX_RATING_TOKENS,
    PAIRS,
    build_rating_messages,
    keep_end,
    parse_shares,
    rating_choices,
    shares_from_log_probs,
)
from .rollout import Episodes, Prompt, run_solver
from .topology import ThinkSolve
from .verifier import MathVerifier

logger = logging.getLogger(__name__)


class CreditAllocator:
    """
    Base class: how one team outcome becomes a reward for each role. A scheme of your own overrides [`allocate`].

    Args:
        outcome (`Callable`, *optional*):
            A TRL reward function that judges the team's answer: +1 right, -1 wrong, `None` or NaN unscorable. Defaults
            to [`MathVerifier`].
        partner (`Callable`, *optional*):
            Generator of the Solver's answers, `partner(prompts) -> list[str]`, e.g. [`TransformersGenerator`] or
            [`OpenAIGenerator`]. Needed under TRL's own `GRPOTrainer` only.
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
        self._warned = False  # that the dataset has no column `problem`

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
            if not self._warned:
                logger.warning(
                    "The dataset has no column `problem`, so the Solver is given the Thinker's prompt. If that holds "
                    "the Thinker's instructions too, add `problem`, the problem alone."
                )
                self._warned = True
            problems = [problem_text(prompt) for prompt in prompts]
        if bad := [problem for problem in problems if not isinstance(problem, str)]:
            raise TypeError(f"The column `problem` must hold strings, got {bad[0]!r}.")
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
        outcomes = self.outcome(prompts=prompts, completions=completions, **{**scalars, **columns})
        if len(outcomes) != rows:
            raise ValueError(f"`outcome` returned {len(outcomes)} values for {rows} answers.")
        return [float("nan") if value is None else float(value) for value in outcomes]

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
        if (log_metric := kwargs.get("log_metric")) is not None:
            for name, values in (("joint", joint), ("solo", solo)):
                scored = [value > 0 for value in values if value == value]
                if scored:
                    log_metric(f"credit/{name}_accuracy", sum(scored) / len(scored))
            log_metric("credit/leak_rate", sum(episodes.leaked) / len(episodes.leaked))
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


class SharedCredit(CreditAllocator):
    """Shared credit as a reward function: see [`~ccpo.credit.shared_credit`]. Takes outcomes of any real value."""

    __name__ = "shared_credit"
    strict_outcomes = False

    def allocate(self, joint, solo=None, thinker_share=None, solver_share=None):
        return shared_credit(joint)


class CounterfactualCredit(CreditAllocator):
    """
    CCPO as a reward function: see [`~ccpo.credit.counterfactual_credit`].

    Args:
        outcome, partner, topology: as for [`CreditAllocator`].
        coef (`float`, defaults to 0.2): λ.
        bonus (`str`, defaults to `"event"`): `"event"` or `"difference"`.
        baseline (`str`, defaults to `"group"`): `"group"` or `"paired"`.
    """

    __name__ = "counterfactual_credit"

    def __init__(self, outcome=None, *, coef=0.2, bonus="event", baseline="group", partner=None, topology=None):
        super().__init__(outcome, partner=partner, topology=topology)
        check_coefficient("coef", coef)
        if bonus not in ("event", "difference"):
            raise ValueError(f"`bonus` must be 'event' or 'difference', got {bonus!r}.")
        if baseline not in ("group", "paired"):
            raise ValueError(f"`baseline` must be 'group' or 'paired', got {baseline!r}.")
        self.coef, self.bonus, self.baseline = coef, bonus, baseline

    def needs_solo(self, roles):
        return "thinker" in roles and self.coef > 0

    def allocate(self, joint, solo=None, thinker_share=None, solver_share=None):
        if solo is None:  # nobody's credit asked for them: the Solver's is the outcome
            return shared_credit(joint)
        return counterfactual_credit(joint, solo, coef=self.coef, bonus=self.bonus, baseline=self.baseline)


class SelfEvaluatedCredit(CreditAllocator):
    """
    SEPO as a reward function: see [`~ccpo.credit.self_evaluated_credit`].

    Args:
        outcome, partner, topology: as for [`CreditAllocator`].
        self_weight, credit_coef, blame_coef (`float`), center (`bool`): as for the pure function.
        rating_mode (`str`, defaults to `"generate"`):
            `"generate"`: free text, read by [`~ccpo.ratings.parse_rating`]. `"constrained"`: choose among the nine
            pairs by the probabilities that the model gives them; always valid.
        rating_expectation (`bool`, defaults to `False`):
            Take the probability-weighted mean of the share over the nine pairs instead of a draw (constrained only).
        rating_max_tokens (`int`, defaults to 512): longest free-text rating.
        rating_prompt (`str`, *optional*):
            Template with `{role}`, `{problem}`, `{thought}`, `{answer}`, `{outcome}`; defaults to our own words.
        thinker_rater (`Callable`, *optional*):
            Generator of the Thinker's ratings under TRL's own `GRPOTrainer`, which hands reward functions no model,
            e.g. `TransformersGenerator(model, tokenizer)` of the model in training.
    """

    __name__ = "self_evaluated_credit"

    def __init__(
        self,
        outcome=None,
        *,
        self_weight=0.3,
        credit_coef=0.2,
        blame_coef=0.2,
        center=True,
        rating_mode="generate",
        rating_expectation=False,
        rating_max_tokens=MAX_RATING_TOKENS,
        rating_prompt=None,
        partner=None,
        thinker_rater=None,
        topology=None,
    ):
        super().__init__(outcome, partner=partner, topology=topology)
        check_coefficient("self_weight", self_weight, upper=1)
        check_coefficient("credit_coef", credit_coef)
        check_coefficient("blame_coef", blame_coef)
        if rating_mode not in ("generate", "constrained"):
            raise ValueError(f"`rating_mode` must be 'generate' or 'constrained', got {rating_mode!r}.")
        if rating_expectation and rating_mode != "constrained":
            raise ValueError("`rating_expectation=True` needs the probabilities of `rating_mode='constrained'`.")
        if rating_max_tokens < 1:
            raise ValueError(f"`rating_max_tokens` must be at least 1, got {rating_max_tokens}.")
        self.self_weight, self.credit_coef, self.blame_coef, self.center = self_weight, credit_coef, blame_coef, center
        self.rating_mode, self.rating_expectation = rating_mode, rating_expectation
        self.rating_max_tokens, self.rating_prompt = rating_max_tokens, rating_prompt
        self.thinker_rater = thinker_rater

    def needs_ratings(self, roles):
        return self.credit_coef > 0 or self.blame_coef > 0

    def _raters(self):
        if self.thinker_rater is None:
            raise ValueError(
                "`self_evaluated_credit` needs the Thinker's own ratings, and TRL's GRPOTrainer gives reward "
                "functions no model: pass `thinker_rater`, e.g. TransformersGenerator(model, tokenizer)."
            )
        return {"thinker": self.thinker_rater, "solver": self.partner}

    def rate(self, raters, episodes, outcome):
        """
        Ask every role to rate every answer.

        Args:
            raters (`dict[str, Callable]`): a generator per role, one object where one policy rates for both;
                `"constrained"` needs its `score(prompts, choices)`.
            episodes ([`Episodes`]): what was said.
            outcome (`torch.Tensor` of shape `(n·K,)`): the verdicts.

        Returns:
            `dict[str, torch.Tensor]`: per role the Thinker's share, shape `(n·K,)`, NaN = invalid or unscorable.
        """
        k, views = len(episodes.answers) // len(episodes.prompts), episodes.views
        # An unscorable episode is asked about too, and its rating dropped: every process makes the same calls.
        verdicts = ["correct" if value > 0 else "wrong" for value in outcome.tolist()]
        roles_of = {id(rater): [role for role in raters if raters[role] is rater] for rater in raters.values()}
        shares = {}
        for roles in roles_of.values():  # who rates for several roles does so in one call
            rater = raters[roles[0]]
            context = getattr(rater, "context_length", None)
            prompts = [
                self._rating_prompt(
                    role, episodes.prompts[i // k], views[i // k], episodes.answers[i], verdict, context
                )
                for role in roles
                for i, verdict in enumerate(verdicts)
            ]
            if self.rating_mode == "constrained":
                share = self._choose(rater, prompts, verdicts * len(roles))
            else:
                texts = rater(prompts, max_new_tokens=self.rating_max_tokens)
                share = torch.tensor(parse_shares(texts, verdicts * len(roles)))
            shares |= zip(roles, share.view(len(roles), -1).masked_fill(outcome.isnan(), torch.nan), strict=True)
        return shares

    def _rating_prompt(
        self, role: str, prompt: Prompt, thought: str, answer: str, verdict: str, context: int | None
    ) -> Prompt:
        """
        What a role is asked; texts that do not fit keep their end, where an answer's box is.

        Of the `context` tokens, the answer's characters may take a half of what the question itself and the reply
        leave, thought and problem a quarter each. Nearly every text has fewer tokens than
        characters, so that it fits.
        """

        def build(**fields: str) -> Prompt:
            if self.rating_prompt is not None:
                messages = [{"role": "user", "content": fill(self.rating_prompt, role=role, **fields)}]
            else:
                messages = build_rating_messages(role=role, **fields)
            return messages[0]["content"] if isinstance(prompt, str) else messages

        fields = {"problem": problem_text(prompt), "thought": thought, "answer": answer}
        limits = {"problem": 12_000, "thought": 12_000, "answer": 16_000}
        if context is not None:
            reply = self.rating_max_tokens if self.rating_mode == "generate" else 64
            question = (
                len(problem_text(build(outcome=verdict, **dict.fromkeys(fields, "")))) + 64
            )  # 64: the template's
            room = max(context - reply - question, 64)
            limits = {name: min(limit, room // (2 if name == "answer" else 4)) for name, limit in limits.items()}
        return build(outcome=verdict, **{name: keep_end(fields[name], name, limits[name]) for name in fields})

    def _choose(self, rater: Callable, prompts: list[Prompt], verdicts: list[str]) -> torch.Tensor:
        """Shares from the probabilities of the nine pairs."""
        if not hasattr(rater, "score"):
            raise ValueError(
                f"`rating_mode='constrained'` needs a generator with `score`, {type(rater).__name__} has none. "
                "Use TransformersGenerator or `rating_mode='generate'`."
            )
        if getattr(rater, "draws_choices", False) and not self.rating_expectation:
            replies = {verdict: rating_choices(verdict) for verdict in ("correct", "wrong")}  # which go on alike
            drawn = rater.choose(prompts, [replies[verdict][0] for verdict in verdicts], replies["correct"][1])
            return torch.tensor([PAIRS[i][0] for i in drawn])
        nine = {}
        for verdict in ("correct", "wrong"):
            prefix, choices = rating_choices(verdict)
            nine[verdict] = [prefix + choice for choice in choices]
        log_probs = rater.score(prompts, [nine[verdict] for verdict in verdicts])  # (n·K, 9)
        return shares_from_log_probs(log_probs.float().cpu(), expectation=self.rating_expectation)

    def allocate(self, joint, solo=None, thinker_share=None, solver_share=None):
        if thinker_share is None:
            return shared_credit(joint)
        return self_evaluated_credit(
            joint,
            thinker_share,
            solver_share,
            self_weight=self.self_weight,
            credit_coef=self.credit_coef,
            blame_coef=self.blame_coef,
            center=self.center,
        )


def credit_metrics(joint: torch.Tensor, solo: torch.Tensor | None) -> dict[str, float]:
    """
    The outcome metrics of a batch.

    Args:
        joint (`torch.Tensor` of shape `(P, G, K)`): outcomes of the team's answers, NaN unscorable.
        solo (`torch.Tensor` of shape `(P, S)`, *optional*): outcomes of the solo answers.

    Returns:
        `dict[str, float]`: `credit/joint_accuracy`, `credit/unscorable_rate`, and with solos `credit/solo_accuracy`,
        `credit/help_rate`, `credit/hurt_rate` (shares of the scorable thoughts with R > 0 > b and R < 0 < b). NaN
        where nothing is scorable.
    """

    def mean(mask: torch.Tensor, valid: torch.Tensor) -> float:
        return mask[valid].float().mean().item()

    metrics = {
        "credit/joint_accuracy": mean(joint > 0, ~joint.isnan()),
        "credit/unscorable_rate": joint.isnan().float().mean().item(),
    }
    if solo is not None:
        reward, b = team_outcome(joint), solo.nanmean(dim=1, keepdim=True)
        valid = ~reward.isnan() & ~b.isnan()
        metrics |= {
            "credit/solo_accuracy": mean(solo > 0, ~solo.isnan()),
            "credit/help_rate": mean((reward > 0) & (b < 0), valid),
            "credit/hurt_rate": mean((reward < 0) & (b > 0), valid),
        }
    return metrics


def rating_metrics(joint: torch.Tensor, thinker_share: torch.Tensor, solver_share: torch.Tensor) -> dict[str, float]:
    """
    How well the ratings went, over the scorable episodes.

    Args:
        joint (`torch.Tensor` of shape `(P, G, K)`): outcomes, NaN unscorable.
        thinker_share, solver_share (`torch.Tensor` of shape `(P, G, K)`): ratings, NaN invalid.

    Returns:
        `dict[str, float]`: `rating/<role>_valid_rate`, and `rating/agreement_rate`, the share of the episodes rated by
        both in which both chose the same pair.
    """
    scorable = ~joint.isnan()
    both = scorable & ~thinker_share.isnan() & ~solver_share.isnan()
    agree = (thinker_share - solver_share).abs() < 0.05  # pairs are 0.1 apart
    return {
        "rating/thinker_valid_rate": (~thinker_share.isnan())[scorable].float().mean().item(),
        "rating/solver_valid_rate": (~solver_share.isnan())[scorable].float().mean().item(),
        "rating/agreement_rate": agree[both].float().mean().item(),
    }
