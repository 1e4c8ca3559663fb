"""Check, before anything is generated, that the problems of a dataset fit into the models' contexts."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..calls import call
from .fit import too_long
from .prompts import Prompt, fill
from .role import Role
from .rollout import build_role_prompt
from .topology import Topology

_CHUNK = 256  # rows tokenized at once


def check_problems(name: str, prompts: Sequence[Prompt], topology: Topology, generate: Mapping[str, Any]) -> None:
    """
    Refuse problems that do not fit by themselves, before anything is generated.

    Nearly every tokenizer makes at most one token of a byte, so that only rows with more bytes than the limit leaves
    beside the chat template's tokens are tokenized.

    Args:
        name (`str`): what the error calls the rows' dataset.
        prompts (`Sequence`): the dataset's prompts.
        topology ([`Topology`]): who is asked what, in the team and, of a chain, without each role.
        generate (`Mapping[str, Any]`): role -> an object with `prompt_limit` and `count_tokens`, as for
            [`~ccpo.team.fit.fit_prompts`]; others are passed over.

    Raises:
        `ValueError`: such a problem, with row, role, length and limit.
    """
    limits = {role: getattr(generate.get(role), "prompt_limit", None) for role in topology.role_names}
    asked = [role for role in _asked(topology) if limits[role.name] is not None]
    if not asked:
        return
    forms = list(map(prompt_form, prompts))
    sizes = list(map(_bytes, prompts))
    bare = {form: _bare(prompt) for form, prompt in zip(forms, prompts, strict=True)}
    for role in asked:
        limit, count = limits[role.name], generate[role.name].count_tokens
        own = dict(zip(bare, call(count, list(bare.values())), strict=True))  # the chat template's tokens
        template = role.prompt or "{problem}"
        nothing = dict.fromkeys(role.reads, "")
        times, fixed = template.count("{problem}"), _bytes(fill(template, problem="", **nothing))
        rows = [row for row, form in enumerate(forms) if sizes[row] * times + fixed + own[form] > limit]
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            lengths = call(count, [build_role_prompt(topology, role, prompts[row], nothing) for row in part])
            for row, length in zip(part, lengths, strict=True):
                if length > limit:
                    raise too_long(role.name, f"row {row} of `{name}`", length, limit)


def _asked(topology: Topology) -> list[Role]:
    """The roles with their templates, and once more with those of the passes without a role."""
    removable = [name for name in topology.role_names if topology.is_chain and topology.removable(name)]
    alone = [role for name in removable for role in topology.without(name) if name in topology[role.name].reads]
    return [*topology.roles, *alone]


def prompt_form(prompt: Prompt) -> tuple[str, ...]:
    """Whose messages a prompt has, in their order; nothing of a text."""
    return () if isinstance(prompt, str) else tuple(str(message.get("role")) for message in prompt)


def _bare(prompt: Prompt) -> Prompt:
    """A prompt of the same form with next to nothing in it."""
    return "x" if isinstance(prompt, str) else [{**message, "content": "x"} for message in prompt]


def _bytes(prompt: Prompt) -> int:
    """UTF-8 bytes of what a prompt says."""
    texts = [prompt] if isinstance(prompt, str) else [str(v) for m in prompt for k, v in m.items() if k != "role"]
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)
