"""Tables of what was traced: kernels, what fusion changed, the traces themselves, and hardware counters."""

import math
from collections import Counter, defaultdict

from experiments.config import BASELINE
from experiments.floors import Floor
from experiments.reporting.formats import Column, Kind, Value, provenance
from experiments.reporting.info import RunInfo
from experiments.reporting.ledgers import Traced, owner_of
from experiments.reporting.rows import Analysis
from experiments.reporting.tables.registry import PLACE, VARIANT, Content, table
from experiments.trace.tables import COUNTER_COLUMNS, counter_values

MOST_KERNELS = 12


@table("Kernels", "where")
def kernels(analysis: Analysis) -> Content | None:
    """The kernels that take most of a traced step, the top twelve of each traced cell; times are the profiler's. Under
    programmatic dependent launch a kernel's time holds its wait for the one before it, and shares are no costs."""
    columns = (
        *PLACE,
        VARIANT,
        Column("kernel", "Kernel"),
        Column("op", "Op"),
        Column("phase", "Phase"),
        Column("launches_per_step", "Launches per step", Kind.NUMBER),
        Column("us_per_step", "µs per step", Kind.NUMBER),
        Column("share", "Share of busy time", Kind.PERCENT),
    )
    rows: list[tuple[Value, ...]] = []
    for ledger in analysis.run.ledgers:
        time_us: dict[tuple[str, str, str], float] = defaultdict(float)
        launches: Counter[tuple[str, str, str]] = Counter()
        for k in ledger.kernels:
            key = (k.name, owner_of(k.op, k.phase), k.phase or "")
            time_us[key] += k.total_us
            launches[key] += k.count
        total = math.fsum(time_us.values()) or 1.0
        p = ledger.cell.point
        head = (p.model, p.workload, p.batch, p.length, ledger.label)
        for key, us in sorted(time_us.items(), key=lambda item: (-item[1], item[0]))[:MOST_KERNELS]:
            per_step = (launches[key] * ledger.per_step, us * ledger.per_step, us / total)
            rows.append((*head, key[0], key[1], key[2], *per_step))
    return Content(columns, rows)


@table("What fusion changed", "where")
def kernel_changes(analysis: Analysis) -> Content | None:
    """Launches and device time per traced step by operation, each variant beside the baseline of the same point; most
    time saved first. An operation that one side lacks is zero there. Under programmatic dependent launch a kernel's
    time holds its wait for the one before it: what one operation saves may be another's."""
    columns = (
        *PLACE,
        VARIANT,
        Column("op", "Op"),
        Column("baseline_launches", "Launches, baseline", Kind.NUMBER),
        Column("launches", "Launches, variant", Kind.NUMBER),
        Column("baseline_us", "µs, baseline", Kind.NUMBER),
        Column("us", "µs, variant", Kind.NUMBER),
        Column("saved_us", "µs saved", Kind.NUMBER),
    )
    by_point = {g.cell.point: _by_op(g) for g in analysis.run.ledgers if g.cell.variant == BASELINE}
    rows: list[tuple[Value, ...]] = []
    for ledger in analysis.run.ledgers:
        p = ledger.cell.point
        if ledger.cell.variant == BASELINE or p not in by_point:
            continue
        before, after = by_point[p], _by_op(ledger)
        pairs = {op: (*before.get(op, (0.0, 0.0)), *after.get(op, (0.0, 0.0))) for op in before | after}
        for op, (n0, us0, n1, us1) in sorted(pairs.items(), key=lambda item: (item[1][3] - item[1][1], item[0])):
            rows.append((p.model, p.workload, p.batch, p.length, ledger.label, op, n0, n1, us0, us1, us0 - us1))
    return Content(columns, rows)


def _by_op(ledger: Traced) -> dict[str, tuple[float, float]]:
    """(launches, microseconds) per step of each op."""
    sums: dict[str, tuple[float, float]] = {}
    for k in ledger.kernels:
        op = owner_of(k.op, k.phase)
        launches, us = sums.get(op, (0.0, 0.0))
        sums[op] = (launches + k.count * ledger.per_step, us + k.total_us * ledger.per_step)
    return sums


@table("Traces", "where")
def traces(analysis: Analysis) -> Content | None:
    """Each traced cell; of several devices all that is said of traces is the mean. Coverage is the share of device time
    that found its layer and op; inflation is the profiled over the un-profiled step time; idle is the share of the
    traced window in which the device did nothing. Kernels and idle together are 100 % of the window where no kernels
    overlap, and more where they do, as under programmatic dependent launch: a kernel's time then holds its wait for the
    one before it. GB/s are the point's least bytes (see its floor), spread over the devices, over the busy time. A
    fusion is live when its kernel is in the trace, and left off where the dispatcher finds that it does not pay."""
    columns = (
        *PLACE,
        VARIANT,
        Column("profiler", "Profiler"),
        Column("steps", "Steps", Kind.COUNT),
        Column("launches_per_step", "Launches per step", Kind.NUMBER),
        Column("busy_us_per_step", "Busy, µs per step", Kind.NUMBER),
        Column("busy_gb_per_s", "GB/s while busy", Kind.NUMBER),
        Column("idle", "Idle", Kind.PERCENT),
        Column("closure", "Kernels + idle", Kind.PERCENT),
        Column("coverage", "Coverage", Kind.PERCENT),
        Column("inflation", "Inflation", Kind.RATIO),
        Column("fusions", "Fusions"),
    )
    rows: list[tuple[Value, ...]] = []
    for ledger in analysis.run.ledgers:
        p = ledger.cell.point
        launches = sum(k.count for k in ledger.kernels) * ledger.per_step
        floor, busy_us = analysis.floors.get(p), ledger.busy_us
        gb_per_s = _bytes_per_step(ledger, floor) / ledger.devices / busy_us / 1e3 if floor and busy_us else None
        idle = ledger.idle_us / ledger.step_us if ledger.step_us > 0 else None
        rungs = ", ".join(f"{rung.name} {rung.fate}" for rung in ledger.rungs)
        head = (p.model, p.workload, p.batch, p.length, ledger.label, _made_by(ledger, analysis.run.info), ledger.steps)
        sums = (launches, busy_us, gb_per_s, idle, ledger.kernels_and_idle)
        rows.append((*head, *sums, ledger.coverage, ledger.inflation, rungs))
    return Content(columns, rows)


def _bytes_per_step(ledger: Traced, floor: Floor) -> float:
    """The least that a step moves: of a whole run that was traced, on average."""
    runs = ledger.output_tokens / floor.tokens / ledger.steps if ledger.output_tokens else 1
    return floor.bytes * runs


def _made_by(ledger: Traced, info: RunInfo) -> str:
    """The profiler, and where the trace comes from if not from the run and its code."""
    words = [ledger.profiler]
    if ledger.run_id not in ("", info.run_id):
        words.append(f"run {ledger.run_id}")
    if ledger.commit not in ("", info.commit):
        words.append(provenance(ledger.commit, ledger.created, ledger.dirty))
    return ", ".join(words)


@table("Hardware counters", "where", folded=True)
def counters(analysis: Analysis) -> Content | None:
    """What Nsight Compute counted, the twelve kernels of each cell that take most of its time. It runs every kernel
    alone, several times, caches flushed before each: its times are no measurement of a step. Shares are of the peak;
    stalls are the warps that wait for a reason per issued instruction, the two largest. Of a step with many kernels it
    counts the first only, and launches per step are then launches among these."""
    columns: tuple[Column, ...] = (*PLACE, VARIANT, *COUNTER_COLUMNS, Column("counted", "Counted"))
    rows: list[tuple[Value, ...]] = []
    for counted in analysis.run.counters:
        p = counted.cell.point
        head = (p.model, p.workload, p.batch, p.length, counted.cell.variant)
        rows += [(*head, *counter_values(row), counted.extent) for row in counted.rows[:MOST_KERNELS]]
    return Content(columns, rows)
