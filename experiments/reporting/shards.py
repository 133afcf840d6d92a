"""Where the points of a spread run were measured, and what those places had in common."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from experiments.cluster.records import ShardRecord
from experiments.floors import Ceilings
from experiments.records import CellResult, Point
from experiments.reporting.run import Run


@dataclass(frozen=True)
class Place:
    """A shard that measured cells: how many, of how many points, from `start` to `end` (s since 1970). `beside` are the
    shards that measured on its host meanwhile."""

    record: ShardRecord
    num_cells: int
    num_points: int
    start: float
    end: float
    beside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The host, and which of its GPUs."""
        return f"{self.record.node}, GPU {self.record.device}" if self.record.device else self.record.node


def places(run: Run) -> list[Place]:
    """Every shard that has cells in the run, in order; none where one process measured everything."""
    cells = _by_shard(run)
    alone = [_place(record, cells[record.id]) for record in run.info.shards if record.id in cells]
    return [
        Place(p.record, p.num_cells, p.num_points, p.start, p.end, tuple(o.record.id for o in alone if _meet(p, o)))
        for p in alone
    ]


def mixed_machines(run: Run) -> dict[Point, str]:
    """The GPU (or CPU) that each point was measured on, where the run has several types of them; else nothing."""
    known = {record.id: record.machine_type for record in run.info.shards}
    types: dict[Point, set[str]] = defaultdict(set)
    for shard, results in _by_shard(run).items():
        for result in results:
            types[result.cell.point].add(known.get(shard, run.info.machine_type))
    if len(set().union(*types.values())) < 2:
        return {}
    return {point: "/".join(sorted(found)) for point, found in types.items()}


def ceilings_at(run: Run, machines: Mapping[Point, str], point: Point) -> Ceilings | None:
    """What the machine that measured the point reached; the run's own figure where all machines are alike."""
    if machines.get(point, run.info.machine_type) == run.info.machine_type:
        return run.info.ceilings
    alike = [record for record in run.info.shards if record.machine_type == machines[point]]
    return next((found for record in alike if (found := Ceilings.of(record.ceilings))), None)


def _by_shard(run: Run) -> dict[str, list[CellResult]]:
    """The results that a process measured, by shard; those of a sweep in one process under no name."""
    cells: dict[str, list[CellResult]] = defaultdict(list)
    for result in run.results:
        if result.started:
            cells[result.shard].append(result)
    return cells


def _place(record: ShardRecord, results: list[CellResult]) -> Place:
    starts = [datetime.fromisoformat(result.started).timestamp() for result in results]
    ends = [start + result.duration_s for start, result in zip(starts, results, strict=True)]
    return Place(record, len(results), len({result.cell.point for result in results}), min(starts), max(ends))


def _meet(one: Place, other: Place) -> bool:
    """Whether two shards measured on one host at the same time."""
    apart = one.record.id == other.record.id or one.record.node != other.record.node
    return not apart and one.start < other.end and other.start < one.end
