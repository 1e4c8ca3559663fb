"""Check before a model loads that chat templates accept the prompts and that they fit into the contexts."""

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

_FORMS = 16  # the most rows of a dataset that are rendered, each with another order of messages


def context_of(config: Any, args: MultiAgentGRPOConfig) -> int | None:
    """The most tokens that prompt and completion may have together, by the model and by vLLM's engine, if known."""
    limits = (context_length(config), args.vllm_max_model_length if args.use_vllm else None)
    return min((limit for limit in limits if limit is not None), default=None)


def room_for_prompt(config: Any, args: MultiAgentGRPOConfig, role: str, agent: str) -> int | None:
    """
    The most tokens that a role's prompt may have: the context without the longest completion.

    Args:
        config (`PretrainedConfig`): The configuration of the model.
        args ([`MultiAgentGRPOConfig`]): The configuration of the run.
        role (`str`): The role.
        agent (`str`): The agent that plays the role.

    Returns:
        `int` or `None`: 0 or less if the completion alone fills the context. `None` if no limit is known.
    """
    context, options = context_of(config, args), args.sampling_of(role, agent)
    longest = options.get("max_tokens", options["max_new_tokens"])  # the names in vLLM and in transformers
    return None if context is None else context - (longest or 1)


@dataclass
class _Reader:
    """
    Counts the tokens of a role's prompts without its model.

    Args:
        who (`str`): The role, for messages.
        prompt_limit (`int` or `None`): The most tokens that a prompt may have.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer that TRL will use.
        options (`dict`): The options with which TRL will use it.
        said (`set[str]`): For whom it was logged that the template refuses a system message.
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
    Render some rows as the prompts of every role, and look for problems that are too long.

    One row is rendered for each order of messages. Of a streaming dataset, the first generation batch is checked.

    Args:
        datasets (`Mapping[str, Dataset]`): The datasets by name.
        models (`Mapping[str, Any]`): Maps each agent to its model.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`): Maps each agent to its tokenizer.
        args ([`MultiAgentGRPOConfig`]): The configuration.
        topology ([`Topology`]): The team with its prompts.

    Returns:
        `set[str]`: The roles whose templates refuse a system message, for which this was logged. The names are those
        of [`~ccpo.generation.inputs.render_prompts`].

    Raises:
        `ValueError`: If a template refuses a prompt, or if a problem is too long.
    """
    said: set[str] = set()
    configs = {agent: _config(models[agent], args) for agent in topology.agents}
    readers = {}
    for role in topology.role_names:
        agent = topology.agent_of(role)
        if isinstance(tokenizers[agent], PreTrainedTokenizerBase):  # with one role, it may be a processor of images
            limit = room_for_prompt(configs[agent], args, role, agent)
            options = args.chat_template_kwargs or {}
            readers[role] = _Reader(f"role {role!r}", limit, tokenizers[agent], options, said)
    for name, dataset in datasets.items():
        rows = read_rows(dataset, args)
        prompts = list(rows["prompt"]) if isinstance(rows, Dataset) else [row["prompt"] for row in rows]
        firsts: dict[tuple[str, ...], int] = {}  # maps each order of messages to its first row
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
