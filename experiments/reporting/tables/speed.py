"""Tables of speed: by workload, by point, every row, and the spread behind them."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple
from statistics import median

from experiments.config import BASELINE
from experiments.metrics import METRICS
from experiments.records import Row, Status
from experiments.reporting.ablation import ADDED, LEFT_OUT, Ablation, ablations
from experiments.reporting.formats import Column, Kind, Value
from experiments.reporting.headline import aggregates, lead_of
from experiments.reporting.rows import Analysis, key_of, point_of
from experiments.reporting.tables.registry import PLACE, VARIANT, Content, labelled, place, table
from experiments.stats import Claim, percentile, spread


@table("Speed-up by workload", "faster")
def summary(analysis: Analysis) -> Content | None:
    """Geometric mean of the paired speed-up over all points of a workload, taken within each round that all of them
    have, with its 95 % interval over rounds; the least and the greatest point, each by the median of its rounds, so
    that the mean may lie a little beyond them; verdicts by point."""
    columns = (
        Column("model", "Model"),
        Column("workload", "Workload"),
        VARIANT,
        Column("speedup", "Speed-up", Kind.RATIO),
        Column("speedup_ci_low", "CI low", Kind.RATIO),
        Column("speedup_ci_high", "CI high", Kind.RATIO),
        Column("slowest", "Least", Kind.RATIO),
        Column("fastest", "Greatest", Kind.RATIO),
        Column("points", "Points", Kind.COUNT),
        Column("points_ok", "Compared", Kind.COUNT),
        *(Column(c.value, c.value.capitalize(), Kind.COUNT) for c in Claim),
    )
    kernels = {(r.model, r.workload, r.variant): r.kernels for r in analysis.primary}
    rows: list[tuple[Value, ...]] = []
    for a in aggregates(analysis):
        level = (a.speedup.value, a.speedup.low, a.speedup.high) if a.speedup else (None, None, None)
        ends = tuple(r.speedup if r else None for r in (a.slowest, a.fastest))
        name = labelled(a.variant, kernels[a.model, a.workload, a.variant])
        rows.append((a.model, a.workload, name, *level, *ends, a.num_points, a.num_ok, *a.claims.values()))
    return Content(columns, rows)


@table("Every point at a glance", "faster")
def headline(analysis: Analysis) -> Content | None:
    """Median of the primary metric by variant (ms per step, per prefill and between tokens of serving; tokens/s
    offline); then speed-up, interval, verdict and share of the physical floor of the variant that the report leads
    with: `fused`, or else the last of the plan."""
    lead = lead_of(analysis.run.variants)
    variants = analysis.run.variants
    by_point: dict[tuple[Value, ...], dict[str, Row]] = defaultdict(dict)
    for row in analysis.primary:
        by_point[(*place(row), row.metric)][row.variant] = row
    medians = tuple(Column(v, v, Kind.NUMBER) for v in variants)
    tail = (
        Column("speedup", f"{lead} vs {BASELINE}", Kind.RATIO),
        Column("speedup_ci_low", "CI low", Kind.RATIO),
        Column("speedup_ci_high", "CI high", Kind.RATIO),
        Column("verdict", "Verdict", Kind.CLAIM),
        Column("share_of_floor", "Share of floor", Kind.PERCENT),
    )
    rows = []
    for where, found in by_point.items():
        cells = [_median_or_status(found.get(v)) for v in variants]
        rows.append((*where[:4], METRICS[str(where[4])].unit, *cells, *_lead_values(found.get(lead or ""))))
    return Content((*PLACE, Column("unit", "Unit"), *medians, *(tail if lead else ())), rows)


def _median_or_status(row: Row | None) -> Value:
    if row is None:
        return None
    return row.median if row.status is Status.OK else row.status.value


def _lead_values(row: Row | None) -> tuple[Value, ...]:
    if row is None:
        return (None,) * 5
    verdict = row.verdict if row.status is Status.OK else row.status.value
    if "twin" in row.kernels and row.status is Status.OK:
        verdict = f"{verdict} (twin)"
    return row.speedup, row.speedup_ci_low, row.speedup_ci_high, verdict, row.share_of_floor


@table("What each rung is worth", "faster")
def ablation(analysis: Analysis) -> Content | None:
    """Variants that differ in one rung alone, paired within rounds: added to nothing (or to what it needs), and left
    out of the whole. Savings are medians of the paired differences; they do not add up, because rungs overlap: compare
    the sums with what all save together. Verdicts are corrected for all comparisons of this table."""
    columns = (
        *PLACE,
        Column("how", "How"),
        Column("rung", "Rung"),
        Column("saved_ms", "Saves, ms", Kind.NUMBER),
        Column("speedup", "Speed-up", Kind.RATIO),
        Column("speedup_ci_low", "CI low", Kind.RATIO),
        Column("speedup_ci_high", "CI high", Kind.RATIO),
        Column("verdict", "Verdict", Kind.CLAIM),
        Column("having", "With it"),
        Column("without", "Without it"),
    )
    rows = [(*astuple(a.point), *line) for a in ablations(analysis) for line in _ablation(a, analysis.run.is_twin)]
    return Content(columns, rows)


def _ablation(a: Ablation, is_twin: bool) -> Iterator[tuple[Value, ...]]:
    for w in a.worths:
        level = (w.speedup.value, w.speedup.low, w.speedup.high) if w.speedup else (None, None, None)
        verdict = f"{w.verdict}{' (twin)' * is_twin}" if w.verdict else "no value"
        yield (w.rung.how, w.rung.name, w.saved_ms, *level, verdict, w.rung.having, w.rung.without)
    for how in (ADDED, LEFT_OUT):
        if saved := [w.saved_ms for w in a.of(how) if w.saved_ms is not None]:
            name = f"sum of the rungs{' measured' * bool(a.lacking(how))}"
            yield (how, name, sum(saved), None, None, None, None, None, None)
    if a.full_ms is not None:
        yield ("together", "all", a.baseline_ms - a.full_ms, None, None, None, None, a.full, BASELINE)


_RESULT = (
    *PLACE,
    VARIANT,
    Column("metric", "Metric"),
    Column("median", "Median", Kind.NUMBER),
    Column("ci_low", "CI low", Kind.NUMBER),
    Column("ci_high", "CI high", Kind.NUMBER),
    Column("rounds", "n", Kind.COUNT),
    Column("baseline_median", "Baseline", Kind.NUMBER),
    Column("speedup", "Speed-up", Kind.RATIO),
    Column("speedup_ci_low", "CI low", Kind.RATIO),
    Column("speedup_ci_high", "CI high", Kind.RATIO),
    Column("verdict", "Verdict", Kind.CLAIM),
    Column("floor", "Floor", Kind.NUMBER),
    Column("share_of_floor", "Share", Kind.PERCENT),
    Column("kernels", "Kernels"),
    Column("status", "Status", Kind.CLAIM),
    Column("reason", "Reason"),
)


def _result(row: Row) -> tuple[Value, ...]:
    level = (row.median, row.ci_low, row.ci_high, row.n, row.baseline_median)
    gain = (row.speedup, row.speedup_ci_low, row.speedup_ci_high, row.verdict or None)
    bound = (row.floor, row.share_of_floor)
    return (*place(row), row.variant, row.metric, *level, *gain, *bound, row.kernels, row.status.value, row.reason)


def _results(rows: list[Row]) -> Content:
    """The rows, with the machine of each where they are unlike."""
    if not any(row.machine for row in rows):
        return Content(_RESULT, [_result(row) for row in rows])
    return Content((*_RESULT, Column("machine", "Machine")), [(*_result(row), row.machine) for row in rows])


@table("All results", "data", folded=True)
def results(analysis: Analysis) -> Content | None:
    """Every (point, variant) on the primary metric of its workload: median over rounds and 95 % interval, paired
    speed-up over the baseline and 95 % interval, verdict, floor and share of it."""
    return _results(list(analysis.primary))


@table("Secondary metrics", "data", folded=True, page_rows=300)
def metrics(analysis: Analysis) -> Content | None:
    """The same for every other metric. Each is a family of its own in the correction for many comparisons."""
    return _results([r for r in analysis.rows if not METRICS[r.metric].primary])


@table("Spread of the raw samples", "data", folded=True, page_rows=300)
def dispersion(analysis: Analysis) -> Content | None:
    """Percentiles over all raw samples of all rounds, printed only where n supports them (29 for p90, 59 for p95, 299
    for p99); noise is the standard deviation of the logarithm between rounds, of the level and of the paired ratio."""
    columns = (
        *PLACE,
        VARIANT,
        Column("metric", "Metric"),
        Column("samples", "Samples", Kind.COUNT),
        *(Column(p, p, Kind.NUMBER) for p in ("min", "p50", "p90", "p95", "p99", "max")),
        Column("noise", "Noise, level", Kind.PERCENT),
        Column("noise_ratio", "Noise, ratio", Kind.PERCENT),
    )
    samples: dict[tuple[object, str], list[float]] = defaultdict(list)
    kinds = analysis.run.info.kind
    measured = {(point_of(r), r.variant): METRICS[r.metric].sampled for r in analysis.primary if r.median is not None}
    for result in analysis.run.results:
        key = (result.cell.point, result.cell.variant)
        if key in measured and kinds(result.cell.point.workload):
            samples[key] += result.samples.get(measured[key], [])
    rows = []
    for row in analysis.primary:
        taken = sorted(samples.get((point_of(row), row.variant), []))
        if not taken:
            continue
        tails = [percentile(taken, q) for q in (0.9, 0.95, 0.99)]
        noise = spread(list(analysis.values[key_of(row)].values()))
        paired = spread(list(analysis.ratios.get(key_of(row), {}).values()))
        shown = (taken[0], median(taken), *tails, taken[-1], noise, paired)
        rows.append((*place(row), labelled(row.variant, row.kernels), row.metric, len(taken), *shown))
    return Content(columns, rows)
