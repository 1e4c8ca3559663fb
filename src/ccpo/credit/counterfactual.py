"""CCPO: compare the outcome of the team with that of the team without one role."""

from collections.abc import Sequence

import torch

from .groups import as_outcomes, check_coefficient, check_floating, team_outcome
from .tree import text_values


def removal_baseline(without: torch.Tensor, size: int, baseline: str = "group") -> torch.Tensor:
    """
    The counterfactual baseline b of each text of a role: what the team achieves without the role.

        b_m = mean of the prompt's S passes                          `without` (P, S), `"group"`
        b_m = mean of the S passes from context m // (size / C)      `without` (P, C, S), `"group"`
        b_m = the outcome of the pass in the same place              `"paired"`

    A pass is one run of the team without the role. A context is what the roles before this one wrote. Text m continues
    context m // (size / C).

    Args:
        without (`torch.Tensor` of shape `(P, S)` or `(P, C, S)`):
            Outcomes of fresh passes without the role, NaN where unscorable: S for each prompt, or S from each of its C
            contexts.
        size (`int`):
            N, how many texts of the role belong to a prompt. A multiple of C.
        baseline (`str`, defaults to `"group"`):
            `"group"`: the mean. `"paired"`: the text's own pass. It needs S = N, or S = N / C.

    Returns:
        `torch.Tensor` of shape `(P, N)`. NaN where all passes that b rests on are unscorable.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: a wrong shape, a size that C does not divide, an
        unknown `baseline`, or `"paired"` with a wrong S.
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
    The counterfactual baseline b of each thought: [`removal_baseline`] for a Thinker.

    Args:
        solo (`torch.Tensor` of shape `(P, S)`):
            Outcomes of the answers that read the problem alone, NaN where unscorable.
        shape (`tuple[int, int]`):
            `(P, G)` of the thoughts.
        baseline (`str`):
            `"group"`: the mean of the prompt's `solo`. `"paired"`: the row's own solo answer, which needs S = G.

    Returns:
        `torch.Tensor` of shape `(P, G)`. NaN where all solo answers that b rests on are unscorable.

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
            Outcome of each answer that read the thought: +1 right, -1 wrong, NaN unscorable. With K > 1, the
            Thinker's R is the mean over the K answers to its thought.
        solo (`torch.Tensor` of shape `(P, S)`):
            Outcome of each answer that read the problem alone.
        coef (`float`, defaults to 0.2):
            λ. With 0 this is [`shared_credit`].
        bonus (`str`, defaults to `"event"`):
            `"event"` or `"difference"`.
        baseline (`str`, defaults to `"group"`):
            b is the mean over the prompt's solo answers, or with `"paired"` the outcome of the row's own one (S = G).

    Returns:
        `dict[str, torch.Tensor]`: `"thinker"` of shape `(P, G)`, `"solver"` of the shape of `joint`. NaN where R is
        unscorable. With `coef > 0`, the Thinker's is NaN also where the baseline is.

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
    CCPO credit for a chain of n roles. With two roles it is [`counterfactual_credit`] to the bit.

        r_k = v_k + coef * bonus(v_k, b_k)  for every role but the last,      r_n = R

    v_k is the mean outcome of the leaves below a text ([`~ccpo.credit.text_values`]). b_k is the outcome of the team
    without role k. The bonus is that of [`counterfactual_credit`].

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R, the outcome of each text of the last role: +1 right, -1 wrong, NaN unscorable.
        baselines (`Sequence[torch.Tensor | None]` of length n - 1):
            b_k of shape `(P, N_k)` for the roles 1 to n - 1, NaN where unscorable; see [`removal_baseline`]. `None`
            for a role whose credit nobody needs, such as one out of turn. That role gets its v.
        branches (`Sequence[int]` of length n): (1, b_2, …, b_n).
        coef (`float`, defaults to 0.2): λ. With 0 every role gets its v, shared credit.
        bonus (`str`, defaults to `"event"`): `"event"` or `"difference"`.

    Returns:
        `tuple[torch.Tensor, ...]`: the rewards of each role j, of shape `(P, N_j)`. NaN where v_j is unscorable, and
        with `coef > 0` also where b_j is.

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
