"""Nsight Systems' SQLite export, read into arrays: no SQL joins, no order assumed, every optional table may be missing.

The schema is judged by the tables and columns that are there, never by the product's version: 3.0 (nsys 2022.4) and 3.7
(2023.4) keep the nodes of CUDA graphs in CUDA_GRAPH_EVENTS, later ones in CUDA_GRAPH_NODE_EVENTS, and use the old name
for another thing. All times are integer nanoseconds from the start of the session. A `thread` is nsys' globalTid, a
`process` the same with its low 24 bits cleared (globalPid).
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.errors import UserError
from experiments.trace.grouping import narrowed
from experiments.trace.schema import (
    DOMAIN_CREATE,
    GPU_TABLES,
    META_TABLES,
    NODE_TABLES,
    NONE,
    OPEN_NS,
    RANGES,
    ROW,
    RUNTIME,
    SPEC,
    Table,
)

PROCESS_MASK = ~0xFFFFFF
_CHUNK_ROWS = 1 << 16
_KEYS = ("correlation", "spec", "domain", "name", "style", "crosses")


@dataclass(frozen=True)
class Trace:
    """One export.

    `gpu` (kernels, copies, sets, whole graphs), in order of start: start, end, correlation, node (graph node or -1),
    spec. The latter is a row of `specs`, where stands what many of them share: kind (place in GPU_TABLES), device,
    stream, process, name, short, detail (kind of a copy, id of a graph), grid_x..z, block_x..z, registers,
    static_shared, dynamic_shared.
    `calls` (the API calls that launched them): start, end, thread, correlation.
    `ranges` (NVTX): start, end (OPEN_NS where still open), thread, domain, name, style (0 push/pop, 1 start/end),
    crosses (ends on another thread).
    `nodes` (of CUDA graphs): start, thread, node, original (-1 for a node that is no clone).
    Keys (correlation, spec, domain, name ...) are in as few bytes as they need, times and ids of nsys in 64 bits.
    Columns called `name` and `short` hold keys of `strings`; `domains` maps (process, domain) to a name.
    `last_nvtx_ns` is the instant of the last NVTX event of any kind.
    """

    product: str
    schema: str
    gpu: pd.DataFrame
    specs: pd.DataFrame
    calls: pd.DataFrame
    ranges: pd.DataFrame
    nodes: pd.DataFrame
    strings: dict[int, str]
    domains: dict[tuple[int, int], str]
    last_nvtx_ns: int

    def of_gpu(self, name: str) -> np.ndarray:
        """One of the columns of `specs` for every row of `gpu`."""
        column: np.ndarray = self.specs[name].to_numpy()[self.gpu["spec"].to_numpy()]
        return column


def read_trace(path: Path) -> Trace:
    """Read an export; UserError for a file that is none, is cut short, or lacks a column this reader needs."""
    _check_file(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            database.execute("PRAGMA temp_store = MEMORY")
            return _Export(database, path).read()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path}: no readable nsys SQLite export ({error}); export the .nsys-rep again") from None


def _check_file(path: Path) -> None:
    """The header says how long an SQLite file must be: a shorter one was cut, and would fail only half-way."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
        mend = f"; make one with `nsys export -t sqlite {path.name}`" if path.suffix in (".nsys-rep", ".qdrep") else ""
        raise UserError(f"{path}: not an SQLite file{mend}")
    page_bytes = int.from_bytes(header[16:18], "big")
    expected_bytes = (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(header[28:32], "big")
    if os.path.getsize(path) < expected_bytes:
        raise UserError(
            f"{path}: truncated, {os.path.getsize(path)} of {expected_bytes} bytes; export the .nsys-rep again"
        )


class _Export:
    """One open database and what was learnt of it."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self.database = database
        self.path = path
        self.tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self.product, self.schema = self._versions()

    def read(self) -> Trace:
        gpu, specs = self._gpu()
        ranges, texts = self._ranges()
        calls = self._calls(gpu["correlation"].to_numpy())
        used = [*specs["name"].tolist(), *specs["short"].tolist(), *ranges["name"].unique().tolist()]
        strings = self._strings(set(used)) | texts
        return Trace(
            product=self.product,
            schema=self.schema,
            gpu=gpu,
            specs=specs,
            calls=calls,
            ranges=ranges,
            nodes=self._nodes(),
            strings=strings,
            domains=self._domains(),
            last_nvtx_ns=self._last_nvtx_ns(),
        )

    def _versions(self) -> tuple[str, str]:
        """The product's and the schema's version, from whichever metadata table there is."""
        for table in META_TABLES:
            if table in self.tables:
                values = dict(self.database.execute(f"SELECT name, value FROM {table}"))
                return str(values.get("EXPORT_PRODUCT_VERSION", "?")), str(values.get("EXPORT_SCHEMA_VERSION", "?"))
        raise UserError(f"{self.path}: an SQLite file, but no nsys export (no table {' or '.join(META_TABLES)})")

    def _columns(self, table: str) -> set[str]:
        return {row[1] for row in self.database.execute(f"PRAGMA table_info({table})")}

    def _expressions(self, table: Table) -> dict[str, str]:
        """What to select for each of the wanted columns of a table, its default where a row or the table has none."""
        present = self._columns(table.name)
        expressions = {}
        for column in table.columns:
            if column.source in present:
                expressions[column.name] = f"IFNULL({column.source}, {column.default})"
            elif column.required:
                raise UserError(
                    f"{self.path}: {table.name} has no column {column.source} "
                    f"(export schema {self.schema}, nsys {self.product}): this reader does not know that schema"
                )
            else:
                expressions[column.name] = str(column.default)
        return expressions

    def _chunks(self, table: Table) -> Iterator[dict[str, np.ndarray]]:
        """The wanted columns of a table, some rows at a time."""
        expressions = self._expressions(table)
        yield from self._fetched(f"SELECT {', '.join(expressions.values())} FROM {table.name}", list(expressions))

    def _fetched(self, query: str, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The rows of a query whose columns are integers, in chunks; of Python's objects there is one row at a time."""
        values = chain.from_iterable(self.database.execute(query))
        while len(chunk := np.fromiter(islice(values, _CHUNK_ROWS * len(names)), dtype=np.int64)):
            rows = chunk.reshape(-1, len(names))
            columns = zip(names, rows.T, strict=True)
            yield {name: narrowed(values) if name in _KEYS else values.copy() for name, values in columns}

    def _frame(self, table: Table) -> pd.DataFrame:
        """A whole table, empty where the export has none."""
        chunks = [_no_rows(column.name for column in table.columns)]
        chunks += self._chunks(table) if table.name in self.tables else ()
        return _joined(chunks)

    def _gpu(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Everything the device did, one row each, in order of start; and the specs they have."""
        chunks = [_no_rows((*ROW, "spec"))]
        specs: list[dict[str, int]] = []
        for kind, table in enumerate(GPU_TABLES.values()):
            if table.name in self.tables:
                distinct, lookup = self._specs(table)
                chunks += self._fetched(lookup.format(first=len(specs)), (*ROW, "spec"))
                specs += ({**SPEC, **spec, "kind": kind} for spec in distinct)
        columns = {name: np.array([spec[name] for spec in specs], dtype=np.int64) for name in SPEC}
        return in_order(_joined(chunks)), pd.DataFrame(columns)

    def _specs(self, table: Table) -> tuple[list[dict[str, int]], str]:
        """The distinct specs of a table, and the query for its rows with the place of theirs, counted from `{first}`.

        SQLite finds the place, for that is one integer to hand over where there were up to fourteen.
        """
        expressions = self._expressions(table)
        shared = [name for name in expressions if name not in ROW]
        selected = ", ".join(f"{expressions[name]} AS {name}" for name in shared)
        self.database.execute("DROP TABLE IF EXISTS temp.specs")
        self.database.execute(f"CREATE TEMP TABLE specs AS SELECT DISTINCT {selected} FROM {table.name}")
        # What differs most comes first.
        self.database.execute(f"CREATE INDEX temp.by_spec ON specs ({', '.join(reversed(shared))})")
        rows = self.database.execute(f"SELECT {', '.join(shared)} FROM temp.specs ORDER BY rowid")
        same = " AND ".join(f"specs.{name} = {expressions[name]}" for name in shared)
        place = f"(SELECT specs.rowid FROM temp.specs WHERE {same}) - 1 + {{first}}"
        query = f"SELECT {', '.join(expressions[name] for name in ROW)}, {place} FROM {table.name}"
        return [dict(zip(shared, row, strict=True)) for row in rows], query

    def _calls(self, correlations: np.ndarray) -> pd.DataFrame:
        """The API calls that launched device work: of a long run's calls, only those whose correlation is wanted."""
        wanted = np.sort(correlations.astype(np.int64))
        kept = [_no_rows(column.name for column in RUNTIME.columns)]
        for chunk in self._chunks(RUNTIME) if RUNTIME.name in self.tables and len(wanted) else ():
            place = np.minimum(np.searchsorted(wanted, chunk["correlation"]), len(wanted) - 1)
            keep = wanted[place] == chunk["correlation"]
            kept.append({name: values[keep] for name, values in chunk.items()})
        return _joined(kept)

    def _nodes(self) -> pd.DataFrame:
        """Creation of graph nodes. Later schemas keep the old table's name for events without nodes: look inside."""
        for table in NODE_TABLES:
            if table.name in self.tables and "graphNodeId" in self._columns(table.name):
                return self._frame(table)
        return self._frame(NODE_TABLES[0])

    def _ranges(self) -> tuple[pd.DataFrame, dict[int, str]]:
        """NVTX ranges, and the texts that are no row of StringIds under made-up negative keys."""
        styles = self._range_styles()
        names = ("start", "end", "thread", "domain", "name", "style", "crosses")
        chunks = [_no_rows(names)]
        if RANGES in self.tables:
            chunks += self._fetched(
                f"""SELECT start, IFNULL(end, {OPEN_NS}), IFNULL(globalTid, 0), IFNULL(domainId, 0), IFNULL(textId, -1),
                    eventType, endGlobalTid IS NOT NULL
                FROM {RANGES} WHERE eventType IN ({", ".join(map(str, styles))})""",
                names,
            )
        ranges = _joined(chunks)
        ranges["style"] = ranges["style"].map(styles).astype(np.int8)
        names_found = ranges["name"].to_numpy(dtype=np.int64)
        unregistered = names_found == NONE
        if not unregistered.any():
            return ranges, {}
        texts = self._unregistered_texts(styles)
        keys: dict[str, int] = {}
        names_found[unregistered] = [keys.setdefault(text, -2 - len(keys)) for text in texts]
        ranges["name"] = narrowed(names_found)
        return ranges, {key: text for text, key in keys.items()}

    def _unregistered_texts(self, styles: dict[int, int]) -> list[str]:
        """The texts of the ranges without a textId, in the table's own order, which is that of any other scan of it."""
        wanted = ", ".join(map(str, styles))
        query = f"SELECT text FROM {RANGES} WHERE eventType IN ({wanted}) AND textId IS NULL"
        return [text or "" for (text,) in self.database.execute(query)]

    def _range_styles(self) -> dict[int, int]:
        """Event type -> 0 for push/pop, 1 for start/end. The ids are the export's own where it lists them."""
        known = {"NvtxPushPopRange": (59, 0), "NvtxtPushPopRange": (70, 0), "NvtxStartEndRange": (60, 1)}
        known["NvtxtStartEndRange"] = (71, 1)
        listed = self._event_types()
        return {listed.get(name, number): style for name, (number, style) in known.items()}

    def _event_types(self) -> dict[str, int]:
        if "ENUM_NSYS_EVENT_TYPE" not in self.tables:
            return {}
        return {name: number for number, name in self.database.execute("SELECT id, name FROM ENUM_NSYS_EVENT_TYPE")}

    def _last_nvtx_ns(self) -> int:
        if RANGES not in self.tables:
            return 0
        (last_ns,) = self.database.execute(f"SELECT MAX(MAX(start), IFNULL(MAX(end), 0)) FROM {RANGES}").fetchone()
        return int(last_ns or 0)

    def _domains(self) -> dict[tuple[int, int], str]:
        """(process, domain) -> its name; the default domain has none."""
        if RANGES not in self.tables:
            return {}
        create = self._event_types().get("NvtxDomainCreate", DOMAIN_CREATE)
        query = f"SELECT globalTid, domainId, text FROM {RANGES} WHERE eventType = ? ORDER BY start DESC"
        return {
            (thread & PROCESS_MASK, domain): text
            for thread, domain, text in self.database.execute(query, (create,))
            if text is not None and thread is not None
        }

    def _strings(self, wanted: set[int]) -> dict[int, str]:
        """The strings in use. The others are left unread: among them may be the machine's whole environment."""
        if "StringIds" not in self.tables:
            return {}
        rows: Iterator[tuple[int, Any]] = self.database.execute("SELECT id, value FROM StringIds")
        return {key: str(value) for key, value in rows if key in wanted}


def in_order(gpu: pd.DataFrame) -> pd.DataFrame:
    """The rows in order of start; recent exports promise none."""
    start = gpu["start"].to_numpy()
    if (start[1:] >= start[:-1]).all():
        return gpu
    return gpu.take(np.argsort(start, kind="stable")).reset_index(drop=True)


def _no_rows(names: Iterable[str]) -> dict[str, np.ndarray]:
    """A chunk of no rows, whose types leave those of the other chunks as they are."""
    return {name: np.empty(0, dtype=np.int8 if name in _KEYS else np.int64) for name in names}


def _joined(chunks: list[dict[str, np.ndarray]]) -> pd.DataFrame:
    """Chunks as one frame, each column's pieces let go as soon as they are joined."""
    return pd.DataFrame({name: np.concatenate([c.pop(name) for c in chunks]) for name in list(chunks[0])}, copy=False)
