"""The numerics gates of design section 6, one function each: figures, and a verdict on them.

Each gate tries a kernel at every place within its `Reach` and reports the worst figure with its place. The tests hold
the same figures to the same bounds; this is what shows them, on whatever GPU there is.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from experiments.errors import first_line
from experiments.kernel_records import RUNS, GateRow, GateStatus
from experiments.kernels.case import Case, Deviation, How, Outputs, Shape, rows_of
from experiments.kernels.cases import ALL_ROWS
from experiments.kernels.chains import chain_of
from experiments.kernels.figures import (
    REPEATS,
    REPLAYS,
    WORSE_THAN_UNFUSED,
    changed_by_pdl,
    changed_by_repeating,
    changed_bytes,
    guarded_outputs,
)
from experiments.kernels.pooling import enough, pooled_errors, rows_for_enough

MOST_TWIN_ROWS = 129
# Rows of `with_special_rows` that are broken, and so many rows that some beside them are not.
BROKEN, SPECIAL_ROWS = (1, 2), (4, 17, 66)
PDL_ROWS, PDL_WIDTH = (1, 4, 16, 64, 200), 1024
NO_GPU = "it needs a GPU"


@dataclass(frozen=True)
class Reach:
    """A kernel in one dtype on one device, run as `how`."""

    kind: type[Case]
    how: How
    dtype: torch.dtype
    device: torch.device

    @property
    def kernels(self) -> str:
        """What runs: twins, interpreted or compiled kernels."""
        if self.how == "twin":
            return "twin"
        return "compiled" if self.device.type == "cuda" else "interpreted"

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The models' own on a GPU only."""
        return self.kind.SHAPES + (self.kind.REAL_SHAPES if self.kernels == "compiled" else ())

    @property
    def rows(self) -> tuple[int, ...]:
        """All of the design's list on a GPU."""
        if self.kernels == "interpreted":
            return self.kind.FEW_ROWS
        return tuple(m for m in ALL_ROWS if self.kernels == "compiled" or m <= MOST_TWIN_ROWS)

    def draw(self, shape: Shape, rows: int) -> Case:
        """Inputs as awkward as they come."""
        return self.kind.draw(shape, rows, self.dtype, self.device)

    def judge(self, gate: str, found: Sequence[Deviation], unfused: Sequence[float] = ()) -> GateRow:
        """The gate's row: the figure that is worst for its bound."""
        at = max(range(len(found)), key=lambda i: found[i].excess)
        worst, status = found[at], GateStatus.PASSED if found[at].ok else GateStatus.FAILED
        own = unfused[at] if unfused else None
        return GateRow(*self._name(gate), status, worst.what, worst.error, worst.bound, own, len(found))

    def show(self, gate: str, figures: Sequence[float], places: Sequence[str]) -> GateRow:
        """A row without a bound: the greatest figure, or one that is no number."""
        at = max(range(len(figures)), key=lambda i: (math.isnan(figures[i]), figures[i]))
        return GateRow(*self._name(gate), GateStatus.SHOWN, places[at], figures[at], checked=len(figures))

    def skip(self, gate: str, why: str) -> GateRow:
        """A row that says why there is no figure."""
        return GateRow(*self._name(gate), GateStatus.SKIPPED, why)

    def fail(self, error: Exception) -> GateRow:
        """The row of a kernel that raised."""
        return GateRow(*self._name(RUNS), GateStatus.FAILED, f"{type(error).__name__}: {first_line(error)}")

    def _name(self, gate: str) -> tuple[str, str, str, str]:
        return self.kind.name(), self.kernels, str(self.dtype).removeprefix("torch."), gate


@dataclass(frozen=True)
class LaunchErrors:
    """One launch at one place. `outside` counts what was written outside of any output.

    `ratio` is its typical error over the unfused path's, over more launches where one has few values.
    """

    where: str
    error: Deviation
    unfused: float
    ratio: float
    largest: float
    others: tuple[Deviation, ...]
    outside: int


def gates_of(reach: Reach) -> Iterator[GateRow]:
    """Every gate in turn, up to one that raises."""
    try:
        yield from accuracy(reach)
        yield special_rows(reach)
        yield repeats(reach)
        yield batch_invariance(reach)
        yield pdl(reach)
    except Exception as error:
        # Whatever a kernel or its compiler raises is that kernel's result; the next one has its turn.
        yield reach.fail(error)


def accuracy(reach: Reach) -> Iterator[GateRow]:
    """Errors against float64 and the unfused path's own; guard bands around outputs that were NaN; strided rows."""
    trials = [attempt(reach, shape, rows) for shape in reach.shapes for rows in reach.rows]
    places = [trial.where for trial in trials]
    unfused = [trial.unfused for trial in trials]
    yield reach.judge("relative error against float64", [trial.error for trial in trials], unfused)
    ratios = [trial.ratio for trial in trials]
    name = "error over the unfused path's"
    if reach.dtype == torch.float32:
        # Two fp32 sums in different orders: either may be the better one.
        yield reach.show(name, ratios, places)
    else:
        bounded = [Deviation(place, ratio, WORSE_THAN_UNFUSED) for place, ratio in zip(places, ratios, strict=True)]
        yield reach.judge(name, bounded)
    yield reach.show("largest error", [trial.largest for trial in trials], places)
    for what in dict.fromkeys(other.what for trial in trials for other in trial.others):
        mine = [(trial.where, other) for trial in trials for other in trial.others if other.what == what]
        yield reach.judge(f"error of {what}", [Deviation(where, m.error, m.bound) for where, m in mine])
    yield reach.judge("written outside of outputs", [Deviation(t.where, t.outside, 0) for t in trials])


def attempt(reach: Reach, shape: Shape, rows: int) -> LaunchErrors:
    """Launch fused, unfused and oracle on the same inputs."""
    where = f"M={rows}, {'x'.join(map(str, shape))}"
    case = reach.draw(shape, rows)
    oracle, fused, replaced = case.oracle(), case.fresh(), case.fresh()
    unfused = replaced.outputs(replaced.launch_unfused(reach.how))
    # A twin leaves the allocation of its outputs to PyTorch.
    with nullcontext() if reach.how == "twin" else guarded_outputs() as guarded:
        launched = fused.launch(reach.how)
    outputs = fused.outputs(launched)
    return LaunchErrors(
        where,
        Deviation(where, case.error(outputs, oracle), case.bound()),
        case.error(unfused, oracle),
        _ratio(reach, shape, case, (outputs, unfused), oracle),
        case.largest(outputs, oracle),
        tuple(case.others(outputs, oracle)),
        (guarded.written_outside() if guarded else 0) + fused.strays(case),
    )


def _ratio(reach: Reach, shape: Shape, case: Case, found: tuple[Outputs, Outputs], oracle: Outputs) -> float:
    """The fused kernel's typical error over the unfused path's, from the outputs `found` of both if those suffice."""
    # What is only shown, for fp32, need not be right.
    if enough(type(case), found[0]) or reach.dtype == torch.float32:
        mine, unfused = (case.typical_error(outputs, oracle) for outputs in found)
    else:
        pool = reach.draw(shape, rows_for_enough(type(case), found[0], case.num_rows))
        # A launch in the interpreter takes as long for one row as for all.
        rows = pool.num_rows if reach.kernels == "interpreted" else case.num_rows
        runs: list[Callable[[Case], Any]] = [
            lambda part: part.launch(reach.how),
            lambda part: part.launch_unfused(reach.how),
        ]
        mine, unfused = pooled_errors(pool, rows, runs)
    if not unfused:
        return math.inf if mine else 0.0
    return mine / unfused


def special_rows(reach: Reach) -> GateRow:
    """Rows of zeros, with an outlier, beside rows with a NaN and an infinity: the latter spoil themselves alone."""
    found = []
    for rows in SPECIAL_ROWS:
        if rows > max(reach.rows):
            continue
        case = reach.draw(reach.shapes[0], rows).with_special_rows()
        clean = [row for row in range(rows) if row not in BROKEN]
        with warnings.catch_warnings():
            # The interpreter computes NaN and infinities with NumPy, which warns.
            warnings.simplefilter("ignore", RuntimeWarning)
            outputs = rows_of(case.outputs(case.launch(reach.how)), clean)
        oracle = rows_of(case.oracle(), clean)
        found.append(Deviation(f"M={rows}", case.error(outputs, oracle), case.bound()))
    return reach.judge("error beside NaN, infinity, zeros and 1e4", found)


def repeats(reach: Reach) -> GateRow:
    """Bytes that change when the same launch is repeated."""
    gate = f"bytes changed over {REPEATS} repeats"
    if reach.kernels == "interpreted":
        return reach.skip(gate, "the interpreter runs one program after another: there is no order to depend on")
    found = []
    for rows in (1, 17):
        case = reach.draw(reach.shapes[-1], rows)
        changed = changed_by_repeating(lambda case=case: case.outputs(case.launch(reach.how))[0])  # type: ignore[misc]
        found.append(Deviation(f"M={rows}", changed, 0))
    return reach.judge(gate, found)


def batch_invariance(reach: Reach) -> GateRow:
    """Bytes of a row that change with the rows around it, within a dispatch class."""
    gate = "bytes changed by other rows"
    if reach.how == "twin":
        return reach.skip(gate, "PyTorch chooses a product by its shape")
    found, classes = [], []
    case = reach.draw(reach.shapes[-1], max(reach.rows))
    for _, members in groupby(reach.rows, case.dispatch_class):
        counts = list(members)
        classes.append(f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else str(counts[0]))
        most = case.take(counts[-1]).fresh()
        whole = most.outputs(most.launch(reach.how))[0]
        for rows in counts[:-1]:
            part = case.take(rows).fresh()
            alone = part.outputs(part.launch(reach.how))[0]
            changed = changed_bytes(alone, whole[:rows])
            found.append(Deviation(f"M={rows} of {counts[-1]}", changed, 0))
    if not found:
        return reach.skip(gate, "no two of the rows tried are of one dispatch class")
    row = reach.judge(gate, found)
    return row if row.status is GateStatus.FAILED else replace(row, where=f"classes of M: {', '.join(classes)}")


def pdl(reach: Reach) -> GateRow:
    """Bytes that change when kernels may start before their predecessors end."""
    gate = f"bytes changed by PDL over {REPLAYS} replays"
    if reach.kernels != "compiled":
        return reach.skip(gate, NO_GPU)
    if torch.cuda.get_device_capability(reach.device) < (9, 0):
        return reach.skip(gate, "this GPU has no programmatic dependent launch")
    found = []
    for rows in PDL_ROWS:
        launch, inputs = chain_of(reach.kind, rows, PDL_WIDTH, reach.dtype, reach.device)
        found.append(Deviation(f"M={rows}", changed_by_pdl(launch, inputs.normal_), 0))
    return reach.judge(gate, found)
