"""
[`write_report`] writes a report as one HTML file.

The file needs no network. Whatever a model wrote is shown as plain text and never run.
"""

import base64
import gzip
import html
import json
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..samples import write_whole
from .curves import Panel, draw_svg, find_panels, table_of
from .episodes import CHARACTERS, EFFECTS, read_episodes, share_out
from .run import REPORT_FILE, ReportError, Run, read_runs
from .tables import evaluation_tables, recipe_table, version_table

EPISODES, BYTES = 10_000, 14_500_000  # the most that a page may have


def write_report(
    folders: str | Path | Sequence[str | Path], output: str | Path | None = None, *, max_episodes: int = EPISODES
) -> Path:
    """
    Write the report of one run, or of several runs to compare them.

    Args:
        folders (`str`, `Path` or a list of them):
            The `output_dir` of each run. A run may be finished, running, or interrupted.
        output (`str` or `Path`, *optional*): The HTML file. Defaults to `report.html` in the first run's folder.
        max_episodes (`int`, defaults to 10,000):
            The most episodes in the report. If there are more, or if the file would be larger than 15 MB, a sample of
            each category is taken.

    Returns:
        `Path`: The file.

    Raises:
        [`~ccpo.evaluation.report.ReportError`]: If a folder is not that of a run, if a file in it is damaged, or if
            `output` cannot be the name of a page.
    """
    runs = read_runs([folders] if isinstance(folders, str | Path) else list(folders))
    output = runs[0].folder / REPORT_FILE if output is None else Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ReportError(
            f"{output} does not end in `.html`, so it could overwrite a file of a run. Give a name that ends in "
            "`.html`."
        )
    panels = find_panels([run.metrics for run in runs])
    around = _about(runs, panels)
    most = max_episodes
    while True:
        limits = share_out(runs, most)
        shown = [_episodes(run, limit) for run, limit in zip(runs, limits, strict=True)]
        text = json.dumps({**around, "runs": shown}, allow_nan=False)
        data = _packed(text)
        fits = min(BYTES / len(data), 2 * CHARACTERS / len(text))  # the second was only estimated before
        if fits >= 1 or sum(limits) <= len(runs):
            break
        most = max(len(runs), int(sum(limits) * fits * 0.9))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, _fill(runs, panels, data).encode("utf-8", "replace"))  # a folder's name may not be UTF-8
    return output


def _about(runs: Sequence[Run], panels: Sequence[Panel]) -> dict[str, Any]:
    """The data of the page about the runs, without episodes."""
    names = [run.name for run in runs]
    return {
        "effects": EFFECTS,
        "curves": [table_of(panel, names) for panel in panels],
        "evaluations": [{"run": run.name, "tables": tables} for run in runs if (tables := evaluation_tables(run))],
        "about": [recipe_table(runs), version_table(runs)],
    }


def _episodes(run: Run, limit: int) -> dict[str, Any]:
    episodes = read_episodes(run, limit)
    most = run.info.get("max_steps")
    return {
        "name": run.name,
        "steps": f"step {run.last_step:,}" + (f" of {most:,}" if most else ""),
        "logged": episodes.logged,
        "about": run.info.get("columns"),
        "columns": episodes.columns,
    }


def _packed(text: str) -> str:
    """Compress a text, and encode it in letters that have no meaning in HTML."""
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode()


def _fill(runs: Sequence[Run], panels: Sequence[Panel], data: str) -> str:
    """Fill the template of the page with the curves and with the data for its script."""
    folder = files(__package__) / "page"
    page, style, script = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    figures = "".join(_figure(i, panel, runs) for i, panel in enumerate(panels))
    parts = {
        "title": html.escape(" and ".join(run.name for run in runs)),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "curves": figures,
        "data": data,
    }
    head, *rest = page.split("{{")
    return head + "".join(parts[name] + text for name, _, text in (part.partition("}}") for part in rest))


def _figure(number: int, panel: Panel, runs: Sequence[Run]) -> str:
    title = html.escape(panel.title)
    return (
        f"<figure><figcaption>{title}</figcaption>\n{draw_svg(panel, runs, f'p{number}-')}\n"
        f'<details class="numbers" data-curve="{number}"><summary>Numbers<span class="hidden"> of {title}</span>'
        "</summary></details></figure>\n"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode()
