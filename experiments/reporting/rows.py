"""Cells to rows: one row per (point, variant, metric), summarised over rounds and compared with the baseline."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.config import BASELINE
from experiments.floors import Ceilings, Floor, floor_of
from experiments.metrics import METRICS, Better, Metric, metrics_of
from experiments.records import CellResult, Point, Row, Status
from experiments.reporting.run import Run
from experiments.reporting.shards import ceilings_at, mixed_machines
from experiments.stats import MIN_ROUNDS, Claim, Estimate, Looks, SampleError, claims, estimate, paired_ratios

# Which status a row takes when its rounds ended differently: a wrong answer outweighs a missing one.
SEVERITY = (Status.INVALID, Status.ERROR, Status.OOM, Status.TIMEOUT, Status.SKIPPED)

Key = tuple[Point, str, str]


@dataclass(frozen=True)
class Analysis:
    """The rows of a run and what is behind them: per (point, variant, metric) the value of each round and the paired
    speed-up of each round; per point its floor, where one is known."""

    run: Run
    rows: tuple[Row, ...]
    values: Mapping[Key, Mapping[int, float]]
    ratios: Mapping[Key, Mapping[int, float]]
    floors: Mapping[Point, Floor]

    @property
    def primary(self) -> tuple[Row, ...]:
        """Rows of each workload's primary metric: one per (point, variant)."""
        return tuple(r for r in self.rows if METRICS[r.metric].primary)


def point_of(row: Row) -> Point:
    """The place that a row is about."""
    return Point(row.model, row.workload, row.batch, row.context)


def key_of(row: Row) -> Key:
    """Where a row's values are found in an Analysis."""
    return point_of(row), row.variant, row.metric


def analyse(run: Run) -> Analysis:
    """Summarise a run: values per round, paired ratios, intervals, family-wise verdicts, floors."""
    groups: dict[tuple[Point, str], list[CellResult]] = defaultdict(list)
    for result in run.results:
        groups[result.cell.point, result.cell.variant].append(result)
    machines = mixed_machines(run)
    floors = {p: floor for p in run.points if (floor := _floor(run, p, ceilings_at(run, machines, p))) is not None}
    order = {variant: index for index, variant in enumerate(run.variants)}
    rows: list[Row] = []
    values: dict[Key, dict[int, float]] = {}
    for (point, _), cells in sorted(groups.items(), key=lambda item: (item[0][0], order[item[0][1]])):
        # A floor is that of one GPU.
        floor = floors.get(point) if all(cell.counters.get("ranks", 1) == 1 for cell in cells) else None
        for metric in metrics_of(run.info.kind(point.workload)):
            row, by_round = _level(cells, metric)
            if row is not None:
                marked = replace(row, machine=machines.get(point, ""))
                rows.append(_with_floor(marked, metric, floor))
                values[key_of(row)] = by_round
    ratios = _compare(rows, values)
    return Analysis(run, tuple(_with_speedups(rows, values, ratios, run.info.looks)), values, ratios, floors)


def _floor(run: Run, point: Point, ceilings: Ceilings | None) -> Floor | None:
    """The floor of a point, where its workload has one; the model's sizes are known once a worker has loaded it, the
    ceilings once its machine was measured."""
    info = run.info
    if point.model not in info.models or ceilings is None:
        return None
    workload = info.workloads[point.workload]
    return floor_of(info.models[point.model], workload, point, ceilings, info.dtype_bytes, info.seed)


def _level(cells: Sequence[CellResult], metric: Metric) -> tuple[Row | None, dict[int, float]]:
    """The row of one metric before any comparison, and its value per round; None where it was not sampled at all.

    One round that failed makes the row not ok: survivors of a failing cell are no measurement of it. Rounds that were
    skipped while others ran (settled, a time budget, an interruption) are only fewer rounds.
    """
    point, variant = cells[0].cell.point, cells[0].cell.variant
    kernels = "/".join(sorted({c.kernels for c in cells if c.kernels}))
    row = Row(point.model, point.workload, point.batch, point.length, variant, metric.name, Status.OK, kernels=kernels)
    ran = [c for c in cells if c.status is not Status.SKIPPED] or cells
    failed = [(c.status, c.reason, c.cell.round) for c in ran if c.status is not Status.OK]
    if failed:
        status, reason = _worst(failed, len(ran))
        good = len(ran) - len(failed)
        return (replace(row, status=status, reason=reason, n=good) if metric.primary else None), {}
    values: dict[int, float] = {}
    try:
        for cell in ran:
            value = metric.value(cell)
            if value is not None:
                values[cell.cell.round] = value
        if metric.primary and len(values) < len(ran):
            raise SampleError(f"{len(ran) - len(values)} of {len(ran)} rounds have no samples of {metric.sampled}")
    except SampleError as error:
        return (replace(row, status=Status.ERROR, reason=str(error)) if metric.primary else None), {}
    if not values:
        return None, {}
    got = estimate(list(values.values()))
    return replace(row, n=got.n, median=got.value, ci_low=got.low, ci_high=got.high), values


def _worst(failed: Sequence[tuple[Status, str, int]], rounds: int) -> tuple[Status, str]:
    status, reason, _ = min(failed, key=lambda f: (SEVERITY.index(f[0]), f[2]))
    alike = sum(other is status for other, _, _ in failed)
    return status, reason if alike == rounds else f"{reason} (in {alike} of {rounds} rounds)"


def _with_floor(row: Row, metric: Metric, floor: Floor | None) -> Row:
    bound = metric.floor(floor) if floor is not None and metric.bounded else None
    if bound is None or row.median is None:
        return row
    return replace(row, floor=bound, share_of_floor=metric.share_of_floor(row.median, bound))


def _compare(rows: Sequence[Row], values: Mapping[Key, Mapping[int, float]]) -> dict[Key, dict[int, float]]:
    """Paired speed-ups by round, over the baseline of the same rounds, of every row that has one."""
    kernels = {key_of(row): row.kernels for row in rows}
    ratios: dict[Key, dict[int, float]] = {}
    for row in rows:
        against = (point_of(row), BASELINE, row.metric)
        if row.variant == BASELINE or not _comparable(row.kernels, kernels.get(against)):
            continue
        lower_is_better = METRICS[row.metric].better is Better.LOWER
        if paired := paired_ratios(values[against], values[key_of(row)], lower_is_better):
            ratios[key_of(row)] = paired
    return ratios


def _comparable(kernels: str, baseline: str | None) -> bool:
    """Compiled with compiled, twins with twins; another engine with compiled kernels only."""
    return kernels == baseline or (kernels, baseline) == ("peer", "compiled")


def _with_speedups(
    rows: Sequence[Row],
    values: Mapping[Key, Mapping[int, float]],
    ratios: Mapping[Key, Mapping[int, float]],
    looks: Looks,
) -> list[Row]:
    """Add estimate, interval and verdict. The primary metrics of a run are one family, every other metric its own."""
    estimates = {key: estimate(list(paired.values())) for key, paired in ratios.items()}
    verdicts: dict[Key, Claim | None] = {}
    for family in _families(estimates):
        verdicts |= zip(family, claims([estimates[key] for key in family], looks), strict=True)
    return [_with_speedup(row, estimates.get(key_of(row)), verdicts.get(key_of(row)), values, ratios) for row in rows]


def _families(keys: Iterable[Key]) -> list[list[Key]]:
    families: dict[str, list[Key]] = defaultdict(list)
    for key in keys:
        families["primary" if METRICS[key[2]].primary else key[2]].append(key)
    return list(families.values())


def _with_speedup(
    row: Row,
    speedup: Estimate | None,
    verdict: Claim | None,
    values: Mapping[Key, Mapping[int, float]],
    ratios: Mapping[Key, Mapping[int, float]],
) -> Row:
    if row.variant == BASELINE or row.status is not Status.OK:
        return row
    if speedup is None or verdict is None:
        return replace(row, verdict=Claim.UNRESOLVED, reason="no baseline that is ok with the same kind of kernels")
    baseline = values[point_of(row), BASELINE, row.metric]
    return replace(
        row,
        verdict=verdict.value,
        reason=_why_unresolved(speedup) if verdict is Claim.UNRESOLVED else "",
        baseline_median=estimate([baseline[r] for r in ratios[key_of(row)]]).value,
        speedup=speedup.value,
        speedup_ci_low=speedup.low,
        speedup_ci_high=speedup.high,
    )


def _why_unresolved(speedup: Estimate) -> str:
    if speedup.low is None or speedup.high is None:
        return f"{speedup.n} paired round{'s' * (speedup.n != 1)}: an interval takes {MIN_ROUNDS}"
    if speedup.low <= 1 <= speedup.high:
        return "the interval holds parity and is wider than +-1 %"
    return "not significant once corrected for all comparisons of the run"
