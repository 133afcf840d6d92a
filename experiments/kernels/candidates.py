"""The tiles that `fusebench tune` tries at a shape: the heuristic's, a spread of what could be as good, neighbours.

A tile could be as good if the kernels can run it and it keeps about as many weight bytes in flight as memory needs. Of
each number of columns, parts of K and step through K the likeliest come first, so that a short list differs in what
matters. What memory and arithmetic make of them is then measured.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

from engine.kernels._triton import cdiv, next_power_of_2
from variants.kernels.tickets import MAX_TICKETS
from variants.kernels.tiles import HELD_A_THREAD, HELD_SLICES, MAX_HELD_ROWS, MAX_SKINNY_ROWS, Tile, linear_tile

MAX_SHARED_BYTES = 227 * 1024
# What a product's epilogue needs beside the buffers of its loop.
SCRATCH_BYTES = 4 * 1024
MAX_GEMV_ROWS = 4
# Elements of K in a slice of the held path: what one instruction of the tensor cores takes.
LEAST_SLICE = 16
MOST_TILES = 24
MOST_GEMV_ROWS_TRIED = 2
# Rows from which the usual tiled product is tried.
FEWEST_WIDE_ROWS = 64
# A full decode step; steps with prompts, which have more, launch plainly.
MOST_DEPENDENT_ROWS = 256
# Little's law: 4.8 TB/s and about 1 us from memory are 36 KiB a multiprocessor; twice that hides the edges of steps.
WANTED_BYTES = 64 * 1024
# Fewer multiprocessors than this share cannot draw all of the bandwidth.
LEAST_BUSY = 0.4
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
MOST_PROGRAMS_PER_SM_SPLIT = 2.2

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A product of `rows` rows of K elements with `matrices` weights [n, k] each, on a GPU of `sms` multiprocessors."""

    rows: int
    n: int
    k: int
    itemsize: int
    matrices: int
    can_split: bool
    sms: int
    by_tma: bool = True

    def heuristic(self) -> Tile:
        """The tile where nothing was measured."""
        return linear_tile(self.rows, self.n, self.k, self.itemsize, self.sms, self.matrices, self.can_split)


def candidates(problem: Problem, most: int = MOST_TILES) -> list[Tile]:
    """At most that many tiles, the heuristic's first."""
    rows = problem.rows
    paths: list[list[Tile]] = []
    if rows <= MOST_GEMV_ROWS_TRIED:
        paths.append(_spread(problem, _gemv_tiles(problem)))
    if rows <= MAX_HELD_ROWS:
        paths.append(_spread(problem, _held_tiles(problem)))
    if 1 < rows <= MAX_SKINNY_ROWS:
        paths.append(_spread(problem, _skinny_tiles(problem)))
    if rows >= FEWEST_WIDE_ROWS:
        paths.append(_spread(problem, _wide_tiles(problem)))
    return list(dict.fromkeys([problem.heuristic(), *in_turns(paths)]))[:most]


def neighbours(tile: Tile, problem: Problem) -> list[Tile]:
    """The legal tiles that differ from one in a single way: half or twice as much of something, a stage, the launch."""
    changes: list[dict[str, Any]] = []
    for name in ("num_warps", "block_k", "block_n", "splits"):
        value = getattr(tile, name)
        changes += [{name: value // 2}, {name: value * 2}]
    if tile.path in ("skinny", "wide"):
        changes += [{"stages": tile.stages + 1}, {"stages": tile.stages - 1}]
    if tile.path == "gemv" or not problem.can_split:
        changes = [change for change in changes if "splits" not in change]
    # Nothing can be half of one.
    near = [replace(tile, **change) for change in changes if min(change.values()) >= 1]
    if tile.path == "wide" and _may_depend(problem):
        near.append(replace(tile, dependent=not tile.dependent))
    return [one for one in near if is_legal(one, problem) and one.block_k <= max(16, next_power_of_2(problem.k))]


def is_legal(tile: Tile, problem: Problem) -> bool:
    """Whether the kernels can run it."""
    if not (2 <= tile.block_n <= 256 and 16 <= tile.block_k <= 4096 and 1 <= tile.num_warps <= 8 and tile.splits >= 1):
        return False
    if tile.splits > 1 and tile.grid(problem.rows, problem.n)[0] > MAX_TICKETS:
        return False
    if tile.path == "gemv":
        return problem.rows <= min(tile.block_m, MAX_GEMV_ROWS) and _a_thread(tile, problem) <= HELD_A_THREAD
    fits = _buffers(tile, problem) + SCRATCH_BYTES <= MAX_SHARED_BYTES
    whole = tile.splits * tile.block_k <= max(tile.block_k, next_power_of_2(problem.k))
    if tile.path == "held":
        rows_fit = problem.rows <= tile.block_m <= MAX_HELD_ROWS and tile.block_m >= 8
        registers_fit = _a_thread(tile, problem) * (1 if tile.once(problem.k) else 2) <= HELD_A_THREAD
        slices_fit = tile.block_n >= 16 and tile.block_k >= LEAST_SLICE * HELD_SLICES
        return rows_fit and registers_fit and slices_fit and fits and whole
    if tile.path == "skinny" and not problem.rows <= tile.block_m <= MAX_SKINNY_ROWS:
        return False
    sound = tile.block_n >= 16 and tile.block_m >= 8 and 2 <= tile.stages <= 6
    return sound and fits and tile.splits * tile.block_k <= max(tile.block_k, problem.k)


def in_turns(lists: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first of each list, then the second of each, and so on."""
    for place in range(max(map(len, lists), default=0)):
        yield from (one[place] for one in lists if place < len(one))


def _gemv_tiles(problem: Problem) -> Iterator[Tile]:
    block_m = next_power_of_2(problem.rows)
    for block_n, block_k, num_warps in product((2, 4, 8, 16, 32), _steps(problem, 256, 4096), (2, 4, 8)):
        tile = Tile("gemv", block_m, block_n, block_k, num_warps, stages=2)
        # 16 bytes a load for every thread.
        if _a_thread(tile, problem) * problem.itemsize >= 16 * problem.matrices:
            yield tile


def _held_tiles(problem: Problem) -> Iterator[Tile]:
    block_m = max(8, next_power_of_2(problem.rows))
    for block_n, block_k, num_warps in product((16, 32, 64), _steps(problem, 256, 4096), (4, 8)):
        for splits in _splits(problem, block_m, block_n, block_k):
            yield Tile("held", block_m, block_n, block_k, num_warps, stages=1, splits=splits)


def _skinny_tiles(problem: Problem) -> Iterator[Tile]:
    block_m = max(8, next_power_of_2(problem.rows))
    for block_n, block_k in product((16, 32, 64, 128), _steps(problem, 64, 512)):
        # A warp's share of a product has 16 rows of weights, or 8; more warps would compute the same.
        warps = [w for w in (2, 4, 8) if 8 * w <= block_n]
        for num_warps, splits in product(warps, _splits(problem, block_m, block_n, block_k)):
            steps = cdiv(problem.k, block_k * splits)
            for stages in range(2, 1 + min(6, max(2, steps + 1))):
                yield Tile("skinny", block_m, block_n, block_k, num_warps, stages, splits)


def _wide_tiles(problem: Problem) -> Iterator[Tile]:
    for block_m, columns, block_k in product((64, 128), (32, 64, 128, 256), _steps(problem, 64, 128)):
        block_n = columns // problem.matrices
        for num_warps, stages, splits in product((4, 8), (3, 5), _splits(problem, block_m, block_n, block_k)):
            if block_m <= max(64, next_power_of_2(problem.rows)):
                tile = Tile("wide", block_m, block_n, block_k, num_warps, stages, splits)
                yield from (tile, replace(tile, dependent=True)) if _may_depend(problem) else (tile,)


def _may_depend(problem: Problem) -> bool:
    return problem.by_tma and problem.rows <= MOST_DEPENDENT_ROWS


def _steps(problem: Problem, least: int, most: int) -> list[int]:
    """Powers of two within the bounds that are no longer than K; one that covers K where none is."""
    whole = max(16, next_power_of_2(problem.k))
    return [1 << i for i in range(4, 13) if least <= 1 << i <= min(most, whole)] or [whole]


def _splits(problem: Problem, block_m: int, block_n: int, block_k: int) -> list[int]:
    """Parts of K without an empty one, up to about two programs a multiprocessor."""
    tiles, steps = cdiv(problem.rows, block_m) * cdiv(problem.n, block_n), cdiv(problem.k, block_k)
    if not problem.can_split:
        return [1]
    whole = [s for s in SPLITS if s <= steps and cdiv(steps, cdiv(steps, s)) == s]
    return [s for s in whole if s == 1 or tiles * s <= MOST_PROGRAMS_PER_SM_SPLIT * problem.sms]


def _spread(problem: Problem, tiles: Iterable[Tile]) -> list[Tile]:
    """The legal ones that keep enough of the GPU busy: the likeliest of each cut first, in turns."""
    legal = [tile for tile in tiles if is_legal(tile, problem)]
    most_busy = max((_busy(tile, problem) for tile in legal), default=0.0)
    legal = [tile for tile in legal if _busy(tile, problem) >= min(LEAST_BUSY, most_busy)]
    legal.sort(key=lambda tile: _handicap(tile, problem))
    cuts = _groups(legal, lambda tile: (tile.block_n, tile.splits, tile.block_m, tile.dependent))
    return list(in_turns([list(in_turns(_groups(cut, lambda tile: tile.block_k))) for cut in cuts]))


def _groups(tiles: Iterable[Tile], key: Callable[[Tile], Hashable]) -> list[list[Tile]]:
    """Tiles of one key together, in the order in which keys and tiles come."""
    found: dict[Hashable, list[Tile]] = {}
    for tile in tiles:
        found.setdefault(key(tile), []).append(tile)
    return list(found.values())


def _handicap(tile: Tile, problem: Problem) -> float:
    """How far a tile is from what memory wants, in doublings; 0 is best."""
    flight = _in_flight(tile, problem)
    # Too little in flight costs bandwidth, too much only room.
    off = math.log2(WANTED_BYTES / flight)
    usual_warps = 4 if tile.block_n < 128 or tile.path == "gemv" else 8
    warps = 0.25 * abs(math.log2(tile.num_warps / usual_warps))
    # Held weights are meant to be there before x is, all of them.
    late = 0.0 if tile.path != "held" or tile.once(problem.k) else 1.0
    return (off if off > 0 else -off / 4) + warps + late - math.log2(_busy(tile, problem))


def _busy(tile: Tile, problem: Problem) -> float:
    """The share of the multiprocessors that are busy, on average over the rounds that the programs take."""
    programs = _programs(tile, problem)
    return programs / (problem.sms * cdiv(programs, problem.sms))


def _in_flight(tile: Tile, problem: Problem) -> float:
    """Weight bytes that one multiprocessor has asked for at a time."""
    step = problem.matrices * tile.block_n * tile.block_k * problem.itemsize
    resident = min(cdiv(_programs(tile, problem), problem.sms), 32 // tile.num_warps)
    if tile.path == "held":
        resident = min(resident, max(1, MAX_SHARED_BYTES // _buffers(tile, problem)))
    if tile.path in ("gemv", "held"):
        return resident * (1 if tile.once(problem.k) else 2) * step
    resident = min(resident, max(1, MAX_SHARED_BYTES // _buffers(tile, problem)))
    return resident * (tile.stages - 1) * step


def _programs(tile: Tile, problem: Problem) -> int:
    tiles, splits = tile.grid(problem.rows, problem.n)
    return tiles * splits


def _a_thread(tile: Tile, problem: Problem) -> int:
    """Weights of one step in the registers of one thread."""
    return tile.block_n * tile.block_k * problem.matrices // (32 * tile.num_warps)


def _buffers(tile: Tile, problem: Problem) -> int:
    """The most shared memory that a product on the tensor cores takes: its operands, all stages."""
    step = (problem.matrices * tile.block_n + tile.block_m) * tile.block_k
    return tile.stages * step * problem.itemsize
