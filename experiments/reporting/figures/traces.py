"""Figures from kernel ledgers: where a traced step spends its time."""

import math
from collections import defaultdict
from collections.abc import Iterator

from experiments.reporting.charts.specs import Bar, BarGroup, Bars, Figure, Panel, Segment
from experiments.reporting.families import IDLE, SLOTS, legend, slot_of
from experiments.reporting.figures.registry import caption_of, figure
from experiments.reporting.formats import Value, number, percent, where
from experiments.reporting.ledgers import Traced, owner_of
from experiments.reporting.rows import Analysis


@figure("where", command="trace")
def kernel_time(analysis: Analysis) -> Iterator[Figure]:
    """Device time of one traced step by operation, and the gaps in which the device is idle. Traced apart from the
    timing above; the profiler slows a step, so read idle time and launch counts here, not speed. Nor shares where
    kernels use programmatic dependent launch: a kernel's time then holds its wait for the one before it."""
    for (model, workload), ledgers in by_workload(analysis):
        times = {id(ledger): op_times_us(ledger) for ledger in ledgers}
        groups: dict[str, list[Bar]] = defaultdict(list)
        records: list[tuple[Value, ...]] = []
        for ledger in ledgers:
            p = ledger.cell.point
            groups[where(p)].append(_bar(ledger, times[id(ledger)]))
            for op, us in times[id(ledger)].items():
                records.append((model, workload, p.batch, p.length, ledger.cell.variant, op, us))
        yield Figure(
            f"kernel_time_{model}_{workload}",
            f"Where a step goes, {model} {workload} (µs)",
            caption_of("kernel_time"),
            f"Stacked bars of device time per step by operation on {model} {workload}, one bar per traced variant.",
            (Panel("", Bars("µs per step", tuple(BarGroup(k, tuple(v)) for k, v in groups.items()))),),
            legend({op for by_op in times.values() for op in by_op}, idle=True),
            ("model", "workload", "batch", "length", "variant", "op", "us_per_step"),
            tuple(records),
        )


def by_workload(analysis: Analysis) -> Iterator[tuple[tuple[str, str], list[Traced]]]:
    """The ledgers of each (model, workload): by point, and in it in the order of the plan, the baseline first."""
    order = {variant: i for i, variant in enumerate(analysis.run.variants)}
    groups: dict[tuple[str, str], list[Traced]] = defaultdict(list)
    for ledger in analysis.run.ledgers:
        groups[ledger.cell.point.model, ledger.cell.point.workload].append(ledger)
    for key, found in sorted(groups.items()):
        yield key, sorted(found, key=lambda g: (g.cell.point, order.get(g.cell.variant, len(order)), g.cell))


def op_times_us(ledger: Traced) -> dict[str, float]:
    """Device time per step by op, most first; kernels without an owner stand under `unattributed`."""
    times: dict[str, list[float]] = defaultdict(list)
    for kernel in ledger.kernels:
        times[owner_of(kernel.op, kernel.phase)].append(kernel.total_us)
    summed = {op: math.fsum(us) * ledger.per_step for op, us in times.items()}
    return dict(sorted(summed.items(), key=lambda item: (-item[1], item[0])))


def _bar(ledger: Traced, times: dict[str, float]) -> Bar:
    busy = math.fsum(times.values()) or 1.0
    name = ledger.label
    segments = [
        Segment(op, slot_of(op), us, f"{name}: {op}\n{number(us)} µs per step, {percent(us / busy)} of busy time")
        for op, us in sorted(times.items(), key=lambda item: (slot_of(item[0]) or len(SLOTS), item[0]))
    ]
    idle = ledger.idle_us
    segments.append(Segment("idle", IDLE, idle, f"{name}: idle\n{number(idle)} µs per step"))
    launches = sum(k.count for k in ledger.kernels) * ledger.per_step
    return Bar(name, tuple(segments), f"{launches:,.0f} launches")
