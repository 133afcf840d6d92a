"""Figures of speed: heat maps of the speed-up, and curves of time and throughput."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from experiments.config import BASELINE
from experiments.metrics import METRICS, metrics_of, primary_metric
from experiments.records import Row, Status
from experiments.reporting.charts.specs import (
    Bar,
    BarGroup,
    Bars,
    Figure,
    HeatCell,
    Heatmap,
    Lines,
    Mark,
    Panel,
    Segment,
    Series,
)
from experiments.reporting.figures.registry import caption_of, figure, slots
from experiments.reporting.formats import Value, interval, number, percent, ratio, where
from experiments.reporting.rows import Analysis, point_of
from experiments.reporting.tables.registry import labelled

MAX_PANELS = 6
# Beyond so many cells a heat map's tooltips say the speed-up only, to keep the page small.
MAX_DETAILED = 300
_COLUMNS = ("model", "workload", "batch", "length", "variant", "metric")


def workloads(analysis: Analysis) -> list[tuple[str, str]]:
    """Every (model, workload) that is a grid of batches and lengths, sorted; serving is a line of rates."""
    kind = analysis.run.info.kind
    return sorted({(p.model, p.workload) for p in analysis.run.points if kind(p.workload) != "serving"})


def tip(row: Row) -> str:
    """What hovering a row says: value, interval, n, speed-up, verdict."""
    head = f"{labelled(row.variant, row.kernels)}, {where(point_of(row))}"
    if row.median is None:
        return f"{head}\n{row.status.value}: {row.reason}"
    unit = METRICS[row.metric].unit
    bounds = f" ({number(row.ci_low)} to {number(row.ci_high)})" if row.ci_low is not None else ""
    lines = [head, f"{row.metric} {number(row.median)} {unit}{bounds}, n={row.n}"]
    if row.speedup is not None:
        lines.append(f"speed-up {ratio(row.speedup)} ({interval(row.speedup_ci_low, row.speedup_ci_high)})")
    if row.verdict:
        lines.append(row.verdict + (f": {row.reason}" if row.reason else ""))
    if row.share_of_floor is not None:
        lines.append(f"{percent(row.share_of_floor)} of the floor")
    return "\n".join(lines)


@figure("faster")
def speedup(analysis: Analysis) -> Iterator[Figure]:
    """Paired speed-up over the baseline, by batch and length: blue is faster, orange slower, grey within 1 % of parity.
    The mark is the verdict: ▲ faster, ▼ slower, = same within 1 %, ? unresolved (pale). Cells without a colour have no
    value."""
    for model, workload in workloads(analysis):
        rows = [r for r in analysis.primary if (r.model, r.workload) == (model, workload) and r.variant != BASELINE]
        panels = tuple(
            Panel(labelled(variant, _kernels(mine)), _heatmap(mine))
            for variant in analysis.run.variants
            if (mine := [r for r in rows if r.variant == variant])
        )
        if panels:
            yield Figure(
                f"speedup_{model}_{workload}",
                f"Speed-up, {model} {workload}",
                caption_of("speedup"),
                _alt_speedup(model, workload, rows),
                panels,
                (),
                (*_COLUMNS, "speedup", "ci_low", "ci_high", "n", "verdict", "status"),
                tuple(
                    (*_place(r), r.speedup, r.speedup_ci_low, r.speedup_ci_high, r.n, r.verdict, r.status.value)
                    for r in rows
                ),
            )


def _kernels(rows: Sequence[Row]) -> str:
    return "".join(sorted({r.kernels for r in rows}))


def _short_tip(row: Row) -> str:
    head = f"{where(point_of(row))}: "
    if row.speedup is None:
        return head + _no_value(row)
    return f"{head}{ratio(row.speedup)} ({interval(row.speedup_ci_low, row.speedup_ci_high)}), {row.verdict}, n={row.n}"


def _heatmap(rows: Sequence[Row]) -> Heatmap:
    say = tip if len(rows) <= MAX_DETAILED else _short_tip
    batches, lengths = sorted({r.batch for r in rows}), sorted({r.context for r in rows})
    cells = {
        (batches.index(r.batch), lengths.index(r.context)): HeatCell(
            r.speedup, ratio(r.speedup), r.verdict if r.speedup is not None else _no_value(r), say(r)
        )
        for r in rows
    }
    columns = tuple("all" if length == 0 else f"{length:,}" for length in lengths)
    return Heatmap("batch", "length", tuple(map(str, batches)), columns, cells)


def _no_value(row: Row) -> str:
    return row.status.value if row.status is not Status.OK else "no pair"


def _alt_speedup(model: str, workload: str, rows: Sequence[Row]) -> str:
    known = sorted((r for r in rows if r.speedup is not None), key=lambda r: r.speedup or 0.0)
    if not known:
        return f"Heat map of the speed-up on {model} {workload}: no cell has a value."
    low, high = (f"{ratio(r.speedup)} ({r.variant}, {where(point_of(r))})" for r in (known[0], known[-1]))
    return f"Heat map of the speed-up on {model} {workload}, from {low} to {high}."


def _place(row: Row) -> tuple[Value, ...]:
    return row.model, row.workload, row.batch, row.context, row.variant, row.metric


@figure("where")
def latency(analysis: Analysis) -> Iterator[Figure]:
    """Median over rounds with its 95 % interval (shorter than the mark where no whisker shows). Curves have logarithmic
    axes; their dashed line is the physical floor, which no engine can pass."""
    for model, workload in workloads(analysis):
        metric = primary_metric(analysis.run.info.kind(workload))
        if metric is not None and metric.unit == "ms":
            yield from _curves(analysis, "latency", model, workload, metric.name, "Time")


@figure("where")
def throughput(analysis: Analysis) -> Iterator[Figure]:
    """Tokens per second over the whole batch, median over rounds with its 95 % interval. Curves have logarithmic axes;
    their dashed line is the physical ceiling, which no engine can pass."""
    for model, workload in workloads(analysis):
        names = [m.name for m in metrics_of(analysis.run.info.kind(workload)) if m.unit == "tokens/s"]
        if names:
            yield from _curves(analysis, "throughput", model, workload, names[0], "Throughput")


def _curves(
    analysis: Analysis, figure_name: str, model: str, workload: str, metric: str, title: str
) -> Iterable[Figure]:
    rows = [r for r in analysis.rows if (r.model, r.workload, r.metric) == (model, workload, metric)]
    known = [r for r in rows if r.median is not None]
    if not known:
        return []
    along, across, label = _axes(analysis.run.info.kind(workload), known)
    color = slots(analysis.run)
    unit = METRICS[metric].unit
    alone = len({along(r) for r in known}) == 1
    panels = [_bars(known, color, unit)] if alone else list(_panels(known, along, across, label, color, unit))
    legend = [(labelled(v, _kernels([r for r in known if r.variant == v])), s) for v, s in color.items()]
    drawn = {r.variant for r in known}
    return [
        Figure(
            f"{figure_name}_{model}_{workload}",
            f"{title}, {model} {workload} ({METRICS[metric].unit})",
            caption_of(figure_name),
            f"{title} of {model} {workload} against {label[0]}, by variant: {', '.join(sorted(drawn))}.",
            tuple(panels),
            tuple(entry for entry, v in zip(legend, color, strict=True) if v in drawn),
            (*_COLUMNS, "median", "ci_low", "ci_high", "n", "floor", "status"),
            tuple((*_place(r), r.median, r.ci_low, r.ci_high, r.n, r.floor, r.status.value) for r in rows),
        )
    ]


Axis = Callable[[Row], int]


def _axes(kind: str, rows: Sequence[Row]) -> tuple[Axis, Axis, tuple[str, str]]:
    """(along, across, their names): a prefill grows along its length, decode along its batch, if there are several."""
    batches, lengths = len({r.batch for r in rows}), len({r.context for r in rows})
    by_length = lengths > 1 if kind == "prefill" else batches == 1 and lengths > 1
    if by_length:
        return lambda r: r.context, lambda r: r.batch, ("length, tokens", "batch")
    return lambda r: r.batch, lambda r: r.context, ("batch, sequences", "length")


def _panels(
    rows: Sequence[Row], along: Axis, across: Axis, label: tuple[str, str], color: dict[str, int], unit: str
) -> Iterator[Panel]:
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[across(row)].append(row)
    for value in evenly(sorted(groups), MAX_PANELS):
        mine = sorted(groups[value], key=along)
        series = [
            Series(
                v,
                slot,
                tuple(Mark(along(r), r.median or 0.0, tip(r), r.ci_low, r.ci_high) for r in mine if r.variant == v),
            )
            for v, slot in color.items()
        ]
        floor = {along(r): r.floor for r in mine if r.floor is not None}
        if floor:
            marks = tuple(Mark(x, y, f"floor {number(y)} {unit}") for x, y in sorted(floor.items()))
            series.insert(0, Series("floor", 0, marks, "line"))
        ticks = tuple(float(x) for x in sorted({along(r) for r in mine}))
        title = f"{label[1]} {value:,}" if value else "all requests"
        yield Panel(title, Lines(label[0], unit, tuple(s for s in series if s.marks), ticks))


def _bars(rows: Sequence[Row], color: dict[str, int], unit: str) -> Panel:
    """Bars, where curves would be single points."""
    groups: dict[str, list[Bar]] = defaultdict(list)
    for row in rows:
        bounds = f" ({number(row.ci_low)} to {number(row.ci_high)})" if row.ci_low is not None else ""
        segment = Segment(row.variant, color[row.variant], row.median or 0.0, tip(row))
        name = labelled(row.variant, row.kernels)
        groups[where(point_of(row))].append(Bar(name, (segment,), f"{number(row.median)}{bounds}"))
    return Panel("", Bars(unit, tuple(BarGroup(name, tuple(bars)) for name, bars in groups.items())))


T = TypeVar("T")


def evenly(values: Sequence[T], most: int) -> list[T]:
    """At most `most` of the values, ends kept; the CSV holds them all."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
