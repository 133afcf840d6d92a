"""Tables in README.md and docs/ that are made from committed results, between markers:

<!-- generated:NAME -->
...
<!-- /generated:NAME -->
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.config import BASELINE
from experiments.errors import UserError
from experiments.metrics import METRICS
from experiments.reporting.formats import Column, Kind, Table, Value, to_markdown
from experiments.reporting.headline import PREFERRED

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = Path("reports/headline/summary.json")
_BLOCK = re.compile(r"(<!-- generated:(?P<name>[\w-]+) -->\n).*?(<!-- /generated:(?P=name) -->)", re.DOTALL)

Block = Callable[[Path], str]
BLOCKS: dict[str, Block] = {}


def block(make: Block) -> Block:
    """Register the decorated function, from the repository's root to Markdown, under its name."""
    BLOCKS[make.__name__] = make
    return make


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


@block
def headline(root: Path) -> str:
    """Every cell of the committed H200 run: time by variant, speed-up with interval, share of the floor."""
    path = root / HEADLINE
    if not path.is_file():
        return "No H200 run is committed yet: `fusebench sweep experiment=headline` on one makes this table.\n"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return f"{to_markdown(_headline_table(summary['rows']))}\n{_caption(summary)}\n"
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{HEADLINE.as_posix()} cannot be used: {error}; make it again") from None


def _caption(summary: dict[str, Any]) -> str:
    machine = summary["gpu"] or "a CPU, kernels as plain-PyTorch twins: no speed is claimed"
    dirty = " with uncommitted changes" if summary["dirty"] else ""
    lead = _lead(summary["rows"])
    return (
        f"*{machine}, {summary['dtype']}, commit {summary['commit'][:12]}{dirty}, {summary['created'][:10]}, run "
        f"{summary['run_id']}. Decode in ms per step, prefill in ms to the first token, offline in output tokens/s. "
        f"Speed-up with its 95 % interval, verdict and share of the physical floor are those of `{lead}` over "
        f"`{BASELINE}`.*"
    )


def _lead(rows: list[dict[str, Any]]) -> str:
    variants = list(dict.fromkeys(r["variant"] for r in rows if r["variant"] != BASELINE))
    return PREFERRED if PREFERRED in variants or not variants else variants[-1]


def _headline_table(rows: list[dict[str, Any]]) -> Table:
    primary = [r for r in rows if r["metric"] in METRICS and METRICS[r["metric"]].primary]
    variants = list(dict.fromkeys(r["variant"] for r in primary))
    points: dict[tuple[str, str, int, int], dict[str, dict[str, Any]]] = {}
    for row in primary:
        points.setdefault((row["model"], row["workload"], row["batch"], row["context"]), {})[row["variant"]] = row
    lead = _lead(primary)
    columns = (
        Column("cell", "Cell"),
        *(Column(v, v, Kind.NUMBER) for v in variants),
        Column("speedup", "Speed-up", Kind.RATIO),
        Column("speedup_ci_low", "low", Kind.RATIO),
        Column("speedup_ci_high", "high", Kind.RATIO),
        Column("verdict", "Verdict", Kind.CLAIM),
        Column("share_of_floor", "Share of floor", Kind.PERCENT),
    )
    body = []
    for point, found in points.items():
        medians = [_median(found.get(v)) for v in variants]
        at = found.get(lead, {})
        gain = [at.get(k) for k in ("speedup", "speedup_ci_low", "speedup_ci_high", "verdict", "share_of_floor")]
        body.append((_cell_name(*point), *medians, *gain))
    return Table("headline", "Headline", "", columns, tuple(body))


def _median(row: dict[str, Any] | None) -> Value:
    if row is None:
        return None
    median: Value = row["median"] if row["status"] == "ok" else row["status"]
    return median


def _cell_name(model: str, workload: str, batch: int, context: int) -> str:
    if workload == "prefill":
        return f"{model} prefill {batch}x{context}"
    if not context:
        return f"{model} {workload} {batch}"
    return f"{model} {workload} b={batch} ctx {context}"
