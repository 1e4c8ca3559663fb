"""
What serving a team costs, compared with calling the same `Team` yourself, and how long its clients wait.

    python benchmarks/serving.py [--seconds 60] [--clients 64] [--turns 3]

The team is Think-Solve with two random policies of 0.9 million parameters that write 48 tokens each. An answer takes
5 to 10 ms. With a larger model, the share of the overhead is smaller. `ccpo serve` serves the team in a process of
its own, with its defaults: 32 answers at once and 256 requests in progress. All `--clients` clients run in one
process on the same machine. They use the `openai` package, and each asks its next problem as soon as it has an
answer. On the other side, the script calls `Team` itself, with problems in the same batches. Both sides run in turn.

- `overhead_ratio`: the seconds of a served answer (by throughput) divided by those of an answer of `Team`, as the
  median over the turns. It includes the work of the server and of the clients, which share the cores with the team.
- `p50` and `p99`: seconds of a request, over all turns.
- `failed`: the number of requests without an answer.
- `first_delta_share`: for one client alone that streams, the time until the first piece of text divided by the time
  until the last, as the median of 20 requests.

Writes `outputs/bench/serving.json`.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import openai

from ccpo.evaluation import Team
from ccpo.report import write_json
from ccpo.tasks import arithmetic
from ccpo.tasks.arithmetic.policies import build_policy

BATCH = 32
TOKENS = 48


def save_team(folder: Path) -> None:
    """Two random policies of the embedded task, as a run leaves them."""
    topology, tokenizer = arithmetic.topology("think_solve"), arithmetic.build_tokenizer()
    for seed, role in enumerate(topology.role_names):
        build_policy(tokenizer, seed).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    sampling = {role: {"max_new_tokens": TOKENS} for role in topology.role_names}
    (folder / "team.json").write_text(json.dumps({**topology.to_dict(), "run": {"sampling": sampling}}))


async def ask(address: str, problems: list[str], clients: int, seconds: float) -> tuple[list[float], int, float]:
    """Seconds of each answered request, how many failed, and the seconds of all."""
    waited, failed, turns = [], 0, itertools.count()
    end = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal failed
        while (start := time.perf_counter()) < end:
            messages = [{"role": "user", "content": problems[next(turns) % len(problems)]}]
            try:
                answer = await client.chat.completions.create(model="team", messages=messages)
                assert answer.usage.completion_tokens > 0
                waited.append(time.perf_counter() - start)
            except openai.OpenAIError as error:
                failed += 1
                print(f"failed: {error!r:.200}", file=sys.stderr)

    start = time.perf_counter()
    async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=120) as client:
        await asyncio.gather(*(one() for _ in range(clients)))
    return waited, failed, time.perf_counter() - start


def first_delta_share(address: str, problems: list[str]) -> float:
    """Time to the first piece of text over time to the last."""
    shares, client = [], openai.OpenAI(base_url=address, api_key="none")
    for problem in problems[:20]:
        start, times = time.perf_counter(), []
        messages = [{"role": "user", "content": problem}]
        for chunk in client.chat.completions.create(model="team", messages=messages, stream=True):
            delta = chunk.choices[0].delta
            if delta.content or getattr(delta, "reasoning_content", None):
                times.append(time.perf_counter() - start)
        shares.append(times[0] / times[-1])
    return statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="that the clients ask, all turns together")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    default = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "serving.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()

    problems = arithmetic.build_dataset("test")["prompt"][:]
    with tempfile.TemporaryDirectory() as folder:
        save_team(Path(folder))
        team = Team.from_pretrained(folder)
        command = [sys.executable, "-m", "ccpo.evaluation.serving", folder, "--port", "0", "--name", "team"]
        with subprocess.Popen([*command, "--batch_size", str(BATCH)], stderr=subprocess.PIPE, text=True) as server:
            try:
                log = iter(server.stderr.readline, "")
                address = next(found[1] for line in log if (found := re.search(r"served at (http\S+)", line)))
                team(problems[:BATCH])
                asyncio.run(ask(address, problems, options.clients, 2))  # the first ones warm up
                waited, failed, ratios = [], 0, []
                for _ in range(options.turns):
                    start = time.perf_counter()
                    team(problems[: 16 * BATCH], batch_size=BATCH)
                    by_hand = (time.perf_counter() - start) / (16 * BATCH)
                    own, lost, seconds = asyncio.run(
                        ask(address, problems, options.clients, options.seconds / options.turns)
                    )
                    waited, failed = waited + own, failed + lost
                    ratios.append(seconds / len(own) / by_hand)
                share = first_delta_share(address, problems)
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(90)
    cuts = statistics.quantiles(waited, n=100)
    figures = {
        "p50": cuts[49],
        "p99": cuts[98],
        "overhead_ratio": statistics.median(ratios),
        "overhead_ratios": ratios,
        "failed": failed,
        "requests": len(waited) + failed,
        "clients": options.clients,
        "first_delta_share": share,
    }
    write_json(figures, options.output)
    print(figures)


if __name__ == "__main__":
    main()
