"""A sweep that is spread: shards are planned here, submitted, and watched until each cell has its result.

They write into one run's folder, so a report sees one run, and `resume=` submits shards for whatever is still missing.
Ctrl-C cancels the shards and keeps every finished cell; with cluster.wait=false nothing is waited for.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.cluster.executors import Executor, LocalExecutor, SlurmExecutor, insist_on_submitit, slurm_queue
from experiments.cluster.hosts import device_groups, hosts
from experiments.cluster.job import ShardJob
from experiments.cluster.shards import Shard, make_shards
from experiments.cluster.watch import CellFolder, cancel, watch
from experiments.command_line import INTERRUPTED
from experiments.config import ExperimentConfig
from experiments.environment import code
from experiments.errors import UserError
from experiments.manifest import Manifest, new_manifest
from experiments.plan import missing_cells
from experiments.progress import make_display
from experiments.records import OUT_OF_TIME, Cell, CellResult, Status
from experiments.run_end import how_to_go_on, show_table
from experiments.store import CELLS, RunStore, create_run, read_cells, resume_run
from experiments.sweep import Prepared, prepare

JOBS = "jobs"


def launch(config: ExperimentConfig, arguments: Sequence[str], worker: Sequence[str] | None = None) -> int:
    """Plan, submit, and wait unless told not to; returns the exit code."""
    prepared = prepare(config, hosts(config))
    groups, planned = device_groups(prepared), prepared.plan.cells
    if config.dry_run:
        print(describe(make_shards(prepared.plan, planned, len(groups)), planned))
        return 0
    insist_on_submitit("devices" if config.cluster.kind == "none" else f"cluster={config.cluster.kind}")
    store, found = _open(prepared)
    with store:
        missing = missing_cells(planned, {result.cell for result in found})
        done = [result for result in found if result.cell not in set(missing)]
        launched = Launch(prepared, store, done, how_to_go_on(arguments, store.manifest.run_id))
        try:
            launched.submit(missing, groups, worker)
        except UserError:
            store.discard()
            raise
        if not config.cluster.wait:
            return launched.leave()
        if not launched.wait():
            return INTERRUPTED
    return launched.finish()


def describe(shards: Sequence[Shard], cells: Sequence[Cell]) -> str:
    """Who measures what, in words and in order."""
    lines = [f"{_count(len(cells), 'cell')} in {_count(len(shards), 'shard')}"]
    for shard in shards:
        points = frozenset(shard.points)
        mine = [cell for cell in cells if cell.point in points]
        lines.append(f"shard {shard.id}: {_count(len(shard.points), 'point')}, {_count(len(mine), 'cell')}")
        lines += [f"  {cell.id}" for cell in mine]
    return "\n".join(lines)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("s" if number != 1 else "")


def _open(prepared: Prepared) -> tuple[RunStore, list[CellResult]]:
    """The run that gets the cells, and those it has."""
    config = prepared.config
    wanted = new_manifest(config, prepared.models, prepared.plan, prepared.environment, code())
    if config.cluster.kind == "slurm":
        wanted = replace(wanted, gpu="", machine={})
    if not config.resume:
        return create_run(Path(config.results_dir), wanted), []
    store, found, damaged = resume_run(Path(config.results_dir), config.resume, wanted)
    for line in damaged:
        print(f"warning: {line}; it is measured again")
    name = _job_name(store.manifest)
    if queued := slurm_queue(name):
        store.__exit__()
        raise UserError(
            f"resume={store.path.name}: jobs of this run are still queued or running ({', '.join(queued)}); wait for "
            f"them, or scancel --name={name}"
        )
    return store, [result for result in found if result.reason != OUT_OF_TIME]


def _job_name(manifest: Manifest) -> str:
    return f"fusebench-{manifest.experiment}-{manifest.run_id}"


@dataclass
class Launch:
    """Shards of a run on their way. `done` are the cells that need none, `again` the command that goes on."""

    prepared: Prepared
    store: RunStore
    done: Sequence[CellResult]
    again: str

    def submit(self, missing: Sequence[Cell], groups: Sequence[Sequence[int]], worker: Sequence[str] | None) -> None:
        """Cut what is missing into shards and have them started."""
        jobs = self.store.logs / JOBS
        number = 1 + (len(list(jobs.iterdir())) if jobs.exists() else 0)
        self._executor = self._make_executor(jobs / f"{number:02d}", groups)
        self._cells = CellFolder(self.store.path / CELLS)
        self.store.share()
        shards = make_shards(self.prepared.plan, missing, len(groups), number)
        run, config = str(self.store.path.resolve()), replace(self.prepared.config, resume=None)
        if shards:
            self._executor.submit([ShardJob(run, shard, config, worker) for shard in shards])

    def _make_executor(self, folder: Path, groups: Sequence[Sequence[int]]) -> Executor:
        cluster = self.prepared.config.cluster
        if cluster.kind == "slurm":
            return SlurmExecutor(folder, _job_name(self.store.manifest), cluster)
        if len(groups) > 1:
            print(f"{len(groups)} shards share this host's cores, memory and PCIe; the report says which ran together")
        return LocalExecutor(folder, groups)

    def wait(self) -> bool:
        """Watch the jobs to their end; False where the user cancelled them."""
        planned, jobs = self.prepared.plan.cells, self._executor.jobs
        try:
            with make_display(planned, self.done) as display:
                display.say(f"run {self.store.path}: {len(planned)} cells, {len(self.done)} of them done")
                display.say(f"{_count(len(jobs), 'shard')} submitted; Ctrl-C cancels what is left")
                watch(self._cells, self._executor, display)
            return True
        except KeyboardInterrupt:
            cancel(self._executor)
            self.store.discard()
            kept = f"every finished cell is kept; go on with: {self.again}"
            print(f"\ncancelled; {kept if self.store.path.exists() else 'nothing was measured'}", file=sys.stderr)
            return False

    def leave(self) -> int:
        """Say how to follow the jobs, and how to end them."""
        name, run_id = self.store.manifest.experiment, self.store.manifest.run_id
        ids = ", ".join(job.job_id for job in self._executor.jobs)
        follow, stop = self._executor.by_hand()
        print(f"run {self.store.path}: {_count(len(self._executor.jobs), 'shard')} submitted, jobs {ids}")
        print(f"follow them: {follow}\ncancel them: {stop}")
        print(f"what is there: fusebench report experiment={name} run={run_id} --terminal")
        print(f"what is missing once they ended: {self.again}")
        return 0

    def finish(self) -> int:
        """The table, what went wrong, and the exit code."""
        results, _ = read_cells(self.store.path, self.store.manifest)
        show_table(self.prepared.config, self.store.manifest.run_id)
        for text in self._executor.complaints():
            print(f"warning: {text}", file=sys.stderr)
        missing = missing_cells(self.prepared.plan.cells, {result.cell for result in results})
        if missing:
            print(f"{_count(len(missing), 'cell')} still missing; go on with: {self.again}", file=sys.stderr)
        return 0 if not missing and any(result.status is Status.OK for result in results) else 1
