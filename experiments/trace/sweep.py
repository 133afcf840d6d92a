"""Which NVTX ranges are open at an instant, for every thread: one pass over the ranges, then look-ups by bisection.

A range is open over the closed interval [start, end]. Between two boundaries the set of open ranges is constant; the
owner of such a segment is the range opened last, and `parent` leads from there to every other open one. That chain may
hold a range that has closed meanwhile (ranges of two domains may overlap without nesting): look at its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.trace.schema import NONE, OPEN_NS


@dataclass(frozen=True)
class Stack:
    """The open ranges of one thread. Segment i begins at `starts[i]`: `owner[i]` is a row of the ranges, or -1, and
    `path[i]` the place in the sweep's list of the names that are open, outermost first."""

    starts: np.ndarray
    owner: np.ndarray
    path: np.ndarray

    def segment(self, when: np.ndarray) -> np.ndarray:
        """The segment of each instant; -1 before the first."""
        return np.searchsorted(self.starts, when, side="right") - 1


@dataclass(frozen=True)
class Sweep:
    """The stacks of all threads. `parent[row]` is the range open below `row` when it opened; `paths[0]` is ()."""

    stacks: Mapping[int, Stack]
    parent: np.ndarray
    paths: Sequence[tuple[int, ...]]

    def owners(self, threads: np.ndarray, when: np.ndarray) -> np.ndarray:
        """The innermost open range at each (thread, instant), as a row of the ranges; -1 where none is."""
        return self._look_up("owner", threads, when, NONE)

    def path_ids(self, threads: np.ndarray, when: np.ndarray) -> np.ndarray:
        """The open names at each (thread, instant), as places in `paths`; 0 where none is."""
        return self._look_up("path", threads, when, 0)

    def _look_up(self, field: str, threads: np.ndarray, when: np.ndarray, nothing: int) -> np.ndarray:
        found = np.full(len(when), nothing, dtype=np.int32)
        for thread, stack in self.stacks.items():
            chosen = np.flatnonzero(threads == thread)
            segments = stack.segment(when[chosen])
            inside = segments >= 0
            found[chosen[inside]] = getattr(stack, field)[segments[inside]]
        return found


class _Paths:
    """Names that are open together, outermost first, each such path once: a path is a shorter one and a name more."""

    def __init__(self) -> None:
        self.known: list[tuple[int, ...]] = [()]
        self._longer: dict[tuple[int, int], int] = {}

    def longer(self, path: int, name: int) -> int:
        """The path that has one name more."""
        if (path, name) not in self._longer:
            self._longer[path, name] = len(self.known)
            self.known.append((*self.known[path], name))
        return self._longer[path, name]


def sweep(ranges: pd.DataFrame) -> Sweep:
    """Sweep the given ranges (columns start, end, thread, name), thread by thread."""
    parent = np.full(len(ranges), NONE, dtype=np.int32)
    paths = _Paths()
    threads = ranges["thread"].to_numpy()
    by_thread = np.argsort(threads, kind="stable")
    cuts = np.flatnonzero(np.diff(threads[by_thread])) + 1
    stacks = {
        int(threads[rows[0]]): _sweep_thread(ranges, rows, parent, paths)
        for rows in np.split(by_thread, cuts)
        if len(rows)
    }
    return Sweep(stacks, parent, paths.known)


def _sweep_thread(ranges: pd.DataFrame, rows: np.ndarray, parent: np.ndarray, paths: _Paths) -> Stack:
    names: list[int] = ranges["name"].to_numpy()[rows].tolist()
    times, places, opens = _boundaries(ranges["start"].to_numpy()[rows], ranges["end"].to_numpy()[rows])
    below, owner, path = [NONE] * len(rows), [NONE] * len(times), [0] * len(times)
    # `levels[k]` is the path of the first k ranges of the stack.
    stack: list[int] = []
    levels = [0]
    closed: set[int] = set()
    for i, (place, is_open) in enumerate(zip(places.tolist(), opens.tolist(), strict=True)):
        if is_open:
            below[place] = stack[-1] if stack else NONE
            stack.append(place)
            levels.append(paths.longer(levels[-1], names[place]))
        else:
            closed.add(place)
            if stack[-1] != place:
                levels = _levels(stack, closed, names, paths)
            while stack and stack[-1] in closed:
                closed.remove(stack.pop())
                levels.pop()
        if stack:
            owner[i], path[i] = stack[-1], levels[-1]
    parent[rows] = _rows_at(rows, below)
    return Stack(times, _rows_at(rows, owner), np.array(path, dtype=np.int32))


def _levels(stack: list[int], closed: set[int], names: list[int], paths: _Paths) -> list[int]:
    """The paths of a stack in which a range has closed under another one."""
    levels = [0]
    for place in stack:
        levels.append(levels[-1] if place in closed else paths.longer(levels[-1], names[place]))
    return levels


def _rows_at(rows: np.ndarray, places: list[int]) -> np.ndarray:
    """The rows at these places; -1 stays."""
    index = np.array(places, dtype=np.int64)
    return np.where(index == NONE, NONE, rows[index]).astype(np.int32)


def _boundaries(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Openings and closings in order of time, as (instant, place, opens). A closing takes effect after its instant.

    At one instant closings come first, then openings: of those that open together, the longer is the outer one.
    """
    closing = np.flatnonzero(end != OPEN_NS)
    times = np.concatenate([end[closing] + 1, start])
    places = np.concatenate([closing, np.arange(len(start))])
    opens = np.concatenate([np.zeros(len(closing), dtype=bool), np.ones(len(start), dtype=bool)])
    order = np.lexsort((places, -end[places], opens, times))
    return times[order], places[order], opens[order]
