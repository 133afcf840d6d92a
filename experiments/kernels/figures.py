"""Error figures of kernels and the bounds they are held to (design section 6): for tests, `validate` and `kernels`.

Nothing here knows a kernel. Inputs are seeded; outputs can be made to lie between guard bands of NaN; launches can be
repeated and replayed, counting the bytes that change.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

REPEATS = 100
REPLAYS = 1000
# A fused kernel may be this much less accurate than the kernels it replaces.
WORSE_THAN_UNFUSED = 1.05
GUARD_ELEMENTS = 1024
# The design's gate in bf16; one rounding of the result costs 2.33e-3.
MOST_RELATIVE_ERROR = 2.5e-3


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to `dtype`."""
    return float(torch.finfo(dtype).eps) / 2


def tolerance(dtype: torch.dtype, sums: int = 1) -> float:
    """Relative Frobenius error allowed against float64.

    One rounding of the result has an RMS relative error of at most 0.6 u (uniform mantissas: u / sqrt(3) / 0.96) and
    the folded weight's or the summand's rounding as much again: u covers both with room. An fp32 sum of `sums` terms
    adds at most sqrt(sums) roundings of 2^-24, in practice a few. bf16: 2.5e-3 < u = 3.9e-3, the design's own gate.
    """
    accumulation: float = 4 * unit_roundoff(torch.float32) * max(1.0, sums**0.5)
    bound: float = min(unit_roundoff(dtype), MOST_RELATIVE_ERROR) + accumulation
    return bound


def relative_error(y: Tensor, oracle: Tensor) -> float:
    """||y - oracle|| / ||oracle|| in float64."""
    difference: float = (y.double() - oracle.double()).norm().item()
    norm: float = oracle.double().norm().item()
    return difference / norm if norm else difference


def largest_error(y: Tensor, oracle: Tensor) -> float:
    """The largest |y - oracle|; 0 of nothing."""
    return (y.double() - oracle.double()).abs().max().item() if y.numel() else 0.0


def randn(*shape: int, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu", scale: float = 1.0) -> Tensor:
    """Seeded normal numbers, drawn in fp32 on `device`."""
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype)


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

    def __call__(self, *size: Any, **options: Any) -> Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        count, band = shape.numel(), GUARD_ELEMENTS
        whole = self._empty(count + 2 * band, **options)
        whole.fill_(float("nan") if whole.is_floating_point() else -7)
        self.outputs.append((whole, band, band + count))
        return whole[band : band + count].view(shape)

    def written_outside(self) -> int:
        """Elements of the guard bands that were written."""
        assert self.outputs, "the launcher allocated no output"
        guards = [guard for whole, low, high in self.outputs for guard in (whole[:low], whole[high:])]
        return sum(int((~guard.isnan() if guard.is_floating_point() else guard != -7).sum()) for guard in guards)


@contextmanager
def guarded_outputs() -> Iterator[GuardedEmpty]:
    """Replaces `torch.empty` and `torch.empty_like` for a launch."""
    guarded = GuardedEmpty()

    def empty_like(x: Tensor) -> Tensor:
        return guarded(*x.shape, dtype=x.dtype, device=x.device)

    with mock.patch.object(torch, "empty", guarded), mock.patch.object(torch, "empty_like", empty_like):
        yield guarded


def changed_bytes(x: Tensor, y: Tensor) -> int:
    """Bytes that differ, whatever they mean: NaNs may be equal, and zeros of two signs are not."""
    return int((x.contiguous().view(torch.uint8) != y.contiguous().view(torch.uint8)).sum())


def changed_by_repeating(launch: Callable[[], Tensor], repeats: int = REPEATS) -> int:
    """Bytes that differ from the first launch's, over `repeats` more."""
    first = launch().clone()
    return sum(changed_bytes(launch(), first) for _ in range(repeats))


def changed_by_pdl(launch: Callable[[bool], Tensor], refresh: Callable[[], object], replays: int = REPLAYS) -> int:
    """Bytes that differ between graphs of a chain with and without PDL, replayed on fresh inputs each time.

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
    changed = torch.zeros((), dtype=torch.int64, device=outputs[0].device)
    for _ in range(replays):
        refresh()
        for graph in graphs:
            graph.replay()
        changed += (outputs[0].view(torch.uint8) != outputs[1].view(torch.uint8)).sum()
    return int(changed)
