"""Numbers as people and as machines read them, and tables as CSV, Markdown and LaTeX."""

# ruff: noqa: RUF001 (multiplication signs and en dashes are how these numbers are printed)

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from experiments.records import Point

Value = str | int | float | None

SIGNIFICANT = 6
BLANK = "–"


class Kind(StrEnum):
    """How a column's values are shown to people; files for machines always hold plain numbers."""

    TEXT = "text"
    COUNT = "count"
    NUMBER = "number"
    RATIO = "ratio"
    PERCENT = "percent"
    BYTES = "bytes"
    TINY = "tiny"
    CLAIM = "claim"

    @property
    def is_text(self) -> bool:
        """Words, so aligned to the left."""
        return self in (Kind.TEXT, Kind.CLAIM)


@dataclass(frozen=True)
class Column:
    """One column; `name` is its CSV header and carries the unit, `title` is for people."""

    name: str
    title: str
    kind: Kind = Kind.TEXT


@dataclass(frozen=True)
class Table:
    """Columns and rows of plain values, with a caption that stands alone."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]


def rounded(value: float | None, significant: int = SIGNIFICANT) -> float | None:
    """Rounded to significant digits, so that the last bits of libm do not reach a file; None for NaN and infinities."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{significant}g}")


def number(value: float | None, significant: int = 4) -> str:
    """Up to `significant` digits without an exponent between 1e-4 and 1e7; thousands separated."""
    if value is None or not math.isfinite(value):
        return BLANK
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-4 <= size < 1e7:
        return f"{value:.{significant}g}"
    decimals = max(0, significant - 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def ratio(value: float | None) -> str:
    """A speed-up, three decimals near parity and two beyond."""
    if value is None or not math.isfinite(value):
        return BLANK
    return f"{value:.3f}×" if 0.9 < value < 1.1 else f"{value:.2f}×"


def interval(low: float | None, high: float | None) -> str:
    """An interval of speed-ups, or that there is none."""
    if low is None or high is None:
        return "no interval"
    if low < 0.01 or high >= 1000:
        return f"{number(low, 2)}–{number(high, 2)}"
    digits = 2 if high - low > 0.05 else 3
    return f"{low:.{digits}f}–{high:.{digits}f}"


def percent(value: float | None) -> str:
    """A share."""
    return BLANK if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def size(bytes_: float | None) -> str:
    """Bytes in the largest fitting decimal unit."""
    if bytes_ is None or not math.isfinite(bytes_):
        return BLANK
    unit, scale = unit_of(bytes_)
    return f"{bytes_ / scale:.{0 if scale == 1 else 2}f} {unit}"


def unit_of(bytes_: float) -> tuple[str, float]:
    """The largest fitting decimal unit and its bytes."""
    units = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next(((unit, scale) for unit, scale in units if abs(bytes_) >= scale), ("B", 1))


def count(value: float) -> str:
    """A whole number, thousands separated."""
    return f"{value:,.0f}"


def tiny(value: float) -> str:
    """A small number, always with its exponent; a plain zero."""
    return f"{value:.2e}" if value else "0"


def where(point: Point) -> str:
    """A point of its workload in words; of many lengths, as offline is, it has none."""
    return f"batch {point.batch}, length {point.length}" if point.length else f"batch {point.batch}"


def points_of(amount: int) -> str:
    """So many points, one of them in the singular."""
    return f"{amount} point{'s' * (amount != 1)}"


def short(commit: str) -> str:
    """Enough of a commit to find it by; of several, each."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]+\b", r"\1", commit) or "unknown"


def revision(commit: str, dirty: bool = False) -> str:
    """Of which code."""
    return f"commit {short(commit)}{' with uncommitted changes' * dirty}"


def provenance(commit: str, created: str, dirty: bool = False) -> str:
    """Of which code, and on which day."""
    return f"{revision(commit, dirty)}, {created.partition('T')[0]}"


_SHOWN: dict[Kind, Callable[[float], str]] = {
    Kind.COUNT: count,
    Kind.RATIO: ratio,
    Kind.PERCENT: percent,
    Kind.BYTES: size,
    Kind.TINY: tiny,
}


def shown(kind: Kind, value: Value) -> str:
    """A value as people read it."""
    if value is None or value == "":
        return BLANK
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return str(value)
    return _SHOWN.get(kind, number)(value)


def plain_value(value: Value) -> str:
    """A value as machines read it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(rounded(value)) if math.isfinite(value) else ""
    return str(value)


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """RFC 4180 but for line ends, which are plain newlines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([plain_value(v) for v in row] for row in rows)
    return out.getvalue()


@dataclass(frozen=True)
class Shown:
    """A table as people read it: intervals stand in the cell of their value; `sort_keys` are plain values."""

    titles: tuple[str, ...]
    kinds: tuple[Kind, ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    sort_keys: tuple[tuple[Value, ...], ...]


def display(table: Table) -> Shown:
    """Titles and (text, interval) cells; columns named `...ci_low` and `...ci_high` join the value before them."""
    kept = [i for i, c in enumerate(table.columns) if not c.name.endswith(("ci_low", "ci_high"))]
    has_interval = {i for i in kept if i + 2 < len(table.columns) and table.columns[i + 1].name.endswith("ci_low")}
    rows = []
    for row in table.rows:
        cells = []
        for i in kept:
            column = table.columns[i]
            bounds = _bounds(column.kind, row[i], row[i + 1], row[i + 2]) if i in has_interval else ""
            cells.append((shown(column.kind, row[i]), bounds))
        rows.append(tuple(cells))
    columns = [table.columns[i] for i in kept]
    keys = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return Shown(tuple(c.title for c in columns), tuple(c.kind for c in columns), tuple(rows), keys)


def _bounds(kind: Kind, value: Value, low: Value, high: Value) -> str:
    if value is None:
        return ""
    if not isinstance(low, float) or not isinstance(high, float):
        return "no interval"
    return interval(low, high) if kind is Kind.RATIO else f"{number(low)}–{number(high)}"


def to_markdown(table: Table) -> str:
    """A pipe table; numbers right-aligned, intervals in brackets."""
    view = display(table)
    head = "| " + " | ".join(map(_cell, view.titles)) + " |"
    rule = "|" + "|".join("---" if kind.is_text else "--:" for kind in view.kinds) + "|"
    body = ["| " + " | ".join(_cell(_joined(*cell)) for cell in row) + " |" for row in view.rows]
    return "\n".join([head, rule, *body]) + "\n"


def to_latex(table: Table) -> str:
    """A booktabs tabular."""
    view = display(table)
    columns = "".join("l" if kind.is_text else "r" for kind in view.kinds)
    opening = [rf"% {_tex(table.title)}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    head = " & ".join(map(_tex, view.titles)) + r" \\"
    body = [" & ".join(_tex(_joined(*cell)) for cell in row) + r" \\" for row in view.rows]
    return "\n".join([*opening, head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def _joined(text: str, bounds: str) -> str:
    return f"{text} [{bounds}]" if bounds else text


def _cell(text: str) -> str:
    return in_markdown(text).replace("|", "\\|").replace("\n", " ")


def in_markdown(text: str) -> str:
    """Text with nothing in it that is taken for HTML."""
    return text.replace("<", "&lt;")


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "×": r"$\times$",
    "–": "--",
    "µ": r"\textmu{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text.replace("\n", " "))
