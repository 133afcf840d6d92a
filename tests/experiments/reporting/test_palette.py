"""Colours: the same on page and paper, legible in both themes, and right about faster and slower."""

import re

import pytest

from experiments.reporting.charts.palette import EDGES, FASTER, SAME, SERIES, SLOWER, heat_class, heat_color, is_dark
from experiments.reporting.charts.svg import heat_scale
from experiments.reporting.page import TEMPLATES

CSS = (TEMPLATES / "style.css").read_text()


def _theme(selector: str) -> dict[str, str]:
    block = CSS[CSS.index(selector) :]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[: block.index("}")]))


LIGHT, DARK = _theme(":root {"), _theme(':root[data-theme="dark"] {')
SYSTEM_DARK = _theme(':root:not([data-theme="light"]) {')


def _contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_page_and_paper_have_the_same_colours() -> None:
    assert [LIGHT[f"s{i}"] for i in range(len(SERIES))] == list(SERIES)
    assert [LIGHT[f"h{i}"] for i in range(1, 6)] == list(FASTER)
    assert [LIGHT[f"h-{i}"] for i in range(1, 6)] == list(SLOWER)
    assert LIGHT["h0"] == SAME


def test_dark_by_choice_is_dark_by_system() -> None:
    assert DARK == SYSTEM_DARK
    assert DARK.keys() == LIGHT.keys()


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(theme: dict[str, str]) -> None:
    for ink in ("ink", "soft", "link", "good", "bad", "warn"):
        assert _contrast(theme[ink], theme["paper"]) >= 4.5, ink
    assert _contrast(theme["ink"], theme["warn-paper"]) >= 4.5
    for step in range(-5, 6):
        ink = "on-dark" if abs(step) >= 4 else "on-light"
        assert _contrast(theme[ink], theme[f"h{step}"]) >= 4.5, step
    for slot in range(len(SERIES)):
        assert _contrast(theme[f"s{slot}"], theme["paper"]) >= 3, slot


def test_the_legend_of_heat_maps_has_every_class_and_its_bound() -> None:
    found = re.findall(r'class="h(-?\d)".*?</svg>(.*?)</span>', heat_scale())
    assert [int(step) for step, _ in found] == list(range(-5, 6))
    words = {int(step): word for step, word in found}
    assert (words[0], words[-1], words[-3], words[3]) == ("within 1 %", "under 1/1.01", "under 1/1.25", "over 1.25")
    for step, edge in enumerate(EDGES, 1):
        assert words[step] == f"over {edge:g}"
        assert heat_class(1.001 * edge) == step == -heat_class(1 / (1.001 * edge))


def test_classes_are_symmetric_around_parity() -> None:
    for speedup in (1.005, 1.05, 1.2, 1.3, 1.7, 3.0):
        assert heat_class(speedup) == -heat_class(1 / speedup)
        assert is_dark(speedup) == is_dark(1 / speedup)
    assert [heat_class(s) for s in (1.0, 1.05, 1.2, 1.3, 1.7, 3.0)] == [0, 1, 2, 3, 4, 5]
    assert heat_color(3.0) == FASTER[-1]
    assert heat_color(0.3) == SLOWER[-1]
    assert heat_color(1.0) == SAME
    assert heat_class(float("nan")) == 0
