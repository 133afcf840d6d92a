"""`trace read=FILE`: a ledger, an nsys export or report, or a Chrome trace of the PyTorch profiler, as tables."""

import tempfile
from pathlib import Path

from rich.console import Console

from experiments import plain
from experiments.durable import Damaged, read_json
from experiments.errors import UserError
from experiments.trace.attribution import attribute
from experiments.trace.kineto import read_chrome_trace
from experiments.trace.ledger import Ledger
from experiments.trace.nsys import export_sqlite, find_nsys
from experiments.trace.options import Options
from experiments.trace.reader import Trace, read_trace
from experiments.trace.summarise import make_ledger
from experiments.trace.tables import changes, show, show_ledger


def show_file(path: Path, against: Path | None, options: Options, console: Console) -> int:
    """Print a file's ledger, or what changed from `path` to `against`; returns the exit code."""
    ledger = load(path, options)
    if against is None:
        show_ledger(console, ledger)
        return 0
    other = load(against, options)
    for key in ("op", "name"):
        show(console, changes(ledger, other, key))
    return 0


def load(path: Path, options: Options) -> Ledger:
    """The ledger in a file, or made of the trace in it. UserError for any other file."""
    if path.suffix == ".json" and not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".json" and _is_stored(path):
        try:
            return plain.decode(Ledger, read_json(path))
        except (Damaged, ValueError) as error:
            raise UserError(f"{path}: no ledger that this version reads: {error}") from None
    trace, profiler = _trace(path, options)
    return make_ledger(trace, attribute(trace), profiler)


def _is_stored(path: Path) -> bool:
    """Ledgers are stored with a checksum; traces begin otherwise."""
    with path.open("rb") as file:
        return b'"crc32"' in file.read(64)


def _trace(path: Path, options: Options) -> tuple[Trace, str]:
    if path.suffix == ".json":
        return read_chrome_trace(path), "torch"
    if path.suffix == ".nsys-rep" and path.is_file():
        with tempfile.TemporaryDirectory(prefix="fusebench-trace-") as folder:
            export = export_sqlite(find_nsys(options.nsys), path, Path(folder) / "export.sqlite")
            return read_trace(export), "nsys"
    return read_trace(path), "nsys"
