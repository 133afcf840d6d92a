"""Where a whole offline run spends its time, from the committed ledgers of one."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments import plain
from experiments.reporting.blocks.headline import OFFLINE
from experiments.reporting.blocks.registry import block, markdown, read, usable
from experiments.reporting.formats import Column, Kind, Value, number
from experiments.reporting.ledgers import Traced
from experiments.trace.ledger import SCHEMA

RUNS = Path("results/offline")
NO_TRACE = (
    "No trace of an offline run is committed yet: `fusebench trace experiment=offline` on an H200 makes this table.\n"
)
OLDER = "What a step waited for its first kernel after an upload is idle between kernels here: this is an older trace."
# Operations below this share of every variant's run are one row.
LEAST_SHARE = 0.01
KINDS = ("decode", "prefill", "other")

Times = dict[tuple[str, str], float]


@block
def offline_split(root: Path) -> str:
    """Milliseconds of a run by kind of step: operations, idle within steps, idle for the host."""
    folder = _folder(root)
    if folder is None:
        return NO_TRACE
    times, facts, schemas = {}, [], {SCHEMA}
    for path in sorted(path.relative_to(root) for path in (root / folder).glob("*.json")):
        with usable(path):
            ledger = plain.decode(Traced, read(root, path))
            times[ledger.cell.variant] = _times(ledger)
            facts.append(_facts(ledger))
            schemas.add(ledger.schema)
    older = [OLDER] if min(schemas) < 3 else []
    columns = [Column("steps", "Steps"), Column("what", "What")]
    for variant in times:
        columns += [Column(variant, f"{variant}, ms", Kind.NUMBER), Column(f"{variant}_share", "share", Kind.PERCENT)]
    return markdown(columns, list(_rows(times)), " ".join([*facts, *older, _caption(root, folder.parent)]))


def _folder(root: Path) -> Path | None:
    """The ledgers of the latest traced run, relative to the root."""
    folders = sorted(path for path in (root / RUNS).glob("*/traces") if any(path.glob("*.json")))
    return folders[-1].relative_to(root) if folders else None


def _times(ledger: Traced) -> Times:
    """(kind of step, what) -> milliseconds of a device; their sum is the run."""
    times: Times = {}
    for part in ledger.parts:
        times |= {(part.name, op): ms for op, ms in part.op_ms.items()}
        times[part.name, "idle between kernels"] = part.within_ms
        times[part.name, "idle until the step is launched"] = part.before_ms
    if ledger.overlap_ms:
        times["all", "less what overlaps"] = -ledger.overlap_ms
    times = {key: ms / ledger.devices for key, ms in times.items()}
    times["all", "before the first kernel and after the last"] = ledger.run_ms - ledger.window_ms / ledger.devices
    return times


def _rows(times: Mapping[str, Times]) -> Iterator[tuple[Value, ...]]:
    run_ms = {variant: sum(own.values()) for variant, own in times.items()}
    keys = list(dict.fromkeys(key for own in times.values() for key in own))
    for kind in (*KINDS, "all"):
        own_keys = [key for key in keys if key[0] == kind]
        small = [k for k in own_keys if all(abs(t.get(k, 0.0)) < LEAST_SHARE * run_ms[v] for v, t in times.items())]
        kept = [key for key in own_keys if key not in small or key[1].startswith("idle") or kind == "all"]
        groups = [(key[1], [key]) for key in kept]
        if rest := [key for key in small if key not in kept]:
            groups.append((f"{len(rest)} more", rest))
        for what, group in groups:
            sums = {variant: sum(own.get(key, 0.0) for key in group) for variant, own in times.items()}
            yield kind, what, *(value for v, ms in sums.items() for value in (ms, ms / run_ms[v]))
    yield "all", "the run", *(value for ms in run_ms.values() for value in (ms, 1.0))


def _facts(ledger: Traced) -> str:
    """Of one variant: its kinds of steps, and the rate under the profiler."""
    parts = []
    for part in (part for part in ledger.parts if part.steps):
        decoding, prompts = (number(n / part.steps, 3) for n in (part.decoded_tokens, part.prefill_tokens))
        computed = f"{decoding} sequences decoding" + (f" and {prompts} tokens of prompts" if prompts != "0" else "")
        parts.append(f"{part.steps} {part.name} steps with {computed}")
    rate = number(1e3 * ledger.output_tokens / ledger.run_ms)
    return f"`{ledger.cell.variant}`: {'; '.join(parts)}, on average; {rate} output tokens/s while traced."


@usable(OFFLINE)
def _caption(root: Path, run: Path) -> str:
    manifest = run / "manifest.json"
    gpu = read(root, manifest).get("gpu") if (root / manifest).is_file() else None
    untraced = ""
    if (root / OFFLINE).is_file() and (summary := read(root, OFFLINE))["run_id"] == run.name:
        rates = (
            f"{number(row['median'])} in `{row['variant']}`"
            for row in summary["rows"]
            if row["metric"] == "output_tokens_per_s" and row["status"] == "ok"
        )
        untraced = f" Untraced: {', '.join(rates)}."
    return f"{gpu or 'GPU unknown'}, run {run.name}, Nsight Systems with CUDA-graph node tracing.{untraced}"
