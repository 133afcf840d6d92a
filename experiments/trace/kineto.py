"""The PyTorch profiler's Chrome trace, read into the same arrays as an nsys export.

Kernels are joined to their launches by correlation id, launches to the `record_function` ranges around them. A graph's
kernels carry no trace of their capture, so under this profiler the worker runs without CUDA graphs. A CPU has no
kernels: there the outermost operators (aten::linear ...) take their place, as `cpu_op`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.errors import UserError
from experiments.trace.reader import PROCESS_MASK, Trace
from experiments.trace.schema import GPU_TABLES, NONE, RUNTIME
from experiments.trace.summarise import KINDS

Event = dict[str, Any]

GPU_CATEGORIES = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
LAUNCHES = ("cuda_runtime", "cuda_driver")
_COPIES = {"HtoD": 1, "DtoH": 2, "DtoD": 8, "PtoP": 10}
_GPU_COLUMNS = GPU_TABLES["kernel"].columns


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
    gpu = [_gpu_row(event, names) for event in events if event.get("cat") in GPU_CATEGORIES]
    calls = [_call_row(event, names) for event in events if event.get("cat") in LAUNCHES]
    if not gpu:
        operators = list(outermost(event for event in events if event.get("cat") == "cpu_op"))
        gpu = [_operator_row(i, event, names) for i, event in enumerate(operators)]
        # An operator is its own launch.
        calls = [(_start(e), _start(e), _thread(e), i, NONE) for i, e in enumerate(operators)]
    processes = {call[2] & PROCESS_MASK for call in calls}
    frame = _frame(gpu, ["kind", *(column.name for column in _GPU_COLUMNS)]).sort_values("start", kind="stable")
    if len(processes) == 1:
        # Device events name no process; one trace is of one process.
        frame["process"] = processes.pop()
    spans = [(_start(e), _end(e), _thread(e), 0, names[str(e["name"])], 0, 0) for e in ranges]
    return Trace(
        product=version,
        schema=f"chrome {data.get('schemaVersion', '?')}",
        gpu=frame.reset_index(drop=True),
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


def _gpu_row(event: Event, names: _Names) -> tuple[int, ...]:
    arguments = event.get("args", {})
    kind = GPU_CATEGORIES[event["cat"]]
    text = str(event["name"])
    detail = next((number for word, number in _COPIES.items() if word in text), NONE) if kind == "memcpy" else NONE
    grid, block = ([*arguments.get(key, ()), 0, 0, 0][:3] for key in ("grid", "block"))
    values = {
        "start": _start(event),
        "end": _end(event),
        "device": arguments.get("device", 0),
        "stream": arguments.get("stream", 0),
        "process": NONE,
        "correlation": arguments.get("correlation", NONE),
        "name": names[text],
        "short": names[short_name(text)],
        "detail": detail,
        "node": NONE,
        **dict(zip(("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z"), (*grid, *block), strict=True)),
        "registers": arguments.get("registers per thread", 0),
        "static_shared": 0,
        "dynamic_shared": arguments.get("shared memory", 0),
    }
    return (KINDS.index(kind), *(int(values[column.name]) for column in _GPU_COLUMNS))


def short_name(signature: str) -> str:
    """A kernel's name without return type, namespaces, template and arguments, as nsys has it."""
    depth, plain = 0, []
    for letter in signature.replace("(anonymous namespace)", "unnamed"):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            break
        if depth == 0 and letter != ">":
            plain.append(letter)
    words = "".join(plain).split()
    return words[-1].rsplit("::", 1)[-1] if words else signature


def _call_row(event: Event, names: _Names) -> tuple[int, ...]:
    correlation = int(event.get("args", {}).get("correlation", NONE))
    return _start(event), _end(event), _thread(event), correlation, names[str(event["name"])]


def _operator_row(index: int, event: Event, names: _Names) -> tuple[int, ...]:
    name = names[str(event["name"])]
    values = {"start": _start(event), "end": _end(event), "correlation": index, "name": name, "short": name}
    process = _thread(event) & PROCESS_MASK
    values |= {"process": process, "node": NONE, "detail": NONE}
    return (KINDS.index("cpu_op"), *(values.get(column.name, 0) for column in _GPU_COLUMNS))


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
