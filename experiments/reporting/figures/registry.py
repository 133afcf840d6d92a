"""The registry of figures: one is a decorated function from an Analysis to its Figures, none where it says nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from experiments.reporting.charts.palette import SERIES
from experiments.reporting.charts.specs import Figure
from experiments.reporting.rows import Analysis

Make = Callable[[Analysis], Iterable[Figure]]


@dataclass(frozen=True)
class Entry:
    """A registered figure: the section of the page it stands in, and its general caption."""

    name: str
    section: str
    caption: str
    make: Make


FIGURES: dict[str, Entry] = {}


def figure(section: str) -> Callable[[Make], Make]:
    """Register the decorated function; its docstring is the caption of every figure it makes."""

    def register(make: Make) -> Make:
        FIGURES[make.__name__] = Entry(make.__name__, section, " ".join((make.__doc__ or "").split()), make)
        return make

    return register


def build_figures(analysis: Analysis) -> dict[str, tuple[str, Figure]]:
    """Every figure that has something to show, by file name, with its section."""
    return {made.name: (entry.section, made) for entry in FIGURES.values() for made in entry.make(analysis)}


def caption_of(name: str) -> str:
    """The caption of the registered figure."""
    return FIGURES[name].caption


def slots(variants: Iterable[str]) -> dict[str, int]:
    """A palette slot for each variant, in the order of the plan."""
    return {variant: i % len(SERIES) for i, variant in enumerate(variants)}
