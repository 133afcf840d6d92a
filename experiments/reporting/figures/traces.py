"""Figures from kernel ledgers: where a traced step spends its time."""

import math
from collections import defaultdict
from collections.abc import Iterator

from experiments.reporting.charts.palette import SERIES
from experiments.reporting.charts.specs import Bar, BarGroup, Bars, Figure, Panel, Segment
from experiments.reporting.figures.registry import caption_of, figure
from experiments.reporting.formats import Value, number, percent
from experiments.reporting.ledgers import Ledger
from experiments.reporting.rows import Analysis

NAMED_OPS = 6


@figure("where", command="trace")
def kernel_time(analysis: Analysis) -> Iterator[Figure]:
    """Device time of one traced step by operation, and the gaps in which the device is idle. Traced apart from the
    timing above; the profiler slows a step, so read shares and launch counts here, not speed."""
    by_point: dict[tuple[str, str], list[Ledger]] = defaultdict(list)
    for ledger in analysis.run.ledgers:
        p = ledger.cell.point
        by_point[p.model, p.workload].append(ledger)
    order = {variant: i for i, variant in enumerate(analysis.run.variants)}
    for (model, workload), found in sorted(by_point.items()):
        ledgers = sorted(found, key=lambda g: (g.cell.point, order.get(g.cell.variant, len(order)), g.cell))
        times = {id(ledger): op_times_us(ledger) for ledger in ledgers}
        slots = _op_slots(list(times.values()))
        groups: dict[str, list[Bar]] = defaultdict(list)
        records: list[tuple[Value, ...]] = []
        for ledger in ledgers:
            p = ledger.cell.point
            groups[f"batch {p.batch}, length {p.length}"].append(_bar(ledger, times[id(ledger)], slots))
            for op, us in times[id(ledger)].items():
                records.append((model, workload, p.batch, p.length, ledger.cell.variant, op, us))
        legend = [(name, slot) for name, slot in slots.items() if slot <= NAMED_OPS]
        yield Figure(
            f"kernel_time_{model}_{workload}",
            f"Where a step goes, {model} {workload} (µs)",
            caption_of("kernel_time"),
            f"Stacked bars of device time per step by operation on {model} {workload}, one bar per traced variant.",
            (Panel("", Bars("µs per step", tuple(BarGroup(k, tuple(v)) for k, v in groups.items()))),),
            (*legend, ("other", OTHER), ("idle", IDLE)),
            ("model", "workload", "batch", "length", "variant", "op", "us_per_step"),
            tuple(records),
        )


OTHER = len(SERIES) - 1
IDLE = len(SERIES)


def op_times_us(ledger: Ledger) -> dict[str, float]:
    """Device time per step by op, most first; kernels without an owner stand under `unattributed`."""
    times: dict[str, list[float]] = defaultdict(list)
    for kernel in ledger.kernels:
        times[kernel.owner].append(kernel.total_us)
    summed = {op: math.fsum(us) * ledger.per_step for op, us in times.items()}
    return dict(sorted(summed.items(), key=lambda item: (-item[1], item[0])))


def _op_slots(times: list[dict[str, float]]) -> dict[str, int]:
    """Colours for the ops that matter most over all ledgers; the rest share one."""
    totals: dict[str, float] = defaultdict(float)
    for by_op in times:
        for op, us in by_op.items():
            totals[op] += us
    ranked = sorted(totals, key=lambda op: (-totals[op], op))
    return {op: 1 + i if i < NAMED_OPS else OTHER for i, op in enumerate(ranked)}


def _bar(ledger: Ledger, times: dict[str, float], slots: dict[str, int]) -> Bar:
    busy = math.fsum(times.values()) or 1.0
    name = ledger.cell.variant
    segments = [
        Segment(op, slots[op], us, f"{name}: {op}\n{number(us)} µs per step, {percent(us / busy)} of busy time")
        for op, us in sorted(times.items(), key=lambda item: (slots[item[0]], item[0]))
    ]
    idle = max(0.0, (ledger.window_ms - ledger.busy_ms) * 1e3 * ledger.per_step)
    segments.append(Segment("idle", IDLE, idle, f"{name}: idle\n{number(idle)} µs per step"))
    launches = sum(k.count for k in ledger.kernels) * ledger.per_step
    return Bar(name, tuple(segments), f"{launches:,.0f} launches")
