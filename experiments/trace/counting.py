"""One cell under Nsight Compute: start its worker, have it run a step inside the window, read what was counted."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.config import ExperimentConfig, VariantConfig
from experiments.errors import UserError
from experiments.messages import Trace
from experiments.models import Model
from experiments.records import Cell
from experiments.trace.capture import TracedWorker, traced_command
from experiments.trace.counters import Counters, read_raw_page
from experiments.trace.ncu import MOST_LAUNCHES, Ncu, profile_arguments, raw_page, why_nothing
from experiments.trace.session import REPORT_TIMEOUT_S, CannotTrace, run_window
from experiments.worker_process import WORKER_COMMAND


@dataclass(frozen=True)
class Counter:
    """How cells are counted in this run."""

    config: ExperimentConfig
    steps: int
    ncu: Ncu
    logs: Path
    keep_raw: Path | None
    say: Callable[[str], None]
    worker: Sequence[str] = WORKER_COMMAND

    def count(self, model: Model, variant: VariantConfig, cell: Cell) -> Counters:
        """The counters of one cell. CannotTrace for what is this cell's own trouble, UserError for everybody's."""
        log = self.logs / f"{cell.id}.ncu.log"
        log.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="fusebench-ncu-") as folder:
            report = Path(folder) / "capture.ncu-rep"
            steps = self._profile(report.with_suffix(""), log, model, variant, cell)
            if not report.is_file():
                raise UserError(_explained(log, "look into the worker's log"))
            if self.keep_raw:
                shutil.copyfile(report, self.keep_raw / f"{cell.id}.ncu-rep")
            return read_raw_page(raw_page(self.ncu, report), cell, self.ncu.version, steps, MOST_LAUNCHES)

    def _profile(self, output: Path, log: Path, model: Model, variant: VariantConfig, cell: Cell) -> int:
        worker = TracedWorker(log, traced_command(self.ncu, profile_arguments(output), worker=self.worker))
        try:
            request = Trace(cell, self.steps, "ncu")
            traced = run_window(worker, self.config, model, variant, request, self.say)
        except CannotTrace as error:
            worker.kill()
            if why := why_nothing(_text(log)):
                raise UserError(why) from None
            raise error
        except BaseException:
            worker.kill()
            raise
        worker.finish(REPORT_TIMEOUT_S)
        return traced.steps


def _explained(log: Path, otherwise: str) -> str:
    return why_nothing(_text(log)) or f"ncu wrote no report: {otherwise}"


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.is_file() else ""
