"""Errors of a fused kernel and of what it replaces, over so many values that their ratio is not luck.

One value is rounded once by either, and which of the two lands nearer says nothing. Where a launch gives few values,
more rows are drawn, run so many at a time as the launch has, and compared as one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from experiments.kernels.case import Case, Outputs


def enough(kind: type[Case], outputs: Outputs) -> bool:
    """Whether the first output alone has values enough for a case of this kind."""
    return outputs[0].numel() >= kind.ENOUGH_VALUES


def rows_for_enough(kind: type[Case], outputs: Outputs, rows: int) -> int:
    """The multiple of `rows` that has values enough, where `rows` have these outputs."""
    return rows * -(-kind.ENOUGH_VALUES // max(1, outputs[0].numel()))


def pooled_errors(case: Case, rows: int, runs: Sequence[Callable[[Case], Any]]) -> list[float]:
    """The typical error of each way to run a case, `rows` of its rows at a time."""
    oracle = case.oracle()
    return [case.typical_error(_in_parts(case, rows, run), oracle) for run in runs]


def _in_parts(case: Case, rows: int, run: Callable[[Case], Any]) -> Outputs:
    parts = [case.part(low, low + rows).fresh() for low in range(0, case.num_rows, rows)]
    return tuple(map(torch.cat, zip(*(part.outputs(run(part)) for part in parts), strict=True)))
