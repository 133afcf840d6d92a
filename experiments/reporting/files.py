"""From a run to the files of its report: a pure function to bytes, and one that puts them in place."""

import os
from pathlib import Path

from experiments.reporting.charts import paper
from experiments.reporting.figures import build_figures
from experiments.reporting.formats import to_csv, to_latex, to_markdown
from experiments.reporting.markdown import render_markdown
from experiments.reporting.page import render_page
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import Run
from experiments.reporting.summary import summary_of, to_json
from experiments.reporting.tables import build_tables


def build(run: Run) -> dict[str, bytes]:
    """Every file of the report by its path; the same run gives the same bytes."""
    return build_analysed(analyse(run))


def build_analysed(analysis: Analysis) -> dict[str, bytes]:
    """The same, from an analysis."""
    tables, figures = build_tables(analysis), build_figures(analysis)
    files: dict[str, str | bytes] = {
        "index.html": render_page(analysis, tables, figures),
        "report.md": render_markdown(analysis, tables, figures),
        "summary.json": to_json(summary_of(analysis)),
    }
    for name, table in tables.items():
        columns = [c.name for c in table.columns]
        files[f"tables/{name}.csv"] = to_csv(columns, table.rows)
        files[f"tables/{name}.md"] = f"# {table.title}\n\n{table.caption}\n\n{to_markdown(table)}"
        files[f"tables/{name}.tex"] = to_latex(table)
    for name, (_, figure) in figures.items():
        files[f"figures/{name}.csv"] = to_csv(figure.columns, figure.records)
        for kind, drawn in paper.render(figure).items():
            files[f"figures/{name}.{kind}"] = drawn
    return {path: data.encode() if isinstance(data, str) else data for path, data in sorted(files.items())}


def write(files: dict[str, bytes], folder: Path) -> None:
    """Put a report in place, each file whole or not at all, and clear away figures and tables of an older one."""
    for part in ("tables", "figures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for old in sorted((folder / part).iterdir()):
            if old.is_file() and f"{part}/{old.name}" not in files:
                old.unlink()
    for path, data in files.items():
        target = folder / path
        if target.is_file() and target.read_bytes() == data:
            continue
        partial = target.with_name(f".{target.name}.tmp")
        partial.write_bytes(data)
        os.replace(partial, target)
