"""Kernel ledgers of a run: results/<experiment>/<run>/traces/*.json, one traced cell each."""

import json
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
        """The op, or the phase where no op is known, or that there is neither."""
        return self.op or self.phase or "unattributed"


@dataclass(frozen=True)
class Ledger:
    """The kernels of one traced cell. `coverage` is the share of device time that found an owner; `inflation` the
    profiled over the un-profiled step time."""

    cell: Cell
    profiler: str
    coverage: float
    window_ms: float
    busy_ms: float
    steps: int
    kernels: tuple[Kernel, ...]
    inflation: float | None = None

    @property
    def per_step(self) -> float:
        """Factor from a total over the window to one step."""
        return 1 / max(self.steps, 1)


def read_ledgers(folder: Path) -> tuple[list[Ledger], list[str]]:
    """Every readable ledger of a folder, with or without the store's checksum, and what could not be read."""
    ledgers, problems = [], []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            ledgers.append(ledger_of(read_json(path) if "crc32" in data else data))
        except (ValueError, KeyError, TypeError, OSError) as error:
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
    )
