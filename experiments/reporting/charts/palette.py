"""One palette for page and paper: after Okabe and Ito, safe for the common kinds of colour blindness, the light ones
darkened until they stand out from white. The page's light theme holds the same values (a test compares them)."""

import math

# Slot 0 is the baseline, the others are taken in the order of the plan.
SERIES = ("#5f6b7a", "#0072b2", "#c98500", "#009e73", "#d55e00", "#b8609a", "#3590c9", "#8c6d1f")
MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross", "plus", "hexagon")

# Verdicts, on the page and, since DejaVu Sans has these triangles, on paper.
GLYPHS = {"faster": "▲", "slower": "▼", "same": "=", "unresolved": "?"}

# Speed-up classes around parity, in log steps; orange is slower, blue faster.
EDGES = (1.01, 1.1, 1.25, 1.5, 2.0)
SLOWER = ("#fbe9d3", "#f7cf9f", "#f0ab60", "#b85c00", "#8f4604")
FASTER = ("#dcebf7", "#b5d5ee", "#7fb6de", "#2a78b0", "#12507f")
SAME = "#eceef0"


def heat_class(speedup: float) -> int:
    """-5 (slower than half) .. 0 (within 1 % of parity) .. 5 (more than twice as fast)."""
    if not math.isfinite(speedup) or speedup <= 0:
        return 0
    size = max(speedup, 1 / speedup)
    steps = sum(size > edge for edge in EDGES)
    return steps if speedup > 1 else -steps


def heat_color(speedup: float) -> str:
    """The colour of a speed-up on paper."""
    step = heat_class(speedup)
    if step == 0:
        return SAME
    return FASTER[step - 1] if step > 0 else SLOWER[-step - 1]


def is_dark(speedup: float) -> bool:
    """Does text on this colour need to be white?"""
    return abs(heat_class(speedup)) >= 4
