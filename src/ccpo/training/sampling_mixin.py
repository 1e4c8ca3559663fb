"""[`SamplingMixin`]: stop strings and prefix caching, which TRL does not pass on."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft import PeftModel
from torch import nn

from ..generation.prefix import cache_common_prefix
from ..generation.stops import EndedIds, cut_at_stop
from .policies import AgentPolicies


class SamplingMixin:
    """
    Part of the trainer: stop strings with every backend, and a common prefix that is computed only once.

    It overrides `_generate_single_turn`. transformers gets the tokenizer, which it needs for stop strings. The padding
    after a stop string is cut off, and TRL counts such completions as ended.
    """

    stop_strings: tuple[str, ...] = ()  # those of the active role

    def _init_sampling(self) -> None:
        self.stop_strings = stops_of(self.args.generation_kwargs)
        if self.args.prefix_caching:
            for policy in self.model.policies.values() if isinstance(self.model, AgentPolicies) else [self.model]:
                model = _base(policy)
                if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
                    raise ValueError(
                        "`prefix_caching=True` does not work with activation checkpointing, which the model "
                        "has switched on: it does not keep the keys and values that the cache needs. Switch "
                        "it off in the model, or set `prefix_caching=False`."
                    )
                cache_common_prefix(model)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if not self.stop_strings:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        with self._tokenizer_given():
            completion_ids, log_probs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if not self.use_vllm:  # vLLM already ends completions and their log-probabilities at a stop string
            cut = zip(completion_ids, prompt_ids, strict=True)
            completion_ids = [cut_at_stop(ids, self._tokenizer, self.stop_strings, before)[0] for ids, before in cut]
        return self._with_ends(prompt_ids, completion_ids) if self.topology.is_solo else completion_ids, log_probs

    def _with_ends(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list[list[int]]:
        """The completions. Those that a stop string has ended are marked, so that TRL counts them as ended."""

        def ended(before: list[int], ids: list[int]) -> bool:
            before, last = [*before, *ids[:-1]], ids[-1:]
            return cut_at_stop(last, self._tokenizer, self.stop_strings, before)[1]

        if not self.stop_strings:
            return completion_ids
        return [
            EndedIds(ids, self.eos_token_ids[0]) if ended(before, ids) else ids
            for before, ids in zip(prompt_ids, completion_ids, strict=True)
        ]

    @contextmanager
    def _tokenizer_given(self) -> Iterator[None]:
        """Pass the tokenizer to transformers' `generate` within this context, because TRL does not pass it."""
        active = self.model.policies[self.model.active_agent] if isinstance(self.model, AgentPolicies) else self.model
        model = _base(active)
        before = vars(model).get("generate")
        model.generate = partial(model.generate, tokenizer=self._tokenizer)
        try:
            yield
        finally:
            if before is None:
                del model.generate
            else:
                model.generate = before


def stops_of(generation_kwargs: dict[str, Any] | None) -> tuple[str, ...]:
    """The stop strings among the options of a backend. vLLM calls them `stop`."""
    options = generation_kwargs or {}
    given = options.get("stop_strings") or options.get("stop") or ()
    return (given,) if isinstance(given, str) else tuple(given)


def _base(policy: nn.Module) -> nn.Module:
    """The model without the wrapper that PEFT puts around it for adapters."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy
