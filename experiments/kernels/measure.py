"""One place after another: errors first, then times, a row for every contender whatever becomes of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from experiments.errors import REASON_WIDTH, first_line
from experiments.floors import Ceilings
from experiments.kernel_floors import kernel_work
from experiments.kernel_records import ALONE, COMPILED, FUSED, UNFUSED, KernelRow
from experiments.kernels.case import Case, Deviation, How, Outputs, Shape
from experiments.kernels.cases import forms
from experiments.kernels.figures import WORSE_THAN_UNFUSED
from experiments.kernels.pooling import enough, pooled_errors, rows_for_enough
from experiments.kernels.timing import Launch, Timer, cold_copies
from experiments.records import Status

COLD, HOT = "cold", "hot"
# The baseline rounds more often than a fused kernel and is the yardstick; only what is beyond all rounding is refused.
MOST_UNFUSED_BOUNDS = 4.0
MORE_THAN_UNFUSED = "more than the unfused path's own"

Run = Callable[[Case], Any]


@dataclass(frozen=True)
class Place:
    """What is measured: an op, in one of its forms, at a model's shape with a number of rows."""

    model: str
    op: str
    site: str
    shape: Shape
    rows: int
    form: str = ALONE


@dataclass(frozen=True)
class Bench:
    """How it is measured. `l2` is the size of the L2 cache that cold weights must exceed; 0 leaves cold out."""

    device: torch.device
    dtype: str
    timer: Timer
    repeats: int
    l2: int = 0
    pdl: bool = False
    compiled: bool = False
    ceilings: Ceilings | None = None

    @property
    def how(self) -> How:
        """Kernels on a GPU, their twins elsewhere."""
        return "triton" if self.device.type == "cuda" else "twin"

    def contenders(self) -> dict[str, Run]:
        """What is compared."""
        runs: dict[str, Run] = {
            UNFUSED: lambda case: case.launch_unfused(self.how),
            FUSED: lambda case: case.launch(self.how, pdl=self.pdl),
        }
        if self.compiled:
            # A graph of its own is captured around it, as around the others.
            torch._dynamo.reset()
            # Candidates that worker processes compiled are loaded one by one where they are timed, 5 to 25 s a shape;
            # threads of this process leave them loaded.
            torch._inductor.config.compile_threads = 1
            runs[COMPILED] = torch.compile(_formula, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
        return runs

    def caches(self, case: Case) -> tuple[str, ...]:
        """The states of L2 that make a difference."""
        return (COLD, HOT) if self.l2 and case.WEIGHTS else (HOT,)


def _formula(case: Case) -> Any:
    """The plain formula of what a kernel replaces, for torch.compile to fuse as it can."""
    return case.launch_unfused("twin")


def measure(bench: Bench, place: Place) -> Iterator[KernelRow]:
    """A row for every contender and state of L2. Nothing is timed whose error is not within its bound."""
    runs = bench.contenders()
    try:
        dtype = getattr(torch, bench.dtype)
        case = forms(place.op)[place.form].draw(place.shape, place.rows, dtype, bench.device, plain=True)
        checked = check(bench, place, case, runs)
        for cache in bench.caches(case):
            yield from _timed(bench, case, runs, [replace(row, cache=cache) for row in checked])
    except torch.cuda.OutOfMemoryError as error:
        for name in runs:
            yield _row(bench, place, name, Status.OOM, first_line(error))


def check(bench: Bench, place: Place, case: Case, runs: dict[str, Run]) -> list[KernelRow]:
    """Rows with the error of each contender, or why it has none; the unfused one comes first."""
    oracle, rows, unfused = case.oracle(), [], float("nan")
    for name, run in runs.items():
        fresh = case.fresh()
        try:
            outputs = fresh.outputs(run(fresh))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a kernel or its compiler raises is that contender's result.
            rows.append(_row(bench, place, name, Status.ERROR, f"{type(error).__name__}: {error}"))
            continue
        found = Deviation(name, case.error(outputs, oracle), case.bound())
        if name == FUSED:
            why = why_wrong(case, outputs, oracle, unfused) or _why_worse(bench, place, outputs, runs)
        else:
            found = replace(found, bound=MOST_UNFUSED_BOUNDS * found.bound)
            why = "" if found.ok else _beyond(found)
            unfused = found.error if name == UNFUSED else unfused
        row = _row(bench, place, name, Status.INVALID if why else Status.OK, why)
        rows.append(replace(row, error=found.error, bound=found.bound))
    return rows


def why_wrong(case: Case, outputs: Outputs, oracle: Outputs, unfused: float) -> str:
    """What of a fused kernel's outputs is not within its bound; empty where all is.

    Errors of few values are not compared with the unfused path's own: which is the smaller is luck.
    """
    error = case.error(outputs, oracle)
    measured = [Deviation("", error, case.bound()), *case.others(outputs, oracle)]
    if case.dtype != torch.float32 and enough(type(case), outputs):
        measured.append(Deviation(MORE_THAN_UNFUSED, error, WORSE_THAN_UNFUSED * unfused))
    return next((_beyond(one) for one in measured if not one.ok), "")


def _why_worse(bench: Bench, place: Place, outputs: Outputs, runs: dict[str, Run]) -> str:
    """That a fused kernel of few `outputs` is less accurate than the unfused path, over enough of them; else empty."""
    dtype, kind = getattr(torch, bench.dtype), forms(place.op)[place.form]
    if enough(kind, outputs) or dtype == torch.float32:
        return ""
    rows = rows_for_enough(kind, outputs, place.rows)
    case = kind.draw(place.shape, rows, dtype, bench.device, plain=True)
    mine, unfused = pooled_errors(case, place.rows, [runs[FUSED], runs[UNFUSED]])
    found = Deviation(MORE_THAN_UNFUSED, mine, WORSE_THAN_UNFUSED * unfused)
    return "" if found.ok else _beyond(found)


def _beyond(found: Deviation) -> str:
    return f"{found.what}: error {found.error:.3g} is beyond {found.bound:.3g}".removeprefix(": ")


def _timed(bench: Bench, case: Case, runs: dict[str, Run], rows: Sequence[KernelRow]) -> Iterator[KernelRow]:
    """The rows with their samples, those that are ok."""
    cold = rows[0].cache == COLD
    cases = [case] + [case.clone() for _ in range(cold_copies(case.weight_bytes(), bench.l2) - 1 if cold else 0)]
    able = [row.contender for row in rows if row.status is Status.OK]
    samples = bench.timer({name: launches_on(runs[name], cases) for name in able}, bench.repeats) if able else {}
    for row in rows:
        work = kernel_work(row.op, row.shape, row.rows, case.dtype.itemsize, row.form)
        floor_ms = bench.ceilings.time_ms(work.bytes, work.flop) if bench.ceilings and cold else None
        yield replace(
            row,
            copies=len(cases),
            samples_us=tuple(samples.get(row.contender, ())),
            bytes=float(work.bytes),
            flop=float(work.flop),
            floor_us=None if floor_ms is None else 1e3 * floor_ms,
        )


def launches_on(run: Run, cases: Sequence[Case]) -> list[Launch]:
    """A launch for each copy of the weights."""
    return [lambda case=case: run(case) for case in cases]  # type: ignore[misc]


def _row(bench: Bench, place: Place, contender: str, status: Status, reason: str) -> KernelRow:
    kernels = "compiled" if bench.how == "triton" else "twin"
    return KernelRow(
        place.model, place.op, place.site, place.shape, place.rows, bench.dtype, HOT, contender, kernels, status,
        reason[:REASON_WIDTH], form=place.form,
    )  # fmt: skip
