"""Requests that arrive by the clock, whatever the engine does: drawn, served in an open loop, and summed up.

Nothing waits for the engine to be ready. A request that is due is handed over before the next step, and its times count
from when it was due: time that it spent waiting for a long step to end is in its first token, as it is for a user.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, median
from typing import Protocol

from engine import Engine, SamplingParams
from experiments.config import WorkloadConfig
from experiments.measuring.offline import draw_requests

# Over this share of the requests still unserved at the last arrival, with first tokens that come later and later.
SATURATED_SHARE = 0.05
SATURATED_GROWTH = 2.0
DECIMALS = 4  # A tenth of a microsecond, in milliseconds: more would only fill the disk.


class Clock(Protocol):
    """What the module `time` offers."""

    def perf_counter(self) -> float:
        """Seconds."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


@dataclass(frozen=True)
class Request:
    """One request and when it is due, in seconds from the start."""

    due_s: float
    prompt: list[int]
    sampling: SamplingParams


def draw_traffic(count: int, workload: WorkloadConfig, vocab_size: int, seed: str) -> list[Request]:
    """`count` requests in the order of their arrival, the same for whoever asks with the same seed."""
    due = arrival_times(count, workload.rates[0], workload.arrival_cv, f"{seed}/arrivals")
    requests = draw_requests(count, workload, vocab_size, seed)
    return [Request(due_s, *request) for due_s, request in zip(due, requests, strict=True)]


def arrival_times(count: int, rate: float, cv: float, seed: str) -> list[float]:
    """Seconds, the first at 0 and the last at (count - 1) / rate: a drawn rate is exactly the one asked for.

    Gaps are gamma-distributed with coefficient of variation `cv`; at 1 they are exponential, a Poisson process.
    """
    draw = Random(seed)
    shape = cv**-2 if cv else 0.0
    gaps = [draw.gammavariate(shape, 1.0) if cv else 1.0 for _ in range(count - 1)]
    scale = (count - 1) / rate / (sum(gaps) or 1.0)
    return list(itertools.accumulate((gap * scale for gap in gaps), initial=0.0))


def serve(engine: Engine, traffic: Sequence[Request], clock: Clock = time) -> list[list[float]]:
    """When each token of each request was on the host, in seconds from the start."""
    stamps: list[list[float]] = [[] for _ in traffic]
    place: dict[int, int] = {}
    start = clock.perf_counter()
    while len(place) < len(traffic) or engine.has_work:
        now = clock.perf_counter() - start
        while len(place) < len(traffic) and traffic[len(place)].due_s <= now:
            request = traffic[len(place)]
            place[engine.add_request(request.prompt, request.sampling)] = len(place)
        if not engine.has_work:
            clock.sleep(traffic[len(place)].due_s - now)
            continue
        outputs = engine.step()
        now = clock.perf_counter() - start
        for output in outputs:
            if output.error:
                raise RuntimeError(output.error)
            stamps[place[output.request_id]].append(now)
    return stamps


@dataclass(frozen=True)
class Window:
    """One run of traffic: what each request waited for, in milliseconds, and rates over the whole run.

    `backlog` counts the requests without a first token when the last one arrived.
    """

    ttft_ms: list[float]
    e2e_ms: list[float]
    itl_ms: list[float]
    requests_per_s: float
    output_tokens_per_s: float
    goodput_requests_per_s: float
    backlog: int

    @classmethod
    def of(cls, traffic: Sequence[Request], stamps: Sequence[Sequence[float]], workload: WorkloadConfig) -> "Window":
        """From token time stamps. RuntimeError where a request ended early."""
        _check_complete(traffic, stamps)
        due_s = [request.due_s for request in traffic]
        ttft_ms = [_ms(tokens[0] - due) for due, tokens in zip(due_s, stamps, strict=True)]
        gaps_ms = [[_ms(after - before) for before, after in itertools.pairwise(tokens)] for tokens in stamps]
        seconds = max(tokens[-1] for tokens in stamps)
        num_good = sum(
            first <= workload.ttft_slo_ms and fmean(gaps or [0.0]) <= workload.itl_slo_ms
            for first, gaps in zip(ttft_ms, gaps_ms, strict=True)
        )
        return cls(
            ttft_ms=ttft_ms,
            e2e_ms=[_ms(tokens[-1] - due) for due, tokens in zip(due_s, stamps, strict=True)],
            itl_ms=[gap for gaps in gaps_ms for gap in gaps],
            requests_per_s=len(traffic) / seconds,
            output_tokens_per_s=sum(map(len, stamps)) / seconds,
            goodput_requests_per_s=num_good / seconds,
            backlog=sum(tokens[0] > due_s[-1] for tokens in stamps[:-1]),
        )

    @property
    def saturated(self) -> bool:
        """Whether requests came faster than they could be served: many wait at the end, and each longer than before."""
        quarter = -(-len(self.ttft_ms) // 4)
        grown = median(self.ttft_ms[-quarter:]) > SATURATED_GROWTH * median(self.ttft_ms[:quarter])
        return grown and self.backlog > SATURATED_SHARE * len(self.ttft_ms)


def _check_complete(traffic: Sequence[Request], stamps: Sequence[Sequence[float]]) -> None:
    for number, (request, tokens) in enumerate(zip(traffic, stamps, strict=True)):
        wanted = request.sampling.max_tokens
        if len(tokens) != wanted:
            raise RuntimeError(f"request {number} ended after {len(tokens)} of {wanted} tokens")


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, DECIMALS)
