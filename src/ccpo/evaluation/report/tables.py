"""The tables of a report as plain values: a title, columns, and rows of texts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .run import ReportError, Run

Rows = dict[str, Any]  # has the keys title, columns and rows


def evaluation_tables(run: Run) -> list[Rows]:
    """
    The tables of the evaluations in the folder of a run.

    They are the accuracy before and after training, and for each benchmark the arms and their differences to the team,
    all with intervals.

    Args:
        run ([`Run`]): The run.

    Raises:
        [`ReportError`]: If a file was written by another program, or by another version of this one.
    """
    with _naming(run.folder / "summary.json"):
        tables = _held_out(run.summary)
    for folder, found in run.results.items():
        with _naming(run.folder / folder / "results.json"):
            for name, result in (found.get("benchmarks") or {}).items():
                tables += _benchmark(f"{name} ({folder})", result)
    return tables


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        words = f"{type(error).__name__}: {error}"
        raise ReportError(
            f"{file} is not in the format of this version ({words}). Move it away, or create it again."
        ) from None


def _held_out(summary: dict[str, Any]) -> list[Rows]:
    if "before" not in summary or "after" not in summary:
        return []
    before, after = summary["before"], summary["after"]
    names = [name for name in after if _is_share(after[name])]
    rows = [[name.replace("_", " "), _share(before.get(name)), _share(after[name])] for name in names]
    others = {name: share for name, share in (after.get("without") or {}).items() if _is_share(share)}
    earlier = before.get("without") or {}
    rows += [[f"without {name}", _share(earlier.get(name)), _share(share)] for name, share in others.items()]
    return [_table(f"Held out, {summary.get('num_eval_problems')} problems", ["measure", "before", "after"], rows)]


def _benchmark(title: str, result: dict[str, Any]) -> list[Rows]:
    k, rates = result["k"], ("no_answer", "truncated", "leak", "unscorable")
    rows = []
    for arm, found in result["arms"].items():
        passes = found["pass_at"].get(str(k))
        cells = [_share(found["avg_at_k"]), _share(passes), _share(found["maj_at_k"])]
        rows.append(
            [arm, *cells, _number(found["tokens_per_problem"], ".1f"), *(_number(found["rates"][r]) for r in rates)]
        )
    columns = ["arm", f"avg@{k}", f"pass@{k}", f"maj@{k}", "tokens", *(rate.replace("_", " ") for rate in rates)]
    tables = [_table(f"{title}: arms", columns, rows)]
    if result["joint_less"]:
        rows = [
            [
                arm,
                _share(less, "+.3f"),
                _number(less["p"], ".4f"),
                "yes" if less["stands"] else "no",
                _share(less["help"]),
                _share(less["hurt"]),
            ]
            for arm, less in result["joint_less"].items()
        ]
        columns = ["joint minus", "difference", "p", "significant", "only joint right", "only arm right"]
        tables.append(_table(f"{title}: the team minus each arm", columns, rows))
    return tables


def recipe_table(runs: Sequence[Run]) -> Rows:
    """The settings of each run, with a row for each field."""
    return _side_by_side("Recipe", "field", runs, "recipe")


def version_table(runs: Sequence[Run]) -> Rows:
    """The versions of the packages that each run used."""
    return _side_by_side("Versions", "package", runs, "versions")


def _side_by_side(title: str, first: str, runs: Sequence[Run], part: str) -> Rows:
    values = [run.info.get(part) or {} for run in runs]
    names = dict.fromkeys(name for own in values for name in own)
    rows = [[name, *("" if own.get(name) is None else _text(own[name]) for own in values)] for name in names]
    return _table(title, [first, *(run.name for run in runs)], rows)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Rows:
    return {"title": title, "columns": columns, "rows": rows}


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_share(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value and "interval" in value


def _share(value: dict[str, Any] | None, form: str = ".3f") -> str:
    if not value or value.get("value") is None:
        return "-"
    low, high = value["interval"]
    return f"{value['value']:{form}} [{_number(low, form)}, {_number(high, form)}]"


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
