"""Shards as processes of this host or as Slurm jobs, by submitit: started, watched, cancelled. It schedules nothing.

Whether a Slurm job is still to be waited for is asked of squeue: submitit asks sacct, which many clusters do not have,
and without it a job that was killed would run for ever.
"""

import os
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.cluster.job import ShardJob
from experiments.config import ClusterConfig
from experiments.environment import python_path, run_quietly
from experiments.errors import UserError

# A process of this host has no time limit.
YEAR_MIN = 365 * 24 * 60


class Executor(ABC):
    """Where the shards of one launch run. `jobs` are submitit's, which are generic in what they return."""

    jobs: Sequence[Any] = ()

    @abstractmethod
    def submit(self, shards: Sequence[ShardJob]) -> None:
        """Start them, or have them started."""

    @abstractmethod
    def states(self) -> dict[str, str]:
        """The state in words of every job that something may still come of, by its id."""

    @abstractmethod
    def cancel(self) -> None:
        """End them; what they finished stays."""

    @abstractmethod
    def by_hand(self) -> tuple[str, str]:
        """The commands that follow and that cancel the jobs."""

    def complaints(self) -> list[str]:
        """Once no job has a state: why each of those that did not do all they could has not."""
        return [text for job in self.jobs if (text := _complaint(job))]


class LocalExecutor(Executor):
    """Processes of this host, all at once; the i-th sees the i-th group of GPUs."""

    def __init__(self, folder: Path, groups: Sequence[Sequence[int]]) -> None:
        from submitit import LocalExecutor as Local

        self._local, self._folder, self._groups = Local(folder, python=_python()), folder, groups

    def submit(self, shards: Sequence[ShardJob]) -> None:
        jobs = self.jobs = []
        # submitit's own processes end by Ctrl-C with a traceback each; a shard has logs of its own.
        with _errors_to(self._folder / "submitit.err"):
            for shard, gpus in zip(shards, self._groups, strict=False):
                self._local.update_parameters(timeout_min=YEAR_MIN, gpus_per_node=len(gpus), visible_gpus=tuple(gpus))
                jobs.append(self._local.submit(shard))

    def states(self) -> dict[str, str]:
        return {job.job_id: "running" for job in self.jobs if not job.done()}

    def cancel(self) -> None:
        for job in self.jobs:
            if not job.done():
                job.cancel()

    def by_hand(self) -> tuple[str, str]:
        return f"tail -F {self._folder}/*.out", f"kill -INT {' '.join(job.job_id for job in self.jobs)}"


@contextmanager
def _errors_to(file: Path) -> Iterator[None]:
    """Whatever is started in the block has the file for its stderr."""
    before = os.dup(2)
    try:
        with file.open("a") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


class SlurmExecutor(Executor):
    """Jobs of one node each, in one array. `name` is that of every job of the run, and of no other."""

    def __init__(self, folder: Path, name: str, cluster: ClusterConfig) -> None:
        from submitit import SlurmExecutor as Slurm

        try:
            self._slurm, self._name = Slurm(folder, python=_python()), name
        except RuntimeError:
            raise UserError("cluster=slurm needs Slurm's commands on this machine, and there is no srun") from None
        asked = {
            "partition": cluster.partition,
            "account": cluster.account,
            "constraint": cluster.constraint,
            "gpus_per_node": cluster.gpus_per_node or None,
        }
        self._slurm.update_parameters(
            job_name=name,
            nodes=1,
            ntasks_per_node=1,
            time=cluster.timeout_min,
            additional_parameters={key: value for key, value in cluster.sbatch.items() if value not in (False, None)},
            **{key: value for key, value in asked.items() if value is not None},
        )

    def submit(self, shards: Sequence[ShardJob]) -> None:
        try:
            with self._slurm.batch():
                self.jobs = [self._slurm.submit(shard) for shard in shards]
        except Exception as error:
            raise UserError(f"Slurm did not take the shards: {_last_line(error)}") from error

    def states(self) -> dict[str, str]:
        alive = [job for job in self.jobs if not job.paths.result_pickle.exists()]
        queue = slurm_queue(self._name)
        if queue is None:
            # The controller may be away for a while; its jobs are not gone for that.
            return {job.job_id: "unknown" for job in alive}
        return {job.job_id: queue[job.job_id] for job in alive if job.job_id in queue}

    def cancel(self) -> None:
        run_quietly("scancel", f"--name={self._name}")

    def by_hand(self) -> tuple[str, str]:
        return f"squeue --name={self._name}", f"scancel --name={self._name}"


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


def _complaint(job: Any) -> str:
    if not job.paths.result_pickle.exists():
        return f"job {job.job_id} ended before its time; its log is {job.paths.stderr}"
    try:
        return str(job.results()[0])
    except Exception as error:
        return f"job {job.job_id} failed: {_last_line(error)}"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _python() -> str:
    """The command that starts a job's Python: this code first, and GPUs numbered as nvidia-smi does."""
    return shlex.join(["env", f"PYTHONPATH={python_path()}", "CUDA_DEVICE_ORDER=PCI_BUS_ID", sys.executable, "-P"])
