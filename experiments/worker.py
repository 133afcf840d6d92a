"""A worker process: one model in one variant, told what to do over a pipe. See experiments/messages.py."""

from experiments.messages import worker_channel

if __name__ == "__main__":
    # Before torch is imported: whatever a library prints must not reach the pipe.
    CHANNEL = worker_channel()

import datetime
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from engine.errors import UserError as EngineUserError
from experiments.config import ProtocolConfig
from experiments.errors import Unsupported
from experiments.errors import UserError as HarnessUserError
from experiments.measuring.ceilings import measure_ceilings
from experiments.measuring.decode import measure_decode
from experiments.measuring.guard import Disturbed
from experiments.measuring.offline import measure_offline
from experiments.measuring.prefill import measure_prefill
from experiments.measuring.presence import enter_gpu
from experiments.measuring.serving import measure_serving
from experiments.measuring.session import Session, free_memory
from experiments.measuring.shared_prefix import measure_shared_prefix
from experiments.measuring.telemetry import Evidence
from experiments.measuring.tracing import trace
from experiments.measuring.verdict import verify
from experiments.messages import (
    Answer,
    Exit,
    Failed,
    Load,
    Measure,
    MeasureCeilings,
    Measured,
    Rates,
    Ready,
    Trace,
    Verified,
    Verify,
    WorkerChannel,
)
from experiments.records import Attempt, Cell, CellResult, Point, Sampled, Status, Verdict


class Ran(Protocol):
    """What ran a cell, an engine as a rule: its figures are the cell's counters."""

    def snapshot(self) -> dict[str, float]:
        """Every figure by name."""


Measurement = Callable[[Session, Point, ProtocolConfig], tuple[dict[str, list[float]], Ran]]
MEASUREMENTS: dict[str, Measurement] = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "shared_prefix": measure_shared_prefix,
    "offline": measure_offline,
    "serving": measure_serving,
}


class Worker:
    """Answers the harness's requests, one at a time."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.verdict: Verdict | None = None
        self.gpu_pid: int | None = None

    def answer(self, request: object) -> Answer:
        """The answer to one request; whatever goes wrong is an answer too."""
        try:
            if isinstance(request, Load):
                return self._load(request)
            if isinstance(request, Verify):
                self.verdict = verify(self._session(), self._session().request.protocol.verdict_tokens)
                return Verified(self.verdict)
            if isinstance(request, MeasureCeilings):
                rates = measure_ceilings(self._session().device)
                free_memory(self._session().device)
                return Rates(rates)
            if isinstance(request, Trace):
                return trace(self._session(), request)
            if isinstance(request, Measure):
                return Measured(self._measure(request))
            return Failed("error", f"unknown request {type(request).__name__}")
        except Exception as error:
            return Failed(failure_kind(error), failure_reason(error))

    def _session(self) -> Session:
        if self.session is None:
            raise RuntimeError("nothing is loaded")
        return self.session

    def _load(self, request: Load) -> Ready:
        self.session, self.verdict = None, None
        self.gpu_pid = enter_gpu(torch.device(request.device))
        self.session = session = Session(request)
        free_memory(session.device)
        allocated = torch.cuda.memory_allocated(session.device) if session.device.type == "cuda" else 0
        return Ready(
            session.weights_words,
            session.weights_hash,
            session.kernels,
            session.variant.replaced,
            {"weights": allocated},
            gpu_pids=() if self.gpu_pid is None else (self.gpu_pid,),
        )

    def _measure(self, request: Measure) -> CellResult:
        """Measure a cell, again where the GPU was not itself, as often and as long as the protocol allows."""
        session, start = self._session(), time.perf_counter()
        protocol = session.request.protocol
        if self.verdict is None:
            session.drop_original()  # An earlier process has verified this variant.
        # What is alive now outlives the cell: the collection at its end, a tenth of a second of all that libraries
        # have made, is of the cell's own. Garbage must go first, it would stay for good.
        gc.collect()
        gc.freeze()
        set_aside: list[Attempt] = []
        while True:
            result = self._attempt(request)
            took_s = time.perf_counter() - start
            # Another attempt takes as long as this one, and the harness kills a cell at its timeout.
            time_for_more = took_s + 2 * result.duration_s < protocol.cell_timeout_s
            enough = len(set_aside) >= protocol.flagged_repeats or not time_for_more
            if enough or not result.flags or result.status is not Status.OK:
                return replace(result, set_aside=set_aside, duration_s=took_s)
            set_aside.append(Attempt(result.samples, result.windows))

    def _attempt(self, request: Measure) -> CellResult:
        session, cell = self._session(), request.cell
        kind = session.workloads[cell.point.workload].kind

        def measure() -> Sampled:
            samples, ran = MEASUREMENTS[kind](session, cell.point, session.request.protocol)
            return samples, ran.snapshot()

        ours = None if self.gpu_pid is None else {self.gpu_pid, *request.ours}
        result = run_cell(cell, session.device, measure, ours)
        return replace(result, kernels=session.kernels, verdict=self.verdict)


def run_cell(
    cell: Cell, device: torch.device, measure: Callable[[], Sampled], ours: set[int] | None = None
) -> CellResult:
    """The result of a measurement (samples, counters), however it ends, with what the GPU did meanwhile.

    `ours` are the processes that belong on the GPU, None where that cannot be told.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = time.perf_counter()
    result = CellResult(cell, Status.OK, started=started)
    with Evidence(device) as evidence:
        try:
            samples, counters = measure()
            result = replace(result, samples=samples, counters=counters)
        except Disturbed as error:
            result = replace(result, status=Status.INVALID, reason=str(error))
        except Exception as error:
            result = replace(result, status=Status(failure_kind(error, known=True)), reason=failure_reason(error))
    free_memory(device)
    return replace(
        result,
        memory_bytes=evidence.memory_bytes,
        clocks=evidence.clocks,
        windows=evidence.windows,
        other_processes=None if ours is None else len(evidence.processes - ours),
        duration_s=time.perf_counter() - start,
    )


def failure_kind(error: Exception, known: bool = False) -> str:
    """`oom`, `skipped` (this engine cannot), `user` (bad input) or `error`; a cell's status knows no `user`."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return "oom"
    if isinstance(error, Unsupported):
        return "skipped"
    return "user" if not known and isinstance(error, EngineUserError | HarnessUserError) else "error"


def failure_reason(error: Exception) -> str:
    """One line."""
    text = str(error).strip() or type(error).__name__
    spoken = isinstance(error, EngineUserError | HarnessUserError | Unsupported)
    named = text if spoken else f"{type(error).__name__}: {text}"
    return " ".join(named.split())[:500]


class Answering(Protocol):
    """A worker of any kind."""

    def answer(self, request: object) -> Answer:
        """The answer to one request; whatever goes wrong is an answer too."""


def serve(channel: WorkerChannel, worker: Answering) -> int:
    """Answer requests until told to exit, or until the harness is gone."""
    while (request := channel.receive()) is not None and not isinstance(request, Exit):
        answer = worker.answer(request)
        if isinstance(answer, Failed):
            print(answer.reason, file=sys.stderr)
        channel.send(answer)
    return 0


if __name__ == "__main__":
    sys.exit(serve(CHANNEL, Worker()))
