"""Kernel ledgers of a run: results/<experiment>/<run>/traces/*.json, one traced cell each."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import plain
from experiments.durable import read_json
from experiments.records import Cell


@dataclass(frozen=True)
class Kernel:
    """One kernel in one place of the model, over the whole traced window."""

    name: str
    phase: str
    layer: str
    op: str
    count: int
    total_us: float

    @property
    def owner(self) -> str:
        """What the kernel is shown under."""
        return owner_of(self.op, self.phase)


@dataclass(frozen=True)
class Interval:
    """One kernel of the step that is drawn; `start_us` counts from the step's first."""

    start_us: float
    duration_us: float
    name: str
    layer: str
    owner: str

    @property
    def end_us(self) -> float:
        """When it ended."""
        return self.start_us + self.duration_us


@dataclass(frozen=True)
class Ledger:
    """The kernels of one traced cell. `coverage` is the share of device time that found an owner; `inflation` the
    profiled over the un-profiled step time; `step` one step of median length, in order of start; `rungs` the variant's
    fusions and what became of each."""

    cell: Cell
    profiler: str
    coverage: float
    window_ms: float
    busy_ms: float
    steps: int
    kernels: tuple[Kernel, ...]
    inflation: float | None = None
    step: tuple[Interval, ...] = ()
    rungs: tuple[tuple[str, str], ...] = ()
    twin: bool = False

    @property
    def label(self) -> str:
        """The variant's name, marked where it ran on the plain-PyTorch twins of its kernels."""
        return f"{self.cell.variant} (twin)" if self.twin else self.cell.variant

    @property
    def per_step(self) -> float:
        """Factor from a total over the window to one step."""
        return 1 / max(self.steps, 1)

    @property
    def step_us(self) -> float:
        """The traced window per step: busy and idle."""
        return 1e3 * self.window_ms * self.per_step

    @property
    def busy_us(self) -> float:
        """Per step: at least one kernel ran."""
        return 1e3 * self.busy_ms * self.per_step

    @property
    def closure(self) -> float | None:
        """Time of all kernels, each counted whole, and idle time, over the window."""
        if self.window_ms <= 0:
            return None
        return math.fsum(k.total_us for k in self.kernels) / 1e3 / self.window_ms + self.idle_us / self.step_us

    @property
    def idle_us(self) -> float:
        """Per step: no kernel ran."""
        return max(0.0, self.step_us - self.busy_us)


def read_ledgers(folder: Path) -> tuple[list[Ledger], list[str]]:
    """Every readable ledger of a folder, with or without the store's checksum, and what could not be read."""
    ledgers, problems = [], []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            ledgers.append(ledger_of(read_json(path) if "crc32" in data else data))
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            problems.append(f"traces/{path.name}: {error}")
    return ledgers, problems


def ledger_of(data: dict[str, Any]) -> Ledger:
    """One ledger file's data. ValueError or KeyError where it is none."""
    kernels = [
        Kernel(
            name=str(k["name"]),
            phase=str(k.get("phase") or ""),
            layer="" if k.get("layer") is None else str(k["layer"]),
            op=str(k.get("op") or ""),
            count=int(k["count"]),
            total_us=float(k["total_us"]),
        )
        for k in data["kernels"]
    ]
    inflation = data.get("inflation")
    return Ledger(
        cell=plain.decode(Cell, data["cell"]),
        profiler=str(data.get("profiler", "")),
        coverage=float(data.get("coverage", 0.0)),
        window_ms=float(data.get("window_ms", 0.0)),
        busy_ms=float(data.get("busy_ms", 0.0)),
        steps=int(data.get("steps", 0)),
        kernels=tuple(kernels),
        inflation=None if inflation is None else float(inflation),
        step=tuple(_intervals(data.get("timeline") or {})),
        twin=any(k.get("kind") == "cpu_op" for k in data["kernels"]),
        rungs=tuple((str(rung["name"]), str(rung["fate"])) for rung in data.get("rungs") or ()),
    )


def _intervals(columns: dict[str, Any]) -> Iterator[Interval]:
    """The rows of a timeline, stored as columns that name their texts by place."""
    if not columns:
        return
    texts = [str(text) for text in columns["texts"]]
    named = ([texts[place] for place in columns[key]] for key in ("name", "layer", "op", "phase"))
    times = ([float(ns) / 1e3 for ns in columns[key]] for key in ("start_ns", "duration_ns"))
    for start_us, duration_us, name, layer, op, phase in zip(*times, *named, strict=True):
        yield Interval(start_us, duration_us, name, layer, owner_of(op, phase))


def owner_of(op: str, phase: str) -> str:
    """The op, or the phase where no op is known, or that there is neither."""
    return op or phase or "unattributed"
