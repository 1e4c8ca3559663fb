"""
What ARE's robust mean does to rewards with two values, computed exactly: its bias, and its effect on an update.

    python benchmarks/robust.py [--repeats 7]

In a group of G independent rewards with two values, of which a reward is right with probability p, the chance of k
right ones is C(G, k) p^k (1-p)^(G-k). The script runs all k from 0 to G through `robust_location` and
`estimate_advantages(..., "robust")`. The figures are therefore exact, and nothing is sampled. For each setting of (α,
c, blocks), each G and each pair of values, it computes:

- `location`: μ~, by the number of right rewards.
- `expected`: E[μ~], by p. Its distance from the expected reward is the *bias*, which is 0 for the mean (α = 2, one
  block).
- `update`: E[sum of A (x - p)], divided by the same with the mean in place of μ~ and the same σ. x is 1 if a reward
  is right and else 0. x - p is the score of a policy with one logit, so this is the length of its expected step.
  Below 1, the robust location slows down what the group teaches. Above 1, it speeds it up.
- `push`: E[mean of A], which is 0 with the mean. Above 0, the probability of every sampled text is raised, whatever
  it was.

`seconds_per_million` is the time of `"robust"` on 1,000,000 rewards in groups of eight, as the median over the
repeats. `seconds_per_million_of_group` is that of `"group"`.

Writes `outputs/bench/robust.json`.
"""

import argparse
import math
import statistics
import time

import torch

from ccpo.credit import robust_location
from ccpo.credit.advantages import EPS, estimate_advantages
from ccpo.report import write_json

MEAN, DEFAULT = {"alpha": 2.0, "c": 1.0, "blocks": 1}, {"alpha": -2.0, "c": 1.0, "blocks": 3}
SETTINGS = (
    MEAN,
    {"alpha": 2.0, "c": 1.0, "blocks": 3},
    {"alpha": -2.0, "c": 1.0, "blocks": 1},
    DEFAULT,
    {"alpha": -10.0, "c": 1.0, "blocks": 3},
    {"alpha": -2.0, "c": 4.0, "blocks": 3},
)
SIZES, VALUES = (8, 16), ((-1.0, 1.0), (0.0, 1.0))  # (wrong, right)
CHANCES = (0.1, 0.3, 0.5, 0.7, 0.9)


def build_groups(size: int, values: tuple[float, float]) -> torch.Tensor:
    """Row k has k right rewards, (G + 1, G)."""
    right = torch.arange(size) < torch.arange(size + 1).unsqueeze(-1)
    return torch.where(right, values[1], values[0]).double()


def weigh(size: int, chance: float) -> torch.Tensor:
    """The probability of 0 to G right rewards, (G + 1,)."""
    weights = [math.comb(size, k) * chance**k * (1 - chance) ** (size - k) for k in range(size + 1)]
    return torch.tensor(weights, dtype=torch.float64)


def measure(setting: dict[str, float], size: int, values: tuple[float, float]) -> dict:
    """The figures of one setting, exact."""
    groups = build_groups(size, values)
    location = robust_location(groups, **setting)  # (G + 1,)
    robust = estimate_advantages(groups, "robust", **setting)  # (G + 1, G)
    plain = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + EPS)
    right = (groups == values[1]).double()
    rows = []
    for chance in CHANCES:
        weights, score = weigh(size, chance), right - chance
        reward = values[0] + chance * (values[1] - values[0])
        expected = (weights @ location).item()
        rows.append(
            {
                "chance": chance,
                "reward": reward,
                "expected": expected,
                "bias": expected - reward,
                "update": ((weights @ (robust * score).sum(dim=1)) / (weights @ (plain * score).sum(dim=1))).item(),
                "push": (weights @ robust.mean(dim=1)).item(),
            }
        )
    return {**setting, "group": size, "values": values, "location": location.tolist(), "by_chance": rows}


def time_estimator(name: str, repeats: int) -> float:
    """Seconds for 1,000,000 rewards in groups of eight."""
    rng = torch.Generator().manual_seed(0)
    reward, seconds = torch.randint(0, 2, (125_000, 8), generator=rng).float() * 2 - 1, []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        estimate_advantages(reward, name)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", default="outputs/bench/robust.json")
    options = parser.parse_args()
    table = [measure(setting, size, values) for values in VALUES for size in SIZES for setting in SETTINGS]
    for values in VALUES:
        for size in SIZES:
            chosen = [row for row in table if row["values"] == values and row["group"] == size]
            print(
                f"\nrewards {values[0]:g} and {values[1]:g}, G = {size}: μ~ by the number of right ones, 0 to {size}"
            )
            for row in chosen:
                cells = " ".join(f"{x:6.3f}" for x in row["location"])
                print(f"alpha {row['alpha']:4g}, c {row['c']:g}, blocks {row['blocks']}  {cells}")
            for figure in ("expected", "bias", "update", "push"):
                print(f"{figure + ' by p':30}" + "".join(f"{chance:8g}" for chance in CHANCES))
                for row in chosen:
                    cells = "".join(f"{cell[figure]:8.3f}" for cell in row["by_chance"])
                    print(f"alpha {row['alpha']:4g}, c {row['c']:g}, blocks {row['blocks']}     {cells}")
    default = next(
        row for row in table if DEFAULT.items() <= row.items() and row["group"] == 8 and row["values"] == (-1.0, 1.0)
    )
    updates = [cell["update"] for cell in default["by_chance"]]
    result = {
        "bias_largest": max(abs(cell["bias"]) for cell in default["by_chance"]),
        "update_smallest": min(updates),
        "update_largest": max(updates),
        "push_largest": max(abs(cell["push"]) for cell in default["by_chance"]),
        "seconds_per_million": time_estimator("robust", options.repeats),
        "seconds_per_million_of_group": time_estimator("group", options.repeats),
        "table": table,
        "settings": vars(options),
    }
    print("\n" + ", ".join(f"{name} {value:.4g}" for name, value in result.items() if isinstance(value, float)))
    print(write_json(result, options.output))


if __name__ == "__main__":
    main()
