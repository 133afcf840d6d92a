"""The run folder that gets ledgers and counters, held as a sweep holds it: no trace disturbs one that is under way."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from experiments import plain
from experiments.durable import make_folder
from experiments.environment import by_time, code
from experiments.errors import UserError
from experiments.manifest import Manifest, changes, new_manifest
from experiments.records import Cell, CellResult, Status
from experiments.store import COUNTERS, LOGS, MANIFEST, TRACES, RunStore, create_run, read_manifest, read_run
from experiments.sweep import Prepared
from experiments.trace.ledger import Ledger

STEP_METRICS = ("step_ms", "ttft_ms")


@dataclass(frozen=True)
class TraceRun:
    """An open run: its folders, and its measured cells where they are of this code. `now` is what a run would be that
    starts with the trace."""

    path: Path
    results: list[CellResult]
    now: Manifest

    @property
    def traces(self) -> Path:
        """Where ledgers go."""
        return self.path / TRACES

    @property
    def counters(self) -> Path:
        """Where hardware counters go."""
        return self.path / COUNTERS

    @property
    def logs(self) -> Path:
        """Where the workers' logs go."""
        return self.path / "logs"

    def signed(self, ledger: Ledger) -> Ledger:
        """The ledger with where it comes from."""
        now = self.now
        return replace(
            ledger, run_id=self.path.name, commit=now.commit, dirty=now.dirty, gpu=now.gpu, created=now.created
        )

    def untraced_step_ms(self, cell: Cell) -> float | None:
        """The step of the same point and variant as reports have it, the median of the rounds' medians; None where
        nothing was measured."""
        same = [
            result
            for result in self.results
            if (result.cell.point, result.cell.variant) == (cell.point, cell.variant) and result.status is Status.OK
        ]
        for metric in STEP_METRICS:
            rounds = [median(samples) for result in same if (samples := result.samples.get(metric))]
            if rounds:
                return median(rounds)
        return None


@contextmanager
def open_run(prepared: Prepared, wanted: str) -> Iterator[TraceRun]:
    """The run called `wanted`, or a new one where there is none yet (or `new` is asked for).

    UserError for a run that is unknown, in use, or of another device, dtype or GPU than this one, or whose variants of
    the same names are others.
    """
    config = prepared.config
    manifest = new_manifest(config, prepared.models, prepared.plan, prepared.environment, code())
    folder = Path(config.results_dir) / config.name
    there = (path for path in folder.iterdir() if (path / MANIFEST).is_file()) if folder.is_dir() else ()
    runs = sorted(there, key=lambda path: by_time(path.name))
    path = None if wanted == "new" or (wanted == "latest" and not runs) else _choose(runs, wanted, folder)
    if path is None:
        store, results = create_run(Path(config.results_dir), manifest), []
    else:
        found = read_manifest(path)
        _insist_on(found, manifest, path)
        store = RunStore(path, found)
        results = read_run(path)[1] if found.source_hash == manifest.source_hash else []
    with store:
        for part in (TRACES, COUNTERS, LOGS):
            with suppress(FileExistsError):
                make_folder(store.path / part)
        try:
            yield TraceRun(store.path, results, manifest)
        finally:
            if path is None:
                store.discard()


def _choose(runs: list[Path], wanted: str, folder: Path) -> Path:
    if wanted == "latest":
        return runs[-1]
    for path in runs:
        if path.name == wanted:
            return path
    raise UserError(
        f"run={wanted} is no run in {folder}; there are {', '.join(p.name for p in runs) or 'none'}, or new"
    )


def _insist_on(found: Manifest, ours: Manifest, path: Path) -> None:
    for key in ("device", "dtype", "gpu"):
        theirs, mine = getattr(found, key), getattr(ours, key)
        if theirs != mine:
            raise UserError(f"run {path.name} has {key} {theirs or 'none'}, this trace {mine or 'none'}; use run=new")
    # A ledger is shown under its variant's name, beside the times of that run.
    measured, traced = ({v.name: plain.encode(v) for v in run.config.variants} for run in (found, ours))
    for name in measured.keys() & traced.keys():
        if differs := list(changes(measured[name], traced[name], f"variant.{name}")):
            raise UserError(f"run {path.name} is of another {name}: {'; '.join(differs)}; use run=new")
