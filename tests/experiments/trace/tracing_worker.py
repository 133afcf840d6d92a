"""A worker without an engine that can be traced: NVTX ranges under nsys, an invented Chrome trace for the other lens.

    python tracing_worker.py [MODE]

MODE: nothing; `no-window` (the profiler's window never opens); `fail` (out of memory); `user`; `die`; `empty`; `rungs`
(fusions that are live, left off and, being switched off, stray); `twins` (one that took work, as its twin).
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from experiments.messages import Answer, Exit, Failed, Load, Ready, Rung, Trace, Traced, worker_channel

CHANNEL = worker_channel() if __name__ == "__main__" else None
MODE = sys.argv[1] if len(sys.argv) > 1 else ""
RUNGS = {
    "twins": (Rung("folded", "_folded_kernel", True),),
    "rungs": (Rung("live", "aten::lin*", True), Rung("idle", "attention", True), Rung("stray", "aten::copy_", False)),
}


def answer(request: object) -> Answer:
    """The answer to one request."""
    if isinstance(request, Load):
        print("a library says hello")
        return Ready("fake", "0123", "twin")
    assert isinstance(request, Trace)
    if MODE == "fail":
        return Failed("oom", "out of memory")
    if MODE == "user":
        return Failed("user", "no such thing")
    if MODE == "die":
        os._exit(3)
    if request.profiler == "nsys":
        push_ranges(request)
    elif request.profiler == "torch":
        events = [] if MODE == "empty" else chrome_events(request)
        Path(request.path).write_text(json.dumps({"schemaVersion": 1, "traceEvents": events}))
    return Traced(request.cell, request.steps, RUNGS.get(MODE, ()))


def push_ranges(request: Trace) -> None:
    """The ranges of a traced cell, in real time."""
    import nvtx

    from engine.ranges import detail, rung

    if MODE == "no-window":
        return
    with nvtx.annotate(f"cell/{request.cell.id}"), nvtx.annotate("replay"), detail():
        for step in range(request.steps):
            with nvtx.annotate(f"step/{step}"), nvtx.annotate("phase/forward"), nvtx.annotate("op/linear"):
                rung("live")
                time.sleep(0.001)


def chrome_events(request: Trace) -> list[dict[str, Any]]:
    """Each step 1 ms; in it a linear of 300 us (its addmm inside) and an unowned copy of 100 us."""

    def event(category: str, name: str, start_us: float, duration_us: float) -> dict[str, Any]:
        return {
            "ph": "X",
            "cat": category,
            "name": name,
            "ts": start_us,
            "dur": duration_us,
            "pid": 7,
            "tid": 7,
            "args": {},
        }

    events = [event("user_annotation", f"cell/{request.cell.id}", 0, 1e6), event("user_annotation", "replay", 1, 9e5)]
    for step in range(request.steps):
        at = 1000.0 * (step + 1)
        events += [
            event("user_annotation", f"step/{step}", at, 900),
            event("user_annotation", "phase/forward", at + 1, 800),
            event("user_annotation", "layer/0", at + 2, 400),
            event("user_annotation", "op/linear", at + 3, 390),
            event("cpu_op", "aten::linear", at + 10, 300),
            event("cpu_op", "aten::addmm", at + 20, 250),
            event("cpu_op", "aten::copy_", at + 500, 100.5),
        ]
        if MODE == "twins":
            events.append(event("user_annotation", "rung/folded", at + 4, 1))
    return events


def main() -> int:
    """Serve until told to exit, or until the harness is gone."""
    assert CHANNEL is not None
    while (request := CHANNEL.receive()) is not None and not isinstance(request, Exit):
        CHANNEL.send(answer(request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
