"""Tables of a ledger: kernel time by name, phase, op or layer, and what another variant changed. All per step."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from experiments.records import Cell
from experiments.reporting.formats import Column, Kind, Table, Value, display, where
from experiments.trace.counters import CounterRow, Counters
from experiments.trace.ledger import Ledger, compare, per_step

_TITLES = {"name": "Kernel", "phase": "Phase", "op": "Op", "layer": "Layer"}
NAME_WIDTH = 60
# Rows of what is printed; a ledger keeps all.
MOST_SHOWN = 15


def time_by(ledger: Ledger, key: str, most: int | None = None) -> Table:
    """Device time by `name`, `phase`, `op` or `layer`, largest first; rows over `most` are summed up in the last one.

    The last column is the share of all device time, so that it adds up to 100 %.
    """
    rows = sorted(((name, *sums) for name, sums in per_step(ledger, key).items()), key=lambda row: (-row[2], row[0]))
    if most is not None and len(rows) > most:
        rest = rows[most:]
        rows = [*rows[:most], (f"({len(rest)} more)", sum(row[1] for row in rest), sum(row[2] for row in rest))]
    total_us = sum(row[2] for row in rows) or 1.0
    columns = (
        Column(key, _TITLES[key]),
        Column("count_per_step", "Count per step", Kind.NUMBER),
        Column("us_per_step", "µs per step", Kind.NUMBER),
        Column("share", "Share", Kind.PERCENT),
    )
    caption = f"Device time by {key}, per step of {title_of(ledger)}."
    return Table(f"time_by_{key}", f"By {key}", caption, columns, tuple((*row, row[2] / total_us) for row in rows))


def changes(baseline: Ledger, other: Ledger, key: str = "op") -> Table:
    """What `other` removed, added and changed, largest saving first."""
    columns = (
        Column(key, _TITLES[key]),
        Column("fate", "Fate"),
        Column("baseline_count", "Count", Kind.NUMBER),
        Column("count", "Count now", Kind.NUMBER),
        Column("baseline_us", "µs", Kind.NUMBER),
        Column("us", "µs now", Kind.NUMBER),
        Column("saved_us", "µs saved", Kind.NUMBER),
    )
    rows = tuple(
        (c.key, c.fate, c.baseline_count, c.other_count, c.baseline_us, c.other_us, c.saved_us)
        for c in compare(baseline, other, key)
    )
    caption = f"Per step: {title_of(other)} against {title_of(baseline)}."
    return Table(f"changes_by_{key}", f"What changed, by {key}", caption, columns, rows)


COUNTER_COLUMNS = (
    Column("kernel", "Kernel"),
    Column("launches_per_step", "Launches per step", Kind.NUMBER),
    Column("us_per_launch", "µs, under ncu", Kind.NUMBER),
    Column("dram_gb_per_s", "DRAM, GB/s", Kind.NUMBER),
    Column("dram_share", "DRAM", Kind.PERCENT),
    Column("l2_hit_share", "L2 hits", Kind.PERCENT),
    Column("sm_share", "SM", Kind.PERCENT),
    Column("tensor_share", "Tensor cores", Kind.PERCENT),
    Column("occupancy_share", "Occupancy", Kind.PERCENT),
    Column("occupancy_limit_share", "its limit", Kind.PERCENT),
    Column("registers", "Registers", Kind.NUMBER),
    Column("waves", "Waves", Kind.NUMBER),
    Column("stalls", "Stalls: warps waiting per issue"),
)


def counter_values(row: CounterRow) -> tuple[Value, ...]:
    """One row of COUNTER_COLUMNS."""
    bandwidth = row.dram_bytes_per_s
    named = (row.values.get(column.name) for column in COUNTER_COLUMNS[4:-1])
    stalls = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in row.stalls())
    gb_per_s = None if bandwidth is None else bandwidth / 1e9
    return (row.name, row.launches_per_step, row.values.get("time_us"), gb_per_s, *named, stalls)


def counter_table(counters: Counters, most: int = MOST_SHOWN) -> Table:
    """What ncu counted of a cell's kernels, those with most time first."""
    title = f"{title_of_cell(counters.cell)}: ncu {counters.profiler_version}, {counters.extent}"
    rows = tuple(counter_values(row) for row in counters.rows[:most])
    return Table("counters", title, "", COUNTER_COLUMNS, rows)


def title_of(ledger: Ledger) -> str:
    """The cell in words."""
    return "this trace" if ledger.cell is None else title_of_cell(ledger.cell)


def title_of_cell(cell: Cell) -> str:
    """Point and variant."""
    point = cell.point
    return f"{point.model} {point.workload} {where(point)}, {cell.variant}"


def facts(ledger: Ledger) -> list[str]:
    """The ledger's own figures, one line each."""
    lines = [
        f"{ledger.steps} steps, {ledger.kernels_per_step:g} kernels and {ledger.launches_per_step:g} launches per step"
        + (f" and device; totals are sums over {ledger.devices} devices" if ledger.devices > 1 else ""),
        f"window {ledger.window_ms:.4g} ms = busy {ledger.busy_ms:.4g} + idle {ledger.gap_ms:.4g}; overlapping work "
        f"{ledger.overlap_ms:.4g} ms; kernels + gaps - overlap = {ledger.closure:.2%} of the window",
        _gaps(ledger),
        f"{ledger.coverage:.1%} of the device time has its layer or op; {ledger.profiler} {ledger.profiler_version}, "
        f"schema {ledger.export_schema}",
        _inflation(ledger),
        _rungs(ledger),
        *_run(ledger),
    ]
    return [line for line in (*lines, ledger.note) if line]


def _gaps(ledger: Ledger) -> str:
    """Where the device waited, per step: for its next kernel, or for the host to launch the next step, which all steps
    but the last have."""
    gaps, launches = ledger.gaps, max(ledger.steps - 1, 1) * max(ledger.devices, 1)
    return (
        f"idle per step: {gaps.within_steps_us / ledger.device_steps:.4g} us between its kernels, "
        f"{gaps.between_steps_us / launches:.4g} us until the next step; "
        f"{gaps.count} gaps, median {gaps.median_us:.3g} us, longest {gaps.max_us:.4g} us"
    )


def _inflation(ledger: Ledger) -> str:
    if ledger.untraced_step_ms is None or ledger.inflation is None:
        return f"traced step {ledger.traced_step_ms:.4g} ms (no untraced time to compare with: sweep first)"
    return (
        f"traced step {ledger.traced_step_ms:.4g} ms, untraced {ledger.untraced_step_ms:.4g} ms: "
        f"tracing inflates it {ledger.inflation:.2f} times"
    )


def _run(ledger: Ledger) -> list[str]:
    """A whole run's kinds of steps, and what lies outside the device's window."""
    if not ledger.run_ms:
        return []
    rate = 1e3 * ledger.output_tokens / ledger.run_ms
    host = ", ".join(f"{name} {ms:.4g}" for name, ms in ledger.host_ms.items())
    parts = (
        f"{part.name}: {part.steps} steps, {part.decoded_tokens} tokens decoded, {part.prefill_tokens} prefilled; "
        f"work {part.work_ms:.4g} ms, idle {part.within_ms:.4g} between kernels and {part.before_ms:.4g} before steps"
        for part in ledger.parts
    )
    return [*parts, f"the run {ledger.run_ms:.4g} ms, {rate:,.0f} output tokens/s; the host by phase, ms: {host}"]


def _rungs(ledger: Ledger) -> str:
    """Every rung with its fate, those that ran with how often."""
    if not ledger.rungs:
        return ""
    words = (
        f"{row.name} {row.fate}" + (f" ({row.count_per_step:g} per step)" if row.count_per_step else "")
        for row in ledger.rungs
    )
    return f"rungs: {', '.join(words)}"


def show(console: Console, table: Table) -> None:
    """Print a table; long names are cut."""
    view = display(table)
    printed = RichTable(title=escape(table.title), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for title, kind in zip(view.titles, view.kinds, strict=True):
        is_text = kind is Kind.TEXT
        printed.add_column(escape(title), justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis",
                           max_width=NAME_WIDTH if is_text else None)  # fmt: skip
    for row in view.rows:
        printed.add_row(*(escape(text) for text, _ in row))
    console.print(printed)


def show_ledger(console: Console, ledger: Ledger) -> None:
    """Print a ledger: its facts, then device time by phase, by op and by name."""
    console.print(f"[bold]{escape(title_of(ledger))}[/bold]")
    for fact in facts(ledger):
        console.print(f"  {escape(fact)}")
    if ledger.warning:
        console.print(f"  [yellow]{escape(ledger.warning)}[/yellow]")
    for key in ("phase", "op", "name"):
        show(console, time_by(ledger, key, MOST_SHOWN))
