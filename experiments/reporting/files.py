"""From a run to the files of its report: a pure function to bytes, and one that puts them in place."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.durable import mendable
from experiments.reporting.charts import paper
from experiments.reporting.document import Document, document_of
from experiments.reporting.formats import to_csv, to_latex, to_markdown
from experiments.reporting.markdown import render_markdown
from experiments.reporting.page import render_page
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import Run
from experiments.reporting.side_by_side import analyse_together, side_by_side
from experiments.reporting.summary import summary_of, to_json


def build(run: Run) -> dict[str, bytes]:
    """Every file of the report by its path; the same run gives the same bytes."""
    analysis = analyse(run)
    return _files(document_of(analysis), {"summary.json": analysis})


def build_together(runs: Sequence[Run]) -> dict[str, bytes]:
    """The same of several runs, side by side, with a summary of each."""
    analyses = analyse_together(runs)
    return _files(side_by_side(analyses), {f"summary.{letter}.json": a for letter, a in analyses.items()})


def _files(document: Document, summaries: Mapping[str, Analysis]) -> dict[str, bytes]:
    files: dict[str, str | bytes] = {name: to_json(summary_of(analysis)) for name, analysis in summaries.items()}
    files |= {"index.html": render_page(document), "report.md": render_markdown(document)}
    for name, table in document.tables.items():
        columns = [c.name for c in table.columns]
        files[f"tables/{name}.csv"] = to_csv(columns, table.rows)
        files[f"tables/{name}.md"] = f"# {table.title}\n\n{table.caption}\n\n{to_markdown(table)}"
        files[f"tables/{name}.tex"] = to_latex(table)
    for name, (_, figure) in document.figures.items():
        files[f"figures/{name}.csv"] = to_csv(figure.columns, figure.records)
        for kind, drawn in paper.render(figure).items():
            files[f"figures/{name}.{kind}"] = drawn
    return {path: data.encode() if isinstance(data, str) else data for path, data in sorted(files.items())}


def write(files: dict[str, bytes], folder: Path) -> None:
    """Put a report in place, each file whole or not at all, and clear away figures and tables of an older one.

    Another report of the same name waits meanwhile. UserError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            _write(files, folder)
    except OSError as error:
        raise mendable(error, folder) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems know no locks; a report that another disturbed there can be made again.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(files: dict[str, bytes], folder: Path) -> None:
    for part in ("tables", "figures"):
        (folder / part).mkdir(exist_ok=True)
        for old in sorted((folder / part).iterdir()):
            if old.is_file() and f"{part}/{old.name}" not in files:
                old.unlink()
    for path, data in files.items():
        target = folder / path
        if target.is_file() and target.read_bytes() == data:
            continue
        partial = target.with_name(f".{target.name}.tmp")
        try:
            partial.write_bytes(data)
            os.replace(partial, target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
