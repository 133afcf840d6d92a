"""What is found by array operations, held to the nanosecond against the definitions in plain Python, row by row."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.trace import grouping, reader
from experiments.trace.attribution import attribute
from experiments.trace.reader import PROCESS_MASK, read_trace
from experiments.trace.summarise import make_ledger
from tests.experiments.trace.exports import SCHEMAS, START_END
from tests.experiments.trace.random_exports import write

Path_ = tuple[str, ...]
TABLES = ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE")
NAMES = {"MEMSET": "[memset]", "GRAPH_TRACE": "[graph 4]"}
COPIES = {1: "[memcpy HtoD]", 2: "[memcpy DtoH]", 8: "[memcpy DtoD]"}


class Definitions:
    """The same questions asked of one export, each answered by looking at every row."""

    def __init__(self, path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.row_factory = sqlite3.Row
            strings = dict(tuple(row) for row in database.execute("SELECT id, value FROM StringIds"))
            work = [(kind, row) for kind in TABLES for row in _rows(database, f"CUPTI_ACTIVITY_KIND_{kind}")]
            self.calls = _rows(database, "CUPTI_ACTIVITY_KIND_RUNTIME")
            self.nodes = [row for name in _node_tables(database) for row in _rows(database, name)]
            ranges = _rows(database, "NVTX_EVENTS")
        database.close()
        self.strings = strings
        self.work = sorted(work, key=lambda row: row[1]["start"])
        own = [r for r in ranges if r["eventType"] not in (START_END, 75) and r["endGlobalTid"] is None]
        self.ranges = [(r, r["text"] or strings[r["textId"]]) for r in own]
        self.ranges.sort(key=lambda r: (r[0]["start"], -_end(r[0])))

    def path(self, thread: int, when: int) -> Path_:
        """The ranges open at an instant, outermost first."""
        return tuple(text for r, text in self.ranges if r["globalTid"] == thread and r["start"] <= when <= _end(r))

    def owner(self, row: Any) -> tuple[int, Path_, Path_]:
        """(step, path of the launch, path of the place) of a piece of work; -1 for no step."""
        process = row["globalPid"]
        calls = (c for c in self.calls if (_process(c), c["correlationId"]) == (process, row["correlationId"]))
        call = next(calls, None)
        path = () if call is None else self.path(call["globalTid"], call["start"])
        steps = [int(text.removeprefix("step/")) for text in path if _is_step(text)]
        launch = tuple(text for text in path if not _is_step(text))
        node = row["graphNodeId"] if "graphNodeId" in row.keys() else None
        captured = self._captured(process, node)
        says = any(text.startswith(("layer/", "op/")) for text in captured)
        return steps[-1] if steps else -1, launch, captured if says else launch

    def _captured(self, process: int, node: int | None) -> Path_:
        """The ranges open when a node's first ancestor was made."""
        own = [row for row in self.nodes if _process(row) == process]
        known = {row["graphNodeId"] for row in own}
        clones = [row for row in own if row["originalGraphNodeId"] is not None]
        originals = {row["graphNodeId"]: row["originalGraphNodeId"] for row in clones}
        seen = set()
        while node in originals and originals[node] != node:
            if node in seen:
                return ()
            seen.add(node)
            node = originals[node]
        made = [row for row in own if row["graphNodeId"] == node and row["originalGraphNodeId"] is None]
        found = self.path(made[0]["globalTid"], made[0]["start"]) if node in known and made else ()
        return tuple(text for text in found if not _is_step(text))

    def name(self, kind: str, row: Any) -> str:
        """What a ledger calls it."""
        if kind == "KERNEL":
            return str(self.strings[row["shortName"]])
        return COPIES[row["copyKind"]] if kind == "MEMCPY" else NAMES[kind]


def _rows(database: sqlite3.Connection, table: str) -> list[Any]:
    return database.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()


def _node_tables(database: sqlite3.Connection) -> list[str]:
    tables = [name for (name,) in map(tuple, database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))]
    return [name for name in ("CUDA_GRAPH_NODE_EVENTS", "CUDA_GRAPH_EVENTS") if name in tables][:1]


def _end(row: Any) -> int:
    return int(2**63 - 1 if row["end"] is None else row["end"])


def _process(row: Any) -> int:
    return int(row["globalTid"] & PROCESS_MASK)


def _is_step(text: str) -> bool:
    return text.startswith("step/") and text.removeprefix("step/").isdecimal()


def _last(path: Path_, kind: str) -> str | None:
    return next((text.removeprefix(kind) for text in reversed(path) if text.startswith(kind)), None)


@pytest.fixture(params=[7, 1 << 19], ids=["blocks of 7", "one block"])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many rows are taken at a time: so few that everything straddles, or all."""
    monkeypatch.setattr(grouping, "_BLOCK_ROWS", request.param)
    monkeypatch.setattr(reader, "_CHUNK_ROWS", request.param)
    return int(request.param)


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize("seed", range(10))
def test_owners_are_those_of_the_definition(synthetic: Callable[..., Any], seed: int) -> None:
    path = _random(synthetic, seed)
    expected = Definitions(path)
    found = attribute(read_trace(path))
    columns = ["start", "end", "step", "launch", "place"]
    owners = [
        (start, end, step, found.owners[launch].path, found.owners[place].path)
        for start, end, step, launch, place in found.work[columns].itertuples(index=False)
    ]
    assert owners == [(row["start"], row["end"], *expected.owner(row)) for _, row in expected.work]
    assert len({owner[3:] for owner in owners}) > 3


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize("seed", range(10))
def test_sums_are_those_of_the_definition(synthetic: Callable[..., Any], seed: int) -> None:
    path = _random(synthetic, seed)
    expected = Definitions(path)
    ledger = make_ledger(read_trace(path), attribute(read_trace(path)), "nsys")
    replays = any(text == "replay" for _, text in expected.ranges)
    rows = [(kind, row, *expected.owner(row)) for kind, row in expected.work]
    steps = {id(row): step for _, row, step, launch, _ in rows if step >= 0 and ("replay" in launch or not replays)}
    counted = [row for _, row, *_ in rows if id(row) in steps] or [row for _, row, *_ in rows]
    first, last = min(row["start"] for row in counted), max(row["end"] for row in counted)
    sums: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    busy: dict[int, set[int]] = defaultdict(set)
    begins: dict[int, int] = {}
    reach: dict[int, int] = {}
    begun: set[tuple[int, int]] = set()
    idle = {"within": 0, "between": 0}
    for kind, row, _, launch, place in rows:
        # Without a step that counts the whole trace is the window.
        if not steps or (row["end"] > first and row["start"] < last):
            key = (expected.name(kind, row), _last(launch, "phase/"), _last(place, "layer/"), _last(place, "op/"))
            start, end = (max(row["start"], first), min(row["end"], last)) if steps else (row["start"], row["end"])
            sums[key].append(end - start)
            device = row["deviceId"]
            busy[device] |= set(range(start, end))
            begins.setdefault(device, start)
            own = (device, steps.get(id(row), -1))
            opens = own[1] != -1 and own not in begun
            idle["between" if opens else "within"] += max(0, start - reach.get(device, start))
            reach[device] = max(end, reach.get(device, end))
            begun |= {own} if kind in ("KERNEL", "GRAPH_TRACE") else set()
    found: dict[tuple[str | None, ...], list[float]] = defaultdict(lambda: [0, 0.0])
    for one in ledger.kernels:
        key = (one.name, one.phase, one.layer, one.op)
        found[key] = [found[key][0] + one.count, found[key][1] + one.total_us]
    assert {key: [count, round(1e3 * us)] for key, (count, us) in found.items()} == {
        key: [len(durations), sum(durations)] for key, durations in sums.items()
    }
    assert ledger.steps == len(set(steps.values()))
    assert round(1e3 * ledger.gaps.within_steps_us) == idle["within"]
    assert round(1e3 * ledger.gaps.between_steps_us) == idle["between"]
    assert round(1e6 * ledger.busy_ms) == sum(map(len, busy.values()))
    assert round(1e6 * ledger.window_ms) == sum(max(busy[device]) + 1 - begin for device, begin in begins.items())


def _random(synthetic: Callable[..., Any], seed: int) -> Path:
    export = synthetic(SCHEMAS[seed % len(SCHEMAS)])
    write(export, seed)
    path: Path = export.close()
    return path
