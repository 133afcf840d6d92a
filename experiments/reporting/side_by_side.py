"""Several runs in one report: each analysed by itself, then set side by side under its letter, nothing pooled.

Every table gets a column that says which run a row is of, every panel, card and fact the run's letter, and the caption
of every figure says which machine, commit and day that letter stands for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase

from experiments.errors import UserError
from experiments.reporting.charts.specs import Bars, Chart, Figure, Lines, Panel
from experiments.reporting.document import Document, document_of
from experiments.reporting.first_screen import TWIN_NOTE, Card, Fact, FirstScreen
from experiments.reporting.formats import Column, Table, Value, provenance
from experiments.reporting.info import RunInfo
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import Run

Documents = Mapping[str, Document]
Rows = Sequence[Sequence[Value]]
RUN = Column("run", "Run")


def analyse_together(runs: Sequence[Run]) -> dict[str, Analysis]:
    """Each run's analysis by its letter, a variant's colour the same in all of them."""
    if len(runs) > len(ascii_uppercase):
        raise UserError(f"runs: at most {len(ascii_uppercase)} fit in one report, not {len(runs)}")
    variants = tuple(dict.fromkeys(v for run in runs for v in run.variants))
    return {x: analyse(replace(run, palette=variants)) for x, run in zip(ascii_uppercase, runs, strict=False)}


def side_by_side(analyses: Mapping[str, Analysis]) -> Document:
    """The report of several runs."""
    documents = {letter: document_of(analysis) for letter, analysis in analyses.items()}
    legend = "; ".join(f"{letter}: {_identity(a.run.info)}" for letter, a in analyses.items())
    names = list(dict.fromkeys(a.run.info.experiment for a in analyses.values()))
    return Document(
        title=" and ".join(names),
        kicker=(" and ".join(names), f"{len(analyses)} runs side by side"),
        screen=_screen(analyses, documents),
        warnings=tuple(f"{x}: {words}" for x, d in documents.items() for words in d.warnings),
        tables=_tables(documents),
        figures=_figures(documents, legend),
        methods=tuple(_methods(documents)),
        machines=tuple(f"{x}: {words}" for x, d in documents.items() for words in d.machines),
        commands=(*(f"{words}  # {x}" for x, d in documents.items() for words in d.commands), _command(analyses)),
        problems=tuple(f"{x}: {words}" for x, d in documents.items() for words in d.problems),
        sources=tuple(source for d in documents.values() for source in d.sources),
    )


def _identity(info: RunInfo) -> str:
    """Which run: machine, commit and day."""
    machine = info.gpu or f"no GPU ({info.cpu or 'CPU'})"
    made = provenance(info.commit, info.created, info.dirty)
    return f"{info.experiment}/{info.run_id}, {machine}, {info.dtype}, {made}"


def _command(analyses: Mapping[str, Analysis]) -> str:
    names = (f"{a.run.info.experiment}/{a.run.info.run_id}" for a in analyses.values())
    return f"fusebench report runs=[{','.join(names)}]"


def _screen(analyses: Mapping[str, Analysis], documents: Documents) -> FirstScreen:
    screens = {x: d.screen for x, d in documents.items()}
    questions = list(dict.fromkeys(s.question for s in screens.values()))
    twins = [x for x, s in screens.items() if s.twin_note]
    identities = (Fact(f"Run {x}", _identity(a.run.info)) for x, a in analyses.items())
    facts = (replace(f, label=f"{x}: {f.label}") for x, s in screens.items() for f in s.facts if f.label != "Code")
    cards: Iterator[Card] = (replace(c, title=f"{x}: {c.title}") for x, s in screens.items() for c in s.cards)
    return FirstScreen(
        question=questions[0] if len(questions) == 1 else "What do these runs say, side by side?",
        lead="Each speed-up is over the baseline of its own run. Nothing is paired or pooled across runs; "
        "fusebench compare holds one run against another.",
        cards=tuple(cards),
        facts=(*identities, *facts),
        twin_note=f"{', '.join(twins)}: {TWIN_NOTE}" if twins else "",
    )


def _tables(documents: Documents) -> dict[str, Table]:
    merged = {}
    for name in dict.fromkeys(name for d in documents.values() for name in d.tables):
        found = {x: d.tables[name] for x, d in documents.items() if name in d.tables}
        by_name = {column.name: column for table in found.values() for column in table.columns}
        names, rows = _stacked({x: ([c.name for c in t.columns], t.rows) for x, t in found.items()})
        columns = (RUN, *(by_name[name] for name in names[1:]))
        merged[name] = replace(next(iter(found.values())), columns=columns, rows=tuple(rows))
    return merged


def _figures(documents: Documents, legend: str) -> dict[str, tuple[str, Figure]]:
    merged = {}
    for name in dict.fromkeys(name for d in documents.values() for name in d.figures):
        found = {x: d.figures[name] for x, d in documents.items() if name in d.figures}
        section = next(section for section, _ in found.values())
        merged[name] = section, _figure({x: made for x, (_, made) in found.items()}, legend)
    return merged


def _figure(found: Mapping[str, Figure], legend: str) -> Figure:
    """Panels of one title beside each other, on one scale."""
    first = next(iter(found.values()))
    panels = []
    for title in dict.fromkeys(panel.title for made in found.values() for panel in made.panels):
        alike = {x: panel.chart for x, made in found.items() for panel in made.panels if panel.title == title}
        scaled = zip(alike, _on_one_scale(list(alike.values())), strict=True)
        panels += [Panel(f"{x}: {title}" if title else x, chart) for x, chart in scaled]
    columns, records = _stacked({x: (made.columns, made.records) for x, made in found.items()})
    return replace(
        first,
        caption=f"{first.caption} {legend}.",
        alt=" ".join(f"{x}: {made.alt}" for x, made in found.items()),
        panels=tuple(panels),
        legend=tuple(dict.fromkeys(entry for made in found.values() for entry in made.legend)),
        columns=tuple(columns),
        records=tuple(records),
        commands=tuple(dict.fromkeys(command for made in found.values() for command in made.commands)),
    )


def _on_one_scale(charts: Sequence[Chart]) -> list[Chart]:
    """Curves share their vertical axis and bars their length, so that panels can be compared by eye."""
    curves = [v for chart in charts if isinstance(chart, Lines) for v in chart.levels]
    longest = max((chart.longest for chart in charts if isinstance(chart, Bars)), default=0.0)
    scaled: list[Chart] = []
    for chart in charts:
        if isinstance(chart, Lines):
            chart = replace(chart, reach=(min(curves), max(curves)))
        elif isinstance(chart, Bars):
            chart = replace(chart, reach=longest)
        scaled.append(chart)
    return scaled


def _stacked(parts: Mapping[str, tuple[Sequence[str], Rows]]) -> tuple[list[str], list[tuple[Value, ...]]]:
    """Rows of several tables under all their columns, the run's letter first; what a table lacks is empty there."""
    names: list[str] = []
    for columns, _ in parts.values():
        at = 0
        for name in columns:
            if name not in names:
                names.insert(at, name)
            at = names.index(name) + 1
    rows: list[tuple[Value, ...]] = []
    for letter, (columns, those) in parts.items():
        places = [columns.index(name) if name in columns else None for name in names]
        rows += [(letter, *(None if at is None else row[at] for at in places)) for row in those]
    return [RUN.name, *names], rows


def _methods(documents: Documents) -> Iterator[tuple[str, str]]:
    """Once where all runs were made alike, else for each."""
    paragraphs = {x: dict(d.methods) for x, d in documents.items()}
    for heading in dict.fromkeys(heading for those in paragraphs.values() for heading in those):
        words = {x: those[heading] for x, those in paragraphs.items() if heading in those}
        if len(set(words.values())) == 1:
            yield heading, next(iter(words.values()))
        else:
            yield from ((f"{heading}, {x}", said) for x, said in words.items())
