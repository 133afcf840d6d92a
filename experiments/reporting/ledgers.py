"""Kernel ledgers as a report shows them: per step, by what owns the time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from experiments.records import Cell
from experiments.trace.ledger import Ledger


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
class Traced(Ledger):
    """The ledger of a cell of the run."""

    cell: Cell

    @property
    def label(self) -> str:
        """The variant's name, marked where it ran on the plain-PyTorch twins of its kernels or on several devices."""
        twin = any(kernel.kind == "cpu_op" for kernel in self.kernels)
        marks = ["twin"] * twin + [f"{self.devices} devices"] * (self.devices > 1)
        return f"{self.cell.variant} ({', '.join(marks)})" if marks else self.cell.variant

    @property
    def per_step(self) -> float:
        """Factor from a total over the window to one step of one device."""
        return 1 / self.device_steps

    @property
    def step_us(self) -> float:
        """The traced window per step: busy and idle."""
        return 1e3 * self.window_ms * self.per_step

    @property
    def busy_us(self) -> float:
        """Per step: at least one kernel ran."""
        return 1e3 * self.busy_ms * self.per_step

    @property
    def idle_us(self) -> float:
        """Per step: no kernel ran."""
        return max(0.0, self.step_us - self.busy_us)

    @property
    def kernels_and_idle(self) -> float | None:
        """Time of all kernels, each counted whole, and idle time, over the window."""
        if self.window_ms <= 0:
            return None
        return math.fsum(k.total_us for k in self.kernels) / 1e3 / self.window_ms + self.idle_us / self.step_us

    @cached_property
    def step(self) -> tuple[Interval, ...]:
        """One step of median length, in order of start."""
        return tuple(self._intervals())

    def _intervals(self) -> Iterator[Interval]:
        texts, columns = self.timeline.texts, self.timeline
        times = zip(columns.start_ns, columns.duration_ns, strict=True)
        places = zip(columns.name, columns.layer, columns.op, columns.phase, strict=True)
        for (start_ns, duration_ns), at in zip(times, places, strict=True):
            name, layer, op, phase = (texts[place] for place in at)
            yield Interval(start_ns / 1e3, duration_ns / 1e3, name, layer, owner_of(op, phase))


def owner_of(op: str | None, phase: str | None) -> str:
    """What a kernel is shown under: its op, or the phase where no op is known, or that there is neither."""
    return op or phase or "unattributed"
