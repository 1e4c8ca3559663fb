"""SEPO as a reward function."""

from collections.abc import Callable

import torch

from ..calls import call
from ..credit import chain_self_evaluated_credit
from ..credit.groups import check_coefficient
from ..ratings import (
    MAX_RATING_TOKENS,
    PAIRS,
    build_rating_messages,
    keep_end,
    parse_shares,
    rating_choices,
    shares_from_log_probs,
)
from ..team.prompts import Prompt, fill, problem_text
from ..team.rollout import ask
from .base import CreditAllocator
from .evidence import Evidence


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
    teams = "chain"

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
        partners=None,
        thinker_rater=None,
        topology=None,
    ):
        super().__init__(outcome, partner=partner, partners=partners, topology=topology)
        check_coefficient("self_weight", self_weight, upper=1)
        check_coefficient("credit_coef", credit_coef)
        check_coefficient("blame_coef", blame_coef)
        if rating_mode not in ("generate", "constrained"):
            raise ValueError(f"`rating_mode` must be 'generate' or 'constrained', got {rating_mode!r}.")
        if rating_expectation and rating_mode != "constrained":
            raise ValueError("`rating_expectation=True` needs the probabilities of `rating_mode='constrained'`.")
        if rating_max_tokens < 1:
            raise ValueError(f"`rating_max_tokens` must be at least 1, got {rating_max_tokens}.")
        names = ("{role}", "{problem}", "{thought}", "{answer}", "{outcome}")
        if rating_prompt is not None and not any(name in str(rating_prompt) for name in names):
            raise ValueError(f"`rating_prompt` must contain some of {', '.join(names)}, got {rating_prompt!r}.")
        self.self_weight, self.credit_coef, self.blame_coef, self.center = self_weight, credit_coef, blame_coef, center
        self.rating_mode, self.rating_expectation = rating_mode, rating_expectation
        self.rating_max_tokens, self.rating_prompt = rating_max_tokens, rating_prompt
        self.thinker_rater = thinker_rater

    def evidence(self, topology, roles):
        return Evidence(ratings=self.credit_coef > 0 or self.blame_coef > 0)

    def _first_rater(self):
        if self.thinker_rater is None:
            raise ValueError(
                f"`self_evaluated_credit` needs the {self.topology.role_names[0]}'s own ratings, and TRL's "
                "GRPOTrainer gives reward functions no model: pass `thinker_rater`, e.g. "
                "TransformersGenerator(model, tokenizer)."
            )
        return self.thinker_rater

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
                texts = ask("rater", rater, prompts, max_new_tokens=self.rating_max_tokens)
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
        log_probs = call(rater.score, prompts, [nine[verdict] for verdict in verdicts])  # (n·K, 9)
        return shares_from_log_probs(log_probs.float().cpu(), expectation=self.rating_expectation)

    def allocate(self, outcomes):
        if outcomes.shares is None:
            return outcomes.values
        credit = chain_self_evaluated_credit(
            outcomes.team,
            outcomes.shares,
            branches=outcomes.branches,
            self_weight=self.self_weight,
            credit_coef=self.credit_coef,
            blame_coef=self.blame_coef,
            center=self.center,
        )
        return dict(zip(outcomes.topology.role_names, credit, strict=True))
