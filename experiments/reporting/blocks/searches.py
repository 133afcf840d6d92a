"""What a search over whole decode steps kept, and what the step gained by it."""

from pathlib import Path
from statistics import median

from experiments.kernel_records import read_run
from experiments.reporting.blocks.registry import block, markdown
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import Column, Kind, Value, provenance
from experiments.step_records import StepCell, StepRun

SEARCH = Path("docs/data/whole_step_search.json")
WHOLE = "whole step"


@block
def whole_step(root: Path) -> str:
    """Each cell of the committed search: its step at the start and at the end, then each change that was kept."""
    run = read_run(StepRun, root / SEARCH)
    several = len({cell.session for cell in run.cells}) > 1
    columns = (
        Column("cell", "Cell"),
        Column("site", "What"),
        Column("choice", "Kept"),
        Column("before", "Before, µs", Kind.NUMBER),
        Column("after", "After, µs", Kind.NUMBER),
        Column("speedup", "Speed-up", Kind.RATIO),
    )
    rows = [row for cell in run.cells for row in _rows(cell, several)]
    tried = sum(len(cell.tried) for cell in run.cells)
    caption = f"{run.command} on {run.gpu}, {provenance(run.commit, run.created)}; {tried} steps tried; medians."
    return markdown(columns, rows, caption)


def _rows(cell: StepCell, several: bool) -> list[tuple[Value, ...]]:
    """The cell itself, then its changes in the order in which they were kept."""
    session = f", session {cell.session}" if several else ""
    name = f"{cell_name(cell.model, 'decode', cell.batch, cell.context)}, {cell.layers} layers{session}"
    start, end = median(cell.start_us), median(cell.end_us)
    changes = [(name, k.site, k.choice, k.before_us, k.after_us, k.before_us / k.after_us) for k in cell.kept]
    return [(name, WHOLE, "", start, end, cell.speedup.value), *changes]
