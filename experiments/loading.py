"""Workers load and have their answers checked side by side: a thread waits for each, the caller's takes their answers.

What a thread does is wait for a process; whatever is kept, said or decided stays in the thread that called.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from experiments.messages import Answer, Failed, Load, Ready, Verify
from experiments.worker_process import WorkerLost, WorkerProcess


@dataclass(frozen=True, eq=False)
class Job:
    """A worker that is to load and, with `check`, to have its answers checked; each may take `timeout_s`."""

    worker: WorkerProcess
    load: Load
    check: bool
    timeout_s: float


@dataclass(frozen=True)
class Event:
    """What became of a request of a job's: it begins (None), the worker says something, answers, or is lost."""

    job: Job
    request: Load | Verify
    what: str | Answer | WorkerLost | None = None


def load_side_by_side(jobs: Sequence[Job], at_once: int, take: Callable[[Event], None]) -> None:
    """Do all jobs, so many at a time and begun in order; `take` is called here with every event as it comes.

    Whatever it raises, Ctrl-C included, ends all of their workers.
    """
    events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
    executor = ThreadPoolExecutor(at_once)
    try:
        for job in jobs:
            executor.submit(_run, job, events.put)
        left = len(jobs)
        while left:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                left -= 1
            else:
                take(event)
    except BaseException:
        for job in jobs:
            job.worker.abort()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _run(job: Job, put: Callable[[Event | BaseException | None], None]) -> None:
    """The job's requests one after the other, as far as they go; None tells that it is done."""
    try:
        for request in (job.load, Verify()) if job.check else (job.load,):
            put(Event(job, request))
            answer = _ask(job, request, put)
            if isinstance(answer, Failed):
                # Before the next job begins, which may want its memory.
                job.worker.kill()
            put(Event(job, request, answer))
            if not isinstance(answer, Ready):
                break
    except BaseException as error:
        put(error)
    finally:
        put(None)


def _ask(job: Job, request: Load | Verify, put: Callable[[Event], None]) -> Answer | WorkerLost:
    try:
        return job.worker.ask(request, job.timeout_s, lambda text: put(Event(job, request, text)))
    except WorkerLost as lost:
        return lost
