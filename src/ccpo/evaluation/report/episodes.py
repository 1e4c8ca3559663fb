"""The episodes of a report: all that were logged, or a sample that a browser can show."""

import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq

from .run import ReportError, Run

EFFECTS = ("helped", "hurt", "both right", "both wrong")
_FLAGS = ("leaked", "truncated")
CHARACTERS = 60_000_000  # of all texts together; a browser opens so many in a second or two


@dataclass
class Episodes:
    """
    Some of the episodes of a run.

    Attributes:
        columns (`dict[str, list]`): `step` and the columns of the table, with a value for each episode.
        logged (`int`): The number of episodes that the run has logged.
    """

    columns: dict[str, list]
    logged: int


def read_episodes(run: Run, most: int, seed: int = 0) -> Episodes:
    """
    Read episodes of a run: all of them, or a sample.

    A sample has each category in its proportion, and at least a few episodes of each. Half of them are random. The
    other half have the same problems in all steps, so that a problem can be seen early and late. To save time, only
    the columns with the categories are read from all tables, and texts only for the sampled rows.

    Args:
        run ([`Run`]): The run.
        most (`int`): The most episodes to read.
        seed (`int`, defaults to 0): The seed of the sample.

    Raises:
        `ReportError`: If a table cannot be read.
    """
    columns = run.info.get("columns") or {}
    places = [(step, row) for step, file in run.tables.items() for row in range(_rows(file))]
    chosen = places
    if len(places) > most:
        strata: dict[tuple, list[tuple[int, tuple[int, int]]]] = defaultdict(list)
        for step, file in run.tables.items():
            for row, (category, problem) in enumerate(_categories(file, columns)):
                strata[category].append((problem, (step, row)))
        chosen = _sample(strata, most, random.Random(seed))
    by_step: dict[int, list[int]] = defaultdict(list)
    for step, row in sorted(chosen):
        by_step[step].append(row)
    found: dict[str, list] = {"step": []}
    for step, rows in by_step.items():
        table = _read(run.tables[step]).take(pa.array(rows)).to_pydict()
        before = len(found["step"])
        for name in dict.fromkeys([*found, *table]):
            found.setdefault(name, [None] * before).extend(table.get(name) or [None] * len(rows))
    return Episodes({name: list(map(_plain, values)) for name, values in found.items()}, len(places))


def characters(run: Run) -> float:
    """Estimate how many characters an episode of a run has."""
    metadata = [pq.read_metadata(file) for file in run.tables.values() if _rows(file)]
    size = sum(m.row_group(i).total_byte_size for m in metadata for i in range(m.num_row_groups))
    return size / max(1, sum(m.num_rows for m in metadata))


def share_out(runs: Sequence[Run], most: int) -> list[int]:
    """How many episodes of each run are in the report: together `most`, or as many as a browser can show."""
    logged = [sum(map(_rows, run.tables.values())) for run in runs]
    sizes = [characters(run) for run in runs]
    limits, left = [0] * len(runs), most
    for place, i in enumerate(sorted(range(len(runs)), key=lambda i: logged[i])):  # small runs leave room for others
        part = left // (len(runs) - place)
        fits = int(CHARACTERS / len(runs) / max(1.0, sizes[i]))
        limits[i] = max(1, min(logged[i], part, fits))
        left -= limits[i]
    return limits


def _sample(strata: dict[tuple, list], most: int, rng: random.Random) -> list[tuple[int, int]]:
    total, chosen = sum(map(len, strata.values())), []
    least = max(2, most // (4 * len(strata)))  # of each category, so that rare ones are shown
    sizes = {c: min(len(rows), max(least, most * len(rows) // total)) for c, rows in strata.items()}
    while free := most - sum(sizes.values()):  # the largest categories give up or get the difference
        if free < 0:
            largest = max(sizes, key=sizes.get)
            sizes[largest] -= min(-free, max(1, sizes[largest] // 2))
        else:
            largest = max(sizes, key=lambda category: len(strata[category]) - sizes[category])
            sizes[largest] += min(free, len(strata[largest]) - sizes[largest])
    for category, rows in strata.items():
        rng.shuffle(rows)
        apart = sizes[category] // 2
        rest = sorted(rows[apart:])  # sorted by problem
        chosen += [place for _, place in rows[:apart] + rest[: sizes[category] - apart]]
    return chosen


def _categories(file: Path, columns: dict[str, Any]) -> list[tuple[tuple, int]]:
    """For each row its category, and a number that is the same for its problem in all tables."""
    episode, roles, removals = columns["episode"], columns["roles"], columns["removals"]
    effects = [removal["columns"]["effect"] for removal in removals]
    flags = [[role["columns"].get(flag) for role in roles] for flag in _FLAGS] + [[episode.get("no_answer")]]
    known = pq.read_schema(file).names
    wanted = [n for n in (episode["outcome"], *effects, *(n for names in flags for n in names)) if n in known]
    table = _read(file, [*wanted, episode["problem"]] if episode["problem"] in known else wanted).to_pydict()
    problems = table.pop(episode["problem"], None)
    kinds = []
    for row in range(_rows(file)):
        outcome = table.get(episode["outcome"], {}) and table[episode["outcome"]][row]
        right = None if outcome is None or math.isnan(outcome) else outcome > 0
        odd = (any(table[name][row] for name in names if name in table) for names in flags)
        kinds.append((str(right), *(str(table[name][row]) for name in effects if name in table), *odd))
    hashes = (
        [crc32(repr(problem).encode("utf-8", "replace")) for problem in problems] if problems else [0] * len(kinds)
    )
    return list(zip(kinds, hashes, strict=True))


def _rows(file: Path) -> int:
    try:
        return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from None


def _read(file: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> ReportError:
    words = str(error).splitlines()[0]
    return ReportError(
        f"{file} is not a complete table of episodes ({words}). Delete it, and the report is made without it."
    )


def _plain(value: Any) -> Any:
    """Turn a value into one that JSON has. Chat messages become text."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, list):
        messages = [message for message in value if isinstance(message, dict) and "content" in message]
        if len(messages) == len(value) and messages:
            contents = [str(message["content"]) for message in messages]
            if len(contents) == 1:
                return contents[0]
            return "\n\n".join(f"[{m.get('role')}]\n{text}" for m, text in zip(messages, contents, strict=True))
        return json.dumps(value, default=str)
    return value if value is None or isinstance(value, str | bool | int) else str(value)
