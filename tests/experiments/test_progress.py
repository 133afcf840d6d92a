"""What is shown while a sweep runs is right: counts, places, time left."""

import io

import pytest
from rich.console import Console

from experiments.progress import Bar, Eta, Lines, clock, headline_sample, make_display, title
from experiments.records import Cell, CellResult, Point, Status

CELLS = [Cell(Point("tiny", "decode", b, 8), v, r) for r in range(2) for b in (1, 2) for v in ("baseline", "fused")]


def result(cell: Cell, status: Status = Status.OK) -> CellResult:
    return CellResult(cell, status, "" if status is Status.OK else "[why]", samples={"step_ms": [3.0, 1.0, 2.0]})


def test_time_left_uses_what_the_same_cell_took() -> None:
    eta = Eta(CELLS)
    assert eta.left_s() is None
    for cell in CELLS[:4]:
        eta.learn(cell, 10.0 if cell.point.batch == 2 else 1.0)
    assert eta.left_s() == pytest.approx(22)
    eta.learn(CELLS[4], 3.0)
    assert eta.left_s() == pytest.approx(21)


def test_time_left_of_what_was_never_seen_is_the_average() -> None:
    eta = Eta(CELLS)
    eta.learn(CELLS[0], 2.0)
    eta.learn(CELLS[1], 4.0)
    assert eta.left_s() == pytest.approx(2 + 4 + 4 * 3)


def test_lines_number_every_cell() -> None:
    stream = io.StringIO()
    done = [result(CELLS[0])]
    with make_display(CELLS, done, stream) as display:
        assert isinstance(display, Lines)
        for cell in CELLS[1:]:
            display.begin(cell)
            display.end(result(cell, Status.OOM if cell.point.batch == 2 else Status.OK), 1.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[2/8, 0:06 left] tiny decode 1 x 8, fused, round 1: ok step_ms 2"
    assert lines[1] == "[3/8, 0:05 left] tiny decode 2 x 8, baseline, round 1: oom [why]"
    assert lines[-1].startswith("[8/8] ")
    assert display.counts == {Status.OK: 4, Status.OOM: 4}


def test_the_bar_shows_counts_and_keeps_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    with Bar(CELLS, [result(CELLS[0])]) as display:
        display.say("loading [tiny]")
        for cell in CELLS[1:]:
            display.begin(cell)
            display.end(result(cell, Status.OOM if cell == CELLS[3] else Status.OK), 1.0)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "oom tiny decode 2 x 8, fused, round 1: [why]" in shown
    assert "8/8" in shown
    assert "7 ok 1 oom" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0, "0:00"), (5.4, "0:05"), (65, "1:05"), (599, "9:59"), (600, "10:00"), (3725, "1:02:05")],
)
def test_times_read_as_on_a_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def test_an_offline_cell_has_no_length() -> None:
    assert title(Cell(Point("m", "offline", 256, 0), "fused", 1)) == "m offline 256, fused, round 2"
    assert headline_sample(CellResult(CELLS[0], Status.OK)) == ""
