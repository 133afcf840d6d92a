"""Jobs in worker processes, one at a time in each; a worker that dies or hangs costs its job and is replaced."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

# No compilation takes this long that is worth having.
JOB_LIMIT_S = 60.0
# The first job of a worker also waits for its imports and its GPU context.
START_LIMIT_S = 180.0

J = TypeVar("J")
Work = Callable[[J], None]


def run_side_by_side(
    jobs: Iterable[J],
    work: Work[J],
    workers: int,
    ends_at: float = float("inf"),
    job_limit_s: float = JOB_LIMIT_S,
    start_limit_s: float = START_LIMIT_S,
) -> Generator[tuple[J, str]]:
    """(job, why it failed, empty where it did not) as jobs end, in any order.

    `work`, a function of a module, and the jobs are pickled: workers are new interpreters. What it raises is a reason.
    No job is begun after `ends_at` (time.monotonic), and those that run then are not waited for.
    """
    waiting, pool = iter(jobs), [_Worker(work, job_limit_s, start_limit_s) for _ in range(workers)]
    try:
        while True:
            for worker in pool:
                if worker.idle and time.monotonic() < ends_at and (job := next(waiting, None)) is not None:
                    worker.begin(job)
            busy = [worker for worker in pool if not worker.idle]
            if not busy or time.monotonic() >= ends_at:
                return
            wake_s = min(ends_at, *(worker.limit_at for worker in busy)) - time.monotonic()
            ready = wait([worker.pipe for worker in busy], max(0.0, min(wake_s, 60.0)))
            for worker in busy:
                if worker.pipe in ready or time.monotonic() >= worker.limit_at:
                    yield worker.end()
    finally:
        for worker in pool:
            worker.stop()


class _Worker(Generic[J]):
    """A process, started with its first job and again after it was lost."""

    def __init__(self, work: Work[J], limit_s: float, start_limit_s: float) -> None:
        self._work, self._limit_s, self._start_limit_s = work, limit_s, start_limit_s
        self._process: BaseProcess | None = None
        self._job: J | None = None
        self.pipe: Connection
        self.limit_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether it has no job."""
        return self._job is None

    def begin(self, job: J) -> None:
        """Hand it a job."""
        limit_s = self._limit_s
        if self._process is None:
            self._start()
            limit_s += self._start_limit_s
        self._job, self.limit_at = job, time.monotonic() + limit_s
        # A worker that is gone is noticed when its answer is read.
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def end(self) -> tuple[J, str]:
        """The job and its answer, or what became of the worker."""
        job, self._job = self._job, None
        assert job is not None
        assert self._process is not None
        if not self.pipe.poll():
            self.stop()
            return job, "it took too long"
        try:
            return job, str(self.pipe.recv())
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.stop()
            return job, f"its process ended with {code}"

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.pipe.close()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        process.start()
        # Only now: what did not start cannot be stopped, and its own error is the one to see.
        self._process = process
        theirs.close()


def _serve(pipe: Connection, work: Work[Any]) -> None:
    """Jobs from the pipe, answers to it, until there are no more."""
    # Ctrl-C reaches the whole group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        reason = ""
        try:
            work(job)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        pipe.send(reason)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
