"""All that a page says, of one run or of several, before it is written as HTML or Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.reporting.charts.specs import Figure
from experiments.reporting.figures import build_figures
from experiments.reporting.first_screen import FirstScreen, first_screen
from experiments.reporting.formats import Table, short
from experiments.reporting.info import RunInfo
from experiments.reporting.methods import commands, methods
from experiments.reporting.rows import Analysis
from experiments.reporting.tables import build_tables


@dataclass(frozen=True)
class Document:
    """A report. `kicker` names experiment and run; `figures` come with the section that they stand in."""

    title: str
    kicker: tuple[str, ...]
    screen: FirstScreen
    warnings: tuple[str, ...]
    tables: Mapping[str, Table]
    figures: Mapping[str, tuple[str, Figure]]
    methods: tuple[tuple[str, str], ...]
    machines: tuple[str, ...]
    commands: tuple[str, ...]
    problems: tuple[str, ...]
    sources: tuple[str, ...]


def document_of(analysis: Analysis) -> Document:
    """The report of one run."""
    info = analysis.run.info
    dirty = f"The code had uncommitted changes: commit {short(info.commit)} alone does not give these numbers."
    return Document(
        title=info.experiment,
        kicker=(info.experiment, info.run_id),
        screen=first_screen(analysis),
        warnings=(dirty,) if info.dirty else (),
        tables=build_tables(analysis),
        figures=build_figures(analysis),
        methods=tuple(methods(analysis)),
        machines=(_machine(info),),
        commands=tuple(commands(analysis)),
        problems=analysis.run.problems,
        sources=(f"results/{info.experiment}/{info.run_id}",),
    )


def _machine(info: RunInfo) -> str:
    """Weights, machine and software."""
    weights = "".join(f"{model}: {words}. " for model, words in info.weights.items())
    software = ", ".join(f"{name} {version}" for name, version in info.software.items())
    return f"{weights}{info.machine}{'; ' * bool(software)}{software}."
