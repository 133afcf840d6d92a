"""Only what must fail is skipped."""

import pytest

from experiments.foresight import Foresight
from experiments.records import UNTRIED, Cell, CellResult, Point, Status


def cell(batch: int = 4, length: int = 64, variant: str = "fused", round_: int = 0, **point: str) -> Cell:
    return Cell(Point(point.get("model", "m"), point.get("workload", "decode"), batch, length), variant, round_)


@pytest.mark.parametrize(
    ("other", "skipped"),
    [
        (cell(), True),
        (cell(round_=3), True),
        (cell(batch=5), True),
        (cell(length=65), True),
        (cell(batch=8, length=128), True),
        (cell(batch=3, length=4096), False),
        (cell(batch=4096, length=63), False),
        (cell(variant="baseline"), False),
        (cell(model="n"), False),
        (cell(workload="prefill"), False),
    ],
)
def test_out_of_memory_holds_for_what_is_no_smaller(other: Cell, skipped: bool) -> None:
    foresight = Foresight()
    foresight.learn(CellResult(cell(), Status.OOM, "oom"))
    why = foresight.why_skip(other)
    assert (why is not None) == skipped
    assert not skipped or "m.decode.b4.l64.fused.r00" in str(why)


@pytest.mark.parametrize("status", [Status.ERROR, Status.TIMEOUT])
def test_a_failure_gets_a_second_try_and_no_third(status: Status) -> None:
    foresight = Foresight()
    foresight.learn(CellResult(cell(), status, "first"))
    assert foresight.why_skip(cell(round_=1)) is None
    foresight.learn(CellResult(cell(round_=1), status, "second"))
    assert foresight.why_skip(cell(round_=2)) == "failed 2 times before: second"
    assert foresight.why_skip(cell(length=128)) is None


@pytest.mark.parametrize("status", [Status.OOM, Status.ERROR, Status.TIMEOUT])
def test_what_failed_as_a_whole_tells_nothing_of_a_cell(status: Status) -> None:
    foresight = Foresight()
    for round_, reason in enumerate(UNTRIED):
        foresight.learn(CellResult(cell(round_=round_), status, f"{reason}: x"))
    assert foresight.why_skip(cell(round_=3)) is None


@pytest.mark.parametrize("status", [Status.OK, Status.INVALID, Status.SKIPPED])
def test_nothing_else_is_held_against_a_cell(status: Status) -> None:
    foresight = Foresight()
    for round_ in range(3):
        foresight.learn(CellResult(cell(round_=round_), status, "x"))
    assert foresight.why_skip(cell(round_=3)) is None
