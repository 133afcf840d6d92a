"""The table of hardware counters, where cells were counted under Nsight Compute."""

from experiments.reporting.formats import Column, Value
from experiments.reporting.rows import Analysis
from experiments.reporting.tables.registry import PLACE, VARIANT, Content, table
from experiments.trace.tables import COUNTER_COLUMNS, counter_values

MOST_KERNELS = 12


@table("Hardware counters", "where", folded=True)
def counters(analysis: Analysis) -> Content | None:
    """What Nsight Compute counted, the twelve kernels of each cell that take most of its time. It runs every kernel
    alone, several times, caches flushed before each: its times are no measurement of a step. Shares are of the peak;
    stalls are the warps that wait for a reason per issued instruction, the two largest."""
    columns: tuple[Column, ...] = (*PLACE, VARIANT, *COUNTER_COLUMNS)
    rows: list[tuple[Value, ...]] = []
    for counted in analysis.run.counters:
        p = counted.cell.point
        head = (p.model, p.workload, p.batch, p.length, counted.cell.variant)
        rows += [(*head, *counter_values(row)) for row in counted.rows[:MOST_KERNELS]]
    return Content(columns, rows)
