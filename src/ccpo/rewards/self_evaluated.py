"""SEPO as a reward function."""

from collections.abc import Callable

import torch

from ..calls import call
from ..credit import chain_self_evaluated_credit
from ..credit.groups import check_coefficient
from ..ratings import (
    MAX_RATING_TOKENS,
    PAIRS,
    SHARE_CHOICES,
    SHARES_END,
    check_rating_prompt,
    choose,
    fill_rating_prompt,
    keep_end,
    parse_role_shares,
    parse_shares,
    rating_choices,
    rating_question,
    role_share_prefix,
)
from ..team.prompts import Prompt, problem_text
from ..team.rollout import Episodes, ask
from .base import CreditAllocator
from .evidence import Evidence


class SelfEvaluatedCredit(CreditAllocator):
    """
    SEPO: each role rates how much every role contributed to the outcome, and these ratings divide the credit.

    When an answer has been judged, each role divides the credit for a right answer, or the blame for a wrong one,
    among all roles. The formulas are those of [`~ccpo.credit.chain_self_evaluated_credit`], and for teams of two
    those of [`~ccpo.credit.self_evaluated_credit`].

    Args:
        outcome, partner, partners, topology: As for [`CreditAllocator`].
        self_weight (`float`, defaults to 0.3):
            From 0 to 1: the weight of the share that a role gives itself. The shares that others give it have the
            rest.
        credit_coef (`float`, defaults to 0.2): The weight of the shares if the answer is right. At least 0.
        blame_coef (`float`, defaults to 0.2): The weight of the shares if the answer is wrong. At least 0.
        center (`bool`, defaults to `True`):
            Whether a share is compared with the mean share in the prompt's group; otherwise with an equal share.
        rating_mode (`str`, defaults to `"generate"`):
            How a role rates. `"generate"`: it writes free text, from which the rating is read. In teams of two
            [`~ccpo.ratings.parse_rating`] reads it, in larger teams [`~ccpo.ratings.parse_role_shares`].
            `"constrained"`: it chooses by the probabilities that its model gives to the choices. In a team of two it
            chooses one of nine pairs; in larger teams one of nine shares for each role in turn. Such a rating is
            always valid.
        rating_expectation (`bool`, defaults to `False`):
            Only with `"constrained"`: take the mean share, weighted by the probabilities of the nine choices, instead
            of drawing one choice.
        rating_max_tokens (`int`, defaults to 512): Only with `"generate"`: the longest rating, in tokens.
        rating_prompt (`str`, *optional*):
            Your own template for the question, with any of these fields: `{role}` (the role that is asked),
            `{problem}`, `{outcome}` (`correct` or `wrong`), the name of a role in braces (what it wrote), and
            `{transcript}` (what all roles wrote, under their names). In a team of two, `{thought}` is the first text
            and `{answer}` the second. Defaults to the package's own question.
        thinker_rater (`Callable`, *optional*):
            Only with TRL's own `GRPOTrainer`, which passes no model to reward functions: the generator that writes the
            first role's ratings, e.g. `TransformersGenerator(model, tokenizer)` of the trained model.

    Raises:
        `ValueError`: If an argument is out of range or unknown, or if `rating_prompt` shows nothing to rate.
    """

    __name__ = "self_evaluated_credit"
    teams = "chain"
    drop_in_fields = ("partner", "partners", "thinker_rater")

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
        for name, value in (("center", center), ("rating_expectation", rating_expectation)):
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` must be true or false, got {value!r}.")
        if thinker_rater is not None and not callable(thinker_rater):
            raise ValueError(
                "`thinker_rater` must be a generator (a function from a list of prompts to a list of texts), got "
                f"{thinker_rater!r:.80}."
            )
        if rating_expectation and rating_mode != "constrained":
            raise ValueError(
                "`rating_expectation=True` needs the probabilities of the nine choices, which only "
                "`rating_mode='constrained'` has. Set that too."
            )
        if not isinstance(rating_max_tokens, int) or isinstance(rating_max_tokens, bool) or rating_max_tokens < 1:
            raise ValueError(f"`rating_max_tokens` must be an integer of at least 1, got {rating_max_tokens!r}.")
        if rating_prompt is not None:
            check_rating_prompt(rating_prompt)
        self.self_weight, self.credit_coef, self.blame_coef, self.center = self_weight, credit_coef, blame_coef, center
        self.rating_mode, self.rating_expectation = rating_mode, rating_expectation
        self.rating_max_tokens, self.rating_prompt = rating_max_tokens, rating_prompt
        self.thinker_rater = thinker_rater

    def evidence(self, topology, roles):
        return Evidence(ratings=self.credit_coef > 0 or self.blame_coef > 0)

    def _first_rater(self):
        if self.thinker_rater is None:
            raise ValueError(
                f"`self_evaluated_credit` needs the {self.topology.role_names[0]}'s own ratings, but TRL's "
                "GRPOTrainer gives reward functions no model. Pass `thinker_rater`, e.g. "
                "TransformersGenerator(model, tokenizer)."
            )
        return self.thinker_rater

    def rate(self, raters: dict[str, Callable], episodes: Episodes, outcome: torch.Tensor) -> torch.Tensor:
        """
        Ask every role to rate every episode. An episode is an answer (a leaf) and the texts that led to it.

        Ratings in free text are stored in `episodes.ratings`.

        Args:
            raters (`dict[str, Callable]`):
                Maps each role to its generator. Roles that one policy plays have the same object. In the mode
                `"constrained"` each needs a method `score(prompts, choices)`.
            episodes ([`~ccpo.team.rollout.Episodes`]): What the team wrote.
            outcome (`torch.Tensor` of shape `(n_leaves,)`): The outcome of each answer.

        Returns:
            `torch.Tensor` of shape `(n_leaves, n, n)`: q[leaf, rater, rated], float32 on the CPU. NaN for answers that
            cannot be scored, and in the whole row of an invalid rating. In a team of two a row is (q, 1 - q).

        Raises:
            `ValueError`: If `raters` or `rating_prompt` do not fit the roles of the team.
        """
        names = episodes.topology.role_names
        if set(raters) != set(names):
            raise ValueError(
                f"`raters` must have a generator for each of the roles {list(names)}, got {list(raters)}."
            )
        if self.rating_prompt is not None:
            check_rating_prompt(self.rating_prompt, names)
        rows = episodes.said[names[-1]].rows
        views = {name: [episodes.view(name, text) for text in episodes.said[name].texts] for name in names}
        # Unscorable episodes are rated, too, so that every process makes the same calls. Their ratings are dropped.
        verdicts = ["correct" if value > 0 else "wrong" for value in outcome.tolist()]
        roles_of = {id(rater): [role for role in raters if raters[role] is rater] for rater in raters.values()}
        shares = torch.full((len(verdicts), len(names), len(names)), torch.nan)
        for roles in roles_of.values():  # a generator that rates for several roles is called once
            rater = raters[roles[0]]
            context = getattr(rater, "context_length", None)
            prompts = [
                self._rating_prompt(
                    role,
                    episodes.prompts[rows[leaf]],
                    {name: views[name][episodes.above(name, leaf)] for name in names},
                    verdict,
                    context,
                )
                for role in roles
                for leaf, verdict in enumerate(verdicts)
            ]
            rated, replies = self._ask(rater, prompts, verdicts * len(roles), names)
            for i, (role, own) in enumerate(zip(roles, rated.view(len(roles), len(verdicts), -1), strict=True)):
                shares[:, names.index(role)] = own
                if replies is not None:
                    episodes.ratings[role] = replies[i * len(verdicts) : (i + 1) * len(verdicts)]
        return shares.masked_fill(outcome.isnan().cpu().view(-1, 1, 1), torch.nan)

    def _ask(
        self, rater: Callable, prompts: list[Prompt], verdicts: list[str], names: tuple[str, ...]
    ) -> tuple[torch.Tensor, list[str] | None]:
        """
        Get a rating of all roles for each prompt.

        Returns:
            `tuple[torch.Tensor, list[str] | None]`: The shares, of shape `(len(prompts), n)`, a row of NaN if the
            rating is invalid; and the replies, or `None` in the mode `"constrained"`.
        """
        if self.rating_mode == "generate":
            replies = ask("rater", rater, prompts, max_new_tokens=self.rating_max_tokens)
            if len(names) > 2:
                return _read(replies, verdicts, names), replies
            share = torch.tensor(parse_shares(replies, verdicts))
        else:
            replies = None
            if len(names) > 2:
                return self._choose_shares(rater, prompts, verdicts, names), replies
            share = self._choose(rater, prompts, verdicts)
        return torch.stack([share, 1 - share], dim=1), replies

    def _rating_prompt(
        self, role: str, prompt: Prompt, texts: dict[str, str], verdict: str, context: int | None
    ) -> Prompt:
        """
        Build the prompt that asks a role for its rating.

        A text that is too long is cut at its beginning, because its end holds the answer. The room for problem and
        texts is what the question and the reply leave of the context. The last text may take two parts of it, the
        problem and each other text one part. The room is counted in tokens and the texts in characters, of which
        nearly every text has more than tokens, so the prompt fits.

        Args:
            role (`str`): The role that is asked.
            prompt (`str` or `list[dict]`): The dataset's prompt.
            texts (`dict[str, str]`): What each role wrote, in the order in which they spoke.
            verdict (`str`): `"correct"` or `"wrong"`.
            context (`int` or `None`): The most tokens that prompt and reply may have together; `None` if unknown.
        """

        def build(problem: str, texts: dict[str, str]) -> str:
            if self.rating_prompt is None:
                return rating_question(role, problem, texts, verdict)
            return fill_rating_prompt(self.rating_prompt, role, problem, texts, verdict)

        problem, last = problem_text(prompt), list(texts)[-1]
        limits = {name: 16_000 if name == last else 12_000 for name in texts} | {None: 12_000}  # None is the problem
        if context is not None:
            question = len(build("", dict.fromkeys(texts, ""))) + 64  # 64 for the chat template
            room = max(context - self._reply_tokens(tuple(texts)) - question, 64)
            parts = {name: 2 if name == last else 1 for name in limits}
            share = {name: max(room * part // sum(parts.values()), 1) for name, part in parts.items()}
            limits = {name: min(limit, share[name]) for name, limit in limits.items()}
        cut = {name: keep_end(text, name, limits[name]) for name, text in texts.items()}
        text = build(keep_end(problem, "problem", limits[None]), cut)
        return text if isinstance(prompt, str) else [{"role": "user", "content": text}]

    def _reply_tokens(self, names: tuple[str, ...]) -> int:
        """The most tokens that a reply may have. A constrained reply has at most one token for each character."""
        if self.rating_mode == "generate":
            return self.rating_max_tokens
        if len(names) == 2:
            return 64
        chosen = [SHARE_CHOICES[0]] * len(names)
        return max(64, len(role_share_prefix("correct", names, chosen[1:]) + chosen[0] + SHARES_END))

    def _choose(self, rater: Callable, prompts: list[Prompt], verdicts: list[str]) -> torch.Tensor:
        """The first role's share in each rating, from the probabilities of the nine pairs."""
        replies = {verdict: rating_choices(verdict) for verdict in ("correct", "wrong")}  # the choices are the same
        return self._pick(rater, prompts, [replies[verdict][0] for verdict in verdicts], replies["correct"][1])[0]

    def _choose_shares(
        self, rater: Callable, prompts: list[Prompt], verdicts: list[str], names: tuple[str, ...]
    ) -> torch.Tensor:
        """The shares of all roles in each rating, chosen in turn: each choice sees the choices before it."""
        chosen: list[list[str]] = [[] for _ in prompts]
        shares = []
        for _ in names:
            prefixes = [role_share_prefix(said, names, own) for said, own in zip(verdicts, chosen, strict=True)]
            share, picked = self._pick(rater, prompts, prefixes, list(SHARE_CHOICES))
            shares.append(share)
            for own, index in zip(chosen, picked, strict=True):
                own.append(SHARE_CHOICES[index])
        rated = torch.stack(shares, dim=1)  # (len(prompts), n)
        return rated.masked_fill(rated.isnan().any(dim=1, keepdim=True), torch.nan)

    def _pick(
        self, rater: Callable, prompts: list[Prompt], prefixes: list[str], choices: list[str]
    ) -> tuple[torch.Tensor, list[int]]:
        """Choose one of nine continuations of each prompt and prefix. Returns their shares and their indices."""
        if not hasattr(rater, "score"):
            raise ValueError(
                "`rating_mode='constrained'` needs a generator with a method `score`, but "
                f"{type(rater).__name__} has none. Use TransformersGenerator, or `rating_mode='generate'`."
            )
        if getattr(rater, "draws_choices", False) and not self.rating_expectation:
            drawn = rater.choose(prompts, prefixes, choices)
            return torch.tensor([PAIRS[i][0] for i in drawn]), drawn
        log_probs = call(rater.score, prompts, [[prefix + choice for choice in choices] for prefix in prefixes])
        share, picked = choose(log_probs.float().cpu(), expectation=self.rating_expectation)  # of (len(prompts), 9)
        return share, picked.tolist()

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


def _read(texts: list[str], verdicts: list[str], names: tuple[str, ...]) -> torch.Tensor:
    """The shares of all roles in each free-text rating, of shape `(len(texts), n)`; NaN if it is invalid."""
    invalid = dict.fromkeys(names, float("nan"))
    read = (parse_role_shares(text, verdict, names) or invalid for text, verdict in zip(texts, verdicts, strict=True))
    return torch.tensor([list(shares.values()) for shares in read])
