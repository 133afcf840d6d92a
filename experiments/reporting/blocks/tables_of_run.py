"""Tables of the committed GPU run's report: what a step consists of, what fusion changed in it, what it keeps."""

from collections.abc import Collection, Mapping
from pathlib import Path

from experiments.reporting.blocks.headline import NO_RUN
from experiments.reporting.blocks.registry import block, markdown, read, read_table
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import Column, Kind, Value

HEADLINE = Path("reports/headline")
# A headline run that was traced: its report stays when a newer one was not.
TRACED_RUN = Path("reports/traced")
NO_TRACE = "No trace of an H200 run is committed yet: `fusebench trace experiment=headline` on one makes this table.\n"
TRACED_BY = "Nsight Systems with CUDA-graph node tracing; a trace feeds no timing."
# Operations that gained or lost less than this share of the baseline's busy time are left out.
LEAST_SHARE = 0.005

PLACE = ("model", "workload", "batch", "length", "variant")
TRACED = ("launches_per_step", "busy_us_per_step", "idle", "closure", "coverage", "inflation")
CHANGED = ("baseline_launches", "launches", "baseline_us", "us", "saved_us")
ALLOCATED = "allocated_bytes"

Row = Mapping[str, str]


@block
def traces(root: Path) -> str:
    """Each traced cell: launches, busy and idle time, how much was attributed, how much tracing cost."""
    report = _traced(root)
    rows, caption = _rows(root, report, "traces.csv", TRACED), _caption(root, report)
    if not rows or caption is None:
        return NO_TRACE if caption else NO_RUN
    columns = (
        Column("cell", "Cell"),
        Column("variant", "Variant"),
        Column("launches", "Launches a step", Kind.NUMBER),
        Column("busy", "Busy, µs a step", Kind.NUMBER),
        Column("idle", "Idle", Kind.PERCENT),
        Column("closure", "Kernels + idle", Kind.PERCENT),
        Column("coverage", "Attributed", Kind.PERCENT),
        Column("inflation", "Traced over untraced", Kind.RATIO),
    )
    body = [(_cell(row), row["variant"], *(float(row[name]) if row[name] else None for name in TRACED)) for row in rows]
    return markdown(columns, body, f"{caption} {TRACED_BY}")


@block
def changes(root: Path) -> str:
    """Device time by operation in the baseline and in the fused engine, where it differs."""
    report = _traced(root)
    rows, caption = _rows(root, report, "kernel_changes.csv", ("op", *CHANGED)), _caption(root, report)
    if not rows or caption is None:
        return NO_TRACE if caption else NO_RUN
    columns = (
        Column("cell", "Cell"),
        Column("op", "Operation"),
        Column("launches", "Launches, baseline", Kind.NUMBER),
        Column("launches_now", "fused", Kind.NUMBER),
        Column("us", "µs a step, baseline", Kind.NUMBER),
        Column("us_now", "fused", Kind.NUMBER),
        Column("saved", "µs saved", Kind.NUMBER),
    )
    busy: dict[str, float] = {}
    for row in rows:
        busy[_cell(row)] = busy.get(_cell(row), 0.0) + float(row["baseline_us"])
    body: list[tuple[Value, ...]] = [
        (_cell(row), row["op"], *(float(row[name]) for name in CHANGED))
        for row in rows
        if row["variant"] == "fused" and abs(float(row["saved_us"])) >= LEAST_SHARE * busy[_cell(row)]
    ]
    return markdown(columns, body, f"{caption} {TRACED_BY}")


@block
def memory(root: Path) -> str:
    """Peak memory that PyTorch had allocated, by variant."""
    rows, caption = _rows(root, HEADLINE, "memory.csv", (ALLOCATED,)), _caption(root, HEADLINE)
    if not rows or caption is None:
        return NO_RUN
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    peak = {(_cell(row), row["variant"]): float(row[ALLOCATED]) for row in rows if row[ALLOCATED]}
    columns = (Column("cell", "Cell"), *(Column(v, v, Kind.BYTES) for v in variants))
    body: list[tuple[Value, ...]] = [
        (cell, *(peak.get((cell, variant)) for variant in variants)) for cell in dict.fromkeys(map(_cell, rows))
    ]
    return markdown(columns, body, f"Weights, cache of the cell and activations. {caption}")


def _cell(row: Row) -> str:
    return cell_name(row["model"], row["workload"], int(row["batch"]), int(row["length"]))


def _traced(root: Path) -> Path:
    """The headline's report where it has a traced cell, else that of the last one that had."""
    return HEADLINE if _rows(root, HEADLINE, "traces.csv", TRACED) or not (root / TRACED_RUN).is_dir() else TRACED_RUN


def _rows(root: Path, report: Path, name: str, needed: Collection[str]) -> list[Row]:
    """The rows of one of a report's tables with these columns, and those that name the cell."""
    return [*read_table(root, report / "tables" / name, (*PLACE, *needed))]


def _caption(root: Path, report: Path) -> str | None:
    path = report / "summary.json"
    if not (root / path).is_file():
        return None
    summary = read(root, path)
    return (
        f"{summary['gpu']}, {summary['dtype']}, commit {summary['commit'][:12]}, {summary['created'][:10]}, run "
        f"{summary['run_id']}."
    )
