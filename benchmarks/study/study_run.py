"""One run of the study in a process of its own: `python study_run.py '<job as JSON>' <runs' folder> <own folder>`."""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from study_settings import (
    CURVE_PROBLEMS,
    FIGURES,
    PARTS,
    RECIPES,
    SAMPLES,
    SETTINGS,
    SINGLE,
    VOTED,
    Job,
    area_under,
    count_tokens,
    on_grid,
    passed,
    start_agent,
    start_team,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from ccpo import MultiAgentGRPOTrainer, Solo, TransformersGenerator
from ccpo import train as training
from ccpo.arguments import read_model_config
from ccpo.evaluation import Team, evaluate, evaluate_team
from ccpo.report import write_json
from ccpo.tasks import arithmetic
from ccpo.training.policies import policy_of
from ccpo.training.team_file import generator_options

HELD_OUT = "held-out"


def start(job: Job, runs: Path, folder: Path) -> dict:
    """The policies that the runs of a seed start from."""
    arithmetic.warm_start_team(arithmetic.topology(job.name), folder, job.seed, use_cpu=True, disable_tqdm=True)
    return {}


class Budget(TrainerCallback):
    """Keeps the log and, at the end of each tenth of the tokens, the weights; ends the run with the last."""

    def __init__(self, budget: int, rows: int, agents: tuple[str, ...]):
        self.budget, self.rows_of_batch, self.agents = budget, rows, agents
        self.tokens, self.rows, self.kept = 0, [], []

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        if "loss" not in logs:
            return control
        before, self.tokens = self.tokens, self.tokens + count_tokens(logs, self.rows_of_batch)
        self.rows.append((before, logs))
        if passed(before, self.tokens, self.budget):
            policies = {agent: model if len(self.agents) == 1 else policy_of(model, agent) for agent in self.agents}
            states = {agent: policy.state_dict() for agent, policy in policies.items()}
            copied = {agent: {k: v.clone() for k, v in weights.items()} for agent, weights in states.items()}
            self.kept.append((self.tokens, copied))
        control.should_training_stop = self.tokens >= self.budget
        return control


def train(job: Job, runs: Path, folder: Path) -> dict:
    """A run to the end of its tokens; then what it answers, at each point of its curve and at the end."""
    recipe, fields = SETTINGS[job.name]
    given = {
        "seed": job.seed,
        "output_dir": folder,
        "max_steps": 1_000_000,
        "logging_steps": 1,
        "disable_tqdm": True,
        **fields,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = ["--config", str(RECIPES / recipe / "config_demo.yaml"), *words]
    team, args, model = training.parse_arguments(command)
    topology, problems, held_out = training.load_task(team, args)
    credit, loading = team.make_credit(topology=topology), read_model_config(model, args)
    begin = runs / Job("start", start_team(job.name), job.seed).folder
    models = {agent: str(begin / start_agent(job.name, agent)) for agent in topology.agents}
    budget = Budget(job.tokens, args.generation_batch_size, topology.agents)
    trainer = MultiAgentGRPOTrainer(
        model=models,
        reward_funcs=credit,
        args=args,
        train_dataset=problems,
        topology=topology,
        callbacks=[budget],
        **loading,
    )
    started = time.perf_counter()
    trainer.train()
    training_seconds = time.perf_counter() - started
    trainer.save_model(str(folder))

    policies = {agent: AutoModelForCausalLM.from_pretrained(path) for agent, path in models.items()}
    generators = make_generators(policies, models, topology, args, job.seed)
    some = held_out.select(range(CURVE_PROBLEMS))
    points = []
    for tokens, states in [(0, {}), *budget.kept]:
        for agent, weights in states.items():
            policies[agent].load_state_dict(weights)
        for generate in generators.values():
            generate.reseed(1000 * job.seed + list(generators.values()).index(generate))
        found = evaluate_team(some, generators, credit.outcome, topology=topology, batch_size=256)
        points.append([tokens, found.joint.value])
    curve = on_grid(points, job.tokens)
    return {
        "steps": len(budget.rows),
        "tokens": budget.tokens,
        "scored_tokens": sum(row.get("rollout/rating_tokens", 0) for _, row in budget.rows),
        "points": points,
        "curve": curve,
        "area": area_under(curve),
        "training": training_accuracy(budget.rows, job.tokens),
        "within_group_correlation": correlations(budget.rows, topology),
        "training_seconds": training_seconds,
        **answer_at_the_end(topology, generators, credit.outcome, held_out, folder / "evaluation", job.seed),
    }


def make_generators(policies: dict, tokenizers: dict[str, str], topology, args, seed: int) -> dict:
    """Role -> generator that samples as in training; roles of one agent that sample alike have one."""
    made, generators = {}, {}
    for role in topology.role_names:
        agent = topology.agent_of(role)
        options = generator_options(args, role, agent)
        key = repr((agent, sorted(options.items(), key=str)))
        if key not in made:
            own_seed = 1000 * seed + len(made)
            made[key] = TransformersGenerator(policies[agent], tokenizers[agent], seed=own_seed, **options)
        generators[role] = made[key]
    return generators


def training_accuracy(rows: list[tuple[int, dict]], budget: int) -> list[float]:
    """The mean accuracy of the team's answers in each tenth of the tokens; a policy alone earns 1 or -1."""
    parts = [[] for _ in range(PARTS)]
    for before, row in rows:
        value = row["credit/joint_accuracy"] if "credit/joint_accuracy" in row else (1 + row["reward"]) / 2
        parts[min(PARTS * before // budget, PARTS - 1)].append(value)
    if not all(parts):
        raise ValueError(f"`--tokens {budget}` gives {len(rows)} steps, too few for {PARTS} parts. Raise it.")
    return [statistics.fmean(part) for part in parts]


def correlations(rows: list[tuple[int, dict]], topology) -> dict[str, float]:
    """How much of a role's advantages is shared credit's; a step whose rewards are all one has none."""
    values = {
        role: [row.get(f"credit/{role}/within_group_correlation") for _, row in rows] for role in topology.role_names
    }
    known = {role: [v for v in own if v is not None and v == v] for role, own in values.items()}
    return {role: statistics.fmean(own) for role, own in known.items() if own}


def answer_at_the_end(topology, generators: dict, outcome, held_out, folder: Path, seed: int) -> dict:
    """The trained team on all held-out problems, and without the partner: a role's removal, or one member alone."""
    team, arms, alone = Team(topology, generators, outcome), [], None
    if topology.is_chain and len(topology.roles) > 1:
        arms = [f"without_{topology.role_names[0]}"]
    elif len(topology.roles) > 1:  # a voter, or the first of two who answer, criticise and rewrite
        first = topology.role_names[0]
        alone, arms = Team(Solo(prompt=topology[first].prompt), {"solver": generators[first]}, outcome), ["single"]
    result = evaluate(
        team, {HELD_OUT: held_out}, output_dir=folder, k=SAMPLES, arms=arms, single=alone, seed=seed, batch_size=128
    )[HELD_OUT]
    figures = {
        "joint": result.arms["joint"].avg.value,
        "tokens_per_problem": result.arms["joint"].tokens,
        "right": result.arms["joint"].right.mean(dim=1).tolist(),
    }
    for arm in arms:
        gain = result.differences[arm]
        figures |= {
            "alone": result.arms[arm].avg.value,
            "gain": gain.value,
            "gain_interval": list(gain.interval),
            "help": result.help[arm].value,
            "hurt": result.hurt[arm].value,
        }
    return figures


def votes(job: Job, runs: Path, folder: Path) -> dict:
    """The single policy of a seed with as many votes for a problem as have a team's tokens, for several teams."""
    held_out = arithmetic.build_dataset("test")
    topology = arithmetic.topology("solo")
    path = str(runs / Job("train", SINGLE, job.seed, job.tokens).folder)
    found = {}
    for setting in VOTED:
        team = Team.from_pretrained(runs / Job("train", setting, job.seed, job.tokens).folder, seed=job.seed)
        like = next(iter(team.generate.values()))
        options = {name: getattr(like, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
        single = Team(topology, {"solver": TransformersGenerator(path, **options)}, team.outcome)
        arms = evaluate(
            team,
            {HELD_OUT: held_out},
            output_dir=folder / setting,
            k=1,
            arms=["self_consistency"],
            single=single,
            seed=job.seed,
            batch_size=128,
        )[HELD_OUT].arms
        voted = arms["self_consistency"]
        found[setting] = {
            "accuracy": voted.avg.value,
            "tokens_per_problem": voted.tokens,
            "votes": voted.tokens / arms["single"].tokens,
        }
    return {"votes": found}


def main() -> None:
    started, (text, runs, folder) = time.perf_counter(), sys.argv[1:]
    job, folder = Job(**json.loads(text)), Path(folder)
    torch.set_num_threads(1)
    figures = {"start": start, "train": train, "votes": votes}[job.kind](job, Path(runs), folder)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cost = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": sum(own.ru_utime + own.ru_stime for own in used),
    }
    write_json({"job": job.to_dict(), **figures, **cost}, folder / FIGURES)


if __name__ == "__main__":
    main()
