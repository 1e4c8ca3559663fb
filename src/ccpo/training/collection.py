"""One generation batch of the trainer: the team's pass with the policies in training, its outcomes and its log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, gather_object
from trl.data_utils import is_conversational

from ..calls import unanswered
from ..generation.scoring import batches_by_length, common_length, score_choices
from ..rewards import credit_metrics, rating_metrics
from ..team.answers import reader_of
from ..team.rollout import Episodes, Prompt, assign_solos, run_episodes
from .config import SAMPLING

if TYPE_CHECKING:
    from .trainer import MultiAgentGRPOTrainer

CPU_BATCH = 64  # rows of a call; more of them, padded to one length, take a CPU longer per row
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")  # names of learned ones: GPT-2, OPT, BERT
Sample = tuple[list[int], list[int], list[float] | None]  # prompt ids, completion ids, their sampling log-probs


class PolicyGenerator:
    """
    Generates with a role's policy through TRL's own generation, and keeps the token ids that the loss needs.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): the trainer.
        role (`str`): whose policy.
        arm (`str`): what the time of its completions counts for.

    Attributes:
        samples (`list[Sample]`): what was generated so far, in order.
        scored_tokens (`int`): tokens of the choices made by [`score`].
    """

    def __init__(self, trainer: MultiAgentGRPOTrainer, role: str, arm: str):
        self.trainer, self.role, self.arm = trainer, role, arm
        self.samples: list[Sample] = []
        self.scored_tokens = 0

    @property
    def draws_choices(self) -> bool:
        """Whether [`choose`] can be asked: vLLM generates."""
        return self.trainer.use_vllm

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and completion may have together; `None` where the model does not say."""
        self.trainer._activate(self.role)
        length = getattr(self.trainer.model.config.get_text_config(), "max_position_embeddings", None)
        engine = self.trainer.args.vllm_max_model_length if self.trainer.use_vllm else None
        return min((limit for limit in (length, engine) if limit is not None), default=None)

    def __call__(self, prompts: list[Prompt], *, max_new_tokens: int | None = None) -> list[str]:
        """Completions of the prompts, special tokens left out, in their order."""
        with self.trainer.as_role(self.role), self.trainer._clock.measure(self.arm):
            prompt_ids = self._tokenize(prompts)
            completion_ids, log_probs = self._generate(prompt_ids, max_new_tokens)
            self.samples += zip(prompt_ids, completion_ids, log_probs or [None] * len(prompts), strict=True)
            return self.trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)

    def _tokenize(self, prompts: list[Prompt]) -> list[list[int]]:
        """Token ids of the prompts; those of one text, such as a group's, are tokenized once."""
        keys = [json.dumps(prompt) for prompt in prompts]
        unique = dict(zip(keys, prompts, strict=True))
        ids, _, _ = self.trainer._tokenize_prompts(list(unique.values()))
        of_text = dict(zip(unique, ids, strict=True))
        return [list(of_text[key]) for key in keys]

    def _generate(self, prompt_ids: list[list[int]], max_new_tokens: int | None, **engine_kwargs: Any):
        """Sample with TRL's generation, as the role: completion ids, and their log-probabilities where vLLM says."""
        trainer, training = self.trainer, self.trainer.model.training
        if trainer.use_vllm:
            settings = {name: getattr(trainer, name) for name in SAMPLING}
            settings["max_completion_length"] = max_new_tokens or trainer.max_completion_length
            settings["generation_kwargs"] = {**trainer._engine_kwargs, **engine_kwargs}
            trainer.engines.prepare(self.role, settings)
            return trainer._generate_single_turn(prompt_ids, None, {}, 1)
        limit = trainer.generation_config.max_new_tokens
        if prompt_ids and (max_new_tokens or limit):
            self._check_positions(max(map(len, prompt_ids)), max_new_tokens or limit)
        trainer.generation_config.max_new_tokens = max_new_tokens or limit
        try:
            return self._generate_by_length(prompt_ids)
        finally:
            trainer.generation_config.max_new_tokens = limit
            if trainer.use_transformers_continuous_batching:  # TRL ends it in training mode, also an evaluation's
                trainer.model.train(training)

    def _check_positions(self, longest: int, limit: int) -> None:
        """Raise where a model that learned its positions, as GPT-2 did, would be asked for one that it has not."""
        model, available = self.trainer.model, self.context_length
        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)]
        learned = any(name.endswith(_POSITIONS) for name in names)
        if learned and available is not None and longest + limit > available:
            raise ValueError(
                f"The {self.role}'s longest prompt has {longest} tokens, which with `max_completion_length={limit}` "
                f"is more than the {available} positions that its model has. Lower `max_completion_length` (the "
                "solver's prompt holds the thinker's completion; `role_kwargs`), or leave out long problems."
            )

    def _generate_by_length(self, prompt_ids: list[list[int]]):
        """
        With transformers. A decode step costs a CPU by the row and its padding: there, many prompts go out in batches
        by length. On an accelerator, where the rows of a step share its cost, they stay together.
        """
        trainer = self.trainer
        pads = trainer.accelerator.device.type == "cpu" and not trainer.use_transformers_continuous_batching
        completion_ids: list[list[int]] = [[]] * len(prompt_ids)
        for rows in batches_by_length(list(map(len, prompt_ids)), CPU_BATCH if pads else None):
            drawn, _ = trainer._generate_single_turn([prompt_ids[i] for i in rows], None, {}, 1)
            for i, ids in zip(rows, drawn, strict=True):
                completion_ids[i] = ids
        return completion_ids, None

    def choose(self, prompts: list[Prompt], prefixes: list[str], choices: list[str]) -> list[int]:
        """
        One of the choices for each prompt, drawn by vLLM's structured outputs, which allow no other text.

        Args:
            prompts (`list`): length n.
            prefixes (`list[str]`): what each reply begins with, not sampled.
            choices (`list[str]`): how it may go on.

        Returns:
            `list[int]` of length n: the index of what was drawn.
        """
        with self.trainer.as_role(self.role):
            tokenizer = self.trainer.processing_class
            heads = tokenizer(prefixes, add_special_tokens=False)["input_ids"]
            prompt_ids = [ids + head for ids, head in zip(self._tokenize(prompts), heads, strict=True)]
            limit = max(map(len, choices)) + 1  # a token per character at most, and the end
            drawn, _ = self._generate(prompt_ids, limit, structured_outputs={"choice": choices})
            self.scored_tokens += sum(map(len, drawn))
            return [choices.index(text) for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]

    def score(self, prompts: list[Prompt], choices: list[list[str]]) -> torch.Tensor:
        """
        Log-probability of each choice as the continuation of its prompt, at the policy's temperature.

        The same number of forward passes for the same number of prompts: sharded weights are gathered in each.

        Args:
            prompts (`list`): length n.
            choices (`list[list[str]]`): the c choices of each prompt.

        Returns:
            `torch.Tensor` of shape `(n, c)`.
        """
        trainer = self.trainer
        with trainer.as_role(self.role):
            tokenizer, prompt_ids = trainer.processing_class, self._tokenize(prompts)
            choice_ids = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in choices]
            # What decides, of one choice: they are of one length, or nearly.
            self.scored_tokens += sum(len(own[0]) - common_length(own) for own in choice_ids)
            size = max(1, trainer.args.per_device_train_batch_size)
            options = {
                "pad_id": tokenizer.pad_token_id,
                "temperature": trainer.temperature,
                "device": trainer.accelerator.device,
            }
            batches = [slice(i, i + size) for i in range(0, len(prompts), size)]
            return torch.cat(
                [score_choices(trainer.model, prompt_ids[rows], choice_ids[rows], **options) for rows in batches]
            )


@dataclass
class Rollout:
    """
    One pass of the team: this process's texts and samples, and the outcomes and ratings of the global batch.

    Attributes:
        joint (`torch.Tensor` of shape `(P, G, K, F)`), solo (`torch.Tensor` of shape `(P, S, F)` or `None`):
            outcomes by each of the F outcome functions.
        shares (`dict[int, dict[str, torch.Tensor]]`): per column that rates, `<role>_share` of shape `(P, G, K)`.
        extras (`dict[str, list]`): columns of the completions table that the outcome functions log, a row per answer.
    """

    episodes: Episodes
    samples: dict[str, list]
    joint: torch.Tensor
    solo: torch.Tensor | None
    shares: dict[int, dict[str, torch.Tensor]]
    extras: dict[str, list]


def collect(trainer: MultiAgentGRPOTrainer, inputs: list[dict[str, Any]], in_turn: tuple[str, ...]) -> Rollout:
    """
    One pass of the team, its outcomes over the global batch, and what else the credit of this step uses.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): the trainer.
        inputs (`list[dict]`): this process's rows.
        in_turn (`tuple[str, ...]`): the roles trained from this batch.

    Returns:
        [`Rollout`]
    """
    training, state = trainer.model.training, trainer.accelerator
    group = trainer.num_generations if training else trainer.num_generations_eval
    answers, solos = trainer.args.num_solves, trainer.args.num_solos or group
    needs_solo = not training or (trainer.args.advantage_estimator == "counterfactual" and "thinker" in in_turn)
    solo_rows, valid = [], None
    if needs_solo or any(allocator.needs_solo(in_turn) for allocator in trainer.allocators):
        rows, valid = assign_solos(len(inputs), state.num_processes, group, solos)
        solo_rows = rows[state.process_index]
    arms = {"thinker": "thought", "solver": "answers"}
    generators = {role: PolicyGenerator(trainer, role, arm) for role, arm in arms.items()}
    prompts = [row["prompt"] for row in inputs]
    clock = trainer._clock
    with clock.measure("answers"):
        reader = reader_of(trainer.allocators[_judge(trainer)].outcome)
        options = {"num_solves": answers, "solo_rows": solo_rows, "reader": reader}
        episodes = run_episodes(trainer.topology, prompts, generators, **options)
    samples = {role: list(generator.samples) for role, generator in generators.items()}
    solo_samples = samples["solver"][len(episodes.answers) :]
    samples["solver"] = samples["solver"][: len(episodes.answers)]

    # The outcome functions judge joint and solo answers in one call; TRL gathers.
    judged = [row for row in inputs for _ in range(answers)] + [inputs[i] for i in solo_rows]
    texts = episodes.answers + episodes.solos
    chat = is_conversational(inputs[0])
    with clock.measure("verify"):
        outcome = trainer._calculate_rewards(
            judged,
            [row["prompt"] for row in judged],
            [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            [completion for _, completion, _ in samples["solver"] + solo_samples],
        ).view(state.num_processes, len(judged), -1)  # (W, nK + m, F)
    # What the outcome functions logged for the table: the team's answers are its rows, the solos are not.
    extras = {name: values[: len(episodes.answers)] for name, values in trainer._pending_extra_logs.items()}
    trainer._pending_extra_logs.clear()
    joint = outcome[:, : len(episodes.answers)].reshape(-1, group, answers, outcome.size(-1))  # (P, G, K, F)
    solo = None
    if solo_rows:
        solo = outcome[:, len(episodes.answers) :].flatten(0, 1)[torch.tensor(valid)]
        solo = solo.view(-1, solos, outcome.size(-1))  # (P, S, F)
    answered = {role: len(generator.samples) for role, generator in generators.items()}
    for generator in generators.values():
        generator.arm = "rating"
    one = trainer.args.policy_sharing == "shared" and not trainer.args.role_kwargs  # one policy, sampled one way
    # The Solver first: an engine in common holds its weights.
    raters = {role: generators["solver" if one else role] for role in reversed(generators)}
    shares = {}
    only_outcomes = trainer.args.advantage_estimator == "counterfactual" and in_turn == ("thinker",)  # A = R - b
    for column, allocator in enumerate(trainer.allocators):
        allocator.check_outcomes(joint[..., column], None if solo is None else solo[..., column])
        if allocator.needs_ratings(in_turn) and not only_outcomes:
            verdicts = joint[..., column].reshape(state.num_processes, -1)[state.process_index]
            with clock.measure("rating"):
                rated = allocator.rate(raters, episodes, verdicts.cpu())
            shares[column] = {
                f"{role}_share": gather(share.to(state.device)).view(joint.shape[:3]) for role, share in rated.items()
            }
    joint_tokens, solo_tokens = (sum(len(ids) for _, ids, _ in drawn) for drawn in (samples["solver"], solo_samples))
    clock.split("answers", {"joint": joint_tokens, "solo": solo_tokens})  # one call draws both
    if not training:
        clock.tokens["eval"].clear()  # of an evaluation that failed
    tokens = clock.tokens["train" if training else "eval"]
    tokens["thought"] += sum(len(ids) for _, ids, _ in samples["thinker"])
    tokens["joint"] += joint_tokens
    tokens["solo"] += solo_tokens
    tokens["verify"] += joint_tokens + solo_tokens
    tokens["rating"] += sum(
        generator.scored_tokens + sum(len(ids) for _, ids, _ in generator.samples[answered[role] :])
        for role, generator in generators.items()
    )
    return Rollout(episodes, samples, joint, solo, shares, extras)


def _judge(trainer: MultiAgentGRPOTrainer) -> int:
    """Of several reward functions, the first whose outcomes are right or wrong: what "accuracy" and "answer" mean."""
    return next((f for f, allocator in enumerate(trainer.allocators) if allocator.strict_outcomes), 0)


def log_rollout(trainer: MultiAgentGRPOTrainer, rollout: Rollout, rewards: dict, advantages: dict) -> None:
    """The credit metrics, and one row of the completions table per answer."""
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    episodes = rollout.episodes
    judge = _judge(trainer)
    joint, solo = rollout.joint[..., judge], None if rollout.solo is None else rollout.solo[..., judge]
    values = credit_metrics(joint, solo)
    for share in rollout.shares.values():
        values |= rating_metrics(joint, **share)
    missing = unanswered(trainer.allocators[judge].outcome, episodes.answers)
    counts = torch.tensor([sum(episodes.leaked), sum(missing or [])], device=trainer.accelerator.device)
    leaked, without = trainer.accelerator.reduce(counts, reduction="sum").tolist()
    values["credit/leak_rate"] = leaked / (len(episodes.thoughts) * trainer.accelerator.num_processes)
    if missing is not None:
        values["credit/no_answer_rate"] = without / joint.numel()
        if trainer.model.training and trainer.accelerator.is_main_process:
            trainer.allocators[judge].warn_of_no_answers(without, joint.numel())
    if not trainer.model.training:  # an optimizer step logs its own at its end
        values |= {f"rollout/{arm}_tokens": count for arm, count in trainer._clock.total_tokens("eval").items()}
    for name, value in values.items():
        metrics[name].append(value)

    k = trainer.args.num_solves
    solos = dict(zip(reversed(episodes.solo_rows), reversed(episodes.solos), strict=True))  # a row's first solo
    texts = [
        (episodes.prompts[i // k], answer, episodes.thoughts[i // k], solos.get(i // k))
        for i, answer in enumerate(episodes.answers)
    ]
    prompts, answers, thoughts, solo_answers = zip(*gather_object(texts), strict=True)
    trainer._logs["prompt"].extend(prompts)
    trainer._logs["completion"].extend(answers)
    columns = {
        "thought": thoughts,
        "joint_answer": answers,
        "solo_answer": solo_answers,
        "outcome": joint.flatten().tolist(),
    }
    for role in trainer.roles:
        repeats = k if role == "thinker" else 1
        for kind, values in (("credit", trainer._combine(rewards[role])), ("advantage", advantages.get(role))):
            in_turn = role in advantages  # out of turn, the credit lacks what only its own turn draws
            columns[f"{role}_{kind}"] = (
                values.repeat_interleave(repeats).tolist() if in_turn else [None] * len(answers)
            )
    for name in sorted(set(gather_object(list(rollout.extras)))):
        columns[name] = gather_object(rollout.extras.get(name, [None] * len(texts)))
    for name, values in columns.items():
        trainer._logs["extra"][name].extend(values)
    shown = advantages["solver"].flatten().tolist() if "solver" in advantages else [float("nan")] * len(answers)
    trainer._logs["advantages"].extend(shown)
