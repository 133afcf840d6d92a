"""The order in which a model's workers start and load, with workers that only take notes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import pool
from experiments.compose import compose
from experiments.messages import Answer, Failed, Load, Measure, Measured, Ready, Request, Verified
from experiments.models import find_model
from experiments.plan import make_plan
from experiments.pool import Pool
from experiments.records import Cell, CellResult, Status, Verdict

GOOD, BAD = Verdict(True, "", 8, 1.0, 1e-6, 1e-5, 3), Verdict(False, "wrong", 8, 0.0, 1.0, 1.0, 3)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of every worker, in order; one whose variant is `folded` does not load."""
    taken: list[str] = []

    class Worker:
        def __init__(self, log: Path, command: Any) -> None:
            self.name = log.name.split(".")[1]
            taken.append(f"start {self.name}")

        def ask(self, request: Request, timeout_s: float, say: Callable[[str], None]) -> Answer:
            if isinstance(request, Load):
                taken.append(f"load {self.name}")
                return Failed("oom", "no memory") if self.name == "folded" else self.ready()
            if isinstance(request, Measure):
                taken.append(f"ours {request.ours}")
                return Measured(CellResult(request.cell, Status.OK, samples={"step_ms": [1.0]}))
            return Verified(GOOD)

        def ready(self) -> Ready:
            return Ready("fake", "0123", "twin", gpu_pids={"baseline": (7,), "fused": (8, 9)}[self.name])

        def kill(self) -> None:
            taken.append(f"kill {self.name}")

        close = kill

    monkeypatch.setattr(pool, "WorkerProcess", Worker)
    return taken


def make_pool(tmp_path: Path, verdicts: dict[str, Verdict], by_process: bool = False) -> Pool:
    config = compose(["experiment=quick", "models=[tiny]", "variants=[baseline,folded,fused]"])
    [plan] = make_plan(config, ["tiny"], frozenset({"tiny"} if by_process else ())).models
    return Pool(config, find_model("tiny"), plan, tmp_path, verdicts, lambda *_: None, lambda _: None)


def test_workers_start_side_by_side_and_load_one_by_one(tmp_path: Path, notes: list[str]) -> None:
    with make_pool(tmp_path, {}) as warm:
        warm.warm_up(("baseline", "folded", "fused"))
        assert notes[:3] == ["start baseline", "start folded", "start fused"]
        assert notes[3:] == ["load baseline", "load folded", "kill folded", "load fused"]
    assert notes[7:] == ["kill baseline", "kill fused"]


def test_a_worker_that_is_known_to_be_wrong_does_not_stay(tmp_path: Path, notes: list[str]) -> None:
    with make_pool(tmp_path, {"fused": BAD}) as warm:
        warm.warm_up(("baseline", "fused"))
        assert notes == ["start baseline", "start fused", "load baseline", "kill fused"]


def test_one_process_at_a_time_is_not_started_ahead(tmp_path: Path, notes: list[str]) -> None:
    with make_pool(tmp_path, {}, by_process=True) as alone:
        alone.warm_up(("baseline", "fused"))
    assert notes == []


def test_a_cell_is_told_every_process_that_is_ours(tmp_path: Path, notes: list[str]) -> None:
    with make_pool(tmp_path, {}) as warm:
        warm.warm_up(("baseline", "fused"))
        cell = Cell(warm._plan.points[0], "baseline", 0)
        assert warm.measure(cell).status is Status.OK
    assert "ours (7, 8, 9)" in notes
