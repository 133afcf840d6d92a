"""Sweeps with the fake worker, for tests."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compose import compose
from experiments.manifest import Manifest
from experiments.records import CellResult, Status
from experiments.store import read_run
from experiments.sweep import run_sweep

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
OVERRIDES = (
    "experiment=quick",
    "workloads=[decode]",
    "batches=[1,2]",
    "lengths=[8,16]",
    "protocol=smoke",
    "protocol.rounds=2",
)

Rules = list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What a sweep left behind. `measured` are the cells that workers were asked for, in order: variant, cell id."""

    code: int
    path: Path
    manifest: Manifest
    results: dict[str, CellResult]
    damaged: list[str]
    measured: list[tuple[str, str]]

    def statuses(self) -> dict[str, Status]:
        """How every stored cell ended."""
        return {name: result.status for name, result in self.results.items()}


def arguments(tmp_path: Path, *overrides: str) -> list[str]:
    """A small sweep into tmp_path/results: 4 points, 2 variants, 2 rounds."""
    return [*OVERRIDES, f"results_dir={tmp_path / 'results'}", *overrides]


def worker_command(tmp_path: Path, rules: Rules) -> list[str]:
    """The command of a fake worker that follows these rules."""
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules))
    for counter in tmp_path.glob("rules.json.[0-9]*"):
        counter.unlink()
    return [sys.executable, "-P", str(FAKE_WORKER), str(file)]


def sweep(tmp_path: Path, *overrides: str, rules: Rules | None = None) -> Outcome:
    """Run a sweep to its end and read what it stored."""
    asked = arguments(tmp_path, *overrides)
    code = run_sweep(compose(asked), asked, worker_command(tmp_path, rules or []))
    return outcome(tmp_path, code)


def outcome(tmp_path: Path, code: int = 0) -> Outcome:
    """The latest run under tmp_path."""
    path = sorted(tmp_path.glob("results/*/*"))[-1]
    manifest, results, damaged = read_run(path)
    log = tmp_path / "rules.json.log"
    lines = log.read_text().splitlines() if log.exists() else []
    measured = [(variant, cell) for variant, cell, *_ in (line.split() for line in lines)]
    return Outcome(code, path, manifest, {r.cell.id: r for r in results}, damaged, measured)
