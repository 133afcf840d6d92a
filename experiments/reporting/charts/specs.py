"""What a figure shows, as plain values: drawn by `svg` for the page and by `paper` for files."""

from dataclasses import dataclass

from experiments.reporting.formats import Value


@dataclass(frozen=True)
class Mark:
    """One point of a series, its interval where there is one, and what hovering says."""

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A named line. `color` is a slot of the palette; `kind` is `both`, `line` (a reference) or `marks`."""

    name: str
    color: int
    marks: tuple[Mark, ...]
    kind: str = "both"


@dataclass(frozen=True)
class Lines:
    """Curves over two logarithmic axes (`x_linear`: over one); `x_ticks` are the values that were measured, `reach`
    levels that the vertical axis must hold too."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_ticks: tuple[float, ...] = ()
    x_linear: bool = False
    reach: tuple[float, ...] = ()

    @property
    def levels(self) -> list[float]:
        """Every value on the vertical axis."""
        marks = [m for s in self.series for m in s.marks]
        return [*self.reach, *(v for m in marks for v in (m.y, m.low, m.high) if v is not None)]


@dataclass(frozen=True)
class HeatCell:
    """One place of a grid. `state` is a verdict, or the status of a cell without a value."""

    value: float | None
    text: str
    state: str
    tip: str


@dataclass(frozen=True)
class Heatmap:
    """A grid of speed-ups, coloured around parity."""

    row_title: str
    column_title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], HeatCell]


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    name: str
    color: int
    value: float
    tip: str


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of one or more segments, with what is printed at its end; it floats where `start` is not 0."""

    label: str
    segments: tuple[Segment, ...]
    text: str
    start: float = 0.0


@dataclass(frozen=True)
class BarGroup:
    """Bars that belong together."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Bars:
    """Groups of horizontal bars from zero; the axis is at least `reach` long."""

    x_label: str
    groups: tuple[BarGroup, ...]
    reach: float = 0.0

    @property
    def longest(self) -> float:
        """Where the axis ends."""
        bars = [bar for group in self.groups for bar in group.bars]
        return max([self.reach, *(bar.start + sum(s.value for s in bar.segments) for bar in bars)])


@dataclass(frozen=True)
class Dot:
    """One value in a row of dots."""

    color: int
    value: float
    tip: str


@dataclass(frozen=True)
class Dots:
    """Rows of dots on a shared axis from zero; `limit` draws a reference line (1 = the physical floor)."""

    x_label: str
    rows: tuple[tuple[str, tuple[Dot, ...]], ...]
    limit: float | None = None


@dataclass(frozen=True)
class Span:
    """A piece of work on a time axis. `track` is its line within the lane, for what overlaps."""

    start: float
    end: float
    color: int
    name: str
    tip: str
    track: int = 0


@dataclass(frozen=True)
class Lane:
    """What one variant did, with what is printed at its end."""

    label: str
    spans: tuple[Span, ...]
    text: str

    @property
    def tracks(self) -> int:
        """Lines that it takes."""
        return 1 + max((span.track for span in self.spans), default=0)


@dataclass(frozen=True)
class Spans:
    """Lanes on one time axis from zero, gaps left empty."""

    x_label: str
    lanes: tuple[Lane, ...]

    @property
    def longest(self) -> float:
        """Where the last span ends."""
        return max((span.end for lane in self.lanes for span in lane.spans), default=0.0)


Chart = Lines | Heatmap | Bars | Dots | Spans


@dataclass(frozen=True)
class Panel:
    """One chart of a figure."""

    title: str
    chart: Chart


@dataclass(frozen=True)
class Figure:
    """A figure: its panels, the legend they share, the data behind it as `columns` and `records`, and the commands that
    make it again, which `build_figures` adds."""

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    records: tuple[tuple[Value, ...], ...]
    commands: tuple[str, ...] = ()
