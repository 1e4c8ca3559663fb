"""
How long one update of a Thinker and a Solver takes, and how many sequences it needs, against CoMLRL 1.4.3's MAGRPO.

    python benchmarks/comlrl.py

An update is one pass over the same 4 problems with G = 4: generation, outcomes, losses, backward passes and optimizer
steps of both roles. Both sides have the same policies (`arithmetic.build_policy`, float32, on CPU), versions of torch
and transformers, number of threads, prompts, sampling (temperature 1, no top-p or top-k), completions of exactly 24
tokens, learning rate, and a judge that costs almost nothing. Neither side logs or evaluates.

- **CoMLRL**: all of its agents speak at the same time in every turn, so handing over a text takes two turns. In the
  first turn, the Thinker reads the problem and the Solver answers alone. In the second turn, the Solver reads the
  thought and the Thinker reads the problem again. One `MAGRPOTrainer.train()` of one epoch is an update. Its defaults
  are kept (`joint_mode="aligned"`, `rollout_buffer_size=2`), except `early_termination_threshold`. This would end
  episodes before the Solver reads the thought, so it is `None`. Also measured: `joint_mode="cross"`, and a buffer
  that holds the whole pass (20 nodes), which gives the fewest optimizer steps that CoMLRL can make of it.
- **ours**: one optimizer step of `MultiAgentGRPOTrainer` with the joint schedule and K = 1. MAGRPO gives all roles
  the team's reward, which is our shared credit. Also measured: CCPO, with S = G solo answers.

Each variant has a process of its own that lives through the whole run and makes updates on request. In every turn,
each process makes a few updates, one process after the other. Ratios are computed within the turn, and medians over
the turns are reported. Sequences, tokens and optimizer steps are counted where they happen: in `generate`, and by a
hook on every optimizer.

CoMLRL is installed into `comlrl-venv` next to the output, without its requirements. That environment uses the
packages of this one. Writes `outputs/bench/comlrl.json`: `seconds_ratio` and `sequences_ratio` (CoMLRL with its
defaults, divided by shared credit), `ratios` of all pairs, and the medians in `variants`.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

VERSION = "1.4.3"
OURS = {"shared": "ours, shared credit", "ccpo": "ours, CCPO"}
THEIRS = {
    "aligned": "CoMLRL, aligned",
    "one_buffer": "CoMLRL, aligned, one buffer",
    "cross": "CoMLRL, cross",
}
COUNTS = ("sequences", "tokens", "generate_calls", "optimizer_steps")
LEARNING_RATE = 5e-6


# ---- A process that makes updates ----


def judge(texts: list[str]) -> list[float]:
    """A judge whom random models please about half of the time: an odd number of distinct characters is right."""
    return [1.0 if len(set(text)) % 2 else -1.0 for text in texts]


def count_work() -> dict[str, int]:
    """Counts of what this process generates and of its optimizers' steps, from now on."""
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import LlamaForCausalLM

    counts = dict.fromkeys(COUNTS, 0)
    generate = LlamaForCausalLM.generate

    def counted(self, *args, input_ids, **kwargs):
        output = generate(self, *args, input_ids=input_ids, **kwargs)
        sequences = getattr(output, "sequences", output)
        counts["generate_calls"] += 1
        counts["sequences"] += len(sequences)
        counts["tokens"] += len(sequences) * (sequences.size(1) - input_ids.size(1))
        return output

    def stepped(optimizer, args, kwargs):
        counts["optimizer_steps"] += 1

    LlamaForCausalLM.generate = counted
    register_optimizer_step_post_hook(stepped)
    return counts


def serve_ours(variant, options, tokenizer, sampling, serve) -> None:
    """Train with our trainer; `serve` is called between steps."""
    from transformers import PrinterCallback, TrainerCallback

    from ccpo import CounterfactualCredit, MultiAgentGRPOConfig, MultiAgentGRPOTrainer, SharedCredit
    from ccpo.tasks import arithmetic

    class Steps(TrainerCallback):
        """End every step by a reply and the wait for the next request; the first step warms up."""

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = not serve()

    def outcome(prompts, completions, **kwargs):
        return judge(completions)

    credit = SharedCredit if variant == "shared" else CounterfactualCredit
    with tempfile.TemporaryDirectory() as folder:
        args = MultiAgentGRPOConfig(
            output_dir=folder,
            schedule="joint",
            per_device_train_batch_size=options.prompts * options.num_generations,
            num_generations=options.num_generations,
            max_completion_length=options.length,
            generation_kwargs=sampling,
            temperature=1.0,
            learning_rate=LEARNING_RATE,
            max_steps=1_000_000,
            report_to="none",
            bf16=False,
            activation_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = MultiAgentGRPOTrainer(
            {role: arithmetic.build_policy(tokenizer, seed) for seed, role in enumerate(arithmetic.ROLES)},
            credit(outcome),
            args,
            arithmetic.build_dataset("train", size=options.prompts),
            processing_class=tokenizer,
            topology=arithmetic.topology(),
            callbacks=[Steps()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def serve_comlrl(variant, options, tokenizer, sampling, serve) -> None:
    """Train with CoMLRL's MAGRPO, an epoch at a time; `serve` is called between epochs."""
    from comlrl.trainers import MAGRPOConfig, MAGRPOTrainer

    from ccpo.tasks import arithmetic
    from ccpo.team.prompts import build_solo_messages, build_solver_messages, build_thinker_messages

    topology = arithmetic.topology()

    def think(row):
        return build_thinker_messages(row["prompt"], topology.thinker_prompt)

    def answer_alone(row):
        return build_solo_messages(row["prompt"], topology.solo_prompt)

    def hand_over(prompt, agent_completions, **kwargs):
        thinker = build_thinker_messages(prompt, topology.thinker_prompt)
        return [thinker, build_solver_messages(prompt, agent_completions[0], topology.solver_prompt)]

    def reward(thoughts, answers):
        return judge(answers)

    nodes = options.prompts * (1 + options.num_generations)
    chosen = {"aligned": {}, "cross": {"joint_mode": "cross"}, "one_buffer": {"rollout_buffer_size": nodes}}
    trainer = MAGRPOTrainer(
        agents=[arithmetic.build_policy(tokenizer, seed) for seed in range(2)],
        tokenizer=tokenizer,
        train_dataset=arithmetic.build_dataset("train", size=options.prompts),
        reward_func=reward,
        formatters=[think, answer_alone],
        external_transition=hand_over,
        args=MAGRPOConfig(
            num_train_epochs=1,
            agent_learning_rate=LEARNING_RATE,
            agent_devices="cpu",
            num_generations=options.num_generations,
            max_new_tokens=options.length,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_turns=2,
            early_termination_threshold=None,
            external_prompt_passthrough=True,  # the second turn's prompts are `hand_over`'s
            eval_interval=0,
            **chosen[variant],
        ),
    )
    trainer.verbose = False
    trainer.train(**sampling)  # warms up
    while serve():
        trainer.train(**sampling)


def work(options: argparse.Namespace) -> None:
    """What a process does: an update for each line that it reads, and a line with time and counts for each update."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    import torch
    import transformers

    from ccpo.tasks import arithmetic

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    tokenizer, counts, start = arithmetic.build_tokenizer(), count_work(), None
    sampling = {"min_new_tokens": options.length, "suppress_tokens": tokenizer.all_special_ids}

    def reply(**content) -> None:
        print(json.dumps(content), file=replies, flush=True)

    def serve() -> bool:
        nonlocal start
        if start is None:
            reply(threads=torch.get_num_threads(), torch=torch.__version__, transformers=transformers.__version__)
        else:
            reply(seconds=time.perf_counter() - start, **counts)
        going_on = bool(sys.stdin.readline())
        counts.update(dict.fromkeys(COUNTS, 0))
        start = time.perf_counter()
        return going_on

    (serve_ours if options.worker in OURS else serve_comlrl)(options.worker, options, tokenizer, sampling, serve)


# ---- The process that asks ----


def build_environment(folder: Path) -> str:
    """The Python of a virtual environment that has CoMLRL and this environment's packages; made if it is not there."""
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    link, content = site / "benchmark.pth", f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    installed = [d.version for d in importlib.metadata.distributions(name="comlrl", path=[str(site)])]
    if not python.exists() or installed != [VERSION] or not link.exists() or link.read_text() != content:
        print(f"installing comlrl {VERSION} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
        link.write_text(content)
        pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-deps", f"comlrl=={VERSION}"], check=True)
    return str(python)


class Worker:
    """
    A process of one variant.

    Attributes:
        facts (`dict`): its threads and versions.
    """

    def __init__(self, python: str, variant: str, options: argparse.Namespace):
        settings = [f"--{name}={getattr(options, name)}" for name in ("prompts", "num_generations", "length")]
        # -P: this file's folder stays off the path, or `import comlrl` would find this file.
        command = [python, "-P", os.path.abspath(__file__), "--worker", variant, *settings]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.variant = variant
        self.facts = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.variant!r} ended; it printed the reason above")
        return json.loads(line)

    def update(self) -> dict[str, float]:
        """One update: its seconds and counts."""
        self.process.stdin.write("update\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let the process end by itself."""
        self.process.stdin.close()
        self.process.wait()


def median_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--updates", type=int, default=2, help="updates of each variant in a turn")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--num_generations", type=int, default=4)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--output", default="outputs/bench/comlrl.json")
    parser.add_argument("--worker", choices=(*OURS, *THEIRS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    from ccpo.report import write_json

    labels = OURS | THEIRS
    python = build_environment(Path(options.output).resolve().parent / "comlrl-venv")
    workers = {name: Worker(sys.executable if name in OURS else python, name, options) for name in labels}
    facts = workers["shared"].facts
    for worker in workers.values():
        if worker.facts != facts:
            raise RuntimeError(f"{worker.variant} runs with {worker.facts}, ours with {facts}: not comparable")
    turns = []
    for _ in range(options.repeats):
        turn = {name: median_of([worker.update() for _ in range(options.updates)]) for name, worker in workers.items()}
        turns.append(turn)
        seconds = ", ".join(f"{name} {row['seconds']:.3f}" for name, row in turn.items())
        print(f"turn {len(turns)}: {seconds} s")
    for worker in workers.values():
        worker.close()

    medians = {name: median_of([turn[name] for turn in turns]) for name in labels}
    ratios = {
        f"{theirs}_over_{ours}": {
            f"{kind}_ratio": statistics.median(turn[theirs][kind] / turn[ours][kind] for turn in turns)
            for kind in ("seconds", "sequences")
        }
        | {"seconds_ratios": [turn[theirs]["seconds"] / turn[ours]["seconds"] for turn in turns]}
        for theirs in THEIRS
        for ours in OURS
    }
    print(f"\n{'one update':30}{'seconds':>9}{'sequences':>11}{'tokens':>9}{'optimizer steps':>17}")
    for name, row in medians.items():
        print(
            f"{labels[name]:30}{row['seconds']:9.3f}{row['sequences']:11.0f}{row['tokens']:9.0f}"
            f"{row['optimizer_steps']:17.0f}"
        )
    print(f"\n{'ratio (median of turns)':58}{'seconds':>9}{'sequences':>11}")
    for theirs in THEIRS:
        for ours in OURS:
            row = ratios[f"{theirs}_over_{ours}"]
            label = f"{labels[theirs]} / {labels[ours]}"
            print(f"{label:58}{row['seconds_ratio']:9.2f}{row['sequences_ratio']:11.2f}")
    headline = ratios["aligned_over_shared"]
    result = {
        "seconds_ratio": headline["seconds_ratio"],
        "sequences_ratio": headline["sequences_ratio"],
        "ratios": ratios,
        "variants": medians,
        "comlrl": VERSION,
        **facts,
        "settings": {name: value for name, value in vars(options).items() if name not in ("output", "worker")},
    }
    print(write_json(result, options.output))


if __name__ == "__main__":
    main()
