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


def sweep(ranges: pd.DataFrame) -> Sweep:
    """Sweep the given ranges (columns start, end, thread, name), thread by thread."""
    parent = np.full(len(ranges), NONE, dtype=np.int32)
    paths: dict[tuple[int, ...], int] = {(): 0}
    threads = ranges["thread"].to_numpy()
    by_thread = np.argsort(threads, kind="stable")
    cuts = np.flatnonzero(np.diff(threads[by_thread])) + 1
    stacks = {
        int(threads[rows[0]]): _sweep_thread(ranges, rows, parent, paths)
        for rows in np.split(by_thread, cuts)
        if len(rows)
    }
    return Sweep(stacks, parent, list(paths))


def _sweep_thread(
    ranges: pd.DataFrame, rows: np.ndarray, parent: np.ndarray, paths: dict[tuple[int, ...], int]
) -> Stack:
    names: list[int] = ranges["name"].to_numpy()[rows].tolist()
    times, places, opens = _boundaries(ranges["start"].to_numpy()[rows], ranges["end"].to_numpy()[rows])
    owner = np.full(len(times), NONE, dtype=np.int32)
    path = np.zeros(len(times), dtype=np.int32)
    stack: list[int] = []
    closed: set[int] = set()
    for i, (place, is_open) in enumerate(zip(places.tolist(), opens.tolist(), strict=True)):
        if is_open:
            parent[rows[place]] = rows[stack[-1]] if stack else NONE
            stack.append(place)
        else:
            closed.add(place)
            while stack and stack[-1] in closed:
                closed.remove(stack.pop())
        if stack:
            owner[i] = rows[stack[-1]]
            open_names = tuple([names[place] for place in stack if place not in closed])
            path[i] = paths.setdefault(open_names, len(paths))
    return Stack(times, owner, path)


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
