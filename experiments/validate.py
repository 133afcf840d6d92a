"""`fusebench validate`: every numerics gate of the kernels and the variants, with its figures.

fusebench validate
fusebench validate level=kernels ops=[norm_linear,linear_add] dtypes=[bfloat16]
fusebench validate level=models variants=[fused] models=[qwen3-0.6b] positions=256
fusebench validate at_once=16

Kernels: errors against float64 and against the kernels replaced, rows of NaN, infinities, zeros and outliers, guard
bands, repeats, other rows, programmatic dependent launch. Variants: logits and greedy answers against the fp32
reference. On a GPU the compiled kernels at the models' shapes; elsewhere their twins, and the kernels themselves in
Triton's interpreter, in what it can do. A gate that cannot run is a row with its reason.

On a GPU most of the time goes into compiling, which takes one core: with at_once=N so many processes run side by side,
each with one kernel in one dtype or with one variant of one model. Nothing is timed.

Writes results/validate/RUN_ID/validate.json and validate.md. Exit code 1 where a gate failed.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from experiments.command_line import run_or_help
from experiments.compose import compose, load_yaml, names
from experiments.config import BASELINE, DTYPES, PEERS
from experiments.durable import make_new_folder
from experiments.environment import python_path, resolve_device, resolve_dtype
from experiments.errors import UserError
from experiments.fetch import MODELS, cached_model
from experiments.kernel_records import (
    FUSED,
    RUNS,
    SCHEMA,
    VALIDATE,
    GateRow,
    GateRun,
    GateStatus,
    new_stamp,
    read_run,
    write_run,
)
from experiments.models import find_model
from experiments.options import choose, parse_options, usage, words_of

if TYPE_CHECKING:
    from experiments.kernels.gates import Reach

LEVELS = ("all", "kernels", "models")
OPS = ("norm_linear", "linear_add", "gate_up_silu", "lm_head", "qkv_post", "attention")
SMALL_MODELS, REAL_MODEL = ("tiny", "tiny-llama"), "smollm2-135m"


@dataclass(frozen=True)
class Options:
    """What can be set on the command line; what is empty is chosen by the machine."""

    level: str = "all"
    ops: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    positions: int = 32
    device: str = "auto"
    seed: int = 0
    at_once: int = 1
    results_dir: str = "results"


def parse(arguments: Sequence[str]) -> Options:
    """Options, checked but for the device."""
    options = parse_options(Options, "validate", arguments)
    if options.positions < 1:
        raise UserError(f"validate: positions={options.positions} must be at least 1: nothing else is a check")
    if options.at_once < 1:
        raise UserError(f"validate: at_once={options.at_once} must be at least 1, so many processes")
    choose("level", (options.level,), LEVELS)
    choose("ops", options.ops, OPS)
    choose("dtypes", options.dtypes, DTYPES[1:])
    choose("variants", options.variants, own_variants())
    for model in options.models:
        find_model(model)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gates; returns the exit code."""
    return run_or_help(argv, usage(__doc__, Options, OPS), lambda arguments: run(parse(arguments), arguments))


def run(options: Options, arguments: Sequence[str]) -> int:
    """Every gate in turn, kept and printed as soon as it is known."""
    from experiments.reporting.gates import Printer, gates_page

    stamp = new_stamp(shlex.join(["fusebench", "validate", *arguments]), "")
    stamp = replace(stamp, device=resolve_device(options.device, stamp.machine))
    if stamp.device == "cpu":
        # Read when Triton is first imported.
        os.environ["TRITON_INTERPRET"] = "1"
    folder = make_new_folder(Path(options.results_dir) / VALIDATE / stamp.run_id)
    done = GateRun(SCHEMA, replace(stamp, run_id=folder.name))
    printer = Printer()
    for row in _rows(options, stamp.device) if options.at_once == 1 else rows_side_by_side(options, stamp.device):
        printer.say(row)
        done = replace(done, rows=(*done.rows, row))
        write_run(folder, VALIDATE, done)
    page = folder / f"{VALIDATE}.md"
    page.write_text(gates_page(done), encoding="utf-8")
    printer.end(done, page)
    return 1 if any(row.status is GateStatus.FAILED for row in done.rows) else 0


def _rows(options: Options, device: str) -> Iterator[GateRow]:
    if options.level != "models":
        yield from kernel_rows(options, device)
    if options.level != "kernels":
        yield from model_rows(options, device)


def rows_side_by_side(options: Options, device: str) -> Iterator[GateRow]:
    """The same rows in the same order, each part of them from a process of its own."""
    with ThreadPoolExecutor(options.at_once) as pool:
        for rows in pool.map(rows_of_part, parts(options, device)):
            yield from rows


def parts(options: Options, device: str) -> Iterator[Options | GateRow]:
    """What to ask each process for; what needs none is a row already."""
    one = replace(options, device=device, at_once=1)
    if options.level != "models":
        for op in choose("ops", options.ops, OPS):
            for dtype in options.dtypes or DTYPES[1:]:
                yield replace(one, level="kernels", ops=(op,), dtypes=(dtype,))
    if options.level != "kernels":
        for place in judged(options, device):
            if isinstance(place, GateRow):
                yield place
            else:
                yield replace(one, level="models", models=place[:1], variants=place[1:])


def rows_of_part(part: Options | GateRow) -> list[GateRow]:
    """What the process wrote down, and where it did not end a row with its last words."""
    if isinstance(part, GateRow):
        return [part]
    environ = os.environ | {"PYTHONPATH": python_path()}
    with TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "experiments.validate", *words_of(replace(part, results_dir=scratch))]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, errors="replace", check=False)
        written = Path(scratch).glob(f"{VALIDATE}/*/{VALIDATE}.json")
        rows = [row for file in written for row in read_run(GateRun, file).rows]
    if done.returncode not in (0, 1) or not rows:
        subject = " ".join((*part.ops, *part.dtypes, *part.variants, *part.models))
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["it said nothing"]
        why = f"its process ended with {done.returncode}: {last[0]}"
        rows.append(GateRow(subject, "", "", RUNS, GateStatus.FAILED, why))
    return rows


def kernel_rows(options: Options, device: str) -> Iterator[GateRow]:
    """Every kernel in every dtype."""
    import torch

    from experiments.kernels.gates import gates_of

    if device == "cpu":
        torch.set_num_threads(1)
    with torch.inference_mode():
        for reach in reaches(choose("ops", options.ops, OPS), options.dtypes or DTYPES[1:], device):
            yield from gates_of(reach)


def reaches(ops: Sequence[str], dtypes: Sequence[str], device: str) -> Iterator["Reach"]:
    """What to try: compiled kernels on a GPU, else twins and, but for bfloat16, interpreted kernels."""
    import torch

    from engine.kernels._triton import INTERPRETED
    from experiments.kernels.cases import forms
    from experiments.kernels.gates import Reach

    for kind in (kind for op in ops for kind in forms(op).values()):
        for dtype in (getattr(torch, name) for name in dtypes):
            if device == "cuda":
                yield Reach(kind, "triton", dtype, torch.device(device))
                continue
            yield Reach(kind, "twin", dtype, torch.device(device))
            # The interpreter computes with NumPy, which has no bfloat16 (docs/challenges.md).
            if INTERPRETED and dtype != torch.bfloat16:
                yield Reach(kind, "triton", dtype, torch.device(device))


def own_variants() -> list[str]:
    """The variants of this engine: a peer is judged by a sweep, in a process of its own."""
    return [name for name in names("variant") if load_yaml("variant", name).kind not in PEERS]


def model_rows(options: Options, device: str) -> Iterator[GateRow]:
    """Every variant on every model."""
    for place in judged(options, device):
        if isinstance(place, GateRow):
            yield place
        else:
            yield from verdict_rows(options, device, *place)


def judged(options: Options, device: str) -> Iterator[tuple[str, str] | GateRow]:
    """(model, variant) of each verdict, or the row that says why there is none."""
    all_variants = tuple(name for name in own_variants() if name != BASELINE)
    for model in options.models or (*SMALL_MODELS, REAL_MODEL):
        if not options.models and model in MODELS and cached_model(model) is None:
            reason = f"{model} is not in the cache; run: fusebench fetch {model}"
            yield GateRow(model, "", "", "teacher-forced logits", GateStatus.SKIPPED, reason)
            continue
        # The real model takes a CPU half a minute a variant; `fused` has every kernel.
        few = (FUSED,) if device == "cpu" and model == REAL_MODEL else all_variants
        for variant in options.variants or few:
            yield model, variant


def verdict_rows(options: Options, device: str, model: str, variant: str) -> Iterator[GateRow]:
    """The verdict that a sweep would reach, figure by figure."""
    from experiments.measuring.session import Session
    from experiments.measuring.verdict import KL_FACTOR, KL_FLOOR, verify
    from experiments.messages import Load

    config = compose(["experiment=quick", f"variants=[{BASELINE},{variant}]"])
    chosen = next(found for found in config.variants if found.name == variant)
    dtype = resolve_dtype("auto", device)
    session = Session(Load(model, chosen, device, dtype, "auto", options.seed, (), (), config.protocol))
    try:
        verdict = verify(session, options.positions)
    except RuntimeError as error:
        raise UserError(f"{variant} on {model}: {error}") from error
    place = (f"{variant} on {model}", session.kernels, dtype)
    count, unfused = verdict.positions, verdict.unfused_kl_mean or 0.0
    bound = max(KL_FLOOR[session.dtype], KL_FACTOR * unfused)
    status = GateStatus.PASSED if verdict.ok else GateStatus.FAILED
    where = verdict.reason
    yield GateRow(*place, "mean KL, nats, and what else decides", status, where, verdict.kl_mean, bound, unfused, count)
    position = f"position {verdict.kl_max_position}"
    yield GateRow(*place, "largest KL, nats", GateStatus.SHOWN, position, verdict.kl_max, checked=count)
    at, margin = verdict.first_divergence, verdict.divergence_margin
    greedy = (
        "no greedy token differs" if at is None else f"first greedy token that differs: {at}, behind by {margin:.3g}"
    )
    yield GateRow(*place, "top-1 agreement", GateStatus.SHOWN, greedy, verdict.top1_agreement, checked=count)


if __name__ == "__main__":
    sys.exit(main())
