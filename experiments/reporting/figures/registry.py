"""The registry of figures: one is a decorated function from an Analysis to its Figures, none where it says nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from experiments.config import BASELINE
from experiments.reporting.again import as_typed, listed, name_typed
from experiments.reporting.charts.palette import SERIES
from experiments.reporting.charts.specs import Figure
from experiments.reporting.info import RunInfo
from experiments.reporting.rows import Analysis
from experiments.reporting.run import Run

Make = Callable[[Analysis], Iterable[Figure]]


@dataclass(frozen=True)
class Entry:
    """A registered figure: the section of the page it stands in, its general caption, and the command that measures
    what it shows."""

    name: str
    section: str
    caption: str
    command: str
    make: Make


FIGURES: dict[str, Entry] = {}


def figure(section: str, command: str = "sweep") -> Callable[[Make], Make]:
    """Register the decorated function; its docstring is the caption of every figure it makes."""

    def register(make: Make) -> Make:
        caption = " ".join((make.__doc__ or "").split())
        FIGURES[make.__name__] = Entry(make.__name__, section, caption, command, make)
        return make

    return register


def build_figures(analysis: Analysis) -> dict[str, tuple[str, Figure]]:
    """Every figure that has something to show, by file name, with its section."""
    return {
        made.name: (entry.section, replace(made, commands=_commands(analysis.run.info, entry.command, made)))
        for entry in FIGURES.values()
        for made in entry.make(analysis)
    }


def _commands(info: RunInfo, command: str, made: Figure) -> tuple[str, ...]:
    """How to measure what a figure shows, and no more than that, and to draw it."""
    asked = dict(info.asked)
    for key, column, known in (
        ("models", "model", tuple(info.models)),
        ("workloads", "workload", tuple(info.workloads)),
        ("variants", "variant", tuple(info.variants)),
    ):
        shown = {record[made.columns.index(column)] for record in made.records} if column in made.columns else known
        chosen = [name for name in known if name in shown or name == BASELINE]
        if chosen and len(chosen) < len(known):
            asked[key] = listed(name_typed(info.workloads[name]) if key == "workloads" else name for name in chosen)
    return as_typed(command, asked), f"fusebench report experiment={info.experiment}"


def caption_of(name: str) -> str:
    """The caption of the registered figure."""
    return FIGURES[name].caption


def slots(run: Run) -> dict[str, int]:
    """A palette slot for each variant, in the order of the plan. Where there are more variants than colours, the first
    and the last keep theirs to themselves and the others share the rest: hovering tells them apart."""
    variants = run.palette or run.variants
    if len(variants) <= len(SERIES):
        return {variant: i for i, variant in enumerate(variants)}
    first, *others, last = variants
    return {first: 0} | {variant: 2 + i % (len(SERIES) - 2) for i, variant in enumerate(others)} | {last: 1}
