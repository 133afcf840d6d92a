"""The simulation that vouches for the analysis is itself right: its truth is known, and it uses the code it judges."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import calibrate
from experiments.busy_worker import slow_down
from experiments.calibrate import BUSY_VARIANTS, BUSY_WORKER, _busy_experiment, main, parse, real
from experiments.calibration import NOISES, simulate
from experiments.compose import compose
from experiments.errors import UserError
from experiments.records import Status
from experiments.reporting.docs import BLOCKS
from experiments.reporting.rows import analyse
from experiments.reporting.run import load_run
from experiments.sweep import prepare, run_sweep
from tests.experiments.sweeping import arguments, outcome

FULL = compose(["protocol=full"]).protocol
ALL_ROUNDS = replace(FULL, target_ci=None)
SWEEPS = 8
POINTS = 40
# Three standard errors of a share of 320 comparisons below 92 %, the least that intervals may cover, and above 98 %.
LEAST = 0.92 - 3 * math.sqrt(0.92 * 0.08 / (SWEEPS * POINTS))
MOST = 0.98 + 3 * math.sqrt(0.98 * 0.02 / (SWEEPS * POINTS))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("effect", [0.0, 0.05])
def test_intervals_cover_with_and_without_early_ends(noise: str, effect: float) -> None:
    for protocol in (ALL_ROUNDS, FULL):
        found = simulate(noise, effect, protocol, SWEEPS)
        assert found.comparisons == SWEEPS * POINTS
        assert LEAST <= found.coverage <= MOST
        assert found.same + found.slower + found.faster + found.unresolved == pytest.approx(1)
        assert found.faster == 0
        if not effect:
            # One false claim in 8 sweeps has a probability of a third at most; three have one of half a per cent.
            assert found.wrong_sweeps <= 2 / SWEEPS


def test_ending_early_saves_rounds_and_loses_no_verdict() -> None:
    """At a noise of 0.5 % between rounds: equal variants are found the same, 5 % are found, both in fewer rounds."""
    for effect, verdict in ((0.0, "same"), (0.05, "slower")):
        whole, early = (simulate("log-normal", effect, protocol, SWEEPS) for protocol in (ALL_ROUNDS, FULL))
        assert whole.rounds == FULL.rounds
        assert early.rounds < 0.8 * FULL.rounds
        assert getattr(whole, verdict) >= 0.99
        assert getattr(early, verdict) >= 0.99


def test_the_seed_decides() -> None:
    assert simulate("hiccups", 0.02, FULL, 1, seed=3) == simulate("hiccups", 0.02, FULL, 1, seed=3)
    assert simulate("hiccups", 0.02, FULL, 1, seed=3) != simulate("hiccups", 0.02, FULL, 1, seed=4)


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "found.json"
    assert main(["sweeps=1", f"out={out}"]) == 0
    written = json.loads(out.read_text())
    assert len(written["rows"]) == 2 * 5 * len(NOISES)
    assert written["protocol"] == {"rounds": 10, "min_rounds": 4, "target_ci": 0.005, "windows": 3}
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(written["rows"])
    (tmp_path / "docs/data").mkdir(parents=True)
    out.rename(tmp_path / "docs/data/calibration.json")
    assert BLOCKS["calibration"](tmp_path).splitlines()[: len(table)] == table


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("sweeps=0", "sweeps=0 and real=0 leave nothing to judge"),
        ("sweeps=-1", "must not be negative"),
        ("sweep=3", "unknown key 'sweep'"),
        ("sweeps", "not of the form key=value"),
    ],
)
def test_bad_arguments_are_named(argument: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse([argument])


def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(calibrate, "simulated", pytest.fail)
    for out in (tmp_path / "file" / "found.json", tmp_path):
        assert main(["sweeps=1", f"out={out}"]) == 2
        assert f"out={out} cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_real_is_run_unless_asked_for() -> None:
    assert list(real(FULL, 0, 0)) == []


def test_real_sweeps_are_sound_experiments() -> None:
    assert [variant.name for variant in prepare(_busy_experiment(FULL, 0)).config.variants] == list(BUSY_VARIANTS)


def test_a_busy_sweep_finds_what_is_four_times_slower(tmp_path: Path) -> None:
    """Through real processes and a real clock. Four times is 1.4 on the log scale, where a loaded machine scatters by
    0.1: the t of three rounds is above 20."""
    assert slow_down("slow_300") == 3.0
    assert slow_down("control") == 0.0
    asked = arguments(
        tmp_path, "variants=[baseline,slow_300]", "variant.slow_300.extends=baseline", "batches=[4]",
        "lengths=[1]", "protocol.rounds=3", "protocol.windows=15", "protocol.restart_rounds=1",
    )  # fmt: skip
    config = compose(asked)
    assert run_sweep(config, asked, BUSY_WORKER) == 0
    found = outcome(tmp_path)
    assert set(found.statuses().values()) == {Status.OK}
    rows = analyse(load_run(tmp_path / "results", config.name, "latest")).primary
    slow = next(row for row in rows if row.variant == "slow_300")
    assert slow.verdict == "slower"
    assert slow.speedup == pytest.approx(0.25, rel=0.5)
