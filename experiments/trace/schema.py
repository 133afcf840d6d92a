"""Which tables and columns of an nsys export are read, under which names, and what stands in for an absent value."""

from dataclasses import dataclass

NONE = -1
OPEN_NS = 2**63 - 1
DOMAIN_CREATE = 75
RANGES = "NVTX_EVENTS"
META_TABLES = ("META_DATA_EXPORT", "EXPORT_META_DATA")


@dataclass(frozen=True)
class Column:
    """One column: `source` in the export, `name` here, and `default` for a NULL or an absent optional column."""

    source: str
    name: str
    required: bool = True
    default: int = NONE


@dataclass(frozen=True)
class Table:
    """One table; it may be missing altogether, for nsys leaves out the empty ones."""

    name: str
    columns: tuple[Column, ...]


_WHEN = (Column("start", "start"), Column("end", "end"))
_ROW = (*_WHEN, Column("correlationId", "correlation"), Column("graphNodeId", "node", required=False))
# What many rows have in common. `detail` is the kind of a copy or the id of a graph.
_PLACE = (Column("deviceId", "device"), Column("streamId", "stream"), Column("globalPid", "process"))
_NAMES = (Column("demangledName", "name"), Column("shortName", "short"))
_SHAPE = tuple(
    Column(source, name, required=False, default=0)
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
GPU_TABLES = {
    "kernel": Table("CUPTI_ACTIVITY_KIND_KERNEL", (*_ROW, *_PLACE, *_NAMES, *_SHAPE)),
    "memcpy": Table("CUPTI_ACTIVITY_KIND_MEMCPY", (*_ROW, *_PLACE, Column("copyKind", "detail", required=False))),
    "memset": Table("CUPTI_ACTIVITY_KIND_MEMSET", (*_ROW, *_PLACE)),
    "graph": Table("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", (*_ROW, *_PLACE, Column("graphId", "detail", required=False))),
}
# What a spec's `kind` counts; a CPU has operators in the place of kernels.
KINDS = (*GPU_TABLES, "cpu_op")
ROW = tuple(column.name for column in _ROW)
# Every column of a spec, and what stands in it where a kind of work has no such thing.
SPEC = {"kind": NONE, **{c.name: c.default for c in (*_PLACE, *_NAMES)}, "detail": NONE, **{c.name: 0 for c in _SHAPE}}
RUNTIME = Table(
    "CUPTI_ACTIVITY_KIND_RUNTIME", (*_WHEN, Column("globalTid", "thread"), Column("correlationId", "correlation"))
)
_NODE_COLUMNS = (
    Column("start", "start"),
    Column("globalTid", "thread", required=False),
    Column("graphNodeId", "node"),
    Column("originalGraphNodeId", "original", required=False),
)
NODE_TABLES = (Table("CUDA_GRAPH_NODE_EVENTS", _NODE_COLUMNS), Table("CUDA_GRAPH_EVENTS", _NODE_COLUMNS))
