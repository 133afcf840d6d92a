"""The rows of a ledger: device work summed up by name, place and launch shape, and the timeline of one step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.trace.grouping import blocks, group_codes
from experiments.trace.ledger import KernelRow, Timeline
from experiments.trace.reader import Trace
from experiments.trace.schema import KINDS, NONE

_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "PtoP"}


@dataclass(frozen=True)
class Window:
    """The work between the first and the last step that count, row by row: arrays of one length, in order of start.

    `spec` is a row of the trace's specs; `step` is -1 outside steps; phase, layer and op are places in `values` of
    those names. `total_ns` is all the work of the trace, in the window or not.
    """

    start: np.ndarray
    end: np.ndarray
    spec: np.ndarray
    device: np.ndarray
    call: np.ndarray
    step: np.ndarray
    covered: np.ndarray
    phase: np.ndarray
    layer: np.ndarray
    op: np.ndarray
    values: dict[str, list[str | None]]
    total_ns: int

    @property
    def duration(self) -> np.ndarray:
        """Nanoseconds of each row."""
        duration: np.ndarray = self.end - self.start
        return duration

    def owner(self, row: int) -> dict[str, str | None]:
        """Phase, layer and op of one row."""
        return {field: values[getattr(self, field)[row]] for field, values in self.values.items()}


def kernel_rows(window: Window, trace: Trace) -> list[KernelRow]:
    """Everything in the window, largest first."""
    specs = trace.specs.to_dict("records")
    # Specs may differ by stream or device alone, which are one row of the ledger.
    merged: dict[str, tuple[KernelRow, int, int]] = {}
    for row, count, sum_ns in _sums(window):
        empty = _empty_row(window, row, specs[window.spec[row]], trace.strings)
        _, count_before, before_ns = merged.get(repr(empty), (empty, 0, 0))
        merged[repr(empty)] = (empty, count_before + count, before_ns + sum_ns)
    rows = [replace(empty, count=count, total_us=sum_ns / 1e3) for empty, count, sum_ns in merged.values()]
    return sorted(rows, key=lambda row: (-row.total_us, row.name, row.layer or "", row.op or "", row.phase or ""))


def folded(rows: list[KernelRow]) -> list[KernelRow]:
    """The rows without layers, shapes and signatures: of a run with steps of every size there are too many."""
    merged: dict[tuple[object, ...], KernelRow] = {}
    for row in rows:
        key = (row.name, row.kind, row.phase, row.op, row.covered)
        plain = replace(row, layer=None, grid=[], block=[], registers=0, shared_bytes=0, signature="")
        before = merged.get(key, replace(plain, count=0, total_us=0.0))
        merged[key] = replace(plain, count=before.count + row.count, total_us=before.total_us + row.total_us)
    return sorted(merged.values(), key=lambda row: (-row.total_us, row.name, row.op or "", row.phase or ""))


def _sums(window: Window) -> Iterator[tuple[int, int, int]]:
    """Alike rows of the window, block by block: the first one, how many there are, and their nanoseconds."""
    for block in blocks(len(window.spec)):
        columns = [values[block] for values in (window.spec, window.phase, window.layer, window.op, window.covered)]
        codes, firsts = group_codes(columns, len(columns[0]))
        sums_ns = np.zeros(len(firsts), dtype=np.int64)
        np.add.at(sums_ns, codes, window.end[block] - window.start[block])
        yield from zip((firsts + block.start).tolist(), np.bincount(codes).tolist(), sums_ns.tolist(), strict=True)


def _empty_row(window: Window, row: int, spec: dict[str, Any], strings: dict[int, str]) -> KernelRow:
    name, signature = _names(spec, strings)
    return KernelRow(
        name=name,
        kind=KINDS[spec["kind"]],
        **window.owner(row),
        count=0,
        total_us=0.0,
        grid=[spec[f"grid_{axis}"] for axis in "xyz"],
        block=[spec[f"block_{axis}"] for axis in "xyz"],
        registers=spec["registers"],
        shared_bytes=spec["static_shared"] + spec["dynamic_shared"],
        covered=bool(window.covered[row]),
        signature=signature if signature != name else "",
    )


def timeline(window: Window, trace: Trace) -> Timeline:
    """The step of median length on the first device; an empty one where there are no steps."""
    rows = _median_step(window)
    specs = trace.specs.to_dict("records")
    texts = {"": 0}

    def place(text: str | None) -> int:
        return texts.setdefault(text or "", len(texts))

    names = [place(_names(specs[window.spec[row]], trace.strings)[0]) for row in rows]
    owners = [window.owner(row) for row in rows]
    places = {key: [place(owner[key]) for owner in owners] for key in ("phase", "layer", "op")}
    return Timeline(
        texts=list(texts),
        start_ns=[int(window.start[row] - window.start[rows[0]]) for row in rows],
        duration_ns=[int(window.end[row] - window.start[row]) for row in rows],
        stream=[specs[window.spec[row]]["stream"] for row in rows],
        name=names,
        **places,
    )


def _median_step(window: Window) -> list[int]:
    """The rows of the step whose length is the median, on the first device."""
    counted = (window.step != NONE) & (window.device == window.device.min())
    spans: dict[int, tuple[int, int]] = {}
    for block in blocks(len(counted)):
        rows = np.flatnonzero(counted[block]) + block.start
        codes, firsts = group_codes([window.step[rows]], len(rows))
        ends = np.full(len(firsts), np.iinfo(np.int64).min)
        np.maximum.at(ends, codes, window.end[rows])
        # Rows come in order of start: a step's first row is where it begins.
        columns = (values.tolist() for values in (window.step[rows[firsts]], window.start[rows[firsts]], ends))
        for step, start, end in zip(*columns, strict=True):
            begin, reach = spans.get(step, (start, end))
            spans[step] = begin, max(reach, end)
    ordered = sorted(spans, key=lambda step: (spans[step][1] - spans[step][0], step))
    chosen = counted & (window.step == ordered[len(ordered) // 2]) if ordered else counted
    rows_of_step: list[int] = np.flatnonzero(chosen).tolist()
    return rows_of_step


def _names(spec: dict[str, Any], strings: dict[int, str]) -> tuple[str, str]:
    """The short and the full name of a piece of work."""
    kind, detail = KINDS[spec["kind"]], spec["detail"]
    if kind == "memcpy":
        return (f"[memcpy {_COPIES.get(detail, detail)}]",) * 2
    if kind == "memset":
        return ("[memset]",) * 2
    if kind == "graph":
        return (f"[graph {detail}]",) * 2
    return strings.get(spec["short"], "?"), strings.get(spec["name"], "?")
