"""What one sees while a sweep runs: a live bar in a terminal, one line per finished cell elsewhere."""

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from statistics import fmean, median
from typing import TextIO

from experiments.records import Cell, CellResult, Point, Status

_COLORS = {Status.OK: "green", Status.SKIPPED: "yellow"}


class Eta:
    """Time left, from how long the same cell took in earlier rounds, or cells took on average."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._left = Counter((cell.point, cell.variant) for cell in cells)
        self._took_s: dict[tuple[Point, str], list[float]] = {}
        # Running sums, since a sweep may have thousands of points.
        self._unseen, self._seen_left_s, self._means_s = len(cells), 0.0, 0.0

    def learn(self, cell: Cell, took_s: float) -> None:
        """One more cell is finished."""
        key = (cell.point, cell.variant)
        took = self._took_s.setdefault(key, [])
        if took:
            self._means_s -= fmean(took)
            self._seen_left_s -= self._left[key] * fmean(took)
        else:
            self._unseen -= self._left[key]
        took.append(took_s)
        self._left[key] -= 1
        self._means_s += fmean(took)
        self._seen_left_s += self._left[key] * fmean(took)

    def left_s(self) -> float | None:
        """Seconds still to go, or None as long as nothing is known."""
        if not self._took_s:
            return None
        return max(0.0, self._seen_left_s) + self._unseen * self._means_s / len(self._took_s)


class Display(ABC):
    """Told of everything as it happens."""

    def __init__(self, cells: Sequence[Cell], done: Sequence[CellResult]) -> None:
        finished = {result.cell for result in done}
        self.total = len(cells)
        self.counts = Counter(result.status for result in done)
        self.eta = Eta([cell for cell in cells if cell not in finished])

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def finished(self) -> int:
        """Cells with a result."""
        return self.counts.total()

    def end(self, result: CellResult, took_s: float) -> None:
        """A cell has its result."""
        self.counts[result.status] += 1
        self.eta.learn(result.cell, took_s)
        self.show(result)

    @abstractmethod
    def begin(self, cell: Cell) -> None:
        """A cell starts."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Something worth a line."""

    @abstractmethod
    def show(self, result: CellResult) -> None:
        """Draw the result of a cell; a settled point has had its line, so its cells get none."""

    @abstractmethod
    def close(self) -> None:
        """The sweep is over."""


class Lines(Display):
    """One line per finished cell."""

    def __init__(self, cells: Sequence[Cell], done: Sequence[CellResult], stream: TextIO) -> None:
        super().__init__(cells, done)
        self._stream = stream

    def begin(self, cell: Cell) -> None:
        """Nothing yet: the line comes with the result."""

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def show(self, result: CellResult) -> None:
        if result.is_settled:
            return
        width = len(str(self.total))
        outcome = headline_sample(result) if result.status is Status.OK else result.reason
        left = f", {clock(self.eta.left_s())} left" if self.finished < self.total else ""
        self.say(
            f"[{self.finished:{width}}/{self.total}{left}] {title(result.cell)}: {result.status} {outcome}".rstrip()
        )

    def close(self) -> None:
        """Every line is out already."""


class Bar(Display):
    """A bar with the time left and the counts by status; cells that are not ok scroll by above it."""

    def __init__(self, cells: Sequence[Cell], done: Sequence[CellResult]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__(cells, done)
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(24), TextColumn("{task.fields[counts]}"))
        times = (TimeElapsedColumn(), TextColumn("{task.fields[left]}"), TextColumn("{task.description}"))
        self._bar = Progress(*columns, *times)
        self._task = self._bar.add_task("", total=self.total, completed=self.finished, counts=self._counts(), left="")
        self._bar.start()

    def begin(self, cell: Cell) -> None:
        self._bar.update(self._task, description=title(cell))

    def say(self, text: str) -> None:
        from rich.markup import escape

        self._bar.update(self._task, description=escape(text))

    def show(self, result: CellResult) -> None:
        from rich.markup import escape

        left = f"{clock(self.eta.left_s())} left"
        self._bar.update(self._task, completed=self.finished, counts=self._counts(), left=left)
        if result.status is not Status.OK and not result.is_settled:
            color = _COLORS.get(result.status, "red")
            line = f"[{color}]{result.status}[/] {title(result.cell)}: {escape(result.reason)}"
            self._bar.console.print(line, highlight=False)

    def close(self) -> None:
        self._bar.update(self._task, description="", left="")
        self._bar.stop()

    def _counts(self) -> str:
        counted = [(status, self.counts[status]) for status in Status if self.counts[status]]
        return " ".join(f"[{_COLORS.get(status, 'red')}]{count} {status}[/]" for status, count in counted)


def make_display(cells: Sequence[Cell], done: Sequence[CellResult], stream: TextIO | None = None) -> Display:
    """A bar where somebody watches, lines where nobody does."""
    stream = stream or sys.stdout
    return Bar(cells, done) if stream.isatty() else Lines(cells, done, stream)


def title(cell: Cell) -> str:
    """A cell in words."""
    return f"{point_title(cell.point)}, {cell.variant}, round {cell.round + 1}"


def point_title(point: Point) -> str:
    """A place in words."""
    length = f" x {point.length}" if point.length else ""
    return f"{point.model} {point.workload} {point.batch}{length}"


def clock(seconds: float | None) -> str:
    """1:05 for a minute and five seconds."""
    if seconds is None:
        return "?"
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if seconds < 600 else text.removeprefix("0:")


def headline_sample(result: CellResult) -> str:
    """The median of the first metric that was sampled."""
    for metric, samples in result.samples.items():
        if samples:
            return f"{metric} {median(samples):.4g}"
    return ""
