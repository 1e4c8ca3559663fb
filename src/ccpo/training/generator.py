"""[`PolicyGenerator`]: a policy in training as a generator of texts."""

from typing import Any

import torch
from trl import GRPOTrainer

from ..generation.inputs import render_prompts
from ..generation.scoring import batches_by_length, common_length, score_choices
from ..team.prompts import Prompt
from .numbers import SAMPLING
from .prompt_checks import context_of, room_for_prompt

CPU_BATCH = 64  # the most rows of a batch on a CPU, where padding costs time
Sample = tuple[list[int], list[int], list[float] | None]  # prompt ids, completion ids, log-probabilities of sampling


class PolicyGenerator:
    """
    Generates texts with a role's policy by TRL's own generation, and keeps the token ids that the loss needs.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): The trainer.
        role (`str`): The role whose policy and settings are used. Roles with the same ones may share the generator.

    Attributes:
        samples (`list[Sample]`): What was generated so far, in order.
        scored_tokens (`int`): The number of tokens of the choices made by [`score`].
    """

    def __init__(self, trainer: GRPOTrainer, role: str):
        self.trainer, self.role = trainer, role
        self.samples: list[Sample] = []
        self.scored_tokens = 0
        self._known: dict[str, list[int]] = {}  # maps prompts to their token ids, until the next call

    @property
    def draws_choices(self) -> bool:
        """Whether [`choose`] can be used, which needs vLLM."""
        return self.trainer.use_vllm

    @property
    def context_length(self) -> int | None:
        """The most tokens that prompt and completion may have together; `None` if the model does not say."""
        self.trainer.activate_role(self.role)
        return context_of(self.trainer.model.config, self.trainer.args)

    @property
    def prompt_limit(self) -> int | None:
        """The most tokens that a prompt may have before the longest completion; `None` if the model does not say."""
        trainer = self.trainer
        trainer.activate_role(self.role)
        agent = trainer.topology.agent_of(self.role)
        return room_for_prompt(trainer.model.config, trainer.args, self.role, agent)

    def count_tokens(self, prompts: list[Prompt]) -> list[int]:
        """The number of tokens of each prompt. The next call reuses the tokens."""
        with self.trainer.as_role(self.role):
            return list(map(len, self._tokenize(prompts)))

    def __call__(self, prompts: list[Prompt], *, max_new_tokens: int | None = None) -> list[str]:
        """The completions of the prompts, in the same order, without special tokens."""
        with self.trainer.as_role(self.role):
            prompt_ids = self._tokenize(prompts)
            self._known.clear()
            completion_ids, log_probs = self._generate(prompt_ids, max_new_tokens)
            self.samples += zip(prompt_ids, completion_ids, log_probs or [None] * len(prompts), strict=True)
            return self.trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts of end-of-sequence tokens that are not special tokens, such as a newline; the longest first."""
        with self.trainer.as_role(self.role):
            tokenizer = self.trainer.processing_class
            ids = {*self.trainer.eos_token_ids} - {*tokenizer.all_special_ids}
            return tuple(sorted({tokenizer.decode([i]) for i in ids} - {""}, key=lambda text: (-len(text), text)))

    def _tokenize(self, prompts: list[Prompt]) -> list[list[int]]:
        """The token ids of the prompts. Equal prompts, such as those of a group, are tokenized once."""
        keys = list(map(repr, prompts))
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        if new:
            render, who = self.trainer._tokenize_prompts, f"role {self.role!r}"
            ids, _, _ = render_prompts(list(new.values()), render, who, self.trainer.folded)
            self._known.update(zip(new, ids, strict=True))
        return [list(self._known[key]) for key in keys]

    def _generate(self, prompt_ids: list[list[int]], max_new_tokens: int | None, **engine_kwargs: Any):
        """Sample with TRL's generation, as the role. Returns completion ids, and with vLLM their log-probabilities."""
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
            if trainer.use_transformers_continuous_batching:  # TRL sets training mode afterwards, also in evaluation
                trainer.model.train(training)

    def _check_room(self, prompt_ids: list[list[int]], room: int | None) -> None:
        """Raise a `ValueError` if a prompt with `room` more tokens exceeds the context."""
        longest, context = max(map(len, prompt_ids), default=0), self.context_length
        if context is not None and longest + (room or 1) > context:
            raise ValueError(
                f"A prompt for role {self.role!r} has {longest} tokens. With the {room or 1} that may follow, "
                f"it exceeds the {context} of its model's context. Shorten it, or use a model with a longer "
                "context."
            )

    def _generate_by_length(self, prompt_ids: list[list[int]]):
        """
        Generate with transformers, on a CPU in batches of similar length.

        On a CPU, the cost of a step grows with rows and padding. On an accelerator the rows of a step share its cost,
        so all prompts stay in one batch.
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
        Draw one of the choices for each prompt, with vLLM's structured outputs, which allow no other text.

        Args:
            prompts (`list`): The n prompts.
            prefixes (`list[str]`): The fixed beginning of each reply.
            choices (`list[str]`): The possible continuations.

        Returns:
            `list[int]` of length n: The indices of the drawn choices.
        """
        with self.trainer.as_role(self.role):
            tokenizer = self.trainer.processing_class
            heads = tokenizer(prefixes, add_special_tokens=False)["input_ids"]
            prompt_ids = [ids + head for ids, head in zip(self._tokenize(prompts), heads, strict=True)]
            limit = max(map(len, choices)) + 1  # at most one token for each character, and one for the end
            drawn, _ = self._generate(prompt_ids, limit, structured_outputs={"choice": choices})
            self.scored_tokens += sum(map(len, drawn))
            return [choices.index(text) for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]

    def score(self, prompts: list[Prompt], choices: list[list[str]]) -> torch.Tensor:
        """
        The log-probability of each choice as the continuation of its prompt, at the policy's temperature.

        The number of forward passes depends only on the number of prompts, because weights that are split over
        processes are gathered in each.

        Args:
            prompts (`list`): The n prompts.
            choices (`list[list[str]]`): The c choices of each prompt.

        Returns:
            `torch.Tensor` of shape `(n, c)`: The log-probabilities.
        """
        trainer = self.trainer
        with trainer.as_role(self.role):
            tokenizer, prompt_ids = trainer.processing_class, self._tokenize(prompts)
            choice_ids = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in choices]
            self._check_room(prompt_ids, max(len(ids) for own in choice_ids for ids in own))
            # Counts the tokens of one choice after the common beginning, because all have about the same length.
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
