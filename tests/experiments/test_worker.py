"""A worker over real pipes, and its answers to everything that can go wrong."""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import UserError
from experiments import worker as worker_module
from experiments.measuring.guard import Disturbed
from experiments.messages import (
    Exit,
    Failed,
    Load,
    Measure,
    Measured,
    Ready,
    Request,
    Verified,
    Verify,
    from_line,
    to_line,
)
from experiments.records import Cell, Point, Status
from experiments.worker import Worker, failure_kind, failure_reason
from tests.experiments.measuring.sessions import PROTOCOL, load


def cell(workload: str = "decode", batch: int = 2, length: int = 24, variant: str = "folded") -> Cell:
    """A cell of the tiny model."""
    return Cell(Point("tiny", workload, batch, length), variant, 0)


class Piped:
    """A worker process and the pipe to it."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def ask(self, request: Request) -> Any:
        """The answer to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(to_line(request))
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return from_line(line)


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Piped]:
    """`python -m experiments.worker`, with a tiny model loaded."""
    worker = Piped(tmp_path_factory.mktemp("worker") / "log", "-m", "experiments.worker")
    ready = worker.ask(load("tiny", "folded"))
    assert isinstance(ready, Ready)
    assert ready.weights == "random: tiny, seed 0"
    assert (ready.kernels, ready.replaced) == ("twin", ("norm_linear",))
    yield worker
    worker.process.kill()
    worker.process.wait()


def test_verify_gives_the_verdict(piped: Piped) -> None:
    """With every figure of it."""
    answer = piped.ask(Verify())
    assert isinstance(answer, Verified)
    assert answer.verdict.ok, answer.verdict.reason
    assert answer.verdict.positions > PROTOCOL.verdict_tokens


@pytest.mark.parametrize(
    ("asked", "metric"),
    [
        (cell("decode"), "step_ms"),
        (cell("prefill"), "ttft_ms"),
        (cell("offline", 3, 0), "output_tokens_per_s"),
        (cell("ragged", 8, 40), "step_ms"),
        (cell("shared_prefix", 3, 150), "warm_ttft_ms"),
        (cell("serving", 8, 0), "itl_ms"),
    ],
    ids=["decode", "prefill", "offline", "ragged", "shared_prefix", "serving"],
)
def test_measure_gives_every_sample(piped: Piped, asked: Cell, metric: str) -> None:
    """And what one needs to say why it was slow."""
    answer = piped.ask(Measure(asked))
    assert isinstance(answer, Measured)
    result = answer.result
    assert (result.status, result.reason, result.cell) == (Status.OK, "", asked)
    assert next(iter(result.samples)) == metric
    assert all(value > 0 for samples in result.samples.values() for value in samples)
    assert result.counters["steps"] > 0
    assert result.counters["blocks"] >= result.counters["peak_blocks"] > 0
    assert result.memory_bytes["peak_rss"] > 2**20
    assert result.duration_s > 0


def test_a_bad_model_is_the_user_s_and_the_worker_lives_on(piped: Piped) -> None:
    """One line; the next load is served."""
    answer = piped.ask(load("/no/such/model"))
    assert isinstance(answer, Failed)
    assert answer.kind == "user"
    assert "/no/such/model" in answer.reason
    assert isinstance(piped.ask(Measure(cell())), Failed)
    assert isinstance(piped.ask(load("tiny", "folded")), Ready)


def test_exit_ends_the_process(piped: Piped) -> None:
    """With code 0; the reason of every failure is in its log."""
    assert piped.process.stdin is not None
    piped.process.stdin.write(to_line(Exit()))
    piped.process.stdin.flush()
    assert piped.process.wait(30) == 0
    assert "/no/such/model" in piped.log.read_text()


NOISY = """
from experiments.messages import worker_channel
channel = worker_channel()
import os, subprocess, sys
from experiments import worker
real = worker.Session
def noisy(request):
    print("printed by a library")
    os.write(1, b"written by a library in C\\n")
    subprocess.run(["echo", "printed by a child"])
    assert sys.stdin.read() == ""
    return real(request)
worker.Session = noisy
sys.exit(worker.serve(channel, worker.Worker()))
"""


def test_what_libraries_print_does_not_reach_the_pipe_and_its_end_ends_the_worker(tmp_path: Path) -> None:
    """It goes to the log; a worker whose stdin ends has lost its harness."""
    worker = Piped(tmp_path / "log", "-c", NOISY)
    assert isinstance(worker.ask(load()), Ready)
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(30) == 0
    assert worker.process.stdout is not None
    assert worker.process.stdout.read() == b""
    log = worker.log.read_text()
    for line in ("printed by a library", "written by a library in C", "printed by a child"):
        assert line in log


# In this process.


@pytest.mark.parametrize(
    ("request_", "kind", "reason"),
    [
        (load("/no/such"), "user", "/no/such"),
        (load("tiny", "fuzed"), "user", "kind=fuzed"),
        (load("tiny", weights="real"), "user", "weights=real: tiny has no checkpoint here"),
        (load("tiny", points=(Point("tiny", "decode", 1, 4097),)), "user", "do not fit the 4096 positions of tiny"),
        (load("tiny", points=(Point("tiny", "prefill", 1, 4096),)), "user", "4097 tokens do not fit"),
        (Verify(), "error", "nothing is loaded"),
        (Measure(cell()), "error", "nothing is loaded"),
        ("hello", "error", "unknown request str"),
    ],
    ids=str,
)
def test_whatever_goes_wrong_is_an_answer(request_: Any, kind: str, reason: str) -> None:
    """Bad input ends the sweep, an error ends the variant; neither ends the worker."""
    answer = Worker().answer(request_)
    assert isinstance(answer, Failed)
    assert answer.kind == kind
    assert reason in answer.reason
    assert "\n" not in answer.reason


@pytest.fixture(scope="module")
def loaded() -> Worker:
    """A worker with the tiny model."""
    worker = Worker()
    assert isinstance(worker.answer(load()), Ready)
    return worker


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Disturbed("inside the timed region: 1 graph captures"), Status.INVALID, "inside the timed region"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), Status.OOM, "Tried to allocate"),
        (MemoryError(), Status.OOM, "MemoryError"),
        (UserError("too long"), Status.ERROR, "too long"),
        (ZeroDivisionError("by zero"), Status.ERROR, "ZeroDivisionError: by zero"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_cell_that_fails_is_a_row(
    loaded: Worker, error: Exception, status: Status, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its status and one line why; the next cell is measured."""

    def fail(*_args: object) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setitem(worker_module.MEASUREMENTS, "decode", fail)
        answer = loaded.answer(Measure(cell(variant="baseline")))
    assert isinstance(answer, Measured)
    assert answer.result.status == status
    assert reason in answer.result.reason
    assert "\n" not in answer.result.reason
    assert answer.result.samples == {}
    again = loaded.answer(Measure(cell(variant="baseline")))
    assert isinstance(again, Measured)
    assert again.result.status == Status.OK


def test_a_verdict_goes_with_every_cell_until_the_next_load(loaded: Worker) -> None:
    """No cell of another variant carries it."""
    verified = loaded.answer(Verify())
    measured = loaded.answer(Measure(cell(variant="baseline")))
    assert isinstance(verified, Verified)
    assert isinstance(measured, Measured)
    assert measured.result.verdict == verified.verdict
    request: Load = load("tiny", "folded")
    assert isinstance(loaded.answer(request), Ready)
    unverified = loaded.answer(Measure(cell()))
    assert isinstance(unverified, Measured)
    assert unverified.result.verdict is None


def test_reasons_are_one_line_and_not_too_long() -> None:
    """Tables show them."""
    assert failure_reason(ValueError("a\n  b")) == "ValueError: a b"
    assert failure_reason(UserError("a\nb")) == "a b"
    assert failure_reason(RuntimeError()) == "RuntimeError: RuntimeError"
    assert len(failure_reason(ValueError("x" * 5000))) == 500
    assert failure_kind(UserError("x")) == "user"
    assert failure_kind(UserError("x"), known=True) == "error"


def test_a_cell_s_garbage_is_collected_and_what_was_there_before_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is in a cycle with its runner; all that libraries made is not gone through again for it."""
    engines: list[weakref.ref[Any]] = []
    measure = worker_module.MEASUREMENTS["decode"]

    def watched(*arguments: Any) -> Any:
        samples, engine = measure(*arguments)
        engine.itself = engine  # type: ignore[attr-defined]
        engines.append(weakref.ref(engine))
        return samples, engine

    monkeypatch.setitem(worker_module.MEASUREMENTS, "decode", watched)
    worker = Worker()
    worker.answer(load("tiny", "folded"))
    try:
        for _ in range(2):
            answer = worker.answer(Measure(cell()))
            assert isinstance(answer, Measured)
            assert answer.result.status is Status.OK, answer.result.reason
        assert [engine() for engine in engines] == [None, None]
        assert gc.get_freeze_count() > len(gc.get_objects())
    finally:
        gc.unfreeze()
