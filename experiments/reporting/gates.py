"""The gates of a `fusebench validate` run: a line each as they are done, and one Markdown table."""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from experiments.kernel_records import GateRow, GateRun, GateStatus
from experiments.reporting.formats import Column, Kind, Table, revision, tiny, to_markdown

TONES = {
    GateStatus.PASSED: "green",
    GateStatus.FAILED: "bold red",
    GateStatus.SKIPPED: "dim",
    GateStatus.SHOWN: "default",
}
COLUMNS = (
    Column("subject", "Kernel or variant"),
    Column("kernels", "Kernels"),
    Column("dtype", "Dtype"),
    Column("gate", "Gate"),
    Column("status", "Status"),
    Column("figure", "Worst figure", Kind.TINY),
    Column("bound", "Bound", Kind.TINY),
    Column("unfused", "Unfused", Kind.TINY),
    Column("checked", "Places", Kind.COUNT),
    Column("where", "Where, or why not"),
)


class Printer:
    """Prints a line a gate, under a heading for each kernel and variant."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True)
        self._heading = ""

    def say(self, row: GateRow) -> None:
        """One gate."""
        heading = " ".join(part for part in (row.subject, row.kernels, row.dtype) if part)
        if heading != self._heading:
            self._heading = heading
            self._console.print(f"[bold]{escape(heading)}[/bold]")
        figures = [f"{tiny(row.figure):>9}"] if row.figure is not None else []
        figures += [f"bound {tiny(row.bound)}"] if row.bound is not None else []
        figures += [f"unfused {tiny(row.unfused)}"] if row.unfused is not None else []
        status = f"[{TONES[row.status]}]{row.status.value:7}[/]"
        self._console.print(f"  {status} {row.gate:42} {', '.join(figures)}  [dim]{escape(row.where)}[/dim]")

    def end(self, run: GateRun, page: Path) -> None:
        """How it went as a whole."""
        counts = Counter(row.status for row in run.rows)
        said = ", ".join(f"{counts[status]} {status.value}" for status in GateStatus if counts[status])
        self._console.print(f"{said}: {page}")


def gates_page(run: GateRun) -> str:
    """The run as Markdown."""
    rows = tuple(
        (r.subject, r.kernels, r.dtype, r.gate, r.status.value, r.figure, r.bound, r.unfused, r.checked, r.where)
        for r in run.rows
    )
    table = Table("gates", "Numerics gates", "", COLUMNS, rows)
    stamp = run.stamp
    facts = (
        f"- **Run:** {stamp.run_id}, {stamp.created}, {revision(stamp.code.commit, stamp.code.dirty)}\n"
        f"- **Machine:** {stamp.gpu or stamp.machine.cpu}\n- **Command:** `{stamp.command}`"
    )
    return f"# Numerics gates\n\n{facts}\n\n{to_markdown(table)}"
