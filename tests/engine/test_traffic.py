"""Hypothesis drives scheduler, block manager and engine together: arrivals, aborts, preemptions, shared prefixes."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.engine import soak
from tests.engine.traffic import Traffic, draw_engine


class Hypothesis:
    """Choices made, and shrunk, by hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def integer(self, least: int, most: int) -> int:
        """A whole number, both ends included."""
        return self._data.draw(st.integers(least, most))


class EngineUnderTraffic(RuleBasedStateMachine):
    """Whatever is asked for, in whatever order, each answer is that of the request alone and no block is lost."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """An engine of random sizes."""
        self.traffic = Traffic(draw_engine(Hypothesis(data)))

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        """A request arrives."""
        self.traffic.add(Hypothesis(data))

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """A request is given up."""
        self.traffic.abort(Hypothesis(data))

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        """The engine works for a while."""
        for _ in range(count):
            self.traffic.step()

    def teardown(self) -> None:
        """Every request comes to its end."""
        if hasattr(self, "traffic"):
            self.traffic.drain()


TestEngineUnderTraffic = EngineUnderTraffic.TestCase
# Derandomised: CI is no place to find new failures, soak.py is.
TestEngineUnderTraffic.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_a_soak_prints_the_seed_of_its_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that `--seed N --minutes 0` runs that round again."""
    assert soak.main(["--minutes", "0", "--seed", "40"]) == 0
    assert capsys.readouterr().out.startswith("soak: 1 rounds without a violation: ")
    real = soak.run_round

    def run_round(seed: int) -> dict[str, float]:
        assert seed != 42, "a block is lost"
        return real(seed)

    monkeypatch.setattr(soak, "run_round", run_round)
    assert soak.main(["--minutes", "5", "--seed", "41"]) == 1
    said = capsys.readouterr()
    assert said.out == "soak: round with --seed 42 failed\n"
    assert "a block is lost" in said.err
