"""What `fusebench tune` measures, in which order, and what has to be compiled for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.kernels._triton import num_sms
from experiments.kernels.candidates import Problem, candidates, in_turns
from experiments.kernels.case import Shape
from experiments.kernels.cases import forms
from experiments.kernels.compiling import Compilation
from experiments.kernels.linear_cases import LinearCase
from experiments.kernels.measure import Bench
from experiments.kernels.search import Found, Search
from experiments.kernels.timing import Timer
from variants.kernels.tile_table import key_of
from variants.kernels.tiles import Tile

# One row is a single request, 8 and 64 the batches that reports are about.
FIRST_ROWS = (1, 8, 64)


@dataclass(frozen=True)
class KernelPoint:
    """A kernel at a shape (N, K) with a number of rows."""

    op: str
    shape: Shape
    rows: int

    @property
    def key(self) -> str:
        """The shape's key in the table."""
        n, k = self.shape
        return key_of(self.op, n, k)

    @property
    def kind(self) -> type[LinearCase]:
        """The kernel in the form that the fused engine runs."""
        *_, kind = forms(self.op).values()
        assert issubclass(kind, LinearCase)
        return kind

    def problem(self, itemsize: int, sms: int) -> Problem:
        """What its tiles have to solve."""
        kind, (n, k) = self.kind, self.shape
        return Problem(self.rows, n // kind.MATRICES, k, itemsize, kind.MATRICES, kind.CAN_SPLIT, sms, kind.BY_TMA)


def points(places: Iterable[tuple[str, Shape]], rows: Iterable[int]) -> list[KernelPoint]:
    """Each (op, shape) with each number of rows once, the numbers that matter most first."""
    counts = sorted(set(rows), key=lambda count: (count not in FIRST_ROWS, count))
    distinct = list(dict.fromkeys(places))
    return [KernelPoint(op, shape, count) for count in counts for op, shape in distinct]


def tiles_to_try(todo: Iterable[KernelPoint], bench: Bench) -> dict[KernelPoint, list[Tile]]:
    """The candidates of each point, the heuristic's first."""
    sms, itemsize = num_sms(torch.empty(0, device=bench.device)), getattr(torch, bench.dtype).itemsize
    return {point: candidates(point.problem(itemsize, sms)) for point in todo}


def compilation(point: KernelPoint, tile: Tile, bench: Bench) -> Compilation:
    """What has to be compiled to time a tile at a point."""
    return Compilation(point.op, point.kind.FORM, point.shape, bench.dtype, bench.pdl, tile)


def compilations(todo: Mapping[KernelPoint, Sequence[Tile]], bench: Bench) -> list[Compilation]:
    """Each once, the likeliest tiles of the most important points first."""
    groups = ([p for p in todo if (p.rows in FIRST_ROWS) == first] for first in (True, False))
    lists = [[[compilation(point, tile, bench) for tile in todo[point]] for point in group] for group in groups]
    return list(dict.fromkeys(job for group in lists for job in in_turns(group)))


def search_point(point: KernelPoint, tiles: Sequence[Tile], bench: Bench, quick: Timer) -> Found:
    """What a point came to; the heuristic's tile is the first. RuntimeError where it cannot be measured."""
    case = point.kind.draw(point.shape, point.rows, getattr(torch, bench.dtype), bench.device, plain=True)
    return Search(bench, quick, case).run(tiles)
