"""Shards as processes of this host or as Slurm jobs, by submitit: started, watched, cancelled. It schedules nothing.

Whether a Slurm job is still to be waited for is asked of squeue: submitit asks sacct, which many clusters do not have,
and without it a job that was killed would run for ever.
"""

import os
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cluster.job import ShardJob
from experiments.config import ClusterConfig
from experiments.environment import ROOT, run_quietly
from experiments.errors import UserError

# A process of this host has no time limit.
YEAR_MIN = 365 * 24 * 60

Job = Any
"""A submitit.Job, which is generic in what it returns."""


class Executor(ABC):
    """Where shards run. `follow` and `cancel_by_hand` are the commands for it."""

    follow: str
    cancel_by_hand: str

    @abstractmethod
    def submit(self, jobs: Sequence[ShardJob]) -> list[Job]:
        """Start them, or have them started."""

    @abstractmethod
    def states(self, jobs: Sequence[Job]) -> dict[str, str]:
        """The state in words of every job that something may still come of, by its id."""

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End them; what they finished stays."""
        alive = self.states(jobs)
        for job in jobs:
            if job.job_id in alive:
                job.cancel(check=False)

    def complaint(self, job: Job) -> str:
        """Why a job that is over measured nothing more; nothing where it did all it could."""
        if not job.paths.result_pickle.exists():
            return f"job {job.job_id} ended before its time; its log is {job.paths.stderr}"
        try:
            return str(job.results()[0])
        except Exception as error:
            return f"job {job.job_id} failed: {str(error).strip().splitlines()[-1]}"


class LocalExecutor(Executor):
    """Processes of this host, all at once; the i-th sees the i-th group of GPUs."""

    def __init__(self, folder: Path, groups: Sequence[Sequence[int]]) -> None:
        from submitit import LocalExecutor as Local

        self._local, self._groups = Local(folder, python=_python()), groups
        self.follow, self.cancel_by_hand = f"tail -F {folder}/*.out", "kill -INT"

    def submit(self, jobs: Sequence[ShardJob]) -> list[Job]:
        started = []
        for job, gpus in zip(jobs, self._groups, strict=False):
            self._local.update_parameters(timeout_min=YEAR_MIN, gpus_per_node=len(gpus), visible_gpus=tuple(gpus))
            started.append(self._local.submit(job))
        self.cancel_by_hand = " ".join(["kill -INT", *(str(job.job_id) for job in started)])
        return started

    def states(self, jobs: Sequence[Job]) -> dict[str, str]:
        return {job.job_id: "running" for job in jobs if not job.done()}


class SlurmExecutor(Executor):
    """Jobs of one node each, in one array. `name` is theirs alone."""

    def __init__(self, folder: Path, name: str, cluster: ClusterConfig) -> None:
        from submitit import SlurmExecutor as Slurm

        try:
            self._slurm = Slurm(folder, python=_python())
        except RuntimeError:
            raise UserError("cluster=slurm needs Slurm's commands on this machine, and there is no srun") from None
        self._name = name
        self.follow, self.cancel_by_hand = f"squeue --name={name}", f"scancel --name={name}"
        asked = {"partition": cluster.partition, "account": cluster.account, "constraint": cluster.constraint}
        self._slurm.update_parameters(
            job_name=name,
            nodes=1,
            ntasks_per_node=1,
            time=cluster.timeout_min,
            gpus_per_node=cluster.gpus_per_node or None,
            additional_parameters={key: value for key, value in cluster.sbatch.items() if value not in (False, None)},
            **{key: value for key, value in asked.items() if value is not None},
        )

    def submit(self, jobs: Sequence[ShardJob]) -> list[Job]:
        try:
            with self._slurm.batch():
                submitted = [self._slurm.submit(job) for job in jobs]
        except Exception as error:
            raise UserError(f"Slurm did not take the shards: {str(error).strip().splitlines()[-1]}") from error
        return submitted

    def states(self, jobs: Sequence[Job]) -> dict[str, str]:
        alive = [job for job in jobs if not job.paths.result_pickle.exists()]
        queue = slurm_queue(self._name)
        if queue is None:
            # The controller may be away for a while; its jobs are not gone for that.
            return {job.job_id: "unknown" for job in alive}
        return {job.job_id: queue[job.job_id] for job in alive if job.job_id in queue}


def slurm_queue(name: str) -> dict[str, str] | None:
    """The jobs of this name that Slurm has queued or running, by id; None without an answer."""
    lines = run_quietly("squeue", f"--name={name}", "--noheader", "--array", "--format=%i %T")
    if lines is None:
        return None
    return {job_id: state.lower() for job_id, _, state in (line.strip().partition(" ") for line in lines.splitlines())}


def insist_on_submitit(what: str) -> None:
    """UserError where the extra is not installed."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(f"{what} needs submitit; install the extra: pip install 'fusebench[cluster]'") from None


def _python() -> str:
    """The command that starts a job's Python: this code first, and GPUs numbered as nvidia-smi does."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return shlex.join(["env", f"PYTHONPATH={path}", "CUDA_DEVICE_ORDER=PCI_BUS_ID", sys.executable, "-P"])
