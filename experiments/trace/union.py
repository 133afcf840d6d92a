"""When a device was busy: the union of all work on it, so that overlapping streams count once."""

from dataclasses import dataclass

import numpy as np

from experiments.trace.grouping import blocks


@dataclass(frozen=True)
class Busy:
    """The union of intervals on each device: busy and window nanoseconds, and every gap with the row after it."""

    busy_ns: int
    window_ns: int
    gap_ns: np.ndarray
    gap_row: np.ndarray


def union(start: np.ndarray, end: np.ndarray, device: np.ndarray) -> Busy:
    """Unite the intervals of each device; they come in order of start."""
    busy_ns = window_ns = 0
    gaps: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    for one in np.unique(device):
        begin = reach = int(start[(device == one).argmax()])
        for block in blocks(len(device)):
            chosen = np.flatnonzero(device[block] == one).astype(np.int32) + block.start
            own = start[chosen]
            reaches = np.maximum.accumulate(np.append(reach, end[chosen]))
            idle = np.maximum(own - reaches[:-1], 0)
            after = np.flatnonzero(idle)
            gaps.append(idle[after])
            rows.append(chosen[after])
            busy_ns -= int(idle.sum())
            reach = int(reaches[-1])
        window_ns += reach - begin
    return Busy(busy_ns + window_ns, window_ns, np.concatenate(gaps), np.concatenate(rows))
