"""Which process on the GPU is this one, and who is there beside it? In a container ids say nothing to the driver."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from experiments.measuring.sensor import gpu_processes, sensor_of


def enter_gpu(device: torch.device) -> int | None:
    """Open this process's context on the device; its id there as the driver numbers it, None where none can be told.

    Workers that load side by side come one at a time, so that each sees only itself come.
    """
    if device.type != "cuda":
        return None
    with _one_at_a_time():
        before = gpu_processes()
        torch.zeros(1, device=device)
        return own_pid(before, gpu_processes())


def own_pid(before: set[int], after: set[int]) -> int | None:
    """This process's id on the GPU: its own, or in a container, whose ids differ, the only one that came meanwhile.
    None where that cannot be told."""
    if os.getpid() in after:
        return os.getpid()
    new = after - before
    return new.pop() if len(new) == 1 else None


def others_on_gpu(device: torch.device) -> int | None:
    """How many other processes have a context on the device, where this one has; None where that cannot be told."""
    sensor = sensor_of(device)
    found = sensor.processes() if sensor else set()
    return len(found) - 1 if found else None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Held by one process of this user on this machine at a time; the system lets go of it for one that dies."""
    with (Path(tempfile.gettempdir()) / f"fusebench-{os.getuid()}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
