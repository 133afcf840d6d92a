"""What the machine was doing while a cell was measured: clocks, power, heat and throttling around every timed window,
energy and memory over the whole cell, and who else was on the GPU.

Readings are taken before and after a window, never inside: no thread samples while the clock runs. A window is flagged
by what the hardware says of itself, never by how long it took, so that repeating flagged ones favours no result:

- `throttled: REASON` where a reason in `THROTTLED` was active at either end or its counter grew in between;
- `SM clock off by N %` where the clock at the end of a window was more than 3 % off the median of the cell's windows,
  and the board was not at its power limit.
"""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from statistics import median
from types import TracebackType

import torch

from experiments.measuring.sensor import sensor_of
from experiments.records import Window
from experiments.throttling import SW_POWER_CAP, throttled

STEADY_CLOCK = 0.03
LEAST_S = 0.05  # Windows that follow each other sooner share a reading.


@dataclass
class Evidence:
    """Readings around a block and around each `timed_window` inside it.

    `clocks` (those of `Sensor.clocks` at the end, and `energy_j`), `memory_bytes`, one of `windows` for each timed
    window or row of short ones, and the ids of all `processes` seen on the GPU.
    """

    device: torch.device
    clocks: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    processes: set[int] = field(default_factory=set)

    def __enter__(self) -> "Evidence":
        self._sensor = sensor_of(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self._sensor:
            self.processes = self._sensor.processes()
        self._start_mj = self._sensor.energy_mj() if self._sensor else None
        self._held_down_ns: dict[str, int] | None = None
        self._last_s = -math.inf
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self.memory_bytes = _memory_bytes(self.device)
        if not self._sensor:
            return
        self.clocks = self._sensor.clocks()
        end_mj = self._sensor.energy_mj()
        if self._start_mj is not None and end_mj is not None:
            self.clocks["energy_j"] = (end_mj - self._start_mj) / 1e3
        self.processes |= self._sensor.processes()
        self.windows = flag_drift(self.windows)

    @contextmanager
    def window(self) -> Iterator[None]:
        """Read before and after the block."""
        sensor = self._sensor
        if sensor is None or time.monotonic() - self._last_s < LEAST_S:
            yield
            return
        if self._held_down_ns is None:
            self._held_down_ns = sensor.held_down_ns()
        reasons = sensor.reasons()
        yield
        before, self._held_down_ns = self._held_down_ns, sensor.held_down_ns()
        grown = {name for name, ns in self._held_down_ns.items() if ns > before.get(name, ns)}
        self.windows.append(_window(sensor.clocks(), reasons, grown))
        self._last_s = time.monotonic()


_current: ContextVar[Evidence | None] = ContextVar("evidence of the cell being measured", default=None)


@contextmanager
def timed_window() -> Iterator[None]:
    """A block that is timed: where a cell is being measured, its Evidence has a reading of it."""
    evidence = _current.get()
    if evidence is None:
        yield
        return
    with evidence.window():
        yield


def _window(clocks: dict[str, float], reasons_before: int, held_down: set[str]) -> Window:
    reasons = reasons_before | int(clocks.get("throttle_reasons", 0))
    flags = [f"throttled: {name}" for name in sorted({*throttled(reasons), *held_down})]
    return Window(clocks | {"throttle_reasons": float(reasons)}, flags)


def flag_drift(windows: list[Window]) -> list[Window]:
    """The windows of a cell, those whose SM clock is off their median flagged."""
    known = [window.clocks["sm_mhz"] for window in windows if "sm_mhz" in window.clocks]
    if not known:
        return windows
    usual = median(known)
    flagged = []
    for window in windows:
        off = abs(window.clocks.get("sm_mhz", usual) / usual - 1)
        at_power_limit = int(window.clocks.get("throttle_reasons", 0)) & SW_POWER_CAP
        drifted = off > STEADY_CLOCK and not at_power_limit
        flag = [f"SM clock off by {100 * off:.0f} %"] if drifted else []
        flagged.append(replace(window, flags=[*window.flags, *flag]))
    return flagged


def _memory_bytes(device: torch.device) -> dict[str, int]:
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return {
            "allocated": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.max_memory_reserved(device),
            "device": total_bytes - free_bytes,
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss": peak if sys.platform == "darwin" else peak * 1024}
