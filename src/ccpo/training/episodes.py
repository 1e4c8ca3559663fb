"""The completions table: what its columns are called, how it is written, and how it is printed."""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..evaluation.samples import write_whole
from ..team.prompts import whole_characters
from ..team.topology import Topology
from .output_dir import writing

_OF_ROLE = ("prompt", "outcome", "credit", "advantage", "leaked", "truncated", "rating", "shares")
_LONGEST = 400  # characters of a text that are printed
_HUGE = 2**63  # a file's integers are smaller


def describe_columns(topology: Topology, judge: str) -> dict[str, Any]:
    """
    Where the completions table has what, in plain values for `run.json`. Not every table has every column.

    Args:
        topology ([`Topology`]): the team; of one role alone the table is TRL's.
        judge (`str`): what TRL calls the column of that role's reward.
    """
    if topology.is_solo:
        (name,) = topology.role_names
        columns = {"text": "completion", "advantage": "advantage"}
        episode = {"problem": "prompt", "gold": "solution", "outcome": judge}
        return {"episode": episode, "roles": [{"name": name, "columns": columns}], "removals": []}
    roles, removals = [], []
    for name in topology.role_names:
        columns = {"text": topology.label(name), **{kind: f"{name}_{kind}" for kind in _OF_ROLE}}
        roles.append({"name": name, "columns": columns})
        columns = {"text": topology.label(f"without_{name}"), "outcome": f"without_{name}_outcome"}
        removals.append({"role": name, "columns": {**columns, "effect": f"{name}_effect"}})
    names = {"problem": "problem", "gold": "solution"}
    names |= {name: name for name in ("outcome", "no_answer", "answer_role")}
    return {"episode": names, "roles": roles, "removals": removals}


def effect_of(outcome: float, without: float) -> str | None:
    """What a role's text did: the outcome with it, and in a pass without it. `None` where one is neither."""
    words = {(1, -1): "helped", (-1, 1): "hurt", (1, 1): "both right", (-1, -1): "both wrong"}
    return words.get(((outcome > 0) - (outcome < 0), (without > 0) - (without < 0)))


def as_text(value: Any) -> str | None:
    """A text of whole characters, as a file can hold it; chat messages one after the other, of several with names."""
    if value is None:
        return None
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list) and value and all(isinstance(m, Mapping) and "role" in m for m in value):
        contents = [whole_characters(str(message.get("content"))) for message in value]
        if len(value) == 1:
            return contents[0]
        return "\n\n".join(f"[{message['role']}]\n{text}" for message, text in zip(value, contents, strict=True))
    return whole_characters(json.dumps(value, ensure_ascii=False, default=str))


def as_column(values: Sequence) -> list:
    """A column as a file takes it: values of several kinds, or huge numbers, are all text."""
    kinds = {type(value) for value in values if value is not None}
    is_huge = any(type(value) is int and abs(value) >= _HUGE for value in values)
    if is_huge or not any(kinds <= fit for fit in ({str}, {bool}, {int, float})):
        return list(map(as_text, values))
    return list(values)


def write_table(table: Mapping[str, Sequence], step: int, args: Any, prefix: str = "") -> None:
    """
    Write the rows to `<output_dir>/completions`, in one step, and to wandb and trackio where the run reports to them.

    Args:
        table (`Mapping[str, list]`): column -> values, of one length.
        step (`int`): optimizer steps so far.
        args ([`MultiAgentGRPOConfig`]): says where to.
        prefix (`str`): `"eval_"` of an evaluation.
    """
    rows = len(next(iter(table.values())))
    frame = pd.DataFrame({"step": [step] * rows, **{name: as_column(own) for name, own in table.items()}})
    file = Path(args.output_dir) / "completions" / f"{prefix}completions_{step:05d}.parquet"
    with writing(args, f"completions/{file.name}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, frame.to_parquet())
    if args.log_unique_prompts:
        frame = frame[~frame["problem"].duplicated()]
    for name in ("wandb", "trackio"):
        if name in (args.report_to or ()):
            backend = importlib.import_module(name)
            if name == "trackio" or backend.run is not None:
                backend.log({f"{prefix}completions": backend.Table(dataframe=frame)})


def print_episodes(table: Mapping[str, Sequence], columns: Mapping[str, Any], step: int, count: int | None) -> None:
    """
    Print some rows, spread over the batch, each as a block that a narrow terminal can show.

    Args:
        table (`Mapping[str, list]`), columns (`Mapping`): the rows, and [`describe_columns`].
        step (`int`): optimizer steps so far.
        count (`int`, *optional*): how many rows. Defaults to all.
    """
    rows = len(table["problem"])
    count = rows if count is None else min(count, rows)
    console = Console()
    for i in range(count):
        row = {name: values[i * rows // count] for name, values in table.items()}
        block = Table.grid(padding=(0, 2), expand=True)
        block.add_column(style="bold", no_wrap=True, max_width=20)
        block.add_column(overflow="fold", ratio=1)
        of_episode = columns["episode"]
        parts = [("problem", row["problem"]), ("gold", row.get(of_episode["gold"]))]
        for role in columns["roles"]:
            own = role["columns"]
            parts.append((role["name"], row[own["text"]]))
            told = [kind for kind in ("credit", "advantage") if _is_number(row.get(own[kind]))]
            numbers = [f"{kind} {row[own[kind]]:+.3f}" for kind in told]
            numbers += [kind for kind in ("leaked", "truncated") if row.get(own[kind])]
            parts += [("", ", ".join(numbers))] if numbers else []
        for removal in columns["removals"]:
            text, outcome, effect = (row.get(removal["columns"][kind]) for kind in ("text", "outcome", "effect"))
            if text is not None:
                parts.append((f"without {removal['role']}", text))
                parts.append(("", ", ".join(filter(None, [_verdict(outcome), effect]))))
        for label, text in parts:
            if text is not None:
                block.add_row(label, Text(_shortened(str(text))))
        title = f"step {step}, episode {i * rows // count + 1} of {rows}: {_verdict(row[of_episode['outcome']])}"
        console.print(Panel(block, title=title, title_align="left"))


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isnan(value)


def _verdict(outcome: float | None) -> str:
    if not _is_number(outcome):
        return "unscorable"
    return {1.0: "right", -1.0: "wrong"}.get(outcome, f"{outcome:+.2f}")


def _shortened(text: str) -> str:
    """A long text's two ends; what would move a terminal's cursor is replaced."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    left = len(text) - _LONGEST
    return text if left <= 0 else f"{text[: _LONGEST // 2]} … {left:,} characters … {text[-_LONGEST // 2 :]}"
