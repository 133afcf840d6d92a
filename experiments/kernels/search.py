"""The best tile for one kernel, shape and number of rows, of those that compiled.

Every candidate is held to the kernel's error bounds, then timed briefly. The fastest is measured once more, beside the
heuristic's choice and what the kernel replaces: the best of many noisy times is too good by chance.

Fused launches are timed under programmatic dependent launch where the bench says so: each then loads its weights while
the one before it still runs, as in the engine, whose kernels differ but have edges of the same kind. They do not race.
Inputs are constants. Outputs, parts and tickets lie where those of the launch before lay (a graph's allocator hands out
again what was freed), and every program touches them after `gdc_wait` only, when that launch is complete and visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.kernel_records import FUSED, UNFUSED
from experiments.kernels.linear_cases import LinearCase
from experiments.kernels.measure import Bench, Run, launches_on, why_wrong
from experiments.kernels.timing import Timer, cold_copies
from experiments.stats import EQUIVALENCE_MARGIN, Estimate, cell_value, estimate, paired_ratios
from variants.kernels.tiles import Tile

QUICK_REPEATS = 3
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


class Search:
    """The search for one kernel, shape and number of rows; weights are cold in L2."""

    def __init__(self, bench: Bench, quick: Timer, case: LinearCase) -> None:
        self._bench, self._quick = bench, quick
        self._cases = [case, *(case.clone() for _ in range(cold_copies(case.weight_bytes(), bench.l2) - 1))]
        self._oracle = case.oracle()
        self._unfused_error = case.error(case.outputs(case.launch_unfused(bench.how)), self._oracle)

    def run(self, tiles: Sequence[Tile]) -> Found:
        """Try each, then measure where that led; the first is the heuristic's. RuntimeError where that does not run."""
        took_us = {tile: self._time(tile) for tile in tiles}
        heuristic, best = tiles[0], min(took_us, key=took_us.__getitem__)
        if took_us[heuristic] == float("inf"):
            raise RuntimeError("the heuristic's tile is wrong or does not run")
        return self._confirmed(heuristic, best, len(took_us))

    def _time(self, tile: Tile) -> float:
        """Median microseconds; infinite for a tile that is wrong or does not run."""
        case, run = self._cases[0], self._run(tile)
        try:
            if why_wrong(case, case.outputs(run(case)), self._oracle, self._unfused_error):
                return float("inf")
            return cell_value(self._quick({FUSED: launches_on(run, self._cases)}, QUICK_REPEATS)[FUSED])
        except Exception:
            # Too many registers, too much shared memory: compiler and driver each say so in their own way.
            return float("inf")

    def _run(self, tile: Tile) -> Run:
        def run(case: Any) -> Any:
            return case.launch(self._bench.how, pdl=self._bench.pdl, tile=tile)

        return run

    def _confirmed(self, heuristic: Tile, best: Tile, tried: int) -> Found:
        """Both tiles and the unfused kernels, taking turns."""
        runs: dict[str, Run] = {HEURISTIC: self._run(heuristic), FUSED: self._run(best)}
        runs[UNFUSED] = lambda case: case.launch_unfused(self._bench.how)
        samples = self._bench.timer(
            {name: launches_on(run, self._cases) for name, run in runs.items()}, self._bench.repeats
        )
        gain = _speedup(samples[HEURISTIC], samples[FUSED])
        better = best != heuristic and gain.low is not None and gain.low > 1 + EQUIVALENCE_MARGIN
        speedup = _speedup(samples[UNFUSED], samples[FUSED if better else HEURISTIC])
        return Found(best if better else None, gain, speedup, tried)


def _speedup(before: list[float], after: list[float]) -> Estimate:
    ratios = paired_ratios(dict(enumerate(before)), dict(enumerate(after)), lower_is_better=True)
    return estimate(list(ratios.values()))
