"""From attributed device work to the ledger of one cell: sums by group, the union of busy time, the gaps."""

from dataclasses import replace

import numpy as np

from experiments.errors import UserError
from experiments.messages import TracedRun
from experiments.records import Cell
from experiments.trace.attribution import FORWARD, Attribution, Owner
from experiments.trace.grouping import blocks, group_codes, narrowed
from experiments.trace.ledger import SCHEMA, Gaps, Ledger, Part
from experiments.trace.parts import host_ms, parts_of
from experiments.trace.reader import Trace
from experiments.trace.rows import Window, folded, kernel_rows, timeline
from experiments.trace.schema import KINDS, NONE
from experiments.trace.union import Busy, union

_KERNELS = (KINDS.index("kernel"), KINDS.index("cpu_op"))
_COPY_KINDS = (KINDS.index("memcpy"), KINDS.index("memset"))


def make_ledger(
    trace: Trace,
    attribution: Attribution,
    profiler: str,
    cell: Cell | None = None,
    steps: int | None = None,
    untraced_step_ms: float | None = None,
    note: str = "",
    run: TracedRun | None = None,
) -> Ledger:
    """Sum up one cell. Without step ranges the whole trace counts as the window and `steps` is 0.

    Only the cell's own steps count if the trace has cell ranges, and only those replayed if it has such a range. What
    the worker calls one step may take several of the engine's (a prompt in chunks): `steps` says how many it made.
    A whole `run` adds what is said of it (see `with_run`). UserError for a trace without any device work.
    """
    if not len(attribution.work):
        raise UserError("the trace holds no device work: no kernel ran inside the window")
    window = _window(trace, attribution, cell)
    busy = union(window.start, window.end, window.device)
    duration_ns = int(window.duration.sum())
    engine_steps = len(np.unique(window.step[window.step != NONE]))
    num_steps = min(steps, engine_steps) if steps else engine_steps
    per, devices = max(num_steps, 1), len(np.unique(window.device))
    kernels = np.isin(trace.specs["kind"].to_numpy(), _KERNELS)[window.spec]
    copies = np.isin(trace.specs["kind"].to_numpy(), _COPY_KINDS)[window.spec]
    opening = _opening_rows(window, copies)
    step_ms = _step_ms(window, busy, max(1, engine_steps // per))
    launched = np.zeros(len(trace.calls), dtype=bool)
    launched[window.call[window.call != NONE]] = True
    ledger = Ledger(
        schema=SCHEMA,
        cell=cell,
        profiler=profiler,
        profiler_version=trace.product,
        export_schema=trace.schema,
        coverage=float(window.duration[window.covered].sum() / max(duration_ns, 1)),
        window_ms=busy.window_ns / 1e6,
        busy_ms=busy.busy_ns / 1e6,
        gap_ms=(busy.window_ns - busy.busy_ns) / 1e6,
        overlap_ms=(duration_ns - busy.busy_ns) / 1e6,
        outside_ms=(window.total_ns - duration_ns) / 1e6,
        devices=devices,
        steps=num_steps,
        kernels_per_step=float(kernels.sum() / (per * devices)),
        launches_per_step=int(launched.sum()) / (per * devices),
        traced_step_ms=step_ms,
        untraced_step_ms=untraced_step_ms,
        inflation=step_ms / untraced_step_ms if untraced_step_ms else None,
        gaps=_gaps(busy, opening),
        kernels=kernel_rows(window, trace),
        timeline=timeline(window, trace),
        note=note,
        backward_rows=int((window.duration < 0).sum()),
    )
    return with_run(ledger, run, parts_of(run, window, busy, opening), host_ms(trace)) if run else ledger


def with_run(ledger: Ledger, run: TracedRun, parts: list[Part], host_ms: dict[str, float]) -> Ledger:
    """The ledger of a whole run: its kinds of steps apart, and rows without layers and shapes."""
    return replace(
        ledger, kernels=folded(ledger.kernels), parts=parts, output_tokens=run.output_tokens, run_ms=run.run_ms,
        host_ms=host_ms,
    )  # fmt: skip


def _window(trace: Trace, attribution: Attribution, cell: Cell | None) -> Window:
    work, owners = attribution.work, attribution.owners
    launch, place, spec = (work[name].to_numpy() for name in ("launch", "place", "spec"))
    steps = np.where(_counts(owners, cell)[launch], work["step"].to_numpy(), NONE)
    start, end = work["start"].to_numpy(), work["end"].to_numpy()
    total_ns = int((end - start).sum())
    chosen: slice | np.ndarray = slice(None)
    if (steps != NONE).any():
        first, last = start[(steps != NONE).argmax()], end.max(where=steps != NONE, initial=np.iinfo(end.dtype).min)
        chosen = _as_slice((end > first) & (start < last))
        # Work of others that only reaches into the window counts as far as it does.
        start, end = np.maximum(start, first), np.minimum(end, last)
    says = np.array([owner.has_place for owner in owners])[place]
    elsewhere = np.array([owner.phase not in (None, FORWARD) for owner in owners])[launch]
    # A copy or a set is named by what it is, as long as a step made it.
    copies = np.isin(trace.specs["kind"].to_numpy(), _COPY_KINDS)[spec]
    phases, phase_values = attribution.values("phase")
    layers, layer_values = attribution.values("layer")
    ops, op_values = attribution.values("op")
    return Window(
        start=start[chosen],
        end=end[chosen],
        spec=spec[chosen],
        device=narrowed(trace.specs["device"].to_numpy())[spec[chosen]],
        call=work["call"].to_numpy()[chosen],
        step=steps[chosen],
        covered=(says | elsewhere | (copies & (steps != NONE)))[chosen],
        phase=phases[launch[chosen]],
        layer=layers[place[chosen]],
        op=ops[place[chosen]],
        values={"phase": phase_values, "layer": layer_values, "op": op_values},
        total_ns=total_ns,
    )


def _as_slice(chosen: np.ndarray) -> slice | np.ndarray:
    """The same rows as a slice, where there is nothing between them, for a slice copies nothing."""
    span = slice(int(chosen.argmax()), len(chosen) - int(chosen[::-1].argmax()))
    return span if chosen[span].all() else chosen


def _counts(owners: list[Owner], cell: Cell | None) -> np.ndarray:
    """Of each owner, whether a step of its counts."""
    replays = any(owner.replay for owner in owners)
    cell_id = cell.id if cell and cell.id in {owner.cell for owner in owners} else None
    return np.array([(owner.replay or not replays) and cell_id in (None, owner.cell) for owner in owners])


def _first_rows(window: Window, chosen: np.ndarray) -> dict[tuple[int, int], int]:
    """(device, step) -> its first row of those that are chosen."""
    firsts: dict[tuple[int, int], int] = {}
    for block in blocks(len(window.step)):
        rows = np.flatnonzero(chosen[block] & (window.step[block] != NONE)) + block.start
        columns = window.device[rows], window.step[rows]
        _, places = group_codes(columns, len(rows))
        for row, *key in zip(*(values[places].tolist() for values in (rows, *columns)), strict=True):
            firsts.setdefault((key[0], key[1]), row)
    return firsts


def _opening_rows(window: Window, copies: np.ndarray) -> np.ndarray:
    """Every step's rows up to its first kernel, on each device: one that has its inputs alone still waits for the
    host."""
    firsts = _first_rows(window, ~copies)
    rows = np.flatnonzero(copies & (window.step != NONE))
    keys = zip(window.device[rows].tolist(), window.step[rows].tolist(), strict=True)
    inputs = (row for row, key in zip(rows.tolist(), keys, strict=True) if row < firsts.get(key, len(window.step)))
    return np.array([*firsts.values(), *inputs], dtype=np.int64)


def _gaps(busy: Busy, opening: np.ndarray) -> Gaps:
    """A gap lies between steps when the work after it opens one."""
    between = np.isin(busy.gap_row, opening)
    return Gaps(
        within_steps_us=float(busy.gap_ns[~between].sum() / 1e3),
        between_steps_us=float(busy.gap_ns[between].sum() / 1e3),
        count=len(busy.gap_ns),
        median_us=float(np.median(busy.gap_ns) / 1e3) if len(busy.gap_ns) else 0.0,
        max_us=float(busy.gap_ns.max() / 1e3) if len(busy.gap_ns) else 0.0,
    )


def _step_ms(window: Window, busy: Busy, stride: int) -> float:
    """The median distance between the first work of two steps in a row; the mean window where there is one step.

    `stride` of the engine's steps make one.
    """
    firsts = np.array(sorted(_first_rows(window, window.step != NONE).values()), dtype=np.int64)
    devices = np.unique(window.device)
    starts = [window.start[firsts[window.device[firsts] == device]][::stride] for device in devices]
    distances = np.concatenate([np.diff(own) for own in starts])
    return float(np.median(distances) / 1e6) if len(distances) else busy.window_ns / len(devices) / 1e6
