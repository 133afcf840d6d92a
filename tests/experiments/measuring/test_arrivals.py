"""Traffic comes by its own clock, and every wait is counted from when it was due: against an engine of known speed."""

import itertools
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

import pytest

from engine import SamplingParams
from engine.request import RequestOutput
from experiments.config import WorkloadConfig
from experiments.measuring.arrivals import Request, Window, arrival_times, draw_traffic, serve

WORKLOAD = WorkloadConfig(
    "serving", "serving", [8], [0], rates=[4.0], input_tokens=[3, 9], output_tokens=[2, 6],
    ttft_slo_ms=150.0, itl_slo_ms=100.0,
)  # fmt: skip


@dataclass
class FakeClock:
    """Moves when told to."""

    now_s: float = 1000.0
    slept_s: list[float] = field(default_factory=list)

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float, /) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


class FakeEngine:
    """Each step takes `step_s` on the clock and gives a token to each of at most `most` requests, first come first."""

    def __init__(self, clock: FakeClock, step_s: float, most: int = 100) -> None:
        self.clock, self.step_s, self.most = clock, step_s, most
        self.left: dict[int, int] = {}
        self.ids = itertools.count()

    def add_request(self, prompt: list[int], sampling: SamplingParams) -> int:
        number = next(self.ids)
        self.left[number] = sampling.max_tokens
        return number

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    def step(self) -> list[RequestOutput]:
        self.clock.now_s += self.step_s
        moved = list(self.left)[: self.most]
        for number in moved:
            self.left[number] -= 1
            if not self.left[number]:
                del self.left[number]
        return [RequestOutput(number, []) for number in moved]


def traffic_of(*due_s: float, tokens: int = 2) -> list[Request]:
    return [Request(due, [1], SamplingParams(max_tokens=tokens)) for due in due_s]


def served(engine: Any, traffic: list[Request]) -> list[list[float]]:
    return [[round(stamp, 9) for stamp in stamps] for stamps in serve(engine, traffic, engine.clock)]


def test_tokens_are_stamped_when_they_are_there() -> None:
    """A request joins the step that begins after it was due; an idle engine sleeps until the next one, once."""
    engine = FakeEngine(FakeClock(), step_s=0.1)
    assert served(engine, traffic_of(0.0, 0.05, 1.0)) == [[0.1, 0.2], [0.2, 0.3], [1.1, 1.2]]
    assert engine.clock.slept_s == [pytest.approx(0.7)]


def test_a_stall_is_in_the_first_token_of_all_who_were_due_in_it() -> None:
    """Coordinated omission: a loop that asks only when the engine is ready would see the stall once."""
    engine = FakeEngine(FakeClock(), step_s=1.0)
    traffic = traffic_of(*(0.1 * i for i in range(11)), tokens=1)
    window = Window.of(traffic, serve(engine, traffic, engine.clock), WORKLOAD)  # type: ignore[arg-type]
    assert window.ttft_ms == [1000.0, *(pytest.approx(2000.0 - 100 * i) for i in range(1, 11))]


def test_a_window_sums_up_what_users_wait_for() -> None:
    """Worked out by hand: the second request's first token is late, the third one's others are slow."""
    traffic = traffic_of(0.0, 0.5, 1.0)
    stamps = [[0.1, 0.2], [0.7, 0.75], [1.1, 1.25]]
    window = Window.of(traffic, stamps, WORKLOAD)
    assert window.ttft_ms == [100.0, 200.0, 100.0]
    assert window.e2e_ms == [200.0, 250.0, 250.0]
    assert window.itl_ms == [100.0, 50.0, 150.0]
    assert window.requests_per_s == 3 / 1.25
    assert window.output_tokens_per_s == 6 / 1.25
    assert window.goodput_requests_per_s == 1 / 1.25
    assert (window.backlog, window.saturated) == (0, False)


@pytest.mark.parametrize(("rate", "saturated"), [(4.0, False), (9.0, False), (20.0, True)])
def test_a_rate_beyond_the_engine_grows_the_wait(rate: float, saturated: bool) -> None:
    """Ten requests a second can be served, of two tokens each by steps of 0.1 s with two places."""
    engine = FakeEngine(FakeClock(), step_s=0.1, most=2)
    traffic = traffic_of(*arrival_times(80, rate, 0.0, "s"))
    window = Window.of(traffic, serve(engine, traffic, engine.clock), WORKLOAD)  # type: ignore[arg-type]
    assert window.saturated is saturated
    if saturated:
        # Half of the arrivals of 4 s are served in them, and the last waits for the other half.
        assert window.backlog == pytest.approx(40, abs=3)
        assert window.ttft_ms[-1] == pytest.approx(4000, rel=0.05)
        assert window.requests_per_s == pytest.approx(10, rel=0.05)
    else:
        assert max(window.ttft_ms) < 400
        assert window.backlog <= 2


def test_requests_that_end_early_are_an_error() -> None:
    """Their missing tokens would be times that nobody waited for."""
    with pytest.raises(RuntimeError, match="request 1 ended after 1 of 2 tokens"):
        Window.of(traffic_of(0.0, 0.1), [[0.1, 0.2], [0.3]], WORKLOAD)


def test_a_request_that_fails_is_an_error() -> None:
    class Failing(FakeEngine):
        def step(self) -> list[RequestOutput]:
            return [RequestOutput(0, [], finish_reason="error", error="no room")]

    with pytest.raises(RuntimeError, match="no room"):
        served(Failing(FakeClock(), 0.1), traffic_of(0.0))


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_gaps_have_the_spread_asked_for_and_exactly_the_rate(cv: float) -> None:
    """Of 4,000 gaps: the standard error of a coefficient of variation is at most 8 % here (at 3: kurtosis 54)."""
    times = arrival_times(4001, 50.0, cv, "seed")
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert times[-1] == pytest.approx(4000 / 50.0)
    assert min(gaps) >= 0
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.16, abs=1e-9)


def test_poisson_arrivals_have_no_memory() -> None:
    """A share of e^-1 of exponential gaps is longer than their mean; 4,000 of them miss it by 0.023 at 3 sigma."""
    times = arrival_times(4001, 1.0, 1.0, "seed")
    longer = fmean(after - before > 1.0 for before, after in itertools.pairwise(times))
    assert longer == pytest.approx(0.3679, abs=0.023)


def test_one_request_arrives_at_once() -> None:
    assert arrival_times(1, 5.0, 1.0, "s") == [0.0]


def test_traffic_is_decided_by_its_seed() -> None:
    """Every variant and every round sees the same requests at the same times; another window, others."""
    first = draw_traffic(8, WORKLOAD, 256, "0/0")
    assert first == draw_traffic(8, WORKLOAD, 256, "0/0")
    other = draw_traffic(8, WORKLOAD, 256, "0/1")
    assert [r.due_s for r in first] != [r.due_s for r in other]
    assert [r.prompt for r in first] != [r.prompt for r in other]
    assert [r.due_s for r in first] == sorted(r.due_s for r in first)
    assert all(3 <= len(r.prompt) <= 9 and 2 <= r.sampling.max_tokens <= 6 for r in first)
    assert [first[-1].due_s, other[-1].due_s] == pytest.approx([7 / 4.0] * 2)


def test_a_faster_rate_is_the_same_traffic_sooner() -> None:
    """So that a sweep of rates compares nothing but the rate."""
    slow, fast = (draw_traffic(8, replace(WORKLOAD, rates=[rate]), 256, "0/0") for rate in (1.0, 10.0))
    assert [r.prompt for r in slow] == [r.prompt for r in fast]
    assert [r.due_s for r in slow] == [pytest.approx(10 * r.due_s) for r in fast]
