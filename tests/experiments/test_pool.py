"""How a model's workers start and load, side by side or not, with workers that only take notes."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import pool
from experiments.compose import compose
from experiments.errors import UserError
from experiments.messages import (
    Answer,
    Failed,
    Load,
    Measure,
    MeasureCeilings,
    Measured,
    Rates,
    Ready,
    Request,
    Verified,
)
from experiments.models import find_model
from experiments.plan import make_plan
from experiments.pool import Pool
from experiments.records import Cell, CellResult, Status, Verdict
from experiments.worker_process import WorkerLost
from experiments.workplace import Workplace

GOOD, BAD = Verdict(True, "", 8, 1.0, 1e-6, 1e-5, 3), Verdict(False, "wrong", 8, 0.0, 1.0, 1.0, 3)
VARIANTS = ("baseline", "folded", "fused")


class Workers:
    """What became of every worker, in order. `loads` says what one of a variant answers to Load, a call at a time."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.loads: dict[str, Callable[[], Answer]] = {"folded": lambda: Failed("error", "no such thing")}
        self.asked_from: set[int] = set()
        self.made: list[Worker] = []

    def make(self, log: Path, command: Any) -> "Worker":
        self.made.append(Worker(self, log.name.split(".")[1]))
        return self.made[-1]


class Worker:
    """One of them."""

    def __init__(self, workers: Workers, name: str) -> None:
        self.workers, self.name, self.aborted = workers, name, threading.Event()
        self.ended = False
        self.note("start")

    def note(self, what: str) -> None:
        self.workers.notes.append(f"{what} {self.name}")

    def ask(self, request: Request, timeout_s: float, say: Callable[[str], None]) -> Answer:
        self.workers.asked_from.add(threading.get_ident())
        if isinstance(request, Load):
            self.note("load")
            pids = {"baseline": (7,), "fused": (8, 9)}.get(self.name, ())
            told = self.workers.loads.get(self.name, lambda: Ready("fake", "0123", "twin", gpu_pids=pids))()
            if self.aborted.is_set():
                raise WorkerLost(Status.ERROR, "aborted")
            return told
        if isinstance(request, Measure):
            self.workers.notes.append(f"ours {request.ours}")
            return Measured(CellResult(request.cell, Status.OK, samples={"step_ms": [1.0]}))
        if isinstance(request, MeasureCeilings):
            self.note("ceilings")
            return Rates({"read_bytes_per_s": 1e12})
        return Verified(GOOD)

    def abort(self) -> None:
        self.aborted.set()

    def dismiss(self) -> None:
        self.note("dismiss")

    def kill(self) -> None:
        if not self.ended:
            self.note("end")
        self.ended = True

    close = kill


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """The workers of a pool; one whose variant is `folded` does not load."""
    taken = Workers()
    monkeypatch.setattr(pool, "WorkerProcess", taken.make)
    return taken


def make_pool(
    tmp_path: Path,
    verdicts: dict[str, Verdict],
    by_process: bool = False,
    at_once: int = 1,
    say: Callable[[str], None] = lambda _: None,
    on_rates: Callable[[dict[str, float]], None] | None = None,
    variants: str = "baseline,folded,fused",
) -> Pool:
    config = compose(["experiment=quick", "models=[tiny]", f"variants=[{variants}]"])
    [plan] = make_plan(config, ["tiny"], frozenset({"tiny"} if by_process else ())).models
    workplace = Workplace(config, tmp_path, say)
    return Pool(workplace, find_model("tiny"), plan, verdicts, lambda *_: None, on_rates, at_once)


def test_workers_start_side_by_side_and_load_one_by_one_where_cores_are_few(tmp_path: Path, workers: Workers) -> None:
    with make_pool(tmp_path, {}) as warm:
        warm.warm_up(VARIANTS)
        assert workers.notes[:3] == ["start baseline", "start folded", "start fused"]
        # The one that failed is gone before the next may want its memory.
        assert workers.notes[3:] == ["load baseline", "load folded", "end folded", "load fused"]
    assert workers.notes[7:] == ["dismiss baseline", "dismiss fused", "end fused", "end baseline"]


def test_workers_load_side_by_side_where_there_is_room(tmp_path: Path, workers: Workers) -> None:
    """Three are inside their load at the same time, and their answers are taken in this thread."""
    together = threading.Barrier(3, timeout=30)

    def load() -> Answer:
        together.wait()
        return Ready("fake", "0123", "twin")

    workers.loads = dict.fromkeys(VARIANTS, load)
    said: list[tuple[int, str]] = []
    verdicts: dict[str, Verdict] = {}
    with make_pool(tmp_path, verdicts, at_once=3, say=lambda text: said.append((threading.get_ident(), text))) as warm:
        warm.warm_up(VARIANTS)
        assert verdicts == dict.fromkeys(VARIANTS, GOOD)
    assert len(workers.asked_from) == 3
    assert {thread for thread, _ in said} == {threading.get_ident()}
    assert {text for _, text in said} == {
        f"{what} tiny, {variant}" for variant in VARIANTS for what in ("loading", "checking the answers of")
    }


def test_no_more_load_at_once_than_may(tmp_path: Path, workers: Workers) -> None:
    running, most = 0, 0

    def load() -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return Ready("fake", "0123", "twin")

    workers.loads = dict.fromkeys(VARIANTS, load)
    with make_pool(tmp_path, {}, at_once=2) as warm:
        warm.warm_up(VARIANTS)
    assert most == 2


def test_what_has_no_memory_beside_others_is_tried_again_alone(tmp_path: Path, workers: Workers) -> None:
    tries = {
        "folded": iter((Failed("oom", "full"), Ready("fake", "0123", "twin"))),
        "fused": iter((Failed("oom", "full"), Failed("oom", "really full"))),
    }
    workers.loads = {name: told.__next__ for name, told in tries.items()}
    said: list[str] = []
    with make_pool(tmp_path, {}, at_once=3, say=said.append) as warm:
        warm.warm_up(VARIANTS)
        assert [warm.is_unfit(variant) for variant in VARIANTS] == [False, False, True]
        assert workers.notes.count("start folded") == workers.notes.count("start fused") == 2
    assert any(text.startswith("tiny: no memory beside others for f") for text in said)
    assert said[-1] == "tiny, fused: could not load: really full"


def test_bad_input_ends_those_that_still_load(tmp_path: Path, workers: Workers) -> None:
    """Without waiting for the others' time-outs."""
    loading = threading.Event()

    def slow() -> Answer:
        loading.set()
        deadline = time.monotonic() + 30
        while not any(worker.aborted.is_set() for worker in workers.made) and time.monotonic() < deadline:
            time.sleep(0.01)
        return Ready("fake", "0123", "twin")

    def bad() -> Answer:
        assert loading.wait(30)
        return Failed("user", "no such model")

    workers.loads = {"baseline": slow, "fused": bad}
    start = time.monotonic()
    with pytest.raises(UserError, match="tiny, fused: no such model"), make_pool(tmp_path, {}, at_once=2) as warm:
        warm.warm_up(("baseline", "fused"))
    assert time.monotonic() - start < 20
    assert workers.notes[-1].startswith("end ")
    assert {"end baseline", "end fused"} <= set(workers.notes)


def test_an_engine_with_processes_of_its_own_loads_alone(tmp_path: Path, workers: Workers) -> None:
    """Transformers' worker, a peer, comes when all of ours are ready."""
    released = threading.Event()

    def ours() -> Answer:
        released.wait(0.1)
        return Ready("fake", "0123", "twin")

    workers.loads = {"baseline": ours, "fused": ours}
    with make_pool(tmp_path, {}, at_once=3, variants="baseline,transformers,fused") as warm:
        warm.warm_up(("baseline", "transformers", "fused"))
    loads = [note for note in workers.notes if note.startswith("load")]
    assert loads[-1] == "load transformers"
    assert "start transformers" in workers.notes[:3]


def test_what_takes_longest_to_compile_begins_first(tmp_path: Path, workers: Workers) -> None:
    with make_pool(tmp_path, {}, variants="baseline,fused,compiled") as warm:
        warm.warm_up(("baseline", "fused", "compiled"))
    loads = [note for note in workers.notes if note.startswith("load")]
    assert loads == ["load compiled", "load baseline", "load fused"]


def test_ceilings_are_measured_once_when_nothing_loads(tmp_path: Path, workers: Workers) -> None:
    told: list[dict[str, float]] = []
    with make_pool(tmp_path, {}, on_rates=told.append) as warm:
        warm.warm_up(("baseline", "fused"))
        assert told == []
        for variant in ("fused", "baseline", "baseline"):
            assert warm.measure(Cell(warm._plan.points[0], variant, 0)).status is Status.OK
    assert told == [{"read_bytes_per_s": 1e12}]
    assert workers.notes.index("ceilings baseline") > workers.notes.index("load fused")


def test_a_worker_that_is_known_to_be_wrong_is_not_started(tmp_path: Path, workers: Workers) -> None:
    with make_pool(tmp_path, {"fused": BAD}) as warm:
        warm.warm_up(("baseline", "fused"))
        assert workers.notes == ["start baseline", "load baseline"]


def test_one_process_at_a_time_is_not_started_ahead(tmp_path: Path, workers: Workers) -> None:
    with make_pool(tmp_path, {}, by_process=True, at_once=3) as alone:
        alone.warm_up(("baseline", "fused"))
        assert workers.notes == []
        for variant in ("baseline", "fused"):
            alone.measure(Cell(alone._plan.points[0], variant, 0))
    assert [note for note in workers.notes if not note.startswith("ours")] == [
        "start baseline", "load baseline", "dismiss baseline", "end baseline",
        "start fused", "load fused", "dismiss fused", "end fused",
    ]  # fmt: skip


def test_a_cell_is_told_every_process_that_is_ours(tmp_path: Path, workers: Workers) -> None:
    with make_pool(tmp_path, {}) as warm:
        warm.warm_up(("baseline", "fused"))
        cell = Cell(warm._plan.points[0], "baseline", 0)
        assert warm.measure(cell).status is Status.OK
    assert "ours (7, 8, 9)" in workers.notes
