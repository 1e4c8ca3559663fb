"""Write the results of an evaluation as JSON, as Markdown tables, and as one parquet file of all samples."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .arms import JOINT, VOTES
from .results import ArmResult, BenchmarkResult
from .samples import Samples, write_whole

FILES = ("results.json", "results.md", "samples.parquet")
RATES = ("no_answer", "truncated", "leak", "unscorable")


def to_dict(results: Mapping[str, BenchmarkResult]) -> dict[str, Any]:
    """The results as plain values for JSON, without the single samples, which are in the parquet file."""

    def describe(arm: ArmResult) -> dict[str, Any]:
        return {
            "samples_per_problem": arm.right.shape[1],
            "avg_at_k": asdict(arm.avg),
            "pass_at": {str(n): asdict(estimate) for n, estimate in arm.passes.items()},
            "maj_at_k": arm.maj and asdict(arm.maj),
            "rates": arm.rates,
            "tokens_per_problem": arm.tokens,
        }

    return {
        name: {
            "k": result.k,
            "arms": {arm: describe(values) for arm, values in result.arms.items()},
            "joint_less": {
                arm: {
                    **asdict(result.differences[arm]),
                    "help": asdict(result.help[arm]),
                    "hurt": asdict(result.hurt[arm]),
                }
                for arm in result.differences
            },
            "left_out": result.left_out,
            "self_consistency_over_joint_tokens": result.token_ratio,
        }
        for name, result in results.items()
    }


def to_markdown(results: Mapping[str, BenchmarkResult]) -> str:
    """
    The results as Markdown: for each benchmark a table of the arms, and one of the differences to the joint team.

    Args:
        results (`Mapping[str, BenchmarkResult]`): Maps each benchmark to its result.

    Returns:
        `str`: The Markdown text.
    """
    lines = []
    for name, result in results.items():
        k = result.k
        lines += [f"## {name}", ""]
        lines += [f"{len(result.arms[JOINT].right)} problems, {k} samples each, 95 % intervals.", ""]
        lines += [f"| arm | avg@{k} | pass@{k} | maj@{k} | tokens | no answer | truncated | leak | unscorable |"]
        lines += ["|---" * 9 + "|"]
        for arm, found in result.arms.items():
            votes = arm == VOTES  # it has one answer for each problem, whatever k is
            cells = ["-" if votes else str(found.avg), "-" if votes else str(found.passes[k])]
            cells += ["-" if found.maj is None else str(found.maj), _number(found.tokens, ".1f")]
            cells += [_number(found.rates[rate]) for rate in RATES]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        if result.differences:
            lines += ["", "| joint minus | difference | p | significant | only joint right | only arm right |"]
            lines += ["|---" * 6 + "|"]
        for arm, found in result.differences.items():
            help_, hurt = result.help[arm].value, result.hurt[arm].value
            cells = [str(found), f"{found.p:.4f}", "yes" if found.stands else "no", _number(help_), _number(hurt)]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        lines += ["", *_remarks(result)]
    lines += ["*significant*: at 5 %, after Holm's correction over the differences of one table.", ""]
    return "\n".join(lines)


def _remarks(result: BenchmarkResult) -> list[str]:
    """Remarks that are needed to understand a table."""
    remarks = [f"*{arm}* was left out: {why}." for arm, why in result.left_out.items()]
    if VOTES in result.arms:
        ratio = result.token_ratio
        text = f"*{VOTES}*: a vote of several answers of the single policy, with {ratio:.3f} times the team's tokens"
        if not result.equal_cost:
            text += "; **not of equal cost**, which would be within 5 %"
        remarks.append(f"{text}. It is compared with the team's avg@{result.k}.")
    return [line for remark in remarks for line in (remark, "")]


def _number(value: float, form: str = ".3f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def write_results(
    results: Mapping[str, BenchmarkResult], samples: Samples, content: Mapping[str, Any], files: Sequence[Path]
) -> None:
    """
    Write `results.json`, `results.md` and `samples.parquet` into an evaluation's folder.

    Args:
        results (`Mapping[str, BenchmarkResult]`): Maps each benchmark to its result.
        samples ([`Samples`]): The folder.
        content (`Mapping`): What `results.json` holds besides the results, such as settings and versions.
        files (`list[Path]`): The files of the batches from which the results were computed.
    """
    found = json.dumps(_nulled({**content, "benchmarks": to_dict(results)}), indent=2, allow_nan=False) + "\n"
    json_file, markdown, parquet = (samples.folder / name for name in FILES)
    write_whole(json_file, found.encode())
    write_whole(markdown, to_markdown(results).encode())
    samples.gather(files, parquet)


def _nulled(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, Mapping):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
