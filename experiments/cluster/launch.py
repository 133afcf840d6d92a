"""A sweep that is spread: shards are planned here, submitted, and watched until each cell has its result.

They write into one run's folder, so a report sees one run, and `resume=` submits shards for whatever is still missing.
Ctrl-C cancels the shards and keeps every finished cell; with cluster.wait=false nothing is waited for.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.cluster.executors import Executor, Job, LocalExecutor, SlurmExecutor, insist_on_submitit, slurm_queue
from experiments.cluster.job import ShardJob
from experiments.cluster.shards import Shard, make_shards, missing_cells
from experiments.cluster.watch import CellFolder, cancel, watch
from experiments.command_line import INTERRUPTED
from experiments.config import ExperimentConfig
from experiments.environment import Environment, Gpu, code, machine
from experiments.errors import UserError
from experiments.manifest import Manifest, new_manifest
from experiments.progress import make_display
from experiments.records import Cell, CellResult, Status
from experiments.run_end import how_to_go_on, show_table
from experiments.store import CELLS, RunStore, create_run, read_cells, resume_run
from experiments.sweep import OUT_OF_TIME, Prepared, prepare
from experiments.worker_process import WORKER_COMMAND

JOBS = "jobs"
# The memory of a GPU that is not known yet; each shard finds out what fits.
UNKNOWN_BYTES = 1 << 60


def launch(config: ExperimentConfig, arguments: Sequence[str], worker: Sequence[str] = WORKER_COMMAND) -> int:
    """Plan, submit, and wait unless told not to; returns the exit code."""
    prepared = prepare(config, _nodes(config))
    groups = device_groups(prepared)
    if config.dry_run:
        print(describe(_shards(prepared, prepared.plan.cells, len(groups)), prepared.plan.cells))
        return 0
    insist_on_submitit("devices" if config.cluster.kind == "none" else f"cluster={config.cluster.kind}")
    store, done = _open(config, prepared)
    again = how_to_go_on(arguments, store.manifest.run_id)
    with store:
        try:
            missing = missing_cells(prepared.plan.cells, {result.cell for result in done})
            folder = store.logs / JOBS / f"{_launches(store) + 1:02d}"
            shards = _shards(prepared, missing, len(groups), _launches(store) + 1)
            executor = _executor(config, store.manifest, folder, groups)
            store.share()
            cells = CellFolder(store.path / CELLS)
            jobs = executor.submit([_job(store, prepared, shard, worker) for shard in shards]) if shards else []
        except (KeyboardInterrupt, UserError):
            store.discard()
            raise
        if not config.cluster.wait:
            print("\n".join(_how_to_follow(config, store, jobs, executor, again)))
            return 0
        if not _wait(prepared, store, [r for r in done if r.cell not in set(missing)], cells, jobs, executor):
            store.discard()
            print(f"\ncancelled; every finished cell is kept; go on with: {again}", file=sys.stderr)
            return INTERRUPTED
        complaints = [text for job in jobs if (text := executor.complaint(job))]
        results, _ = read_cells(store.path, store.manifest)
    return _finish(config, prepared, results, complaints, store.manifest.run_id, again)


def device_groups(prepared: Prepared) -> list[list[int]]:
    """The GPUs of each shard that runs on this host at the same time, or empty ones where there is nothing to choose:
    on a CPU, and on Slurm, which chooses itself. UserError for GPUs that are not there."""
    config, cluster = prepared.config, prepared.config.cluster
    if cluster.kind == "slurm":
        return [[]] * (cluster.shards or len(prepared.models))
    if config.device != "cuda":
        if config.devices:
            raise UserError(f"devices={config.devices} spreads points over GPUs, and this sweep runs on a CPU; drop it")
        return [[]] * (cluster.shards or 1)
    visible = _visible(prepared.environment)
    for device in config.devices:
        if device not in visible:
            raise UserError(f"devices={config.devices}: there is no GPU {device}, only {visible}")
    devices, each = config.devices or visible, max(1, cluster.gpus_per_node)
    groups = [devices[start : start + each] for start in range(0, len(devices) - each + 1, each)]
    if not groups or len(groups) < (cluster.shards or 0):
        raise UserError(f"cluster.shards={cluster.shards or 1} of {each} GPUs each need more than the GPUs {devices}")
    return groups[: cluster.shards]


def _visible(environment: Environment) -> list[int]:
    """nvidia-smi's numbers of the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(range(environment.gpu.count if environment.gpu else 0))
    if not all(name.strip().isdecimal() for name in chosen.split(",")):
        raise UserError(f"CUDA_VISIBLE_DEVICES={chosen} must have numbers for a sweep to be spread over them")
    return [int(name) for name in chosen.split(",")]


def describe(shards: Sequence[Shard], cells: Sequence[Cell]) -> str:
    """Who measures what, in words and in order."""
    lines = [f"{len(cells)} cells in {len(shards)} shards"]
    for shard in shards:
        mine = [cell for cell in cells if cell.point in shard.points]
        lines += [
            f"shard {shard.id}: {len(shard.points)} points, {len(mine)} cells",
            *(f"  {cell.id}" for cell in mine),
        ]
    return "\n".join(lines)


def _nodes(config: ExperimentConfig) -> Environment | None:
    """What is known of the machines that will measure. On Slurm: the software, and whether they have GPUs."""
    if config.cluster.kind != "slurm":
        return None
    gpus = config.cluster.gpus_per_node
    return replace(machine(), gpu=Gpu("", "", UNKNOWN_BYTES, gpus) if gpus else None)


def _open(config: ExperimentConfig, prepared: Prepared) -> tuple[RunStore, list[CellResult]]:
    """The run that gets the cells, and those it has."""
    wanted = new_manifest(prepared.config, prepared.models, prepared.plan, prepared.environment, code())
    if config.cluster.kind == "slurm":
        wanted = replace(wanted, gpu="", machine={})
    if not config.resume:
        return create_run(Path(config.results_dir), wanted), []
    store, found, damaged = resume_run(Path(config.results_dir), config.resume, wanted)
    for line in damaged:
        print(f"warning: {line}; it is measured again")
    if queued := slurm_queue(_job_name(store.manifest)):
        store.__exit__()
        raise UserError(
            f"resume={store.path.name}: jobs of this run are still queued or running ({', '.join(queued)}); wait for "
            f"them, or scancel --name={_job_name(store.manifest)}"
        )
    return store, [result for result in found if result.reason != OUT_OF_TIME]


def _shards(prepared: Prepared, missing: Sequence[Cell], count: int, launch_number: int = 1) -> tuple[Shard, ...]:
    return make_shards(prepared.plan, missing, count, launch_number) if missing else ()


def _launches(store: RunStore) -> int:
    """How often shards of this run were submitted before."""
    folder = store.logs / JOBS
    return len(list(folder.iterdir())) if folder.exists() else 0


def _job(store: RunStore, prepared: Prepared, shard: Shard, worker: Sequence[str]) -> ShardJob:
    return ShardJob(str(store.path.resolve()), shard, replace(prepared.config, resume=None), tuple(worker))


def _executor(config: ExperimentConfig, manifest: Manifest, folder: Path, groups: Sequence[Sequence[int]]) -> Executor:
    if config.cluster.kind == "slurm":
        return SlurmExecutor(folder, _job_name(manifest), config.cluster)
    if len(groups) > 1:
        print(f"{len(groups)} shards on this host share its cores, memory and PCIe; the report says which ran together")
    return LocalExecutor(folder, groups)


def _job_name(manifest: Manifest) -> str:
    return f"fusebench-{manifest.experiment}-{manifest.run_id}"


def _wait(
    prepared: Prepared,
    store: RunStore,
    done: Sequence[CellResult],
    cells: CellFolder,
    jobs: Sequence[Job],
    executor: Executor,
) -> bool:
    """Watch the jobs to their end; False where the user cancelled them."""
    planned = prepared.plan.cells
    try:
        with make_display(planned, done) as display:
            display.say(f"run {store.path}: {len(planned)} cells, {len(done)} of them done, {len(jobs)} shards")
            watch(cells, jobs, executor, display)
        return True
    except KeyboardInterrupt:
        cancel(jobs, executor)
        return False


def _how_to_follow(
    config: ExperimentConfig, store: RunStore, jobs: Sequence[Job], executor: Executor, again: str
) -> list[str]:
    run_id = store.manifest.run_id
    return [
        f"run {store.path}: {len(jobs)} shards submitted, jobs {', '.join(job.job_id for job in jobs)}",
        f"follow them: {executor.follow}",
        f"cancel them: {executor.cancel_by_hand}",
        f"what is there: fusebench report experiment={config.name} run={run_id} --terminal",
        f"what is missing once they ended: {again}",
    ]


def _finish(
    config: ExperimentConfig,
    prepared: Prepared,
    results: Sequence[CellResult],
    complaints: Sequence[str],
    run_id: str,
    again: str,
) -> int:
    """The table, what went wrong, and the exit code."""
    show_table(config, run_id)
    for text in complaints:
        print(f"warning: {text}", file=sys.stderr)
    missing = missing_cells(prepared.plan.cells, {result.cell for result in results})
    if missing:
        print(f"{len(missing)} cells are still missing; go on with: {again}", file=sys.stderr)
    return 0 if not missing and any(result.status is Status.OK for result in results) else 1
