"""
Arrange a generation batch so that TRL can shuffle and split it.

It has a row for each episode, however many texts a role has in it.
"""

import torch


def by_episode(value: torch.Tensor, rows: int) -> torch.Tensor:
    """`(n·M, …)` -> `(n, M, …)`, so that TRL's shuffling and splitting keep an episode together."""
    return value if value.ndim == 0 else value.view(rows, -1, *value.shape[1:])


def by_role(inputs: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """`{"role/name": (n, M, …)}` -> `{"role": {"name": (n·M, …)}}`."""
    batches: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in inputs.items():
        role, name = key.split("/", 1)
        batches.setdefault(role, {})[name] = value if value.ndim == 0 else value.flatten(0, 1)
    return batches
