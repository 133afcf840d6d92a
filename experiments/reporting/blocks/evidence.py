"""What was checked: the statistics, the numerics gates, the compiled kernels, what compute-sanitizer found."""

from collections import Counter
from pathlib import Path

from experiments import plain
from experiments.calibration import Calibration
from experiments.kernel_records import PLANTED, GateRun, SanitizeRun, Watched, read_run
from experiments.reporting.blocks.registry import block, markdown, read, usable
from experiments.reporting.calibrated import calibration_table
from experiments.reporting.formats import Column, Kind, provenance, revision, to_markdown

CALIBRATION = Path("docs/data/calibration.json")
VALIDATE = Path("docs/data/validate.json")
RESOURCES = Path("docs/data/resources.json")
SANITIZE = Path("docs/data/sanitize.json")
OVERHEAD = Path("docs/data/overhead.json")


@block
@usable(CALIBRATION)
def calibration(root: Path) -> str:
    """What the analysis made of sweeps with a known truth, as committed by `fusebench calibrate`."""
    if not (root / CALIBRATION).is_file():
        return "No calibration is committed yet: `fusebench calibrate` makes this table.\n"
    found = read(root, CALIBRATION)
    table = to_markdown(calibration_table([plain.decode(Calibration, row) for row in found["rows"]]))
    protocol = found["protocol"]
    note = (
        f"*{provenance(found['commit'], found['created']).capitalize()}, seed {found['seed']}, {found['cpu']}; at most "
        f"{protocol['rounds']} rounds of {protocol['windows']} windows, points end from {protocol['min_rounds']} "
        f"rounds on at +-{100 * protocol['target_ci']:g} %.*"
    )
    return f"{table}\n{note}\n"


@block
def gates(root: Path) -> str:
    """Errors that `fusebench validate` found: of kernels against float64, of variants against the fp32 reference."""
    run = read_run(GateRun, root / VALIDATE)
    columns = (
        Column("subject", "Kernel or variant"),
        Column("kernels", "Ran as"),
        Column("dtype", "Dtype"),
        Column("gate", "Error"),
        Column("figure", "Worst", Kind.TINY),
        Column("bound", "Bound", Kind.TINY),
        Column("unfused", "Unfused path", Kind.TINY),
    )
    titles = {"relative error against float64": "relative", "mean KL, nats, and what else decides": "mean KL, nats"}
    rows = [
        (row.subject, row.kernels, row.dtype, titles[row.gate], row.figure, row.bound, row.unfused)
        for row in run.rows
        if row.gate in titles
    ]
    ended, stamp = Counter(row.status.value for row in run.rows), run.stamp
    counts = ", ".join(f"{count} {status}" for status, count in sorted(ended.items()))
    made = f"on {stamp.gpu or stamp.machine.cpu}, {provenance(stamp.code.commit, stamp.created)}"
    return markdown(columns, rows, f"`{stamp.command}` {made}: {counts}.")


@block
@usable(OVERHEAD)
def overhead(root: Path) -> str:
    """What the harness adds to a decode step at batch 1, measured by leaving it out."""
    if not (root / OVERHEAD).is_file():
        return "No H200 measurement is committed yet: `.ci/gpu overhead` on one makes results/overhead.json.\n"
    kept = read(root, OVERHEAD)
    columns = (
        Column("variant", "Variant"),
        Column("bare", "Bare step, µs", Kind.NUMBER),
        Column("timed", "Timed step, µs", Kind.NUMBER),
        Column("added", "Added, µs", Kind.NUMBER),
        Column("share", "Share"),
        Column("interval", "95 % interval"),
        Column("guard", "Outside the clock, µs a window", Kind.NUMBER),
    )
    rows = [
        (
            *(row[name] for name in ("variant", "bare_us", "timed_us", "added_us")),
            _share(row["ratio"]),
            f"{_share(row['ratio_low'])} to {_share(row['ratio_high'])}",
            row["guard_us"],
        )
        for row in kept["rows"]
    ]
    pairs = len(kept["rows"][0]["pairs"])
    caption = (
        f"{kept['gpu'] or 'a CPU'}, {kept['model']}, one sequence from {kept['context']} tokens on, {pairs} pairs "
        f"of windows of {kept['steps']} steps, {provenance(kept['commit'], kept['created'])}."
    )
    return markdown(columns, rows, caption)


def _share(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.3f} %"


@block
@usable(RESOURCES)
def resources(root: Path) -> str:
    """Registers and shared memory of every kernel, compiled for sm_90 without a GPU."""
    kept = read(root, RESOURCES)
    columns = (
        Column("kernel", "Kernel and shape"),
        Column("registers", "Registers a thread", Kind.COUNT),
        Column("stack_bytes", "Spilled bytes", Kind.COUNT),
        Column("shared_kib", "Shared memory, KiB", Kind.NUMBER),
    )
    rows = [
        (row["name"], row["registers"], row["stack_bytes"], row["shared_bytes"] / 1024)
        for group in ("baseline", "fused")
        for row in kept[group]
    ]
    caption = f"Compiled for {kept['target']} by Triton {kept['triton']}, {revision(kept['commit'])}."
    return markdown(columns, rows, caption)


@block
def sanitizer(root: Path) -> str:
    """What compute-sanitizer found in every kernel, by section and tool."""
    if not (root / SANITIZE).is_file():
        return "No run on a GPU is committed yet: `fusebench sanitize` makes this table.\n"
    run = read_run(SanitizeRun, root / SANITIZE)
    columns = (
        Column("section", "Launched"),
        Column("tool", "Tool"),
        Column("kernels", "Kernels", Kind.COUNT),
        Column("launches", "Launches", Kind.COUNT),
        Column("errors", "Errors", Kind.COUNT),
        Column("warnings", "Warnings", Kind.COUNT),
        Column("said", "First words"),
    )
    rows = [
        (row.section, row.tool or "none", len(row.launches), sum(row.launches.values()), row.errors, row.warnings,
         "" if row.clean else _named(row))
        for row in run.rows
    ]  # fmt: skip
    names, stamp = sorted({f"`{name}`" for row in run.rows for name in row.launches}), run.stamp
    made = f"{stamp.gpu}, {provenance(stamp.code.commit, stamp.created)}"
    caption = (
        f"`{stamp.command}`, compute-sanitizer {run.version}, {made}. No number of errors: it did not end. Kernels: "
        f"{', '.join(names) or 'none'}."
    )
    if any(row.section == PLANTED for row in run.rows):
        caption += " What is reported of `controls` is a false alarm; in `planted` two kernels race on purpose."
    return markdown(columns, rows, caption)


def _named(row: Watched) -> str:
    """How many reports are of which kernel; without any, the first words."""
    return ", ".join(f"{kernel}: {count}" for kernel, count in row.reported.items()) or "".join(row.said[:1])
