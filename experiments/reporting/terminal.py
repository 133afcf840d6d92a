"""The report in a terminal: the first screen, the headline table and a small heat map, by rich."""

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from experiments.config import BASELINE
from experiments.records import Row
from experiments.reporting.charts.palette import GLYPHS, heat_color, is_dark
from experiments.reporting.compact import compact_table
from experiments.reporting.figures.speed import workloads
from experiments.reporting.first_screen import first_screen
from experiments.reporting.formats import Kind, Table, display, ratio
from experiments.reporting.headline import lead_of
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import Run
from experiments.reporting.summary import row_data

# A log has no width of its own, and rich would squeeze tables into 80 columns.
LOG_WIDTH = 160
TONES = {"good": "green", "bad": "red", "warn": "yellow", "": "default"}


def make_console() -> Console:
    """Standard output, as wide as the terminal or as `LOG_WIDTH`; what rich would colour unasked stays plain."""
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)


def show(run: Run, console: Console | None = None) -> None:
    """Print the report of a run."""
    console = console or make_console()
    analysis = analyse(run)
    screen = first_screen(analysis)
    console.print(f"[bold]{escape(screen.question)}[/bold]")
    if screen.twin_note:
        console.print(f"[yellow]{escape(screen.twin_note)}[/yellow]")
    console.print(escape(screen.lead))
    for card in screen.cards:
        console.print(f"  [bold]{card.value:>7}[/bold]  {card.bounds:14} {escape(card.title)}, {escape(card.note)}")
    for fact in screen.facts:
        console.print(f"[dim]{fact.label:12}[/dim] [{TONES[fact.tone]}]{escape(fact.text)}[/]")
    _headline(analysis, console)
    for model, workload in workloads(analysis):
        _heatmap(analysis, model, workload, console)


def _headline(analysis: Analysis, console: Console) -> None:
    if not analysis.primary:
        return
    console.print()
    console.print(rich_table(compact_table([row_data(row) for row in analysis.primary])))


def rich_table(table: Table) -> RichTable:
    """A table as rich prints it; intervals in brackets."""
    view = display(table)
    printed = RichTable(box=None, header_style="bold", pad_edge=False)
    for title, kind in zip(view.titles, view.kinds, strict=True):
        printed.add_column(escape(title), justify="left" if kind in (Kind.TEXT, Kind.CLAIM) else "right", no_wrap=True)
    for row in view.rows:
        printed.add_row(*(escape(f"{text} [{bounds}]" if bounds else text) for text, bounds in row))
    return printed


def _heatmap(analysis: Analysis, model: str, workload: str, console: Console) -> None:
    lead = lead_of(analysis.run.variants)
    rows = [r for r in analysis.primary if (r.model, r.workload, r.variant) == (model, workload, lead)]
    if not rows:
        return
    lengths = sorted({r.context for r in rows})
    console.print(f"\n[bold]{escape(f'{lead} vs {BASELINE}, {model} {workload}')}[/bold]: batch down, length across")
    printed = RichTable(box=None, pad_edge=False, padding=(0, 0))
    printed.add_column("", justify="right")
    for length in lengths:
        printed.add_column(str(length or "all"), justify="center", min_width=9)
    for batch in sorted({r.batch for r in rows}):
        found = {r.context: r for r in rows if r.batch == batch}
        printed.add_row(f"{batch} ", *(_heat_cell(found.get(length)) for length in lengths))
    console.print(printed)


def _heat_cell(row: Row | None) -> Text:
    if row is None:
        return Text("")
    if row.speedup is None:
        return Text(row.status.value, style="dim")
    ink = "white" if is_dark(row.speedup) else "black"
    return Text(f" {ratio(row.speedup)} {GLYPHS.get(row.verdict, '')} ", style=f"{ink} on {heat_color(row.speedup)}")
