"""
What an evaluation costs besides its answers: `evaluate` against calling `Team` yourself, on the same problems.

    python benchmarks/evaluation.py [--turns 5] [--problems 128] [--k 4]

The team is Think-Solve with two random policies of 0.9 million parameters that write 48 tokens each. An answer takes
5 to 10 ms. With a larger model, the share of the overhead is smaller.

On one side, the script calls `Team` itself: the team, and the team without its first role, answer the problems of the
arithmetic task k times, in the same batches. On the other side, `evaluate` does the same, and also judges, saves and
counts the answers: a parquet file for each batch, avg@k, pass@k, maj@k, and differences with their intervals. The
judge only compares strings, because the verifier has a benchmark of its own.

Both sides run in turn, and each of them goes first every other time. `overhead_ratio` is the seconds of `evaluate`
divided by those of the other side, as the median over the turns.

Writes `outputs/bench/evaluation.json`.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from ccpo import TransformersGenerator
from ccpo.evaluation import Team, evaluate
from ccpo.report import write_json
from ccpo.tasks import arithmetic
from ccpo.tasks.arithmetic.policies import build_policy

BATCH = 64


def judge(prompts: list, completions: list[str], solution: list[str], **kwargs) -> list[float]:
    """Whether an answer is its gold answer, to the letter."""
    return [1.0 if text.strip() == gold else -1.0 for text, gold in zip(completions, solution, strict=True)]


judge.extract = lambda text: text.strip() or None
judge.equal = lambda first, second: first == second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--k", type=int, default=4)
    default = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "evaluation.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()

    topology, tokenizer = arithmetic.topology("think_solve"), arithmetic.build_tokenizer()
    generators = {
        role: TransformersGenerator(build_policy(tokenizer, seed), tokenizer, max_new_tokens=48, seed=seed)
        for seed, role in enumerate(topology.role_names)
    }
    team = Team(topology, generators, judge)
    first = topology.role_names[0]
    rest = Team(topology.reduced(first), generators, team.outcome)
    problems = arithmetic.build_dataset("test").select(range(options.problems))

    def by_hand() -> None:
        for own in (team, rest):
            for start in range(0, options.problems, BATCH):
                batch = problems[start : start + BATCH]["prompt"]
                own.answer([prompt for prompt in batch for _ in range(options.k)])

    def evaluated() -> None:
        with tempfile.TemporaryDirectory() as folder:
            given = {"output_dir": folder, "k": options.k, "arms": [f"without_{first}"], "batch_size": BATCH}
            evaluate(team, {"arithmetic": problems}, **given)

    ways, seconds = {"by_hand": by_hand, "evaluate": evaluated}, {"by_hand": [], "evaluate": []}
    for turn in range(options.turns + 1):
        for name in sorted(ways, reverse=turn % 2 == 1):
            start = time.perf_counter()
            ways[name]()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    ratios = [e / h for e, h in zip(seconds["evaluate"], seconds["by_hand"], strict=True)]
    figures = {
        "overhead_ratio": statistics.median(ratios),
        "overhead_ratios": ratios,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "samples": 2 * options.problems * options.k,
    }
    write_json(figures, options.output)
    print(figures)


if __name__ == "__main__":
    main()
