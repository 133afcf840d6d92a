"""The committed GPU run, alone and beside the goals."""

import re
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from experiments.config import BASELINE
from experiments.metrics import METRICS
from experiments.reporting.blocks.registry import block, markdown, read, usable
from experiments.reporting.compact import cell_name, compact_table
from experiments.reporting.formats import Column, Kind, provenance, to_markdown
from experiments.reporting.headline import lead_of

HEADLINE = Path("reports/headline/summary.json")
OFFLINE = Path("reports/offline/summary.json")
# Headline and offline of one machine each, oldest first.
MACHINES = tuple(
    (Path(f"reports/headline{commit}/summary.json"), Path(f"reports/offline{commit}/summary.json"))
    for commit in ("_5bc1efb", "_0db681f", "")
)
TENSOR_PARALLEL = Path("reports/tensor_parallel/summary.json")
SHAPES = Path("reports/shapes/summary.json")
BATCHES = Path("reports/batches/summary.json")
PEERS = (Path("reports/peers_small/summary.json"), Path("reports/peers_large/summary.json"))
GOALS = Path("docs/data/goals.json")
OF_SOME_MODELS = re.compile("_(long|short|few)$")
NO_RUN = "No H200 run is committed yet: `fusebench sweep experiment=headline` on one makes this table.\n"

Place = tuple[str, str, int, int]


@block
def headline(root: Path) -> str:
    """Every cell of the committed H200 run: time by variant, speed-up with interval, share of the floor."""
    return _run_table(root, HEADLINE, OFFLINE)


@block
def tensor_parallel(root: Path) -> str:
    """The committed run of one GPU against two."""
    return _run_table(root, TENSOR_PARALLEL)


@block
def shapes(root: Path) -> str:
    """The committed run over sizes that nothing was tuned for."""
    return _run_table(root, SHAPES)


@block
def batches(root: Path) -> str:
    """The committed run over batches between those of the headline."""
    return _run_table(root, BATCHES)


@block
@usable(GOALS)
def goals(root: Path) -> str:
    """The cells of the goals: the peers as quoted, the bars, and `fused` of the newest run that has the cell."""
    quoted = read(root, GOALS)
    runs = []
    for path, run in _committed(root, HEADLINE, OFFLINE, *PEERS).items():
        with usable(path):
            runs.append((run["created"], run["run_id"], _fused(run)))
    runs.sort(key=itemgetter(0))
    newest = {place: found for _, _, fused in runs for place, found in fused.items()}
    columns = (
        Column("cell", "Cell"),
        Column("vllm", "vLLM 0.26", Kind.NUMBER),
        Column("nano_vllm", "nano-vLLM", Kind.NUMBER),
        Column("bar", "first bar", Kind.NUMBER),
        Column("goal", "goal", Kind.NUMBER),
        Column("fused", "fused", Kind.NUMBER),
        Column("rounds", "rounds", Kind.COUNT),
        Column("commit", "commit"),
    )
    rows = []
    for cell in quoted["cells"]:
        place = (cell["model"], cell["workload"], cell["batch"], cell["context"])
        found = newest.get(place, (None, None, None))
        rows.append((cell_name(*place), cell["vllm"], cell["nano_vllm"], cell["bar"], cell["goal"], *found))
    ran = ", ".join(f"run {run_id}" for _, run_id, _ in runs) or "no H200 run is committed yet"
    caption = f"Decode and prefill in ms, offline in output tokens/s; fused: {ran}. {quoted['source']}"
    return markdown(columns, rows, caption)


@block
@usable(GOALS)
def machines(root: Path) -> str:
    """The bars on several machines: `baseline` and `fused` of a run each, and what that run measured of its GPU."""
    columns = [Column("cell", "Cell"), Column("bar", "first bar", Kind.NUMBER)]
    times, rates = [], []
    for headline_path, offline_path in MACHINES:
        runs = _committed(root, headline_path, offline_path)
        if headline_path not in runs:
            continue
        with usable(*runs):
            commit, ceilings = runs[headline_path]["commit"][:7], runs[headline_path]["ceilings"]
            tera = (ceilings[rate] / 1e12 for rate in ("read_bytes_per_s", "bf16_flop_per_s"))
            rates.append("{} {:.2f} TB/s and {:.0f} TFLOP/s".format(commit, *tera))
            times.append({key: median for run in runs.values() for key, median in _medians(run).items()})
        columns += [Column(f"{name} {commit}", f"{name}, {commit}", Kind.NUMBER) for name in (BASELINE, "fused")]
    rows = []
    for cell in read(root, GOALS)["cells"]:
        place = (cell["model"], cell["workload"], cell["batch"], cell["context"])
        of_machines = [run.get((place, variant)) for run in times for variant in (BASELINE, "fused")]
        rows.append((cell_name(*place), cell["bar"], *of_machines))
    measured = "; ".join(rates) or "no H200 run is committed yet"
    caption = f"Decode and prefill in ms, offline in output tokens/s. Reads and products in each headline: {measured}."
    return markdown(tuple(columns), rows, caption)


def _medians(run: Mapping[str, Any]) -> dict[tuple[Place, str], float]:
    """The median by place and variant."""
    rows = (row for row in run["rows"] if row["status"] == "ok" and METRICS[row["metric"]].primary)
    return {(place_of(row), row["variant"]): row["median"] for row in rows}


def _fused(run: Mapping[str, Any]) -> dict[Place, tuple[float, int, str]]:
    """(median, rounds, commit) of `fused` by place."""
    return {
        place_of(row): (row["median"], row["n"], run["commit"][:7])
        for row in run["rows"]
        if row["variant"] == "fused" and row["status"] == "ok" and METRICS[row["metric"]].primary
    }


def place_of(row: Mapping[str, Any]) -> Place:
    """(model, workload, batch, context). A cell that not all models have is of a workload of its own: decode_long."""
    return row["model"], OF_SOME_MODELS.sub("", row["workload"]), row["batch"], row["context"]


def _run_table(root: Path, *paths: Path) -> str:
    """The rows of the committed ones among some reports, a later report's in place of an earlier one's.

    A column for each variant of the first: a later one may have its own control.
    """
    runs = _committed(root, *paths)
    if not runs:
        return NO_RUN.replace("headline", paths[0].parent.name)
    with usable(*runs):
        of_first = {row["variant"] for row in next(iter(runs.values()))["rows"]}
        rows = [row for row in _rows(*runs.values()) if row["variant"] in of_first]
        return f"{to_markdown(compact_table(rows))}\n{_caption(*runs.values())}\n"


def _committed(root: Path, *paths: Path) -> dict[Path, dict[str, Any]]:
    """The summaries of those reports that are there."""
    return {path: read(root, path) for path in paths if (root / path).is_file()}


def _rows(*runs: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows, but for those of a workload that a later run has by itself."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        own = {row["workload"] for row in run["rows"]}
        rows = [row for row in rows if row["workload"] not in own] + run["rows"]
    return rows


def _caption(*runs: dict[str, Any]) -> str:
    machines, lead = "; ".join(map(made, runs)), lead_of(dict.fromkeys(row["variant"] for row in _rows(*runs)))
    return (
        f"*{machines}. Decode in ms per step, prefill in ms to the first token, offline in output tokens/s, "
        f"each the median of its rounds. Speed-up with its 95 % interval, verdict and share of the physical floor are "
        f"those of `{lead}` over `{BASELINE}`: the median of the rounds' ratios, not the ratio of these medians.*"
    )


def made(run: dict[str, Any]) -> str:
    """On what a run was made, of which code, when."""
    machine = run["gpu"] or "a CPU, kernels as plain-PyTorch twins: no speed is claimed"
    code = provenance(run["commit"], run["created"], run["dirty"])
    return f"{machine}, {run['dtype']}, {code}, run {run['run_id']}"
