"""End to end on one process: tiny real models, real steps."""

import copy
import json
import math
import statistics
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ccpo import (
    CounterfactualCredit,
    MultiAgentGRPOTrainer,
    SelfEvaluatedCredit,
    SharedCredit,
    Solo,
    ThinkSolve,
    Vote,
)
from ccpo.credit import counterfactual_credit
from ccpo.team.prompts import strip_boxed

ROLES = ("thinker", "solver")
RATING_PROMPT = "{role} {outcome} {answer}"
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
torch.set_num_threads(1)


class Recorder(TrainerCallback):
    """Weights and optimizer moments after every optimizer step."""

    def __init__(self):
        self.trainer, self.snapshots = None, []

    def _snapshot(self):
        weights = {n: p.detach().clone() for n, p in self.trainer.model.named_parameters()}
        optimizer = self.trainer.optimizer
        state = {
            n: {k: v.clone() for k, v in optimizer.state.get(p, {}).items()}
            for n, p in self.trainer.model.named_parameters()
        }
        self.snapshots.append((weights, state))

    def on_train_begin(self, *args, **kwargs):
        self._snapshot()

    def on_step_end(self, *args, **kwargs):
        self._snapshot()


class Spy(MultiAgentGRPOTrainer):
    """Keeps the rollouts, rewards and advantages of every generation batch for the tests to compare with."""

    def __init__(self, *args, **kwargs):
        self.seen, self.micro_batches = [], []
        super().__init__(*args, **kwargs)

    def _log_rollout(self, rollout, rewards, advantages):
        self.seen.append((rollout, rewards, advantages, self.model.training))
        super()._log_rollout(rollout, rewards, advantages)

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.micro_batches.append(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def mixed_outcome(prompts, completions, **kwargs):
    """Right, wrong and now and then unscorable, by the length of the answer."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [None if "q" in text and len(text) > 5 else 1.0 if len(set(text)) % 2 else -1.0 for text in texts]


def owner(name: str) -> str | None:
    return next((role for role in ROLES if f".{role}." in f".{name}."), None)


def train(model, credit, args, dataset, cls=Spy, **kwargs):
    recorder = Recorder()
    trainer = cls(model=model, reward_funcs=credit, args=args, train_dataset=dataset, callbacks=[recorder], **kwargs)
    recorder.trainer = trainer
    trainer.train()
    return trainer, recorder.snapshots


# ---- Stock parity ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "dapo", "steps_per_generation": 4, "num_iterations": 2, "gradient_accumulation_steps": 2},
        {"beta": 0.1, "importance_sampling_level": "sequence", "loss_type": "grpo", "scale_rewards": "group"},
    ],
    ids=["default", "off-policy", "gspo-kl"],
)
def test_solo_is_stock_trl_to_the_bit(settings, model_dirs, chat_dataset, make_config, outcome):
    settings = {"max_steps": 10, "temperature": 1.0, **settings}
    ours, _ = train(model_dirs["qwen3"], outcome, make_config(**settings), chat_dataset, topology=Solo())
    stock_args = make_config(GRPOConfig, **{"scale_rewards": "none", **settings})
    stock, _ = train(model_dirs["qwen3"], outcome, stock_args, chat_dataset, cls=GRPOTrainer)
    for key in ("loss", "grad_norm", "reward", "entropy"):
        mine, theirs = ([row[key] for row in t.state.log_history if key in row] for t in (ours, stock))
        assert mine == theirs and (key == "reward" or len(mine) == 10)
    theirs = dict(stock.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    assert any(row.get("grad_norm") for row in ours.state.log_history)


def test_solo_with_a_prompt_is_solo_on_problems_so_asked(model_dirs, chat_dataset, make_config, outcome):
    def ask(row):
        *before, last = row["prompt"]
        return {"prompt": [*before, {**last, "content": f"{last['content']} Put it within \\boxed{{}}."}]}

    args = {"max_steps": 2, "temperature": 1.0}
    given = Solo(prompt="{problem} Put it within \\boxed{}.")
    ours, _ = train(model_dirs["qwen3"], outcome, make_config(**args), chat_dataset, topology=given)
    other, _ = train(model_dirs["qwen3"], outcome, make_config(**args), chat_dataset.map(ask), topology=Solo())
    plain, _ = train(model_dirs["qwen3"], outcome, make_config(**args), chat_dataset, topology=Solo())
    mine, theirs, without = ([row["num_tokens"] for row in t.state.log_history[:2]] for t in (ours, other, plain))
    assert mine == theirs and mine != without
    assert all(torch.equal(p, other.model.get_parameter(name)) for name, p in ours.model.named_parameters())


# ---- Everything that must work, alone and combined ----

CREDITS = {
    "shared": lambda: SharedCredit(mixed_outcome),
    "event-group": lambda: CounterfactualCredit(mixed_outcome),
    "difference-paired": lambda: CounterfactualCredit(mixed_outcome, bonus="difference", baseline="paired"),
    "sepo-generate": lambda: SelfEvaluatedCredit(mixed_outcome, rating_max_tokens=6, rating_prompt=RATING_PROMPT),
    "sepo-constrained": lambda: SelfEvaluatedCredit(
        mixed_outcome, rating_mode="constrained", rating_prompt=RATING_PROMPT
    ),
    "sepo-expectation": lambda: SelfEvaluatedCredit(
        mixed_outcome, rating_mode="constrained", rating_expectation=True, rating_prompt=RATING_PROMPT
    ),
    "plain": lambda: mixed_outcome,
}
COMBINATIONS = [
    ("separate", "alternate", "event-group", {"alternate_period": 1}),
    ("separate", "joint", "sepo-generate", {"loss_type": "dr_grpo"}),
    ("separate", "joint", "difference-paired", {"num_solves": 2, "beta": 0.05, "loss_type": "bnpo"}),
    ("separate", "alternate", "sepo-expectation", {"alternate_period": 1, "loss_type": "dapo"}),
    ("shared", "joint", "event-group", {"num_solves": 2, "num_solos": 3, "advantage_estimator": "reinforce++"}),
    ("shared", "alternate", "sepo-constrained", {"alternate_period": 1, "beta": 0.05}),
    ("adapters", "joint", "sepo-constrained", {"num_solves": 2, "advantage_estimator": "reinforce++-baseline"}),
    ("adapters", "alternate", "event-group", {"alternate_period": 1, "beta": 0.05, "gradient_checkpointing": True}),
    ("adapters", "joint", "event-group", {"advantage_estimator": "counterfactual", "num_solos": 2}),
    ("separate", "joint", "plain", {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
    ("separate", "joint", "shared", {"scale_rewards": "group", "num_iterations": 2, "steps_per_generation": 2}),
    ("separate", "joint", "event-group", {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
]


@pytest.mark.parametrize(("sharing", "schedule", "credit", "settings"), COMBINATIONS)
def test_combination_trains_the_roles_in_turn_and_only_them(
    sharing, schedule, credit, settings, model_dirs, chat_dataset, make_config
):
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    args = make_config(
        policy_sharing=sharing,
        schedule=schedule,
        max_steps=2,
        per_device_train_batch_size=8,
        weight_decay=0.1,
        max_grad_norm=1.0,
        role_kwargs={"thinker": {"max_completion_length": 6}},
        **settings,
    )
    trainer, snapshots = train(
        model if sharing == "separate" else model_dirs["qwen3"],
        CREDITS[credit](),
        args,
        chat_dataset,
        peft_config=copy.deepcopy(LORA) if sharing == "adapters" else None,
    )
    assert len(snapshots) == 3
    for step, ((before, state_before), (after, state_after)) in enumerate(zip(snapshots, snapshots[1:], strict=False)):
        in_turn = ROLES if schedule == "joint" else (ROLES[step % 2],)
        moved = {role: set() for role in (*ROLES, None)}
        for name, weight in before.items():
            changed = not torch.equal(weight, after[name])
            moved[owner(name)].add(changed)
            if owner(name) is not None and owner(name) not in in_turn:
                assert not changed, f"{name} moved out of turn"
                old, new = state_before[name], state_after[name]
                assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
        rewards = trainer.seen[step][2] if step < len(trainer.seen) else {}
        for role in in_turn:
            signal = args.beta > 0 or any(a.abs().max() > 1e-6 for r, a in rewards.items() if r == role)
            if signal and sharing != "shared":
                assert True in moved[role], f"no weight of the {role} moved in its turn"
        if sharing == "shared":
            assert True in moved[None]
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert all(math.isfinite(row["loss"]) for row in history)


def test_every_weight_of_a_trained_role_moves(model_dirs, chat_dataset, make_config, outcome):
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    args = make_config(schedule="joint", max_steps=3, per_device_train_batch_size=8)
    _, snapshots = train(model, SharedCredit(outcome), args, chat_dataset)
    first, last = snapshots[0][0], snapshots[-1][0]
    still = [name for name in first if torch.equal(first[name], last[name])]
    assert not still


def test_frozen_role_stays_through_a_whole_block_with_decay_and_momentum(
    model_dirs, chat_dataset, make_config, outcome
):
    """Three blocks: the Thinker gets moments in the first, and must keep them through the Solver's."""
    args = make_config(
        schedule="alternate",
        alternate_period=2,
        max_steps=6,
        weight_decay=0.5,
        per_device_train_batch_size=8,
        start_role="solver",
    )
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    _, snapshots = train(model, SharedCredit(outcome), args, chat_dataset)
    turns = ["solver"] * 2 + ["thinker"] * 2 + ["solver"] * 2
    for turn, (weights, state), (new_weights, new_state) in zip(turns, snapshots, snapshots[1:], strict=False):
        for name in weights:
            if owner(name) != turn:
                assert torch.equal(weights[name], new_weights[name])
                assert state[name].keys() == new_state[name].keys()
                assert all(torch.equal(state[name][k], new_state[name][k]) for k in state[name])
            elif weights[name].ndim > 1:
                assert not torch.equal(weights[name], new_weights[name])


def test_zero_gradients_do_not_move_a_role_out_of_turn(model_dirs, chat_dataset, make_config, outcome):
    """What ZeRO does, on one process: the frozen role's gradient is zeros instead of None."""

    class ZeroGradients(Spy):
        def _hold_agents_out_of_turn(self, optimizer, args, kwargs):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
            super()._hold_agents_out_of_turn(optimizer, args, kwargs)

    args = make_config(schedule="alternate", alternate_period=1, max_steps=2, weight_decay=0.5)
    _, snapshots = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset, cls=ZeroGradients)
    (_, _), (middle, state), (last, new_state) = snapshots
    for name in middle:
        if owner(name) == "thinker":
            assert torch.equal(middle[name], last[name])
            assert all(torch.equal(state[name][k], new_state[name][k]) for k in state[name])


def test_blocks_end_between_generation_batches(model_dirs, chat_dataset, make_config, outcome):
    """steps_per_generation 2 and num_iterations 2: 4 micro-batches a generation batch, blocks of 2 of them."""
    args = make_config(
        schedule="alternate", alternate_period=2, steps_per_generation=2, num_iterations=2, max_steps=20
    )
    trainer, _ = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset)
    turns = [next(iter(batch)).split("/")[0] for batch in trainer.micro_batches]
    assert turns == ["thinker"] * 8 + ["solver"] * 8 + ["thinker"] * 4
    assert len(trainer.seen) == 5


# ---- Credit and advantages ----


def slow_advantages(rewards, outcomes, solos, estimator):
    """Advantages of one role by plain loops: `rewards[p][n]`, NaN unscorable; eps 1e-4, sample std, as in TRL."""
    flat = [r for row in rewards for r in row if not math.isnan(r)]
    result = []
    centered = [[r - statistics.fmean([x for x in row if not math.isnan(x)] or [0]) for r in row] for row in rewards]
    flat_centered = [r for row in centered for r in row if not math.isnan(r)]
    for p, row in enumerate(rewards):
        for n, r in enumerate(row):
            if estimator == "group":
                a = centered[p][n]
            elif estimator == "reinforce++":
                a = (r - statistics.fmean(flat)) / (statistics.stdev(flat) + 1e-4)
            elif estimator == "reinforce++-baseline":
                a = (centered[p][n] - statistics.fmean(flat_centered)) / (statistics.stdev(flat_centered) + 1e-4)
            else:
                scored = [s for s in solos[p] if not math.isnan(s)]
                a = outcomes[p][n] - statistics.fmean(scored) if scored else math.nan
            result.append(0.0 if math.isnan(a) else a)
    return result


@pytest.mark.parametrize("num_solves", [1, 2])
@pytest.mark.parametrize("estimator", ["group", "reinforce++", "reinforce++-baseline", "counterfactual"])
def test_estimator_equals_a_slow_computation_on_the_same_episodes(
    estimator, num_solves, model_dirs, chat_dataset, make_config
):
    args = make_config(
        schedule="joint",
        advantage_estimator=estimator,
        num_solves=num_solves,
        per_device_train_batch_size=16,
        max_steps=2,
    )
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(mixed_outcome, coef=0.5), args, chat_dataset)
    spread = set()
    for batch, (rollout, _, _, _) in enumerate(trainer.seen):
        joint, solo = rollout.outcomes[0].team.tolist(), rollout.outcomes[0].without["thinker"].tolist()
        team = []
        joint = [[prompt[i : i + num_solves] for i in range(0, len(prompt), num_solves)] for prompt in joint]
        for p, prompt in enumerate(joint):
            team.append([])
            for thought in prompt:
                scored = [r for r in thought if not math.isnan(r)]
                team[p].append(statistics.fmean(scored) if scored else math.nan)
        credit = []
        for p, row in enumerate(team):
            scored = [s for s in solo[p] if not math.isnan(s)]
            b = statistics.fmean(scored) if scored else math.nan
            credit.append([r if b == 0 else r + 0.5 * ((r > 0 > b) - (r < 0 < b)) if b == b else b for r in row])
        answers = [[r for thought in prompt for r in thought] for prompt in joint]
        expected = {
            "thinker": slow_advantages(credit, team, solo, estimator),
            "solver": slow_advantages(answers, answers, solo, estimator if estimator != "counterfactual" else "group"),
        }
        micro_batch = trainer.micro_batches[batch]  # one per generation batch; TRL shuffled the episodes
        for role in ROLES:
            logged = trainer.seen[batch][2][role].flatten().tolist()
            assert logged == pytest.approx(expected[role], abs=1e-5)
            trained = micro_batch[f"{role}/advantages"].flatten().tolist()
            assert sorted(trained) == pytest.approx(sorted(expected[role]), abs=1e-5)
            spread |= {round(a, 4) for a in logged}
    assert len(spread) > 3


def test_counterfactual_bonus_scales_the_group_advantages_by_exactly_1_1(model_dirs, chat_dataset, make_config):
    """SPEC section 4: with the group estimator CCPO is shared credit times 1 + coef / 2 wherever b != 0."""
    args = make_config(schedule="joint", per_device_train_batch_size=32, num_generations=4, max_steps=3)
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(mixed_outcome), args, chat_dataset)
    ratios = set()
    for rollout, _, advantages, _ in trainer.seen:
        team = rollout.outcomes[0].team
        shared = (team - team.nanmean(dim=1, keepdim=True)).nan_to_num(0)
        b = rollout.outcomes[0].without["thinker"].nanmean(dim=1)
        for p in range(len(b)):
            factor = 1.1 if b[p] != 0 else 1.0
            torch.testing.assert_close(advantages["thinker"][p], factor * shared[p], rtol=1e-5, atol=1e-6)
            if shared[p].abs().max() > 0:
                ratios.add(factor)
        torch.testing.assert_close(advantages["solver"], (team - team.nanmean(1, keepdim=True)).nan_to_num(0))
    assert 1.1 in ratios


def test_advantages_stay_with_their_tokens(model_dirs, chat_dataset, make_config):
    """Shuffling, splitting and the K answers of a thought: every row keeps its own advantage."""
    args = make_config(schedule="joint", num_solves=2, steps_per_generation=4, max_steps=4)
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(mixed_outcome), args, chat_dataset)
    rollout, _, advantages, _ = trainer.seen[0]
    known = {"thinker": {}, "solver": {}}
    for role in ROLES:
        for (_, completion, _), advantage in zip(
            rollout.samples[role], advantages[role].flatten().tolist(), strict=True
        ):
            known[role].setdefault(tuple(completion), []).append(advantage)
    seen = 0
    for batch in trainer.micro_batches:
        for role, k in (("thinker", 1), ("solver", 2)):
            ids, mask = batch[f"{role}/completion_ids"], batch[f"{role}/completion_mask"]
            assert ids.shape[:2] == (4, k)
            for i, j in [(i, j) for i in range(4) for j in range(k)]:
                key = tuple(ids[i, j][mask[i, j].bool()].tolist())
                assert any(abs(batch[f"{role}/advantages"][i, j].item() - a) < 1e-6 for a in known[role][key])
                seen += 1
    assert seen == 4 * 4 * 3


def test_several_reward_functions_are_summed_with_their_weights(model_dirs, chat_dataset, make_config, outcome):
    def length(prompts, completions, **kwargs):
        return [float(len(c[-1]["content"])) for c in completions]

    args = make_config(schedule="joint", reward_weights=[1.0, 0.5])
    trainer, _ = train(model_dirs["qwen3"], [CounterfactualCredit(outcome), length], args, chat_dataset)
    rollout, rewards, _, _ = trainer.seen[0]
    expected = counterfactual_credit(rollout.outcomes[0].team, rollout.outcomes[0].without["thinker"])["thinker"]
    torch.testing.assert_close(rewards["thinker"][..., 0], expected)
    lengths = [float(len(answer)) for answer in rollout.episodes.answers]
    assert rewards["solver"][..., 1].flatten().tolist() == lengths
    row = trainer.state.log_history[0]
    assert row["thinker/rewards/counterfactual_credit/mean"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert row["solver/reward"] == pytest.approx(
        (rewards["solver"] @ torch.tensor([1.0, 0.5])).mean().item(), abs=1e-4
    )
    assert "thinker/rewards/length/mean" in row


# ---- Rollout ----


def test_roles_read_what_they_should(model_dirs, make_config):
    """The Solver reads the cleaned thought with its own tokenizer; solos read the problem alone; lengths per role."""
    problem = "1+1=? Put your final answer within \\boxed{}."
    dataset = Dataset.from_dict(
        {
            "prompt": [[{"role": "system", "content": "S"}, {"role": "user", "content": problem}]] * 4,
            "solution": ["2"] * 4,
        }
    )
    topology = ThinkSolve(thinker_prompt="T{problem}", solver_prompt="J{problem}|{thought}|", solo_prompt="A{problem}")
    args = make_config(
        schedule="joint", role_kwargs={"thinker": {"max_completion_length": 3}, "solver": {"max_completion_length": 5}}
    )
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    trainer, _ = train(model, CounterfactualCredit(mixed_outcome), args, dataset, topology=topology)
    rollout = trainer.seen[0][0]
    tokenizers = {role: AutoTokenizer.from_pretrained(path) for role, path in model.items()}

    def text(role, i):
        return tokenizers[role].decode(rollout.samples[role][i][0])

    solver, eos, end = tokenizers["solver"], *(tokenizers[role].eos_token for role in ROLES)
    assert text("thinker", 0) == f"<system>S{eos}<user>T1+1=?{eos}<assistant>"
    for i, thought in enumerate(rollout.episodes.said["thinker"].texts):
        expected = f"<system>S{end}<user>J{problem}|{strip_boxed(thought)}|{end}<assistant>"
        assert text("solver", i) == solver.decode(solver(expected)["input_ids"])
    assert max(len(ids) for _, ids, _ in rollout.samples["thinker"]) <= 3
    assert 3 < max(len(ids) for _, ids, _ in rollout.samples["solver"]) <= 5
    row = trainer.state.log_history[0]
    assert row["thinker/completions/max_length"] <= 3 < row["solver/completions/max_length"]


def test_solos_and_ratings_are_drawn_only_for_credit_that_uses_them(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(schedule="alternate", alternate_period=1, max_steps=2)
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(outcome), args, chat_dataset)
    thinker, solver = trainer.state.log_history[:2]
    assert thinker["rollout/solo_tokens"] > 0 and solver["rollout/solo_tokens"] == 0
    assert "credit/solo_accuracy" in thinker and "credit/solo_accuracy" not in solver
    assert thinker["rollout/rating_tokens"] == solver["rollout/rating_tokens"] == 0


def test_sampled_tokens_are_what_is_trained(model_dirs, chat_dataset, make_config):
    """With one update per generation batch the ratio is 1 at every sampled token: nothing was tokenised anew."""
    args = make_config(schedule="joint", steps_per_generation=1, num_iterations=2, max_steps=1, temperature=0.7)
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    trainer, _ = train(model, SharedCredit(mixed_outcome), args, chat_dataset)
    batch, rollout = trainer.micro_batches[0], trainer.seen[0][0]
    for role in ROLES:
        sampled = sorted(completion for _, completion, _ in rollout.samples[role])
        ids, mask = batch[f"{role}/completion_ids"].flatten(0, 1), batch[f"{role}/completion_mask"].flatten(0, 1)
        assert sorted(i[m.bool()].tolist() for i, m in zip(ids, mask, strict=True)) == sampled
        policy = AutoModelForCausalLM.from_pretrained(model[role])
        for i, (prompt, completion, _) in enumerate(rollout.samples[role]):
            logits = policy(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
            expected = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
            row = next(r for r in range(len(ids)) if ids[r][mask[r].bool()].tolist() == completion)
            got = batch[f"{role}/old_per_token_logps"].flatten(0, 1)[row][mask[row].bool()]
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
            if i == 1:
                break


def test_temperature_per_role(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(
        schedule="joint", num_iterations=2, role_kwargs={"thinker": {"temperature": 0.5}, "solver": {"top_p": 0.9}}
    )
    trainer, _ = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset)
    state = trainer._role_state
    assert state["thinker"]["generation_config"].temperature == 0.5
    assert state["solver"]["generation_config"].temperature == 1.0
    assert (state["thinker"]["generation_config"].top_p, state["solver"]["generation_config"].top_p) == (1.0, 0.9)
    ids = torch.tensor([[5, 6, 7, 8]])
    for role, temperature in (("thinker", 0.5), ("solver", 1.0)):
        with trainer.as_role(role), torch.no_grad():
            logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), 2)
            logits = trainer.model(ids).logits[0, 1:3] / temperature
        torch.testing.assert_close(logps[0], logits.log_softmax(-1).gather(1, ids[0, 2:, None])[:, 0])


def test_learning_rate_per_role(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(schedule="joint", role_kwargs={"solver": {"learning_rate": 0.0}}, weight_decay=0.1, max_steps=2)
    _, snapshots = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset)
    first, last = snapshots[0][0], snapshots[-1][0]
    assert all(torch.equal(first[n], last[n]) for n in first if owner(n) == "solver")
    assert not all(torch.equal(first[n], last[n]) for n in first if owner(n) == "thinker")


def test_own_optimizer_keeps_its_settings_and_must_hold_both_roles(model_dirs, chat_dataset, make_config, outcome):
    models = {
        role: AutoModelForCausalLM.from_pretrained(model_dirs[kind])
        for role, kind in zip(ROLES, model_dirs, strict=True)
    }
    both = [p for model in models.values() for p in model.parameters()]
    args = make_config(schedule="joint", learning_rate=1e-6, role_kwargs={"solver": {"learning_rate": 0.25}})
    optimizer = torch.optim.AdamW(both, lr=0.5)
    trainer = MultiAgentGRPOTrainer(models, SharedCredit(outcome), args, chat_dataset, optimizers=(optimizer, None))
    trainer.create_optimizer()
    assert {group["agent"]: group["lr"] for group in optimizer.param_groups} == {"thinker": 0.5, "solver": 0.25}
    optimizer = torch.optim.AdamW(models["thinker"].parameters())
    trainer = MultiAgentGRPOTrainer(models, SharedCredit(outcome), args, chat_dataset, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"`optimizers` holds no parameter of the agents \['solver'\]"):
        trainer.train()


# ---- Policies ----


def test_adapters_share_one_base_and_the_reference_is_that_base(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(policy_sharing="adapters", schedule="joint", beta=0.1, max_steps=1)
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer, snapshots = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset, peft_config=peft_config)
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert {owner(name) for name in names} == set(ROLES) and not any("default" in name for name in names)
    base = AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"])
    frozen = {n.replace("base_model.model.", "").replace("base_layer.", ""): p for n, p in snapshots[-1][0].items()}
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, frozen[name])
    assert trainer.state.log_history[0]["thinker/kl"] == pytest.approx(0, abs=1e-6)  # B = 0 at the start
    for role in ROLES:
        reference = trainer.micro_batches[0][f"{role}/ref_per_token_logps"]
        assert reference.abs().sum() > 0


def test_each_policy_has_its_own_reference(model_dirs, chat_dataset, make_config):
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    args = make_config(schedule="joint", beta=0.1, max_steps=1)
    trainer, _ = train(model, SharedCredit(mixed_outcome), args, chat_dataset)
    row = trainer.state.log_history[0]
    assert row["thinker/kl"] == pytest.approx(0, abs=1e-6) and row["solver/kl"] == pytest.approx(0, abs=1e-6)
    kinds = [type(trainer._role_state[role]["ref_model"]).__name__ for role in ROLES]
    assert kinds == ["Qwen3ForCausalLM", "LlamaForCausalLM"]


def test_one_object_is_copied_for_separate_policies(model_dirs, chat_dataset, make_config, outcome):
    model = AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"])
    trainer, _ = train(model, SharedCredit(outcome), make_config(max_steps=1), chat_dataset)
    policies = trainer.model.policies
    assert policies["thinker"] is model and policies["solver"] is not model
    assert {p.data_ptr() for p in policies["thinker"].parameters()}.isdisjoint(
        p.data_ptr() for p in policies["solver"].parameters()
    )


@pytest.mark.parametrize("sharing", ["separate", "shared", "adapters"])
def test_save_model_writes_a_loadable_folder_per_role(
    sharing, tmp_path, model_dirs, chat_dataset, make_config, outcome
):
    model = (
        {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
        if sharing == "separate"
        else model_dirs["qwen3"]
    )
    peft_config = copy.deepcopy(LORA) if sharing == "adapters" else None
    args = make_config(policy_sharing=sharing, schedule="joint")
    trainer, _ = train(model, SharedCredit(outcome), args, chat_dataset, peft_config=peft_config)
    trainer.save_model(str(tmp_path / "saved"))
    ids = torch.tensor([[5, 6, 7, 8]])
    for role in ROLES:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / role)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved" / role)
        assert tokenizer.get_vocab() == trainer.tokenizers[role].get_vocab()
        trainer.activate_role(role)
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)


# ---- Evaluation, logging, odd input ----


def test_evaluation_during_training(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, max_steps=2, num_solos=2)
    trainer, _ = train(
        model_dirs["qwen3"],
        CounterfactualCredit(outcome),
        args,
        chat_dataset,
        eval_dataset=chat_dataset.select(range(3)),
    )
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert len(rows) == 2
    for key in (
        "eval_credit/joint_accuracy",
        "eval_credit/solo_accuracy",
        "eval_thinker/reward",
        "eval_solver/reward",
    ):
        assert all(math.isfinite(row[key]) for row in rows)


class Arms(MultiAgentGRPOTrainer):
    """Notes what the arms of an evaluation were given, and what became of it."""

    def _accuracy(self, inputs, before, given, group):
        value = super()._accuracy(inputs, before, given, group)
        self.given = [*getattr(self, "given", []), (before, given, value)]
        return value


def test_arms_of_an_evaluation(model_dirs, chat_dataset, make_config, outcome):
    arms = ["without", "ablated", "swapped"]
    args = make_config(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8, max_steps=1, eval_arms=arms)
    data = {"train_dataset": chat_dataset, "eval_dataset": chat_dataset.select(range(2))}
    trainer = Arms(model_dirs["qwen3"], CounterfactualCredit(outcome), args, **data)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "eval_loss" in row)
    assert {"eval_credit/joint_accuracy", "eval_credit/solo_accuracy"} <= row.keys()
    (before, silent, ablated), (_, moved, swapped) = trainer.given  # one batch of two problems, 4 thoughts each
    thoughts = before.said["thinker"].texts
    assert silent == {"thinker": [""] * 8} and moved == {"thinker": thoughts[4:] + thoughts[:4]}
    assert row["eval_credit/ablated_thinker_accuracy"] == ablated
    assert row["eval_credit/swapped_thinker_accuracy"] == swapped
    assert not any("ablated" in name for entry in trainer.state.log_history for name in entry if name[:5] != "eval_")


def test_a_batch_of_one_problem_swaps_nothing(model_dirs, chat_dataset, make_config, outcome):
    """Two batches, of two problems and of one: the metric is the first's."""
    args = make_config(per_device_eval_batch_size=8, eval_arms=["swapped"])
    trainer = Arms(model_dirs["qwen3"], outcome, args, chat_dataset)
    problems = chat_dataset.select([0, 1, 2])
    metrics = trainer.evaluate(problems)
    assert len(trainer.given) == 1 and metrics["eval_credit/swapped_thinker_accuracy"] == trainer.given[0][2]
    trainer.given = []
    trainer.evaluate(chat_dataset.select([0, 0]))  # one problem twice
    assert not trainer.given


@pytest.mark.parametrize(
    ("sizes", "period", "shown"),
    [
        ((1, 1, 1), 3, [0, 3, 6]),
        ((3, 1, 2), 3, [0, 3, 6]),  # a batch begins in the steps 0, 1, 3, 4, 6, 7
        ((4, 1, 1), 3, [0, 4]),  # 0, 4: the first since 3
        ((2, 2, 1), 2, [0, 4]),
        ((1, 1, 2), 2, [0, 0, 2, 2, 4, 4, 6, 6]),  # two batches a step
    ],
)
def test_when_removals_are_shown(sizes, period, shown):
    names = ("steps_per_generation", "num_iterations", "gradient_accumulation_steps")
    args = SimpleNamespace(**dict(zip(names, sizes, strict=True)), removal_eval_steps=period)
    micro = sizes[0] * sizes[1]
    begins = [n * micro // sizes[2] for n in range(20) if n * micro // sizes[2] < 8]
    of = MultiAgentGRPOTrainer._shows_removals
    seen = [s for s in begins if of(SimpleNamespace(args=args, state=SimpleNamespace(global_step=s)))]
    assert seen == shown


def test_an_evaluation_without_arms_draws_none(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, max_steps=1, eval_arms=[])
    trainer, _ = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset, eval_dataset=chat_dataset)
    row = next(row for row in trainer.state.log_history if "eval_loss" in row)
    assert "eval_credit/joint_accuracy" in row and "eval_credit/solo_accuracy" not in row


@pytest.mark.parametrize(
    ("settings", "topology", "message"),
    [
        ({"eval_arms": ["removed"]}, None, r"`eval_arms` must be a list of \['without', 'ablated', 'swapped'\], got"),
        ({"eval_arms": "ablated"}, None, "`eval_arms` must be a list of"),
        ({"removal_eval_steps": 0}, None, "`removal_eval_steps` must be an integer of at least 1, got 0"),
        (
            {"removal_eval_steps": 2},
            Vote(2),
            "`removal_eval_steps=2` has no effect, because no role can be left out of the team",
        ),
        (
            {"num_solos": 2, "eval_strategy": "steps", "eval_arms": []},
            None,
            "`num_solos=2` has no effect: it is for answers of the team without a role",
        ),
        ({"eval_arms": ["ablated"]}, Vote(2), r"nobody reads another among \['voter_1', 'voter_2'\]"),
        ({"eval_arms": ["swapped"], "per_device_eval_batch_size": 4}, None, "an evaluation's batch holds one"),
    ],
)
def test_arms_that_cannot_be(settings, topology, message, model_dirs, chat_dataset, make_config, outcome):
    with pytest.raises(ValueError, match=message):
        args = make_config(**settings)
        MultiAgentGRPOTrainer(model_dirs["qwen3"], SharedCredit(), args, chat_dataset, topology=topology)


def test_removals_for_the_metrics_alone(model_dirs, chat_dataset, make_config, outcome):
    """Every second step is seen without the Thinker. Published CCPO in a Solver block, and shared credit, learn on."""
    args = make_config(removal_eval_steps=2, max_steps=3, schedule="joint", log_completions=True)
    args.num_completions_to_print = 0
    trainer, _ = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset)
    rows = [row for row in trainer.state.log_history if "credit/joint_accuracy" in row]
    assert ["credit/solo_accuracy" in row for row in rows] == [True, False, True]
    assert [row["rollout/solo_tokens"] > 0 for row in rows] == [True, False, True]
    tables = [pd.read_parquet(f"{args.output_dir}/completions/completions_{i:05d}.parquet") for i in (1, 2, 3)]
    assert [table["solo_answer"].notna().all() for table in tables] == [True, False, True]
    assert tables[1]["solo_answer"].isna().all()  # no other batch's


def test_how_many_passes_are_shown(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(removal_eval_steps=1, max_steps=1, schedule="joint", num_solos=2)
    trainer, _ = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset)
    assert trainer.seen[0][0].outcomes[0].without["thinker"].shape == (1, 2)


def test_credit_does_not_look_at_what_is_shown(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(removal_eval_steps=1, max_steps=1, schedule="joint", skip_uninformative_solos=True)
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(outcome), args, chat_dataset)
    rollout, rewards, *_ = trainer.seen[0]
    assert rollout.shown == {"thinker"} and "thinker" in rollout.outcomes[0].without
    torch.testing.assert_close(rewards["thinker"], rewards["solver"])  # no bonus: the credit is shared


def test_completions_table_has_a_row_per_episode(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(schedule="joint", log_completions=True, num_completions_to_print=0, num_solves=2, max_steps=2)
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(outcome), args, chat_dataset)
    folder = f"{args.output_dir}/completions"
    for step in (1, 2):
        table = pd.read_parquet(f"{folder}/completions_{step:05d}.parquet")
        rollout, rewards, advantages, _ = trainer.seen[step - 1]
        assert len(table) == 8  # 4 thoughts, 2 answers each
        assert table["joint_answer"].tolist() == rollout.episodes.answers
        assert table["thought"].tolist() == [t for t in rollout.episodes.said["thinker"].texts for _ in range(2)]
        solos = rollout.episodes.without["thinker"]["solver"].texts
        assert table["solo_answer"].tolist() == [s for s in solos for _ in range(2)]
        assert table["outcome"].tolist() == rollout.outcomes[0].team.flatten().tolist()
        for role, repeat in (("thinker", 2), ("solver", 1)):
            assert table[f"{role}_credit"].tolist() == rewards[role].repeat_interleave(repeat).tolist()
            assert table[f"{role}_advantage"].tolist() == advantages[role].repeat_interleave(repeat).tolist()
        assert not {"prompt", "completion", "advantage"} & {*table.columns}  # which would be others a second time


def test_table_of_a_thinker_block_leaves_the_solver_out(model_dirs, chat_dataset, make_config, outcome, capsys):
    args = make_config(log_completions=True, num_completions_to_print=1, max_steps=1)
    train(model_dirs["qwen3"], CounterfactualCredit(outcome), args, chat_dataset)
    table = pd.read_parquet(f"{args.output_dir}/completions/completions_00001.parquet")
    assert table["solver_advantage"].isna().all() and table["solver_credit"].isna().all()
    assert table["thinker_advantage"].notna().all() and table["solo_answer"].notna().all()


def test_wandb_gets_metrics_and_table(tmp_path, monkeypatch, model_dirs, chat_dataset, make_config, outcome):
    """The real package in offline mode."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged = []
    args = make_config(
        report_to="wandb", log_completions=True, num_completions_to_print=0, schedule="joint", max_steps=1
    )

    class Keep(TrainerCallback):
        def on_train_begin(self, *_, **__):
            real = wandb.log
            monkeypatch.setattr(wandb, "log", lambda data, *a, **k: (logged.append(data), real(data, *a, **k)))

    trainer = MultiAgentGRPOTrainer(
        model_dirs["qwen3"], CounterfactualCredit(outcome), args, chat_dataset, callbacks=[Keep()]
    )
    trainer.train()
    wandb.finish()
    tables = [data["completions"] for data in logged if "completions" in data]
    assert len(tables) == 1  # a batch is logged once
    columns = {"thought", "joint_answer", "solo_answer", "outcome", "thinker_credit", "solver_advantage", "solution"}
    assert columns | {"problem", "solver_prompt", "thinker_effect"} <= {*tables[0].columns}
    assert any("train/credit/joint_accuracy" in data for data in logged)
    assert list(tmp_path.rglob("*.wandb"))


def test_metrics_out_of_outcome_functions_are_the_teams(model_dirs, chat_dataset, make_config):
    def judge(prompts, completions, log_metric=None, log_extra=None, **kwargs):
        log_metric("answer_length", statistics.fmean(len(c[-1]["content"]) for c in completions))
        log_extra("seen", [c[-1]["content"] for c in completions])
        return [1.0] * len(completions)

    args = make_config(
        log_completions=True, num_completions_to_print=0, schedule="alternate", start_role="solver", max_steps=1
    )
    trainer, _ = train(model_dirs["qwen3"], CounterfactualCredit(judge), args, chat_dataset)
    assert "answer_length" in trainer.state.log_history[0]
    table = pd.read_parquet(f"{args.output_dir}/completions/completions_00001.parquet")
    assert table["seen"].tolist() == table["joint_answer"].tolist()


@pytest.mark.parametrize("column", ["outcome", "thought", "problem", "step"])
def test_a_column_of_an_outcome_function_is_no_other_column(column, model_dirs, chat_dataset, make_config):
    def judge(prompts, completions, log_extra=None, **kwargs):
        log_extra(column, [1.0] * len(completions))
        return [1.0] * len(completions)

    with pytest.raises(ValueError, match=rf"`log_extra\('{column}', ...\)` .* is another column of the completions"):
        train(model_dirs["qwen3"], SharedCredit(judge), make_config(max_steps=1), chat_dataset)


@pytest.mark.parametrize("outcomes", ["nan", "wrong", "right"])
def test_batches_without_signal_train_on(outcomes, model_dirs, chat_dataset, make_config):
    """NaN outcomes and groups that are all wrong or all right give zero advantages, never NaN."""
    value = {"nan": None, "wrong": -1.0, "right": 1.0}[outcomes]

    def judge(prompts, completions, **kwargs):
        return [value] * len(completions)

    for credit in (CounterfactualCredit(judge), SharedCredit(judge)):
        args = make_config(schedule="joint", scale_rewards="group", max_steps=1)
        trainer, snapshots = train(model_dirs["qwen3"], credit, args, chat_dataset)
        assert all((a == 0).all() for a in trainer.seen[0][2].values())
        row = trainer.state.log_history[0]
        assert row["loss"] == 0 and row["credit/unscorable_rate"] == (outcomes == "nan")
        assert row["credit/joint_accuracy"] == {"nan": None, "wrong": 0.0, "right": 1.0}[outcomes]
        assert all(torch.equal(snapshots[0][0][n], snapshots[1][0][n]) for n in snapshots[0][0])
        json.dumps(row)


def test_corrupted_ratings_count_as_invalid_and_training_goes_on(model_dirs, chat_dataset, make_config, outcome):
    credit = SelfEvaluatedCredit(outcome, rating_max_tokens=4, rating_prompt=RATING_PROMPT)
    trainer, _ = train(model_dirs["qwen3"], credit, make_config(schedule="joint"), chat_dataset)
    row = trainer.state.log_history[0]
    assert row["rating/thinker_valid_rate"] == row["rating/solver_valid_rate"] == 0
    assert row["rollout/rating_tokens"] > 0
    rollout, rewards, _, _ = trainer.seen[0]
    assert torch.equal(rewards["thinker"][..., 0], rollout.outcomes[0].team)  # both invalid: no bonus


def test_constrained_ratings_are_always_valid_and_carry_information(model_dirs, chat_dataset, make_config, outcome):
    credit = SelfEvaluatedCredit(
        outcome, rating_mode="constrained", rating_expectation=True, rating_prompt=RATING_PROMPT
    )
    args = make_config(schedule="joint", per_device_train_batch_size=16, max_steps=1)
    trainer, _ = train(model_dirs["qwen3"], credit, args, chat_dataset)
    row = trainer.state.log_history[0]
    assert row["rating/thinker_valid_rate"] == row["rating/solver_valid_rate"] == 1
    assert row["credit/thinker/shared_correlation"] < 0.99999
    shares = trainer.seen[0][0].outcomes[0].shares[..., 0, 0]  # the Thinker's, as it rates itself
    assert ((0.1 < shares) & (shares < 0.9)).all()


def test_empty_completions_and_long_thoughts(model_dirs, chat_dataset, make_config, outcome, tmp_path):
    """A Thinker that says nothing (only the end token), and one that never ends within 10,000 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    tiny |= {"num_key_value_heads": 1, "max_position_embeddings": 16_384}
    for name, bias, length in (("silent", 1e4, 1), ("endless", -1e4, 10_000)):
        model, solver = (make_model("qwen3", tokenizer, seed, **tiny) for seed in (0, 1))
        model.lm_head = torch.nn.Linear(16, len(tokenizer), bias=True)
        torch.nn.init.zeros_(model.lm_head.bias)
        model.lm_head.bias.data[tokenizer.eos_token_id] = bias
        model.config._name_or_path = solver.config._name_or_path = model_dirs["qwen3"]
        args = make_config(
            schedule="joint",
            role_kwargs={"thinker": {"max_completion_length": 10_000}},
            max_steps=1,
            num_generations=2,
            per_device_train_batch_size=2,
            output_dir=str(tmp_path / name),
        )
        trainer, _ = train({"thinker": model, "solver": solver}, CounterfactualCredit(outcome), args, chat_dataset)
        row = trainer.state.log_history[0]
        assert row["thinker/completions/mean_length"] == row["thinker/completions/max_length"] == length
        assert row["thinker/completions/clipped_ratio"] == (0 if name == "silent" else 1)
        assert row["rollout/thought_tokens"] == 2 * length
        assert math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        assert trainer.state.global_step == 1


def test_text_prompts_need_no_chat_template(text_dataset, make_config, outcome, tmp_path):
    tokenizer = make_tokenizer("0123456789+= TJA|PSabcdefghijklmnopqrstuvwxyz", chat=False)
    make_model("qwen3", tokenizer).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    trainer, _ = train(str(tmp_path / "m"), CounterfactualCredit(outcome), make_config(schedule="joint"), text_dataset)
    assert isinstance(trainer.seen[0][0].episodes.said["solver"].prompts[0], str)


@pytest.mark.parametrize("estimator", ["reinforce++", "reinforce++-baseline"])
def test_estimator_of_a_single_role(estimator, model_dirs, chat_dataset, make_config):
    """Solo keeps TRL's rollout and rewards; only the advantages are the estimator's, in the loss and in the table."""
    args = make_config(
        advantage_estimator=estimator, per_device_train_batch_size=16, log_completions=True, max_steps=1
    )
    trainer, _ = train(model_dirs["qwen3"], mixed_outcome, args, chat_dataset, topology=Solo())
    rewards = trainer._rewards_per_func[:, 0].view(-1, 4).tolist()
    expected = slow_advantages(rewards, rewards, None, estimator)
    assert len(set(expected)) > 1
    assert sorted(trainer.micro_batches[0]["advantages"].tolist()) == pytest.approx(sorted(expected), abs=1e-5)
    table = pd.read_parquet(f"{args.output_dir}/completions/completions_00001.parquet")
    assert table["advantage"].tolist() == pytest.approx(expected, abs=1e-5)


def test_activation_checkpointing_is_every_policys(model_dirs, chat_dataset, make_config, outcome):
    args = make_config(gradient_checkpointing=True, max_steps=1)
    model = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    enabled = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            enabled.extend(policy.is_gradient_checkpointing for policy in model.policies.values())

    trainer = MultiAgentGRPOTrainer(model, SharedCredit(outcome), args, chat_dataset, callbacks=[Look()])
    trainer.train()
    assert enabled == [True, True]
    trainer.model.gradient_checkpointing_disable()
    assert not trainer.model.is_gradient_checkpointing
