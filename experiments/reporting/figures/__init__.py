"""The figures of a report; importing this package registers them all."""

from experiments.reporting.figures import ablation, limits, speed, state, traces
from experiments.reporting.figures.registry import FIGURES, build_figures

__all__ = ["FIGURES", "ablation", "build_figures", "limits", "speed", "state", "traces"]
