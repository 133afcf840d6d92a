"""Tables of the committed GPU run's report: what a step consists of, what fusion changed in it, what it keeps."""

from collections.abc import Collection, Mapping
from pathlib import Path

from experiments.reporting.blocks.headline import NO_RUN, made
from experiments.reporting.blocks.registry import block, markdown, read, read_table, usable
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
# What a fused product or attention has in it.
SMALL_KERNELS = ("rms_norm", "add_rms_norm", "qkv_post", "rope", "store_kv", "silu_mul", "argmax")
NO_KERNELS_OF_A_LAYER = ("embed", "forward")

COMPARED = ("baseline", "fused")

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
def decode_split(root: Path) -> str:
    """What a traced decode step consists of in the baseline and in the fused engine: work, small kernels, idle time."""
    report = _traced(root)
    steps, rows = _rows(root, report, "traces.csv", TRACED), _rows(root, report, "kernel_changes.csv", ("op", *CHANGED))
    caption = _caption(root, report)
    if not rows or caption is None:
        return NO_TRACE if caption else NO_RUN
    names = ("products and attention", "small kernels", "idle", "the traced step")
    columns = (
        Column("cell", "Cell"),
        *(Column(f"{name}_{v}", f"{name.capitalize()}, {v}", Kind.NUMBER) for name in names for v in COMPARED),
    )
    body: list[tuple[Value, ...]] = []
    for cell in dict.fromkeys(_cell(row) for row in steps if row["workload"] == "decode"):
        mine = [row for row in rows if _cell(row) == cell and row["variant"] == COMPARED[1]]
        parts = [_decode_parts(cell, v, us, steps, mine) for v, us in zip(COMPARED, ("baseline_us", "us"), strict=True)]
        body.append((cell, *(part for both in zip(*parts, strict=True) for part in both)))
    return markdown(columns, body, f"µs a step. Small kernels: norms, RoPE, the store, SiLU and the argmax. {caption}")


def _decode_parts(cell: str, variant: str, us: str, steps: list[Row], rows: list[Row]) -> tuple[float, ...]:
    """(products and attention, small kernels, idle, all) of a step, in microseconds."""
    step = next(row for row in steps if _cell(row) == cell and row["variant"] == variant)
    idle_share, small = float(step["idle"]), [row for row in rows if row["op"] in SMALL_KERNELS]
    large = [row for row in rows if row["op"] not in (*SMALL_KERNELS, *NO_KERNELS_OF_A_LAYER)]
    step_us = float(step["busy_us_per_step"]) / (1 - idle_share)
    sums_us = (sum(float(row[us]) for row in group) for group in (large, small))
    return (*sums_us, step_us * idle_share, step_us)


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
    with usable(path):
        return f"{made(read(root, path))}."
