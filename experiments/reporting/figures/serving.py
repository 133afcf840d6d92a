"""Figures of serving: what users wait for, and what they get, against the rate at which they come."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from experiments.metrics import METRICS
from experiments.records import Row
from experiments.reporting.charts.specs import Figure, Lines, Mark, Panel, Series
from experiments.reporting.figures.registry import caption_of, figure, slots
from experiments.reporting.figures.speed import tip
from experiments.reporting.formats import Value
from experiments.reporting.rows import Analysis
from experiments.reporting.tables.registry import labelled

_SHOWN = ("ttft_p50_ms", "itl_p50_ms", "goodput_requests_per_s")


@figure("where")
def serving(analysis: Analysis) -> Iterator[Figure]:
    """Median time to the first token and between tokens, and requests within the workload's limits, against the rate at
    which requests come; median over rounds with its 95 % interval, axes logarithmic. Where the first token takes ever
    longer, requests come faster than they can be served. A rate at which no request was good has no mark."""
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in analysis.rows:
        if row.metric in _SHOWN and row.median is not None and analysis.run.info.workloads[row.workload].rates:
            families[row.model, row.workload.rpartition("-")[0]].append(row)
    color = slots(analysis.run)
    for (model, name), rows in families.items():
        if len({row.workload for row in rows}) > 1:
            drawn = {row.variant: row.kernels for row in rows}
            yield Figure(
                f"serving_{model}_{name}",
                f"{model} {name}, by rate",
                caption_of("serving"),
                f"Latency and goodput of {model} {name} against the rate of arrival, by variant: {', '.join(drawn)}.",
                tuple(_panels(analysis, rows, color)),
                tuple((labelled(v, drawn[v]), slot) for v, slot in color.items() if v in drawn),
                ("model", "workload", "rate", "requests", "variant", "metric", "median", "ci_low", "ci_high", "n"),
                tuple(_record(_rate(analysis, row), row) for row in rows),
            )


def _record(rate: float, r: Row) -> tuple[Value, ...]:
    return r.model, r.workload, rate, r.batch, r.variant, r.metric, r.median, r.ci_low, r.ci_high, r.n


def _rate(analysis: Analysis, row: Row) -> float:
    return analysis.run.info.workloads[row.workload].rates[0]


def _panels(analysis: Analysis, rows: Sequence[Row], color: dict[str, int]) -> Iterator[Panel]:
    for metric in _SHOWN:
        mine = sorted((r for r in rows if r.metric == metric), key=lambda r: _rate(analysis, r))
        series = [
            Series(v, slot, tuple(_mark(_rate(analysis, r), r) for r in mine if r.variant == v))
            for v, slot in color.items()
        ]
        ticks = tuple(sorted({_rate(analysis, r) for r in mine}))
        if ticks:
            shown = tuple(s for s in series if s.marks)
            yield Panel(metric, Lines("requests/s due", METRICS[metric].unit, shown, ticks))


def _mark(rate: float, row: Row) -> Mark:
    return Mark(rate, row.median or 0.0, tip(row), row.ci_low, row.ci_high)
