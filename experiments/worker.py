"""A worker process: one model in one variant, told what to do over a pipe. See experiments/messages.py."""

from experiments.messages import worker_channel

if __name__ == "__main__":
    # Before torch is imported: whatever a library prints must not reach the pipe.
    CHANNEL = worker_channel()

import datetime
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from engine import Engine
from engine.errors import UserError as EngineUserError
from experiments.config import ProtocolConfig
from experiments.errors import UserError as HarnessUserError
from experiments.measuring.ceilings import measure_ceilings
from experiments.measuring.decode import measure_decode
from experiments.measuring.guard import Disturbed
from experiments.measuring.offline import measure_offline
from experiments.measuring.prefill import measure_prefill
from experiments.measuring.sensor import gpu_processes
from experiments.measuring.session import Session, free_memory
from experiments.measuring.telemetry import Evidence
from experiments.measuring.tracing import trace
from experiments.measuring.verdict import verify
from experiments.messages import (
    Answer,
    Exit,
    Failed,
    Load,
    Measure,
    Measured,
    Ready,
    Trace,
    Traced,
    Verified,
    Verify,
    WorkerChannel,
)
from experiments.records import Attempt, CellResult, Point, Status, Verdict

Measurement = Callable[[Session, Point, ProtocolConfig], tuple[dict[str, list[float]], Engine]]
MEASUREMENTS: dict[str, Measurement] = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "offline": measure_offline,
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
            if isinstance(request, Trace):
                return Traced(request.cell, trace(self._session(), request))
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
        before = gpu_processes()
        self.session = session = Session(request)
        ceilings = measure_ceilings(session.device) if session.variant.name == "baseline" else {}
        free_memory(session.device)
        allocated = torch.cuda.memory_allocated(session.device) if session.device.type == "cuda" else 0
        kind = session.loaded.weights_kind
        weights = f"{kind}: {session.request.model}" + (f", seed {request.seed}" if kind == "random" else "")
        self.gpu_pid = own_pid(before, gpu_processes())
        return Ready(
            weights,
            session.weights_hash,
            session.kernels,
            session.variant.replaced,
            {"weights": allocated},
            ceilings,
            self.gpu_pid,
        )

    def _measure(self, request: Measure) -> CellResult:
        """Measure a cell, again where the GPU was not itself, as often and as long as the protocol allows."""
        session, start = self._session(), time.perf_counter()
        protocol = session.request.protocol
        if self.verdict is None:
            session.drop_original()  # An earlier process has verified this variant.
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
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        start = time.perf_counter()
        status, reason = Status.OK, ""
        samples: dict[str, list[float]] = {}
        counters: dict[str, float] = {}
        kind = session.workloads[cell.point.workload].kind
        with Evidence(session.device) as evidence:
            try:
                samples, engine = MEASUREMENTS[kind](session, cell.point, session.request.protocol)
                counters = engine.snapshot()
                del engine
            except Disturbed as error:
                status, reason = Status.INVALID, str(error)
            except Exception as error:
                status, reason = Status(failure_kind(error, known=True)), failure_reason(error)
        free_memory(session.device)
        return CellResult(
            cell=cell,
            status=status,
            reason=reason,
            kernels=session.kernels,
            samples=samples,
            memory_bytes=evidence.memory_bytes,
            clocks=evidence.clocks,
            counters=counters,
            verdict=self.verdict,
            started=started,
            duration_s=time.perf_counter() - start,
            windows=evidence.windows,
            other_processes=None if self.gpu_pid is None else len(evidence.processes - {self.gpu_pid, *request.ours}),
        )


def own_pid(before: set[int], after: set[int]) -> int | None:
    """This process's id on the GPU: its own, or in a container, whose ids differ, the only one that came while it
    loaded. None where that cannot be told."""
    if os.getpid() in after:
        return os.getpid()
    new = after - before
    return new.pop() if len(new) == 1 else None


def failure_kind(error: Exception, known: bool = False) -> str:
    """`oom`, `user` (bad input) or `error`; a cell's status knows no `user`."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return "oom"
    return "user" if not known and isinstance(error, EngineUserError | HarnessUserError) else "error"


def failure_reason(error: Exception) -> str:
    """One line."""
    text = str(error).strip() or type(error).__name__
    named = text if isinstance(error, EngineUserError | HarnessUserError) else f"{type(error).__name__}: {text}"
    return " ".join(named.split())[:500]


def serve(channel: WorkerChannel) -> int:
    """Answer requests until told to exit, or until the harness is gone."""
    worker = Worker()
    while (request := channel.receive()) is not None and not isinstance(request, Exit):
        answer = worker.answer(request)
        if isinstance(answer, Failed):
            print(answer.reason, file=sys.stderr)
        channel.send(answer)
    return 0


if __name__ == "__main__":
    sys.exit(serve(CHANNEL))
