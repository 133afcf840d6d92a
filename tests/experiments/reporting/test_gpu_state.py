"""Throttling, repeats and neighbours on the GPU are said on the first screen and listed cell by cell."""

from dataclasses import replace

import pytest

from experiments.records import Attempt, CellResult, Window
from experiments.reporting.first_screen import first_screen
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.tables.evidence import gpu_state
from tests.experiments.reporting.synthetic import Synthetic

QUIET, HOT = Window({"sm_mhz": 1980.0}), Window({"sm_mhz": 1200.0}, ["throttled: HwThermalSlowdown"])


def analysis_of(**on_fused: object) -> Analysis:
    """Twenty cells on a quiet GPU; in round 2 those of `fused` are as given."""

    def mend(result: CellResult) -> CellResult:
        changes = on_fused if (result.cell.variant, result.cell.round) == ("fused", 2) else {}
        return replace(result, **{"windows": [QUIET] * 3, "other_processes": 0, **changes})

    one_point = {"models": ("qwen3-0.6b",), "workloads": ("decode",), "batches": (1,), "lengths": (128,)}
    return analyse(Synthetic(**one_point, mend=mend).run())


def state(analysis: Analysis) -> tuple[str, str]:
    """What the first screen says of the GPU, and its tone."""
    fact = next(fact for fact in first_screen(analysis).facts if fact.label == "GPU state")
    return fact.text, fact.tone


def test_a_quiet_gpu_is_said_to_be_one() -> None:
    analysis = analysis_of()
    assert state(analysis) == ("0 of 20 cells throttled or off their usual clock", "good")
    assert gpu_state(analysis) is None


@pytest.mark.parametrize(
    ("changes", "text", "tone", "row"),
    [
        (
            {"set_aside": [Attempt({"step_ms": [9.0]}, [HOT])]},
            "0 of 20 cells throttled or off their usual clock, 1 measured again for it",
            "good",
            (2, 1, 0, 3, 0, "throttled: HwThermalSlowdown"),
        ),
        (
            {"windows": [QUIET, HOT, QUIET], "set_aside": [Attempt({}, [HOT])] * 2},
            "1 of 20 cells throttled or off their usual clock, 1 measured again for it",
            "warn",
            (2, 2, 1, 3, 0, "throttled: HwThermalSlowdown"),
        ),
        (
            {"other_processes": 2},
            "0 of 20 cells throttled or off their usual clock; another process was on the GPU in 1 cells",
            "warn",
            (2, 0, 0, 3, 2, ""),
        ),
    ],
)
def test_what_was_unlike_is_said_and_listed(
    changes: dict[str, object], text: str, tone: str, row: tuple[object, ...]
) -> None:
    analysis = analysis_of(**changes)
    assert state(analysis) == (text, tone)
    table = gpu_state(analysis)
    assert table is not None
    assert table.rows == [("qwen3-0.6b", "decode", 1, 128, "fused", *row)]


def test_a_gpu_of_which_nothing_was_read_is_named() -> None:
    assert state(analyse(Synthetic(models=("qwen3-0.6b",)).run()))[1] == "warn"


def test_what_was_set_aside_is_not_counted() -> None:
    """The median of `fused` is that of its last attempts."""
    kept = {r.variant: r.median for r in analysis_of().primary}
    aside = analysis_of(set_aside=[Attempt({"step_ms": [9e9] * 9}, [HOT])])
    assert {r.variant: r.median for r in aside.primary} == kept
