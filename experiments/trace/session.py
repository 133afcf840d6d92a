"""One cell under a profiler: start its worker, have it run the window, read what the profiler wrote."""

import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.config import VariantConfig
from experiments.environment import package_version
from experiments.errors import UserError
from experiments.messages import Failed, Ready, Traced
from experiments.messages import Trace as TraceRequest
from experiments.models import Model
from experiments.records import Cell
from experiments.trace.attribution import attribute
from experiments.trace.capture import TracedWorker, profile_arguments, traced_command
from experiments.trace.kineto import read_chrome_trace
from experiments.trace.ledger import Ledger
from experiments.trace.liveness import check_rungs
from experiments.trace.nsys import Nsys, export_sqlite, finish_report, why_no_ranges
from experiments.trace.reader import Trace, read_trace
from experiments.trace.schema import KINDS, NONE
from experiments.trace.summarise import make_ledger
from experiments.worker_process import WorkerLost, WorkerProcess, without_paths
from experiments.workplace import Workplace

EAGER = "without CUDA graphs: the PyTorch profiler cannot tell which layer a graph's kernel belongs to"


class CannotTrace(Exception):
    """This cell failed in a way that need not concern the next one."""


@dataclass(frozen=True)
class Tracer:
    """How cells are traced in this run. `nsys` is None for the PyTorch profiler."""

    workplace: Workplace
    steps: int
    nsys: Nsys | None
    keep_raw: Path | None

    def trace(self, model: Model, variant: VariantConfig, cell: Cell, untraced_step_ms: float | None) -> Ledger:
        """The ledger of one cell. CannotTrace for what is this cell's own trouble, UserError for everybody's."""
        device = self.workplace.config.device
        eager = self.nsys is None and device == "cuda" and variant.runtime.cuda_graphs
        if eager:
            variant = replace(variant, runtime=replace(variant.runtime, cuda_graphs=False))
        with tempfile.TemporaryDirectory(prefix="fusebench-trace-") as folder:
            trace, traced = self._capture(Path(folder), model, variant, cell)
        check_content(trace, cell, device, self.nsys.version if self.nsys else "")
        profiler = "nsys" if self.nsys else "torch"
        note = EAGER if eager else ""
        ledger = make_ledger(trace, attribute(trace), profiler, cell, traced.steps, untraced_step_ms, note, traced.run)
        return replace(ledger, rungs=check_rungs(trace, ledger, traced.rungs))

    def _capture(self, folder: Path, model: Model, variant: VariantConfig, cell: Cell) -> tuple[Trace, Traced]:
        log, command = self.workplace.logs / f"{cell.id}.trace.log", self.workplace.command_for(variant)
        if self.nsys is None:
            chrome = folder / "trace.json"
            with closing(WorkerProcess(log, command)) as worker:
                request = TraceRequest(cell, self.steps, "torch", str(chrome))
                answer = run_window(worker, self.workplace, model, variant, request)
            self._keep(cell, chrome, "pt.trace.json")
            return read_chrome_trace(chrome, package_version("torch") or "?"), answer
        output = folder / "capture"
        with TracedWorker(log, traced_command(self.nsys, profile_arguments(output), worker=command)) as worker:
            answer = run_window(worker, self.workplace, model, variant, TraceRequest(cell, self.steps, "nsys"))
            self.workplace.say("nsys writes its report")
        report = finish_report(self.nsys, output.with_suffix(".nsys-rep"))
        self._keep(cell, report, "nsys-rep")
        export = export_sqlite(self.nsys, report, output.with_suffix(".sqlite"))
        self._keep(cell, export, "sqlite")
        return read_trace(export), answer

    def _keep(self, cell: Cell, raw: Path, suffix: str) -> None:
        """Copy a raw file to where the user wants it."""
        if self.keep_raw and raw.is_file():
            shutil.copyfile(raw, self.keep_raw / f"{cell.id}.{suffix}")


def run_window(
    worker: WorkerProcess, workplace: Workplace, model: Model, variant: VariantConfig, request: TraceRequest
) -> Traced:
    """Load the engine and run the window; returns what the worker says of it."""
    protocol, say = workplace.config.protocol, workplace.say
    load = workplace.load(model, variant, (request.cell.point,))
    try:
        ready = worker.ask(load, protocol.load_timeout_s, say)
        traced = worker.ask(request, protocol.cell_timeout_s, say) if isinstance(ready, Ready) else ready
    except WorkerLost as lost:
        raise CannotTrace(lost.reason) from None
    if isinstance(traced, Failed):
        reason = without_paths(traced.reason)
        raise UserError(f"{request.cell.id}: {reason}") if traced.kind == "user" else CannotTrace(reason)
    if not isinstance(traced, Traced):
        raise CannotTrace(f"the worker answered {type(traced).__name__}")
    return traced


def check_content(trace: Trace, cell: Cell, device: str, nsys_version: str) -> None:
    """A capture that ended well may still be empty: UserError says what is missing, and why that may be."""
    kinds = set(trace.specs["kind"].tolist())
    if not kinds - {KINDS.index("cpu_op")} and (device == "cuda" or nsys_version):
        raise UserError(
            "the trace holds no kernel: the profiler saw no CUDA. Does the worker run on the GPU, and may this user "
            "trace it? (NVIDIA's ERR_NVGPUCTRPERM page; in a container, add the capability SYS_ADMIN)"
        )
    if not len(trace.ranges):
        reason = why_no_ranges(nsys_version) if nsys_version else "the profiler recorded no range of the worker"
        raise UserError(f"the trace holds kernels and no NVTX range, so no kernel has an owner: {reason}")
    names = {trace.strings.get(name) for name in trace.ranges["name"].unique().tolist()}
    if f"cell/{cell.id}" not in names:
        raise UserError(f"the trace has no range cell/{cell.id}: it is of another cell, or the window closed too early")
    if (trace.gpu["correlation"] == NONE).all():
        raise UserError("the trace's kernels have no correlation ids, so none can be joined to its launch")
