"""[`write_report`]: one HTML file that needs no network, and in which nothing that a model wrote is more than text."""

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

EPISODES, BYTES = 10_000, 14_500_000  # of a page, at most


def write_report(
    folders: str | Path | Sequence[str | Path], output: str | Path | None = None, *, max_episodes: int = EPISODES
) -> Path:
    """
    Write the report of one run, or of several that are compared.

    Args:
        folders (`str`, `Path` or a list of them): `output_dir` of runs that are over, going on, or were killed.
        output (`str` or `Path`, *optional*): the HTML file. Defaults to `report.html` in the first run's folder.
        max_episodes (`int`, defaults to 10,000):
            More are sampled, by category; and so are fewer where the file would be longer than 15 MB.

    Returns:
        `Path`: where it was written.

    Raises:
        [`~ccpo.evaluation.report.ReportError`]: a folder is no run's, a file in it is damaged, or `output` is
            no page's name.
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
        fits = min(BYTES / len(data), 2 * CHARACTERS / len(text))  # a table's size tells the second but roughly
        if fits >= 1 or sum(limits) <= len(runs):
            break
        most = max(len(runs), int(sum(limits) * fits * 0.9))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, _fill(runs, panels, data).encode("utf-8", "replace"))  # a folder may have any name
    return output


def _about(runs: Sequence[Run], panels: Sequence[Panel]) -> dict[str, Any]:
    """What the page says of the runs, but for episodes."""
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
    """Compressed, in letters that mean nothing to HTML."""
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode()


def _fill(runs: Sequence[Run], panels: Sequence[Panel], data: str) -> str:
    """The page: the template, the curves, and the data that its script shows."""
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
