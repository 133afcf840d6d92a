"""Latency and goodput under traffic: requests arrive at a stated rate and are served in real time (see arrivals.py).

Each window is one run of `batch` requests with draws of its own, from an idle engine until the last token: the times in
which it fills and drains are in the figures. Rounds repeat the same windows, for every variant.

Which sequences meet in a step depends on how fast the steps were, so no warm-up can meet every step. Every CUDA graph
is captured and every kind of mixed step run beforehand, the first window runs untimed until nothing new comes up, and a
timed run in which something was compiled all the same is thrown away and repeated: `disturbed_windows` counts them.
"""

from dataclasses import dataclass
from functools import partial

from engine import Engine
from experiments.config import ProtocolConfig
from experiments.measuring.arrivals import Window, draw_traffic, serve
from experiments.measuring.guard import settle, undisturbed_result
from experiments.measuring.session import Session
from experiments.records import Point

# A step's most tokens: a long prompt is cut up, so that it does not hold up everybody's next token for long.
STEP_TOKENS = 2048
ATTEMPTS = 3


@dataclass(frozen=True)
class Served:
    """The engine that ran, and what of the traffic belongs beside its own figures."""

    engine: Engine
    counters: dict[str, float]

    def snapshot(self) -> dict[str, float]:
        """All of it by name."""
        return self.engine.snapshot() | self.counters


def measure_serving(session: Session, point: Point, protocol: ProtocolConfig) -> tuple[dict[str, list[float]], Served]:
    """(samples, the engine that ran)."""
    workload = session.workloads[point.workload]
    longest = workload.longest(point.batch, point.length, session.request.seed)
    engine = session.engine(min(point.batch, workload.max_num_seqs), longest, STEP_TOKENS)
    engine.runner.warm_up_all()
    traffics = [
        draw_traffic(point.batch, workload, session.loaded.config.vocab_size, f"{session.request.seed}/{window}")
        for window in range(protocol.windows)
    ]
    settle(engine, partial(serve, engine, traffics[0]), ATTEMPTS)
    windows, num_disturbed = [], 0
    for traffic in traffics:
        stamps, thrown = undisturbed_result(engine, partial(serve, engine, traffic), ATTEMPTS)
        windows.append(Window.of(traffic, stamps, workload))
        num_disturbed += thrown
    counters = {
        "backlog": max(window.backlog for window in windows),
        "saturated": sum(window.saturated for window in windows),
        "disturbed_windows": num_disturbed,
    }
    return _samples(windows), Served(engine, {name: float(value) for name, value in counters.items()})


def _samples(windows: list[Window]) -> dict[str, list[float]]:
    """Every request's and token's times in order, and one rate a window."""
    samples: dict[str, list[float]] = {
        "itl_ms": [gap for window in windows for gap in window.itl_ms],
        "ttft_ms": [first for window in windows for first in window.ttft_ms],
        "e2e_ms": [whole for window in windows for whole in window.e2e_ms],
    }
    for rate in ("requests_per_s", "output_tokens_per_s", "goodput_requests_per_s"):
        samples[rate] = [getattr(window, rate) for window in windows]
    return samples
