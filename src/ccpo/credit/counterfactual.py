"""CCPO: the outcome of the team against that of the team without one role."""

from collections.abc import Sequence

import torch

from .groups import as_outcomes, check_coefficient, check_floating, team_outcome
from .tree import text_values


def removal_baseline(without: torch.Tensor, size: int, baseline: str = "group") -> torch.Tensor:
    """
    The counterfactual baseline b of each text of a role: what the team does without the role.

        b_m = mean of the prompt's S passes                          `without` (P, S), `"group"`
        b_m = mean of the S passes from context m // (size / C)      `without` (P, C, S), `"group"`
        b_m = the pass of the same place                             `"paired"`

    A context is what the roles before this one spoke; text m continues context m // (size / C).

    Args:
        without (`torch.Tensor` of shape `(P, S)` or `(P, C, S)`):
            Outcomes of fresh passes without the role, NaN where unscorable: S of each prompt, or S from each of its C
            contexts.
        size (`int`):
            N, how many texts of the role belong to a prompt; a multiple of C.
        baseline (`str`, defaults to `"group"`):
            `"group"`: the mean. `"paired"`: the text's own pass, which needs S = N, or S = N / C.

    Returns:
        `torch.Tensor` of shape `(P, N)`; NaN where every pass it rests on is unscorable.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: another shape, a size that C does not divide, an
        unknown `baseline`, or `"paired"` with another S.
    """
    check_floating("without", without)
    if without.ndim not in (2, 3) or 0 in without.shape[1:]:
        raise ValueError(
            f"`without` must have shape (P, S) or (P, C, S) with at least one pass, got {tuple(without.shape)}."
        )
    if baseline not in ("group", "paired"):
        raise ValueError(f"`baseline` must be 'group' or 'paired', got {baseline!r}.")
    contexts = without.shape[1] if without.ndim == 3 else 1
    if size < 1 or size % contexts:
        raise ValueError(
            f"`size` must be a multiple of the contexts of `without`, {contexts}, and at least 1, got {size}. It is "
            "the number of the role's texts of a prompt."
        )
    passes = without.reshape(len(without), contexts, without.shape[-1])  # (P, C, S)
    if baseline == "group":
        b = torch.nanmean(passes, dim=2, keepdim=True).expand(-1, -1, size // contexts)  # (P, C, N / C)
    elif passes.shape[2] != size // contexts:
        raise ValueError(
            f"`baseline='paired'` needs a pass for each text, {size // contexts} of each "
            f"{'prompt' if without.ndim == 2 else 'context'}, got {passes.shape[2]}. Draw as many, or use "
            "`baseline='group'`."
        )
    else:
        b = passes
    return b.reshape(len(without), size)


def solo_baseline(solo: torch.Tensor, shape: tuple[int, int], baseline: str = "group") -> torch.Tensor:
    """
    The counterfactual baseline b of each thought: [`removal_baseline`] of a Thinker, whose removal leaves solos.

    Args:
        solo (`torch.Tensor` of shape `(P, S)`):
            Outcomes of the answers that read the problem alone, NaN where unscorable.
        shape (`tuple[int, int]`):
            `(P, G)` of the thoughts.
        baseline (`str`):
            `"group"`: the mean of the prompt's `solo`. `"paired"`: the row's own solo, which needs S = G.

    Returns:
        `torch.Tensor` of shape `(P, G)`; NaN where every solo it rests on is unscorable.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: wrong shape, unknown `baseline`, or `"paired"` with
        S != G.
    """
    check_floating("solo", solo)
    if solo.ndim != 2 or solo.shape[0] != shape[0] or solo.shape[1] == 0:
        raise ValueError(f"`solo` must have shape (P, S) with P = {shape[0]} and S >= 1, got {tuple(solo.shape)}.")
    if baseline == "paired" and solo.shape[1] != shape[1]:
        raise ValueError(
            f"`baseline='paired'` needs as many solos as thoughts (S = G), got S = {solo.shape[1]} and "
            f"G = {shape[1]}. Set `num_solos` to `num_generations` or use `baseline='group'`."
        )
    return removal_baseline(solo, shape[1], baseline)


def counterfactual_credit(
    joint: torch.Tensor,
    solo: torch.Tensor,
    *,
    coef: float = 0.2,
    bonus: str = "event",
    baseline: str = "group",
) -> dict[str, torch.Tensor]:
    """
    CCPO credit ([arXiv 2603.21563](https://huggingface.co/papers/2603.21563)).

        event       bonus = 1[R > 0 and b < 0] - 1[R < 0 and b > 0]      (b = 0: no bonus)
        difference  bonus = (R - b) / 2
        r_thinker = R + coef * bonus          r_solver = R

    Args:
        joint (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`):
            Outcome of each answer that read the thought: +1 right, -1 wrong, NaN unscorable. With K > 1 the
            Thinker's R is the mean over its K answers.
        solo (`torch.Tensor` of shape `(P, S)`):
            Outcome of each answer that read the problem alone.
        coef (`float`, defaults to 0.2):
            λ. With 0 this is [`shared_credit`].
        bonus (`str`, defaults to `"event"`):
            `"event"` or `"difference"`.
        baseline (`str`, defaults to `"group"`):
            b is the mean of the prompt's solos, or with `"paired"` the row's own solo (S = G).

    Returns:
        `dict[str, torch.Tensor]`: `"thinker"` of shape `(P, G)`, `"solver"` of the shape of `joint`. NaN where R, or
        with `coef > 0` the baseline, is unscorable.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: a shape, option or coefficient that cannot be right.
    """
    _check_options(coef, bonus)
    reward = team_outcome(as_outcomes(joint))  # (P, G)
    b = solo_baseline(solo, tuple(reward.shape), baseline)  # (P, G)
    return {"thinker": _with_bonus(reward, b, coef, bonus), "solver": joint}


def _with_bonus(reward: torch.Tensor, b: torch.Tensor, coef: float, bonus: str) -> torch.Tensor:
    """R + coef * bonus of the outcome R against the baseline b, both of shape (P, N)."""
    if coef == 0:
        return reward
    if bonus == "event":
        helped, hurt = (reward > 0) & (b < 0), (reward < 0) & (b > 0)
        delta = (helped.to(reward.dtype) - hurt.to(reward.dtype)).masked_fill(b.isnan(), torch.nan)
    else:
        delta = (reward - b) / 2
    return reward + coef * delta


def chain_counterfactual_credit(
    outcome: torch.Tensor,
    baselines: Sequence[torch.Tensor | None],
    *,
    branches: Sequence[int],
    coef: float = 0.2,
    bonus: str = "event",
) -> tuple[torch.Tensor, ...]:
    """
    CCPO credit of a chain of n roles; with two roles it is [`counterfactual_credit`] to the bit.

        r_k = v_k + coef * bonus(v_k, b_k)  for every role but the last,      r_n = R

    v_k is the mean outcome of the leaves below a text ([`~ccpo.credit.text_values`]), b_k the outcome of the team
    without role k, and the bonus that of [`counterfactual_credit`].

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R, the outcome of each text of the last role: +1 right, -1 wrong, NaN unscorable.
        baselines (`Sequence[torch.Tensor | None]` of length n - 1):
            b_k of shape `(P, N_k)` for the roles 1 to n - 1, NaN where unscorable: [`removal_baseline`]. `None` for a
            role whose credit nobody needs, such as one out of turn: it gets its v.
        branches (`Sequence[int]` of length n): (1, b_2, …, b_n).
        coef (`float`, defaults to 0.2): λ. With 0 every role gets its v, shared credit.
        bonus (`str`, defaults to `"event"`): `"event"` or `"difference"`.

    Returns:
        `tuple[torch.Tensor, ...]`: for each role j its rewards, shape `(P, N_j)`. NaN where v_j, or with `coef > 0`
        b_j, is unscorable.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: a shape, option or coefficient that cannot be right.
    """
    _check_options(coef, bonus)
    values = text_values(outcome, branches=branches)
    if len(baselines) != len(values) - 1:
        raise ValueError(
            f"`baselines` must have one tensor for each role but the last, {len(values) - 1}, got {len(baselines)}. "
            "Give None for a role whose credit nobody needs."
        )
    rewards = []
    for k, (v, b) in enumerate(zip(values[:-1], baselines, strict=True)):
        if b is None:
            rewards.append(v)
            continue
        check_floating(f"baselines[{k}]", b)
        if b.shape != v.shape:
            raise ValueError(
                f"`baselines[{k}]` must have the shape of its role's texts, {tuple(v.shape)}, got {tuple(b.shape)}."
            )
        rewards.append(_with_bonus(v, b, coef, bonus))
    return (*rewards, outcome)


def _check_options(coef: float, bonus: str) -> None:
    check_coefficient("coef", coef)
    if bonus not in ("event", "difference"):
        raise ValueError(f"`bonus` must be 'event' or 'difference', got {bonus!r}.")
