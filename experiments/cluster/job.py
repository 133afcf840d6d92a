"""One shard, in a process that submitit started: what is still missing of it is measured into the run's folder.

It may be started again at any time, on any node: killed, preempted, out of time, requeued. What the folder holds is not
measured again, so a job needs no other state than where its run is.
"""

import os
import signal
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.cluster.records import ShardRecord, claim_machine, drop_record, read_records, write_record
from experiments.cluster.shards import Shard
from experiments.config import ExperimentConfig
from experiments.environment import code
from experiments.errors import UserError
from experiments.manifest import Manifest, differences, new_manifest, unlike_machines
from experiments.plan import make_plan, missing_cells
from experiments.progress import make_display
from experiments.records import OUT_OF_TIME, CellResult, Point, Status
from experiments.store import RunStore, read_cells, read_manifest
from experiments.sweep import Prepared, Sweep, prepare

# A job that is being ended may lose its workers first; the signal or the kill that is meant for it follows at once.
GRACE_S = 2.0


@dataclass(frozen=True)
class ShardJob:
    """A shard of the run at `run`, to be called where it is to be measured. `config` has device and dtype resolved."""

    run: str
    shard: Shard
    config: ExperimentConfig
    worker: Sequence[str] | None

    def __call__(self) -> str:
        """Measure; returns why nothing more was measured, or nothing."""
        before = signal.signal(signal.SIGTERM, _end)
        try:
            run_shard(self)
        except UserError as error:
            print(f"fusebench: {error}", flush=True)
            return str(error)
        finally:
            signal.signal(signal.SIGTERM, before)
        return ""

    def checkpoint(self) -> Any:
        """What submitit queues again when the job's time is up, or the node is wanted by somebody else."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class ShardStore(RunStore):
    """A run as one shard writes it: its own cells, and what it learns to its own record."""

    def __init__(self, path: Path, manifest: Manifest, record: ShardRecord) -> None:
        # The hashes of all shards bind this one; words and measured rates are its own.
        own = replace(manifest, weights=record.weights, ceilings=record.ceilings)
        super().__init__(path, own, shared=True)
        self._record = record
        self.logs.mkdir(exist_ok=True)

    @property
    def logs(self) -> Path:
        """Where this shard's workers log."""
        return super().logs / self._record.id

    def write_cell(self, result: CellResult) -> None:
        """Keep one finished cell, marked as this shard's."""
        if result.status in (Status.ERROR, Status.TIMEOUT):
            time.sleep(GRACE_S)
        super().write_cell(replace(result, shard=self._record.id))

    def write_manifest(self, manifest: Manifest) -> None:
        """Keep what a worker said; the manifest itself is the launcher's."""
        models = {point.model for point in self._record.points}
        self._record = replace(
            self._record,
            weights={name: told for name, told in manifest.weights.items() if name in models},
            weights_hash={name: told for name, told in manifest.weights_hash.items() if name in models},
            ceilings=manifest.ceilings,
        )
        write_record(self.path, self._record)
        self.manifest = manifest


def run_shard(job: ShardJob) -> None:
    """Measure what the run lacks of the shard. UserError where this machine or this code is not the run's."""
    path, points = Path(job.run), job.shard.points
    prepared = prepare(job.config)
    record = _join(path, job, prepared)
    prepared = only(prepared, points)
    manifest = read_manifest(path)
    with ShardStore(path, manifest, record) as store:
        done = _done(path, manifest, record)
        missing = set(missing_cells(prepared.plan.cells, {result.cell for result in done}))
        store.forget(missing)
        kept = [result for result in done if result.cell not in missing]
        with make_display(prepared.plan.cells, kept) as display:
            display.say(f"shard {record.id} on {record.node}: {len(missing)} of {len(prepared.plan.cells)} cells to go")
            Sweep(prepared, store, display, kept, job.worker).run()


def only(prepared: Prepared, points: Collection[Point]) -> Prepared:
    """The same sweep over fewer points, in the same order."""
    chosen = frozenset(points)
    plans = [
        replace(
            plan,
            points=tuple(point for point in plan.points if point in chosen),
            cells=tuple(cell for cell in plan.cells if cell.point in chosen),
        )
        for plan in prepared.plan.models
    ]
    kept = [(model, plan) for model, plan in zip(prepared.models, plans, strict=True) if plan.points]
    plan = replace(prepared.plan, models=tuple(plan for _, plan in kept))
    return replace(prepared, models=[model for model, _ in kept], plan=plan)


def _join(path: Path, job: ShardJob, prepared: Prepared) -> ShardRecord:
    """This shard's record, written; UserError where its cells may not be added to the run's."""
    launched = read_manifest(path)
    # The order of the cells is the node's affair: it depends on what fits its GPU. The rest of the plan is the run's.
    alone = frozenset(launched.plan.by_process)
    plan = make_plan(prepared.config, [model.name for model in prepared.models], alone)
    mine = new_manifest(prepared.config, prepared.models, plan, prepared.environment, code())
    unlike = unlike_machines(launched, mine)
    if changed := [line for line in differences(launched, mine) if line not in unlike]:
        raise UserError(f"shard {job.shard.id} on {_node()} is refused: {'; '.join(changed)}")
    record = _new_record(path, job.shard, only(prepared, job.shard.points), mine)
    write_record(path, record)
    if not launched.machine:
        claim_machine(path, record)
    unlike = unlike_machines(read_manifest(path), mine)
    if unlike and not job.config.cluster.mixed:
        drop_record(path, record)
        raise UserError(
            f"shard {record.id} on {record.node} is refused: {'; '.join(unlike)}. Keep to one type of node "
            "(cluster.constraint, cluster.partition), or allow several: cluster.mixed=true"
        )
    return record


def _new_record(path: Path, shard: Shard, prepared: Prepared, mine: Manifest) -> ShardRecord:
    """What this shard's record starts from: the record of its earlier start on the same GPU, where there was one."""
    record = ShardRecord(
        id=shard.id,
        node=_node(),
        device=os.environ.get("CUDA_VISIBLE_DEVICES", "") if prepared.config.device == "cuda" else "",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        points=shard.points,
        by_process=tuple(plan.model for plan in prepared.plan.models if plan.by_process),
        gpu=mine.gpu,
        machine=mine.machine,
        software=mine.software,
    )
    earlier = [other for other in read_records(path)[0] if other.id.partition(".")[0] == shard.id]
    same = [other for other in earlier if (other.node, other.device, other.gpu) == (_node(), record.device, record.gpu)]
    if same:
        return same[0]
    return replace(record, id=f"{shard.id}.{len(earlier)}") if earlier else record


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _done(path: Path, manifest: Manifest, record: ShardRecord) -> list[CellResult]:
    """What was measured of this shard's points, on a machine like this one: a point's rounds are not mixed."""
    mine = frozenset(record.points)
    unlike = {other.id for other in read_records(path)[0] if other.machine_type != record.machine_type}
    return [
        result
        for result in read_cells(path, manifest)[0]
        if result.cell.point in mine and result.shard not in unlike and result.reason != OUT_OF_TIME
    ]


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
