r"""
How many answers per second `MathVerifier` judges, against TRL's `accuracy_reward` on the same answers.

    python benchmarks/verifier.py [--pairs 2000] [--repeats 5] [--num_workers N] [--data FOLDER] [--pairs FILE]

A *pair* is a gold answer and a predicted answer. Every repeat draws new pairs, so that no cache of an earlier repeat
helps, and runs both graders on them, in alternating order. Half of the pairs are right. Problems and gold answers are
those of the MATH and GSM8K training sets in `../shared/data`, half each. If that folder is absent, generated
arithmetic takes their place.

Then the pairs are judged once more with 1 % of pairs among them that make the parser hang (towers of powers, deep
parentheses). All of these are different, and the verifier has a time limit of `--hanging_timeout`. A worker that
hangs ends at the limit, or is killed `GRACE_SECONDS` later, and another one starts in its place:

    bound = seconds without the hanging pairs + ceil(hanging pairs / workers) * (limit + GRACE_SECONDS)

The first term is measured in the same repeat. Writes `outputs/bench/verifier.json`:

- `throughput_ratio`: our pairs per second divided by TRL's, as the median over the repeats.
- `agreement`: the share of pairs with the same verdict.
- `hanging_batch_seconds` and `hanging_bound_seconds`: medians.
- `hanging_within_bound`: whether every batch ended within its own bound, with every other pair judged as it was
  without the hanging ones.

`--pairs FILE` instead of a number judges the pairs of a file, which has a JSON object
`{"gold", "prediction", "expected"}` on each line. `../shared/cases/math_pairs.jsonl` is used without the option, if
it is there. Wrong verdicts are listed and counted: `pairs_wrong`, `pairs_false_positive` (wrong answers that are
rewarded) and `pairs_total`.

`spellings_*` and `near_misses_*` come from a generator. It writes every gold answer of MATH500, and 500 each of MATH
and GSM8K, in up to ten other correct spellings. `spellings_refused` of them are not +1. It also makes up to ten near
misses of each, of which `near_misses_accepted` are +1.
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

from ccpo.report import write_json
from ccpo.verifier.math_verifier import MathVerifier
from ccpo.verifier.pool import GRACE_SECONDS

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CASES = DATA.parent / "cases" / "math_pairs.jsonl"


def load_problems(rng, n, data=DATA):
    """`n` distinct `(text, gold answer)`, and where they are from."""
    if not (data / "math_train.jsonl").exists():
        numbers = [(rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)) for _ in range(n)]
        return [(f"What is ({a} + {b}) / {c}?", rf"\frac{{{a + b}}}{{{c}}}") for a, b, c in numbers], "arithmetic"
    math_rows = [json.loads(line) for line in (data / "math_train.jsonl").open()]
    gsm8k_rows = [json.loads(line) for line in (data / "gsm8k_train.jsonl").open()]
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


def build_pairs(rng, n, data=DATA):
    """`(gold, completion)` of `n` problems, every other completion meant to be wrong."""
    problems, source = load_problems(rng, n, data)
    pairs = []
    for index, (text, gold) in enumerate(problems):
        answer = perturbed(rng, gold, problems[index - 1][1]) if index % 2 else other_form(rng, gold)
        pairs.append((gold, f"Let us go step by step.\n\n{text}\n\nTherefore the answer is $\\boxed{{{answer}}}$."))
    return pairs, source


def spellings(gold):
    """Up to ten completions that state the gold answer in another correct way."""
    number, words = re.fullmatch(r"-?\d+(\.\d+)?", gold), re.fullmatch(r"\\text\{([A-Za-z ]+)\}", gold)
    whole = number and "." not in gold
    is_short = re.fullmatch(r"[-\d.]+|-?\\frac\{\d+\}\{\d+\}", gold)
    fraction = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", gold)
    plain_brackets = "\\left" not in gold and "(" in gold and gold.count("(") == gold.count(")")
    forms = [
        f"{int(gold):,}" if whole and abs(int(gold)) > 999 else None,
        f"{int(gold):,}".replace(",", "{,}") if whole and abs(int(gold)) > 999 else None,
        f"{gold}.0" if whole else None,
        f"{fraction[1]}{fraction[2]}/{fraction[3]}" if fraction else None,
        f"{fraction[1]}{{{fraction[2]} \\over {fraction[3]}}}" if fraction else None,
        words[1] if words else None,
        words[1].upper() if words and len(words[1]) > 1 else None,
        f"x = {gold}" if is_short else None,
        f"{gold} = x" if is_short else None,
        rf"{gold} \text{{ units}}" if number else None,
        gold.replace(r"\frac", r"\dfrac") if r"\frac" in gold else None,
        gold.replace(r"\frac", r"\tfrac") if r"\frac" in gold else None,
        gold.replace("(", r"\left(").replace(")", r"\right)") if plain_brackets else None,
        gold.replace(r"\left", "").replace(r"\right", "") if r"\left" in gold else None,
        gold.replace("-", "−").replace(r"\pi", "π") if "-" in gold or r"\pi" in gold else None,
        gold.replace(r"\infty", "∞").replace(r"\cup", "∪") if r"\infty" in gold else None,
        gold.replace(r"\sqrt{", r"\sqrt {") if r"\sqrt{" in gold else None,
        gold.replace(r"^\circ", "°") if r"^\circ" in gold else None,
        gold.replace(",", " , ") if re.search(r", ", gold) else None,
        rf"\mathbf{{{gold}}}" if number else None,
        f"{gold}.",
        rf"\displaystyle {gold}",
        f"{{{gold}}}",
        rf"\;{gold}\;",
        rf"\boxed{{{gold}}}",
        rf"\color{{red}}{{{gold}}}",
        f" {gold} ",
    ]
    forms = [form for form in dict.fromkeys(forms) if form is not None and form != gold]
    texts = [rf"Adding up, we get \boxed{{{form}}}." for form in forms[:7]]
    anchored = f"Adding up.\n\nThe final answer is ${gold}$. I hope it is correct."
    return [*texts, anchored, f"Adding up.\n\n**Final Answer:** ${gold}$", f"Adding up.\n#### {gold}"]


def near_misses(gold, other):
    """Up to ten completions that state a wrong answer close to the gold answer; `other` is another gold answer."""
    number, words = re.fullmatch(r"-?\d+(\.\d+)?", gold), re.fullmatch(r"\\text\{([A-Za-z]{3,})\}", gold)
    places = [match.start() for match in re.finditer(r"[1-9]", gold)]
    digits = [f"{gold[:i]}{int(gold[i]) % 9 + 1}{gold[i + 1 :]}" for i in places[:3] + places[-1:]]
    different = other if other.strip("-") != gold.strip("-") else f"{other}1"
    swaps = [
        gold.replace("[", "(", 1) if "[" in gold else None,
        gold.replace("(", "[", 1) if r"\infty" in gold else None,
    ]
    forms = [
        *digits,
        *swaps,
        words[1][::-1].lower() if words and words[1].lower() != words[1][::-1].lower() else None,
        rf"{gold} \text{{ million}}" if number and float(gold) else None,
        rf"-{gold}" if number and not gold.startswith("-") and float(gold) else None,
        f"{gold}1" if number and "." not in gold else None,
        f"{gold} 7" if number else None,
        rf"{gold} \text{{ or }} {different}",
        f"{gold}, {different}",
        rf"{gold} \text{{, or maybe not}}",
        rf"\text{{not }} {gold}",
        different if not number or not re.fullmatch(r"[\d.]+", different) else None,
        "",
        rf"{gold} \text{{ and }} {different} \text{{ perhaps}}",
    ]
    forms = [form for form in dict.fromkeys(forms) if form is not None and form != gold]
    return [rf"Adding up, we get \boxed{{{form}}}." for form in forms[:9]] + [rf"Adding up, we get \boxed{{{gold}"]


def judge_spellings(verifier, data, seed):
    """How many of the generator's spellings are refused and how many of its near misses accepted, with examples."""
    if not (data / "math500.jsonl").exists():
        return {}
    rng, golds = random.Random(seed), []
    for name, count in (("math500", 500), ("math_train", 500), ("gsm8k_train", 500)):
        answers = [
            json.loads(line)["answer"].rpartition("####")[2].strip() for line in (data / f"{name}.jsonl").open()
        ]
        golds += rng.sample(answers, count)
    result = {}
    for key, expected, build in (
        ("spellings", 1.0, lambda index: spellings(golds[index])),
        ("near_misses", -1.0, lambda index: near_misses(golds[index], golds[index - 1])),
    ):
        pairs = [(golds[index], text) for index in range(len(golds)) for text in build(index)]
        scores = verifier.score(gold=[gold for gold, _ in pairs], prediction=[text for _, text in pairs])
        wrong = [
            {"gold": gold, "prediction": text, "score": str(score)}
            for (gold, text), score in zip(pairs, scores, strict=True)
            if score != expected
        ]
        result |= {f"{key}_total": len(pairs), f"{key}_list": wrong[:100]}
        result["spellings_refused" if expected > 0 else "near_misses_accepted"] = len(wrong)
    return result


def judge_file(verifier, path):
    """The verdicts on a file of pairs whose right verdicts are known."""
    rows = [json.loads(line) for line in Path(path).open(encoding="utf-8")]
    scores = verifier.score(gold=[row["gold"] for row in rows], prediction=[row["prediction"] for row in rows])
    wrong = [{**row, "score": str(score)} for row, score in zip(rows, scores, strict=True) if score != row["expected"]]
    for row in sorted(wrong, key=lambda row: row["score"] != "1.0"):
        print(
            f"{'FALSE POSITIVE' if row['score'] == '1.0' else 'wrong':<15} "
            f"{row['gold']!r} <- {row['prediction']!r}: {row['score']}"
        )
    return {
        "pairs_total": len(rows),
        "pairs_wrong": len(wrong),
        "pairs_false_positive": sum(row["score"] == "1.0" for row in wrong),
        "pairs_list": wrong,
    }


def hanging_pair(index):
    """A gold answer and a completion for which math-verify would run for minutes; no two alike."""
    gold = rf"\frac{{{index + 1}}}{{{index + 8}}}"
    if index % 2:
        depth = 150 + index
        return gold, rf"\boxed{{{'(' * depth}1{')' * depth}}}"
    return gold, rf"\boxed{{9^{{9^{{9^{{{index + 9}}}}}}}}}"


def judge_hanging(pairs, args):
    """The pairs, 1 % of hanging ones spread among them: seconds, their bound, and whether all verdicts are right."""

    def judge(verifier, chosen):
        return verifier.score(gold=[gold for gold, _ in chosen], prediction=[text for _, text in chosen])

    verifier = MathVerifier(timeout=args.hanging_timeout, num_workers=args.num_workers)
    _, start = timed(judge, verifier, [(rf"\frac{{{index}}}{{7}}", "0.5") for index in range(1, 7)])
    expected, ordinary = timed(judge, verifier, pairs)
    count = max(1, round(len(pairs) / 99))
    mixed, every = [], -(-len(pairs) // count)
    for index in range(count):
        mixed += [*pairs[index * every : (index + 1) * every], hanging_pair(index)]
    warnings = []
    log = logging.getLogger("ccpo.verifier.pool")
    log.propagate, handler = False, logging.Handler()
    handler.emit = warnings.append
    log.addHandler(handler)
    scores, seconds = timed(judge, verifier, mixed)
    log.removeHandler(handler)
    hangs = {hanging_pair(index) for index in range(count)}
    hung = [score for pair, score in zip(mixed, scores, strict=True) if pair in hangs]
    others = [score for pair, score in zip(mixed, scores, strict=True) if pair not in hangs]
    same = all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(others, expected, strict=True))
    rounds = -(-count // verifier._pool.num_workers)
    return {
        "seconds": seconds,
        "bound": ordinary + rounds * (args.hanging_timeout + GRACE_SECONDS),
        "ordinary": ordinary,
        "worker_start": start,
        "hanging_pairs": count,
        "timed_out": sum(record.args[0] for record in warnings),
        "right": same and all(score != 1.0 for score in hung),
    }


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", default="2000", help="pairs per repeat; or a file of pairs with their right verdicts"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--num_workers", type=int, default=None, help="worker processes; by default MathVerifier's choice"
    )
    parser.add_argument("--hanging_timeout", type=float, default=1.0, help="seconds per pair of the hanging batch")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs/bench/verifier.json")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    verifier = MathVerifier(num_workers=args.num_workers)
    if not args.pairs.isdecimal():
        judged = judge_file(verifier, args.pairs)
        print(", ".join(f"{name} {judged[name]}" for name in ("pairs_wrong", "pairs_false_positive", "pairs_total")))
        path = Path(args.output)
        earlier = json.loads(path.read_text()) if path.exists() else {}
        print(write_json({**earlier, **judged}, args.output))
        return
    args.pairs = int(args.pairs)

    def ours(pairs):
        return verifier.score(gold=[gold for gold, _ in pairs], prediction=[text for _, text in pairs])

    def trl(pairs):  # it finds no LaTeX without delimiters, so the gold answers get them
        rewards = accuracy_reward([[{"content": text}] for _, text in pairs], [f"${gold}$" for gold, _ in pairs])
        return [math.nan if reward is None else 2 * reward - 1 for reward in rewards]

    warm_up, source = build_pairs(rng, 16, args.data)
    ours(warm_up), trl(warm_up)
    rates, n_agree, differences, hanging = {"ours": [], "trl": []}, 0, [], []
    for repeat in range(args.repeats):
        pairs, _ = build_pairs(rng, args.pairs, args.data)
        verdicts = {}
        for name, function in [("ours", ours), ("trl", trl)][:: 1 if repeat % 2 == 0 else -1]:
            verdicts[name], seconds = timed(function, pairs)
            rates[name].append(len(pairs) / seconds)
        for (gold, text), a, b in zip(pairs, verdicts["ours"], verdicts["trl"], strict=True):
            same = a == b or (math.isnan(a) and math.isnan(b))
            n_agree += same
            if not same:
                differences.append({"gold": gold, "prediction": text[-80:], "ours": str(a), "trl": str(b)})

        hanging.append(judge_hanging(pairs, args))

    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["trl"], strict=True))
    result = {
        "throughput_ratio": ratio,
        "agreement": n_agree / (args.pairs * args.repeats),
        "hanging_batch_seconds": statistics.median(batch["seconds"] for batch in hanging),
        "hanging_bound_seconds": statistics.median(batch["bound"] for batch in hanging),
        "hanging_within_bound": all(batch["seconds"] <= batch["bound"] and batch["right"] for batch in hanging),
        "hanging_batches": hanging,
        "hanging_timeout": args.hanging_timeout,
        "pairs_per_second": rates,
        "pairs": args.pairs,
        "repeats": args.repeats,
        "num_workers": args.num_workers,
        "source": source,
        "differences": differences[:100],
        **judge_spellings(verifier, args.data, args.seed),
        **(judge_file(verifier, CASES) if CASES.exists() else {}),
    }
    print(f"{args.pairs} pairs, {args.repeats} repeats, median (min to max); {source}")
    for name, label in (("ours", "MathVerifier"), ("trl", "TRL accuracy_reward")):
        r = rates[name]
        print(f"{label:<20} {statistics.median(r):8.0f} pairs/s   ({min(r):.0f} to {max(r):.0f})")
    print(f"{'ratio':<20} {ratio:8.2f}")
    print(f"{'agreement':<20} {result['agreement']:8.2%}")
    times = "ordinary", "seconds", "bound"
    print(f"\n{hanging[0]['hanging_pairs']} pairs more that hang, {args.hanging_timeout:g} s each at most; seconds")
    print(f"{'repeat':<12}{'without them':>14}{'with them':>14}{'bound':>14}{'verdicts':>12}")
    for repeat, batch in enumerate(hanging, start=1):
        cells = "".join(f"{batch[name]:14.2f}" for name in times)
        print(f"{repeat:<12}{cells}{'right' if batch['right'] else 'WRONG':>12}")
    print(write_json(result, args.output))


if __name__ == "__main__":
    main()
