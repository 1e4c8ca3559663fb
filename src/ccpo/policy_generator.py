"""A policy in training as a generator, for [`~ccpo.rollout.run_episodes`] and for ratings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from trl.trainer.utils import pad

from .rollout import Prompt

if TYPE_CHECKING:
    from .trainer import MultiAgentGRPOTrainer

Sample = tuple[list[int], list[int], list[float] | None]  # prompt ids, completion ids, their sampling log-probs


class PolicyGenerator:
    """
    Generates with a role's policy through TRL's own generation, and keeps the token ids that the loss needs.

    Args:
        trainer ([`MultiAgentGRPOTrainer`]): the trainer.
        role (`str`): whose policy.

    Attributes:
        samples (`list[Sample]`): what was generated so far, in order.
        scored_tokens (`int`): tokens of the choices made by [`score`].
    """

    def __init__(self, trainer: MultiAgentGRPOTrainer, role: str):
        self.trainer, self.role = trainer, role
        self.samples: list[Sample] = []
        self.scored_tokens = 0

    def __call__(self, prompts: list[Prompt], *, max_new_tokens: int | None = None) -> list[str]:
        """Completions of the prompts, special tokens left out, in their order."""
        trainer = self.trainer
        with trainer.as_role(self.role):
            limit = trainer.generation_config.max_new_tokens
            trainer.generation_config.max_new_tokens = max_new_tokens or limit
            try:
                prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
                completion_ids, log_probs = trainer._generate_single_turn(prompt_ids, images, fields, 1)
            finally:
                trainer.generation_config.max_new_tokens = limit
            self.samples += zip(prompt_ids, completion_ids, log_probs or [None] * len(prompts), strict=True)
            return trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)

    @torch.no_grad()
    def score(self, prompts: list[Prompt], choices: list[list[str]]) -> torch.Tensor:
        """
        Log-probability of each choice as the continuation of its prompt, at the policy's temperature.

        Args:
            prompts (`list`): length n.
            choices (`list[list[str]]`): c choices for each prompt.

        Returns:
            `torch.Tensor` of shape `(n, c)`.
        """
        trainer = self.trainer
        with trainer.as_role(self.role):
            tokenizer, device = trainer.processing_class, trainer.accelerator.device
            prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
            choice_ids = [tokenizer(row, add_special_tokens=False)["input_ids"] for row in choices]
            self.scored_tokens += sum(len(row[0]) for row in choice_ids)
            rows = [torch.tensor(ids) for ids, row in zip(prompt_ids, choice_ids, strict=True) for _ in row]
            tails = [torch.tensor(ids) for row in choice_ids for ids in row]
            parts = [
                (pad(tensors, value, side).to(device), pad([torch.ones_like(t) for t in tensors], 0, side).to(device))
                for tensors, side in ((rows, "left"), (tails, "right"))
                for value in (tokenizer.pad_token_id,)
            ]
            (head, head_mask), (tail, tail_mask) = parts
            log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([head, tail], dim=1),
                torch.cat([head_mask, tail_mask], dim=1),
                tail.size(1),
                batch_size=max(1, trainer.args.per_device_train_batch_size),
            )
            return (log_probs * tail_mask).sum(dim=1).view(len(prompts), -1)
