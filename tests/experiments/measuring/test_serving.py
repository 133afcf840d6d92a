"""Served by the real engine: every token counted once, windows apart, and nothing new inside them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine import Engine
from experiments.measuring import serving
from experiments.measuring.arrivals import Request, draw_traffic, serve
from experiments.measuring.guard import Disturbed
from experiments.measuring.serving import ATTEMPTS, measure_serving
from experiments.records import Point
from tests.experiments.measuring.sessions import PROTOCOL, WORKLOADS, session_of, with_graphs

POINT = Point("tiny", "serving", 8, 0)
WINDOWS = PROTOCOL.windows


def test_every_request_and_token_is_a_sample() -> None:
    """Of each window's own draws; one rate a window."""
    session = session_of()
    samples, served = measure_serving(session, POINT, PROTOCOL)
    traffics = [draw_traffic(8, session.workloads["serving"], 256, f"0/{window}") for window in range(WINDOWS)]
    tokens = [request.sampling.max_tokens for traffic in traffics for request in traffic]
    assert len(samples["ttft_ms"]) == len(samples["e2e_ms"]) == len(tokens) == WINDOWS * 8
    assert len(samples["itl_ms"]) == sum(tokens) - len(tokens)
    assert all(value > 0 for values in samples.values() for value in values)
    for first, whole in zip(samples["ttft_ms"], samples["e2e_ms"], strict=True):
        assert first < whole
    # Limits that nothing misses: all requests are good.
    assert samples["goodput_requests_per_s"] == samples["requests_per_s"]
    assert len(samples["output_tokens_per_s"]) == WINDOWS
    counters = served.snapshot()
    assert counters["generated_tokens"] >= sum(tokens)
    assert counters["disturbed_windows"] == 0
    assert {"backlog", "saturated", "steps"} <= counters.keys()
    assert not served.engine.has_work


def test_limits_that_nobody_meets_are_no_goodput() -> None:
    """A zero is stored, not left out."""
    tight = replace(WORKLOADS[-1], ttft_slo_ms=1e-3)
    samples, _ = measure_serving(session_of(workloads=(tight,), points=(POINT,)), POINT, PROTOCOL)
    assert samples["goodput_requests_per_s"] == [0.0] * WINDOWS


def test_at_most_so_many_run_at_once_and_the_pool_holds_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of two: nobody is preempted, the others wait for their turn."""
    most = 0
    launch = Engine.step

    def step(engine: Engine) -> Any:
        nonlocal most
        most = max(most, len(engine.scheduler.running))
        return launch(engine)

    monkeypatch.setattr(Engine, "step", step)
    _, served = measure_serving(session_of(), POINT, PROTOCOL)
    assert most == 2
    assert served.snapshot()["preemptions"] == 0
    assert len(served.engine.blocks.blocks) == 2


def test_no_graph_is_captured_once_traffic_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in the first run, whatever sequences meet in its steps."""
    captures: list[int] = []

    def counted(engine: Engine, traffic: Sequence[Request]) -> list[list[float]]:
        captures.append(engine.runner.graphs.num_captures)
        stamps = serve(engine, traffic)
        captures.append(engine.runner.graphs.num_captures)
        return stamps

    monkeypatch.setattr(serving, "serve", counted)
    _, served = measure_serving(with_graphs(session_of()), POINT, PROTOCOL)
    assert len(captures) == 2 * (1 + WINDOWS)
    assert len(set(captures)) == 1
    assert served.engine.runner.graphs.num_hits > 0


@pytest.mark.parametrize("num_disturbed", [1, ATTEMPTS - 1])
def test_a_disturbed_window_is_run_again_and_counted(num_disturbed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a warm-up without any, the first windows meet a kernel that was not compiled yet."""
    runs = disturbing(monkeypatch, range(1, 1 + num_disturbed))
    samples, served = measure_serving(session_of(), POINT, PROTOCOL)
    assert len(samples["requests_per_s"]) == WINDOWS
    assert served.snapshot()["disturbed_windows"] == num_disturbed
    assert len(runs) == 1 + WINDOWS + num_disturbed


def test_windows_that_are_always_disturbed_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell is invalid, with its reason."""
    disturbing(monkeypatch, range(1, 100))
    with pytest.raises(Disturbed, match=f"{ATTEMPTS} times over: 1 graph captures"):
        measure_serving(session_of(), POINT, PROTOCOL)


def disturbing(monkeypatch: pytest.MonkeyPatch, which: range) -> list[int]:
    """Let something be captured in these of all runs; the list grows with each run."""
    runs: list[int] = []

    def disturbed(engine: Engine, traffic: Sequence[Request]) -> list[list[float]]:
        engine.runner.graphs.num_captures += len(runs) in which
        runs.append(len(traffic))
        return serve(engine, traffic)

    monkeypatch.setattr(serving, "serve", disturbed)
    return runs


@pytest.mark.gpu
def test_on_a_gpu_a_second_cell_is_not_disturbed() -> None:
    """The first cell of a process may meet a kernel that no warm-up met; the same traffic again must not."""
    session = session_of(device="cuda", dtype="bfloat16")
    for _ in range(2):
        _, served = measure_serving(session, POINT, PROTOCOL)
    counters = served.snapshot()
    assert counters["disturbed_windows"] == 0
    assert counters["graph_replays"] > 0
