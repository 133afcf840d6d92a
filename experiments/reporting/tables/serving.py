"""The table of serving: what users of an engine wait for, by rate of arrival."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from experiments.records import CellResult, Status
from experiments.reporting.formats import Column, Kind, Value
from experiments.reporting.rows import Analysis
from experiments.reporting.tables.registry import VARIANT, Content, labelled, table
from experiments.stats import percentile

_TIMES = ("ttft", "itl", "e2e")
_QUANTILES = (0.5, 0.9, 0.99)


@table("Serving, by rate of arrival", "where")
def serving(analysis: Analysis) -> Content | None:
    """Percentiles over the requests (TTFT and end to end, from when a request was due) and the tokens (inter-token
    latency) of all rounds, in ms, where n supports them; medians of the rates over all windows. Good requests met the
    workload's two limits. Backlog: the most requests that had no first token when the last arrived; saturated: windows
    in which the engine fell behind, where times grow with the length of the run."""
    columns = (
        Column("model", "Model"),
        Column("workload", "Workload"),
        Column("rate", "Requests/s due", Kind.NUMBER),
        Column("requests", "Requests", Kind.COUNT),
        VARIANT,
        *(
            Column(f"{t}_p{100 * q:.0f}_ms", f"{t.upper()} p{100 * q:.0f}", Kind.NUMBER)
            for t in _TIMES
            for q in _QUANTILES
        ),
        Column("requests_per_s", "Served/s", Kind.NUMBER),
        Column("goodput_requests_per_s", "Good/s", Kind.NUMBER),
        Column("output_tokens_per_s", "Tokens/s", Kind.NUMBER),
        Column("backlog", "Backlog", Kind.COUNT),
        Column("saturated", "Saturated", Kind.COUNT),
    )
    groups: dict[tuple[Value, ...], list[CellResult]] = defaultdict(list)
    for rate, result in sorted(_served(analysis), key=lambda served: served[0]):
        point, name = result.cell.point, labelled(result.cell.variant, result.kernels)
        groups[point.model, point.workload, rate, point.batch, name].append(result)
    return Content(columns, [(*place, *_figures(cells)) for place, cells in groups.items()])


def _served(analysis: Analysis) -> Iterator[tuple[float, CellResult]]:
    """(rate, cell) of every serving cell that is ok."""
    for result in analysis.run.results:
        rates = analysis.run.info.workloads[result.cell.point.workload].rates
        if rates and result.status is Status.OK:
            yield rates[0], result


def _figures(cells: Sequence[CellResult]) -> tuple[Value, ...]:
    """What follows the place of a row: pooled over the rounds."""
    pooled: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        for name, samples in cell.samples.items():
            pooled[name] += samples
    times = [percentile(pooled[f"{t}_ms"], q) for t in _TIMES for q in _QUANTILES]
    rates = [median(pooled[name]) for name in ("requests_per_s", "goodput_requests_per_s", "output_tokens_per_s")]
    backlog = max(cell.counters.get("backlog", 0.0) for cell in cells)
    return *times, *rates, int(backlog), int(sum(cell.counters.get("saturated", 0.0) for cell in cells))
