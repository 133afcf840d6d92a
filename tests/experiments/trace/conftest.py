"""Fixtures of the trace tests: synthetic nsys exports, and the real one of an H200."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.trace.exports import DATA, SCHEMAS, SyntheticExport


@pytest.fixture
def synthetic(tmp_path: Path) -> Callable[..., SyntheticExport]:
    """Make an empty export of the given schema (3.7.2 unless said)."""
    count = iter(range(100))
    return lambda schema="3.7.2": SyntheticExport(tmp_path / f"export{next(count)}.sqlite", schema)


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest) -> str:
    """Every export schema that the reader knows."""
    return str(request.param)


@pytest.fixture
def h200(tmp_path: Path) -> Path:
    """The tables of a real trace of an H200 as an export; its ranges renamed to the grammar of the harness."""
    stored = json.loads((DATA / "nsys_2023.4_h200_graph_trace.json").read_text())
    path = tmp_path / "h200.sqlite"
    with sqlite3.connect(path) as database:
        for table, create in stored["schema"].items():
            database.execute(create)
            marks = ", ".join("?" * len(stored["tables"][table]["columns"]))
            database.executemany(f"INSERT INTO {table} VALUES ({marks})", stored["tables"][table]["rows"])
        renamed = {f"layer{i}": f"layer/{i}" for i in range(3)} | {"norm": "op/norm", "linear": "op/linear"}
        for step, name in enumerate(("replay_old", "replay0", "replay1")):
            renamed[name] = f"step/{step}"
        for old, new in renamed.items():
            database.execute("UPDATE StringIds SET value = ? WHERE value = ?", (new, old))
    database.close()
    return path
