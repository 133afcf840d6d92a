"""kill -9 at any instant loses the cell in flight and no other, and leaves nothing running."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from random import Random

import pytest

from experiments import plain
from experiments.compose import compose
from experiments.durable import write_json
from experiments.environment import ROOT
from experiments.errors import UserError
from experiments.plan import make_plan
from experiments.records import Status
from experiments.reporting.run import Run, load_run
from tests.experiments.reporting.synthetic import ledger
from tests.experiments.sweeping import arguments, outcome, sweep, worker_command

KILLS = 6
CELL_S = 0.02
NUM_CELLS = 8 * 8
PROGRAM = """
import json, sys
from experiments.command_line import run_command
from experiments.compose import compose
from experiments.sweep import run_sweep
overrides, worker = json.loads(sys.argv[1])
sys.exit(run_command(lambda: run_sweep(compose(overrides), overrides, worker)))
"""


def start(tmp_path: Path, *overrides: str) -> "subprocess.Popen[str]":
    """A sweep of 64 cells in a process of its own."""
    asked = arguments(tmp_path, "protocol.rounds=8", *overrides)
    command = [sys.executable, "-c", PROGRAM, json.dumps([asked, worker_command(tmp_path, [])])]
    environment = os.environ | {"FAKE_CELL_S": str(CELL_S), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def cells(tmp_path: Path) -> dict[str, bytes]:
    found = {}
    for file in tmp_path.glob("results/*/*/cells/*.json"):
        # A sweep that goes on may be forgetting half of a pair.
        with contextlib.suppress(FileNotFoundError):
            found[file.name] = file.read_bytes()
    return found


def wait_for(condition: object, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.005)
    return bool(condition())  # type: ignore[operator]


def workers(tmp_path: Path) -> list[int]:
    """Processes that run this test's fake worker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(tmp_path / "rules.json").encode() in line and b"-P" in line:
            found.append(int(folder.name))
    return found


def other_of_its_pair(cell: str) -> str:
    """The file of the other variant's cell in that round."""
    swapped = {"baseline": "fused", "fused": "baseline"}
    return ".".join(swapped.get(part, part) for part in cell.split("."))


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_killing_the_harness_loses_no_finished_cell(tmp_path: Path) -> None:
    rng = Random(0)
    seen: dict[str, bytes] = {}
    for kill in range(KILLS):
        running = start(tmp_path, *(["resume=latest"] if kill else []))
        target = len(seen) + rng.randint(1, 8)
        assert wait_for(lambda target=target: len(cells(tmp_path)) >= target)
        # Anywhere inside a cell or a write.
        time.sleep(rng.random() * CELL_S * 2)
        running.kill()
        running.communicate()
        assert wait_for(lambda: not workers(tmp_path), 10)
        now = cells(tmp_path)
        # What is half of a pair is measured again by the next sitting, whole.
        halves = {name for name in seen if other_of_its_pair(name) not in seen}
        assert {name for name in seen if now.get(name) != seen[name]} <= halves
        seen = now
        assert not outcome(tmp_path).damaged

    running = start(tmp_path, "resume=latest")
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, out + err
    finished = outcome(tmp_path)
    assert len(list(tmp_path.glob("results/quick/*"))) == 1
    assert set(finished.statuses().values()) == {Status.OK}
    planned = make_plan(compose(arguments(tmp_path, "protocol.rounds=8")), ["tiny"]).cells
    assert finished.results.keys() == {cell.id for cell in planned}
    assert len(planned) == NUM_CELLS
    # No cell was measured twice but those of the pair in flight when the harness was killed.
    assert len(finished.measured) <= NUM_CELLS + 2 * KILLS
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_killing_workers_costs_the_cells_in_flight(tmp_path: Path) -> None:
    rng = Random(1)
    running = start(tmp_path)
    killed = 0
    assert wait_for(lambda: len(cells(tmp_path)) > 2)
    while killed < 4:
        victims = workers(tmp_path)
        if victims:
            os.kill(rng.choice(victims), signal.SIGKILL)
            killed += 1
        before = len(cells(tmp_path))
        assert wait_for(lambda before=before: len(cells(tmp_path)) > before + 4)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, out + err
    finished = outcome(tmp_path)
    assert len(finished.results) == NUM_CELLS
    lost = [result for result in finished.results.values() if result.status is not Status.OK]
    assert len(lost) <= killed
    assert all("was killed by SIGKILL" in result.reason for result in lost)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_says_how_to_go_on(tmp_path: Path, how: signal.Signals) -> None:
    running = start(tmp_path)
    assert wait_for(lambda: len(cells(tmp_path)) > 2)
    running.send_signal(how)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert err.strip().endswith(f"resume={outcome(tmp_path).path.name}")


@pytest.mark.parametrize("kind", ["manifest.json", "cells/*.json", "traces/*.json", "logs/*.log"])
def test_a_corrupt_byte_is_named_and_never_counted(tmp_path: Path, kind: str) -> None:
    """One flipped bit, at places all over a file of each kind that a run has."""
    path = sweep(tmp_path, "protocol.rounds=1").path
    (path / "traces").mkdir()
    write_json(path / "traces" / "a.json", plain.encode(ledger("fused")))
    (path / "logs" / "any.log").write_text("a library says hello\n")
    file, rng = sorted(path.glob(kind))[0], Random(2)
    whole, good = file.read_bytes(), load_run(tmp_path / "results", "quick", "latest")
    for place in rng.sample(range(len(whole)), min(40, len(whole))):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        run, refused = _read(tmp_path)
        for aside in path.rglob("*.corrupt"):
            aside.unlink()
        if run is None:
            assert kind == "manifest.json"
            assert kind in refused
            continue
        assert len(run.results) == len(good.results)
        if run.problems:
            assert run.problems[0].startswith((file.name, f"traces/{file.name}"))
            assert run.ledgers == () or run.results != good.results
        else:
            assert (run.results, run.ledgers, run.info) == (good.results, good.ledgers, good.info)


def _read(tmp_path: Path) -> tuple[Run | None, str]:
    try:
        return load_run(tmp_path / "results", "quick", "latest"), ""
    except UserError as error:
        return None, str(error)


class JumpingClock(datetime):
    """A wall clock that somebody sets back by a day whenever it is read."""

    reads = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "JumpingClock":
        cls.reads += 1
        return cls(2026, 11, 25, tzinfo=tz) - timedelta(days=cls.reads)


def test_a_clock_that_jumps_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations and budgets are of the steady clock; wall time only says when."""
    monkeypatch.setattr("experiments.sweep.datetime", JumpingClock)
    monkeypatch.setattr("experiments.manifest.datetime", JumpingClock)
    rules = [{"do": "error", "on": "measure", "variant": "fused", "batch": 1, "length": 8}]
    found = sweep(tmp_path, "protocol.time_budget_s=600", rules=rules)
    assert JumpingClock.reads > len(found.results)
    failed = [r for r in found.results.values() if r.status is Status.ERROR]
    assert len(failed) == 2
    assert {r.status for r in found.results.values()} == {Status.OK, Status.ERROR}
    assert all(0 <= r.duration_s < 60 for r in found.results.values())
    assert {r.started[:4] for r in failed} == {"2026"}
    assert sweep(tmp_path, "protocol.time_budget_s=600", "resume=latest").statuses() == found.statuses()


def test_two_sweeps_at_once_keep_apart(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    for running in both:
        out, err = running.communicate(timeout=120)
        assert running.returncode == 0, out + err
    runs = sorted(tmp_path.glob("results/quick/*"))
    assert len(runs) == 2
    assert [len(list((run / "cells").glob("*.json"))) for run in runs] == [NUM_CELLS, NUM_CELLS]
