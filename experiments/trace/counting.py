"""One cell under Nsight Compute: start its worker, have it run a step inside the window, read what was counted."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from experiments.config import VariantConfig
from experiments.errors import UserError
from experiments.messages import Trace
from experiments.models import Model
from experiments.records import Cell
from experiments.trace.capture import TracedWorker, traced_command
from experiments.trace.counters import Counters, read_raw_page
from experiments.trace.ncu import MOST_LAUNCHES, Ncu, profile_arguments, raw_page, why_nothing
from experiments.trace.session import CannotTrace, run_window
from experiments.workplace import Workplace


@dataclass(frozen=True)
class Counter:
    """How cells are counted in this run."""

    workplace: Workplace
    steps: int
    ncu: Ncu
    keep_raw: Path | None

    def count(self, model: Model, variant: VariantConfig, cell: Cell) -> Counters:
        """The counters of one cell. CannotTrace for what is this cell's own trouble, UserError for everybody's."""
        log = self.workplace.logs / f"{cell.id}.ncu.log"
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
        command = self.workplace.command_for(variant)
        try:
            with TracedWorker(log, traced_command(self.ncu, profile_arguments(output), worker=command)) as worker:
                return run_window(worker, self.workplace, model, variant, Trace(cell, self.steps, "ncu")).steps
        except CannotTrace:
            if why := why_nothing(_text(log)):
                raise UserError(why) from None
            raise


def _explained(log: Path, otherwise: str) -> str:
    return why_nothing(_text(log)) or f"ncu wrote no report: {otherwise}"


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.is_file() else ""
