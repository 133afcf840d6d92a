"""The few SVG elements that every chart of the page is made of."""

import math
from collections.abc import Callable, Sequence
from html import escape


def svg(width: float, height: float, label: str, body: Sequence[str]) -> str:
    """A whole chart; `label` is its accessible name."""
    size = f'viewBox="0 0 {n(width)} {n(height)}" style="max-width:{n(width)}px"'
    return f'<svg {size} role="img" aria-label="{escape(label)}" tabindex="0">{"".join(body)}</svg>'


def n(value: float) -> str:
    """Coordinates to a tenth of a pixel, as short as they go."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def text(x: float, y: float, words: str, css: str = "") -> str:
    """Words at a place."""
    css = f' class="{css}"' if css else ""
    return f'<text x="{n(x)}" y="{n(y)}"{css}>{escape(words)}</text>'


def mark(tip: str, body: str) -> str:
    """A group that says `tip` when it is hovered."""
    return f'<g class="m"><title>{escape(tip)}</title>{body}</g>'


def short(value: float) -> str:
    """A tick label."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def linear_axis(
    left: float, right: float, longest: float, y: float, words: str, body: list[str], as_percent: bool = False
) -> Callable[[float], float]:
    """Draw an axis from 0 to `longest` under the rows, between two pixels; returns the scale."""
    step = 10 ** math.floor(math.log10(longest))
    step = next(s for s in (step / 5, step / 2, step, 2 * step, 5 * step) if longest / s <= 6)
    scale = (right - left) / longest
    for k in range(math.floor(longest / step + 1e-9) + 1):
        x = left + k * step * scale
        label = f"{100 * k * step:g} %" if as_percent else short(float(f"{k * step:.6g}"))
        body.insert(0, f'<path class="g" d="M{n(x)} 2V{n(y)}"/>')
        body.append(text(x, y + 14, label, "c v"))
    body.append(text(left, y + 30, words, "l"))
    return lambda value: left + value * scale
