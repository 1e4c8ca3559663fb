"""What can be known of prompts before any model loads: whether chat templates take them and contexts hold them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, PreTrainedTokenizerBase

from ..generation.inputs import context_length, render_prompts
from ..team.problems import check_problems, prompt_form
from ..team.prompts import Prompt
from ..team.rollout import build_role_prompt
from ..team.topology import Topology
from .config import MultiAgentGRPOConfig
from .input_checks import read_rows

_FORMS = 16  # rows of a dataset that are rendered, each with other messages


def context_of(config: Any, args: MultiAgentGRPOConfig) -> int | None:
    """Tokens that prompt and completion may have together: of the model and vLLM's engine what is less, if known."""
    limits = (context_length(config), args.vllm_max_model_length if args.use_vllm else None)
    return min((limit for limit in limits if limit is not None), default=None)


def room_for_prompt(config: Any, args: MultiAgentGRPOConfig, role: str, agent: str) -> int | None:
    """
    Tokens that a role's prompt may have: what the context leaves beside its longest completion.

    Args:
        config (`PretrainedConfig`): the model's.
        args ([`MultiAgentGRPOConfig`]): lengths and engine.
        role (`str`), agent (`str`): whose.

    Returns:
        `int` or `None`: not more than 0 where the completion alone fills the context; `None` without a known limit.
    """
    context, options = context_of(config, args), args.sampling_of(role, agent)
    longest = options.get("max_tokens", options["max_new_tokens"])  # vLLM's name for it, and transformers'
    return None if context is None else context - (longest or 1)


@dataclass
class _Reader:
    """
    What a role's model will take of prompts, without the model.

    Args:
        who (`str`): the role, for messages.
        prompt_limit (`int` or `None`): tokens that a prompt may have.
        tokenizer (`PreTrainedTokenizerBase`), options (`dict`): with which TRL will make tokens.
        said (`set[str]`): whose template refuses a system message.
    """

    who: str
    prompt_limit: int | None
    tokenizer: PreTrainedTokenizerBase
    options: dict[str, Any]
    said: set[str]

    def count_tokens(self, prompts: list[Prompt], where: Callable[[int], str] | None = None) -> list[int]:
        return list(map(len, render_prompts(prompts, self._render, self.who, self.said, where)))

    def _render(self, prompts: list[Prompt]) -> list[list[int]]:
        if isinstance(prompts[0], str):
            return self.tokenizer(text=prompts)["input_ids"]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **self.options}
        return self.tokenizer.apply_chat_template(prompts, **options)["input_ids"]


def check_prompts(
    datasets: Mapping[str, Any],
    models: Mapping[str, Any],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    args: MultiAgentGRPOConfig,
    topology: Topology,
) -> set[str]:
    """
    Render a few rows as every role's prompt, one of each order of messages, and look for problems that do not fit.
    Of a stream, the first generation batch is looked at.

    Args:
        datasets (`Mapping[str, Dataset]`): by name.
        models (`Mapping[str, Any]`), tokenizers (`Mapping[str, PreTrainedTokenizerBase]`): per agent.
        args ([`MultiAgentGRPOConfig`]): lengths and the template's options.
        topology ([`Topology`]): who is asked what.

    Returns:
        `set[str]`: the roles whose templates refuse a system message, as [`~ccpo.generation.inputs.render_prompts`]
        names them: it has been said.

    Raises:
        `ValueError`: a prompt that a template refuses, or a problem that does not fit, with role, row and remedy.
    """
    said: set[str] = set()
    readers = {}
    for role in topology.role_names:
        agent = topology.agent_of(role)
        if isinstance(tokenizers[agent], PreTrainedTokenizerBase):  # of one role, TRL may process images
            limit = room_for_prompt(_config(models[agent], args), args, role, agent)
            options = args.chat_template_kwargs or {}
            readers[role] = _Reader(f"role {role!r}", limit, tokenizers[agent], options, said)
    for name, dataset in datasets.items():
        rows = read_rows(dataset, args)
        prompts = list(rows["prompt"]) if isinstance(rows, Dataset) else [row["prompt"] for row in rows]
        firsts: dict[tuple[str, ...], int] = {}  # order of messages -> its first row
        for row, prompt in enumerate(prompts):
            firsts.setdefault(prompt_form(prompt), row)
        chosen = list(firsts.values())[:_FORMS]
        names = [f"row {row} of `{name}`" for row in chosen]
        for role, reader in readers.items():
            read = dict.fromkeys(topology[role].reads, "text")
            asked = [build_role_prompt(topology, topology[role], prompts[row], read) for row in chosen]
            reader.count_tokens(asked, names.__getitem__)
        check_problems(name, prompts, topology, readers)
    return said


def _config(model: Any, args: MultiAgentGRPOConfig) -> Any:
    revision = (args.model_init_kwargs or {}).get("revision")
    return getattr(model, "config", None) or AutoConfig.from_pretrained(
        model, revision=revision, trust_remote_code=args.trust_remote_code
    )
