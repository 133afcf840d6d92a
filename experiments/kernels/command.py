"""`fusebench kernels`: one fused kernel at a time, beside what it replaces, torch.compile and the roofline.

fusebench kernels models=[qwen3-0.6b] ops=[norm_linear] rows=[1,8,64]
fusebench kernels models=[qwen3-8b] compile=true pdl=true repeats=30
fusebench kernels ops=[norm_linear] compile=true compile_rows=[1,8,64,512,8192] pdl=true

Each kernel runs at the shapes that each model has it at: `alone`, residual add and squares inside, and those that norm
also `chained`, as the fused engine runs them behind `linear_add`. The error against float64 comes first: without one
there is no time. A time is a launch's share of a CUDA graph of many, `cold` (weights from memory: launches rotate among
copies that together are three times L2) and `hot` (one copy, in L2 where it fits). Fused products are compiled first,
side by side. compile=true also times torch.compile's max-autotune of the formula, which takes seconds a place: at
compile_rows alone, where some are given. On a CPU the plain-PyTorch twins run, which says nothing about speed.

Writes results/kernels/RUN_ID/kernels.json, every few seconds. Exit code 1 where a fused kernel was wrong or failed.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from engine.kernels._gluon import is_hopper
from experiments.command_line import run_or_help
from experiments.durable import make_new_folder
from experiments.environment import resolve_device, resolve_dtype
from experiments.errors import UserError
from experiments.floors import Ceilings
from experiments.kernel_floors import OPS
from experiments.kernel_records import (
    FUSED,
    KERNELS,
    SCHEMA,
    KernelRow,
    KernelRun,
    new_stamp,
    write_run,
)
from experiments.kernels.cases import forms, sites
from experiments.kernels.compiling import Compilation, compile_on_gpu
from experiments.kernels.linear_cases import LinearCase, NormLinear
from experiments.kernels.measure import Bench, Place, measure
from experiments.kernels.timing import l2_bytes, time_on_cpu, time_on_gpu
from experiments.measuring.ceilings import measure_ceilings
from experiments.measuring.presence import others_on_gpu
from experiments.models import find_model
from experiments.options import choose, parse_options, usage
from experiments.records import Status
from experiments.reporting.kernels import show_kernels
from variants.kernels.tiles import MAX_SKINNY_ROWS

# The file of a run of a thousand rows takes a third of a second.
KEEP_S = 5.0
# The LM head sees one row a sequence, never a prompt.
MOST_HEAD_ROWS = 256
# More than any step has; a mistyped number would end in the allocator's words.
MOST_ROWS = 131_072
MODELS = ("smollm2-135m", "llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b")
ROWS = tuple(2**power for power in range(14))
CPU_MODELS, CPU_ROWS, CPU_REPEATS = ("tiny",), (1, 8, 64), 5


@dataclass(frozen=True)
class Options:
    """What can be set on the command line; what is empty is chosen by the machine."""

    models: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    repeats: int = 20
    pdl: bool = False
    compile: bool = False
    compile_rows: tuple[int, ...] = ()
    results_dir: str = "results"


def parse(arguments: Sequence[str]) -> Options:
    """Options, checked but for the device."""
    options = parse_options(Options, "kernels", arguments)
    choose("ops", options.ops, OPS)
    places(options.models, options.ops or OPS, options.rows or (1,))
    if options.repeats < 1:
        raise UserError(f"kernels: repeats={options.repeats} must be at least 1")
    if options.compile_rows and not options.compile:
        raise UserError("kernels: compile_rows is for compile=true")
    for key in ("rows", "compile_rows"):
        if 0 in getattr(options, key):
            raise UserError(f"kernels: {key} has a 0, and a kernel of no rows has nothing to do: take it out")
    if (most := max(options.rows, default=0)) > MOST_ROWS:
        raise UserError(f"kernels: rows={most} must be {MOST_ROWS} or less")
    return options


def places(models: Sequence[str], ops: Sequence[str], rows: Sequence[int]) -> list[Place]:
    """Every place, model by model; UserError for a model whose sizes are not known."""
    found = []
    for source in models:
        model = find_model(source)
        if not model.sizes:
            raise UserError(f"models={source}: its sizes are not known without loading it; name one of configs/model")
        for op in ops:
            counts = [m for m in rows if op != "lm_head" or m <= MOST_HEAD_ROWS]
            for site, shape in sites(op, model.sizes).items():
                found += [Place(model.name, op, site, shape, m, form) for form in forms(op) for m in counts]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    return run_or_help(argv, usage(__doc__, Options, OPS), lambda arguments: run(parse(arguments), arguments))


def run(options: Options, arguments: Sequence[str]) -> int:
    """Every place in turn, kept as soon as it is measured."""
    stamp = new_stamp(shlex.join(["fusebench", "kernels", *arguments]), "")
    stamp = replace(stamp, device=resolve_device(options.device, stamp.machine))
    bench = make_bench(options, torch.device(stamp.device))
    on_gpu = stamp.device == "cuda"
    todo = places(
        options.models or (MODELS if on_gpu else CPU_MODELS),
        options.ops or OPS,
        options.rows or (ROWS if on_gpu else CPU_ROWS),
    )
    ceilings = measure_ceilings(bench.device)
    bench = replace(bench, ceilings=Ceilings.of(ceilings))
    folder = make_new_folder(Path(options.results_dir) / KERNELS / stamp.run_id)
    done = KernelRun(SCHEMA, replace(stamp, run_id=folder.name), options.pdl, ceilings)
    if on_gpu:
        compile_on_gpu(ahead(todo, bench))
    with torch.inference_mode():
        done = _measured(done, folder, todo, bench, options)
    show_kernels(done)
    print(f"The report: fusebench report experiment=kernels run={folder.name}")
    return 1 if any(_is_wrong(row) for row in done.rows) else 0


def _measured(done: KernelRun, folder: Path, todo: Sequence[Place], bench: Bench, options: Options) -> KernelRun:
    """The run with the rows of all places, kept every few seconds, whatever ends it."""
    rows: list[KernelRow] = []
    kept = time.monotonic()
    try:
        for place in track(todo, "kernels", console=Console(stderr=True), transient=True):
            compiled = bench.compiled and (not options.compile_rows or place.rows in options.compile_rows)
            rows += measure(replace(bench, compiled=compiled), place)
            if (others := others_on_gpu(bench.device)) is not None:
                done = replace(done, other_processes=max(others, done.other_processes or 0))
            if time.monotonic() - kept > KEEP_S:
                write_run(folder, KERNELS, replace(done, rows=tuple(rows)))
                kept = time.monotonic()
    finally:
        done = replace(done, rows=tuple(rows))
        write_run(folder, KERNELS, done)
    return done


def ahead(todo: Sequence[Place], bench: Bench) -> list[Compilation]:
    """What the fused products of these places run, each once; not Hopper's own of many rows, which are few."""
    jobs = []
    own = bench.device.type == "cuda" and is_hopper(torch.cuda.current_device())
    for place in todo:
        kind = forms(place.op)[place.form]
        if own and issubclass(kind, NormLinear) and place.rows > MAX_SKINNY_ROWS:
            continue
        if issubclass(kind, LinearCase):
            dtype = getattr(torch, bench.dtype)
            tile = kind.tile_at(place.shape, place.rows, dtype, bench.device)
            jobs.append(Compilation(place.op, place.form, place.shape, bench.dtype, bench.pdl, tile))
    return list(dict.fromkeys(jobs))


def make_bench(options: Options, device: torch.device) -> Bench:
    """How to measure on this device."""
    dtype = resolve_dtype(options.dtype, device.type)
    if device.type == "cuda":
        return Bench(
            device, dtype, time_on_gpu, options.repeats, l2_bytes(device), options.pdl, compiled=options.compile
        )
    if options.compile or options.pdl:
        raise UserError("kernels: compile=true and pdl=true need a GPU; here the plain-PyTorch twins run")
    # Tensors are tiny here, and threads that wait for each other cost more than they compute.
    torch.set_num_threads(1)
    return Bench(device, dtype, time_on_cpu, min(options.repeats, CPU_REPEATS))


def _is_wrong(row: KernelRow) -> bool:
    return row.contender == FUSED and row.status in (Status.INVALID, Status.ERROR)
