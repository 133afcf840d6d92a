"""What the harness costs inside a timed region: little, and known."""

import pytest
import torch

from experiments.measuring import overhead
from experiments.measuring.overhead import IdleEngine, Overhead, decoding_engine, measure_overhead

# A step of the fastest engine goal takes 360 us. The timed loop costs well under one; a loaded machine with cold caches
# may take ten times that.
MOST_US = 5.0


def test_the_timed_loop_costs_little(capsys: pytest.CaptureFixture[str]) -> None:
    """Over steps that do nothing, so that the difference is all there is."""
    found = measure_overhead(IdleEngine(), steps=2000, windows=9)
    with capsys.disabled():
        print(f" [{found.timed_us - found.bare_us:.3f} us per step, {found.guard_us:.0f} us per window] ", end="")
    assert 0 < found.bare_us
    assert found.timed_us - found.bare_us < MOST_US


def test_work_inside_the_loop_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that computes something at each step costs more than the bound allows."""
    run = overhead.run_window

    class Meddling(IdleEngine):
        timed = False

        def step(self) -> None:
            super().step()
            if self.timed:
                sum(range(2000))

    engine = Meddling()

    def meddle(given: IdleEngine, steps: int) -> tuple[float, list[float]]:
        engine.timed = True
        result = run(given, steps)  # type: ignore[arg-type]
        engine.timed = False
        return result

    monkeypatch.setattr(overhead, "run_window", meddle)
    found = measure_overhead(engine, steps=500, windows=5)
    assert found.timed_us - found.bare_us > MOST_US


def test_a_real_engine_runs_all_its_steps() -> None:
    """As on a GPU, where the share is what counts."""
    engine = decoding_engine("tiny", steps=2 * 3 * 4)
    found = measure_overhead(engine, steps=4, windows=3)
    assert engine.metrics.num_steps == overhead.SETTLE + 2 * 3 * 4
    assert found.bare_us > 100


def test_the_share_is_that_of_a_timed_step() -> None:
    assert Overhead(99.0, 100.0, 5.0).share == pytest.approx(0.01)


@pytest.mark.gpu
def test_the_harness_takes_less_than_a_five_hundredth_of_a_step_at_batch_one() -> None:
    """Issue 5's bound, on the headline's smallest cell."""
    engine = decoding_engine("qwen3-0.6b", 2 * overhead.WINDOWS * overhead.STEPS)
    assert engine.device.type == torch.device("cuda").type
    assert measure_overhead(engine).share < 0.002
