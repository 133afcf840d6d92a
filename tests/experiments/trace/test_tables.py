"""Tables of a ledger: shares that add up, names that fit, words for what is odd."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.records import Cell, Point
from experiments.reporting.formats import to_markdown
from experiments.trace.ledger import Gaps, KernelRow, Ledger, Timeline
from experiments.trace.tables import changes, facts, show_ledger, time_by


def row(name: str, phase: str, op: str | None, count: int, total_us: float, layer: str | None = None) -> KernelRow:
    return KernelRow(name, "kernel", phase, layer, op, count, total_us, [1, 1, 1], [128, 1, 1], 32, 0, op is not None)


LONG = "a_kernel_whose_name_" + "goes_on_and_on_" * 10
BASELINE = Ledger(
    schema=2, cell=Cell(Point("qwen3-0.6b", "decode", 1, 128), "baseline", 0), profiler="nsys",
    profiler_version="2023.4", export_schema="3.7.2", coverage=0.9, window_ms=0.3, busy_ms=0.2,
    gap_ms=0.1, overlap_ms=0.0, outside_ms=0.0, devices=1, steps=2, kernels_per_step=8.0, launches_per_step=1.0,
    traced_step_ms=0.15, untraced_step_ms=0.1, inflation=1.5,
    gaps=Gaps(50.0, 50.0, 9, 0.1, 9.0),
    kernels=[row("gemm", "forward", "linear", 8, 120.0), row("norm", "forward", "norm", 6, 50.0),
             row(LONG, "sample", None, 2, 30.0)],
    timeline=Timeline(),
)  # fmt: skip
FUSED = replace(
    BASELINE,
    cell=replace(BASELINE.cell or Cell(Point("", "", 0, 0), "", 0), variant="fused"),
    kernels=[row("norm_gemm", "forward", "norm_linear", 8, 130.0), row(LONG, "sample", None, 2, 30.0)],
)


def test_time_by_adds_up_to_all_of_it() -> None:
    for key in ("name", "phase", "op", "layer"):
        table = time_by(BASELINE, key)
        assert sum(float(str(r[2])) for r in table.rows) == pytest.approx(200.0 / 2)
        assert sum(float(str(r[3])) for r in table.rows) == pytest.approx(1.0)
        assert [c.name for c in table.columns] == [key, "count_per_step", "us_per_step", "share"]
    assert [r[:3] for r in time_by(BASELINE, "phase").rows] == [("forward", 7.0, 85.0), ("sample", 1.0, 15.0)]


def test_small_rows_are_summed_up() -> None:
    table = time_by(BASELINE, "name", most=1)
    assert [r[:3] for r in table.rows] == [("gemm", 4.0, 60.0), ("(2 more)", 4.0, 40.0)]


def test_markdown_for_the_report() -> None:
    assert to_markdown(time_by(BASELINE, "op")).splitlines()[:3] == [
        "| Op | Count per step | µs per step | Share |",
        "|---|--:|--:|--:|",
        "| linear | 4.000 | 60.00 | 60.0 % |",
    ]


def test_changes_name_what_was_removed_and_added() -> None:
    rows = changes(BASELINE, FUSED, "name").rows
    assert [(r[0], r[1], r[6]) for r in rows] == [
        ("gemm", "removed", 60.0), ("norm", "removed", 25.0), (LONG, "kept", 0.0), ("norm_gemm", "added", -65.0),
    ]  # fmt: skip


def test_facts_state_the_inflation() -> None:
    assert "traced step 0.15 ms, untraced 0.1 ms: tracing inflates it 1.50 times" in facts(BASELINE)
    unknown = replace(BASELINE, untraced_step_ms=None, inflation=None, note="a note")
    assert any("sweep first" in fact for fact in facts(unknown))
    assert facts(unknown)[-1] == "a note"


def test_as_many_steps_have_one_gap_less_between_them() -> None:
    (idle,) = [fact for fact in facts(BASELINE) if fact.startswith("idle per step")]
    assert "25 us between its kernels, 50 us until the next step" in idle


def test_a_ledger_in_a_terminal() -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    show_ledger(console, BASELINE)
    text = console.export_text()
    assert "qwen3-0.6b decode batch 1, length 128, baseline" in text
    assert "only 90.0% of the device time has a known layer or op: 30.0 us have none" in text
    assert max(map(len, text.splitlines())) <= 120
    assert LONG[:50] in text
