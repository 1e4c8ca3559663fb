"""The curves of runs, drawn by matplotlib: as pictures for a page that takes no style from them, and as numbers."""

import io
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from .run import Run

# Title, what is on the y axis, and the metrics: what the groups match is a curve's name.
PANELS = (
    ("Accuracy of a batch", "share right", r"credit/(.+)_accuracy"),
    ("Helped and hurt", "share of texts", r"credit/(?:(.+)/)?(help|hurt)_rate"),
    ("Reward of each role", "mean", r"(.+)/reward|()reward"),
    ("Advantage of each role", "mean size", r"credit/(.+)/advantage_size"),
    ("Correlation with shared credit", "correlation", r"credit/(.+)/shared_correlation"),
    ("No answer, leaked, cut", "share", r"credit/(no_answer|leak)_rate|(?:(.+)/)?completions/(clipped)_ratio"),
    ("Ratings", "share", r"rating/(.+)_rate"),
    ("Tokens of a step", "tokens", r"rollout/(.+)_tokens"),
    ("Seconds of a step", "seconds", r"rollout/(.+)_seconds|(step)_time"),
)
_POINTS = 400  # of a curve; of more, neighbours are averaged
_ROWS = 100  # of a table of numbers
_BLOCKS = 100  # that are shaded; of more, each would be thinner than a line
_LABEL = 44  # characters of a legend's
_LARGEST = 1e300  # what can be added up, and is no infinity
_MARKS = "osD^vP"
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
# Colours are placeholders: the page's stylesheet says what they are, in light and dark.
_INK, _COLORS = "#010101", tuple(f"#0200{i:02x}" for i in range(10))
_SHADES = tuple(f"#0300{i:02x}" for i in range(6))
_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Curve:
    """One metric of one run: name as in the legend, steps and values."""

    name: str
    run: int
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Mark:
    """A measurement beside the curves: the name of the curve that it goes with, step, value and interval."""

    name: str
    step: float
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """What is drawn together: a title, the y axis' label, the curves, and measurements beside them."""

    title: str
    label: str
    curves: list[Curve]
    marks: list[Mark] = field(default_factory=list)


def find_panels(histories: Sequence[Sequence[dict[str, Any]]]) -> list[Panel]:
    """The panels of which there is a curve, of the logs of one or several runs; evaluations' accuracies, too."""
    points = []  # (run, metric, whether of evaluations, steps and values)
    for run, history in enumerate(histories):
        found: dict[tuple[str, bool], list[tuple[int, float]]] = defaultdict(list)
        for row in history:
            evaluated = _is_evaluation(row)
            for name, value in row.items():
                if isinstance(value, int | float) and abs(value) < _LARGEST:
                    found[name, evaluated].append((row["step"], value))
        points += [(run, *key, own) for key, own in found.items()]
    panels = []
    for title, label, pattern in PANELS:
        curves = []
        for run, name, evaluated, own in points:
            if evaluated and not (name.startswith("eval_credit/") and label == "share right"):
                continue
            match = re.fullmatch(pattern, name.removeprefix("eval_") if evaluated else name)
            if match and (not name.startswith("rollout/") or any(value for _, value in own)):
                steps, values = map(list, zip(*own, strict=True))
                words = " ".join(filter(None, match.groups())).replace("_", " ") or "all"
                curves.append(Curve(f"{words} (eval)" if evaluated else words, run, steps, values))
        if curves:
            panels.append(Panel(title, label, curves))
    return panels


def _is_evaluation(row: dict[str, Any]) -> bool:
    """Whether a log is an evaluation's, with the metrics' names behind `eval_`. A role's may begin so, too."""
    return any(name.startswith("eval_") and name.endswith("_runtime") for name in row)


def find_blocks(history: Sequence[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """The schedule's blocks as they were logged: first and last step, and the roles in turn; none where all are."""
    history = [row for row in history if not _is_evaluation(row)]
    turns: list[tuple[int, str]] = []
    names = dict.fromkeys(name for row in history for name in row if name.endswith("/reward") and name.count("/") == 1)
    for row in history:
        if told := [name for name in names if row.get(name) is not None]:
            turns.append((row["step"], ", ".join(name.removesuffix("/reward") for name in told)))
    blocks: list[tuple[int, int, str]] = []
    for place, (step, roles) in enumerate(turns):
        start = turns[place - 1][0] if place else 0
        if blocks and blocks[-1][2] == roles:
            blocks[-1] = (blocks[-1][0], step, roles)
        else:
            blocks.append((start, step, roles))
    return blocks if len({roles for *_, roles in blocks}) > 1 else []


def smooth(values: list[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, unbiased at the start."""
    smoothed, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        smoothed.append(total / norm)
    return smoothed


def spread(values: list[float], weight: float = 0.8) -> list[float]:
    """The standard deviation of the values around [`smooth`]'s mean, by the same weights."""
    means, squares = smooth(values, weight), smooth([value * value for value in values], weight)
    return [math.sqrt(max(0.0, square - mean * mean)) for mean, square in zip(means, squares, strict=True)]


def draw(
    axis: Any,
    panel: Panel,
    runs: Sequence[str],
    blocks: Sequence[Sequence[tuple[int, int, str]]],
    colors: Sequence[str],
    shades: Sequence[str],
    title: str | None = None,
) -> int:
    """
    Draw a panel: each curve smoothed, within a band of a standard deviation on either side, in a colour for each name.

    Of several runs each has a dash; of one run each curve, later ones being thinner, too: of curves that lie on each
    other all are seen. Measurements stand beside their curve with their intervals.

    Args:
        axis (`matplotlib.axes.Axes`): where.
        panel ([`Panel`]), runs (`list[str]`): what, and the runs' names.
        blocks (`list[list]`): [`find_blocks`] of each run. The first one's are shaded.
        colors, shades (`Sequence[str]`): of curves and blocks.
        title (`str`, *optional*): above the legend.

    Returns:
        `int`: the legend's lines.
    """
    from matplotlib.patches import Patch

    names = list(dict.fromkeys([*(curve.name for curve in panel.curves), *(mark.name for mark in panel.marks)]))
    looks = [{"color": colors[i % len(colors)], "linewidth": max(1.2, 2.6 - 0.35 * i)} for i in range(len(names))]
    if len(runs) == 1:
        looks = [{**look, "linestyle": _DASHES[i % len(_DASHES)]} for i, look in enumerate(looks)]
    turns = list(dict.fromkeys(roles for *_, roles in blocks[0]))
    seen = len(blocks[0]) <= _BLOCKS
    for start, end, roles in blocks[0] if seen else ():
        axis.axvspan(start, end, color=shades[turns.index(roles) % len(shades)], linewidth=0)
    for curve in panel.curves:
        look = {"linestyle": _DASHES[curve.run % len(_DASHES)], **looks[names.index(curve.name)]}
        steps, values = thinned(curve.steps, curve.values)
        smoothed, around = smooth(values), spread(values)
        lows = [max(mean - size, min(values)) for mean, size in zip(smoothed, around, strict=True)]
        highs = [min(mean + size, max(values)) for mean, size in zip(smoothed, around, strict=True)]
        for part in _parts(steps, blocks[curve.run]):
            axis.fill_between(steps[part], lows[part], highs[part], color=look["color"], alpha=0.15, linewidth=0)
            alone = "o" if len(steps[part]) == 1 else ""
            axis.plot(steps[part], smoothed[part], marker=alone, markersize=3, **look)
    _draw_marks(axis, panel, names, looks)
    labels = [*names]
    handles = [axis.plot([], [], **look)[0] for look in looks]
    if len(runs) > 1:
        there = sorted({curve.run for curve in panel.curves})
        handles += [axis.plot([], [], color="0.5", linestyle=_DASHES[i % len(_DASHES)])[0] for i in there]
        labels += [runs[i] for i in there]
    handles += [Patch(color=shades[i % len(shades)]) if seen else Patch(alpha=0) for i in range(len(turns))]
    labels += [f"{roles} in turn{'' if seen else ', in blocks too short to show'}" for roles in turns]
    low, high = axis.get_ylim()
    if panel.label.startswith("share"):
        axis.set_ylim(0, max(high, 0.05))
    elif panel.label == "correlation":
        axis.set_ylim(min(low, 0), 1.05)
    elif high - low < 1e-3:  # constant but for rounding
        axis.set_ylim((low + high) / 2 - 0.05, (low + high) / 2 + 0.05)
    axis.yaxis.set_major_formatter(lambda value, _: _tick(value))
    axis.set_xlabel("step")
    axis.set_ylabel(panel.label)
    axis.spines[["top", "right"]].set_visible(False)
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "alignment": "left"}
    labels = [_as_label(label) for label in labels]
    columns = 1 if max(map(len, labels)) > _LABEL // 2 else 2
    legend = axis.legend(handles, [str(i) for i in range(len(labels))], frameon=False, ncols=columns, **place)
    legend.set_title(title)
    for text, label in zip(legend.get_texts(), labels, strict=True):  # a label that begins with "_" would be left out
        text.set_text(label)
    return -(-len(labels) // columns)


def _draw_marks(axis: Any, panel: Panel, names: list[str], looks: list[dict[str, Any]]) -> None:
    """Measurements of one step stand side by side."""
    steps = [step for curve in panel.curves for step in curve.steps] + [mark.step for mark in panel.marks]
    for mark in panel.marks:
        place = names.index(mark.name)
        x = mark.step + 0.015 * place * (max(steps) - min(steps)) * (1 if mark.step > min(steps) else -1)
        errors = [[mark.value - mark.interval[0]], [mark.interval[1] - mark.value]]
        axis.errorbar(
            [x], [mark.value], yerr=errors, fmt=_MARKS[place % len(_MARKS)], color=looks[place]["color"], capsize=2,
            markersize=4, linewidth=1,
        )  # fmt: skip


def _as_label(text: str) -> str:
    """A run's or a metric's name as a picture can hold it; of a long one the end, which tells runs apart."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return text if len(text) <= _LABEL else f"…{text[1 - _LABEL :]}"


def _parts(steps: Sequence[float], blocks: Sequence[tuple[int, int, str]]) -> list[slice]:
    """A curve's points in parts: it is not drawn through a block in which it has none, where one sees the blocks."""
    if len(blocks) > _BLOCKS:
        return [slice(None)]
    ends = [
        i for i in range(1, len(steps)) if any(steps[i - 1] <= start and end < steps[i] for start, end, _ in blocks)
    ]
    return [slice(start, end) for start, end in zip([0, *ends], [*ends, len(steps)], strict=True)]


def _tick(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}"


def thinned(steps: Sequence[int], values: Sequence[float], most: int = _POINTS) -> tuple[list[float], list[float]]:
    """At most so many points: means of neighbours."""
    size = -(-len(steps) // most)
    parts = [slice(i, i + size) for i in range(0, len(steps), size)]
    return [sum(steps[p]) / len(steps[p]) for p in parts], [sum(values[p]) / len(values[p]) for p in parts]


def draw_svg(panel: Panel, runs: Sequence[Run], prefix: str) -> str:
    """
    A panel as SVG for the page: no style of its own, classes in the place of colours, text as text.

    Args:
        panel ([`Panel`]), runs (`list[Run]`): what, and of whom; the first one's blocks are shaded.
        prefix (`str`): of the ids in it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": prefix, "text.parse_math": False, "font.size": 9}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    stream = io.StringIO()
    with rc_context(settings):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        blocks = [find_blocks(run.metrics) for run in runs]
        lines = draw(figure.subplots(), panel, [run.name for run in runs], blocks, _COLORS, _SHADES)
        figure.set_figheight(2.7 + 0.16 * lines)  # the curves have the same room under any legend
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _restyled(stream.getvalue(), prefix, f"{panel.title}: the table below has the numbers")


def table_of(panel: Panel, runs: Sequence[str]) -> dict[str, Any]:
    """The numbers behind a panel, a row for a step: title, columns, rows."""
    names = [curve.name if len(runs) == 1 else f"{runs[curve.run]}: {curve.name}" for curve in panel.curves]
    rows: dict[float, list] = defaultdict(lambda: [None] * len(names))
    for i, curve in enumerate(panel.curves):
        for step, value in zip(*thinned(curve.steps, curve.values, _ROWS), strict=True):
            rows[step][i] = f"{value:.4g}"
    return {"title": panel.title, "columns": ["step", *names], "rows": [[f"{s:g}", *rows[s]] for s in sorted(rows)]}


def _restyled(text: str, prefix: str, label: str) -> str:
    """matplotlib's SVG with attributes for its style, classes for its colours, ids of its own, and a name."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text[text.index("<svg") :])
    for part in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(part)
    for defs in root.iter(f"{{{_SVG}}}defs"):
        for style in defs.findall(f"{{{_SVG}}}style"):
            defs.remove(style)
    used = set(re.findall(r"(?:#|url\(#)([\w-]+)", text))
    for node in root.iter():
        for name, value in [*node.attrib.items()]:
            if name == "style":
                del node.attrib[name]
                for key, _, setting in (part.partition(":") for part in value.split(";") if ":" in part):
                    node.set(key.strip(), setting.strip())
            elif name.endswith("href"):  # xlink's, which HTML does not need
                del node.attrib[name]
                node.set("href", f"#{prefix}{value[1:]}")
        if "id" in node.attrib:
            own = node.attrib.pop("id")
            if own in used:
                node.set("id", prefix + own)
        if "clip-path" in node.attrib:
            node.set("clip-path", node.get("clip-path").replace("url(#", f"url(#{prefix}"))
        classes = [found for name in ("fill", "stroke") if (found := _class_of(name, node.get(name)))]
        for found in classes:
            del node.attrib[found.partition("-")[0]]
        if classes:
            node.set("class", " ".join(classes))
        for name in ("font", "font-family", "font-size"):
            node.attrib.pop(name, None)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _class_of(name: str, color: str | None) -> str | None:
    """`stroke-c1` for the second colour of curves, `fill-ink` for text, `fill-b0` for a block."""
    places = {_INK: "ink"} | {c: f"c{i}" for i, c in enumerate(_COLORS)} | {c: f"b{i}" for i, c in enumerate(_SHADES)}
    return f"{name}-{places[color]}" if color in places else None
