"""The numerics gates that every kernel test shares (design section 6).

A kernel's launcher runs compiled on a GPU and in Triton's interpreter elsewhere; the interpreter is slow and has no
bfloat16, so there the lists of shapes are short and bfloat16 waits for a GPU.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
]
# Rows of the design's list; the ones the interpreter can afford run everywhere.
FEW_ROWS = [1, 2, 3, 7, 17, 65]
ALL_ROWS = [1, 2, 3, 7, 16, 17, 31, 32, 63, 64, 65, 127, 128, 129, 199, 511, 2048]
ROWS = [m if m in FEW_ROWS else pytest.param(m, marks=pytest.mark.gpu) for m in ALL_ROWS]


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


def tolerance(dtype: torch.dtype, sums: int = 1) -> float:
    """Relative Frobenius error allowed against float64.

    One rounding of the result has an RMS relative error of at most 0.6 u (uniform mantissas: u / sqrt(3) / 0.96) and
    the folded weight's or the summand's rounding as much again: u covers both with room. An fp32 sum of `sums` terms
    adds at most sqrt(sums) roundings of 2^-24, in practice a few. bf16: 2.5e-3 < u = 3.9e-3, the design's own gate.
    """
    accumulation = 4 * unit_roundoff(torch.float32) * max(1.0, sums**0.5)
    return min(unit_roundoff(dtype), 2.5e-3) + accumulation


def relative_error(y: Tensor, oracle: Tensor) -> float:
    """||y - oracle|| / ||oracle|| in float64."""
    difference = (y.double() - oracle.double()).norm().item()
    norm = oracle.double().norm().item()
    return difference / norm if norm else difference


def randn(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    """Seeded normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(DEVICE)


def strided(x: Tensor, padding: int = 24) -> Tensor:
    """The same values with rows further apart, NaN between them."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + padding), float("nan"), dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


class GuardedEmpty:
    """Stands in for `torch.empty`: every output is NaN and lies between guard bands of NaN."""

    def __init__(self) -> None:
        self.outputs: list[tuple[Tensor, int, int]] = []
        self._empty = torch.empty

    def __call__(self, *size: int | tuple[int, ...], **options: object) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        count, band = torch.Size(shape).numel(), 1024  # type: ignore[arg-type]
        whole = self._empty(count + 2 * band, **options)  # type: ignore[call-overload]
        whole.fill_(float("nan") if whole.is_floating_point() else -7)
        self.outputs.append((whole, band, band + count))
        view: Tensor = whole[band : band + count].view(shape)
        return view

    def check(self) -> None:
        """No write outside an output."""
        assert self.outputs, "the launcher allocated no output"
        for whole, low, high in self.outputs:
            for guard in (whole[:low], whole[high:]):
                untouched = guard.isnan() if guard.is_floating_point() else guard == -7
                assert bool(untouched.all()), "a kernel wrote outside its output"


def guard_outputs(monkeypatch: pytest.MonkeyPatch) -> GuardedEmpty:
    """Replace `torch.empty` and `torch.empty_like` for one launch; call `.check()` after it."""
    guarded = GuardedEmpty()
    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(torch, "empty_like", lambda x: guarded(*x.shape, dtype=x.dtype, device=x.device))
    return guarded


def assert_deterministic(launch: Callable[[], Tensor], repeats: int = 100) -> None:
    """`repeats` launches give the same bits."""
    first = launch().clone()
    for _ in range(repeats):
        assert torch.equal(launch().view(torch.uint8), first.view(torch.uint8))


def assert_pdl_changes_nothing(
    launch: Callable[[bool], Tensor], refresh: Callable[[], None], replays: int = 1000
) -> None:
    """Graphs of a chain with and without PDL give the same bits, replayed on fresh inputs each time.

    `launch(pdl)` runs a chain of kernels on static inputs; `refresh()` overwrites those in place.
    """
    graphs, outputs = [], []
    for pdl in (False, True):
        launch(pdl)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs.append(launch(pdl))
        graphs.append(graph)
    mismatches = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(replays):
        refresh()
        for graph in graphs:
            graph.replay()
        mismatches += (outputs[0].view(torch.uint8) != outputs[1].view(torch.uint8)).sum()
    assert mismatches.item() == 0
