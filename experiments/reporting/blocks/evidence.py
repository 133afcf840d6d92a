"""What was checked without a GPU: the statistics, the numerics gates, the compiled kernels."""

from collections import Counter
from pathlib import Path

from experiments import plain
from experiments.calibration import Calibration
from experiments.kernel_records import GateRun, read_run
from experiments.reporting.blocks.registry import block, markdown, read, unusable
from experiments.reporting.calibrated import calibration_table
from experiments.reporting.formats import Column, Kind, to_markdown

CALIBRATION = Path("docs/data/calibration.json")
VALIDATE = Path("docs/data/validate.json")
RESOURCES = Path("docs/data/resources.json")


@block
def calibration(root: Path) -> str:
    """What the analysis made of sweeps with a known truth, as committed by `fusebench calibrate`."""
    if not (root / CALIBRATION).is_file():
        return "No calibration is committed yet: `fusebench calibrate` makes this table.\n"
    found = read(root, CALIBRATION)
    try:
        table = to_markdown(calibration_table([plain.decode(Calibration, row) for row in found["rows"]]))
        protocol = found["protocol"]
        note = (
            f"*Commit {found['commit'][:12]}, {found['created'][:10]}, seed {found['seed']}, {found['cpu']}; at most "
            f"{protocol['rounds']} rounds of {protocol['windows']} windows, points end from {protocol['min_rounds']} "
            f"rounds on at +-{100 * protocol['target_ci']:g} %.*"
        )
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(CALIBRATION, error) from None
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
    made = f"on {stamp.gpu or stamp.machine.cpu}, commit {stamp.code.commit[:12]}, {stamp.created[:10]}"
    return markdown(columns, rows, f"`{stamp.command}` {made}: {counts}.")


@block
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
    caption = f"Compiled for {kept['target']} by Triton {kept['triton']}, commit {kept['commit'][:12]}."
    return markdown(columns, rows, caption)
