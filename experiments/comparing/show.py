"""A comparison for a terminal or for a pull request."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.comparing.comparison import Pair
from experiments.metrics import METRICS
from experiments.records import Row, Status
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import Column, Kind, Table, Value, count, percent, to_markdown
from experiments.reporting.tables.registry import labelled
from experiments.reporting.terminal import make_console, rich_table
from experiments.stats import Claim


@dataclass(frozen=True)
class Shown:
    """What is said of a comparison: its sides, remarks, and cells. `mark` stands on every line of a forced one."""

    sides: tuple[str, str]
    remarks: tuple[str, ...]
    pairs: Sequence[Pair]
    margin: float
    mark: str = ""

    @property
    def regressions(self) -> int:
        """Cells that are slower beyond the margin, or fail where they did not."""
        return sum(pair.is_regression(self.margin) for pair in self.pairs)

    def headline(self) -> str:
        """The whole comparison in one line."""
        counts = Counter(pair.verdict for pair in self.pairs if pair.verdict)
        words = ", ".join(f"{counts[c]} {c.value}" for c in Claim)
        apart = sum(pair.speedup is None for pair in self.pairs)
        many = self.regressions
        found = (
            f"{count(many)} regression{'s' * (many != 1)} beyond {percent(self.margin)}"
            if many
            else "no regression found"
        )
        return f"{self.mark}{found}: {words}" + (f"; {apart} not compared" if apart else "")


def compared(shown: Shown, pairs: Sequence[Pair], title: str = "Compared") -> Table:
    """The cells that have a speed-up, of B over A."""
    columns = (
        Column("cell", "Cell"),
        Column("variant", "Variant"),
        Column("a", "A", Kind.NUMBER),
        Column("b", "B", Kind.NUMBER),
        Column("unit", "Unit"),
        Column("speedup", "B over A", Kind.RATIO),
        Column("speedup_ci_low", "low", Kind.RATIO),
        Column("speedup_ci_high", "high", Kind.RATIO),
        Column("rounds", "Rounds"),
        Column("verdict", "Verdict", Kind.CLAIM),
    )
    return Table("compared", title, "", columns, tuple(_line(shown, p) for p in pairs if p.speedup))


def _line(shown: Shown, pair: Pair) -> tuple[Value, ...]:
    s, a, b = pair.speedup, pair.before, pair.after
    assert s is not None
    assert a is not None
    assert b is not None
    beyond = f", beyond {percent(shown.margin)}" if pair.is_regression(shown.margin) else ""
    twin = " (twin)" if "twin" in a.kernels + b.kernels else ""
    rounds = str(a.n) if a.n == b.n else f"{a.n}, {b.n}"
    level = (a.median, b.median, METRICS[a.metric].unit, s.value, s.low, s.high, rounds)
    return (_cell(a), _variants(pair), *level, f"{shown.mark}{pair.verdict}{beyond}{twin}")


def not_compared(shown: Shown) -> Table:
    """Cells that one side lacks or that failed on one: listed, never dropped."""
    columns = (Column("cell", "Cell"), Column("variant", "Variant"), Column("why", "Not compared, because"))
    rows = [
        (_cell(p.row), _variants(p), f"{shown.mark}{'regression: ' * p.is_regression(shown.margin)}{p.reason}")
        for p in shown.pairs
        if not p.speedup
    ]
    return Table("not_compared", "Not compared", "", columns, tuple(rows))


def _cell(row: Row) -> str:
    return cell_name(row.model, row.workload, row.batch, row.context)


def _variants(pair: Pair) -> str:
    """`fused`, or `compiled -> fused` where the two sides are two variants."""
    names = [labelled(r.variant, r.kernels if r.status is Status.OK else "") for r in (pair.before, pair.after) if r]
    return " -> ".join(dict.fromkeys(names))


def markdown(shown: Shown) -> str:
    """For a pull request: what changed stands open, the rest is folded."""
    moved = [p for p in shown.pairs if p.verdict in (Claim.FASTER, Claim.SLOWER)]
    parts = [f"**{shown.headline()}**", "\n".join(f"- {line}" for line in (*shown.sides, *shown.remarks))]
    if moved:
        parts.append(to_markdown(compared(shown, moved)).rstrip())
    missing = not_compared(shown)
    if missing.rows:
        parts.append(to_markdown(missing).rstrip())
    everything = compared(shown, shown.pairs)
    if len(everything.rows) > len(moved):
        summary = f"<summary>All {len(everything.rows):,} cells compared</summary>"
        parts.append(f"<details>{summary}\n\n{to_markdown(everything)}\n</details>")
    return "\n\n".join(parts)


def print_terminal(shown: Shown) -> None:
    """The same as tables in a terminal."""
    console = make_console()
    for line in (*shown.sides, *shown.remarks):
        console.print(line, markup=False)
    for table in (compared(shown, shown.pairs), not_compared(shown)):
        if table.rows:
            console.print()
            console.print(rich_table(table))
    console.print()
    console.print(shown.headline(), markup=False, style="bold")
