"""Figures of the distance to the physical limit: share of the floor, and the roofline."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from experiments.floors import Ceilings
from experiments.records import Row
from experiments.reporting.charts.specs import Dot, Dots, Figure, Lines, Mark, Panel, Series
from experiments.reporting.figures.registry import caption_of, figure, slots
from experiments.reporting.figures.speed import evenly, tip
from experiments.reporting.formats import Value, number, percent, where
from experiments.reporting.rows import Analysis, point_of

MAX_POINTS = 24
MAX_MARKED = 48
_PLACE = ("model", "workload", "batch", "length", "variant")


def _bounded(analysis: Analysis) -> dict[str, list[Row]]:
    """Primary rows that have a floor, by model."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in analysis.primary:
        if row.share_of_floor is not None:
            groups[row.model].append(row)
    return dict(sorted(groups.items()))


def _place(row: Row) -> tuple[Value, ...]:
    return row.model, row.workload, row.batch, row.context, row.variant


def _legend(color: dict[str, int], rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    drawn = {r.variant for r in rows}
    return tuple((v, s) for v, s in color.items() if v in drawn)


@figure("limit")
def floor_share(analysis: Analysis) -> Iterator[Figure]:
    """Share of the attainable speed that each variant reaches: floor over measured time. The dashed line is the floor
    itself, least bytes and FLOP over the ceilings measured in this run; the number is that of the best variant."""
    color = slots(analysis.run)
    for model, rows in _bounded(analysis).items():
        best = max(rows, key=lambda r: r.share_of_floor or 0.0)
        kinds = list(dict.fromkeys(r.workload for r in rows))
        yield Figure(
            f"floor_share_{model}",
            f"Share of the floor, {model}",
            caption_of("floor_share"),
            f"Share of the floor on {model}; the greatest is {percent(best.share_of_floor)} "
            f"({best.variant}, {best.workload}, {where(point_of(best))}).",
            tuple(_share_panel(kind, [r for r in rows if r.workload == kind], color) for kind in kinds),
            _legend(color, rows),
            (*_PLACE, "share_of_floor", "floor", "median"),
            tuple((*_place(r), r.share_of_floor, r.floor, r.median) for r in rows),
        )


def _share_panel(workload: str, rows: Sequence[Row], color: dict[str, int]) -> Panel:
    points: dict[str, list[Dot]] = defaultdict(list)
    for row in rows:
        points[where(point_of(row))].append(Dot(color[row.variant], row.share_of_floor or 0.0, tip(row)))
    shown = [(name, tuple(dots)) for name, dots in points.items()][:MAX_POINTS]
    title = workload if len(shown) == len(points) else f"{workload}, the first {len(shown)} of {len(points)} points"
    return Panel(title, Dots("share of the physical floor", tuple(shown), limit=1.0))


@figure("limit")
def roofline(analysis: Analysis) -> Iterator[Figure]:
    """Useful FLOP per second against useful FLOP per byte, both by the formulas under How it was measured, one mark
    per point and variant. The dashed roof is what this machine reached in this run: its read bandwidth, then its bf16
    rate."""
    info, bounded = analysis.run.info, _bounded(analysis)
    # One roof: rows of unlike machines are under another.
    models = {m: kept for m, rows in bounded.items() if (kept := [r for r in rows if r.machine in ("", info.gpu)])}
    ceilings = info.ceilings
    if ceilings is None or not models:
        return
    color = slots(analysis.run)
    everything = [r for rows in models.values() for r in rows]
    yield Figure(
        "roofline",
        "Roofline (FLOP/s)",
        caption_of("roofline"),
        f"Roofline: achieved FLOP per second against arithmetic intensity for {', '.join(models)}.",
        tuple(_roofline_panel(analysis, model, rows, color, ceilings) for model, rows in models.items()),
        _legend(color, everything),
        (*_PLACE, "flop_per_byte", "flop_per_s"),
        tuple((*_place(r), *_achieved(analysis, r)) for r in everything),
    )


def _achieved(analysis: Analysis, row: Row) -> tuple[float, float]:
    """(FLOP per byte, FLOP per second) of a row."""
    floor = analysis.floors[point_of(row)]
    return floor.flop / floor.bytes, 1e3 * floor.flop / floor.floor_ms * (row.share_of_floor or 0.0)


def _roofline_panel(
    analysis: Analysis, model: str, rows: Sequence[Row], color: dict[str, int], ceilings: Ceilings
) -> Panel:
    points = sorted({point_of(r) for r in rows})
    kept = set(evenly(points, MAX_MARKED))
    title = model if len(kept) == len(points) else f"{model}, {len(kept)} of {len(points)} points"
    return Panel(title, _roofline(analysis, [r for r in rows if point_of(r) in kept], color, ceilings))


def _roofline(analysis: Analysis, rows: Sequence[Row], color: dict[str, int], ceilings: Ceilings) -> Lines:
    series = []
    for variant, slot in color.items():
        marks = []
        for row in (r for r in rows if r.variant == variant):
            intensity, rate = _achieved(analysis, row)
            said = f"{row.workload}, {tip(row)}\n{number(rate / 1e12)} TFLOP/s at {number(intensity)} FLOP per byte"
            marks.append(Mark(intensity, rate, said))
        if marks:
            series.append(Series(variant, slot, tuple(marks), "marks"))
    xs = [m.x for s in series for m in s.marks]
    low, high = min(xs) / 1.5, max(xs) * 1.5
    ridge = ceilings.bf16_flop_per_s / ceilings.read_bytes_per_s
    knots = sorted({low, high, min(max(ridge, low), high)})
    roof = tuple(Mark(x, min(x * ceilings.read_bytes_per_s, ceilings.bf16_flop_per_s), "roof") for x in knots)
    return Lines("FLOP per byte", "FLOP/s", (Series("roof", 0, roof, "line"), *series))
