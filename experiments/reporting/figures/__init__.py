"""The figures of a report; importing this package registers them all."""

from experiments.reporting.figures import limits, serving, speed, timeline, traces, waterfall
from experiments.reporting.figures.registry import FIGURES, build_figures

__all__ = ["FIGURES", "build_figures", "limits", "serving", "speed", "timeline", "traces", "waterfall"]
