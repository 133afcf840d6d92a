"""What the documents show between their `generated` markers: each block a function of files that are committed."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import plain
from experiments.calibration import Calibration
from experiments.compose import load_yaml, names
from experiments.config import BASELINE
from experiments.durable import Damaged, read_json
from experiments.errors import UserError
from experiments.floors import decode_work
from experiments.kernel_records import GateRun, read_run
from experiments.metrics import METRICS
from experiments.reporting.calibrated import calibration_table
from experiments.reporting.compact import cell_name, compact_table, lead_of
from experiments.reporting.formats import Column, Kind, Table, Value, to_markdown

HEADLINE = Path("reports/headline/summary.json")
TRAFFIC = Path("docs/data/traffic.json")
GOALS = Path("docs/data/goals.json")
CALIBRATION = Path("docs/data/calibration.json")
VALIDATE = Path("docs/data/validate.json")
RESOURCES = Path("docs/data/resources.json")
NO_RUN = "No H200 run is committed yet: `fusebench sweep experiment=headline` on one makes this table.\n"
BF16_BYTES = 2

Block = Callable[[Path], str]
BLOCKS: dict[str, Block] = {}


def block(make: Block) -> Block:
    """Register the decorated function, from the repository's root to Markdown, under its name."""
    BLOCKS[make.__name__] = make
    return make


@block
def headline(root: Path) -> str:
    """Every cell of the committed H200 run: time by variant, speed-up with interval, share of the floor."""
    summary = _summary(root)
    if summary is None:
        return NO_RUN
    try:
        return f"{to_markdown(compact_table(summary['rows']))}\n{_headline_caption(summary)}\n"
    except (ValueError, KeyError, TypeError) as error:
        raise _unusable(HEADLINE, error) from None


@block
def goals(root: Path) -> str:
    """The cells of the goals: the peers as quoted, the bars, and `fused` of the committed run beside them."""
    quoted, summary = _read(root, GOALS), _summary(root)
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
    caption = f"*Decode and prefill in ms, offline in output tokens/s; fused: {run}. {quoted['source']}*"
    return f"{_table('goals', columns, rows)}\n{caption}\n"


@block
def model_bytes(_root: Path) -> str:
    """What one decode step must read, and what a token of context takes, for every model under configs/model."""
    columns = (
        Column("model", "Model"),
        Column("weights_mb", "Weights read a step, MB", Kind.NUMBER),
        Column("head_share", "of it LM head", Kind.PERCENT),
        Column("kv_kib", "KV cache a token, KiB", Kind.NUMBER),
        Column("tokens_per_gib", "Tokens a GiB", Kind.COUNT),
        Column("equal_tokens", "Tokens whose KV cache equals the weights", Kind.COUNT),
    )
    rows = []
    for name in (name for name in names("model") if not name.startswith("tiny")):
        sizes = load_yaml("model", name)
        weights = decode_work(sizes, [], BF16_BYTES).bytes
        kv = 2 * sizes["num_layers"] * sizes["num_kv_heads"] * sizes["head_dim"] * BF16_BYTES
        head = BF16_BYTES * sizes["vocab_size"] * sizes["hidden_size"]
        rows.append((name, weights / 1e6, head / weights, kv / 1024, 2**30 // kv, round(weights / kv)))
    return f"{_table('model_bytes', columns, rows)}\n*bfloat16; by the formulas of `experiments/floors.py`.*\n"


@block
def traffic_memory(root: Path) -> str:
    """Block use, waste, reuse and recomputation of three engines under the same traffic."""
    columns = (
        Column("traffic", "Traffic"),
        Column("engine", "Engine"),
        Column("block_size", "Tokens a block", Kind.COUNT),
        Column("mean_used", "Pool in use", Kind.PERCENT),
        Column("mean_waste", "Pool wasted", Kind.PERCENT),
        Column("reused", "Reused / needed", Kind.NUMBER),
        Column("computed", "Computed / needed", Kind.NUMBER),
        Column("preemptions", "Preemptions", Kind.COUNT),
    )
    return _traffic(
        root,
        columns,
        lambda row: (
            row["block_size"],
            row["mean_used"],
            row["mean_waste"],
            row["reused_tokens"] / row["needed_tokens"],
            row["computed_tokens"] / row["needed_tokens"],
            row["preemptions"],
        ),
    )


@block
def traffic_waiting(root: Path) -> str:
    """Steps until all is answered, and how long requests that had begun stood still."""
    columns = (
        Column("traffic", "Traffic"),
        Column("engine", "Engine"),
        Column("answered", "Answered", Kind.COUNT),
        Column("steps", "Steps", Kind.COUNT),
        Column("stalled_steps", "Stalled steps, all requests", Kind.COUNT),
        Column("longest_stall", "Longest stall, steps", Kind.COUNT),
    )
    return _traffic(
        root, columns, lambda row: (row["answered"], row["steps"], row["stalled_steps"], row["longest_stall"])
    )


def _traffic(root: Path, columns: tuple[Column, ...], values: Callable[[Mapping[str, Any]], tuple[Value, ...]]) -> str:
    kept = _read(root, TRAFFIC)
    order = {name: i for i, name in enumerate(kept["traffics"])}
    rows = sorted(kept["rows"], key=lambda row: order[row["traffic"]])
    body = [(row["traffic"], _engine(row), *values(row)) for row in rows]
    caption = f"*`fusebench traffic`, commit {kept['commit'][:12]}, {kept['created'][:10]}; the same on any machine.*"
    return f"{_table('traffic', columns, body)}\n{caption}\n"


def _engine(row: Mapping[str, Any]) -> str:
    name = {"ours": "fusebench", "nano_vllm": "nano-vLLM", "vllm": "vLLM"}[row["engine"]]
    return name if row["engine"] == "ours" else f"{name} {row['version']}"


@block
def traffics(root: Path) -> str:
    """What the traffics are."""
    lines = [f"- `{name}`: {text}" for name, text in _read(root, TRAFFIC)["traffics"].items()]
    return "\n".join(lines) + "\n"


@block
def calibration(root: Path) -> str:
    """What the analysis made of sweeps with a known truth, as committed by `fusebench calibrate`."""
    if not (root / CALIBRATION).is_file():
        return "No calibration is committed yet: `fusebench calibrate` makes this table.\n"
    found = _read(root, CALIBRATION)
    try:
        table = to_markdown(calibration_table([plain.decode(Calibration, row) for row in found["rows"]]))
        protocol = found["protocol"]
        note = (
            f"*Commit {found['commit'][:12]}, {found['created'][:10]}, seed {found['seed']}, {found['cpu']}; at most "
            f"{protocol['rounds']} rounds of {protocol['windows']} windows, points end from {protocol['min_rounds']} "
            f"rounds on at +-{100 * protocol['target_ci']:g} %.*"
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _unusable(CALIBRATION, error) from None
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
    return f"{_table('gates', columns, rows)}\n*`{stamp.command}` {made}: {counts}.*\n"


@block
def resources(root: Path) -> str:
    """Registers and shared memory of every kernel, compiled for sm_90 without a GPU."""
    kept = _read(root, RESOURCES)
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
    caption = f"*Compiled for {kept['target']} by Triton {kept['triton']}, commit {kept['commit'][:12]}.*"
    return f"{_table('resources', columns, rows)}\n{caption}\n"


def _table(name: str, columns: tuple[Column, ...], rows: Sequence[tuple[Value, ...]]) -> str:
    return to_markdown(Table(name, "", "", columns, tuple(rows)))


def _headline_caption(summary: dict[str, Any]) -> str:
    machine = summary["gpu"] or "a CPU, kernels as plain-PyTorch twins: no speed is claimed"
    dirty = " with uncommitted changes" if summary["dirty"] else ""
    lead = lead_of(summary["rows"])
    return (
        f"*{machine}, {summary['dtype']}, commit {summary['commit'][:12]}{dirty}, {summary['created'][:10]}, run "
        f"{summary['run_id']}. Decode in ms per step, prefill in ms to the first token, offline in output tokens/s. "
        f"Speed-up with its 95 % interval, verdict and share of the physical floor are those of `{lead}` over "
        f"`{BASELINE}`.*"
    )


def _summary(root: Path) -> dict[str, Any] | None:
    """The committed report's summary.json, or None where no run is committed."""
    return _read(root, HEADLINE) if (root / HEADLINE).is_file() else None


def _read(root: Path, path: Path) -> dict[str, Any]:
    """A committed file's content, its checksum tested where it has one."""
    try:
        content = json.loads((root / path).read_text(encoding="utf-8"))
        found: dict[str, Any] = read_json(root / path) if "crc32" in content else content
        return found
    except (OSError, ValueError, TypeError, Damaged) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path.as_posix()} cannot be used: {error}; make it again")
