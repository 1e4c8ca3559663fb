"""A policy in training as a generator of texts."""

from typing import Any

import torch
from trl import GRPOTrainer

from ..generation.inputs import render_prompts
from ..generation.scoring import batches_by_length, common_length, score_choices
from ..team.prompts import Prompt
from .numbers import SAMPLING
from .prompt_checks import context_of, room_for_prompt

CPU_BATCH = 64  # rows of a call; more of them, padded to one length, take a CPU longer per row
Sample = tuple[list[int], list[int], list[float] | None]  # prompt ids, completion ids, their sampling log-probs


class PolicyGenerator:
    """
    Generates with a role's policy through TRL's own generation, and keeps the token ids that the loss needs.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): the trainer.
        role (`str`): whose policy and settings; other roles of the same may use it, too.

    Attributes:
        samples (`list[Sample]`): what was generated so far, in order.
        scored_tokens (`int`): tokens of the choices made by [`score`].
    """

    def __init__(self, trainer: GRPOTrainer, role: str):
        self.trainer, self.role = trainer, role
        self.samples: list[Sample] = []
        self.scored_tokens = 0
        self._known: dict[str, list[int]] = {}  # prompt -> its token ids, until the next call

    @property
    def draws_choices(self) -> bool:
        """Whether [`choose`] can be asked: vLLM generates."""
        return self.trainer.use_vllm

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and completion may have together; `None` where the model does not say."""
        self.trainer.activate_role(self.role)
        return context_of(self.trainer.model.config, self.trainer.args)

    @property
    def prompt_limit(self) -> int | None:
        """Tokens that a prompt may have beside the role's longest completion; `None` where the model does not say."""
        trainer = self.trainer
        trainer.activate_role(self.role)
        agent = trainer.topology.agent_of(self.role)
        return room_for_prompt(trainer.model.config, trainer.args, self.role, agent)

    def count_tokens(self, prompts: list[Prompt]) -> list[int]:
        """Tokens of each prompt; the next call does not make them again."""
        with self.trainer.as_role(self.role):
            return list(map(len, self._tokenize(prompts)))

    def __call__(self, prompts: list[Prompt], *, max_new_tokens: int | None = None) -> list[str]:
        """Completions of the prompts, special tokens left out, in their order."""
        with self.trainer.as_role(self.role):
            prompt_ids = self._tokenize(prompts)
            self._known.clear()
            completion_ids, log_probs = self._generate(prompt_ids, max_new_tokens)
            self.samples += zip(prompt_ids, completion_ids, log_probs or [None] * len(prompts), strict=True)
            return self.trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)

    @property
    def ends(self) -> tuple[str, ...]:
        """What the end-of-sequence tokens that are no special ones say, such as a newline; the longest first."""
        with self.trainer.as_role(self.role):
            tokenizer = self.trainer.processing_class
            ids = {*self.trainer.eos_token_ids} - {*tokenizer.all_special_ids}
            return tuple(sorted({tokenizer.decode([i]) for i in ids} - {""}, key=lambda text: (-len(text), text)))

    def _tokenize(self, prompts: list[Prompt]) -> list[list[int]]:
        """Token ids of the prompts; those of one text, such as a group's, are tokenized once."""
        keys = list(map(repr, prompts))
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        if new:
            render, who = self.trainer._tokenize_prompts, f"role {self.role!r}"
            ids, _, _ = render_prompts(list(new.values()), render, who, self.trainer.folded)
            self._known.update(zip(new, ids, strict=True))
        return [list(self._known[key]) for key in keys]

    def _generate(self, prompt_ids: list[list[int]], max_new_tokens: int | None, **engine_kwargs: Any):
        """Sample with TRL's generation, as the role: completion ids, and their log-probabilities where vLLM says."""
        trainer, training = self.trainer, self.trainer.model.training
        if trainer.use_vllm:
            settings = {name: getattr(trainer, name) for name in SAMPLING}
            settings["max_completion_length"] = max_new_tokens or trainer.max_completion_length
            settings["generation_kwargs"] = {**trainer._engine_kwargs, **engine_kwargs}
            trainer.engines.prepare(trainer.topology.agent_of(self.role), settings)
            return trainer._generate_single_turn(prompt_ids, None, {}, 1)
        limit = trainer.generation_config.max_new_tokens
        self._check_room(prompt_ids, max_new_tokens or limit)
        trainer.generation_config.max_new_tokens = max_new_tokens or limit
        try:
            return self._generate_by_length(prompt_ids)
        finally:
            trainer.generation_config.max_new_tokens = limit
            if trainer.use_transformers_continuous_batching:  # TRL ends it in training mode, also an evaluation's
                trainer.model.train(training)

    def _check_room(self, prompt_ids: list[list[int]], room: int | None) -> None:
        """Raise where a prompt and what is to follow exceed the context; a team's own prompts have been cut."""
        longest, context = max(map(len, prompt_ids), default=0), self.context_length
        if context is not None and longest + (room or 1) > context:
            raise ValueError(
                f"A prompt for role {self.role!r} has {longest} tokens. With the {room or 1} that may follow, "
                f"it exceeds the {context} of its model's context. Shorten it, or use a model with a longer "
                "context."
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
            self._check_room(prompt_ids, max(len(ids) for own in choice_ids for ids in own))
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
