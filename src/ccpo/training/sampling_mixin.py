"""How a policy samples, beyond what TRL passes on: stop strings and prefix caching."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft import PeftModel
from torch import nn

from ..generation.prefix import cache_common_prefix
from ..generation.stops import cut_at_stop
from .policies import AgentPolicies


class SamplingMixin:
    """
    Over a [`~trl.GRPOTrainer`]: stop strings with every backend, and a common prefix that is read once.

    Overrides:

    - `_generate_single_turn`: transformers gets the tokenizer that it needs for stop strings, and what fills a batch
      up behind one is cut off.

    TRL takes a completion for ended if its last token is an end-of-sequence token. For as long as completions are
    counted that stop strings have ended, the last tokens of these are such tokens, too.
    """

    stop_strings: tuple[str, ...] = ()  # of the role, while the trainer is one

    def _init_sampling(self) -> None:
        self.stop_strings = stops_of(self.args.generation_kwargs)
        self._own_ends = self.eos_token_ids
        if self.args.prefix_caching:
            for policy in self.model.policies.values() if isinstance(self.model, AgentPolicies) else [self.model]:
                cache_common_prefix(_base(policy))

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if not self.stop_strings:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if self.topology.is_solo:
            self.eos_token_ids = self._own_ends
        with self._tokenizer_given():
            completion_ids, log_probs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        completion_ids = [cut_at_stop(ids, self._tokenizer, self.stop_strings)[0] for ids in completion_ids]
        if self.topology.is_solo:
            self._count_stops(completion_ids)
        return completion_ids, log_probs

    def _count_stops(self, completion_ids: list[list[int]]) -> None:
        """The last tokens of completions that a stop string has ended become end-of-sequence tokens."""
        cut = [cut_at_stop(ids, self._tokenizer, self.stop_strings) for ids in completion_ids]
        self.eos_token_ids = [*self.eos_token_ids, *sorted({ids[-1] for ids, stopped in cut if stopped})]

    @contextmanager
    def _tokenizer_given(self) -> Iterator[None]:
        """transformers' `generate` gets the tokenizer: TRL does not pass it."""
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
    """The stop strings among the options of a backend; vLLM calls them `stop`."""
    options = generation_kwargs or {}
    given = options.get("stop_strings") or options.get("stop") or ()
    return (given,) if isinstance(given, str) else tuple(given)


def _base(policy: nn.Module) -> nn.Module:
    """The model itself, of one with adapters."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy
