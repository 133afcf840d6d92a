"""Charts as SVG and PNG files for papers, by matplotlib: the same bytes from the same figure, whatever the machine."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.charts.palette import GLYPHS, SERIES, heat_color, is_dark
from experiments.reporting.charts.specs import Bars, Dots, Figure, Heatmap, Lines, Panel, Series, Spans
from experiments.reporting.charts.svg import log_ticks, short

MARKERS = ("o", "s", "^", "D", "v", "X", "P", "h")
IDLE = "#d8dce1"
MAX_ANNOTATED = 150


def render(figure: Figure) -> dict[str, bytes]:
    """The figure as {"svg": ..., "png": ...}."""
    import matplotlib

    matplotlib.use("Agg", force=True)
    from matplotlib import pyplot as plt

    with plt.style.context(str(Path(__file__).with_name("fusebench.mplstyle"))):
        canvas = _compose(figure, plt)
        made = {}
        for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=kind, metadata=metadata)
            # The first drawing has laid everything out; that takes half of the time.
            canvas.set_layout_engine("none")
            made[kind] = buffer.getvalue()
        plt.close(canvas)
    return made


def _layout() -> Any:
    """Everything in its place, to six digits. The solver's last bits differ from process to process, and names of clip
    paths are made of them."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Rounded(ConstrainedLayoutEngine):
        def execute(self, fig: Any) -> None:
            super().execute(fig)
            for ax in fig.axes:
                ax.set_position([round(edge, 6) for edge in ax.get_position().bounds])
                ax.set_in_layout(True)

    return Rounded()


def _compose(figure: Figure, plt: Any) -> Any:
    stacked = isinstance(figure.panels[0].chart, Bars | Dots | Spans)
    columns = 1 if stacked else min(len(figure.panels), 3)
    rows = math.ceil(len(figure.panels) / columns)
    sizes = [_size(panel) for panel in figure.panels]
    heights = [max(h for _, h in sizes[i * columns : (i + 1) * columns]) for i in range(rows)]
    width = columns * max(w for w, _ in sizes)
    per_line = max(1, int(width / 1.1))
    lines = math.ceil(len(figure.legend) / per_line)
    canvas, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, sum(heights) + 0.2 * lines + 0.15),
        squeeze=False,
        layout=_layout(),
        height_ratios=heights,
    )
    for ax in axes.flat[len(figure.panels) :]:
        ax.set_visible(False)
    for ax, panel in zip(axes.flat, figure.panels, strict=False):
        ax.set_title(panel.title)
        _draw(panel, ax)
    if figure.legend:
        _legend(figure, canvas, plt, per_line)
    return canvas


def _draw(panel: Panel, ax: Any) -> None:
    if isinstance(panel.chart, Heatmap):
        _heatmap(panel.chart, ax)
    elif isinstance(panel.chart, Lines):
        _lines(panel.chart, ax)
    elif isinstance(panel.chart, Dots):
        _dots(panel.chart, ax)
    elif isinstance(panel.chart, Spans):
        _spans(panel.chart, ax)
    else:
        _bars(panel.chart, ax)


def _size(panel: Panel) -> tuple[float, float]:
    """Inches of one panel."""
    chart = panel.chart
    if isinstance(chart, Heatmap):
        return max(2.2, min(12.0, 0.55 * len(chart.columns) + 0.8)), max(1.3, min(12.0, 0.4 * len(chart.rows) + 0.7))
    if isinstance(chart, Lines):
        return 3.0, 2.5
    if isinstance(chart, Dots):
        return 6.5, 0.22 * len(chart.rows) + 0.8
    if isinstance(chart, Spans):
        return 6.5, 0.24 * sum(lane.tracks for lane in chart.lanes) + 0.75
    return 6.5, 0.2 * sum(len(g.bars) + 0.8 for g in chart.groups) + 0.7


def _legend(figure: Figure, canvas: Any, plt: Any, columns: int) -> None:
    flat = any(isinstance(panel.chart, Bars | Spans) for panel in figure.panels)
    handles = [
        plt.Line2D(
            [], [], color=_color(slot), marker="s" if flat else MARKERS[slot % len(MARKERS)], lw=0 if flat else 1.4
        )
        for _, slot in figure.legend
    ]
    names = [name for name, _ in figure.legend]
    canvas.legend(handles, names, loc="outside lower center", ncols=min(len(names), columns))


def _color(slot: int) -> str:
    return SERIES[slot] if slot < len(SERIES) else IDLE


def _lines(chart: Lines, ax: Any) -> None:
    ax.set_xscale("linear" if chart.x_linear else "log")
    ax.set_yscale("log")
    for series in chart.series:
        _curve(series, ax)
    xs = [m.x for s in chart.series for m in s.marks]
    ys = chart.levels
    ax.set_xlim(*((min(xs) - 0.4, max(xs) + 0.4) if chart.x_linear else (min(xs) / 1.3, max(xs) * 1.3)))
    _ticks(ax.xaxis, chart.x_ticks[:: max(1, len(chart.x_ticks) // 8)] or log_ticks(xs))
    if chart.reach:
        ax.set_ylim(min(ys) / 1.05, max(ys) * 1.05)
    _ticks(ax.yaxis, log_ticks(ys))
    ax.set_xlabel(chart.x_label)
    ax.set_ylabel(chart.y_label)


def _ticks(axis: Any, values: Sequence[float]) -> None:
    axis.set_ticks(list(values), [short(v) for v in values])
    axis.set_ticks([], minor=True)


def _curve(series: Series, ax: Any) -> None:
    xs, ys = [m.x for m in series.marks], [m.y for m in series.marks]
    color = _color(series.color)
    if series.kind == "line":
        ax.plot(xs, ys, color=color, linestyle="--", linewidth=1, marker="_" if len(xs) == 1 else "", markersize=14)
        return
    line = "-" if series.kind == "both" else ""
    ax.plot(xs, ys, color=color, linestyle=line, marker=MARKERS[series.color % len(MARKERS)])
    bounded = [m for m in series.marks if m.low is not None and m.high is not None]
    if bounded:
        low = [m.y - (m.low or 0.0) for m in bounded]
        high = [(m.high or 0.0) - m.y for m in bounded]
        ax.errorbar(
            [m.x for m in bounded],
            [m.y for m in bounded],
            [low, high],
            fmt="none",
            ecolor=color,
            elinewidth=0.8,
            capsize=2,
        )


def _heatmap(chart: Heatmap, ax: Any) -> None:
    from matplotlib.collections import PatchCollection

    ax.grid(False)
    ax.set_xlim(0, len(chart.columns))
    ax.set_ylim(len(chart.rows), 0)
    boxes = []
    for (i, j), cell in chart.cells.items():
        if cell.value is None:
            style = {"facecolor": "white", "edgecolor": "#9aa3ad", "hatch": "////", "linewidth": 0}
            ax.add_patch(_rectangle(i, j, style))
        else:
            alpha = 0.45 if cell.state == "unresolved" else 1.0
            boxes.append(_rectangle(i, j, {"facecolor": heat_color(cell.value), "linewidth": 0, "alpha": alpha}))
    ax.add_collection(PatchCollection(boxes, match_original=True))
    if len(chart.cells) <= MAX_ANNOTATED:
        _annotate(chart, ax)
    _labels(ax, chart)


def _rectangle(i: int, j: int, style: dict[str, Any]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, **style)


def _annotate(chart: Heatmap, ax: Any) -> None:
    for (i, j), cell in chart.cells.items():
        dark = cell.value is not None and is_dark(cell.value) and cell.state != "unresolved"
        words = cell.state if cell.value is None else f"{cell.text}\n{GLYPHS.get(cell.state, '')}"
        ink = "white" if dark else "#1b2733"
        ax.text(j + 0.5, i + 0.5, words, ha="center", va="center", color=ink, fontsize=6.5)


def _labels(ax: Any, chart: Heatmap) -> None:
    step_x, step_y = max(1, len(chart.columns) // 12), max(1, len(chart.rows) // 24)
    ax.set_xticks([j + 0.5 for j in range(0, len(chart.columns), step_x)], chart.columns[::step_x])
    ax.set_yticks([i + 0.5 for i in range(0, len(chart.rows), step_y)], chart.rows[::step_y])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xlabel(chart.column_title)
    ax.set_ylabel(chart.row_title)


def _bars(chart: Bars, ax: Any) -> None:
    ax.grid(False, axis="y")
    y, ticks, names = 0.0, [], []
    for group in chart.groups:
        if group.label:
            ax.text(0, y, group.label, fontweight="bold", va="center", fontsize=7.5)
            y += 1
        for bar in group.bars:
            left = bar.start
            for segment in bar.segments:
                ax.barh(y, segment.value, 0.75, left=left, color=_color(segment.color), linewidth=0)
                left += segment.value
            ax.text(left, y, f" {bar.text}", va="center", fontsize=6.5)
            ticks.append(y)
            names.append(bar.label)
            y += 1
        y += 0.4
    ax.set_yticks(ticks, names)
    ax.set_ylim(y, -0.8)
    ax.margins(x=0.12)
    if chart.reach:
        ax.set_xlim(0, 1.12 * chart.longest)
    ax.set_xlabel(chart.x_label)


def _dots(chart: Dots, ax: Any) -> None:
    for y, (_, dots) in enumerate(chart.rows):
        values = [dot.value for dot in dots]
        ax.plot([min(values), max(values)], [y, y], color="#c9cfd6", linewidth=1, zorder=1)
        for dot in dots:
            shape = MARKERS[dot.color % len(MARKERS)]
            ax.plot(dot.value, y, color=_color(dot.color), marker=shape, markersize=5, linestyle="")
    ax.set_yticks(range(len(chart.rows)), [name for name, _ in chart.rows])
    ax.set_ylim(len(chart.rows) - 0.4, -0.6)
    longest = max([dot.value for _, dots in chart.rows for dot in dots] + [chart.limit or 0.0])
    ax.set_xlim(0, 1.03 * longest)
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    ax.set_xlabel(chart.x_label)
    if chart.limit is not None:
        ax.axvline(chart.limit, color=SERIES[0], linestyle="--", linewidth=1)


def _spans(chart: Spans, ax: Any) -> None:
    ax.grid(False, axis="y")
    y, ticks = 0.0, []
    for lane in chart.lanes:
        for color in sorted({span.color for span in lane.spans}):
            for track in range(lane.tracks):
                chosen = [s for s in lane.spans if (s.color, s.track) == (color, track)]
                bars = [(s.start, s.end - s.start) for s in chosen]
                ax.broken_barh(bars, (y + track - 0.4, 0.8), facecolors=_color(color), linewidth=0)
        ticks.append(y)
        y += lane.tracks + 0.3
    ax.set_yticks(ticks, [lane.label for lane in chart.lanes])
    ax.set_ylim(y - 0.6, -0.7)
    ax.set_xlim(0, 1.01 * chart.longest)
    ax.set_xlabel(chart.x_label)
