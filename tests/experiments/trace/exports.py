"""Synthetic nsys exports, made from the schemas that real ones have."""

import sqlite3
from pathlib import Path
from typing import Any

from experiments.trace.reader import Trace, read_trace

DATA = Path(__file__).parent / "data"
REAL_SCHEMAS = ("3.0.0", "3.7.2")
# As readers and the documentation have them (2024.7, 2026.1, 2026.2), not from exports of ours: nodes of graphs under a
# new name; then kernels with the graph's id, and the old name for events that have no node.
LATER_SCHEMAS = ("3.15.1", "3.24.14", "3.25.0")
SCHEMAS = (*REAL_SCHEMAS, *LATER_SCHEMAS)
LATER = """ALTER TABLE CUDA_GRAPH_EVENTS RENAME TO CUDA_GRAPH_NODE_EVENTS;
    UPDATE META_DATA_EXPORT SET value = '{schema}' WHERE name = 'EXPORT_SCHEMA_VERSION';"""
LATEST = """ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL ADD COLUMN graphId INTEGER;
    CREATE TABLE CUDA_GRAPH_EVENTS (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER,
        globalTid INTEGER, nameId INTEGER, graphId INTEGER, graphExecId INTEGER);"""
PUSH_POP, START_END, DOMAIN_CREATE = 59, 60, 75
GRAPH_TRACE = """CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER,
    globalPid INTEGER, graphId INTEGER)"""


def thread_id(process: int = 1, thread: int = 1) -> int:
    """A globalTid as nsys packs it; with thread 0 it is the process' globalPid."""
    return (1 << 48) | (process << 24) | thread


class SyntheticExport:
    """An export under construction. Times are nanoseconds; a thread is (process, thread)."""

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self.schema = schema
        self.database = sqlite3.connect(path)
        script = (DATA / f"schema_{schema if schema in REAL_SCHEMAS else REAL_SCHEMAS[-1]}.sql").read_text()
        self.database.executescript(script)
        self.nodes_table = "CUDA_GRAPH_EVENTS"
        if schema in LATER_SCHEMAS:
            self.nodes_table = "CUDA_GRAPH_NODE_EVENTS"
            self.database.executescript(LATER.format(schema=schema) + (LATEST if schema != LATER_SCHEMAS[0] else ""))
        self.strings: dict[str, int] = {}

    def with_graph_trace(self) -> None:
        """Add the table of whole graphs, which no dump of empty tables contains."""
        self.database.execute(GRAPH_TRACE)

    def insert(self, table: str, **values: Any) -> None:
        """One row; every NOT NULL column that is not given is 0."""
        self.insert_many(table, [values])

    def insert_many(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Rows of the same columns."""
        columns = self.database.execute(f"PRAGMA table_info({table})").fetchall()
        zeros = {name: 0 for _, name, _, not_null, *_ in columns if not_null and name not in rows[0]}
        names = [*rows[0], *zeros]
        statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        self.database.executemany(statement, ([*row.values(), *zeros.values()] for row in rows))

    def string(self, text: str) -> int:
        """The id of a string, new if need be."""
        if text not in self.strings:
            self.strings[text] = 1000 + len(self.strings)
            self.insert("StringIds", id=self.strings[text], value=text)
        return self.strings[text]

    def range(
        self,
        name: str,
        start: int,
        end: int | None,
        thread: tuple[int, int] = (1, 1),
        registered: bool = True,
        domain: int = 0,
        style: int = PUSH_POP,
        end_thread: tuple[int, int] | None = None,
    ) -> None:
        """An NVTX range, its name in StringIds (registered) or in the row."""
        text = {"textId": self.string(name)} if registered else {"text": name}
        crossing = {} if end_thread is None else {"endGlobalTid": thread_id(*end_thread)}
        self.insert(
            "NVTX_EVENTS", start=start, end=end, eventType=style, globalTid=thread_id(*thread), domainId=domain, **text,
            **crossing,
        )  # fmt: skip

    def domain(self, name: str, domain: int, process: int = 1) -> None:
        """A named domain."""
        self.insert(
            "NVTX_EVENTS",
            start=-5,
            eventType=DOMAIN_CREATE,
            text=name,
            domainId=domain,
            globalTid=thread_id(process),
        )

    def call(self, correlation: int, start: int, end: int, thread: tuple[int, int] = (1, 1), name: str = "") -> None:
        """An API call."""
        self.insert(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=start,
            end=end,
            globalTid=thread_id(*thread),
            correlationId=correlation,
            nameId=self.string(name or "cudaLaunchKernel_v7000"),
        )

    def kernel(self, name: str, correlation: int, start: int, end: int, process: int = 1, **values: Any) -> None:
        """A kernel, launched by the call with that correlation id."""
        self.insert(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            start=start,
            end=end,
            correlationId=correlation,
            globalPid=thread_id(process, 0),
            demangledName=self.string(f"void {name}<float>(int)"),
            shortName=self.string(name),
            **values,
        )

    def work(self, table: str, correlation: int, start: int, end: int, process: int = 1, **values: Any) -> None:
        """A copy, a set or a whole graph."""
        process_id = thread_id(process, 0)
        self.insert(table, start=start, end=end, correlationId=correlation, globalPid=process_id, **values)

    def node(self, node: int, start: int, original: int | None = None, thread: tuple[int, int] = (1, 1)) -> None:
        """Creation of a graph node; a clone gets two rows, as in real exports."""
        for parent in (None,) if original is None else (None, original):
            self.insert(
                self.nodes_table,
                start=start,
                end=start,
                globalTid=thread_id(*thread),
                graphNodeId=node,
                originalGraphNodeId=parent,
            )

    def read(self) -> Trace:
        """Close it, and read it as the harness does."""
        return read_trace(self.close())

    def close(self) -> Path:
        self.database.commit()
        self.database.close()
        return self.path
