"""Committed runs whose question is not the headline's: what each rung is worth, and the baseline against itself."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics import METRICS
from experiments.reporting.blocks.headline import made
from experiments.reporting.blocks.registry import block, markdown, read, unusable
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
    if not (root / RUNGS).is_file():
        return NO_RUN
    expected = read(root, PREDICTIONS)
    try:
        with (root / RUNGS).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["workload"] == "decode" and row["how"] in HOW]
        measured = {(row["rung"], _cell(row), row["how"]): _speedup(row) for row in rows if row["speedup"]}
        cells = list(dict.fromkeys(_cell(row) for row in rows))
        columns = [Column("rung", "Rung"), Column("expected", "Expected")]
        columns += [Column(f"{cell} {how}", f"{cell}, {how}") for cell in cells for how in HOW]
        body: list[tuple[Value, ...]] = [
            (rung, words, *(measured.get((rung, cell, how), BLANK) for cell in cells for how in HOW))
            for rung, words in expected["rungs"].items()
        ]
        caption = f"{made(read(root, ABLATION))}. Expected: {expected['source']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
    return cell_name("", row["workload"], int(row["batch"]), int(row["length"])).strip()


def _speedup(row: Mapping[str, str]) -> str:
    return f"{ratio(float(row['speedup']))} {row['verdict']}"
