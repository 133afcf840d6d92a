"""A plan cut into shards. All variants and rounds of a point stay in one shard, so pairs share a node and a GPU.

The points stay in the order planned, model after model, and are cut where each shard has its share of the cells; a cell
takes about as long as any other, since the protocol bounds its windows by time. Each cut through a model means that it
is loaded once more, so a cut moves to the end of a model that is near.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from experiments.plan import Plan
from experiments.records import Cell, Point

# How far a cut may move to the end of a model, in shares. Loading the five engines of a model once more took 34 s and
# more of 280 (results/headline/20261128-225356-00fb97c, between the cells of its shards).
SLACK = 0.32


@dataclass(frozen=True)
class Shard:
    """Points that one process measures. `id` is unique in a run: which launch, which shard of it."""

    id: str
    points: tuple[Point, ...]


def make_shards(plan: Plan, cells: Sequence[Cell], count: int, launch: int = 1) -> tuple[Shard, ...]:
    """At most `count` shards that hold the points of `cells`, each point once."""
    if not cells:
        return ()
    weight = Counter(cell.point for cell in cells)
    points = [point for model in plan.models for point in model.points if point in weight]
    before = [0, *accumulate(weight[point] for point in points)]
    count = min(count, len(points))
    cuts = [0, *(_cut(points, before, share * before[-1] / count, before[-1] / count) for share in range(1, count))]
    parts = [tuple(points[start:end]) for start, end in pairwise([*cuts, len(points)])]
    return tuple(Shard(f"{launch:02d}-{index:02d}", part) for index, part in enumerate(filter(None, parts)))


def _cut(points: Sequence[Point], before: Sequence[int], wanted: float, share: float) -> int:
    """The place with about `wanted` cells before it; between two models, where one of those is near enough."""

    def distance(place: int) -> float:
        return abs(before[place] - wanted)

    between = [i for i in range(1, len(points)) if points[i - 1].model != points[i].model]
    near = [place for place in between if distance(place) <= SLACK * share]
    return min(near or range(len(before)), key=distance)
