"""Charts as inline SVG for the page. Colours are classes that the page's theme fills in.

Every mark is a group of class `m` whose title says value, interval and n: the page turns titles into its own tooltips,
and without scripts the browser shows them.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

from experiments.reporting.charts.elements import linear_axis, mark, n, short, svg, text
from experiments.reporting.charts.palette import EDGES, GLYPHS, MARKERS, heat_class, is_dark
from experiments.reporting.charts.spans import draw_spans
from experiments.reporting.charts.specs import BarGroup, Bars, Chart, Dots, Heatmap, Lines, Mark, Series, Spans

WIDTH = 360.0
_PLOT_HEIGHT = 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 10.0, 40.0


def draw(chart: Chart, label: str) -> str:
    """The chart as one SVG element; `label` is its accessible name."""
    if isinstance(chart, Lines):
        return _lines(chart, label)
    if isinstance(chart, Heatmap):
        return _heatmap(chart, label)
    if isinstance(chart, Dots):
        return _dots(chart, label)
    if isinstance(chart, Spans):
        return draw_spans(chart, label)
    return _bars(chart, label)


# Curves


def _lines(chart: Lines, label: str) -> str:
    marks = [m for s in chart.series for m in s.marks]
    if not marks:
        return ""
    xs = [m.x for m in marks]
    ys = chart.levels
    to_x = (_linear_scale if chart.x_linear else _log_scale)(xs, _LEFT + 14, WIDTH - _RIGHT - 14)
    to_y = _log_scale(ys, _PLOT_HEIGHT - _BOTTOM - 8, _TOP + 8)
    body = _grid(chart, to_x, to_y, ys)
    for series in chart.series:
        body.append(_series(series, to_x, to_y))
    return svg(WIDTH, _PLOT_HEIGHT, label, body)


def _log_scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = math.log(min(values)), math.log(max(values))
    if high - low < math.log(1.05):
        low, high = low - 0.1, high + 0.1
    return lambda v: start + (end - start) * (math.log(v) - low) / (high - low)


def _linear_scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = min(values), max(values)
    return lambda v: start + (end - start) * (v - low) / ((high - low) or 1.0)


def log_ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten inside the data; with 2 and 5, and finer, where those are fewer than three; at last even steps."""
    low, high = min(values), max(values)
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{s * 10.0**k:.3g}") for k in decades for s in steps]
        inside = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(inside) >= 3:
            return inside[:: max(1, math.ceil(len(inside) / 7))]
    if low == high:
        return [float(f"{low:.3g}")]
    step = _nice_step(high - low, 6)
    return [float(f"{k * step:.6g}") for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _nice_step(length: float, most: int) -> float:
    """The least of 1, 2 and 5 times a power of ten that divides a length into at most so many parts."""
    power = 10.0 ** math.floor(math.log10(length / most))
    return next(s * power for s in (1, 2, 5, 10) if length / (s * power) <= most)


def _grid(
    chart: Lines, to_x: Callable[[float], float], to_y: Callable[[float], float], ys: Sequence[float]
) -> list[str]:
    right, bottom = WIDTH - _RIGHT, _PLOT_HEIGHT - _BOTTOM
    body = []
    for tick in log_ticks(ys):
        y = to_y(tick)
        body.append(f'<path class="g" d="M{n(_LEFT)} {n(y)}H{n(right)}"/>')
        body.append(text(_LEFT - 6, y + 4, short(tick), "e"))
    for tick in _thin(chart.x_ticks or log_ticks([m.x for s in chart.series for m in s.marks]), to_x):
        body.append(text(to_x(tick), bottom + 16, short(tick), "c"))
    body.append(f'<path class="a" d="M{n(_LEFT)} {n(bottom)}H{n(right)}"/>')
    body.append(text((_LEFT + right) / 2, _PLOT_HEIGHT - 6, chart.x_label, "c l"))
    return body


def _thin(ticks: Sequence[float], to_x: Callable[[float], float]) -> list[float]:
    """Ticks at least 30 px apart."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or to_x(tick) - to_x(kept[-1]) >= 30:
            kept.append(tick)
    return kept


def _series(series: Series, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    css = f"s{series.color}"
    points = [(to_x(m.x), to_y(m.y)) for m in series.marks]
    body = ""
    if series.kind != "marks" and len(points) > 1:
        dash = " f" if series.kind == "line" else ""
        path = "L".join(f"{n(x)} {n(y)}" for x, y in points)
        body += f'<path class="p {css}{dash}" d="M{path}"/>'
    if series.kind == "line":
        # A line of one point is a dash under the marks.
        return body or "".join(f'<path class="p {css} f" d="M{n(x - 14)} {n(y)}h28"/>' for x, y in points)
    for point, (x, y) in zip(series.marks, points, strict=True):
        body += mark(point.tip, _whisker(point, x, to_y, css) + marker(series.color, x, y))
    return body


def _whisker(point: Mark, x: float, to_y: Callable[[float], float], css: str) -> str:
    if point.low is None or point.high is None or abs(to_y(point.low) - to_y(point.high)) < 3:
        return ""
    low, high = n(to_y(point.low)), n(to_y(point.high))
    return f'<path class="w {css}" d="M{n(x)} {low}V{high}M{n(x - 3)} {low}h6M{n(x - 3)} {high}h6"/>'


def marker(slot: int, x: float, y: float, r: float = 4.0) -> str:
    """A filled shape, one per series, so that colour is never the only difference."""
    css, shape = f'class="d s{slot}"', MARKERS[slot % len(MARKERS)]
    if shape == "circle":
        return f'<circle {css} cx="{n(x)}" cy="{n(y)}" r="{n(r)}"/>'
    outline = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0, -1.15), (1.05, 0.8), (-1.05, 0.8)],
        "down": [(0, 1.15), (1.05, -0.8), (-1.05, -0.8)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "hexagon": [(-1.1, 0), (-0.55, -0.95), (0.55, -0.95), (1.1, 0), (0.55, 0.95), (-0.55, 0.95)],
    }.get(shape)
    if outline is None:
        outline = [(-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4), (0.4, 1.1), (-0.4, 1.1)]
        outline += [(-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)]
        if shape == "cross":
            outline = [((a - b) * 0.72, (a + b) * 0.72) for a, b in outline]
    path = "L".join(f"{n(x + r * a)} {n(y + r * b)}" for a, b in outline)
    return f'<path {css} d="M{path}z"/>'


# Heat maps


def _heatmap(chart: Heatmap, label: str) -> str:
    columns, rows = len(chart.columns), len(chart.rows)
    cell_width = max(14.0, min(64.0, (700.0 if columns > 8 else 320.0) / max(columns, 1)))
    cell_height = 38.0 if cell_width >= 44 else (22.0 if rows <= 20 else 14.0)
    left, top = 46.0, 34.0
    body = [
        text(left + columns * cell_width / 2, 12, chart.column_title, "c l"),
        text(left - 6, 28, chart.row_title, "e l"),
    ]
    for j, name in enumerate(chart.columns):
        if j % math.ceil(30 / cell_width) == 0:
            body.append(text(left + (j + 0.5) * cell_width, 28, name, "c"))
    for i, name in enumerate(chart.rows):
        body.append(text(left - 6, top + (i + 0.5) * cell_height + 4, name, "e"))
        for j in range(columns):
            x, y = left + j * cell_width, top + i * cell_height
            body.append(_heat_cell(chart, i, j, x, y, cell_width, cell_height))
    return svg(left + columns * cell_width + 4, top + rows * cell_height + 4, label, body)


def _heat_cell(chart: Heatmap, i: int, j: int, x: float, y: float, width: float, height: float) -> str:
    cell = chart.cells.get((i, j))
    if cell is None:
        return ""
    box = f'x="{n(x + 1)}" y="{n(y + 1)}" width="{n(width - 2)}" height="{n(height - 2)}" rx="3"'
    if cell.value is None:
        words = text(x + width / 2, y + height / 2 + 4, cell.state, "c n") if width >= 44 else ""
        return mark(cell.tip, f'<rect class="x" {box}/>{words}')
    css = f"h{heat_class(cell.value)}" + (" u" if cell.state == "unresolved" else "")
    ink = "c i" if is_dark(cell.value) else "c k"
    glyph = GLYPHS.get(cell.state, "")
    words = ""
    if width >= 44:
        words = text(x + width / 2, y + height / 2 - 1, cell.text, ink) + text(
            x + width / 2, y + height - 7, glyph, ink + " y"
        )
    elif width >= 18:
        words = text(x + width / 2, y + height / 2 + 4, glyph, ink + " y")
    return mark(cell.tip, f'<rect class="{css}" {box}/>{words}')


# Bars and dots

_WIDE, _LABELS = 560.0, 150.0


def _bars(chart: Bars, label: str) -> str:
    longest = chart.longest
    if longest <= 0:
        return ""
    body: list[str] = []
    height = 6 + sum(18 * len(g.bars) + (18 if g.label else 0) + 8 for g in chart.groups)
    bars = [bar for group in chart.groups for bar in group.bars]
    left = max(_LABELS, 14 + 6.2 * max(len(bar.label) for bar in bars))
    right = _WIDE - 16 - 6.4 * max(len(bar.text) for bar in bars)
    to_x = linear_axis(left, right, longest, height, chart.x_label, body)
    y = 6.0
    for group in chart.groups:
        y = _bar_group(group, y, to_x, body)
    return svg(_WIDE, height + 36, label, body)


def _bar_group(group: BarGroup, y: float, to_x: Callable[[float], float], body: list[str]) -> float:
    if group.label:
        body.append(text(0, y + 12, group.label, "b"))
        y += 18
    for bar in group.bars:
        body.append(text(to_x(0) - 8, y + 12, bar.label, "e"))
        start = bar.start
        for segment in bar.segments:
            x, width = to_x(start), to_x(segment.value) - to_x(0)
            if width >= 0.05:
                box = f'x="{n(x)}" y="{n(y + 2)}" width="{n(max(width, 0.5))}" height="13"'
                body.append(mark(segment.tip, f'<rect class="q s{segment.color}" {box}/>'))
            start += segment.value
        body.append(text(to_x(start) + 6, y + 12, bar.text, "v"))
        y += 18
    return y + 8


def _dots(chart: Dots, label: str) -> str:
    values = [dot.value for _, dots in chart.rows for dot in dots]
    longest = max([*values, chart.limit or 0.0])
    if not values or longest <= 0:
        return ""
    height = 8 + 22.0 * len(chart.rows)
    body: list[str] = []
    to_x = linear_axis(_LABELS, _WIDE - 56, longest, height, chart.x_label, body, as_percent=True)
    if chart.limit is not None:
        body.append(f'<path class="a f" d="M{n(to_x(chart.limit))} 2V{n(height)}"/>')
    for index, (name, dots) in enumerate(chart.rows):
        y = 18 + 22.0 * index
        ends = [to_x(dot.value) for dot in dots]
        body.append(text(_LABELS - 12, y + 4, name, "e"))
        body.append(f'<path class="r" d="M{n(min(ends))} {n(y)}H{n(max(ends))}"/>')
        body += [mark(dot.tip, marker(dot.color, to_x(dot.value), y, 4.5)) for dot in dots]
        body.append(text(max(ends) + 10, y + 4, f"{100 * max(dot.value for dot in dots):.0f} %", "v"))
    return svg(_WIDE, height + 36, label, body)


def heat_scale() -> str:
    """The legend of the heat maps: one box per class of speed-up."""
    near = f"within {100 * (EDGES[0] - 1):.0f} %"
    words = [*(f"under 1/{edge:g}" for edge in reversed(EDGES)), near, *(f"over {edge:g}" for edge in EDGES)]
    steps = range(-len(EDGES), len(EDGES) + 1)
    boxes = "".join(
        f'<span><svg viewBox="0 0 14 14" aria-hidden="true"><rect class="h{step}" width="14" height="14" rx="3"/></svg>'
        f"{escape(word)}</span>"
        for step, word in zip(steps, words, strict=True)
    )
    return f'<p class="legend">{boxes}</p>'


def sparkline_counts(counts: dict[str, int]) -> str:
    """A bar of verdict counts, widths by share."""
    total = sum(counts.values())
    if not total:
        return ""
    x, body = 0.0, []
    for name, amount in counts.items():
        width = 300.0 * amount / total
        if amount:
            body.append(
                mark(f"{name}: {amount} of {total}", f'<rect class="{name}" x="{n(x)}" width="{n(width)}" height="8"/>')
            )
        x += width
    words = ", ".join(f"{amount} {name}" for name, amount in counts.items())
    head = f'viewBox="0 0 300 8" preserveAspectRatio="none" role="img" aria-label="{words}"'
    return f'<svg class="counts" {head}>{"".join(body)}</svg>'


__all__ = ["draw", "heat_scale", "log_ticks", "marker", "short", "sparkline_counts"]
