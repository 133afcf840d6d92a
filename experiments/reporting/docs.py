"""Tables in README.md and docs/ that are made from committed files (blocks/), between markers:

<!-- generated:NAME -->
...
<!-- /generated:NAME -->
"""

import re
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError
from experiments.reporting.blocks import BLOCKS

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(<!-- generated:(?P<name>[\w-]+) -->\n).*?(<!-- /generated:(?P=name) -->)", re.DOTALL)


def refresh(root: Path = ROOT) -> list[str]:
    """Rewrite every block that is stale; returns the files changed."""
    changed = []
    for path, text, fresh in _documents(root):
        if fresh != text:
            path.write_text(fresh, encoding="utf-8")
            changed.append(path.relative_to(root).as_posix())
    return changed


def stale_blocks(root: Path = ROOT) -> list[str]:
    """Files whose generated blocks are not what the committed results say."""
    return [path.relative_to(root).as_posix() for path, text, fresh in _documents(root) if fresh != text]


def _documents(root: Path) -> Iterator[tuple[Path, str, str]]:
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            for name in {match["name"] for match in _BLOCK.finditer(text)} - BLOCKS.keys():
                raise UserError(f"{path.name} asks for generated:{name}; there are: {', '.join(sorted(BLOCKS))}")
            yield path, text, _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match['name']](root)}{match[3]}", text)
