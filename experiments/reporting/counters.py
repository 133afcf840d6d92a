"""Hardware counters of a run: results/<experiment>/<run>/counters/*.json, one cell each."""

from pathlib import Path

from experiments import plain
from experiments.durable import read_json
from experiments.trace.counters import Counters


def read_counters(folder: Path) -> tuple[list[Counters], list[str]]:
    """Every readable file of a folder, by cell, and what could not be read."""
    found, problems = [], []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            found.append(plain.decode(Counters, read_json(path)))
        except (ValueError, OSError) as error:
            problems.append(f"counters/{path.name}: {error}")
    return sorted(found, key=lambda counters: counters.cell), problems
