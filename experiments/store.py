"""The folder of a run: results/<experiment>/<run_id>/{manifest.json, cells/<cell>.json, logs/}.

One process writes a run at a time, or several shards with no cell in common; each finished cell is one file, durable
before the next cell starts. A file that is truncated or changed is named and set aside as *.corrupt, and never counted.
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments import plain
from experiments.cluster.records import disagreements, merged, read_records
from experiments.durable import Damaged, NoSpace, make_folder, make_new_folder, read_json, sync_folder, write_json
from experiments.environment import by_time
from experiments.errors import UserError
from experiments.manifest import SCHEMA, Manifest, differences
from experiments.records import Cell, CellResult

MANIFEST = "manifest.json"
CELLS = "cells"
LOGS = "logs"
TRACES = "traces"
COUNTERS = "counters"


class RunStore:
    """A run that this process writes. Close it, or leave a `with` block, to let another process go on."""

    def __init__(self, path: Path, manifest: Manifest, shared: bool = False) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = _lock(path, shared)

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def share(self) -> None:
        """Let shards write beside this process; nobody else may until all of them are done."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def discard(self) -> None:
        """Remove a run that holds neither cells nor what `trace` keeps, so that nobody takes it for the latest."""
        if not any(file for part in (CELLS, TRACES, COUNTERS) for file in (self.path / part).glob("*")):
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def logs(self) -> Path:
        """Where the workers' logs go."""
        return self.path / LOGS

    def write_cell(self, result: CellResult) -> None:
        """Keep one finished cell."""
        self._write(self.path / CELLS / f"{result.cell.id}.json", plain.encode(result))

    def forget(self, cells: Iterable[Cell]) -> None:
        """Remove what is to be measured again: beside a half that is new, what is left of an old round looks whole."""
        for cell in cells:
            (self.path / CELLS / f"{cell.id}.json").unlink(missing_ok=True)
        sync_folder(self.path / CELLS)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest by one that knows more."""
        self._write(self.path / MANIFEST, plain.encode(manifest), indent=1)
        self.manifest = manifest

    def _write(self, path: Path, payload: Any, indent: int | None = None) -> None:
        try:
            write_json(path, payload, indent)
        except NoSpace as error:
            raise NoSpace("no space left in the results folder; make room") from error


def create_run(results_dir: Path, manifest: Manifest) -> RunStore:
    """A new run folder, named by the run's id; where that is taken the id gets a number."""
    path = make_new_folder(results_dir / manifest.experiment / manifest.run_id)
    if (latest := max((other.name for other in path.parent.iterdir()), key=by_time)) != path.name:
        # As after a clock that was set back; no other order would hold for runs that were copied here.
        print(f"warning: by its name {latest} is later than this run, so `latest` is not this one", file=sys.stderr)
    make_folder(path / CELLS)
    make_folder(path / LOGS)
    store = RunStore(path, manifest)
    store.write_manifest(dataclasses.replace(manifest, run_id=path.name))
    return store


def resume_run(results_dir: Path, run_id: str, wanted: Manifest) -> tuple[RunStore, list[CellResult], list[str]]:
    """The stored run, what it has measured, and which of its files were damaged.

    UserError where the run is unknown, in use, or of another plan, configuration, code or machine than `wanted`.
    """
    path = _find_run(results_dir / wanted.experiment, run_id)
    manifest = read_manifest(path)
    if changed := differences(manifest, wanted):
        raise UserError(f"resume={path.name} is refused: {'; '.join(changed)}. Start a new run, or undo the change")
    store = RunStore(path, manifest)
    for leftover in path.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    results, damaged = read_cells(path, manifest)
    return store, results, damaged


def read_run(path: Path) -> tuple[Manifest, list[CellResult], list[str]]:
    """For readers: the manifest, every whole result, and what was damaged."""
    manifest = read_manifest(path)
    results, damaged = read_cells(path, manifest)
    shards, problems = read_records(path)
    return manifest, results, [*damaged, *problems, *disagreements(shards)]


def read_manifest(path: Path) -> Manifest:
    """The manifest of a run folder, with what its shards learnt; UserError where it is missing, damaged or of another
    version."""
    file = path / MANIFEST
    try:
        content = read_json(file)
        if isinstance(content, Mapping) and content.get("schema") != SCHEMA:
            raise Damaged(f"it has schema {content.get('schema')}, this version reads schema {SCHEMA}")
        return merged(plain.decode(Manifest, content), path)
    except FileNotFoundError:
        raise UserError(f"{path} has no {MANIFEST}: no sweep got as far as starting there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be used: {error}") from None


def _find_run(folder: Path, run_id: str) -> Path:
    found = (p for p in folder.iterdir() if (p / MANIFEST).is_file()) if folder.is_dir() else ()
    runs = sorted(found, key=lambda path: by_time(path.name))
    if not runs:
        raise UserError(f"resume={run_id}: {folder} has no runs to resume")
    if run_id == "latest":
        return runs[-1]
    for path in runs:
        if path.name == run_id:
            return path
    raise UserError(f"resume={run_id} is no run in {folder}; there are {', '.join(p.name for p in runs)}")


def read_cells(path: Path, manifest: Manifest) -> tuple[list[CellResult], list[str]]:
    """Every whole result of a planned cell, and a line for every file that is not one."""
    planned = {cell.id: cell for cell in manifest.plan.cells()}
    results, problems = [], []
    for file in sorted((path / CELLS).glob("*.json")):
        try:
            results.append(_read_cell(file, planned))
        except OSError as error:
            problems.append(f"{file.name}: {error.strerror}, not counted")
        except Damaged as error:
            problems.append(f"{file.name}: {error}; {_set_aside(file)}")
        except ValueError as error:
            # Whole, so another version wrote it: not ours to move.
            problems.append(f"{file.name}: {error}; left where it is, not counted")
    return results, problems


def _read_cell(file: Path, planned: Mapping[str, Cell]) -> CellResult:
    result = plain.decode(CellResult, read_json(file))
    if result.cell != planned.get(file.stem):
        raise Damaged("it is of no cell of this plan")
    return result


def _set_aside(file: Path) -> str:
    aside = file.with_name(f"{file.name}.corrupt")
    try:
        file.replace(aside)
    except OSError:
        return "left where it is, not counted"
    return f"set aside as {aside.name}, not counted"


def _lock(path: Path, shared: bool) -> int:
    """Hold the run's folder for this process, or share it; the system lets go of it however the process ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"run {path.name} is being written by another sweep; wait for it, or start a new run") from None
    except OSError:
        # Some network file systems know no locks; cell files are atomic there too.
        pass
    return descriptor
