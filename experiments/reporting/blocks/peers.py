"""The committed runs beside other engines, one for each model, held against what was quoted of those engines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config import BASELINE, PEERS
from experiments.metrics import METRICS
from experiments.reporting.blocks.headline import PEERS as RUNS
from experiments.reporting.blocks.headline import Place, made, place_of
from experiments.reporting.blocks.registry import block, markdown, read, usable
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import BLANK, Column, Kind, Value

QUOTED = Path("docs/data/peers.json")
NO_RUN = "No H200 run of it is committed yet: `.ci/gpu peers_small // peers_large` on two of them makes it.\n"
TITLES = {"transformers": "transformers", "nano_vllm": "nano-vLLM", "vllm": "vLLM"}
VARIANTS = (BASELINE, "fused", *PEERS)
# A figure further from the quoted one than this is to be explained.
USUAL = 0.05


@block
@usable(QUOTED)
def peers(root: Path) -> str:
    """Each cell: ours and other engines in the same rounds, and how far these are from their quoted figures."""
    runs = {path: read(root, path) for path in RUNS if (root / path).is_file()}
    if not runs:
        return NO_RUN
    cells: dict[Place, dict[str, Value]] = {}
    origins = []
    for path, run in runs.items():
        with usable(path):
            origins.append(made(run))
            for row in (row for row in run["rows"] if METRICS[row["metric"]].primary):
                cells.setdefault(place_of(row), {})[row["variant"]] = _median_or_end(row)
    quoted = read(root, QUOTED)
    known = {place_of(cell): cell for cell in quoted["cells"]}
    told = [variant for variant in PEERS if any(variant in cell for cell in quoted["cells"])]
    columns = (
        Column("cell", "Cell"),
        *(Column(variant, TITLES.get(variant, variant), Kind.NUMBER) for variant in VARIANTS),
        *(Column(f"{variant}_off", f"{TITLES[variant]} against quoted") for variant in told),
    )
    body: list[tuple[Value, ...]] = []
    for place, row in cells.items():
        off = (_off(row.get(variant), known.get(place, {}).get(variant)) for variant in told)
        body.append((cell_name(*place), *(row.get(variant) for variant in VARIANTS), *off))
    caption = (
        f"{'; '.join(origins)}. Decode in ms per step, prefill in ms, offline in output tokens/s; in bold what is more "
        f"than {100 * USUAL:g} % away. Quoted: {quoted['source']}"
    )
    return markdown(columns, body, caption)


def _median_or_end(row: Mapping[str, Any]) -> Value:
    """The median, or in a word how the cell ended."""
    value: Value = row["median"] if row["status"] == "ok" else row["status"]
    return value


def _off(measured: Value, expected: float | None) -> str:
    """+3.1 %, in bold beyond the usual; blank where either is missing."""
    if expected is None or not isinstance(measured, float | int):
        return BLANK
    share = measured / expected - 1
    text = f"{100 * share:+.1f} %"
    return f"**{text}**" if abs(share) > USUAL else text
