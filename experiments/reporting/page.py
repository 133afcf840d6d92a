"""index.html: one file that needs nothing else, no network, no scripts to be read."""

from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.floors import FORMULAS
from experiments.reporting.charts.palette import GLYPHS
from experiments.reporting.charts.specs import Bars, Dots, Figure, Heatmap, Spans
from experiments.reporting.charts.svg import draw, heat_scale, marker, sparkline_counts
from experiments.reporting.document import Document
from experiments.reporting.formats import Kind, Shown, Table, Value, display
from experiments.reporting.tables import TABLES

TEMPLATES = Path(__file__).with_name("templates")
NAVIGATION = {
    "faster": "Faster",
    "right": "Right",
    "where": "Where",
    "limit": "Limit",
    "state": "Memory",
    "missing": "Missing",
    "methods": "Methods",
    "data": "Data",
}
SECTIONS = {
    "faster": "How much faster?",
    "right": "Is it still right?",
    "where": "Where does the time go?",
    "limit": "How far from the limit?",
    "state": "Memory and machine",
    "missing": "What was not measured",
    "methods": "How it was measured",
    "data": "All the numbers",
}
EMPTY = {
    "faster": "No point has both a variant and a baseline.",
    "right": "No cell carries a verdict on its answers.",
    "where": "No cell has a time, and no trace was captured.",
    "limit": "No ceilings were measured in this run, so no floor is claimed.",
    "state": "Nothing was recorded.",
    "missing": "No cell was planned.",
    "data": "There is nothing to list.",
}
NBSP = "\u00a0"


@dataclass(frozen=True)
class Block:
    """A figure or a table, drawn."""

    name: str
    title: str
    caption: str
    body: Markup
    csv: str
    kind: str
    folded: bool = False
    images: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    short: str
    blocks: tuple[Block, ...]
    empty: str


def render_page(document: Document) -> str:
    """The page of a report."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cards = [(card, Markup(sparkline_counts(card.counts))) for card in document.screen.cards]
    return environment.get_template("index.html").render(
        document=document,
        screen=document.screen,
        cards=cards,
        sections=_sections(document),
        formulas=FORMULAS,
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "script.js").read_text(encoding="utf-8")),
    )


def _sections(document: Document) -> list[Section]:
    tables, figures = document.tables, document.figures
    sections = []
    for name, title in SECTIONS.items():
        plain = [table_block(table) for table in tables.values() if TABLES[table.name].section == name]
        drawn = _without_echoes([figure_block(figure) for section, figure in figures.values() if section == name])
        # The summary table leads its section; the others follow the figures.
        leading = [b for b in plain if b.name == "summary"]
        rest = [b for b in plain if b.name != "summary"]
        blocks = tuple(replace(b, caption=b.caption.replace(" %", NBSP + "%")) for b in (*leading, *drawn, *rest))
        sections.append(Section(name, title, NAVIGATION[name], blocks, EMPTY.get(name, "")))
    return sections


def _without_echoes(blocks: list[Block]) -> list[Block]:
    """Figures of one kind share a caption: it stands under the first of them."""
    captions = [b.caption for b in blocks]
    return [replace(b, caption="") if b.caption in captions[:i] else b for i, b in enumerate(blocks)]


def figure_block(figure: Figure) -> Block:
    """A figure with its legend and panels."""
    charts = [panel.chart for panel in figure.panels]
    flat, heat = isinstance(charts[0], Bars | Spans), isinstance(charts[0], Heatmap)
    legend = "".join(
        f'<span><svg viewBox="-7 -7 14 14" aria-hidden="true">{_key(slot, flat)}</svg>{escape(name)}</span>'
        for name, slot in figure.legend
    )
    panels = "".join(
        f"<div>{f'<h4>{escape(panel.title)}</h4>' if panel.title else ''}"
        f"{draw(panel.chart, f'{figure.alt} {panel.title}'.strip())}</div>"
        for panel in figure.panels
    )
    widths = {Heatmap: " heat", Bars: " wide", Dots: " wide", Spans: " full"}
    grid = widths.get(type(charts[0]), "")
    keys = heat_scale() if heat else (f'<p class="legend">{legend}</p>' if legend else "")
    body = f'{keys}<div class="panels{grid}">{panels}</div>'
    images = tuple(f"figures/{figure.name}.{kind}" for kind in ("svg", "png"))
    csv = f"figures/{figure.name}.csv"
    markup = Markup(body)
    return Block(figure.name, figure.title, figure.caption, markup, csv, "figure", False, images, figure.commands)


def _key(slot: int, flat: bool) -> str:
    """The sign of a legend: the series' marker, or the colour of a bar."""
    return f'<rect class="q s{slot}" x="-6" y="-6" width="12" height="12"/>' if flat else marker(slot, 0, 0, 5)


def table_block(table: Table) -> Block:
    """A table whose head sorts; long ones are cut on the page and whole in their CSV."""
    view = display(table)
    entry = TABLES[table.name]
    most, total = entry.page_rows, len(view.rows)
    head = "".join(
        f'<th scope="col"{"" if kind.is_text else " class=n"}><button>{escape(title)}</button></th>'
        for title, kind in zip(view.titles, view.kinds, strict=True)
    )
    rows = "\n".join(_row(view, index) for index in range(min(total, most)))
    caption = table.caption + (f" The first {most:,} of {total:,} rows; the CSV has all." if total > most else "")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    return Block(table.name, table.title, caption, Markup(body), f"tables/{table.name}.csv", "table", entry.folded)


def _row(view: Shown, index: int) -> str:
    cells = zip(view.kinds, view.rows[index], view.sort_keys[index], strict=True)
    return "<tr>" + "".join(_cell(kind, text, bounds, key) for kind, (text, bounds), key in cells)


def _cell(kind: Kind, text: str, bounds: str, key: Value) -> str:
    if kind is Kind.CLAIM and key:
        word = text.split()[0]
        glyph = GLYPHS.get(word)
        return f'<td><span class="pill {escape(word)}">{f"{glyph} " if glyph else ""}{escape(text)}</span>'
    if kind.is_text:
        return f"<td>{escape(text)}"
    sort = f' data-v="{key:.6g}"' if kind is Kind.BYTES and isinstance(key, int | float) else ""
    return f"<td class=n{sort}>{escape(text)}" + (f" <small>{escape(bounds)}</small>" if bounds else "")
