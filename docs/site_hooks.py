"""What mkdocs must know of files outside docs/: two are pages; other links lead into the code and are text."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links out of docs/ at those pages, or keep their text alone."""
    here = Path(page.file.src_uri).parent

    def mend(match: re.Match[str]) -> str:
        text, _, target, anchor = match.groups(default="")
        climbed = len(Path(match[2]).parts) - len(here.parts)
        if climbed <= 0:
            return match[0]
        return f"[{text}]({'../' * len(here.parts)}{target}{anchor})" if target in PAGES else text

    if page.file.src_uri in PAGES:
        # Seen from the root, where it lies.
        return re.sub(r"\]\(docs/", "](", markdown)
    return LINK.sub(mend, markdown)
