"""Which NVTX ranges are open at an instant, for every thread, by array operations alone.

A range is open over the closed interval [start, end]. Of those that open together the longer is the outer one. Each
range has a `parent`, the one opened last of those still open when it opened; every range that is open at an instant is
found by walking from the one opened last before it to its parents. That walk may meet a range that has closed meanwhile
(ranges of two domains may overlap without nesting): look at its end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from experiments.trace.grouping import blocks, group_codes
from experiments.trace.schema import NONE


@dataclass(frozen=True)
class Stack:
    """The ranges of one thread in the order in which they opened: their starts, and their rows."""

    starts: np.ndarray
    rows: np.ndarray

    def last_opened(self, when: np.ndarray) -> np.ndarray:
        """The row of the range opened last at each instant, closed by then or not; -1 before the first."""
        place = np.searchsorted(self.starts, when, side="right") - 1
        return np.where(place >= 0, self.rows[np.maximum(place, 0)], NONE)


@dataclass(frozen=True)
class Sweep:
    """The stacks of all threads, and by row of the ranges their end, name, and parent (a row, or -1).

    `paths` are the sequences of names, outermost first, that look-ups have met so far; the first is ().
    """

    stacks: Mapping[int, Stack]
    end: np.ndarray
    name: np.ndarray
    parent: np.ndarray
    paths: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    _longer: dict[tuple[int, int], int] = field(default_factory=dict)

    def owners(self, threads: np.ndarray, when: np.ndarray) -> np.ndarray:
        """The innermost open range at each (thread, instant), as a row of the ranges; -1 where none is."""
        row = np.full(len(when), NONE, dtype=np.int32)
        for thread, stack in self.stacks.items():
            chosen = np.flatnonzero(threads == thread)
            row[chosen] = stack.last_opened(when[chosen])
        return self._open(row, when)

    def path_ids(self, threads: np.ndarray, when: np.ndarray) -> np.ndarray:
        """The open names at each (thread, instant), as places in `paths`; 0 where none is."""
        ids = np.zeros(len(when), dtype=np.int32)
        for block in blocks(len(when)):
            ids[block] = self._path_ids(threads[block], when[block])
        return ids

    def _path_ids(self, threads: np.ndarray, when: np.ndarray) -> np.ndarray:
        ids = np.zeros(len(when), dtype=np.int32)
        row = self.owners(threads, when)
        asking = np.flatnonzero(row != NONE)
        while len(asking):
            own = row[asking]
            ids[asking] = self._with_outer(ids[asking], self.name[own])
            row[asking] = self._open(self.parent[own], when[asking])
            asking = asking[row[asking] != NONE]
        return ids

    def _open(self, row: np.ndarray, when: np.ndarray) -> np.ndarray:
        """Each row, or where that range has closed by then its nearest ancestor that has not."""
        row = row.copy()
        asking = np.arange(len(row), dtype=np.int32)
        while True:
            asking = asking[row[asking] != NONE]
            asking = asking[self.end[row[asking]] < when[asking]]
            if not len(asking):
                return row
            row[asking] = self.parent[row[asking]]

    def _with_outer(self, ids: np.ndarray, names: np.ndarray) -> np.ndarray:
        """Each of the given paths with one more name around it."""
        codes, firsts = group_codes((ids, names), len(ids))
        distinct = zip(ids[firsts].tolist(), names[firsts].tolist(), strict=True)
        found: np.ndarray = np.array([self._longer_path(inner, name) for inner, name in distinct], dtype=np.int32)[
            codes
        ]
        return found

    def _longer_path(self, inner: int, name: int) -> int:
        if (inner, name) not in self._longer:
            self._longer[inner, name] = len(self.paths)
            self.paths.append((name, *self.paths[inner]))
        return self._longer[inner, name]


def sweep(ranges: pd.DataFrame) -> Sweep:
    """Sweep the given ranges (columns start, end, thread, name), thread by thread."""
    start, end, thread = (ranges[name].to_numpy() for name in ("start", "end", "thread"))
    parent = np.full(len(ranges), NONE, dtype=np.int32)
    stacks = {}
    for one in np.unique(thread).tolist():
        rows = _in_order(np.flatnonzero(thread == one).astype(np.int32), start, end)
        starts = start[rows]
        below = _below(starts, end[rows])
        parent[rows] = np.where(below == NONE, NONE, rows[below])
        stacks[one] = Stack(starts, rows)
    return Sweep(stacks, end, ranges["name"].to_numpy(), parent)


def _in_order(rows: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The rows in the order in which their ranges open."""
    starts = start[rows]
    if (starts[1:] > starts[:-1]).all():
        return rows
    ordered: np.ndarray = rows[np.lexsort((-end[rows], starts))]
    return ordered


def _below(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """For each range of a thread, in order of opening, the last one before it that is open when it opens; or -1.

    Everything between a range and its candidate has closed, so from a closed candidate one may jump to the candidate's
    own: among siblings the jumps double with every round.
    """
    below = np.arange(-1, len(start) - 1, dtype=np.int32)
    moving = np.flatnonzero(end[:-1] < start[1:]).astype(np.int32) + 1
    while len(moving):
        below[moving] = below[below[moving]]
        moving = moving[below[moving] != NONE]
        moving = moving[end[below[moving]] < start[moving]]
    return below
