"""Which tables and columns of an nsys export are read, under which names, and what stands in for an absent value."""

from dataclasses import dataclass

import numpy as np

NONE = -1
OPEN_NS = int(np.iinfo(np.int64).max)
DOMAIN_CREATE = 75
RANGES = "NVTX_EVENTS"
META_TABLES = ("META_DATA_EXPORT", "EXPORT_META_DATA")


@dataclass(frozen=True)
class Column:
    """One column: `source` in the export, `name` here, and `default` for a NULL or an absent optional column."""

    source: str
    name: str
    dtype: type[np.integer] = np.int64
    required: bool = True
    default: int = NONE


@dataclass(frozen=True)
class Table:
    """One table; it may be missing altogether, for nsys leaves out the empty ones."""

    name: str
    columns: tuple[Column, ...]


_WHEN = (Column("start", "start"), Column("end", "end"))
_WHERE = (
    *_WHEN,
    Column("deviceId", "device", np.int16),
    Column("streamId", "stream", np.int64),
    Column("globalPid", "process"),
    Column("correlationId", "correlation"),
)
_NODE = Column("graphNodeId", "node", required=False)
_SHAPE = tuple(
    Column(source, name, np.int32, required=False, default=0)
    for source, name in (
        ("gridX", "grid_x"),
        ("gridY", "grid_y"),
        ("gridZ", "grid_z"),
        ("blockX", "block_x"),
        ("blockY", "block_y"),
        ("blockZ", "block_z"),
        ("registersPerThread", "registers"),
        ("staticSharedMemory", "static_shared"),
        ("dynamicSharedMemory", "dynamic_shared"),
    )
)


def _gpu_table(name: str, own: dict[str, Column]) -> Table:
    """All kinds of device work have the same columns; where a kind has no such thing, the column is its default."""
    columns = (*_NAMES, _DETAIL, _NODE, *_SHAPE)
    absent = {column.name: Column("", column.name, column.dtype, False, column.default) for column in columns}
    return Table(name, (*_WHERE, *({**absent, **own}[column.name] for column in columns)))


_NAMES = (Column("demangledName", "name", np.int32), Column("shortName", "short", np.int32))
_DETAIL = Column("copyKind", "detail", np.int32, required=False)
GPU_TABLES = {
    "kernel": _gpu_table("CUPTI_ACTIVITY_KIND_KERNEL", {c.name: c for c in (*_NAMES, _NODE, *_SHAPE)}),
    "memcpy": _gpu_table("CUPTI_ACTIVITY_KIND_MEMCPY", {"detail": _DETAIL, "node": _NODE}),
    "memset": _gpu_table("CUPTI_ACTIVITY_KIND_MEMSET", {"node": _NODE}),
    "graph": _gpu_table(
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", {"detail": Column("graphId", "detail", np.int32, required=False)}
    ),
}
RUNTIME = Table(
    "CUPTI_ACTIVITY_KIND_RUNTIME",
    (*_WHEN, Column("globalTid", "thread"), Column("correlationId", "correlation"), Column("nameId", "name", np.int32)),
)
_NODE_COLUMNS = (
    Column("start", "start"),
    Column("globalTid", "thread", required=False),
    Column("graphNodeId", "node"),
    Column("originalGraphNodeId", "original", required=False),
)
NODE_TABLES = (Table("CUDA_GRAPH_NODE_EVENTS", _NODE_COLUMNS), Table("CUDA_GRAPH_EVENTS", _NODE_COLUMNS))
