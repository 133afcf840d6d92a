"""Which cells to measure, in which order.

Cells come in rounds, so that a variant is compared with the baseline of the same minutes. Within a round the points are
shuffled; at each point the variants take turns in an order drawn from Williams' squares: over as many rounds as there
are variants each variant stands at each place once, and over twice as many it follows each other variant equally often.
All of it is decided by the seed.

Where the engines of a model do not fit on the device together (`by_process`), a round is one variant after another,
each in a fresh process, the order of variants again from a Williams square.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from experiments.config import ExperimentConfig
from experiments.records import Cell, Point


@dataclass(frozen=True)
class ModelPlan:
    """Every cell of one model, in order. `by_process`: one worker at a time, one process per variant and round."""

    model: str
    points: tuple[Point, ...]
    cells: tuple[Cell, ...]
    by_process: bool = False


@dataclass(frozen=True)
class Plan:
    """The whole sweep, model by model."""

    seed: int
    rounds: int
    variants: tuple[str, ...]
    models: tuple[ModelPlan, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell, in the order measured."""
        return tuple(cell for model in self.models for cell in model.cells)

    @property
    def digest(self) -> str:
        """SHA-256 of the cells in order: two plans with the same digest are the same."""
        return hashlib.sha256("\n".join(cell.id for cell in self.cells).encode()).hexdigest()


def make_plan(config: ExperimentConfig, models: Sequence[str], by_process: frozenset[str] = frozenset()) -> Plan:
    """The plan of an experiment over models of these names, `by_process` those whose engines do not fit together."""
    variants = tuple(variant.name for variant in config.variants)
    rounds = config.protocol.rounds
    plans = []
    for model in models:
        points = tuple(
            Point(model, workload.name, batch, length)
            for workload in config.workloads
            if workload.is_for(model)
            for batch, length in workload.pairs()
        )
        order = _one_by_one if model in by_process else _interleaved
        cells = tuple(order(points, variants, rounds, Random(f"{config.seed}/{model}")))
        plans.append(ModelPlan(model, points, cells, model in by_process))
    return Plan(config.seed, rounds, variants, tuple(plans))


def missing_cells(cells: Sequence[Cell], done: Collection[Cell]) -> list[Cell]:
    """What is still to be measured, in order. A round of a point is measured whole: half of a pair that was measured on
    another GPU, or on another day, is no pair."""
    torn = {(cell.point, cell.round) for cell in cells if cell not in done}
    return [cell for cell in cells if (cell.point, cell.round) in torn]


def _interleaved(points: Sequence[Point], variants: Sequence[str], rounds: int, rng: Random) -> Iterator[Cell]:
    orders = {point: balanced_orders(variants, rng) for point in points}
    for round_ in range(rounds):
        for point in rng.sample(points, len(points)):
            yield from (Cell(point, variant, round_) for variant in next(orders[point]))


def _one_by_one(points: Sequence[Point], variants: Sequence[str], rounds: int, rng: Random) -> Iterator[Cell]:
    orders = balanced_orders(variants, rng)
    for round_ in range(rounds):
        shuffled = rng.sample(points, len(points))
        for variant in next(orders):
            yield from (Cell(point, variant, round_) for point in shuffled)


def balanced_orders(items: Sequence[str], rng: Random) -> Iterator[tuple[str, ...]]:
    """Endless orders of the items: each run of len(items) orders is a Latin square, each two such runs balanced for
    who follows whom (Williams 1949: one square where the count is even, a square and its mirror where it is odd).
    """
    n = len(items)
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]
    while True:
        labels = rng.sample(items, n)
        for mirrored in (False, True):
            square = [[labels[(step + shift) % n] for step in zigzag] for shift in range(n)]
            for row in rng.sample(square, n):
                yield tuple(reversed(row)) if mirrored else tuple(row)
