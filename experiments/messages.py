"""What the harness and a worker process say to each other: one JSON object a line, over the worker's stdin and stdout.

    harness -> worker                     worker -> harness
    load     model, variant, points ...   ready     or failed
    verify                                verified  or failed
    ceilings                              rates     or failed
    measure  cell                         measured  or failed
    trace    cell, steps, profiler        traced    or failed
    exit                                  (the process ends)

While it works a worker may send `progress` at any time. It owns the pipe: `worker_channel` moves stdout aside first, so
whatever a library prints goes to the log. A worker whose stdin ends has lost its harness, and exits.
"""

import ctypes
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any, BinaryIO, get_args

from experiments import plain
from experiments.config import ProtocolConfig, VariantConfig, WorkloadConfig
from experiments.records import Cell, CellResult, Point, Verdict


@dataclass(frozen=True)
class Load:
    """Build an engine for one model and variant, large enough for every one of `points`.

    `model` is what the user named: a file under configs/model, a folder, a GGUF file or a hub id. `device` is `cpu` or
    `cuda` and `dtype` a torch dtype's name: `auto` was resolved by the harness, so that all workers agree.
    """

    model: str
    variant: VariantConfig
    device: str
    dtype: str
    weights: str
    seed: int
    points: tuple[Point, ...]
    workloads: tuple[WorkloadConfig, ...]
    protocol: ProtocolConfig


@dataclass(frozen=True)
class Verify:
    """Check the variant's answers against the fp32 reference."""


@dataclass(frozen=True)
class MeasureCeilings:
    """Measure what this GPU can do at most."""


@dataclass(frozen=True)
class Measure:
    """Measure one cell; `ours` are the harness's workers as the GPU's driver numbers them."""

    cell: Cell
    ours: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Run a few steps of one cell for a profiler: layer and op ranges on, graphs captured inside the window.

    `profiler` is `nsys` (the worker runs under it and opens the cudaProfilerApi range), `ncu` (the same, with nothing
    but the steps inside), or `torch`, which leaves a Chrome trace at `path`.
    """

    cell: Cell
    steps: int
    profiler: str = "nsys"
    path: str = ""


@dataclass(frozen=True)
class Exit:
    """End the process."""


@dataclass(frozen=True)
class Ready:
    """The engine stands. `weights` says in words what they are, `weights_hash` which; `replaced` names the ops.

    `facts` says what another engine is and chose, in words, sent by peers only. `gpu_pids` are the worker's processes
    on the GPU as its driver numbers them, none where that cannot be known.
    """

    weights: str
    weights_hash: str
    kernels: str
    replaced: tuple[str, ...] = ()
    memory_bytes: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    gpu_pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verified:
    """The answer to Verify; a verdict that is not `ok` keeps the variant from being timed."""

    verdict: Verdict


@dataclass(frozen=True)
class Rates:
    """The answer to MeasureCeilings: read_bytes_per_s and bf16_flop_per_s; nothing on a CPU."""

    rates: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """The answer to Measure, failed cells included."""

    result: CellResult


@dataclass(frozen=True)
class Rung:
    """A fusion of the variant, and the kernel that proves it in a trace (`*` stands for anything)."""

    name: str
    kernel: str
    on: bool


@dataclass(frozen=True)
class TracedRun:
    """A whole run inside the window: `first` is the engine's number of its first step; what each step computed, in
    sequences that decoded and tokens of prompts; milliseconds from the first request to the last answer."""

    first: int
    decodes: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    output_tokens: int
    run_ms: float


@dataclass(frozen=True)
class Traced:
    """The answer to Trace: how many replayed (or eager) steps the window holds, after the one that captured.

    `run` is there where they are a whole run's, of several kinds.
    """

    cell: Cell
    steps: int
    rungs: tuple[Rung, ...] = ()
    run: TracedRun | None = None


@dataclass(frozen=True)
class Failed:
    """A request that could not be done. `kind`: `oom`, `error`, `skipped` (an engine that is not here or cannot do
    this), or `user` (bad input, which ends the sweep)."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """A few words for the progress line."""

    text: str


Request = Load | Verify | MeasureCeilings | Measure | Trace | Exit
Answer = Ready | Verified | Rates | Measured | Traced | Failed | Progress
Message = Request | Answer

_KINDS: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in get_args(Message)}


def to_line(message: Message) -> bytes:
    """The message as one line of JSON, newline included."""
    data = {"message": type(message).__name__.lower(), **plain.encode(message)}
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def from_line(line: bytes) -> Message:
    """The message of one line; ValueError for anything else, such as a library's print."""
    data: Any = json.loads(line)
    kind = _KINDS.get(str(data.pop("message", ""))) if isinstance(data, dict) else None
    if kind is None:
        raise ValueError(f"not a message: {line[:80]!r}")
    return plain.decode(kind, data)


@dataclass(frozen=True)
class WorkerChannel:
    """The worker's end of the pipe. `receive` blocks without spinning; None means that the harness is gone."""

    requests: BinaryIO
    answers: BinaryIO

    def receive(self) -> Request | None:
        """The next request."""
        line = self.requests.readline()
        return from_line(line) if line else None  # type: ignore[return-value]

    def send(self, answer: Answer) -> None:
        """Say one thing to the harness."""
        self.answers.write(to_line(answer))
        self.answers.flush()


def worker_channel() -> WorkerChannel:
    """Claim stdin and stdout for messages: call it before importing anything that might print or read.

    From then on stdout is stderr (the log) and stdin is empty, for this process, its libraries and their children.
    The kernel is asked to kill the worker with its harness, so that an orphan cannot disturb the next run.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return WorkerChannel(requests, answers)
