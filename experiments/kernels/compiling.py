"""Every candidate of a tuning compiled ahead, side by side: Triton then finds it in its cache on disk.

A worker launches the kernel once on zeros of the shape in question, so what is cached has exactly the specialisation
that will be timed. The number of rows is none of it: one compilation serves all rows that share a tile. A launch also
shows that the tile runs at all, in a process that it may take down.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from experiments.kernels.case import Shape
from experiments.kernels.cases import forms
from experiments.kernels.linear_cases import LinearCase
from experiments.kernels.side_by_side import cores, run_side_by_side
from variants.kernels.tiles import Tile

# A process on the GPU with PyTorch loaded, its modules of kernels included.
CONTEXT_BYTES = 2**30
# What the process that times leaves to the workers.
SHARE_OF_MEMORY = 0.6
MOST_WORKERS = 32


@dataclass(frozen=True)
class Compilation:
    """One kernel in one form at one shape with one tile."""

    op: str
    form: str
    shape: Shape
    dtype: str
    pdl: bool
    tile: Tile


# Which of them there is no time for or that failed is left out of the answer; the number is time.monotonic's.
Compile = Callable[[Iterable[Compilation], float], set[Compilation]]


def compile_on_gpu(jobs: Iterable[Compilation], ends_at: float = math.inf) -> set[Compilation]:
    """Those that compiled and ran by then."""
    jobs = list(jobs)
    free, _ = torch.cuda.mem_get_info()
    count = min(len(jobs), workers_for(cores(), free, max(map(weight_bytes, jobs), default=0)))
    begin, done, failed = time.monotonic(), set(), 0
    for job, reason in run_side_by_side(jobs, launch_once, count, ends_at):
        failed += bool(reason)
        if not reason:
            done.add(job)
    took_s = time.monotonic() - begin
    print(
        f"{len(done)} of {len(jobs)} tiles compiled in {took_s:.0f} s, {count} at a time; {failed} failed", flush=True
    )
    return done


def workers_for(num_cores: int, free_bytes: int, largest_weight_bytes: int) -> int:
    """As many processes as there are cores, as memory has room for."""
    each = CONTEXT_BYTES + 2 * largest_weight_bytes
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
    except Exception:
        _end_if_the_gpu_is_lost()
        raise


def _end_if_the_gpu_is_lost() -> None:
    """An illegal access stays in a process: every job after it would seem to fail as well."""
    try:
        torch.cuda.synchronize()
    except Exception:
        os._exit(1)
