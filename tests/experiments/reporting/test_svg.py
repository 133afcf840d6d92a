"""Axes of the charts."""

import pytest

from experiments.reporting.charts.specs import Lines
from experiments.reporting.charts.svg import draw, log_ticks
from experiments.reporting.figures import build_figures
from experiments.reporting.rows import analyse
from tests.experiments.reporting.synthetic import Synthetic


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1, 100], [1, 10, 100]),
        ([0.4, 5], [0.5, 1, 2, 5]),
        ([1.85, 1.86], [1.85, 1.852, 1.854, 1.856, 1.858, 1.86]),
        ([0.512, 0.534], [0.515, 0.52, 0.525, 0.53]),
        ([51, 137], [60, 80, 100, 120]),
        ([93, 97], [93, 94, 95, 96, 97]),
        ([5.374], [5.37]),
    ],
)
def test_ticks_are_round_and_inside_the_data(values: list[float], ticks: list[float]) -> None:
    assert log_ticks(values) == pytest.approx(ticks)


def test_every_range_has_a_tick_and_none_outside() -> None:
    for low in (1e-4, 0.37, 8.1, 12345.0):
        for factor in (1.0001, 1.01, 1.3, 2.0, 17.0, 1e5):
            ticks = log_ticks([low, low * factor])
            assert ticks
            assert all(low * 0.998 <= tick <= low * factor * 1.002 for tick in ticks)


def test_a_panel_of_one_point_has_its_floor() -> None:
    """Else its axis would end at the mark."""
    made = Synthetic(
        models=("qwen3-0.6b",), workloads=("decode",), variants=("baseline",), batches=(1, 8), rounds=3,
        mend=lambda result: None if result.cell.point.length == 1024 and result.cell.point.batch > 1 else result,
    )  # fmt: skip
    _, figure = build_figures(analyse(made.run()))["latency_qwen3-0.6b_decode"]
    for panel, points in zip(figure.panels, (2, 1), strict=True):
        assert isinstance(panel.chart, Lines)
        floor, _ = panel.chart.series
        assert (floor.name, len(floor.marks)) == ("floor", points)
        assert min(panel.chart.levels) == min(mark.y for mark in floor.marks)
        assert 'class="p s0 f"' in draw(panel.chart, "")
