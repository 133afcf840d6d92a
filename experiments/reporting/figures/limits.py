"""Figures of the distance to the physical limit: share of the floor, and the roofline."""

from collections import defaultdict
from collections.abc import Iterator

from experiments.metrics import METRICS
from experiments.records import Row
from experiments.reporting.charts.specs import Bar, BarGroup, Bars, Figure, Lines, Mark, Panel, Segment, Series
from experiments.reporting.figures.registry import caption_of, figure, slots
from experiments.reporting.figures.speed import tip, where, workloads
from experiments.reporting.formats import Value, number, percent
from experiments.reporting.rows import Analysis, point_of
from experiments.reporting.tables.registry import labelled

MAX_POINTS = 12


@figure("limit")
def floor_share(analysis: Analysis) -> Iterator[Figure]:
    """Share of the attainable speed that each variant reaches: floor over measured time. The dashed line is the floor
    itself, least bytes and FLOP over the ceilings measured in this run."""
    color = slots(analysis.run.variants)
    for model, workload in workloads(analysis):
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in analysis.primary:
            if (row.model, row.workload) == (model, workload) and row.share_of_floor is not None:
                groups[where(row)].append(row)
        if not groups:
            continue
        known = [r for rows in groups.values() for r in rows]
        best = max(known, key=lambda r: r.share_of_floor or 0.0)
        shown = list(groups.items())[:MAX_POINTS]
        bars = tuple(BarGroup(name, tuple(_share_bar(r, color[r.variant]) for r in rows)) for name, rows in shown)
        note = "" if len(shown) == len(groups) else f" The first {MAX_POINTS} of {len(groups)} points; the CSV has all."
        columns = ("model", "workload", "batch", "length", "variant", "share_of_floor", "floor", "median")
        records: list[tuple[Value, ...]] = [
            (r.model, r.workload, r.batch, r.context, r.variant, r.share_of_floor, r.floor, r.median) for r in known
        ]
        yield Figure(
            f"floor_share_{model}_{workload}",
            f"Share of the floor, {model} {workload}",
            caption_of("floor_share") + note,
            f"Bars of the share of the floor on {model} {workload}; the greatest is {percent(best.share_of_floor)} "
            f"({best.variant}, {where(best)}).",
            (Panel("", Bars("share of the physical floor", bars, limit=1.0)),),
            (),
            columns,
            tuple(records),
        )


def _share_bar(row: Row, slot: int) -> Bar:
    share = row.share_of_floor or 0.0
    return Bar(labelled(row.variant, row.kernels), (Segment(row.variant, slot, share, tip(row)),), percent(share))


@figure("limit")
def roofline(analysis: Analysis) -> Iterator[Figure]:
    """Useful FLOP per second against useful FLOP per byte, both by the formulas under Methods, one mark per point and
    variant. The dashed roof is what this machine reached in this run: its read bandwidth, then its bf16 rate."""
    ceilings = analysis.run.info.ceilings
    if ceilings is None:
        return
    color = slots(analysis.run.variants)
    for model, workload in workloads(analysis):
        rows = [
            r for r in analysis.primary if (r.model, r.workload) == (model, workload) and r.share_of_floor is not None
        ]
        if not rows:
            continue
        series, records = [], []
        for variant, slot in color.items():
            marks = []
            for row in (r for r in rows if r.variant == variant):
                floor = analysis.floors[point_of(row)]
                achieved = floor.flop / (floor.floor_ms / 1e3) * (row.share_of_floor or 0.0)
                intensity = floor.flop / floor.bytes
                said = f"{tip(row)}\n{number(achieved / 1e12)} TFLOP/s at {number(intensity)} FLOP per byte"
                marks.append(Mark(intensity, achieved, said))
                records.append((model, workload, row.batch, row.context, variant, intensity, achieved))
            series.append(Series(variant, slot, tuple(marks), "marks"))
        xs = [m.x for s in series for m in s.marks]
        ridge = ceilings.bf16_flop_per_s / ceilings.read_bytes_per_s
        knots = sorted({min(xs) / 1.5, max(xs) * 1.5, min(max(ridge, min(xs) / 1.5), max(xs) * 1.5)})
        roof = [Mark(x, min(x * ceilings.read_bytes_per_s, ceilings.bf16_flop_per_s), "roof") for x in knots]
        series.insert(0, Series("roof", 0, tuple(roof), "line"))
        yield Figure(
            f"roofline_{model}_{workload}",
            f"Roofline, {model} {workload} (FLOP/s)",
            caption_of("roofline"),
            f"Roofline of {model} {workload}: achieved FLOP per second against arithmetic intensity.",
            (Panel("", Lines("FLOP per byte", "FLOP/s", tuple(s for s in series if s.marks))),),
            tuple((v, s) for v, s in color.items() if any(r.variant == v for r in rows)),
            ("model", "workload", "batch", "length", "variant", "flop_per_byte", "flop_per_s"),
            tuple(records),
        )


def metric_unit(row: Row) -> str:
    """The unit of a row's metric."""
    return METRICS[row.metric].unit
