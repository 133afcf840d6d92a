"""report.md: the report where a page cannot be shown."""

from experiments.floors import FORMULAS
from experiments.reporting.document import Document
from experiments.reporting.first_screen import FirstScreen
from experiments.reporting.formats import Table, in_markdown, to_markdown
from experiments.reporting.page import EMPTY, SECTIONS
from experiments.reporting.tables import TABLES

MAX_ROWS = 200


def render_markdown(document: Document) -> str:
    """The whole report; folded tables are linked, not printed."""
    parts = list(map(in_markdown, _opening(document.screen)))
    for name, title in SECTIONS.items():
        parts.append(f"## {title}")
        before = len(parts)
        if name == "missing" and document.problems:
            problems = "\n".join(f"- {problem}" for problem in document.problems)
            parts.append(f"Problems in reading the run:\n\n{in_markdown(problems)}")
        if name == "methods":
            parts += _methods(document)
        for section, figure in document.figures.values():
            if section == name:
                again = ", then ".join(f"`{command}`" for command in figure.commands)
                image = f"![{figure.alt}](figures/{figure.name}.svg)"
                shown = in_markdown(f"### {figure.title}\n\n{image}\n\n{figure.caption}")
                parts.append(f"{shown}\n\nReproduce: {again}.")
        parts += [_table(table) for table in document.tables.values() if TABLES[table.name].section == name]
        if len(parts) == before:
            parts.append(EMPTY.get(name, ""))
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(screen: FirstScreen) -> list[str]:
    parts = [f"# {screen.question}"]
    if screen.twin_note:
        parts.append(f"> **{screen.twin_note}**")
    parts.append(screen.lead + ("." if not screen.lead.endswith(".") else ""))
    if screen.cards:
        lines = [f"| {c.title} | **{c.value}** | {c.bounds} | {c.note} |" for c in screen.cards]
        parts.append("\n".join(["| | Speed-up | 95 % interval | Points |", "|---|--:|---|---|", *lines]))
    parts.append("\n".join(f"- **{fact.label}:** {fact.text}" for fact in screen.facts))
    return parts


def _methods(document: Document) -> list[str]:
    parts = [in_markdown(f"### {heading}\n\n{words}") for heading, words in document.methods]
    return [*parts, f"```\n{FORMULAS}\n```", "### Reproduce\n\n```\n" + "\n".join(document.commands) + "\n```"]


def _table(table: Table) -> str:
    head = in_markdown(f"### {table.title}\n\n{table.caption}\n\n")
    if TABLES[table.name].folded or len(table.rows) > MAX_ROWS:
        return f"{head}[tables/{table.name}.md](tables/{table.name}.md), {len(table.rows):,} rows."
    return head + to_markdown(table).rstrip()
