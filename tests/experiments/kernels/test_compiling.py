"""Compiling ahead, with made-up workers: what failed is left out and named, and a broken machine is said to be one."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

from experiments.errors import UserError
from experiments.kernels import compiling
from experiments.kernels.compiling import MOST_WORKERS, Compilation, compile_on_gpu, weight_bytes, workers_for
from variants.kernels.tiles import Tile

GIB = 2**30
JOBS = [
    Compilation("lm_head", "chained", (151936, 1024), "bfloat16", True, Tile("skinny", 8, 64, 128, 4, stages))
    for stages in range(60)
]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Compilation], str]], list[int]]:
    """Sets what becomes of each job; answers with the list of the numbers of workers that were asked for."""

    def prepare(reason_of: Callable[[Compilation], str]) -> list[int]:
        asked: list[int] = []

        def run(jobs: Iterable[Any], work: Any, workers: int, ends_at: float) -> Iterator[tuple[Any, str]]:
            assert work is compiling.launch_once
            asked.append(workers)
            return ((job, reason_of(job)) for job in jobs)

        monkeypatch.setattr(compiling, "run_side_by_side", run)
        monkeypatch.setattr(compiling, "cores", lambda: 4)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * GIB, 80 * GIB))
        return asked

    return prepare


def test_what_fails_is_left_out_and_counted(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = machine(lambda job: "OutOfResources: shared memory\nmore" if job.tile.stages % 3 else "")
    assert compile_on_gpu(JOBS) == {job for job in JOBS if job.tile.stages % 3 == 0}
    assert asked == [4]
    said = capsys.readouterr().out
    assert "20 of 60 tiles compiled" in said
    assert "40 failed: OutOfResources: shared memory\n" in said


def test_where_nothing_compiles_nobody_waits_for_the_rest(machine: Any) -> None:
    tried: list[Compilation] = []
    machine(lambda job: tried.append(job) or "its process ended with 1")  # type: ignore[func-returns-value]
    with pytest.raises(UserError, match="no tile compiles; most often: its process ended with 1"):
        compile_on_gpu(JOBS)
    assert len(tried) == 16


def test_nothing_to_compile_needs_no_worker(machine: Any) -> None:
    asked = machine(lambda job: "")
    assert compile_on_gpu([]) == set()
    assert asked == [0]


def test_as_many_processes_compile_as_there_are_cores_and_memory() -> None:
    assert workers_for(16, 70 * GIB, 0) == 16
    assert workers_for(128, 70 * GIB, 0) == MOST_WORKERS
    assert workers_for(32, 70 * GIB, 2 * GIB) == 8
    assert workers_for(32, GIB, GIB) == 1
    assert weight_bytes(JOBS[0]) == 2 * 151936 * 1024
