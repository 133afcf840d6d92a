"""Which points of a sweep need no more rounds.

After each round every point is looked at. It is settled, and the rest of its planned cells are skipped as `SETTLED`,
once every variant there is settled against the baseline by `stats.is_settled`: its speed-up is known to
+-`protocol.target_ci`, and its verdict could not change. What time is left goes to the other points. A variant that
failed at a point has no row there, however many rounds follow, so it keeps no point open.
"""

from collections import defaultdict

from experiments.config import BASELINE, ExperimentConfig
from experiments.metrics import Better, Metric, primary_metric
from experiments.plan import Plan
from experiments.records import OUT_OF_TIME, SETTLED, Cell, CellResult, Point, Status
from experiments.stats import Looks, SampleError, is_settled, paired_ratios


class Settling:
    """Learns from every result of a sweep, in any order; looks when asked."""

    def __init__(self, config: ExperimentConfig, plan: Plan) -> None:
        protocol = config.protocol
        self._target = protocol.target_ci
        self._looks = Looks.planned(protocol.rounds, protocol.min_rounds, protocol.target_ci)
        self._metrics = {workload.name: primary_metric(workload.kind) for workload in config.workloads}
        self._variants = [variant for variant in plan.variants if variant != BASELINE]
        # Of the whole run, of which this plan may be a part: at most every workload of every model.
        points = sum(len(workload.pairs()) for workload in config.workloads) * len(config.models)
        self._comparisons = len(self._variants) * points
        self._values: dict[tuple[Point, str], dict[int, float]] = defaultdict(dict)
        self._failed: set[tuple[Point, str]] = set()
        self._settled: set[Point] = set()

    def learn(self, result: CellResult) -> None:
        """Take one result into account."""
        cell = result.cell
        if result.is_settled:
            self._settled.add(cell.point)
        elif result.reason == OUT_OF_TIME:
            return
        elif (value := self._value(result)) is None:
            self._failed.add((cell.point, cell.variant))
        else:
            self._values[cell.point, cell.variant][cell.round] = value

    def look(self) -> list[Point]:
        """The points that became settled since the last look."""
        unsettled = {point for point, _ in self._values} - self._settled
        found = sorted(point for point in unsettled if self._is_settled(point))
        self._settled.update(found)
        return found

    def why_skip(self, cell: Cell) -> str | None:
        """`SETTLED` for a cell that needs not be measured, else None."""
        return SETTLED if cell.point in self._settled else None

    def _value(self, result: CellResult) -> float | None:
        metric = self._metrics[result.cell.point.workload]
        if result.status is not Status.OK or metric is None:
            return None
        try:
            return metric.value(result)
        except SampleError:
            return None

    def _is_settled(self, point: Point) -> bool:
        metric = self._metrics[point.workload]
        compared = [variant for variant in self._variants if (point, variant) not in self._failed]
        if self._target is None or metric is None or not compared or (point, BASELINE) in self._failed:
            return False
        return all(self._is_clear(point, variant, metric, self._target) for variant in compared)

    def _is_clear(self, point: Point, variant: str, metric: Metric, target: float) -> bool:
        baseline, values = self._values[point, BASELINE], self._values[point, variant]
        ratios = paired_ratios(baseline, values, metric.better is Better.LOWER)
        return is_settled(list(ratios.values()), target, self._looks, self._comparisons)
