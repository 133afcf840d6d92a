"""The three stock nsys reports that other tools are checked against, computed from the reader's arrays.

They count inclusively, so their rows cannot be summed: a kernel appears under every range around its launch. They are
here to hold the reader equal to `nsys stats` to the nanosecond.
"""

import numpy as np
import pandas as pd

from experiments.trace.attribution import launching_calls
from experiments.trace.reader import PROCESS_MASK, Trace
from experiments.trace.schema import GPU_TABLES, NONE, OPEN_NS
from experiments.trace.sweep import sweep

_KERNEL = list(GPU_TABLES).index("kernel")
_GRAPH = list(GPU_TABLES).index("graph")


def kernel_sums(trace: Trace) -> pd.DataFrame:
    """`gpukernsum`: name, grid, block, count, total_ns; one row per kernel name and launch shape."""
    keys = ["name", "grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z"]
    named = pd.DataFrame({key: trace.of_gpu(key) for key in keys})
    named["name"] = _texts(trace, trace.of_gpu("name"))
    named["total_ns"] = trace.gpu["end"] - trace.gpu["start"]
    kernels = named[trace.of_gpu("kind") == _KERNEL]
    sums: pd.DataFrame = kernels.groupby(keys)["total_ns"].agg(count="size", total_ns="sum").reset_index()
    return sums


def inclusive_sums(trace: Trace) -> pd.DataFrame:
    """`nvtxkernsum`: range, style, pid, tid, kernel, num_ranges, count, total_ns.

    The range is empty outside all ranges. A kernel within two ranges of one name is one kernel and twice its time.
    """
    chosen = trace.of_gpu("kind") == _KERNEL
    kernels, call = trace.gpu[chosen].reset_index(drop=True), launching_calls(trace)[chosen]
    row, owner = _containing(trace, call)
    outside = np.setdiff1d(np.arange(len(kernels)), row)
    row, owner = np.concatenate([row, outside]), np.concatenate([owner, np.full(len(outside), NONE)])
    names, styles = _range_names(trace), np.array(["PushPop", "StartEnd", ""])
    thread = np.where(call == NONE, NONE, trace.calls["thread"].to_numpy()[call] if len(trace.calls) else NONE)[row]
    pairs = pd.DataFrame(
        {
            "range": names[owner],
            "style": styles[np.append(trace.ranges["style"].to_numpy(), 2)[owner]],
            "pid": (thread >> 24) & 0xFFFFFF,
            "tid": thread & 0xFFFFFF,
            "kernel": _texts(trace, trace.of_gpu("name")[chosen])[row],
            "instance": pd.arrays.IntegerArray(owner.astype(np.int64), mask=owner == NONE),
            "row": row,
            "duration": (kernels["end"] - kernels["start"]).to_numpy()[row],
        }
    )
    grouped = pairs.groupby(["range", "style", "pid", "tid", "kernel"])
    sums = grouped.agg(num_ranges=("instance", "nunique"), count=("row", "nunique"), total_ns=("duration", "sum"))
    return sums.reset_index()


def projection(trace: Trace) -> pd.DataFrame:
    """`nvtxgpuproj`: every range with work in it, from its first work's start to its last work's end.

    Columns name, start, duration, range_start, range_duration, pid, tid, num_launches, in order of start.
    """
    chosen = trace.of_gpu("kind") != _GRAPH
    gpu, call = trace.gpu[chosen].reset_index(drop=True), launching_calls(trace)[chosen]
    row, owner = _containing(trace, call)
    pairs = pd.DataFrame(
        {"owner": owner, "start": gpu["start"].to_numpy()[row], "end": gpu["end"].to_numpy()[row], "call": call[row]}
    )
    spans = pairs.groupby("owner").agg(start=("start", "min"), end=("end", "max"), num_launches=("call", "nunique"))
    owners = spans.index.to_numpy()
    thread = trace.ranges["thread"].to_numpy()[owners]
    range_start, range_end = trace.ranges["start"].to_numpy()[owners], _closed_ends(trace)[owners]
    return pd.DataFrame(
        {
            "name": _range_names(trace)[owners],
            "start": spans["start"].to_numpy(),
            "duration": (spans["end"] - spans["start"]).to_numpy(),
            "range_start": range_start,
            "range_duration": range_end - range_start,
            "pid": (thread >> 24) & 0xFFFFFF,
            "tid": thread & 0xFFFFFF,
            "num_launches": spans["num_launches"].to_numpy(),
        }
    ).sort_values(["start", "duration"], ascending=[True, False], ignore_index=True)


def _containing(trace: Trace, call: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every (row, range) where the range holds the whole of the call `call[row]` on the call's own thread."""
    own_thread = np.flatnonzero(trace.ranges["crosses"].to_numpy() == 0)
    ends = _closed_ends(trace)
    ranges = trace.ranges.assign(end=ends).iloc[own_thread]
    swept = sweep(ranges)
    rows = np.flatnonzero(call != NONE)
    calls = trace.calls.iloc[call[rows]]
    current = swept.owners(calls["thread"].to_numpy(), calls["start"].to_numpy())
    call_end, range_end = calls["end"].to_numpy(), ranges["end"].to_numpy()
    found_rows, found_ranges = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    while (alive := current != NONE).any():
        rows, call_end, current = rows[alive], call_end[alive], current[alive]
        holds = range_end[current] >= call_end
        found_rows.append(rows[holds])
        found_ranges.append(own_thread[current[holds]])
        current = swept.parent[current]
    return np.concatenate(found_rows), np.concatenate(found_ranges)


def _closed_ends(trace: Trace) -> np.ndarray:
    """The ranges' ends; one that is still open ends, for the stock reports, with the last NVTX event."""
    ends = trace.ranges["end"].to_numpy()
    return np.where(ends == OPEN_NS, trace.last_nvtx_ns, ends)


def _range_names(trace: Trace) -> np.ndarray:
    """`domain:name` of every range, and an empty name behind the last, where -1 finds it."""
    names = []
    for thread, domain, name in trace.ranges[["thread", "domain", "name"]].itertuples(index=False):
        prefix = trace.domains.get((thread & PROCESS_MASK, domain))
        names.append(f"{prefix}:{trace.strings.get(name, '')}" if prefix else trace.strings.get(name, ""))
    return np.array([*names, ""], dtype=object)


def _texts(trace: Trace, keys: np.ndarray) -> np.ndarray:
    return np.array([trace.strings.get(key, "") for key in keys.tolist()], dtype=object)
