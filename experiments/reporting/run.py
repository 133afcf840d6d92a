"""A stored run as the report sees it: every planned cell exactly once."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from experiments import plain
from experiments.cluster.records import ShardRecord, read_records
from experiments.config import BASELINE
from experiments.durable import read_json
from experiments.environment import by_time
from experiments.errors import UserError
from experiments.manifest import Manifest
from experiments.metrics import metrics_of
from experiments.records import CellResult, Point, Status, Verdict
from experiments.reporting.info import RunInfo
from experiments.reporting.ledgers import Traced
from experiments.store import read_run
from experiments.trace.counters import Counters

NOT_RUN = "never ran: the sweep ended before this cell; `fusebench sweep resume=RUN_ID` goes on"

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """All of a run. `results` has each planned cell once, sorted.

    `problems` are files that could not be read, and whatever else is counted but not shown. `palette` are the variants
    of every run of a report, where it has several, so that each has one colour throughout.
    """

    info: RunInfo
    results: tuple[CellResult, ...]
    ledgers: tuple[Traced, ...] = ()
    counters: tuple[Counters, ...] = ()
    problems: tuple[str, ...] = ()
    palette: tuple[str, ...] = ()

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """Variants in the order planned, the baseline first."""
        found = {r.cell.variant for r in self.results}
        ordered = [v for v in self.info.variants if v in found] + sorted(found - set(self.info.variants))
        return tuple(sorted(ordered, key=lambda v: v != BASELINE))

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every planned place, sorted."""
        return tuple(sorted({r.cell.point for r in self.results}))

    @property
    def num_rounds(self) -> int:
        """Rounds planned."""
        return len({r.cell.round for r in self.results})

    @property
    def is_twin(self) -> bool:
        """Did any cell run on the plain-PyTorch twins of the kernels? Then no speed is claimed."""
        return any(r.kernels == "twin" for r in self.results)

    def status_counts(self) -> dict[str, int]:
        """Planned cells and how they ended, in the order of Status; `settled` ones are not counted as skipped."""
        counts = Counter(r.status for r in self.results if not r.is_settled)
        by_status = {s.value: counts[s] for s in Status}
        return {"planned": len(self.results)} | by_status | {"settled": len(self.results) - counts.total()}


def load_run(results_dir: Path, experiment: str, run_id: str) -> Run:
    """Read results/<experiment>/<run_id>; `run_id` may be `latest`. UserError names what exists."""
    return read_folder(find_run(results_dir, experiment, run_id))


def read_folder(path: Path) -> Run:
    """Read the run in a folder."""
    manifest, results, problems = read_run(path)
    ledgers, ledger_problems = read_values(Traced, path / "traces")
    counters, counter_problems = read_values(Counters, path / "counters")
    found = [*problems, *ledger_problems, *counter_problems]
    return assemble(manifest, results, found, ledgers, counters, read_records(path)[0])


def read_values(kind: type[T], folder: Path) -> tuple[list[T], list[str]]:
    """Every whole file of a folder, and a line for each that is not one of that kind."""
    found, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(plain.decode(kind, read_json(path)))
        except (ValueError, OSError) as error:
            problems.append(f"{folder.name}/{path.name}: {error}")
    return found, problems


def locate_run(results_dir: Path, name: str) -> Path:
    """The folder of a run named EXPERIMENT/RUN_ID, EXPERIMENT (its latest) or by the folder's own path."""
    if (Path(name) / "manifest.json").is_file():
        return Path(name)
    experiment, _, run_id = name.partition("/")
    if not experiment or experiment.startswith((".", "~")) or "/" in run_id.rstrip("/"):
        raise UserError(f"{name} holds no manifest.json: give EXPERIMENT/RUN_ID, EXPERIMENT or the folder of a run")
    return find_run(results_dir, experiment, run_id or "latest")


def find_run(results_dir: Path, experiment: str, run_id: str) -> Path:
    """The folder of a run; the latest is the last by its id, which begins with its UTC time."""
    experiments = _folders(results_dir)
    if experiment not in experiments:
        there = ", ".join(experiments) or "none yet, run `fusebench sweep` first"
        raise UserError(f"experiment={experiment} has no runs under {results_dir.name}/; there are: {there}")
    runs = _folders(results_dir / experiment)
    started = [name for name in runs if (results_dir / experiment / name / "manifest.json").is_file()]
    if run_id == "latest" and runs:
        return results_dir / experiment / (started or runs)[-1]
    if run_id not in runs:
        raise UserError(f"run={run_id} is no run of {experiment}; there are: {', '.join(runs) or 'none'}")
    return results_dir / experiment / run_id


def _folders(path: Path) -> list[str]:
    found = path.iterdir() if path.is_dir() else []
    return sorted((p.name for p in found if p.is_dir() and not p.name.startswith(".")), key=by_time)


def assemble(
    manifest: Manifest,
    results: Sequence[CellResult],
    problems: Sequence[str] = (),
    ledgers: Sequence[Traced] = (),
    counters: Sequence[Counters] = (),
    shards: Sequence[ShardRecord] = (),
) -> Run:
    """Join plan and measurements: a planned cell without a result is a `skipped` row, never absent."""
    measured = {r.cell: _held_to_its_verdict(r) for r in results}
    missing = [CellResult(cell, Status.SKIPPED, NOT_RUN) for cell in manifest.plan.cells() if cell not in measured]
    everything = sorted([*measured.values(), *missing], key=lambda r: r.cell)
    info = RunInfo.of(manifest, shards)
    unknown = sorted({r.cell.point.workload for r in everything if not metrics_of(info.kind(r.cell.point.workload))})
    uncounted = [f"workload {name}: no metric is registered for it, its cells are counted only" for name in unknown]
    return Run(
        info,
        tuple(everything),
        tuple(sorted(ledgers, key=lambda ledger: (ledger.cell, ledger.profiler))),
        tuple(sorted(counters, key=lambda counted: counted.cell)),
        tuple(sorted([*problems, *uncounted])),
    )


def _held_to_its_verdict(result: CellResult) -> CellResult:
    """There is no speed without a verdict on the answers, whatever a cell is stored as."""
    if result.status is not Status.OK:
        return replace(result, reason=result.reason or "no reason was recorded")
    if result.verdict is None:
        return replace(result, status=Status.INVALID, reason="no verdict on its answers was recorded")
    if not is_right(result.verdict):
        reason = result.verdict.reason or "its verdict is not ok, or not finite"
        return replace(result, status=Status.INVALID, reason=reason)
    return result


def is_right(verdict: Verdict) -> bool:
    """Did the answers pass, on finite figures?"""
    figures = (verdict.kl_mean, verdict.kl_max, verdict.top1_agreement)
    return verdict.ok and all(math.isfinite(figure) for figure in figures if figure is not None)
