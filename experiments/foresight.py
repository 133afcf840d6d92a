"""What is known to fail before it is tried: a cell no smaller than one that ran out of memory, a hopeless repeat."""

from collections import Counter

from experiments.records import UNTRIED, Cell, CellResult, Point, Status

MOST_FAILURES = 2
_FAILED = (Status.ERROR, Status.TIMEOUT)


class Foresight:
    """Learns from every result of a sweep."""

    def __init__(self) -> None:
        self._oom: dict[tuple[str, str, str], list[Cell]] = {}
        self._failures: Counter[tuple[str, Point]] = Counter()
        self._last: dict[tuple[str, Point], str] = {}

    def learn(self, result: CellResult) -> None:
        """Take one result into account, unless its variant as a whole was what failed."""
        if result.reason.startswith(UNTRIED):
            return
        cell = result.cell
        key = (cell.variant, cell.point)
        if result.status is Status.OOM:
            self._oom.setdefault(_kind(cell), []).append(cell)
        elif result.status in _FAILED:
            self._failures[key] += 1
            self._last[key] = result.reason

    def why_skip(self, cell: Cell) -> str | None:
        """Why the cell need not be tried, or None.

        Memory use grows with batch and length, so an out-of-memory holds for every cell that is no smaller in both,
        the same cell in later rounds included. Crashes and hangs may pass, so they get a second try in another round.
        """
        for known in self._oom.get(_kind(cell), ()):
            if known.point.batch <= cell.point.batch and known.point.length <= cell.point.length:
                return f"inferred from {known.id}, no larger and out of memory"
        key = (cell.variant, cell.point)
        if self._failures[key] >= MOST_FAILURES:
            return f"failed {self._failures[key]} times before: {self._last[key]}"
        return None


def _kind(cell: Cell) -> tuple[str, str, str]:
    return cell.point.model, cell.point.workload, cell.variant
