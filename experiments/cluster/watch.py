"""The live view of a run that others write: finished cells are counted from its folder, jobs by their states."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from experiments import plain
from experiments.cluster.executors import Executor
from experiments.durable import read_json
from experiments.progress import Display
from experiments.records import CellResult

POLL_S = 1.0
CANCEL_S = 60.0


class CellFolder:
    """The files of a run's cells, as they come and change from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = dict(self._files())
        self._told: set[Path] = set()

    def new(self) -> list[CellResult]:
        """Results since the last call, each cell once."""
        changed = [(when, file) for file, when in self._files() if self._before.get(file) != when]
        results = []
        for _, file in sorted(pair for pair in changed if pair[1] not in self._told):
            with contextlib.suppress(OSError, ValueError):
                results.append(plain.decode(CellResult, read_json(file)))
                self._told.add(file)
        return results

    def _files(self) -> Iterator[tuple[Path, int]]:
        for file in self._path.glob("*.json"):
            with contextlib.suppress(OSError):
                yield file, file.stat().st_mtime_ns


def watch(cells: CellFolder, executor: Executor, display: Display) -> None:
    """Show cells as they are finished, until nothing more can come of any job."""
    shown = ""
    while True:
        # In this order: what a job wrote before it ended is seen after it ended.
        states = executor.states()
        for result in cells.new():
            # Jobs run side by side, so each second of theirs costs the run a part of one.
            display.end(result, result.duration_s / len(executor.jobs))
        counted = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items()) or "all ended"
        if counted != shown:
            display.say(f"shards: {counted}")
            shown = counted
        if not states:
            return
        time.sleep(POLL_S)


def cancel(executor: Executor) -> None:
    """End the jobs, and see that they are gone before the run is left."""
    executor.cancel()
    deadline = time.monotonic() + CANCEL_S
    while executor.states() and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)
