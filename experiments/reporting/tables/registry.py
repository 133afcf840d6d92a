"""The registry of tables: one is a decorated function from an Analysis to its Content, None where it says nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.records import Row
from experiments.reporting.formats import Column, Kind, Table, Value
from experiments.reporting.rows import Analysis

PLACE = (
    Column("model", "Model"),
    Column("workload", "Workload"),
    Column("batch", "Batch", Kind.COUNT),
    Column("length", "Length", Kind.COUNT),
)
VARIANT = Column("variant", "Variant")


@dataclass(frozen=True)
class Content:
    """What a table holds."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Value]]


Make = Callable[[Analysis], Content | None]


@dataclass(frozen=True)
class Entry:
    """A registered table: the section of the page it stands in, whether it is folded away there, and its most rows
    there; the files have all."""

    name: str
    title: str
    section: str
    folded: bool
    page_rows: int
    caption: str
    make: Make


TABLES: dict[str, Entry] = {}


def table(title: str, section: str, folded: bool = False, page_rows: int = 1000) -> Callable[[Make], Make]:
    """Register the decorated function; its docstring is the caption."""

    def register(make: Make) -> Make:
        caption = " ".join((make.__doc__ or "").split())
        TABLES[make.__name__] = Entry(make.__name__, title, section, folded, page_rows, caption, make)
        return make

    return register


def build_tables(analysis: Analysis) -> dict[str, Table]:
    """Every table that has rows, by name."""
    made = {}
    for entry in TABLES.values():
        content = entry.make(analysis)
        if content is not None and content.rows:
            rows = tuple(tuple(row) for row in content.rows)
            made[entry.name] = Table(entry.name, entry.title, entry.caption, content.columns, rows)
    return made


def place(row: Row) -> tuple[Value, ...]:
    """The four values of PLACE."""
    return row.model, row.workload, row.batch, row.context


def labelled(variant: str, kernels: str) -> str:
    """A variant's name, marked where its kernels were twins."""
    return f"{variant} (twin)" if "twin" in kernels else variant
