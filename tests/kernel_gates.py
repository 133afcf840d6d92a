"""The numerics gates of `experiments/kernels/figures.py` as the kernel tests use them (design section 6).

A kernel's launcher runs compiled on a GPU and in Triton's interpreter elsewhere; the interpreter is slow and has no
bfloat16, so there the lists of shapes are short and bfloat16 waits for a GPU.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.kernels import figures
from experiments.kernels.case import Case
from experiments.kernels.cases import ALL_ROWS
from experiments.kernels.figures import GuardedEmpty, relative_error, strided, tolerance, unit_roundoff

__all__ = [
    "DEVICE", "DTYPES", "FEW_ROWS", "ROWS", "assert_deterministic", "assert_pdl_changes_nothing", "guard_outputs",
    "randn", "relative_error", "strided", "tolerance", "unit_roundoff",
]  # fmt: skip

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
]
FEW_ROWS = Case.FEW_ROWS
# Rows of the design's list; the ones the interpreter can afford run everywhere.
ROWS = [m if m in FEW_ROWS else pytest.param(m, marks=pytest.mark.gpu) for m in ALL_ROWS]


def randn(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    """Seeded normal numbers, the same on every device."""
    return figures.randn(*shape, dtype=dtype, seed=seed, scale=scale).to(DEVICE)


class Guard(GuardedEmpty):
    """A `GuardedEmpty` that a test can ask."""

    def check(self) -> None:
        """No write outside an output."""
        assert self.written_outside() == 0, "a kernel wrote outside its output"


def guard_outputs(monkeypatch: pytest.MonkeyPatch) -> Guard:
    """Replace `torch.empty` and `torch.empty_like` for one launch; call `.check()` after it."""
    guarded = Guard()
    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(torch, "empty_like", lambda x: guarded(*x.shape, dtype=x.dtype, device=x.device))
    return guarded


def assert_deterministic(launch: Callable[[], Tensor]) -> None:
    """100 launches more give the same bits."""
    assert figures.changed_by_repeating(launch) == 0


def assert_pdl_changes_nothing(launch: Callable[[bool], Tensor], refresh: Callable[[], object]) -> None:
    """Graphs of a chain with and without PDL give the same bits over 1,000 replays."""
    assert figures.changed_by_pdl(launch, refresh) == 0
