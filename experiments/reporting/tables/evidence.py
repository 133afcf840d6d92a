"""Tables of everything but speed: answers, floors, memory, machine state, and what was not measured."""

import math
from collections import Counter, defaultdict
from statistics import median

from experiments.metrics import METRICS
from experiments.records import Status
from experiments.reporting.formats import Column, Kind, Value
from experiments.reporting.headline import correctness
from experiments.reporting.rows import Analysis, point_of
from experiments.reporting.shards import places
from experiments.reporting.tables.registry import PLACE, VARIANT, Content, labelled, place, table


@table("Answers against the reference", "right")
def numerics(analysis: Analysis) -> Content | None:
    """The worst verdict of each variant: teacher-forced logits against the fp32 reference on the same weights. KL in
    nats per position; agreement is the share of positions whose most likely token is the reference's; divergence is the
    first differing greedy token and the reference's logit margin there."""
    columns = (
        Column("model", "Model"),
        VARIANT,
        Column("ok", "Verdict", Kind.CLAIM),
        Column("positions", "Positions", Kind.COUNT),
        Column("top1_agreement", "Top-1 agreement", Kind.PERCENT),
        Column("kl_mean", "KL mean", Kind.TINY),
        Column("kl_max", "KL worst", Kind.TINY),
        Column("kl_max_position", "at position", Kind.COUNT),
        Column("first_divergence", "First divergence", Kind.COUNT),
        Column("divergence_margin", "Margin there", Kind.TINY),
        Column("invalid_cells", "Invalid cells", Kind.COUNT),
        Column("reason", "Reason"),
    )
    rows: list[tuple[Value, ...]] = []
    for c in correctness(analysis):
        v = c.verdict
        if v is None:
            rows.append((c.model, c.variant, "unchecked", *(None,) * 7, c.num_invalid, "no verdict was recorded"))
            continue
        place_ = (v.first_divergence, v.divergence_margin)
        figures = (v.positions, v.top1_agreement, v.kl_mean, v.kl_max, v.kl_max_position, *place_)
        rows.append((c.model, c.variant, "ok" if c.ok else "invalid", *figures, c.num_invalid, v.reason))
    return Content(columns, rows)


@table("Physical floor of each point", "limit", folded=True, page_rows=300)
def floors(analysis: Analysis) -> Content | None:
    """Least bytes and FLOP by the formulas under How it was measured, over the ceilings measured in this run."""
    columns = (
        *PLACE,
        Column("bytes", "Bytes", Kind.BYTES),
        Column("gflop", "GFLOP", Kind.NUMBER),
        Column("intensity_flop_per_byte", "FLOP per byte", Kind.NUMBER),
        Column("floor_ms", "Floor, ms", Kind.NUMBER),
        Column("bound", "Bound by"),
    )
    rows = [
        (p.model, p.workload, p.batch, p.length, f.bytes, f.flop / 1e9, f.flop / f.bytes, f.floor_ms, f.bound)
        for p, f in sorted(analysis.floors.items())
    ]
    return Content(columns, rows)


@table("Memory", "state", page_rows=300)
def memory(analysis: Analysis) -> Content | None:
    """Peak memory of the largest round of each (point, variant)."""
    peaks: dict[tuple[object, str], dict[str, int]] = defaultdict(dict)
    for result in analysis.run.results:
        for name, bytes_ in result.memory_bytes.items():
            peak = peaks[result.cell.point, result.cell.variant]
            peak[name] = max(bytes_, peak.get(name, 0))
    names = sorted({name for known in peaks.values() for name in known})
    columns = (*PLACE, VARIANT, *(Column(f"{n}_bytes", n.replace("_", " ").capitalize(), Kind.BYTES) for n in names))
    rows = [
        (*place(row), labelled(row.variant, row.kernels), *(known.get(n) for n in names))
        for row in analysis.primary
        if (known := peaks.get((point_of(row), row.variant)))
    ]
    return Content(columns, rows)


@table("Clocks, power and counters", "state", folded=True, page_rows=300)
def telemetry(analysis: Analysis) -> Content | None:
    """Median over rounds of what was read beside each cell: clocks, temperature, power, and the engine's counters."""
    read: dict[tuple[object, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in analysis.run.results:
        for name, value in {**result.clocks, **result.counters}.items():
            if math.isfinite(value):
                read[result.cell.point, result.cell.variant][name].append(value)
    names = sorted({name for known in read.values() for name in known})
    columns = (*PLACE, VARIANT, *(Column(n, n.replace("_", " "), Kind.NUMBER) for n in names))
    rows = [
        (*place(row), row.variant, *(median(known[n]) if n in known else None for n in names))
        for row in analysis.primary
        if (known := read.get((point_of(row), row.variant)))
    ]
    return Content(columns, rows)


@table("Shards", "state")
def shards(analysis: Analysis) -> Content | None:
    """The processes that the run was spread over. All variants and rounds of a point were measured by one of them.
    Those that ran side by side on one host shared its cores, memory and PCIe."""
    columns = (
        Column("shard", "Shard"),
        Column("node", "Node"),
        Column("device", "Device"),
        Column("machine", "Machine"),
        Column("points", "Points", Kind.COUNT),
        Column("cells", "Cells", Kind.COUNT),
        Column("seconds", "Seconds", Kind.NUMBER),
        Column("beside", "Side by side with"),
    )
    rows = [
        (r.id, r.node, r.device, r.machine_type, p.num_points, p.num_cells, p.end - p.start, ", ".join(p.beside))
        for p in places(analysis.run)
        for r in [p.record]
    ]
    return Content(columns, rows) if rows else None


@table("Where the GPU was not itself", "state", page_rows=300)
def gpu_state(analysis: Analysis) -> Content | None:
    """Cells with windows in which the GPU throttled (NVML's names; not the software power cap, which is the work's own)
    or was more than 3 % off its usual SM clock, and cells beside which another process had a context on the GPU. Such
    cells were measured again as often as the protocol allows; what was set aside is kept in the cell's file, and the
    last attempt counts whatever it says."""
    rows: list[tuple[Value, ...]] = []
    for r in analysis.run.results:
        reasons = {flag for attempt in r.set_aside for w in attempt.windows for flag in w.flags} | set(r.flags)
        if not reasons and not r.other_processes:
            continue
        p, flagged = r.cell.point, sum(bool(w.flags) for w in r.windows)
        head = (p.model, p.workload, p.batch, p.length, r.cell.variant, r.cell.round)
        again, why = len(r.set_aside), ", ".join(sorted(reasons))
        rows.append((*head, again, flagged, len(r.windows), r.other_processes, why))
    columns = (
        *PLACE,
        VARIANT,
        Column("round", "Round", Kind.COUNT),
        Column("repeats", "Measured again", Kind.COUNT),
        Column("flagged_windows", "Flagged windows left", Kind.COUNT),
        Column("windows", "of", Kind.COUNT),
        Column("other_processes", "Other processes", Kind.COUNT),
        Column("reason", "Reason"),
    )
    return Content(columns, rows) if rows else None


@table("How the planned cells ended", "missing")
def ledger(analysis: Analysis) -> Content | None:
    """Planned cells, one per point, variant and round, by how they ended. Settled ones were not measured, since earlier
    rounds had made every verdict of their point clear."""
    endings = [*(s.value for s in Status), "settled"]
    counts: dict[str, Counter[str]] = {v: Counter() for v in analysis.run.variants}
    for result in analysis.run.results:
        counts[result.cell.variant]["settled" if result.is_settled else result.status.value] += 1
    columns = (
        VARIANT,
        Column("planned", "Planned", Kind.COUNT),
        *(Column(ending, ending, Kind.COUNT) for ending in endings),
    )
    return Content(columns, [(v, c.total(), *(c[ending] for ending in endings)) for v, c in counts.items()])


@table("Every cell that is not ok", "missing")
def not_ok(analysis: Analysis) -> Content | None:
    """Nothing planned is left out: what failed, in which rounds, and why."""
    groups: dict[tuple[object, str, Status, str], list[int]] = defaultdict(list)
    for result in analysis.run.results:
        if result.status is not Status.OK and not result.is_settled:
            groups[result.cell.point, result.cell.variant, result.status, result.reason].append(result.cell.round)
    rows: list[tuple[Value, ...]] = []
    for (point, variant, status, reason), rounds in groups.items():
        where = tuple(getattr(point, key) for key in ("model", "workload", "batch", "length"))
        rows.append((*where, variant, status.value, ", ".join(map(str, rounds)), reason or "no reason was recorded"))
    known = {(point, variant) for point, variant, _, _ in groups}
    for row in analysis.primary:
        if row.status is not Status.OK and (point_of(row), row.variant) not in known:
            rows.append((*place(row), row.variant, row.status.value, "any", row.reason))
    columns = (
        *PLACE,
        VARIANT,
        Column("status", "Status", Kind.CLAIM),
        Column("rounds", "Rounds"),
        Column("reason", "Reason"),
    )
    return Content(columns, rows)


@table("Metrics", "methods", folded=True)
def definitions(analysis: Analysis) -> Content | None:
    """What each metric means, and which direction is better."""
    used = {r.metric for r in analysis.rows}
    columns = (
        Column("metric", "Metric"),
        Column("unit", "Unit"),
        Column("better", "Better"),
        Column("definition", "Definition"),
    )
    return Content(
        columns, [(m.name, m.unit, m.better.value, m.definition) for m in METRICS.values() if m.name in used]
    )
