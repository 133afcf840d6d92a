"""How fast and how small reading a large export is:

    python -m tests.experiments.trace.scale [--record] [MEGABYTES] [FILE]

Makes an export like that of a long run: eager steps with a launch, another API call and an op range per kernel, and
as many steps that replay a graph captured in the window. The columns are filled as in a real export of an H200, so that
rows have its size. Then a fresh process reads, attributes and sums it up, and says its time and its peak memory, which
`--record` keeps for the guide: the median of three readings, by CPU time.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.environment import code, machine
from experiments.trace.attribution import attribute
from experiments.trace.reader import read_trace
from experiments.trace.summarise import make_ledger
from tests.experiments.trace.exports import SyntheticExport, thread_id

Row = dict[str, Any]

RECORD = Path(__file__).parents[3] / "docs/data/trace_reader.json"

LAYERS, KERNELS, STEP_NS = 28, 10, 2_000_000
PITCH_NS = (STEP_NS - 1000) // (LAYERS * KERNELS)
NAMES = [f"kernel_{i}" for i in range(KERNELS)]
OPS = [f"op/{name}" for name in ("rms_norm", "linear", "rope", "store_kv", "attention") for _ in range(2)]
BYTES_PER_STEP = 42_250
# What an H200's rows hold beyond what is read, by nsys 2023.4.
KERNEL = {
    "contextId": 1, "greenContextId": 0, "streamId": 7, "mangledName": 101, "launchType": 1, "cacheConfig": 1,
    "registersPerThread": 96, "gridX": 512, "gridY": 1, "gridZ": 1, "blockX": 128, "blockY": 1, "blockZ": 1,
    "dynamicSharedMemory": 32768, "localMemoryTotal": 250871808, "sharedMemoryExecuted": 32768,
    "globalPid": thread_id(1, 0),
}  # fmt: skip
CALL = {"eventClass": 1, "globalTid": thread_id(), "nameId": 107, "returnValue": 0}
RANGE = {"eventType": 59, "color": 255, "domainId": 1, "globalTid": thread_id()}


def make(path: Path, megabytes: float) -> int:
    """Write an export of about that size; returns its steps, of which every second replays a graph."""
    export = SyntheticExport(path, "3.7.2")
    export.database.execute("PRAGMA synchronous = OFF")
    keys = {text: export.string(text) for text in [*NAMES, *OPS, *(f"layer/{i}" for i in range(LAYERS))]}
    steps = max(2, round(megabytes * 1e6 / BYTES_PER_STEP))
    for index in range(LAYERS * KERNELS):
        export.node(1000 + index, index * 10 + 5)
        export.node(5000 + index, STEP_NS - 10, original=1000 + index)
        export.range(f"layer/{index // KERNELS}", index * 10, index * 10 + 9)
        export.range(OPS[index % KERNELS], index * 10 + 1, index * 10 + 8)
    for step in range(1, steps + 1):
        _insert_step(export, keys, step, replays=step % 2 == 0)
    export.close()
    return steps


def _insert_step(export: SyntheticExport, keys: dict[str, int], step: int, replays: bool) -> None:
    start = step * STEP_NS
    export.range(f"step/{step}", start, start + STEP_NS - 1)
    export.range("phase/forward", start + 1, start + STEP_NS - 2)
    places = range(LAYERS * KERNELS)
    export.insert_many("CUPTI_ACTIVITY_KIND_KERNEL", [_kernel(keys, step, index, replays) for index in places])
    launches = [_call(start + 4, step * 1000)] if replays else list(_eager_calls(step))
    export.insert_many("CUPTI_ACTIVITY_KIND_RUNTIME", launches)
    if not replays:
        export.insert_many("NVTX_EVENTS", [span for index in places for span in _ranges(keys, step, index)])


def _kernel(keys: dict[str, int], step: int, index: int, replays: bool) -> Row:
    at, name = step * STEP_NS + 100 + index * PITCH_NS, keys[NAMES[index % KERNELS]]
    correlation, node = (step * 1000, 5000 + index) if replays else (step * 1000 + index, None)
    own = {"demangledName": name, "shortName": name, "correlationId": correlation, "graphNodeId": node}
    return {"start": at + PITCH_NS // 2, "end": at + PITCH_NS - 1, "gridId": correlation, **own, **KERNEL}


def _call(at: int, correlation: int) -> Row:
    return {"start": at, "end": at + 9, "correlationId": correlation, **CALL}


def _eager_calls(step: int) -> Iterator[Row]:
    """Every kernel's launch, and a call beside it that launches nothing."""
    for index in range(LAYERS * KERNELS):
        at = step * STEP_NS + 100 + index * PITCH_NS
        yield _call(at + 4, step * 1000 + index)
        yield _call(at + 30, step * 1000 + index + 10**8)


def _ranges(keys: dict[str, int], step: int, index: int) -> Iterator[Row]:
    at = step * STEP_NS + 100 + index * PITCH_NS
    if index % KERNELS == 0:
        key = keys[f"layer/{index // KERNELS}"]
        yield {"start": at, "end": at + KERNELS * PITCH_NS - 1, "textId": key, **RANGE}
    yield {"start": at + 1, "end": at + 25, "textId": keys[OPS[index % KERNELS]], **RANGE}


def measure(path: Path) -> dict[str, float]:
    """Read an export into a ledger, in this process."""
    start, cpu_start = time.perf_counter(), time.process_time()
    trace = read_trace(path)
    ledger = make_ledger(trace, attribute(trace), "nsys")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kernels = sum(row.count for row in ledger.kernels)
    found = {"kernels": kernels, "steps": ledger.steps, "coverage": ledger.coverage}
    return {"bytes": path.stat().st_size, "wall_s": seconds, "cpu_s": cpu_seconds, "peak_bytes": peak, **found}


def measure_apart(path: Path) -> dict[str, float]:
    """The same in a fresh process, whose peak memory is that of the reading."""
    command = [sys.executable, "-m", "tests.experiments.trace.scale", "--measure", str(path)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def record(found: dict[str, float], megabytes: float) -> None:
    """Keep what was measured beside what other commits took, in place of what this one took before."""
    kept = json.loads(RECORD.read_text())["rows"] if RECORD.is_file() else []
    commit = code().commit
    rows = [row for row in kept if row["commit"] != commit] + [{"commit": commit, **found}]
    here = machine()
    where = f"{here.cpu}, {here.cpu_count} cores, shared with other programs"
    command = f"python -m tests.experiments.trace.scale --record {megabytes:g}"
    made = {"machine": where, "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": command, "rows": rows}
    RECORD.write_text(json.dumps(made, indent=1) + "\n")


def main() -> int:
    """Make, measure, print."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--measure"]:
        print(json.dumps(measure(Path(arguments[1]))))
        return 0
    keep = "--record" in arguments
    arguments = [argument for argument in arguments if argument != "--record"]
    megabytes = float(arguments[0]) if arguments else 300
    with tempfile.TemporaryDirectory(prefix="fusebench-scale-") as folder:
        path = Path(arguments[1]) if len(arguments) > 1 else Path(folder) / "export.sqlite"
        if not path.is_file():
            make(path, megabytes)
        readings = sorted((measure_apart(path) for _ in range(3 if keep else 1)), key=lambda found: found["cpu_s"])
    found = readings[len(readings) // 2]
    if keep:
        record(found, megabytes)
    print(
        f"{found['bytes'] / 1e6:.0f} MB, {found['kernels']:,.0f} kernels: {found['wall_s']:.1f} s, "
        f"of CPU {found['cpu_s']:.1f} s ({found['bytes'] / 1e6 / found['cpu_s']:.0f} MB/s), "
        f"peak {found['peak_bytes'] / 1e6:.0f} MB, coverage {found['coverage']:.1%}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
