"""Nothing may be compiled or captured while the clock runs; what happens is counted and named."""

from unittest.mock import Mock

import pytest
import torch

from engine import compilations
from engine.compilations import Compilations
from experiments.measuring.guard import Disturbances, Disturbed, settle, undisturbed, undisturbed_result
from tests.engine.tiny import tiny_engine


def test_a_quiet_block_passes() -> None:
    """Steps on a CPU compile nothing."""
    engine = tiny_engine()
    with undisturbed(engine):
        engine.generate([[3, 4]])


def test_a_capture_inside_is_named() -> None:
    """At the end of the block, with its count."""
    engine = tiny_engine()
    with pytest.raises(Disturbed, match="inside the timed region: 2 graph captures"), undisturbed(engine):
        engine.runner.graphs.num_captures += 2


def test_a_triton_compilation_inside_is_named() -> None:
    """Through the hook that Triton calls, which may be called by others as well."""
    triton = pytest.importorskip("triton")
    engine = tiny_engine()
    with pytest.raises(Disturbed, match="1 triton compilations"), undisturbed(engine):
        triton.knobs.runtime.jit_post_compile_hook(key="k", repr="r", fn=None)


def test_watching_twice_counts_once_and_keeps_another_s_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profiler may have a hook of its own."""
    triton = pytest.importorskip("triton")
    called = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **kwargs: called.append(kwargs))
    compilations.watch_triton.cache_clear()
    before = Compilations.now()
    compilations.watch_triton()
    compilations.watch_triton()
    triton.knobs.runtime.jit_post_compile_hook(key="k")
    assert Compilations.now().triton - before.triton == 1
    assert called == [{"key": "k"}]


def test_a_dynamo_compilation_inside_is_named() -> None:
    """And so is a recompilation for another shape."""
    engine = tiny_engine()
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    with pytest.raises(Disturbed, match="dynamo compilations"), undisturbed(engine):
        double(torch.ones(3))
    with undisturbed(engine):
        double(torch.ones(3))
    with pytest.raises(Disturbed, match="dynamo compilations"), undisturbed(engine):
        double(torch.ones(4))


def test_an_error_inside_is_not_covered_up() -> None:
    """The reason is what went wrong first."""
    engine = tiny_engine()

    def capture_and_fail() -> None:
        engine.runner.graphs.num_captures += 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), undisturbed(engine):
        capture_and_fail()


def test_settling_repeats_until_nothing_happens() -> None:
    """Three disturbed runs, one quiet one; and it gives up where it never gets quiet."""
    engine = tiny_engine()
    left = [1, 1, 1, 0]

    def action() -> None:
        engine.runner.graphs.num_captures += left.pop(0)

    assert settle(engine, action, attempts=10) == 4
    left = [1] * 5
    assert settle(engine, action, attempts=5) == 5


def test_disturbed_results_are_thrown_away_and_counted() -> None:
    """What an undisturbed run gave is kept; where there is none, that is an error."""
    engine = tiny_engine()
    disturbed = [2, 1, 0, 0]

    def action() -> int:
        engine.runner.graphs.num_captures += disturbed[0]
        return disturbed.pop(0)

    assert undisturbed_result(engine, action, attempts=3) == (0, 2)
    assert disturbed == [0]
    disturbed = [1] * 4
    with pytest.raises(Disturbed, match="inside the timed region, 2 times over: 1 graph captures"):
        undisturbed_result(engine, action, attempts=2)
    assert disturbed == [1, 1]


def test_what_a_gpu_s_driver_was_asked_for_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts it; its own cache does not matter."""
    engine = Mock(device=torch.device("cuda"), **{"runner.graphs.num_captures": 0})
    counted = iter([5, 8])
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_device_alloc": next(counted), "num_alloc_retries": 0})
    before = Disturbances.now(engine)
    assert Disturbances.now(engine).since(before) == "3 driver allocations"


def test_differences_read_as_words() -> None:
    """Only what happened is listed."""
    before, after = Disturbances(1, 2, 3, 4), Disturbances(1, 3, 5, 4)
    assert after.since(before) == "1 dynamo compilations, 2 graph captures"
    assert after.since(after) == ""
