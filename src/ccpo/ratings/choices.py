"""Constrained ratings: a role chooses among nine continuations, so that its reply can always be read."""

from collections.abc import Sequence

import torch

from .scale import PAIRS, check_outcome, check_roles

RATING_PREFIX = '{"outcome": "%s", "pair": ['
SHARES_PREFIX = '{"outcome": "%s", "shares": {'
SHARES_END = "}}"
SHARE_CHOICES: tuple[str, ...] = tuple(str(share) for share, _ in PAIRS)


def rating_choices(outcome: str) -> tuple[str, list[str]]:
    """
    The constrained reply of a team of two: its fixed beginning, and the nine possible continuations.

    The continuations are in the order of `PAIRS`: `parse_rating(prefix + choices[i], outcome)` is `PAIRS[i][0]`. They
    differ only in digits. So if a tokenizer splits numbers into digits, all nine have the same number of tokens, and
    their log-probabilities can be compared.

    Args:
        outcome (`str`): The verdict, `"correct"` or `"wrong"`.

    Returns:
        `tuple[str, list[str]]`: The beginning and the continuations.

    Raises:
        `ValueError`: If `outcome` is neither.
    """
    check_outcome(outcome)
    return RATING_PREFIX % outcome, [f"{t}, {s}]}}" for t, s in PAIRS]


def role_share_prefix(outcome: str, roles: Sequence[str], chosen: Sequence[str]) -> str:
    """
    The constrained reply of a team of any size, up to the next number.

    One of `SHARE_CHOICES` follows it, and `SHARES_END` follows the number of the last role.

    Args:
        outcome (`str`): The verdict, `"correct"` or `"wrong"`.
        roles (`Sequence[str]`): Names of the n roles.
        chosen (`Sequence[str]`): The numbers of the first roles, which are already chosen; fewer than n.

    Returns:
        `str`: With `chosen=["0.4"]`, for example, `{"outcome": "correct", "shares": {"planner": 0.4, "critic": `.

    Raises:
        `ValueError`: If `outcome` or `roles` is wrong, or if all numbers are already chosen.
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
    Choose one of nine continuations for each reply, from their log-probabilities.

    Args:
        log_probs, expectation, generator, temperature: As for [`shares_from_log_probs`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `(n,)` each: the shares, float32, and the indices into `PAIRS` of
        the continuations: those drawn, or with `expectation` the most likely ones. If a share is NaN, its index means
        nothing.

    Raises:
        `ValueError`: If `log_probs` has another shape, or if `temperature` is not above 0.
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
    Turn the log-probabilities of the nine choices into a share for each reply.

        p = softmax(log_probs / temperature)      share = Σ_i p_i t_i  (`expectation`),  else t_i with i drawn from p

    If the choices are pairs, it is the share of the role that speaks first.

    Args:
        log_probs (`torch.Tensor` of shape `(n, 9)`):
            The summed log-probability of each of the [`rating_choices`], or of each number after a
            [`role_share_prefix`]. They need not be normalised. A choice with `-inf` is never taken. A row with a NaN
            or `+inf`, or with nothing but `-inf`, gives NaN.
        expectation (`bool`): Whether to take the mean over the nine choices instead of drawing one.
        generator (`torch.Generator`, *optional*): The source of the draws, on the device of `log_probs`.
        temperature (`float`, defaults to 1.0): Divides the log-probabilities. Above 0.

    Returns:
        `torch.Tensor` of shape `(n,)`, float32: the shares.

    Raises:
        `ValueError`: If `log_probs` has another shape, or if `temperature` is not above 0.
    """
    return choose(log_probs, expectation=expectation, generator=generator, temperature=temperature)[0]
