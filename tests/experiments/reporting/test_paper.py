"""Figures for papers: the same bytes in every process."""

from typing import Any

import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.reporting.charts import paper
from experiments.reporting.charts.specs import Figure, Lines, Mark, Panel, Series


def test_last_bits_of_the_layout_reach_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its solver is not the same to the last bit in two processes."""
    curve = Series("baseline", 0, (Mark(1, 2.0, ""), Mark(8, 3.0, "")))
    panels = tuple(Panel(f"length {length}", Lines("batch", "ms", (curve,))) for length in (128, 1024))
    figure = Figure("latency", "", "", "", panels, (("baseline", 0),), (), ())
    as_it_is, execute = paper.render(figure), ConstrainedLayoutEngine.execute

    def jitter(self: ConstrainedLayoutEngine, canvas: Any) -> None:
        execute(self, canvas)
        for ax in canvas.axes:
            ax.set_position([edge + 1e-15 for edge in ax.get_position().bounds])

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", jitter)
    assert paper.render(figure) == as_it_is
