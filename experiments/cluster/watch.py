"""The live view of a run that others write: finished cells are counted from its folder, jobs by their states."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import plain
from experiments.cluster.executors import Executor, Job
from experiments.durable import read_json
from experiments.progress import Display
from experiments.records import CellResult

POLL_S = 1.0
CANCEL_S = 60.0


def watch(cells: "CellFolder", jobs: Sequence[Job], executor: Executor, display: Display) -> None:
    """Show cells as they are finished, until nothing more can come of any job."""
    shown = ""
    while True:
        # In this order: what a job wrote before it ended is seen after it ended.
        states = executor.states(jobs)
        for result in cells.new():
            # Jobs run side by side, so each second of theirs costs the run a part of one.
            display.end(result, result.duration_s / len(jobs))
        counted = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
        if counted != shown:
            display.say(f"shards: {counted or 'all ended'}")
            shown = counted
        if not states:
            return
        time.sleep(POLL_S)


def cancel(jobs: Sequence[Job], executor: Executor) -> None:
    """End the jobs, and see that they are gone before the run is left."""
    executor.cancel(jobs)
    deadline = time.monotonic() + CANCEL_S
    while executor.states(jobs) and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)


class CellFolder:
    """The files of a run's cells, as they come and change from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = dict(self._files())

    def new(self) -> list[CellResult]:
        """Results since the last call."""
        changed = [(file, when) for file, when in self._files() if self._seen.get(file) != when]
        results = []
        for file, when in sorted(changed, key=lambda pair: pair[1]):
            with contextlib.suppress(OSError, ValueError):
                results.append(plain.decode(CellResult, read_json(file)))
                self._seen[file] = when
        return results

    def _files(self) -> Iterator[tuple[Path, int]]:
        for file in self._path.glob("*.json"):
            with contextlib.suppress(OSError):
                yield file, file.stat().st_mtime_ns
