"""The kernel ledger of one traced cell: every microsecond of the device between its first and its last step, by name,
phase, layer and op, with what could not be named shown as such.

    window = busy + gap        busy: the union of all work, per device, so that overlapping streams count once
    sum of rows = busy + overlap

The window runs from the first device work of the first step to the last of the last one, summed over devices. Work in
it that belongs to no step counts too, as not covered; work before and after it (warm-up, capture) is only summed up.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from experiments.records import Cell

# Up to 2 an upload opened its step: what the device then waited for the first kernel was idle time within the step.
SCHEMA = 3
COVERAGE_WANTED = 0.98
CLOSURE_TOLERATED = 0.01


@dataclass(frozen=True)
class KernelRow:
    """All device work of one name, place and launch shape. `kind`: kernel, memcpy, memset, graph; from a CPU, cpu_op.

    `signature` is the full name where it says more; `covered` is false where layer and op should be known but are not.
    """

    name: str
    kind: str
    phase: str | None
    layer: str | None
    op: str | None
    count: int
    total_us: float
    grid: list[int]
    block: list[int]
    registers: int
    shared_bytes: int
    covered: bool
    signature: str = ""


@dataclass(frozen=True)
class Timeline:
    """One step on one device, its work in order of start: columns of one length, so that it stays small as JSON.

    `start_ns` counts from the step's first work. `name`, `phase`, `layer` and `op` are places in `texts`, 0 for none.
    """

    texts: list[str] = field(default_factory=lambda: [""])
    start_ns: list[int] = field(default_factory=list)
    duration_ns: list[int] = field(default_factory=list)
    stream: list[int] = field(default_factory=list)
    name: list[int] = field(default_factory=list)
    phase: list[int] = field(default_factory=list)
    layer: list[int] = field(default_factory=list)
    op: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Gaps:
    """When the device had nothing to do: inside steps, and between one step's last work and the next one's first kernel
    (the upload between them leaves it waiting for the host)."""

    within_steps_us: float
    between_steps_us: float
    count: int
    median_us: float
    max_us: float


class Fate(StrEnum):
    """What became of a rung. `dead` and `stray` contradict the variant; `twin` ran without kernels, on a CPU."""

    LIVE = "live"
    LEFT_OFF = "left off at this shape"
    OFF = "off"
    TWIN = "twin"
    DEAD = "dead"
    STRAY = "stray"


@dataclass(frozen=True)
class RungRow:
    """One fusion of the variant, the kernel that proves it, and how often that ran per step."""

    name: str
    kernel: str
    fate: Fate
    count_per_step: float


@dataclass(frozen=True)
class Part:
    """The steps of one kind in a whole run: `prefill` computes tokens of prompts (and decodes), `decode` does not. What
    no step launched, if anything, is a part of no steps, `other`.

    window = sum over parts of work + within + before - overlap      work: all rows; before: idle until its first kernel
    `op_ms` has the work by op, or by phase where there is none.
    """

    name: str
    steps: int
    decoded_tokens: int
    prefill_tokens: int
    work_ms: float
    within_ms: float
    before_ms: float
    op_ms: dict[str, float]


@dataclass(frozen=True)
class Ledger:
    """What `trace` stores for a cell. `traced_step_ms` is the median distance between the starts of two steps' work,
    `inflation` its ratio to the step time as measured without a profiler; a trace never stands in for a measurement.
    `note` says what else was unlike a measured run; `backward_rows` end before they begin, which no work does.
    From `run_id` on: the run it was stored in, the code it was made with, where and when; older files do not say.

    Milliseconds and rows are sums over all devices; `kernels_per_step` and `launches_per_step` are of one, on average.

    Of a whole run the rows are without layers and shapes, and there are `parts`, the output tokens, the milliseconds
    from the first request to the last answer, and the host's by phase (`post` waits for the step before)."""

    schema: int
    cell: Cell | None
    profiler: str
    profiler_version: str
    export_schema: str
    coverage: float
    window_ms: float
    busy_ms: float
    gap_ms: float
    overlap_ms: float
    outside_ms: float
    devices: int
    steps: int
    kernels_per_step: float
    launches_per_step: float
    traced_step_ms: float
    untraced_step_ms: float | None
    inflation: float | None
    gaps: Gaps
    kernels: list[KernelRow]
    timeline: Timeline
    rungs: list[RungRow] = field(default_factory=list)
    note: str = ""
    parts: list[Part] = field(default_factory=list)
    output_tokens: int = 0
    run_ms: float = 0.0
    host_ms: dict[str, float] = field(default_factory=dict)
    backward_rows: int = 0
    run_id: str = ""
    commit: str = ""
    dirty: bool = False
    gpu: str = ""
    created: str = ""

    @property
    def device_steps(self) -> int:
        """What divides a total over the window into one step of one device; those of several are averaged."""
        return max(self.steps, 1) * max(self.devices, 1)

    @property
    def closure(self) -> float:
        """Exclusive time of all rows and all gaps, less what overlapping work counts twice, over the window: 1 where no
        microsecond is lost."""
        rows_ms = sum(row.total_us for row in self.kernels) / 1e3
        gaps_ms = (self.gaps.within_steps_us + self.gaps.between_steps_us) / 1e3
        return (rows_ms + gaps_ms - self.overlap_ms) / self.window_ms if self.window_ms else 1.0

    @property
    def warning(self) -> str:
        """One line where times are negative, the sums do not close, or the coverage is too low to trust the shares."""
        if self.backward_rows or self.overlap_ms < 0:
            return "work that ends before it begins: this trace was read wrongly"
        if abs(self.closure - 1) > CLOSURE_TOLERATED:
            return f"kernels and gaps add up to {self.closure:.2%} of the window: this trace was read wrongly"
        if self.coverage >= COVERAGE_WANTED:
            return ""
        lost_us = sum(row.total_us for row in self.kernels if not row.covered)
        names = dict.fromkeys(row.name for row in self.kernels if not row.covered)
        most = ", ".join(list(names)[:3])
        return (
            f"only {self.coverage:.1%} of the device time has a known layer or op: {lost_us:,.1f} us have none, most "
            f"of them in {most}. Such work ran outside every layer and op range, or in a graph captured before the "
            "window"
        )


@dataclass(frozen=True)
class Change:
    """One name (or op, phase, layer) in two ledgers: counts and microseconds, each per step."""

    key: str
    baseline_count: float
    other_count: float
    baseline_us: float
    other_us: float

    @property
    def saved_us(self) -> float:
        """Positive where the other one is faster."""
        return self.baseline_us - self.other_us

    @property
    def fate(self) -> str:
        """`removed`, `added`, `changed`, or `kept` where count and time are the same."""
        if not self.other_count:
            return "removed"
        if not self.baseline_count:
            return "added"
        same = self.baseline_count == self.other_count and self.baseline_us == self.other_us
        return "kept" if same else "changed"


def compare(baseline: Ledger, other: Ledger, key: str = "name") -> list[Change]:
    """Where the time went, by `name`, `op`, `phase` or `layer`: largest saving first. Kernels without one are `-`."""
    before, after = per_step(baseline, key), per_step(other, key)
    nothing = (0.0, 0.0)
    changes = [
        Change(name, *(pair[i] for i in (0, 1) for pair in (before.get(name, nothing), after.get(name, nothing))))
        for name in {**before, **after}
    ]
    return sorted(changes, key=lambda change: (-change.saved_us, change.key))


def per_step(ledger: Ledger, key: str) -> dict[str, tuple[float, float]]:
    """`name`, `op`, `phase` or `layer` -> (count, microseconds) per step and device; `-` for kernels that have none."""
    sums: dict[str, tuple[float, float]] = {}
    for row in ledger.kernels:
        name = getattr(row, key) or "-"
        count, total_us = sums.get(name, (0.0, 0.0))
        sums[name] = (count + row.count, total_us + row.total_us)
    steps = ledger.device_steps
    return {name: (count / steps, total_us / steps) for name, (count, total_us) in sums.items()}
