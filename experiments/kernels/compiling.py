"""Every candidate of a tuning compiled ahead, side by side: Triton then finds it in its cache on disk.

A worker launches the kernel once on zeros of the shape in question, so what is cached has exactly the specialisation
that will be timed. The number of rows is none of it: one compilation serves all rows that share a tile. A launch also
shows that the tile runs at all, in a process that it may take down.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch

from experiments.errors import UserError, first_line
from experiments.kernels.case import Shape
from experiments.kernels.cases import forms
from experiments.kernels.linear_cases import LinearCase
from experiments.kernels.side_by_side import Work, cores, run_side_by_side
from variants.kernels.tiles import Tile

# A process on the GPU with PyTorch loaded, its modules of kernels included.
CONTEXT_BYTES = 2**30
# What the process that times leaves to the workers.
SHARE_OF_MEMORY = 0.6
MOST_WORKERS = 32
# The likeliest tiles come first. Where each of these failed, and two more for each worker, it is not the tiles.
MOST_FAILURES = 8


@dataclass(frozen=True)
class Compilation:
    """One kernel in one form at one shape with one tile."""

    op: str
    form: str
    shape: Shape
    dtype: str
    pdl: bool
    tile: Tile


J = TypeVar("J", bound=Hashable)
# Which of them there is no time for or that failed is left out of the answer; the number is time.monotonic's.
Compile = Callable[[Iterable[Compilation], float], set[Compilation]]


def compile_on_gpu(jobs: Iterable[Compilation], ends_at: float = math.inf) -> set[Compilation]:
    """Those that compiled and ran by then; UserError where it seems that none ever will."""
    jobs = list(jobs)
    return run_all(jobs, launch_once, max(map(weight_bytes, jobs), default=0), ends_at)


def run_all(jobs: Iterable[J], work: Work[J], weight_bytes: int, ends_at: float) -> set[J]:
    """The jobs that `work` had done by then, side by side on this GPU; a process holds so many bytes of weights.

    UserError where it seems that none ever will.
    """
    jobs = list(jobs)
    free, _ = torch.cuda.mem_get_info()
    count = min(len(jobs), workers_for(cores(), free, weight_bytes))
    begin, done, reasons = time.monotonic(), set[J](), Counter[str]()
    for job, reason in run_side_by_side(jobs, work, count, ends_at):
        if reason:
            reasons[first_line(reason)] += 1
        else:
            done.add(job)
        if not done and reasons.total() >= 2 * count + MOST_FAILURES:
            raise UserError(f"no tile compiles; most often: {reasons.most_common(1)[0][0]}")
    took_s = time.monotonic() - begin
    print(f"{len(done)} of {len(jobs)} tiles compiled in {took_s:.0f} s by {count} processes", flush=True)
    for reason, times in reasons.most_common(3):
        print(f"{times} failed: {reason}", flush=True)
    return done


def workers_for(num_cores: int, free_bytes: int, weight_bytes: int) -> int:
    """As many processes as there are cores, as memory has room for: weights twice, for what they are made from."""
    each = CONTEXT_BYTES + 2 * weight_bytes
    return max(1, min(num_cores, MOST_WORKERS, int(SHARE_OF_MEMORY * free_bytes) // each))


def weight_bytes(job: Compilation) -> int:
    """Bytes of the weight that a job's launch reads."""
    itemsize: int = getattr(torch, job.dtype).itemsize
    return math.prod(job.shape) * itemsize


def launch_once(job: Compilation) -> None:
    """What a worker does."""
    kind = forms(job.op)[job.form]
    assert issubclass(kind, LinearCase)
    try:
        with torch.inference_mode():
            case = kind.blank(job.shape, job.tile.block_m, getattr(torch, job.dtype), torch.device("cuda"))
            case.launch("triton", pdl=job.pdl, tile=job.tile)
            torch.cuda.synchronize()
    except Exception as error:
        end_if_the_gpu_is_lost(error)
        raise


def end_if_the_gpu_is_lost(error: Exception) -> None:
    """An illegal access stays in a process: every job after it would seem to fail as well."""
    try:
        torch.cuda.synchronize()
    except Exception:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
