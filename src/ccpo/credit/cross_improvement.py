"""DACR: reward an agent for how much its critique improves its partner's answer."""

import torch

from .groups import check_coefficient, check_floating


def cross_improvement_credit(
    answers: torch.Tensor, rewrites: torch.Tensor, *, gamma: float = 0.5, mode: str = "total"
) -> dict[str, torch.Tensor]:
    """
    DACR credit for two agents that answer, criticise each other's answer, and rewrite their own.

    The paper is [arXiv 2603.21574](https://huggingface.co/papers/2603.21574). It does not give the exact formula of
    the marginal; this is how we read it. Delta is what an agent's critique did for its partner's answer.

        Delta_a = own(rewrite_b) - own(answer_b)          Delta_b = own(rewrite_a) - own(answer_a)
        total    every text of a gets own(rewrite_a) + gamma * Delta_a, and so for b
        segment  answer <- own(answer),   critique <- Delta,   rewrite <- own(rewrite)      (ours)

    Args:
        answers, rewrites (`torch.Tensor` of shape `(P, G, 2)`):
            Outcomes of the answers and of the rewrites of the agents a (index 0) and b (index 1): +1 right, -1 wrong,
            NaN where it cannot be scored.
        gamma (`float`, defaults to 0.5): γ, the weight of Delta in `"total"`. With 0 only the rewrite counts.
        mode (`str`, defaults to `"total"`): `"total"` or `"segment"`, as above.

    Returns:
        `dict[str, torch.Tensor]`: for each of `"answer_a"`, `"critique_a"`, `"rewrite_a"`, `"answer_b"`,
        `"critique_b"` and `"rewrite_b"` its rewards, shape `(P, G)`. NaN where an outcome that they need is NaN.

    Raises:
        `TypeError`: if a tensor is not of floating point. `ValueError`: if a shape is wrong, `mode` is unknown, or
        `gamma` is negative.
    """
    check_coefficient("gamma", gamma)
    if mode not in ("total", "segment"):
        raise ValueError(f"`mode` must be 'total' or 'segment', got {mode!r}.")
    for name, outcome in (("answers", answers), ("rewrites", rewrites)):
        check_floating(name, outcome)
        if outcome.ndim != 3 or outcome.shape[2] != 2:
            raise ValueError(f"`{name}` must have shape (P, G, 2), agents a and b last, got {tuple(outcome.shape)}.")
    if answers.shape != rewrites.shape:
        raise ValueError(
            f"`rewrites` must have the shape of `answers`, {tuple(answers.shape)}, got {tuple(rewrites.shape)}."
        )
    delta = (rewrites - answers).flip(-1)  # (P, G, 2): a's critique is read by b
    if mode == "segment":
        texts = {"answer": answers, "critique": delta, "rewrite": rewrites}
    else:
        total = rewrites if gamma == 0 else rewrites + gamma * delta
        texts = dict.fromkeys(("answer", "critique", "rewrite"), total)
    return {f"{text}_{agent}": credit[..., i] for i, agent in enumerate("ab") for text, credit in texts.items()}
