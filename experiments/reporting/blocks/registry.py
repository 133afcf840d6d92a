"""Where the documents' blocks are kept, and what they are made with."""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.durable import read_json
from experiments.errors import UserError
from experiments.reporting.formats import Column, Table, Value, to_markdown

Block = Callable[[Path], str]
BLOCKS: dict[str, Block] = {}


def block(make: Block) -> Block:
    """Register the decorated function, from the repository's root to Markdown, under its name."""
    BLOCKS[make.__name__] = make
    return make


@contextmanager
def usable(*paths: Path) -> Iterator[None]:
    """Within it, or in a function that it decorates, what fails is told as the fault of these committed files; one that
    was named further in stays the one."""
    try:
        yield
    except UserError:
        raise
    except (OSError, csv.Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        named = " or ".join(path.as_posix() for path in paths)
        raise UserError(f"{named} cannot be used: {error}; make it again") from error


def read(root: Path, path: Path) -> dict[str, Any]:
    """A committed file's content, its checksum tested where it has one; UserError where it cannot be used."""
    with usable(path):
        content = json.loads((root / path).read_text(encoding="utf-8"))
        found: dict[str, Any] = read_json(root / path) if "crc32" in content else content
        return found


def read_table(root: Path, path: Path, needed: Collection[str]) -> list[dict[str, str]]:
    """The rows of a report's table with these columns; none where it is not there. UserError where it is damaged."""
    if not (root / path).is_file():
        return []
    with usable(path), (root / path).open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if missing := sorted(set(needed) - set(table.fieldnames or ())):
            raise ValueError(f"it lacks {', '.join(missing)}")
        return list(table)


def markdown(columns: Sequence[Column], rows: Sequence[Sequence[Value]], caption: str) -> str:
    """A table and its caption, as a document shows them."""
    return f"{to_markdown(Table('', '', '', tuple(columns), tuple(map(tuple, rows))))}\n*{caption}*\n"
