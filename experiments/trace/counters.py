"""What Nsight Compute counts of every kernel: bandwidth, caches, occupancy, and what warps wait for.

Read from `ncu --csv --page raw`: a row of titles, a row of units, a row per launch, between lines that begin with `==`.
Numbers may be grouped by commas; a metric that the GPU does not have is `n/a`.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from experiments.errors import UserError
from experiments.records import Cell
from experiments.trace.names import short_name

SCHEMA = 1
STALLS = (
    "long_scoreboard", "short_scoreboard", "barrier", "wait", "math_pipe_throttle", "mio_throttle", "lg_throttle",
    "membar", "drain", "no_instruction", "dispatch_stall", "not_selected",
)  # fmt: skip
STALL = "stall_"
# Our name, with its unit, and ncu's. Stalls are warps that wait for that reason, per issued instruction.
METRICS = {
    "time_us": "gpu__time_duration.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_write_bytes": "dram__bytes_write.sum",
    "dram_share": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_hit_share": "lts__t_sector_hit_rate.pct",
    "sm_share": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "tensor_share": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "occupancy_share": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "occupancy_limit_share": "sm__maximum_warps_per_active_cycle_pct",
    "registers": "launch__registers_per_thread",
    "waves": "launch__waves_per_multiprocessor",
    **{f"{STALL}{name}": f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in STALLS},
}
_TIMES = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
_BYTES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
_SCALES = {"us": _TIMES, "bytes": _BYTES, "share": {"%": 0.01}}


@dataclass(frozen=True)
class CounterRow:
    """All launches of one kernel and launch shape: means over them, by the names of METRICS; absent where unknown."""

    name: str
    grid: str
    block: str
    launches_per_step: float
    values: dict[str, float]

    @property
    def us_per_step(self) -> float:
        """Time of all its launches, as replayed by ncu."""
        return self.launches_per_step * self.values.get("time_us", 0.0)

    @property
    def dram_bytes_per_s(self) -> float | None:
        """Achieved bandwidth, reads and writes."""
        time_us = self.values.get("time_us")
        if not time_us or "dram_read_bytes" not in self.values:
            return None
        return (self.values["dram_read_bytes"] + self.values.get("dram_write_bytes", 0.0)) / time_us * 1e6

    def stalls(self) -> list[tuple[str, float]]:
        """What its warps wait for, the worst two; a warp that could issue and was not picked does not wait."""
        found = [(key.removeprefix(STALL), value) for key, value in self.values.items() if key.startswith(STALL)]
        return sorted((s for s in found if s[1] > 0 and s[0] != "not_selected"), key=lambda s: (-s[1], s[0]))[:2]


@dataclass(frozen=True)
class Counters:
    """What `trace profiler=ncu` stores for a cell, most time first.

    `first` is how many kernels were counted where ncu stopped there, in the middle of a step perhaps, and its figures
    per step are then those of these kernels; 0 where it counted all.
    """

    schema: int
    cell: Cell
    profiler_version: str
    steps: int
    rows: list[CounterRow]
    first: int = 0

    @property
    def extent(self) -> str:
        """What was counted, in words."""
        if self.first:
            return f"the first {self.first} kernels only"
        return f"{self.steps} step" + ("s" if self.steps != 1 else "")


def read_raw_page(text: str, cell: Cell, version: str, steps: int, most: int | None = None) -> Counters:
    """The counters in a raw page; ncu was told to stop after `most` kernels.

    UserError where it holds none, or a unit that this reader does not know.
    """
    groups: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    for row, units in _launches(text):
        key = (short_name(row["Kernel Name"]), row.get("Grid Size", ""), row.get("Block Size", ""))
        groups[key].append(_values(row, units))
    if not groups:
        raise UserError("ncu's table holds no kernel")
    count = sum(map(len, groups.values()))
    first = count if count == most else 0
    steps = 1 if first else max(steps, 1)
    rows = [CounterRow(*key, len(found) / steps, _means(found)) for key, found in groups.items()]
    rows.sort(key=lambda row: (-row.us_per_step, row.name, row.grid))
    return Counters(SCHEMA, cell, version, steps, rows, first)


def _launches(text: str) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """Every launch with the units of its columns. Programs may have printed before the table."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("==")]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if start is None:
        raise UserError("ncu printed no table")
    rows = list(csv.DictReader(lines[start:], restval=""))
    if missing := {"Kernel Name", METRICS["time_us"]} - set(rows[0] if rows else ()):
        raise UserError(f"ncu's table has no column {min(missing)}")
    yield from ((row, rows[0]) for row in rows[1:])


def _values(row: Mapping[str, str], units: Mapping[str, str]) -> dict[str, float]:
    values = {}
    for name, metric in METRICS.items():
        try:
            number = float(row.get(metric, "").replace(",", ""))
        except ValueError:
            continue
        values[name] = number * _scale(name, metric, units[metric])
    return values


def _scale(name: str, metric: str, unit: str) -> float:
    """From the unit of the table to that of our name."""
    scales = _SCALES.get(name.rsplit("_", 1)[-1])
    if scales is None:
        return 1.0
    if unit not in scales:
        raise UserError(f"ncu gives {metric} in {unit or 'no unit'}; this reader knows {', '.join(scales)}")
    return scales[unit]


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(values) for name in METRICS if (values := [launch[name] for launch in found if name in launch])}
