"""Committed runs whose question is not the headline's: what each rung is worth, and the baseline against itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics import METRICS
from experiments.reporting.blocks.headline import made
from experiments.reporting.blocks.registry import block, markdown, read, read_table, unusable
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import BLANK, Column, Kind, Value, ratio

ABLATION = Path("reports/ablation/summary.json")
RUNGS = Path("reports/ablation/tables/ablation.csv")
PREDICTIONS = Path("docs/data/rung_predictions.json")
AA = Path("reports/aa/summary.json")
NO_RUN = "No H200 run of it is committed yet.\n"
HOW = ("added", "left out")


@block
def rungs(root: Path) -> str:
    """Each rung in decode: what was expected, its speed-up added to nothing and left out of the whole, by batch."""
    found = read_table(root, RUNGS, ("model", "workload", "batch", "length", "how", "rung", "speedup", "verdict"))
    if not found:
        return NO_RUN
    expected = read(root, PREDICTIONS)
    rows = [row for row in found if row["workload"] == "decode" and row["how"] in HOW]
    try:
        measured = {
            (row["model"], row["rung"], _cell(row), row["how"]): _speedup(row) for row in rows if row["speedup"]
        }
        cells, models = (list(dict.fromkeys(names)) for names in (map(_cell, rows), (row["model"] for row in rows)))
        columns = [Column("model", "Model"), Column("rung", "Rung"), Column("expected", "Expected")]
        columns += [Column(f"{cell} {how}", f"{cell}, {how}") for cell in cells for how in HOW]
        body: list[tuple[Value, ...]] = [
            (model, rung, words, *(measured.get((model, rung, cell, how), BLANK) for cell in cells for how in HOW))
            for model in models
            for rung, words in expected["rungs"].items()
        ]
        caption = f"{made(read(root, ABLATION))}. Expected: {expected['source']}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unusable(RUNGS, error) from None
    return markdown(columns, body, caption)


@block
def against_itself(root: Path) -> str:
    """The baseline against itself in another process: how many points were called what, how far ratios are from 1."""
    if not (root / AA).is_file():
        return NO_RUN
    run = read(root, AA)
    try:
        rows = [row for row in run["rows"] if row["verdict"] and METRICS[row["metric"]].primary]
        columns = (
            Column("workload", "Workload"),
            Column("points", "Points", Kind.COUNT),
            *(Column(verdict, verdict, Kind.COUNT) for verdict in ("same", "unresolved", "faster", "slower")),
            Column("least", "Least ratio", Kind.RATIO),
            Column("greatest", "Greatest ratio", Kind.RATIO),
        )
        places = list(dict.fromkeys((row["model"], row["workload"]) for row in rows))
        body = [_counted(place, [r for r in rows if (r["model"], r["workload"]) == place]) for place in places]
        caption = f"{made(run)}. One run, verdicts corrected for all its points."
    except (KeyError, TypeError, ValueError) as error:
        raise unusable(AA, error) from None
    return markdown(columns, body, caption)


def _counted(place: tuple[str, str], rows: Sequence[Mapping[str, Any]]) -> tuple[Value, ...]:
    counts = [sum(row["verdict"] == verdict for row in rows) for verdict in ("same", "unresolved", "faster", "slower")]
    ratios = [row["speedup"] for row in rows if row["speedup"] is not None]
    return " ".join(place), len(rows), *counts, min(ratios), max(ratios)


def _cell(row: Mapping[str, str]) -> str:
    """The cell's name without its model."""
    return cell_name("", row["workload"], int(row["batch"]), int(row["length"])).strip()


def _speedup(row: Mapping[str, str]) -> str:
    return f"{ratio(float(row['speedup']))} {row['verdict']}"
