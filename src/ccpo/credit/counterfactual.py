"""CCPO: compare the team's outcome with the outcome of the team without one role."""

from collections.abc import Sequence

import torch

from .groups import as_outcomes, check_coefficient, check_floating, team_outcome
from .tree import text_values


def removal_baseline(without: torch.Tensor, size: int, baseline: str = "group") -> torch.Tensor:
    """
    The baseline b of each text of a role: the outcome of the team without the role.

        b_m = mean of the prompt's S passes                          `without` (P, S), `"group"`
        b_m = mean of the S passes from context m // (size / C)      `without` (P, C, S), `"group"`
        b_m = the pass of the same place                             `"paired"`

    A context is the texts of the roles before this one; text m of the role continues context m // (size / C). A pass
    is one run of the team without the role.

    Args:
        without (`torch.Tensor` of shape `(P, S)` or `(P, C, S)`):
            Outcomes of the passes without the role: S for each prompt, or S for each of its C contexts. NaN where they
            cannot be scored.
        size (`int`):
            N, how many texts of the role belong to a prompt; a multiple of C.
        baseline (`str`, defaults to `"group"`):
            `"group"`: the mean. `"paired"`: the text's own pass, which needs S = N, or S = N / C.

    Returns:
        `torch.Tensor` of shape `(P, N)`; NaN where none of the passes can be scored.

    Raises:
        `TypeError`: if `without` is not of floating point. `ValueError`: if it has another shape, if C does not divide
        `size`, if `baseline` is unknown, or if S does not fit `"paired"`.
    """
    check_floating("without", without)
    if without.ndim not in (2, 3) or 0 in without.shape[1:]:
        raise ValueError(f"`without` must have shape (P, S) or (P, C, S) with S >= 1, got {tuple(without.shape)}.")
    if baseline not in ("group", "paired"):
        raise ValueError(f"`baseline` must be 'group' or 'paired', got {baseline!r}.")
    contexts = without.shape[1] if without.ndim == 3 else 1
    if size < 1 or size % contexts:
        raise ValueError(
            "`size`, the number of a role's texts per prompt, must be at least 1 and a multiple of the "
            f"contexts of `without`, {contexts}, got {size}."
        )
    passes = without.reshape(len(without), contexts, without.shape[-1])  # (P, C, S)
    if baseline == "group":
        b = torch.nanmean(passes, dim=2, keepdim=True).expand(-1, -1, size // contexts)  # (P, C, N / C)
    elif passes.shape[2] != size // contexts:
        raise ValueError(
            f"`baseline='paired'` needs one pass without the role for each of its texts, {size // contexts} "
            f"per {('prompt' if without.ndim == 2 else 'context')}, got {passes.shape[2]}. Give as many, or "
            "use `baseline='group'`."
        )
    else:
        b = passes
    return b.reshape(len(without), size)


def solo_baseline(solo: torch.Tensor, shape: tuple[int, int], baseline: str = "group") -> torch.Tensor:
    """
    The baseline b of each thought: the outcome of the Solver alone, without the Thinker's text.

    This is [`removal_baseline`] for a team of Thinker and Solver.

    Args:
        solo (`torch.Tensor` of shape `(P, S)`):
            Outcomes of the solo answers, which are written without a thought. NaN where they cannot be scored.
        shape (`tuple[int, int]`):
            `(P, G)` of the thoughts.
        baseline (`str`):
            `"group"`: the mean of the prompt's `solo`. `"paired"`: the row's own solo, which needs S = G.

    Returns:
        `torch.Tensor` of shape `(P, G)`; NaN where none of the solo answers can be scored.

    Raises:
        `TypeError`: if `solo` is not of floating point. `ValueError`: if it has a wrong shape, if `baseline` is
        unknown, or if S is not G with `"paired"`.
    """
    check_floating("solo", solo)
    if solo.ndim != 2 or solo.shape[0] != shape[0] or solo.shape[1] == 0:
        raise ValueError(f"`solo` must have shape (P, S) with P = {shape[0]} and S >= 1, got {tuple(solo.shape)}.")
    if baseline == "paired" and solo.shape[1] != shape[1]:
        raise ValueError(
            f"`baseline='paired'` needs as many solo answers as thoughts (S = G), got S = {solo.shape[1]} and "
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
    CCPO credit: the Thinker gets a bonus where the team does better with its thought than the Solver does alone.

        event       bonus = 1[R > 0 and b < 0] - 1[R < 0 and b > 0]      (b = 0: no bonus)
        difference  bonus = (R - b) / 2
        r_thinker = R + coef * bonus          r_solver = R

    R is the team's outcome and b the outcome of the Solver alone. The paper is
    [arXiv 2603.21563](https://huggingface.co/papers/2603.21563).

    Args:
        joint (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`):
            Outcome of each answer of the team, written with a thought: +1 right, -1 wrong, NaN where it cannot be
            scored. If each thought has K > 1 answers, the Thinker's R is their mean.
        solo (`torch.Tensor` of shape `(P, S)`):
            Outcome of each of the S solo answers, which are written without a thought.
        coef (`float`, defaults to 0.2):
            λ, the weight of the bonus. With 0 this is [`shared_credit`].
        bonus (`str`, defaults to `"event"`):
            `"event"`: ±1 where the thought turns a wrong answer into a right one, or a right one into a wrong one.
            `"difference"`: half the difference of the outcomes.
        baseline (`str`, defaults to `"group"`):
            `"group"`: b is the mean of the prompt's solo answers. `"paired"`: each thought has one solo answer (S =
            G).

    Returns:
        `dict[str, torch.Tensor]`: the rewards. `"thinker"` has the shape `(P, G)`, `"solver"` the shape of `joint`.
        NaN where R cannot be scored, or b, if `coef > 0`.

    Raises:
        `TypeError`: if a tensor is not of floating point. `ValueError`: if a shape, option or coefficient is wrong.
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
    CCPO credit for a chain of n roles. With two roles it is exactly [`counterfactual_credit`].

        r_k = v_k + coef * bonus(v_k, b_k)  for every role but the last,      r_n = R

    v_k is the mean outcome of the leaves below a text ([`~ccpo.credit.text_values`]), b_k the outcome of the team
    without role k, and the bonus that of [`counterfactual_credit`].

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R, the outcome of each text of the last role: +1 right, -1 wrong, NaN where it cannot be scored.
        baselines (`Sequence[torch.Tensor | None]` of length n - 1):
            For each of the roles 1 to n - 1, b_k of shape `(P, N_k)`, from [`removal_baseline`]. `None` for a role
            that needs no bonus, e.g. because it is not trained now: it gets v_k.
        branches (`Sequence[int]` of length n):
            (1, b_2, …, b_n): how many texts of each role continue one text of the role before it.
        coef (`float`, defaults to 0.2): λ, the weight of the bonus. With 0 every role gets v, shared credit.
        bonus (`str`, defaults to `"event"`): `"event"` or `"difference"`, as in [`counterfactual_credit`].

    Returns:
        `tuple[torch.Tensor, ...]`: for each role j its rewards, shape `(P, N_j)`. NaN where v_j cannot be scored, or
        b_j, if `coef > 0`.

    Raises:
        `TypeError`: if a tensor is not of floating point. `ValueError`: if a shape, option or coefficient is wrong.
    """
    _check_options(coef, bonus)
    values = text_values(outcome, branches=branches)
    if len(baselines) != len(values) - 1:
        raise ValueError(
            f"`baselines` must have one tensor for each role but the last, {len(values) - 1}, got "
            f"{len(baselines)}. Give None for a role that needs no credit."
        )
    rewards = []
    for k, (v, b) in enumerate(zip(values[:-1], baselines, strict=True)):
        if b is None:
            rewards.append(v)
            continue
        check_floating(f"baselines[{k}]", b)
        if b.shape != v.shape:
            raise ValueError(
                f"`baselines[{k}]` must have the shape of the texts of its role, {tuple(v.shape)}, got "
                f"{tuple(b.shape)}."
            )
        rewards.append(_with_bonus(v, b, coef, bonus))
    return (*rewards, outcome)


def _check_options(coef: float, bonus: str) -> None:
    check_coefficient("coef", coef)
    if bonus not in ("event", "difference"):
        raise ValueError(f"`bonus` must be 'event' or 'difference', got {bonus!r}.")
