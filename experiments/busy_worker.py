"""A worker whose truth is known: its steps are a loop of so many turns, and a variant called `slow_5` turns 5 % more.

It speaks the protocol and really measures, so a sweep of it has this machine's noise, and a right answer. The clock is
the thread's CPU time: where many share the cores, wall time measures who else runs.
"""

from experiments.messages import worker_channel

if __name__ == "__main__":
    CHANNEL = worker_channel()

import sys
import time

from experiments.config import ProtocolConfig
from experiments.messages import (
    Answer,
    Exit,
    Failed,
    Load,
    Measure,
    MeasureCeilings,
    Measured,
    Rates,
    Ready,
    Verified,
    Verify,
)
from experiments.records import Cell, CellResult, Status, Verdict

TURNS_PER_BATCH = 2_000
RIGHT = Verdict(True, "", 1, 1.0, 0.0, 0.0, 0)


def slow_down(variant: str) -> float:
    """What a variant of this name is slowed by: 0.05 for `slow_5`, nothing for any other name."""
    return float(variant.removeprefix("slow_")) / 100 if variant.startswith("slow_") else 0.0


class BusyWorker:
    """Answers like a worker that has an engine."""

    def __init__(self) -> None:
        self.load: Load | None = None

    def answer(self, request: object) -> Answer:
        """The answer to one request."""
        if isinstance(request, Load):
            self.load = request
            return Ready("none", "busy", "twin")
        if isinstance(request, Verify):
            return Verified(RIGHT)
        if isinstance(request, MeasureCeilings):
            return Rates({})
        if isinstance(request, Measure) and self.load is not None:
            return Measured(self._measure(request.cell, self.load.protocol))
        return Failed("error", f"a busy worker cannot {type(request).__name__.lower()}")

    def _measure(self, cell: Cell, protocol: ProtocolConfig) -> CellResult:
        turns = round(TURNS_PER_BATCH * cell.point.batch * (1 + slow_down(cell.variant)))
        for _ in range(protocol.warmup_min_steps):
            busy(turns)
        step_ms = [step(turns, protocol.steps_per_window) for _ in range(protocol.windows)]
        return CellResult(cell, Status.OK, kernels="twin", samples={"step_ms": step_ms})


def step(turns: int, steps: int) -> float:
    """CPU milliseconds of one step, over a window of `steps`."""
    start = time.thread_time()
    for _ in range(steps):
        busy(turns)
    return (time.thread_time() - start) * 1e3 / steps


def busy(turns: int) -> None:
    """Take time in proportion to `turns`."""
    for _ in range(turns):
        pass


def main() -> int:
    """Serve until told to exit, or until the harness is gone."""
    worker = BusyWorker()
    while (request := CHANNEL.receive()) is not None and not isinstance(request, Exit):
        CHANNEL.send(worker.answer(request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
