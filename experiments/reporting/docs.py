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

from experiments import plain
from experiments.calibration import Calibration
from experiments.config import BASELINE
from experiments.errors import UserError
from experiments.reporting.calibrated import calibration_table
from experiments.reporting.compact import compact_table, lead_of
from experiments.reporting.formats import to_markdown

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = Path("reports/headline/summary.json")
CALIBRATION = Path("docs/data/calibration.json")
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
        return f"{to_markdown(compact_table(summary['rows']))}\n{_caption(summary)}\n"
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{HEADLINE.as_posix()} cannot be used: {error}; make it again") from None


@block
def calibration(root: Path) -> str:
    """What the analysis made of sweeps with a known truth, as committed by `fusebench calibrate`."""
    path = root / CALIBRATION
    if not path.is_file():
        return "No calibration is committed yet: `fusebench calibrate` makes this table.\n"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [plain.decode(Calibration, row) for row in found["rows"]]
        protocol = found["protocol"]
        note = (
            f"*Commit {found['commit'][:12]}, {found['created'][:10]}, seed {found['seed']}, {found['cpu']}; at most "
            f"{protocol['rounds']} rounds of {protocol['windows']} windows, points end from {protocol['min_rounds']} "
            f"rounds on at +-{100 * protocol['target_ci']:g} %.*"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{CALIBRATION.as_posix()} cannot be used: {error}; make it again") from None
    return f"{to_markdown(calibration_table(rows))}\n{note}\n"


def _caption(summary: dict[str, Any]) -> str:
    machine = summary["gpu"] or "a CPU, kernels as plain-PyTorch twins: no speed is claimed"
    dirty = " with uncommitted changes" if summary["dirty"] else ""
    lead = lead_of(summary["rows"])
    return (
        f"*{machine}, {summary['dtype']}, commit {summary['commit'][:12]}{dirty}, {summary['created'][:10]}, run "
        f"{summary['run_id']}. Decode in ms per step, prefill in ms to the first token, offline in output tokens/s. "
        f"Speed-up with its 95 % interval, verdict and share of the physical floor are those of `{lead}` over "
        f"`{BASELINE}`.*"
    )
