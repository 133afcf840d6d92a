"""Times taken apart from the headline: single kernels, prefill attention, the steps of the guide, reading a trace."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from experiments.kernel_records import COMPILED, FUSED, UNFUSED, KernelRow, KernelRun, read_run
from experiments.records import Status
from experiments.reporting.blocks.registry import block, markdown, read, usable
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import Column, Kind, Value, percent, provenance, ratio, revision, short

# The report's, which may be of several runs and of RMSNorm + Linear alone, and the last run of all kernels before it.
KERNELS = (Path("reports/kernels/kernels.json"), Path("docs/data/kernels.json"))
# Numbers of rows that the table of all kernels shows.
FEW_ROWS = (1, 8, 64)
NO_HEAT = "No H200 run of all models is committed yet: the commands below make this table.\n"
PREFILL = Path("docs/data/prefill_attention.json")
STEPS = Path("docs/data/gpu_steps.json")
READER = Path("docs/data/trace_reader.json")
CLOCKS = Path("docs/data/step_clocks.json")
MANY_ROWS = Path("docs/data/many_rows.json")
ARGMAX = Path("docs/data/argmax.json")
COLD = "cold"


@block
def kernels(root: Path) -> str:
    """Each fused kernel beside what it replaces, weights cold in L2, for models of which all kernels were timed."""
    runs = [read_run(KernelRun, root / file) for file in KERNELS if file == KERNELS[-1] or (root / file).is_file()]
    run = next((run for run in runs if _of_all_kernels(run)), runs[0])
    whole = _of_all_kernels(run) or {row.model for row in run.rows}
    columns = (
        Column("kernel", "Kernel"),
        Column("shape", "Weight"),
        Column("form", "Form"),
        Column("rows", "Rows", Kind.COUNT),
        Column("unfused", "Replaced, µs", Kind.NUMBER),
        Column("fused", "Fused, µs", Kind.NUMBER),
        Column("speedup", "Speed-up", Kind.RATIO),
        Column("floor", "Floor, µs", Kind.NUMBER),
    )
    cold = [row for row in run.rows if row.cache == COLD and row.model in whole and row.rows in FEW_ROWS]
    timed = {(*_place(row), row.contender): row for row in cold if row.status is Status.OK}
    body = []
    for place in dict.fromkeys(map(_place, cold)):
        old, new = timed.get((*place, UNFUSED)), timed.get((*place, FUSED))
        if old and new:
            before, after = median(old.samples_us), median(new.samples_us)
            op, shape, form, rows = place
            body.append((op, "x".join(map(str, shape)), form, rows, before, after, before / after, new.floor_us))
    return markdown(columns, body, f"{_made(run)}; medians.")


def _of_all_kernels(run: KernelRun) -> set[str]:
    return {row.model for row in run.rows if row.op != "norm_linear"}


@block
def norm_linear(root: Path) -> str:
    """RMSNorm + Linear at every model's shapes by rows: the speed-up over cuBLAS and norm, and over torch.compile."""
    if not (root / KERNELS[0]).is_file():
        return NO_HEAT
    run = read_run(KernelRun, root / KERNELS[0])
    mine = [row for row in run.rows if row.op == "norm_linear" and row.samples_us]
    times = {(_line(row), row.rows, row.contender): median(row.samples_us) for row in mine}
    floors = {(_line(row), row.rows): row.floor_us for row in mine if row.contender == FUSED}
    counts = sorted({row.rows for row in mine})
    fixed = ("Model", "Weight", "Form", "L2", "Over")
    columns = (*(Column(name.lower(), name) for name in fixed), *(Column(f"m{m}", f"{m:,}") for m in counts))
    body: list[tuple[Value, ...]] = []
    for line in dict.fromkeys(map(_line, mine)):
        for over, contender in (("cuBLAS + norm", UNFUSED), ("torch.compile", COMPILED)):
            gains = [_gain(times.get((line, m, contender)), times.get((line, m, FUSED))) for m in counts]
            if any(gains):
                body.append((*line, over, *gains))
        shares = [_gain(floors.get((line, m)), times.get((line, m, FUSED)), percent) for m in counts]
        if any(shares):
            body.append((*line, "roofline", *shares))
    return markdown(
        columns, body, f"{_made(run)}. Medians of the others' times over fused's; of the roofline, its share."
    )


def _line(row: KernelRow) -> tuple[str, str, str, str]:
    return row.model, f"{row.site} {'x'.join(map(str, row.shape))}", row.form, row.cache


def _gain(before: float | None, after: float | None, shown: Callable[[float], str] = ratio) -> str | None:
    return shown(before / after) if before and after else None


def _made(run: KernelRun) -> str:
    stamp, pdl = run.stamp, ", fused under dependent launch" if run.pdl else ""
    return f"`{stamp.command}` on {stamp.gpu}, {provenance(stamp.code.commit, stamp.created)}{pdl}"


@block
@usable(PREFILL)
def prefill_attention(root: Path) -> str:
    """Prefill attention by kernel and shape: what runs, what was tried, and cuDNN's dense attention."""
    found = read(root, PREFILL)
    tflops = {(r["kernel"], r["session"], _prompts(r)): r["tflops"] for r in found["rows"]}
    shapes = list(dict.fromkeys(shape for _, _, shape in tflops))
    tried = dict.fromkeys((kernel, session) for kernel, session, _ in tflops)
    rows = [(found["kernels"][k], n, *(tflops.get((k, n, shape)) for shape in shapes)) for k, n in tried]
    versions = f"torch {found['torch']}, Triton {found['triton']}"
    commits = ", ".join(f"session {n} at {revision(commit)}" for n, commit in enumerate(found["commits"], 1))
    made = f"{found['method']} on {found['gpu']}, {versions}, {found['date']}; {commits}"
    caption = f"TFLOP/s by {made}: {found['note']}"
    fixed = (Column("kernel", "Kernel, queries by keys"), Column("session", "Session", Kind.COUNT))
    return markdown((*fixed, *(Column(shape, shape, Kind.NUMBER) for shape in shapes)), rows, caption)


@block
@usable(MANY_ROWS)
def many_rows(root: Path) -> str:
    """Products of many rows: gate and up in either way for Hopper, QKV, and a residual that cuBLAS adds."""
    found = read(root, MANY_ROWS)
    columns = (
        Column("model", "Model"),
        Column("rows", "Rows", Kind.COUNT),
        Column("gate_up", "Gate, up: replaced, µs", Kind.NUMBER),
        Column("shared", "Shared tiles, µs", Kind.NUMBER),
        Column("turns", "Turns, µs", Kind.NUMBER),
        Column("gain", "The better", Kind.RATIO),
        Column("qkv", "QKV", Kind.RATIO),
        Column("o", "o, added by cuBLAS", Kind.RATIO),
        Column("down", "down, added by cuBLAS", Kind.RATIO),
    )
    rows = []
    for r in found["products"]:
        old, shared, turns = (r["gate_up"][way] for way in ("replaced_us", "shared_us", "turns_us"))
        gains = (r[site]["replaced_us"] / r[site]["added_by_cublas_us"] for site in ("o", "down"))
        qkv = r["qkv"]["replaced_us"] / r["qkv"]["turns_us"]
        rows.append((r["model"], r["rows"], old, shared, turns, old / min(shared, turns), qkv, *gains))
    versions = f"torch {found['torch']}, Triton {found['triton']}"
    made = f"{found['method']} on {found['gpu']}, {versions}, {found['date']}, commit {found['commit']}"
    caption = f"By {made}: {found['note']}"
    return markdown(columns, rows, caption)


@block
@usable(MANY_ROWS)
def row_order(root: Path) -> str:
    """Decode attention over contexts of the offline workload, by the order of the rows."""
    found = read(root, MANY_ROWS)
    orders = ("random", "descending", "equal")
    columns = (
        Column("heads", "Heads"),
        Column("batch", "Sequences", Kind.COUNT),
        *(Column(order, f"{order.capitalize()}, µs", Kind.NUMBER) for order in orders),
    )
    times = {(r["heads"], r["batch"], r["order"]): r["us"] for r in found["order"]["attention"]}
    places = dict.fromkeys((heads, batch) for heads, batch, _ in times)
    rows = [(heads, batch, *(times[heads, batch, order] for order in orders)) for heads, batch in places]
    first, last = (", ".join(f"{x:,}" for x in found["order"][key]) for key in ("longest_first", "as_they_came"))
    caption = (
        f"{found['gpu']}, {found['date']}, commit {found['commit']}, one split; equal: the same bytes in equal"
        f" contexts. {found['order']['workload']}: longest first {first}; as they came {last}."
    )
    return markdown(columns, rows, caption)


@block
@usable(STEPS)
def gpu_steps(root: Path) -> str:
    """What the guide's steps took on a GPU machine."""
    found = read(root, STEPS)
    rows = [(f"`{step['command']}`" + step["note"], step["seconds"]) for step in found["steps"]]
    caption = f"{found['machine']}, {provenance(found['commit'], found['date'])}; wheels installed before."
    return markdown((Column("step", "Step"), Column("seconds", "Seconds", Kind.NUMBER)), rows, caption)


@block
@usable(CLOCKS)
def step_clocks(root: Path) -> str:
    """One layer of a decode step by clocks in its kernels: when they wait, how long they take from there."""
    found = read(root, CLOCKS)
    columns = (
        Column("cell", "Cell"),
        Column("kernel", "Kernel"),
        Column("programs", "Programs", Kind.COUNT),
        Column("waited", "Wait over at, µs", Kind.NUMBER),
        Column("least", "Then the fastest, µs", Kind.NUMBER),
        Column("median", "The median, µs", Kind.NUMBER),
        Column("greatest", "The slowest, µs", Kind.NUMBER),
    )
    clocks = found["clocks"]
    rows = [
        (cell_name(cell["model"], "decode", cell["batch"], cell["context"]), kernel["kernel"], kernel["programs"],
         kernel["waited_us"][1], *kernel["after_wait_us"])
        for cell in clocks["cells"]
        for kernel in cell["kernels"]
    ]  # fmt: skip
    caption = f"{found['machine']}, {clocks['commit']}, {found['date']}. {clocks['note']}"
    return markdown(columns, rows, caption)


@block
@usable(READER)
def trace_reader(root: Path) -> str:
    """How long and how much memory it took to read a large export into a ledger."""
    found = read(root, READER)
    columns = (
        Column("commit", "Commit"),
        Column("size", "Export, GB", Kind.NUMBER),
        Column("kernels", "Kernels", Kind.COUNT),
        Column("cpu", "CPU, s", Kind.NUMBER),
        Column("wall", "Wall, s", Kind.NUMBER),
        Column("peak", "Peak memory, GB", Kind.NUMBER),
    )
    rows = [
        (short(r["commit"]), r["bytes"] / 1e9, r["kernels"], r["cpu_s"], r["wall_s"], r["peak_bytes"] / 1e9)
        for r in found["rows"]
    ]
    caption = f"`{found['command']}` on {found['machine']}, {found['date']}; the median of three readings."
    return markdown(columns, rows, caption)


def _prompts(row: Mapping[str, Any]) -> str:
    """The shape of a batch of equal prompts, in words."""
    several = f"{row['sequences']} × " if row["sequences"] > 1 else ""  # noqa: RUF001 (how shapes are printed)
    return f"{row['heads']} heads, {several}{row['tokens']:,}"


def _place(row: KernelRow) -> tuple[str, tuple[int, ...], str, int]:
    return row.op, row.shape, row.form, row.rows


@block
@usable(ARGMAX)
def argmax(root: Path) -> str:
    """The greedy choice among a vocabulary's logits, by torch and in two stages."""
    found = read(root, ARGMAX)
    columns = (
        Column("rows", "Rows", Kind.COUNT),
        Column("torch", "torch.argmax, µs", Kind.NUMBER),
        Column("two", "Two stages, µs", Kind.NUMBER),
        Column("pdl", "The same under dependent launch, µs", Kind.NUMBER),
        Column("copy", "A copy of the logits, µs", Kind.NUMBER),
        Column("torch_copy", "Copy and torch.argmax, µs", Kind.NUMBER),
        Column("two_copy", "Copy and two stages, µs", Kind.NUMBER),
    )
    keys = ("torch_us", "two_stages_us", "pdl_us", "copy_us", "torch_behind_copy_us", "two_stages_behind_copy_us")
    rows = [(row["rows"], *(row[key] for key in keys)) for row in found["argmax"]]
    what = f"{found['dtype']}, {found['vocabulary']:,} tokens"
    caption = f"{found['gpu']}, {found['date']}, commit {found['commit']}, {what}, by {found['by']}."
    return markdown(columns, rows, caption)
