"""The figures of a report; importing this package registers them all."""

from experiments.reporting.figures import ablation, limits, serving, speed, state, timeline, traces, waterfall
from experiments.reporting.figures.registry import FIGURES, build_figures

__all__ = [
    "FIGURES",
    "ablation",
    "build_figures",
    "limits",
    "serving",
    "speed",
    "state",
    "timeline",
    "traces",
    "waterfall",
]
