r"""
Pairs per second of [`MathVerifier`] beside TRL's `accuracy_reward`, on the same pairs.

    python benchmarks/verifier.py [--pairs 2000] [--repeats 5] [--num_workers N]

Every repeat draws fresh pairs (no cache of an earlier one helps) and runs both on them, in alternating order. Half of
the pairs are right. Problems and gold answers are those of the MATH and GSM8K training sets in `../shared/data`, half
each; where that folder is absent, generated arithmetic. Writes `outputs/bench/verifier.json`: `throughput_ratio`, the
median over the repeats of ours divided by TRL's, and `agreement`, the share of pairs with the same verdict.
"""

import argparse
import json
import logging
import math
import random
import re
import statistics
import time
from pathlib import Path

from trl.rewards import accuracy_reward

from ccpo.verifier import MathVerifier

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def load_problems(rng, n):
    """`n` distinct `(text, gold answer)`, and where they are from."""
    if not (DATA / "math_train.jsonl").exists():
        numbers = [(rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)) for _ in range(n)]
        return [(f"What is ({a} + {b}) / {c}?", rf"\frac{{{a + b}}}{{{c}}}") for a, b, c in numbers], "arithmetic"
    math_rows = [json.loads(line) for line in (DATA / "math_train.jsonl").open()]
    gsm8k_rows = [json.loads(line) for line in (DATA / "gsm8k_train.jsonl").open()]
    problems = [(row["problem"], row["answer"].strip()) for row in rng.sample(math_rows, n - n // 2)]
    for row in rng.sample(gsm8k_rows, n // 2):
        reasoning, _, answer = row["answer"].rpartition("####")
        problems.append((re.sub(r"<<.*?>>", "", reasoning), answer.strip()))
    rng.shuffle(problems)
    return problems, "MATH and GSM8K training sets"


def other_form(rng, answer):
    """The same answer, written in another way where there is an obvious one."""
    if re.fullmatch(r"-?\d+", answer):
        return rng.choice([answer, answer, answer + ".0", answer + r" \text{ units}"])
    return rng.choice([answer, answer.replace(r"\frac", r"\dfrac"), answer.replace(" ", "")])


def perturbed(rng, answer, other):
    """A wrong answer: one digit changed, or another problem's answer where there is no digit."""
    places = [match.start() for match in re.finditer(r"\d", answer)]
    if not places or rng.random() < 0.2:
        return other if other != answer else other + "1"
    place = rng.choice(places)
    return answer[:place] + rng.choice([d for d in "123456789" if d != answer[place]]) + answer[place + 1 :]


def build_pairs(rng, n):
    """`(gold, completion)` of `n` problems, every other completion meant to be wrong."""
    problems, source = load_problems(rng, n)
    pairs = []
    for index, (text, gold) in enumerate(problems):
        answer = perturbed(rng, gold, problems[index - 1][1]) if index % 2 else other_form(rng, gold)
        pairs.append((gold, f"Let us go step by step.\n\n{text}\n\nTherefore the answer is $\\boxed{{{answer}}}$."))
    return pairs, source


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description="Throughput of MathVerifier beside TRL's accuracy_reward.")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--num_workers", type=int, default=None, help="worker processes; by default MathVerifier's choice"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="outputs/bench")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    verifier = MathVerifier(num_workers=args.num_workers)

    def ours(pairs):
        return verifier.score(gold=[gold for gold, _ in pairs], prediction=[text for _, text in pairs])

    def trl(pairs):  # it finds no LaTeX without delimiters, so the gold answers get them
        rewards = accuracy_reward([[{"content": text}] for _, text in pairs], [f"${gold}$" for gold, _ in pairs])
        return [math.nan if reward is None else 2 * reward - 1 for reward in rewards]

    warm_up, source = build_pairs(rng, 16)
    ours(warm_up), trl(warm_up)
    rates, n_agree, differences = {"ours": [], "trl": []}, 0, []
    for repeat in range(args.repeats):
        pairs, _ = build_pairs(rng, args.pairs)
        verdicts = {}
        for name, function in [("ours", ours), ("trl", trl)][:: 1 if repeat % 2 == 0 else -1]:
            verdicts[name], seconds = timed(function, pairs)
            rates[name].append(len(pairs) / seconds)
        for (gold, text), a, b in zip(pairs, verdicts["ours"], verdicts["trl"], strict=True):
            same = a == b or (math.isnan(a) and math.isnan(b))
            n_agree += same
            if not same:
                differences.append({"gold": gold, "prediction": text[-80:], "ours": str(a), "trl": str(b)})

    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["trl"], strict=True))
    result = {
        "throughput_ratio": ratio,
        "agreement": n_agree / (args.pairs * args.repeats),
        "pairs_per_second": rates,
        "pairs": args.pairs,
        "repeats": args.repeats,
        "num_workers": args.num_workers,
        "source": source,
        "differences": differences[:100],
    }
    path = Path(args.output_dir) / "verifier.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))

    print(f"{args.pairs} pairs, {args.repeats} repeats, median (min to max); {source}")
    for name, label in (("ours", "MathVerifier"), ("trl", "TRL accuracy_reward")):
        r = rates[name]
        print(f"{label:<20} {statistics.median(r):8.0f} pairs/s   ({min(r):.0f} to {max(r):.0f})")
    print(f"{'ratio':<20} {ratio:8.2f}")
    print(f"{'agreement':<20} {result['agreement']:8.2%}")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
