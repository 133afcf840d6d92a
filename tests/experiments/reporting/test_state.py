"""Figures of memory, energy and drift: their values, and that they are left out where nothing was recorded."""

from dataclasses import replace

import pytest

from experiments.records import CellResult
from experiments.reporting.charts.specs import Bars, Lines
from experiments.reporting.figures import build_figures
from experiments.reporting.rows import analyse
from tests.experiments.reporting.synthetic import Synthetic

SMALL = {"models": ("qwen3-0.6b",), "workloads": ("decode", "prefill"), "batches": (1, 8), "lengths": (128,)}
WATTS = {"baseline": 700.0, "fused": 600.0}


def _with_energy(r: CellResult) -> CellResult:
    """1,000 tokens in one second."""
    tokens = "prefilled_tokens" if r.cell.point.workload == "prefill" else "generated_tokens"
    clocks = r.clocks | {"energy_j": WATTS.get(r.cell.variant, 650.0) * (1 + 0.001 * r.cell.round)}
    return replace(r, clocks=clocks, counters={tokens: 1000.0})


def test_energy_per_token_is_the_counter_over_the_tokens_worked_on() -> None:
    analysis = analyse(Synthetic(**SMALL, mend=_with_energy).run())
    rows = {(r.workload, r.variant): r for r in analysis.rows if r.metric == "energy_j_per_token"}
    for workload in ("decode", "prefill"):
        fused = rows[workload, "fused"]
        assert fused.median == pytest.approx(0.6 * 1.002)
        assert fused.speedup == pytest.approx(7 / 6)
        assert fused.floor is None
    _, figure = build_figures(analysis)["energy_qwen3-0.6b_decode"]
    chart = figure.panels[0].chart
    assert isinstance(chart, Bars)
    assert [group.label for group in chart.groups] == ["decode, batch 1, length 128", "decode, batch 8, length 128"]
    bars = {bar.label: bar.segments[0] for bar in chart.groups[0].bars}
    assert bars["baseline"].value == pytest.approx(701.4)
    assert "n=5" in bars["fused"].tip


@pytest.mark.parametrize(
    "changes",
    [
        *({"clocks": {}}, {"clocks": {"energy_j": 0.0}}, {"counters": {}}, {"counters": {"generated_tokens": 0.0}}),
        {"counters": {"generated_tokens": 1000.0, "ranks": 2.0}},
    ],
)
def test_without_a_counter_of_all_gpus_or_tokens_no_energy_is_claimed(changes: dict[str, dict[str, float]]) -> None:
    made = Synthetic(**SMALL, rounds=1, mend=lambda r: replace(_with_energy(r), **changes))  # type: ignore[arg-type]
    analysis = analyse(made.run())
    assert "energy_qwen3-0.6b_decode" not in build_figures(analysis)
    assert not [r for r in analysis.rows if r.metric == "energy_j_per_token" and r.workload == "decode"]


def test_memory_is_the_most_of_any_round_in_gigabytes() -> None:
    def grow(r: CellResult) -> CellResult:
        return replace(r, memory_bytes={"allocated": 10**9 * (1 + r.cell.round), "reserved": 10**11})

    _, figure = build_figures(analyse(Synthetic(**SMALL, mend=grow).run()))["memory_qwen3-0.6b"]
    chart = figure.panels[0].chart
    assert isinstance(chart, Bars)
    assert {bar.segments[0].value for group in chart.groups for bar in group.bars} == {5.0}
    assert {record[-1] for record in figure.records} == {5 * 10**9}
    assert len(figure.records) == 4 * 4
    assert [group.label for group in chart.groups][::3] == [
        "decode, batch 1, length 128",
        "prefill, batch 8, length 128",
    ]


def test_memory_is_drawn_in_the_unit_of_the_largest_bar() -> None:
    """A tiny model's few megabytes are no 0.00 GB."""

    def small(r: CellResult) -> CellResult:
        return replace(r, memory_bytes={"allocated": 10**6 * (3 if r.cell.variant == "fused" else 40)})

    _, figure = build_figures(analyse(Synthetic(**SMALL, mend=small).run()))["memory_qwen3-0.6b"]
    chart = figure.panels[0].chart
    assert isinstance(chart, Bars)
    assert figure.title == "Peak memory, qwen3-0.6b (MB)"
    assert chart.x_label == "MB"
    assert {bar.segments[0].value for group in chart.groups for bar in group.bars} == {3.0, 40.0}


def test_memory_is_left_out_where_none_was_recorded() -> None:
    made = Synthetic(**SMALL, rounds=1, mend=lambda r: replace(r, memory_bytes={}))
    assert not any(name.startswith("memory") for name in build_figures(analyse(made.run())))


def test_rounds_are_drawn_in_order_on_an_even_axis() -> None:
    analysis = analyse(Synthetic(**SMALL).run())
    _, figure = build_figures(analysis)["rounds_qwen3-0.6b_decode"]
    chart = figure.panels[0].chart
    assert isinstance(chart, Lines)
    assert chart.x_linear
    assert chart.x_ticks == (0, 1, 2, 3, 4)
    assert [series.name for series in chart.series] == list(analysis.run.variants)
    assert all([mark.x for mark in series.marks] == [0, 1, 2, 3, 4] for series in chart.series)
    assert len(figure.records) == 2 * 4 * 5


def test_two_rounds_show_no_drift() -> None:
    figures = build_figures(analyse(Synthetic(**SMALL, rounds=2).run()))
    assert not any(name.startswith("rounds") for name in figures)
