"""Timing without a GPU: who runs when, how often, and what is captured."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.kernels import timing
from experiments.kernels.timing import cold_copies, launches_of, take_turns, time_on_cpu, time_on_gpu

MIB = 2**20
LATENCY_US = 100.0


def test_cold_weights_together_are_three_times_l2() -> None:
    assert cold_copies(8 * MIB, 50 * MIB) == 19
    assert cold_copies(200 * MIB, 50 * MIB) == 1
    assert cold_copies(0, 50 * MIB) == 150 * MIB


@pytest.mark.parametrize(("copies", "launch_us"), [(1, 2.0), (19, 2.0), (19, 1e5), (3, 100.0), (500, 10.0)])
def test_every_copy_is_launched_as_often(copies: int, launch_us: float) -> None:
    count = launches_of(copies, launch_us)
    assert count % copies == 0
    assert count >= max(copies, timing.FEWEST_LAUNCHES - copies / 2)
    assert count <= max(copies, timing.MOST_LAUNCHES + copies / 2)


def test_a_quick_sample_is_shorter() -> None:
    assert launches_of(1, 5.0, timing.QUICK_SAMPLE_US) == 200
    assert launches_of(1, 5.0) == 400


def test_contenders_take_turns_and_each_begins_as_often() -> None:
    log: list[str] = []

    def run(name: str) -> Any:
        return lambda: log.append(name) or float(len(log))  # type: ignore[func-returns-value]

    samples = take_turns({name: run(name) for name in "abc"}, repeats=3)
    assert "".join(log) == "abcbcacab"
    assert samples == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_a_cpu_runs_one_launch_a_sample_after_one_that_does_not_count() -> None:
    calls = []
    samples = time_on_cpu({"twin": [lambda: calls.append(1)]}, repeats=3)
    assert len(calls) == 4
    assert len(samples["twin"]) == 3
    assert all(sample > 0 for sample in samples["twin"])


class FakeGpu:
    """torch.cuda in as far as timing uses it: a launch takes `launch_us`, a graph what was captured in it, and one that
    is sent to an idle GPU LATENCY_US more, until it is there.
    """

    def __init__(self, launch_us: float) -> None:
        self.launch_us, self.now_us, self.launches, self.capturing = launch_us, 0.0, [], None
        self.idle = True
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now_us

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: "Event") -> float:
                return (end.at - self.at) / 1e3

        class CUDAGraph:
            def __init__(self) -> None:
                self.nodes: list[int] = []

            def replay(self) -> None:
                gpu.now_us += len(self.nodes) * gpu.launch_us + LATENCY_US * gpu.idle
                gpu.idle = False

        @contextmanager
        def graph(captured: CUDAGraph) -> Iterator[None]:
            gpu.capturing = captured.nodes
            yield
            gpu.capturing = None

        def synchronize() -> None:
            gpu.idle = True

        self.cuda = SimpleNamespace(Event=Event, CUDAGraph=CUDAGraph, graph=graph, synchronize=synchronize)

    def launch(self, copy: int) -> None:
        """Launch on one copy of the weights."""
        if self.capturing is None:
            self.now_us += self.launch_us
        else:
            self.capturing.append(copy)
            self.launches.append(copy)


def test_a_graph_rotates_among_copies_and_is_divided_by_its_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(launch_us=40.0)
    monkeypatch.setattr(torch, "cuda", gpu.cuda)
    samples = time_on_gpu({"fused": [lambda copy=copy: gpu.launch(copy) for copy in range(3)]}, repeats=4)  # type: ignore[misc]
    assert samples == {"fused": pytest.approx([40.0] * 4)}
    # 4,000 us of 40 us launches, rounded to whole turns of three copies.
    assert gpu.launches == [0, 1, 2] * 33
