"""What an evaluation found: as JSON, as a Markdown table, and as one parquet file of all samples."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .arms import JOINT
from .suite import ArmResult, BenchmarkResult


def to_dict(results: Mapping[str, BenchmarkResult]) -> dict[str, Any]:
    """Plain values, ready for JSON: each problem's samples are left out, which the parquet file has."""

    def plain(arm: ArmResult) -> dict[str, Any]:
        parts = {"avg_at_k": arm.avg, "pass_at_k": arm.pass_k, "maj_at_k": arm.maj}
        estimates = {name: part and asdict(part) for name, part in parts.items()}
        return {**estimates, "k": arm.right.shape[1], "rates": arm.rates, "tokens_per_problem": arm.tokens}

    return {
        name: {
            "arms": {arm: plain(values) for arm, values in result.arms.items()},
            "joint_less": {
                arm: {
                    **asdict(result.differences[arm]),
                    "help": asdict(result.help[arm]),
                    "hurt": asdict(result.hurt[arm]),
                }
                for arm in result.differences
            },
        }
        for name, result in results.items()
    }


def to_markdown(results: Mapping[str, BenchmarkResult]) -> str:
    """A table of the arms for each benchmark, and of how much better the joint team is than each."""
    lines = []
    for name, result in results.items():
        k = result.arms[JOINT].right.shape[1]
        lines += [
            f"## {name}",
            "",
            f"{result.arms[JOINT].avg.problems} problems, {k} samples each, 95 % intervals.",
            "",
        ]
        lines += [f"| arm | avg@{k} | pass@{k} | maj@{k} | tokens | no answer | truncated | leak | unscorable |"]
        lines += ["|---" * 9 + "|"]
        for arm, found in result.arms.items():
            cells = [str(found.avg), _number(found.pass_k.value), _number(found.maj and found.maj.value)]
            cells += ["?" if math.isnan(found.tokens) else f"{found.tokens:.0f}"]
            cells += [_number(found.rates[rate]) for rate in ("no_answer", "truncated", "leak", "unscorable")]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        if result.differences:
            lines += [
                "",
                "| joint less | difference | p | stands | joint right alone | other right alone |",
                "|---" * 6 + "|",
            ]
        for arm, found in result.differences.items():
            stands = "yes" if found.stands else "no"
            help_, hurt = result.help[arm].value, result.hurt[arm].value
            lines.append(f"| {arm} | {found} | {found.p:.4f} | {stands} | {_number(help_)} | {_number(hurt)} |")
        lines += [""]
    lines += ["*stands*: significant at 5 % among the differences of its table, by Holm's correction.", ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def write_results(results: Mapping[str, BenchmarkResult], folder: str | Path) -> dict[str, Path]:
    """
    Write `results.json` (with the settings), `results.md` and `samples.parquet` into an evaluation's folder.

    Returns:
        `dict[str, Path]`: what each is -> its file.
    """
    folder = Path(folder)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    content = _plain({"settings": settings, "benchmarks": to_dict(results)})
    paths = {name: folder / name for name in ("results.json", "results.md", "samples.parquet")}
    paths["results.json"].write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    paths["results.md"].write_text(to_markdown(results), encoding="utf-8")
    parts = [pq.read_table(file) for file in sorted((folder / "samples").glob("*.parquet"))]
    pq.write_table(pa.concat_tables(parts), paths["samples.parquet"])
    return paths


def _plain(value: Any) -> Any:
    """NaN, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
