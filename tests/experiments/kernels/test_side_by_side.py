"""Worker processes: every job gets its answer, whatever becomes of the worker that had it."""

import multiprocessing
import time
from multiprocessing.process import BaseProcess

import pytest

from experiments.kernels.side_by_side import cores, run_side_by_side
from tests.experiments.kernels.jobs import behave


def ours(processes: list[BaseProcess]) -> list[BaseProcess]:
    """The workers among them: an engine of an earlier test may still be ending its ranks."""
    return [process for process in processes if not process.name.startswith("fusebench-rank")]


def test_a_job_that_fails_kills_or_hangs_costs_itself_alone() -> None:
    jobs = ["one", "fail", "two", "die", "hang", "three", "four"]
    begin_s = time.monotonic()
    answers = dict(run_side_by_side(jobs, behave, workers=2, job_limit_s=1.0, start_limit_s=10.0))
    assert time.monotonic() - begin_s < 60
    assert answers == {
        **dict.fromkeys(("one", "two", "three", "four"), ""),
        "fail": "ValueError: no such tile: fail",
        "die": "its process ended with 7",
        "hang": "it took too long",
    }
    assert not ours(multiprocessing.active_children())


def test_no_job_is_begun_after_the_end_and_none_is_waited_for() -> None:
    begin_s = time.monotonic()
    answers = dict(run_side_by_side(["hang", "one", "two"], behave, workers=1, ends_at=begin_s + 1.0))
    assert time.monotonic() - begin_s < 10
    assert answers == {}
    assert list(run_side_by_side(["one"], behave, workers=1, ends_at=begin_s)) == []
    assert not ours(multiprocessing.active_children())


def test_workers_stop_where_nobody_asks_on() -> None:
    answers = run_side_by_side(["one", "slow", "hang"], behave, workers=2)
    assert next(answers)[1] == ""
    answers.close()
    assert not ours(multiprocessing.active_children())


def test_nothing_to_do_takes_no_worker() -> None:
    assert list(run_side_by_side([], behave, workers=0)) == []
    assert cores() >= 1


def test_a_worker_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("no more processes")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    with pytest.raises(RuntimeError, match="no more processes"):
        list(run_side_by_side(["one"], behave, workers=1))
