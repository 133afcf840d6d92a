"""The committed GPU run, alone and beside the goals."""

from pathlib import Path
from typing import Any

from experiments.config import BASELINE
from experiments.metrics import METRICS
from experiments.reporting.blocks.registry import block, markdown, read, unusable
from experiments.reporting.compact import cell_name, compact_table, lead_of
from experiments.reporting.formats import Column, Kind, to_markdown

HEADLINE = Path("reports/headline/summary.json")
TENSOR_PARALLEL = Path("reports/tensor_parallel/summary.json")
GOALS = Path("docs/data/goals.json")
NO_RUN = "No H200 run is committed yet: `fusebench sweep experiment=headline` on one makes this table.\n"


@block
def headline(root: Path) -> str:
    """Every cell of the committed H200 run: time by variant, speed-up with interval, share of the floor."""
    return _run_table(root, HEADLINE)


@block
def tensor_parallel(root: Path) -> str:
    """The committed run of one GPU against two."""
    return _run_table(root, TENSOR_PARALLEL)


@block
def goals(root: Path) -> str:
    """The cells of the goals: the peers as quoted, the bars, and `fused` of the committed run beside them."""
    quoted, summary = read(root, GOALS), summary_of_run(root)
    results = summary["rows"] if summary else []
    measured = {
        # A prefill beyond some models' positions is a workload of its own.
        (row["model"], row["workload"].removesuffix("_long"), row["batch"], row["context"]): row["median"]
        for row in results
        if row["variant"] == lead_of(results) and METRICS[row["metric"]].primary
    }
    columns = (
        Column("cell", "Cell"),
        Column("vllm", "vLLM 0.26", Kind.NUMBER),
        Column("nano_vllm", "nano-vLLM", Kind.NUMBER),
        Column("bar", "first bar", Kind.NUMBER),
        Column("goal", "goal", Kind.NUMBER),
        Column("fused", "fused", Kind.NUMBER),
    )
    rows = []
    for cell in quoted["cells"]:
        place = (cell["model"], cell["workload"], cell["batch"], cell["context"])
        rows.append(
            (cell_name(*place), cell["vllm"], cell["nano_vllm"], cell["bar"], cell["goal"], measured.get(place))
        )
    run = "no H200 run is committed yet" if summary is None else f"run {summary['run_id']}"
    caption = f"Decode and prefill in ms, offline in output tokens/s; fused: {run}. {quoted['source']}"
    return markdown(columns, rows, caption)


def _run_table(root: Path, path: Path) -> str:
    if not (root / path).is_file():
        return NO_RUN.replace("headline", path.parent.name)
    summary = read(root, path)
    try:
        return f"{to_markdown(compact_table(summary['rows']))}\n{_caption(summary)}\n"
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(path, error) from None


def _caption(summary: dict[str, Any]) -> str:
    machine = summary["gpu"] or "a CPU, kernels as plain-PyTorch twins: no speed is claimed"
    dirty = " with uncommitted changes" if summary["dirty"] else ""
    lead = lead_of(summary["rows"])
    return (
        f"*{machine}, {summary['dtype']}, commit {summary['commit'][:12]}{dirty}, {summary['created'][:10]}, run "
        f"{summary['run_id']}. Decode in ms per step, prefill in ms to the first token, offline in output tokens/s. "
        f"Speed-up with its 95 % interval, verdict and share of the physical floor are those of `{lead}` over "
        f"`{BASELINE}`.*"
    )


def summary_of_run(root: Path) -> dict[str, Any] | None:
    """The committed report's summary.json, or None where no run is committed."""
    return read(root, HEADLINE) if (root / HEADLINE).is_file() else None
