"""Timelines for the page: lanes of coloured pieces of work on one time axis."""

from collections import defaultdict
from collections.abc import Callable

from experiments.reporting.charts.elements import linear_axis, mark, n, svg, text
from experiments.reporting.charts.specs import Lane, Spans

# With more spans than this a chart shows the pattern, one path a colour and no tips, to keep the page small.
MOST_DETAILED = 160
WIDTH, _LEFT, _RIGHT = 1080.0, 110.0, 150.0
_HEIGHT, _GAP = 16.0, 3.0
_LETTER = 5.6


def draw_spans(chart: Spans, label: str) -> str:
    """The chart as one SVG element."""
    if chart.longest <= 0:
        return ""
    detailed = sum(len(lane.spans) for lane in chart.lanes) <= MOST_DETAILED
    height = 8 + sum(lane_height(lane) for lane in chart.lanes)
    body: list[str] = []
    to_x = linear_axis(_LEFT, WIDTH - _RIGHT, chart.longest, height, chart.x_label, body)
    y = 6.0
    for lane in chart.lanes:
        body.append(text(_LEFT - 8, y + 12, lane.label, "e"))
        body.append((_marks if detailed else _paths)(lane, y, to_x))
        last = max((span.end for span in lane.spans), default=0.0)
        body.append(text(to_x(last) + 6, y + 12, lane.text, "v"))
        y += lane_height(lane)
    return svg(WIDTH, height + 36, label, body)


def lane_height(lane: Lane) -> float:
    """Pixels."""
    return lane.tracks * (_HEIGHT + _GAP) + 8


def _marks(lane: Lane, y: float, to_x: Callable[[float], float]) -> str:
    drawn = []
    for span in lane.spans:
        x, width, top = to_x(span.start), to_x(span.end) - to_x(span.start), y + span.track * (_HEIGHT + _GAP)
        box = f'x="{n(x)}" y="{n(top)}" width="{n(max(width, 0.5))}" height="{n(_HEIGHT)}"'
        words = text(x + width / 2, top + 12, span.name, "c z") if width > _LETTER * len(span.name) + 6 else ""
        drawn.append(mark(span.tip, f'<rect class="q s{span.color}" {box}/>{words}'))
    return "".join(drawn)


def _paths(lane: Lane, y: float, to_x: Callable[[float], float]) -> str:
    boxes: dict[int, list[str]] = defaultdict(list)
    for span in lane.spans:
        x, width = to_x(span.start), max(to_x(span.end) - to_x(span.start), 0.3)
        top = y + span.track * (_HEIGHT + _GAP)
        boxes[span.color].append(f"M{n(x)} {n(top)}h{n(width)}v{n(_HEIGHT)}h-{n(width)}z")
    return "".join(f'<path class="q s{color}" d="{"".join(shapes)}"/>' for color, shapes in sorted(boxes.items()))
