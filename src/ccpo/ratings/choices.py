"""A rating as choices among nine: replies that can always be read."""

from collections.abc import Sequence

import torch

from .scale import PAIRS, check_outcome, check_roles

RATING_PREFIX = '{"outcome": "%s", "pair": ['
SHARES_PREFIX = '{"outcome": "%s", "shares": {'
SHARES_END = "}}"
SHARE_CHOICES: tuple[str, ...] = tuple(str(share) for share, _ in PAIRS)


def rating_choices(outcome: str) -> tuple[str, list[str]]:
    """
    The constrained reply of a team of two: its forced beginning, and the nine continuations in the order of `PAIRS`.

    `parse_rating(prefix + choices[i], outcome)` is `PAIRS[i][0]`. The choices differ in digits alone, so a tokenizer
    that splits digits gives all nine the same number of tokens and their summed log-probabilities compare.
    """
    check_outcome(outcome)
    return RATING_PREFIX % outcome, [f"{t}, {s}]}}" for t, s in PAIRS]


def role_share_prefix(outcome: str, roles: Sequence[str], chosen: Sequence[str]) -> str:
    """
    The constrained reply of a team of any number of roles, up to the place of the next number.

    Behind it stands one of `SHARE_CHOICES`, and behind the last role's `SHARES_END`.

    Args:
        outcome (`str`): the verdict, `"correct"` or `"wrong"`.
        roles (`Sequence[str]`): names of the n roles.
        chosen (`Sequence[str]`): the numbers so far, those of the first roles; fewer than n.

    Returns:
        `str`: `{"outcome": "correct", "shares": {"planner": 0.4, "critic": ` where `chosen` is `["0.4"]`.

    Raises:
        `ValueError`: `outcome` or `roles` cannot be, or no number is missing.
    """
    check_outcome(outcome)
    roles = check_roles(roles)
    if len(chosen) >= len(roles):
        raise ValueError(f"`chosen` must have fewer numbers than there are roles ({len(roles)}), got {list(chosen)}.")
    said = [f'"{role}": {number}' for role, number in zip(roles, (*chosen, ""), strict=False)]
    return SHARES_PREFIX % outcome + ", ".join(said)


def choose(
    log_probs: torch.Tensor, *, expectation: bool, generator: torch.Generator | None = None, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    [`shares_from_log_probs`], and which choices the reply goes on with: those drawn, or the likeliest.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `(n,)` each: the shares, float32, and indices into `PAIRS`. Where
        the share is NaN, the index is any.
    """
    if log_probs.ndim != 2 or log_probs.shape[1] != len(PAIRS):
        raise ValueError(f"`log_probs` must have shape (n, {len(PAIRS)}), got {tuple(log_probs.shape)}.")
    if not temperature > 0:
        raise ValueError(
            f"`temperature` must be > 0, got {temperature}. To get the most likely pair, give a small number."
        )
    shares = torch.tensor([t for t, _ in PAIRS], device=log_probs.device)  # (9,)
    probs = torch.softmax(log_probs.float() / temperature, dim=1)  # (n, 9)
    if expectation:
        return probs @ shares, probs.argmax(dim=1)
    unknown = probs.isnan().any(dim=1)  # (n,); torch.multinomial refuses NaN
    drawn = torch.multinomial(probs.masked_fill(unknown[:, None], 1.0), 1, generator=generator)[:, 0]  # (n,)
    return shares[drawn].masked_fill(unknown, torch.nan), drawn


def shares_from_log_probs(
    log_probs: torch.Tensor, *, expectation: bool, generator: torch.Generator | None = None, temperature: float = 1.0
) -> torch.Tensor:
    """
    A role's shares from the log-probabilities of the nine choices: the first role's, where these are pairs.

        p = softmax(log_probs / temperature)      share = Σ_i p_i t_i  (`expectation`),  else t_i with i drawn from p

    Args:
        log_probs (`torch.Tensor` of shape `(n, 9)`):
            Summed log-probability of each of the [`rating_choices`], or of each number behind a
            [`role_share_prefix`]; normalised or not; `-inf` is never chosen. A row with a NaN or `+inf`, or with
            `-inf` only, gives a NaN share.
        expectation (`bool`): whether to take the mean over the nine choices instead of one draw.
        generator (`torch.Generator`, *optional*): source of the draws, on the device of `log_probs`.
        temperature (`float`, defaults to 1.0): divides the log-probabilities.

    Returns:
        `torch.Tensor` of shape `(n,)`, float32: the shares.
    """
    return choose(log_probs, expectation=expectation, generator=generator, temperature=temperature)[0]
