"""One cell under a profiler: start its worker, have it run the window, read what the profiler wrote."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.config import ExperimentConfig, VariantConfig
from experiments.environment import package_version
from experiments.errors import UserError
from experiments.messages import Failed, Load, Ready, Traced
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
from experiments.worker_process import WORKER_COMMAND, WorkerLost, WorkerProcess, without_paths

REPORT_TIMEOUT_S = 600
EAGER = "without CUDA graphs: the PyTorch profiler cannot tell which layer a graph's kernel belongs to"


class CannotTrace(Exception):
    """This cell failed in a way that need not concern the next one."""


@dataclass(frozen=True)
class Tracer:
    """How cells are traced in this run. `nsys` is None for the PyTorch profiler; `config` has its device resolved."""

    config: ExperimentConfig
    steps: int
    nsys: Nsys | None
    logs: Path
    keep_raw: Path | None
    say: Callable[[str], None]
    worker: Sequence[str] = WORKER_COMMAND

    def trace(self, model: Model, variant: VariantConfig, cell: Cell, untraced_step_ms: float | None) -> Ledger:
        """The ledger of one cell. CannotTrace for what is this cell's own trouble, UserError for everybody's."""
        eager = self.nsys is None and self.config.device == "cuda" and variant.runtime.cuda_graphs
        if eager:
            variant = replace(variant, runtime=replace(variant.runtime, cuda_graphs=False))
        with tempfile.TemporaryDirectory(prefix="fusebench-trace-") as folder:
            trace, traced = self._capture(Path(folder), model, variant, cell)
        check_content(trace, cell, self.config.device, self.nsys.version if self.nsys else "")
        profiler = "nsys" if self.nsys else "torch"
        note = EAGER if eager else ""
        ledger = make_ledger(trace, attribute(trace), profiler, cell, traced.steps, untraced_step_ms, note, traced.run)
        return replace(ledger, rungs=check_rungs(trace, ledger, traced.rungs))

    def _capture(self, folder: Path, model: Model, variant: VariantConfig, cell: Cell) -> tuple[Trace, Traced]:
        log = self.logs / f"{cell.id}.trace.log"
        if self.nsys is None:
            chrome = folder / "trace.json"
            worker = WorkerProcess(log, self.worker)
            try:
                request = TraceRequest(cell, self.steps, "torch", str(chrome))
                answer = run_window(worker, self.config, model, variant, request, self.say)
            finally:
                worker.close()
            self._keep(cell, chrome, "pt.trace.json")
            return read_chrome_trace(chrome, package_version("torch") or "?"), answer
        output = folder / "capture"
        under = TracedWorker(log, traced_command(self.nsys, profile_arguments(output), worker=self.worker))
        try:
            request = TraceRequest(cell, self.steps, "nsys")
            answer = run_window(under, self.config, model, variant, request, self.say)
        except BaseException:
            under.kill()
            raise
        self.say("nsys writes its report")
        under.finish(REPORT_TIMEOUT_S)
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
    worker: WorkerProcess,
    config: ExperimentConfig,
    model: Model,
    variant: VariantConfig,
    request: TraceRequest,
    say: Callable[[str], None],
) -> Traced:
    """Load the engine and run the window; returns what the worker says of it."""
    load = Load(
        model=model.source,
        variant=variant,
        device=config.device,
        dtype=config.dtype,
        weights=config.weights,
        seed=config.seed,
        points=(request.cell.point,),
        workloads=tuple(config.workloads),
        protocol=config.protocol,
    )
    try:
        ready = worker.ask(load, config.protocol.load_timeout_s, say)
        traced = worker.ask(request, config.protocol.cell_timeout_s, say) if isinstance(ready, Ready) else ready
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
