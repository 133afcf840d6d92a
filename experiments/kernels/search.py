"""The search for a tile: from the heuristic's choice on, one property at a time, as long as it gets faster.

Every candidate is held to the kernel's error bounds before it is timed. What the search ends at is then measured once
more, beside the heuristic's choice and what the kernel replaces: the best of many noisy times is too good by chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from experiments.kernel_records import FUSED, UNFUSED
from experiments.kernels.linear_cases import LinearCase
from experiments.kernels.measure import Bench, Run, launches_on, why_wrong
from experiments.kernels.timing import cold_copies
from experiments.stats import EQUIVALENCE_MARGIN, Estimate, cell_value, estimate, paired_ratios
from variants.kernels.tiles import MAX_SKINNY_ROWS, Tile

MAX_SHARED_BYTES = 227 * 1024
MAX_GEMV_ROWS = 4
# Weights that one thread of a gemv may hold: each takes part of a register, twice.
MAX_HELD_WEIGHTS = 128
SEARCH_REPEATS = 5
# A step must gain more than this, or the search follows noise.
LEAST_GAIN = 1.01
HEURISTIC = "heuristic"


@dataclass(frozen=True)
class Found:
    """What a search came to: a tile that beats the heuristic's beyond noise, or None.

    `gain` is the speed-up of the best tile over the heuristic's, `speedup` that of the kernel, with the tile it will
    have, over what it replaces. `tried` counts tiles.
    """

    tile: Tile | None
    gain: Estimate
    speedup: Estimate
    tried: int

    @property
    def pays(self) -> bool:
        """Whether the kernel is at least as fast as what it replaces, within the margin of equivalence."""
        return self.speedup.low is not None and self.speedup.low >= 1 - EQUIVALENCE_MARGIN


def neighbours(tile: Tile, can_split: bool) -> Iterator[Tile]:
    """Tiles that differ in one property; not all of them are legal."""
    doubled = ["block_n", "block_k", "num_warps"]
    if tile.path == "wide":
        doubled.append("block_m")
    if tile.path == "skinny" and can_split:
        doubled.append("splits")
    for name in doubled:
        value = getattr(tile, name)
        yield from (replace(tile, **{name: changed}) for changed in (value * 2, value // 2))
    if tile.path != "gemv":
        yield from (replace(tile, stages=tile.stages + step) for step in (1, -1))


def is_legal(tile: Tile, rows: int, k: int, itemsize: int, matrices: int) -> bool:
    """Whether the kernels can run it for that many rows of K elements."""
    if not (4 <= tile.block_n <= 256 and 16 <= tile.block_k <= 4096 and 1 <= tile.num_warps <= 8 and tile.splits >= 1):
        return False
    if tile.path == "gemv":
        held = tile.block_n * tile.block_k * matrices // (32 * tile.num_warps)
        return rows <= min(tile.block_m, MAX_GEMV_ROWS) and held <= MAX_HELD_WEIGHTS
    if tile.path == "skinny" and not rows <= tile.block_m <= MAX_SKINNY_ROWS:
        return False
    buffers = tile.stages * (matrices * tile.block_n + tile.block_m) * tile.block_k * itemsize
    sound = tile.block_n >= 16 and tile.block_m >= 8 and 2 <= tile.stages <= 6
    return sound and buffers <= MAX_SHARED_BYTES and tile.splits * tile.block_k <= max(tile.block_k, k)


class Search:
    """The search for one kernel, shape and number of rows; weights are cold in L2."""

    def __init__(self, bench: Bench, case: LinearCase) -> None:
        self._bench = bench
        self._cases = [case, *(case.clone() for _ in range(cold_copies(case.weight_bytes(), bench.l2) - 1))]
        self._oracle = case.oracle()
        self._unfused_error = case.error(case.outputs(case.launch_unfused(bench.how)), self._oracle)
        self._tried: dict[Tile, float] = {}

    def run(self) -> Found:
        """Climb from the heuristic's tile, then measure where that led."""
        case = self._cases[0]
        (rows, k), itemsize = case.x_TK.shape, case.dtype.itemsize
        heuristic = best = case.heuristic_tile()
        self._time(best)
        while True:
            around = (tile for tile in neighbours(best, case.CAN_SPLIT) if tile not in self._tried)
            legal = (tile for tile in around if is_legal(tile, rows, k, itemsize, case.MATRICES))
            # The first that is faster: tiles take seconds to compile.
            better = next((t for t in legal if self._time(t) * LEAST_GAIN < self._tried[best]), None)
            if better is None:
                return self._confirmed(heuristic, best)
            best = better

    def _time(self, tile: Tile) -> float:
        """Median microseconds; infinite for a tile that is wrong or does not compile."""
        case, run = self._cases[0], self._run(tile)
        took_us = float("inf")
        try:
            outputs = case.outputs(run(case))
            if not why_wrong(case, outputs, self._oracle, self._unfused_error):
                took_us = cell_value(self._bench.timer({FUSED: launches_on(run, self._cases)}, SEARCH_REPEATS)[FUSED])
        except Exception:
            # Too many registers, too much shared memory: compiler and driver each say so in their own way.
            took_us = float("inf")
        self._tried[tile] = took_us
        return took_us

    def _run(self, tile: Tile) -> Run:
        def run(case: Any) -> Any:
            return case.launch(self._bench.how, tile=tile)

        return run

    def _confirmed(self, heuristic: Tile, best: Tile) -> Found:
        """Both tiles and the unfused kernels, taking turns."""
        runs: dict[str, Run] = {HEURISTIC: self._run(heuristic), FUSED: self._run(best)}
        runs[UNFUSED] = lambda case: case.launch_unfused(self._bench.how)
        samples = self._bench.timer(
            {name: launches_on(run, self._cases) for name, run in runs.items()}, self._bench.repeats
        )
        gain = _speedup(samples[HEURISTIC], samples[FUSED])
        better = best != heuristic and gain.low is not None and gain.low > 1 + EQUIVALENCE_MARGIN
        speedup = _speedup(samples[UNFUSED], samples[FUSED if better else HEURISTIC])
        return Found(best if better else None, gain, speedup, len(self._tried))


def _speedup(before: list[float], after: list[float]) -> Estimate:
    ratios = paired_ratios(dict(enumerate(before)), dict(enumerate(after)), lower_is_better=True)
    return estimate(list(ratios.values()))
