"""What the harness costs inside a timed region: little, and known."""

import json
from pathlib import Path
from statistics import median

import pytest
import torch

from experiments.compose import compose
from experiments.measuring import overhead
from experiments.measuring.overhead import IdleEngine, Options, Overhead, decode_overhead, main, measure_overhead

# A step of the fastest engine goal takes 360 us. The timed loop costs well under one; a loaded machine with cold caches
# may take ten times that.
MOST_US = 5.0


def test_the_timed_loop_costs_little(capsys: pytest.CaptureFixture[str]) -> None:
    """Over steps that do nothing, so that the difference is all there is."""
    found = measure_overhead(IdleEngine(), steps=2000, pairs=9)
    with capsys.disabled():
        print(f" [{found.added_us:.3f} us per step, {median(found.guard_us):.0f} us per window] ", end="")
    assert 0 < min(found.bare_us)
    assert found.added_us < MOST_US


def test_a_place_for_figures_is_checked_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "decode_overhead", pytest.fail)
    assert main(["model=tiny", f"out={tmp_path}"]) == 2
    assert f"out={tmp_path} cannot be written" in capsys.readouterr().err
    monkeypatch.setattr(overhead, "measure_overhead", pytest.fail)
    assert main([f"out={tmp_path / 'a.json'}"]) == 2
    assert "add model=NAME" in capsys.readouterr().err


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
    assert measure_overhead(engine, steps=500, pairs=5).added_us > MOST_US


def test_every_window_of_a_real_engine_starts_from_the_same_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the share is what counts; and the file has what was printed."""
    contexts: list[list[int]] = []
    decoding = overhead.decoding

    def noted(session: object, engine: object, point: object, start: list[int], steps: int) -> object:
        contexts.append([*start, steps])
        return decoding(session, engine, point, start, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(overhead, "decoding", noted)
    assert main(["model=tiny", "pairs=3", "steps=4", f"out={tmp_path / 'overhead.json'}"]) == 0
    # A warm-up and three pairs of each variant.
    assert contexts == [[overhead.CONTEXT, overhead.SETTLE + 4]] * (2 * 7)
    kept = json.loads((tmp_path / "overhead.json").read_text())
    assert [row["variant"] for row in kept["rows"]] == ["baseline", "fused"]
    for row in kept["rows"]:
        assert len(row["pairs"]) == 3
        assert row["bare_us"] == median(bare for bare, _ in row["pairs"])
        assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
        assert f"{row['bare_us']:.3f} us bare" in capsys.readouterr().out or row["variant"] == "fused"


def test_the_ratio_is_of_pairs() -> None:
    """However much the pairs differ among themselves."""
    found = Overhead([100.0, 200.0, 400.0], [101.0, 202.0, 404.0], [5.0])
    assert found.ratio.value == pytest.approx(1.01)
    assert found.added_us == pytest.approx(2.0)


@pytest.mark.gpu
def test_the_harness_takes_less_than_a_five_hundredth_of_a_step_at_batch_one() -> None:
    """Issue 5's bound, on the headline's smallest cell."""
    assert torch.cuda.is_available()
    [baseline] = compose(["variants=[baseline]"]).variants
    found = decode_overhead("qwen3-0.6b", baseline, Options.steps, Options.pairs)
    assert found.ratio.value < 1.002
