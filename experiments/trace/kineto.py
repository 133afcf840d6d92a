"""The PyTorch profiler's Chrome trace, read into the same arrays as an nsys export.

Kernels are joined to their launches by correlation id, launches to the `record_function` ranges around them. A graph's
kernels carry no trace of their capture, so under this profiler the worker runs without CUDA graphs. A CPU has no
kernels: there the outermost operators (aten::linear ...) take their place, as `cpu_op`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.errors import UserError
from experiments.trace.grouping import Interner
from experiments.trace.names import short_name
from experiments.trace.reader import PROCESS_MASK, Trace, in_order
from experiments.trace.schema import KINDS, NONE, ROW, RUNTIME, SPEC

Event = dict[str, Any]

GPU_CATEGORIES = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
LAUNCHES = ("cuda_runtime", "cuda_driver")
_COPIES = {"HtoD": 1, "DtoH": 2, "DtoD": 8, "PtoP": 10}


def read_chrome_trace(path: Path, version: str = "?") -> Trace:
    """Read a trace; UserError for a file that is none. `version` is the profiler's (torch's)."""
    try:
        # Microseconds since the epoch with a fraction do not fit a float.
        data = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
        events = [event for event in data["traceEvents"] if event.get("ph") == "X"]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: no Chrome trace of the PyTorch profiler, or a truncated one") from None
    names = _Names()
    ranges = [event for event in events if event.get("cat") == "user_annotation"]
    work = [_gpu_row(event, names) for event in events if event.get("cat") in GPU_CATEGORIES]
    calls = [_call_row(event) for event in events if event.get("cat") in LAUNCHES]
    if not work:
        operators = list(outermost(event for event in events if event.get("cat") == "cpu_op"))
        work = [_operator_row(i, event, names) for i, event in enumerate(operators)]
        # An operator is its own launch.
        calls = [(_start(event), _start(event), _thread(event), i) for i, event in enumerate(operators)]
    processes = {call[2] & PROCESS_MASK for call in calls}
    # Device events name no process; one trace is of one process.
    process = processes.pop() if len(processes) == 1 else NONE
    gpu, specs = _gpu_frames([{**SPEC, "process": process, "node": NONE, **row} for row in work])
    spans = [(_start(e), _end(e), _thread(e), 0, names[str(e["name"])], 0, 0) for e in ranges]
    return Trace(
        product=version,
        schema=f"chrome {data.get('schemaVersion', '?')}",
        gpu=gpu,
        specs=specs,
        calls=_frame(calls, [column.name for column in RUNTIME.columns]),
        ranges=_frame(spans, ["start", "end", "thread", "domain", "name", "style", "crosses"]),
        nodes=_frame([], ["start", "thread", "node", "original"]),
        strings=names.strings(),
        domains={},
        last_nvtx_ns=max((_end(event) for event in ranges), default=0),
    )


def outermost(events: Iterable[Event]) -> Iterator[Event]:
    """The events that no other of the same thread encloses."""
    reach: dict[int, int] = {}
    for event in sorted(events, key=lambda event: (_start(event), -_end(event))):
        thread, end = _thread(event), _end(event)
        if _start(event) >= reach.get(thread, _start(event)):
            reach[thread] = end
            yield event


class _Names(dict[str, int]):
    """Names to keys, handed out as they come."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]

    def strings(self) -> dict[int, str]:
        return {key: name for name, key in self.items()}


def _gpu_frames(rows: Sequence[Mapping[str, int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`gpu` and `specs` of a Trace."""
    columns = {name: np.array([row[name] for row in rows], dtype=np.int64) for name in (*ROW, *SPEC)}
    specs = Interner(tuple(SPEC))
    places = specs.intern(columns, len(rows))
    return in_order(pd.DataFrame({**{name: columns[name] for name in ROW}, "spec": places})), specs.table()


def _gpu_row(event: Event, names: _Names) -> dict[str, int]:
    arguments, text = event.get("args", {}), str(event["name"])
    kind = GPU_CATEGORIES[event["cat"]]
    row = {
        "kind": KINDS.index(kind),
        "start": _start(event),
        "end": _end(event),
        "device": int(arguments.get("device", 0)),
        "stream": int(arguments.get("stream", 0)),
        "correlation": int(arguments.get("correlation", NONE)),
        "name": names[text],
        "short": names[short_name(text)],
        "registers": int(arguments.get("registers per thread", 0)),
        "dynamic_shared": int(arguments.get("shared memory", 0)),
    }
    if kind == "memcpy":
        row["detail"] = next((number for word, number in _COPIES.items() if word in text), NONE)
    for key in ("grid", "block"):
        row |= {f"{key}_{axis}": int(size) for axis, size in zip("xyz", arguments.get(key, ()), strict=False)}
    return row


def _call_row(event: Event) -> tuple[int, ...]:
    return _start(event), _end(event), _thread(event), int(event.get("args", {}).get("correlation", NONE))


def _operator_row(index: int, event: Event, names: _Names) -> dict[str, int]:
    name = names[str(event["name"])]
    return {
        "kind": KINDS.index("cpu_op"),
        "start": _start(event),
        "end": _end(event),
        "device": 0,
        "stream": 0,
        "process": _thread(event) & PROCESS_MASK,
        "correlation": index,
        "name": name,
        "short": name,
    }


def _frame(rows: Sequence[tuple[int, ...]], columns: list[str]) -> pd.DataFrame:
    values = np.array(rows, dtype=np.int64).reshape(-1, len(columns))
    return pd.DataFrame(dict(zip(columns, values.T, strict=True)))


def _start(event: Event) -> int:
    """Nanoseconds."""
    return int(event["ts"] * 1000)


def _end(event: Event) -> int:
    return int((event["ts"] + event.get("dur", 0)) * 1000)


def _thread(event: Event) -> int:
    """Process and thread packed as in an nsys export."""
    return (int(event["pid"]) << 24) | (int(event["tid"]) & 0xFFFFFF)
