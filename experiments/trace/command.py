"""`fusebench trace`: run an experiment's decode, prefill and offline cells under a profiler, apart from timing.

Of each it keeps the kernel ledger, results/<experiment>/<run>/traces/<cell>.json. Raw traces hold the machine's
environment, and are thrown away.

fusebench trace experiment=headline models=[qwen3-0.6b] variants=[baseline,fused] batches=[1,64]
fusebench trace experiment=demo dry_run=true              print which cells
fusebench trace read=FILE [against=FILE]                  show an export or a ledger; compare two ledgers

    profiler=auto      nsys, torch, or auto: nsys where there are a GPU and nsys; ncu counts bandwidth, occupancy and
                       stall reasons of every kernel instead, into counters/<cell>.json
    steps=8            steps in the window (1 for ncu); an offline cell is a whole run, and on a GPU needs nsys
    run=latest         the run whose folder gets the ledgers: its id, `latest`, or `new`; without any run, a new one
    nsys=PATH ncu=PATH the one to use (else FUSEBENCH_NSYS or FUSEBENCH_NCU, PATH, the usual places)
    keep_raw=FOLDER    also keep the raw traces there. They are private: do not publish them
    expect=[NAME,...]  kernels that every variant but the baseline must have run; `*` stands for anything

A fusion that the variant switches on, that took work and whose kernel is not in the trace fails its cell; one that the
dispatcher leaves off at a cell's shape is said.

Exit code 0 when every cell was traced, 1 when some failed, 2 for bad input or an empty capture.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments import plain
from experiments.command_line import composed, run_command
from experiments.config import BASELINE, ExperimentConfig, VariantConfig
from experiments.durable import write_json
from experiments.errors import UserError
from experiments.models import Model
from experiments.records import Cell
from experiments.reporting.terminal import make_console
from experiments.sweep import Prepared, prepare
from experiments.trace.counting import Counter
from experiments.trace.ledger import Fate, Ledger, compare
from experiments.trace.liveness import assert_present, contradictions
from experiments.trace.ncu import Ncu, find_ncu
from experiments.trace.nsys import Nsys, find_nsys
from experiments.trace.options import Options, take_options
from experiments.trace.runs import TraceRun, open_run
from experiments.trace.session import CannotTrace, Tracer
from experiments.trace.show_file import show_file
from experiments.trace.tables import changes, counter_table, show, show_ledger
from experiments.workplace import Workplace

STEP_KINDS = ("decode", "prefill")
WHOLE_RUNS = ("offline",)


@dataclass(frozen=True)
class Job:
    """One cell to trace."""

    model: Model
    variant: VariantConfig
    cell: Cell


def main(argv: Sequence[str] | None = None) -> int:
    """Trace; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _main(arguments))


def parse(arguments: Sequence[str]) -> tuple[Options, ExperimentConfig | None]:
    """Our own options and the experiment, which is None with `read=`, and after `--help` or `--cfg job`."""
    options, rest = take_options(arguments)
    return options, None if options.read else composed(rest, __doc__ or "")


def _main(arguments: Sequence[str]) -> int:
    options, config = parse(arguments)
    console = make_console()
    if options.read:
        return show_file(Path(options.read), Path(options.against) if options.against else None, options, console)
    return 0 if config is None else run_trace(config, options, console)


def run_trace(config: ExperimentConfig, options: Options, console: Console, worker: Sequence[str] | None = None) -> int:
    """Trace every job of an experiment, store the ledgers, print them; `worker` starts any worker."""
    if config.is_spread:
        raise UserError("trace runs on one GPU of this machine: leave out cluster and devices")
    prepared = prepare(config)
    if config.dry_run:
        jobs = list(plan_jobs(prepared))
        console.print("\n".join([f"{len(jobs)} cells:", *(job.cell.id for job in jobs)]), markup=False)
        return 0
    profiler = choose_profiler(options, prepared.config.device, console)
    jobs = jobs_under(profiler, prepared, console)
    keep_raw = _make_keep_raw(options, console)

    def say(text: str) -> None:
        console.print(f"  {text}", style="dim", markup=False)

    with open_run(prepared, options.run) as run:
        console.print(f"run {run.path}: {len(jobs)} cells under {_name(profiler)}", markup=False)
        workplace = Workplace(prepared.config, run.logs, say, worker)
        if isinstance(profiler, Ncu):
            failed = _count_all(jobs, Counter(workplace, options.steps, profiler, keep_raw), run, console)
        else:
            failed = _trace_all(jobs, Tracer(workplace, options.steps, profiler, keep_raw), run, options, console)
    if failed:
        console.print(f"{len(failed)} of {len(jobs)} cells failed: {', '.join(failed)}", markup=False)
    console.print(f"The report: fusebench report experiment={config.name} run={run.path.name}", markup=False)
    return 1 if failed else 0


def jobs_under(profiler: Nsys | Ncu | None, prepared: Prepared, console: Console) -> list[Job]:
    """The jobs that this profiler can do; what it cannot is said. UserError where none is left."""
    # A whole run is too much for the PyTorch profiler's trace of a GPU, and for ncu.
    whole = isinstance(profiler, Nsys) or prepared.config.device == "cpu"
    planned = list(plan_jobs(prepared))
    jobs = planned if whole else list(plan_jobs(prepared, STEP_KINDS))
    if not jobs:
        raise UserError("nothing to trace: decode and prefill cells can be traced, and offline cells by nsys")
    if left_out := len(planned) - len(jobs):
        console.print(f"offline cells are whole runs, which need nsys: {left_out} left out", markup=False)
    return jobs


def plan_jobs(prepared: Prepared, kinds: Sequence[str] = (*STEP_KINDS, *WHOLE_RUNS)) -> Iterator[Job]:
    """Each point of these kinds with each variant, once; a variant that is another under a second name is left out,
    for its kernels are the same, and so is another engine, which has none of our ranges."""
    kind_of = {workload.name: workload.kind for workload in prepared.config.workloads}
    variants: dict[tuple[object, ...], VariantConfig] = {}
    for variant in (variant for variant in prepared.config.variants if not variant.is_peer):
        variants.setdefault((variant.kind, tuple(sorted(variant.switches.items())), variant.runtime), variant)
    for model, plan in zip(prepared.models, prepared.plan.models, strict=True):
        for point in plan.points:
            if kind_of[point.workload] in kinds:
                yield from (Job(model, variant, Cell(point, variant.name, 0)) for variant in variants.values())


def choose_profiler(options: Options, device: str, console: Console) -> Nsys | Ncu | None:
    """The profiler to start workers under, or None for the PyTorch profiler."""
    if options.profiler == "torch":
        return None
    if device == "cpu":
        if options.profiler in ("nsys", "ncu"):
            raise UserError(
                f"profiler={options.profiler} sees kernels of a GPU only, and device is cpu; use profiler=torch"
            )
        return None
    if options.profiler == "ncu":
        return find_ncu(options.ncu)
    try:
        return find_nsys(options.nsys)
    except UserError as error:
        if options.profiler == "nsys" or options.nsys:
            raise
        console.print(f"the PyTorch profiler stands in: {error}", markup=False)
        return None


def _name(profiler: Nsys | Ncu | None) -> str:
    return f"{type(profiler).__name__.lower()} {profiler.version}" if profiler else "the PyTorch profiler"


def _make_keep_raw(options: Options, console: Console) -> Path | None:
    if not options.keep_raw:
        return None
    folder = Path(options.keep_raw).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"keep_raw={options.keep_raw}: {error.strerror}") from None
    console.print(f"raw traces go to {folder}; they hold this machine's environment: keep them private", markup=False)
    return folder


def _trace_all(jobs: Sequence[Job], tracer: Tracer, run: TraceRun, options: Options, console: Console) -> list[str]:
    """Trace, store and print job by job; returns the ids of the cells that failed."""
    failed = []
    baselines: dict[object, Ledger] = {}
    for i, job in enumerate(jobs, 1):
        console.print(f"[{i}/{len(jobs)}] {job.cell.id}", markup=False)
        try:
            ledger = tracer.trace(job.model, job.variant, job.cell, run.untraced_step_ms(job.cell))
        except CannotTrace as error:
            console.print(f"  not traced: {error}", markup=False)
            failed.append(job.cell.id)
            continue
        write_json(run.traces / f"{job.cell.id}.json", plain.encode(run.signed(ledger)))
        show_ledger(console, ledger)
        if against := contradictions(ledger):
            console.print(f"  the trace contradicts the variant: {'; '.join(against)}", style="red", markup=False)
            failed.append(job.cell.id)
        if job.variant.name == BASELINE:
            baselines[job.cell.point] = ledger
            continue
        assert_present(ledger, dict.fromkeys(options.expect))
        if baseline := baselines.get(job.cell.point):
            _show_difference(baseline, ledger, console)
    return failed


def _count_all(jobs: Sequence[Job], counter: Counter, run: TraceRun, console: Console) -> list[str]:
    """Count, store and print job by job; returns the ids of the cells that failed."""
    failed = []
    for i, job in enumerate(jobs, 1):
        console.print(f"[{i}/{len(jobs)}] {job.cell.id}", markup=False)
        try:
            counters = counter.count(job.model, job.variant, job.cell)
        except CannotTrace as error:
            console.print(f"  not counted: {error}", markup=False)
            failed.append(job.cell.id)
            continue
        write_json(run.counters / f"{job.cell.id}.json", plain.encode(counters))
        show(console, counter_table(counters))
    return failed


def _show_difference(baseline: Ledger, ledger: Ledger, console: Console) -> None:
    show(console, changes(baseline, ledger))
    if all(change.baseline_count == change.other_count for change in compare(baseline, ledger)):
        # Twins may be the same calls of PyTorch: that says nothing of the kernels.
        twin = any(row.fate == Fate.TWIN for row in ledger.rungs)
        console.print(
            "  the same calls as the baseline's, as often: the twins ran, and only a GPU shows what the kernels replace"
            if twin
            else "  the very kernels of the baseline, as often: at this shape the variant replaces nothing",
            style="yellow",
        )
