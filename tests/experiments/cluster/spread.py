"""Spread sweeps against the same sweep in one process."""

from dataclasses import replace
from pathlib import Path

from experiments.records import CellResult, Row
from experiments.reporting.rows import analyse
from experiments.reporting.run import load_run
from tests.experiments.sweeping import Outcome, sweep


def unsharded(tmp_path: Path, *overrides: str) -> Outcome:
    """The sweep as one process makes it."""
    folder = tmp_path / "unsharded"
    folder.mkdir()
    return sweep(folder, *overrides)


def measured(found: Outcome) -> dict[str, CellResult]:
    """The results without what a clock or a place has decided."""
    return {name: replace(r, shard="", started="", duration_s=0.0) for name, r in found.results.items()}


def rows(found: Outcome) -> tuple[Row, ...]:
    """The rows of the report."""
    return analyse(load_run(found.path.parent.parent, found.path.parent.name, found.path.name)).rows
