"""Figures of memory and energy by variant, and of how the machine drifted from round to round."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from experiments.metrics import METRICS
from experiments.records import Point, Row
from experiments.reporting.charts.specs import Bar, BarGroup, Bars, Figure, Lines, Mark, Panel, Segment, Series
from experiments.reporting.figures.registry import caption_of, figure, slots
from experiments.reporting.figures.speed import evenly, tip, workloads
from experiments.reporting.formats import number, size, unit_of, where
from experiments.reporting.rows import Analysis, key_of, point_of
from experiments.reporting.tables.registry import labelled, place
from experiments.stats import MIN_ROUNDS

MAX_BARS = 32
MAX_PANELS = 6
# What a cell needed, best known first: the allocator's peak, or on a CPU the process's.
PEAKS = ("allocated", "peak_rss")


@figure("state")
def peak_memory_use(analysis: Analysis) -> Iterator[Figure]:
    """Most memory that a cell held, weights and KV cache included: what the allocator gave out, or on a CPU the largest
    size of the worker's process so far."""
    peaks: dict[tuple[Point, str], int] = defaultdict(int)
    for result in analysis.run.results:
        held = next((result.memory_bytes[name] for name in PEAKS if name in result.memory_bytes), 0)
        key = result.cell.point, result.cell.variant
        peaks[key] = max(peaks[key], held)
    for model in dict.fromkeys(point.model for point in analysis.run.points):
        known = {r: peak for r in analysis.primary if r.model == model and (peak := peaks[point_of(r), r.variant])}
        if not known:
            continue
        unit, scale = unit_of(most := max(known.values()))
        bars = [_bar(analysis, r, b / scale, f"{labelled(r.variant, r.kernels)}: {size(b)}") for r, b in known.items()]
        yield Figure(
            f"memory_{model}",
            f"Peak memory, {model} ({unit})",
            caption_of("peak_memory_use"),
            f"Bars of peak memory by variant on {model}, at most {size(most)}.",
            (Panel("", Bars(unit, _grouped(bars))),),
            (),
            ("model", "workload", "batch", "length", "variant", "peak_bytes"),
            tuple((*place(r), r.variant, bytes_) for r, bytes_ in known.items()),
        )


@figure("state")
def energy(analysis: Analysis) -> Iterator[Figure]:
    """Energy per token: what the GPU's own counter rose by while a cell was measured, warm-up included, over the tokens
    worked on; median over rounds. Paired ratios and verdicts are among the secondary metrics."""
    spent = [r for r in analysis.rows if r.metric == "energy_j_per_token" and r.median is not None]
    for model, workload in workloads(analysis):
        rows = [r for r in spent if (r.model, r.workload) == (model, workload)]
        if not rows:
            continue
        bars = [_bar(analysis, r, 1e3 * (r.median or 0.0), tip(r)) for r in rows]
        yield Figure(
            f"energy_{model}_{workload}",
            f"Energy per token, {model} {workload} (mJ)",
            caption_of("energy"),
            f"Bars of energy per token by variant on {model} {workload}.",
            (Panel("", Bars("mJ per token", _grouped(bars))),),
            (),
            ("model", "workload", "batch", "length", "variant", "j_per_token", "ci_low", "ci_high", "n"),
            tuple((*place(r), r.variant, r.median, r.ci_low, r.ci_high, r.n) for r in rows),
        )


def _bar(analysis: Analysis, row: Row, value: float, said: str) -> tuple[Point, Bar]:
    segment = Segment(row.variant, slots(analysis.run)[row.variant], value, said)
    return point_of(row), Bar(labelled(row.variant, row.kernels), (segment,), number(value))


def _grouped(bars: Sequence[tuple[Point, Bar]]) -> tuple[BarGroup, ...]:
    """By point; where there are many, some of them, ends kept."""
    points = sorted({point for point, _ in bars})
    points = evenly(points, max(2, MAX_BARS * len(points) // len(bars)))
    return tuple(BarGroup(f"{p.workload}, {where(p)}", tuple(bar for at, bar in bars if at == p)) for p in points)


@figure("state")
def rounds(analysis: Analysis) -> Iterator[Figure]:
    """Each round's value in the order measured. Clocks, heat and neighbours drift; curves that rise and fall together
    cancel in the paired ratio, a curve that moves by itself widens its interval."""
    if analysis.run.num_rounds < MIN_ROUNDS:
        return
    for model, workload in workloads(analysis):
        rows = [r for r in analysis.primary if (r.model, r.workload) == (model, workload) and r.median is not None]
        if not rows:
            continue
        metric = METRICS[rows[0].metric]
        points = evenly(sorted({point_of(r) for r in rows}), MAX_PANELS)
        panels = [Panel(where(p), _drift(analysis, [r for r in rows if point_of(r) == p], metric.unit)) for p in points]
        drawn = {r.variant: labelled(r.variant, r.kernels) for r in rows}
        yield Figure(
            f"rounds_{model}_{workload}",
            f"Round by round, {model} {workload} ({metric.unit})",
            caption_of("rounds"),
            f"Curves of {metric.name} over {analysis.run.num_rounds} rounds on {model} {workload}, by variant.",
            tuple(panels),
            tuple((drawn[v], slot) for v, slot in slots(analysis.run).items() if v in drawn),
            ("model", "workload", "batch", "length", "variant", "round", metric.name),
            tuple((*place(r), r.variant, i, value) for r in rows for i, value in _by_round(analysis, r)),
        )


def _by_round(analysis: Analysis, row: Row) -> list[tuple[int, float]]:
    return sorted(analysis.values[key_of(row)].items())


def _drift(analysis: Analysis, rows: Sequence[Row], unit: str) -> Lines:
    series = [
        Series(
            name,
            slots(analysis.run)[r.variant],
            tuple(Mark(i, v, f"{name}, round {i}: {number(v)} {unit}") for i, v in _by_round(analysis, r)),
        )
        for r in rows
        for name in [labelled(r.variant, r.kernels)]
    ]
    ticks = tuple(sorted({m.x for s in series for m in s.marks}))
    return Lines("round", unit, tuple(series), ticks, x_linear=True)
