"""From attributed device work to the ledger of one cell: sums by group, the union of busy time, the gaps."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.errors import UserError
from experiments.records import Cell
from experiments.trace.attribution import FORWARD, Attribution, Owner
from experiments.trace.ledger import SCHEMA, Gaps, KernelRow, Ledger, TimelineRow
from experiments.trace.reader import Trace
from experiments.trace.schema import GPU_TABLES, NONE

KINDS = (*GPU_TABLES, "cpu_op")
_KERNELS = (KINDS.index("kernel"), KINDS.index("cpu_op"))
_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "PtoP"}
_LAUNCH_SHAPE = ["grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "registers", "shared"]


@dataclass(frozen=True)
class Busy:
    """The union of intervals on each device: busy and window nanoseconds, and every gap with the row after it."""

    busy_ns: int
    window_ns: int
    gap_ns: np.ndarray
    gap_row: np.ndarray


def make_ledger(
    trace: Trace,
    attribution: Attribution,
    profiler: str,
    cell: Cell | None = None,
    steps: int | None = None,
    untraced_step_ms: float | None = None,
    note: str = "",
) -> Ledger:
    """Sum up one cell. Without step ranges the whole trace counts as the window and `steps` is 0.

    Only the cell's own steps count if the trace has cell ranges, and only those replayed if it has such a range. What
    the worker calls one step may take several of the engine's (a prompt in chunks): `steps` says how many it made.
    UserError for a trace without any device work.
    """
    if not len(attribution.work):
        raise UserError("the trace holds no device work: no kernel ran inside the window")
    work, total_ns = _in_window(attribution, cell)
    busy = union(work)
    duration_ns = int(work["duration"].sum())
    engine_steps = int(work.loc[work["step"] != NONE, "step"].nunique())
    num_steps = min(steps, engine_steps) if steps else engine_steps
    per = max(num_steps, 1)
    step_ms = _step_ms(work, busy, max(1, engine_steps // per))
    return Ledger(
        schema=SCHEMA,
        cell=cell,
        profiler=profiler,
        profiler_version=trace.product,
        export_schema=trace.schema,
        coverage=float(work.loc[work["covered"], "duration"].sum() / max(duration_ns, 1)),
        window_ms=busy.window_ns / 1e6,
        busy_ms=busy.busy_ns / 1e6,
        gap_ms=(busy.window_ns - busy.busy_ns) / 1e6,
        overlap_ms=(duration_ns - busy.busy_ns) / 1e6,
        outside_ms=(total_ns - duration_ns) / 1e6,
        devices=int(work["device"].nunique()),
        steps=num_steps,
        kernels_per_step=float(work["kind"].isin(_KERNELS).sum() / per),
        launches_per_step=float(work.loc[work["call"] != NONE, "call"].nunique() / per),
        traced_step_ms=step_ms,
        untraced_step_ms=untraced_step_ms,
        inflation=step_ms / untraced_step_ms if untraced_step_ms else None,
        gaps=_gaps(work, busy),
        kernels=_kernel_rows(work, trace.strings, attribution),
        timeline=_timeline(work, trace.strings, attribution),
        note=note,
    )


def _in_window(attribution: Attribution, cell: Cell | None) -> tuple[pd.DataFrame, int]:
    """The work of the window, with its owners' fields as columns (codes), and the nanoseconds of all work there is."""
    work, owners = attribution.work, attribution.owners
    launch, place = work["launch"].to_numpy(), work["place"].to_numpy()
    steps = np.array([NONE if step is None else step for step in _counted_steps(owners, cell)])[launch]
    start, end = work["start"].to_numpy(), work["end"].to_numpy()
    chosen = np.ones(len(work), dtype=bool)
    if (steps != NONE).any():
        first, last = start[steps != NONE].min(), end[steps != NONE].max()
        chosen = (end > first) & (start < last)
    says = np.array([owner.has_place for owner in owners])[place]
    elsewhere = np.array([owner.phase not in (None, FORWARD) for owner in owners])[launch]
    # A copy or a set is named by what it is, as long as a step made it.
    copies = np.isin(work["kind"].to_numpy(), (KINDS.index("memcpy"), KINDS.index("memset")))
    window = work.assign(
        step=steps,
        duration=end - start,
        covered=says | elsewhere | (copies & (steps != NONE)),
        shared=work["static_shared"] + work["dynamic_shared"],
        phase=attribution.codes("launch", "phase")[0],
        layer=attribution.codes("place", "layer")[0],
        op=attribution.codes("place", "op")[0],
    )
    return window[chosen].reset_index(drop=True), int((end - start).sum())


def _counted_steps(owners: list[Owner], cell: Cell | None) -> list[int | None]:
    """Of each owner, the step if it counts."""
    replays = any(owner.replay for owner in owners)
    cell_id = cell.id if cell and cell.id in {owner.cell for owner in owners} else None
    return [owner.step if owner.replay >= replays and cell_id in (None, owner.cell) else None for owner in owners]


def union(work: pd.DataFrame) -> Busy:
    """Unite the intervals of each device. `work` has start, end and device, and is in order of start."""
    busy_ns = window_ns = 0
    gaps: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    device = work["device"].to_numpy()
    for one in np.unique(device):
        chosen = np.flatnonzero(device == one)
        start, reach = work["start"].to_numpy()[chosen], np.maximum.accumulate(work["end"].to_numpy()[chosen])
        idle = np.maximum(start[1:] - reach[:-1], 0)
        window_ns += int(reach[-1] - start[0])
        busy_ns += int(reach[-1] - start[0] - idle.sum())
        after = np.flatnonzero(idle)
        gaps.append(idle[after])
        rows.append(chosen[after + 1])
    return Busy(busy_ns, window_ns, np.concatenate(gaps), np.concatenate(rows))


def _gaps(work: pd.DataFrame, busy: Busy) -> Gaps:
    """A gap lies between steps when the work after it is the first of its step on its device."""
    first = ~work.duplicated(["device", "step"]).to_numpy() & (work["step"].to_numpy() != NONE)
    between = first[busy.gap_row]
    return Gaps(
        within_steps_us=float(busy.gap_ns[~between].sum() / 1e3),
        between_steps_us=float(busy.gap_ns[between].sum() / 1e3),
        count=len(busy.gap_ns),
        median_us=float(np.median(busy.gap_ns) / 1e3) if len(busy.gap_ns) else 0.0,
        max_us=float(busy.gap_ns.max() / 1e3) if len(busy.gap_ns) else 0.0,
    )


def _step_ms(work: pd.DataFrame, busy: Busy, stride: int) -> float:
    """The median distance between the first work of two steps in a row; the mean window where there is one step.

    `stride` of the engine's steps make one.
    """
    starts = work[work["step"] != NONE].groupby(["device", "step"])["start"].min()
    distances = [np.diff(np.sort(one.to_numpy())[::stride]) for _, one in starts.groupby("device")]
    if distances and len(distances[0]):
        return float(np.median(np.concatenate(distances)) / 1e6)
    return busy.window_ns / work["device"].nunique() / 1e6


def _kernel_rows(work: pd.DataFrame, strings: dict[int, str], attribution: Attribution) -> list[KernelRow]:
    keys = ["kind", "name", "short", "detail", "phase", "layer", "op", "covered", *_LAUNCH_SHAPE]
    sums = work.groupby(keys, sort=False)["duration"].agg(["size", "sum"]).reset_index()
    phases, layers, ops = (attribution.codes("place", field)[1] for field in ("phase", "layer", "op"))
    rows = []
    for group in sums.to_dict("records"):
        name, signature = _names(group["kind"], group["name"], group["short"], group["detail"], strings)
        rows.append(
            KernelRow(
                name=name,
                kind=KINDS[group["kind"]],
                phase=_text(phases[group["phase"]]),
                layer=_text(layers[group["layer"]]),
                op=_text(ops[group["op"]]),
                count=int(group["size"]),
                total_us=int(group["sum"]) / 1e3,
                grid=[int(group[axis]) for axis in ("grid_x", "grid_y", "grid_z")],
                block=[int(group[axis]) for axis in ("block_x", "block_y", "block_z")],
                registers=int(group["registers"]),
                shared_bytes=int(group["shared"]),
                covered=bool(group["covered"]),
                signature=signature if signature != name else "",
            )
        )
    return sorted(rows, key=lambda row: (-row.total_us, row.name, row.layer or "", row.op or "", row.phase or ""))


def _timeline(work: pd.DataFrame, strings: dict[int, str], attribution: Attribution) -> list[TimelineRow]:
    """The step in the middle, on the first device; nothing where there are no steps."""
    steps = np.unique(work.loc[work["step"] != NONE, "step"].to_numpy())
    if not len(steps):
        return []
    chosen = work[(work["step"] == steps[len(steps) // 2]) & (work["device"] == work["device"].min())]
    phases, layers, ops = (attribution.codes("place", field)[1] for field in ("phase", "layer", "op"))
    origin = int(chosen["start"].min()) if len(chosen) else 0
    return [
        TimelineRow(
            start_us=(row["start"] - origin) / 1e3,
            duration_us=row["duration"] / 1e3,
            name=_names(row["kind"], row["name"], row["short"], row["detail"], strings)[0],
            phase=_text(phases[row["phase"]]),
            layer=_text(layers[row["layer"]]),
            op=_text(ops[row["op"]]),
            stream=int(row["stream"]),
        )
        for row in chosen.to_dict("records")
    ]


def _names(kind: int, name: int, short: int, detail: int, strings: dict[int, str]) -> tuple[str, str]:
    """The short and the full name of a piece of work."""
    if KINDS[kind] == "memcpy":
        text = f"[memcpy {_COPIES.get(detail, detail)}]"
    elif KINDS[kind] == "memset":
        text = "[memset]"
    elif KINDS[kind] == "graph":
        text = f"[graph {detail}]"
    else:
        return strings.get(short, "?"), strings.get(name, "?")
    return text, text


def _text(value: object) -> str | None:
    return None if value is None else str(value)
