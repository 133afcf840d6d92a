"""The values that pass between the stages of a benchmark. Plain data: no torch, no engine.

Plan of Cells -> CellResult (one file each) -> Row (cells summarised over rounds) -> tables, figures, summary.json
"""

from dataclasses import dataclass, field
from enum import StrEnum

# Reasons of cells that were skipped for no fault of theirs: the sweep's business, not the variant's.
SETTLED = "settled: earlier rounds had made every verdict of this point clear"
OUT_OF_TIME = "protocol.time_budget_s was spent before this round"
# How the reasons of cells begin whose variant as a whole could not be measured: they tell nothing of the cell.
NOT_LOADED, NO_VERDICT, NO_CEILINGS = UNTRIED = ("could not load", "no verdict", "no ceilings")


class Status(StrEnum):
    """How a planned cell ended; `reason` says why whenever it is not `ok`."""

    OK = "ok"
    OOM = "oom"
    ERROR = "error"
    TIMEOUT = "timeout"
    INVALID = "invalid"
    SKIPPED = "skipped"


@dataclass(frozen=True, order=True)
class Point:
    """What is measured, whoever is measured: one place in the sweep, shared by all variants.

    `batch` sequences; `length` is the context of a decode step, the prompt tokens of a prefill. Offline and serving
    have `batch` requests and length 0; each rate of serving is a workload.
    """

    model: str
    workload: str
    batch: int
    length: int


@dataclass(frozen=True, order=True)
class Cell:
    """One variant at one point in one round: what a worker measures in one go."""

    point: Point
    variant: str
    round: int

    @property
    def id(self) -> str:
        """File-name-safe identity, unique in a run."""
        p = self.point
        return f"{p.model}.{p.workload}.b{p.batch}.l{p.length}.{self.variant}.r{self.round:02d}"


@dataclass(frozen=True)
class Verdict:
    """Is the variant's answer still right? Against the fp32 reference engine on the same weights.

    `top1_agreement` in [0, 1] over teacher-forced positions, `kl_mean` and `kl_max` in nats, `kl_max_position` its
    place: all three None for an engine that gives no logits, whose tokens alone are checked. `first_divergence` is the
    position of the first differing greedy token (None: none within the checked tokens) and `divergence_margin` the
    reference's logit margin there. `unfused_kl_mean` is the baseline's own error on the same weights, what a variant's
    is held against.
    """

    ok: bool
    reason: str
    positions: int
    top1_agreement: float
    kl_mean: float | None
    kl_max: float | None
    kl_max_position: int | None
    first_divergence: int | None = None
    divergence_margin: float | None = None
    unfused_kl_mean: float | None = None


Sampled = tuple[dict[str, list[float]], dict[str, float]]
"""(samples, counters) of a cell, as a CellResult keeps them."""


@dataclass(frozen=True)
class Window:
    """What the GPU said around one timed window: `sm_mhz`, `memory_mhz`, `power_w`, `temperature_c` and the bits of
    `throttle_reasons`; `flags` say why it is unlike others, where it is (experiments/measuring/telemetry.py).
    """

    clocks: dict[str, float]
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Attempt:
    """A cell's earlier measurement, of which a window was flagged: made again, and kept, but not counted."""

    samples: dict[str, list[float]]
    windows: list[Window]


@dataclass(frozen=True)
class CellResult:
    """One finished cell, as stored. `samples` maps a metric to every raw sample, in the order taken.

    Metrics: `step_ms` and `ttft_ms` (host wall clock over a free-running window, per step), `step_device_ms` (CUDA
    events around each step), `ttft_launch_ms` (until the first step of a prefill is launched), `output_tokens_per_s`;
    of serving, one of each request or token, and rates by window.
    `kernels` is `compiled` or, on a CPU, `twin`; a peer's are its own: `peer`, or `peer beside twins` where what it is
    compared with are twins. `shard` names the process that measured it, where a run was spread over several.
    """

    cell: Cell
    status: Status
    reason: str = ""
    kernels: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    clocks: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    started: str = ""
    duration_s: float = 0.0
    shard: str = ""
    windows: list[Window] = field(default_factory=list)
    set_aside: list[Attempt] = field(default_factory=list)
    other_processes: int | None = None

    @property
    def flags(self) -> list[str]:
        """What the counted windows are flagged for, each once."""
        return sorted({flag for window in self.windows for flag in window.flags})

    @property
    def is_settled(self) -> bool:
        """Was it left out because its point needed no more rounds? Then nothing is missing."""
        return self.status is Status.SKIPPED and self.reason == SETTLED


@dataclass(frozen=True)
class Row:
    """One metric of one variant at one point, over all rounds: a row of summary.json (design section 7).

    `machine` is the GPU it was measured on, where the points of the run are from unlike machines; empty else.
    """

    model: str
    workload: str
    batch: int
    context: int
    variant: str
    metric: str
    status: Status
    reason: str = ""
    kernels: str = ""
    n: int = 0
    median: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    baseline_median: float | None = None
    speedup: float | None = None
    speedup_ci_low: float | None = None
    speedup_ci_high: float | None = None
    verdict: str = ""
    floor: float | None = None
    share_of_floor: float | None = None
    machine: str = ""
