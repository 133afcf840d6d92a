"""The committed runs beside other engines, one for each model, held against what was quoted of those engines."""

from pathlib import Path
from typing import Any

from experiments.config import BASELINE, PEERS
from experiments.metrics import METRICS
from experiments.reporting.blocks.headline import PEERS as RUNS
from experiments.reporting.blocks.headline import Place, made, place_of
from experiments.reporting.blocks.registry import block, markdown, read, unusable
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import BLANK, Column, Kind, Value

QUOTED = Path("docs/data/peers.json")
NO_RUN = "No H200 run of it is committed yet: `.ci/gpu peers_small // peers_large` on two of them makes it.\n"
TITLES = {"transformers": "transformers", "nano_vllm": "nano-vLLM", "vllm": "vLLM"}
VARIANTS = (BASELINE, "fused", *PEERS)
# A figure further from the quoted one than this is to be explained.
USUAL = 0.05


@block
def peers(root: Path) -> str:
    """Each cell: ours and other engines in the same rounds, and how far these are from their quoted figures."""
    runs = [read(root, path) for path in RUNS if (root / path).is_file()]
    if not runs:
        return NO_RUN
    quoted = read(root, QUOTED)
    try:
        known = {place_of(cell): cell for cell in quoted["cells"]}
        told = [variant for variant in PEERS if any(variant in cell for cell in quoted["cells"])]
        columns = (
            Column("cell", "Cell"),
            *(Column(variant, TITLES.get(variant, variant), Kind.NUMBER) for variant in VARIANTS),
            *(Column(f"{variant}_off", f"{TITLES[variant]} against quoted") for variant in told),
        )
        body: list[tuple[Value, ...]] = []
        for place, row in _cells(runs).items():
            off = (_off(row.get(variant), known.get(place, {}).get(variant)) for variant in told)
            body.append((cell_name(*place), *(row.get(variant) for variant in VARIANTS), *off))
        caption = (
            f"{'; '.join(map(made, runs))}. Decode in ms per step, prefill in ms, offline in output tokens/s; in bold "
            f"what is more than {100 * USUAL:g} % away. Quoted: {quoted['source']}"
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unusable(RUNS[0], error) from None
    return markdown(columns, body, caption)


def _cells(runs: list[dict[str, Any]]) -> dict[Place, dict[str, Value]]:
    """By place and variant the median, or in a word how the cell ended."""
    found: dict[Place, dict[str, Value]] = {}
    for run in runs:
        for row in run["rows"]:
            if METRICS[row["metric"]].primary:
                value = row["median"] if row["status"] == "ok" else row["status"]
                found.setdefault(place_of(row), {})[row["variant"]] = value
    return found


def _off(measured: Value, expected: float | None) -> str:
    """+3.1 %, in bold beyond the usual; blank where either is missing."""
    if expected is None or not isinstance(measured, float | int):
        return BLANK
    share = measured / expected - 1
    text = f"{100 * share:+.1f} %"
    return f"**{text}**" if abs(share) > USUAL else text
