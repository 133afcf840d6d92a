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
AA_RUNS = "reports/aa_*/summary.json"
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
    """The baseline against itself in another process: how many points were called what, how far ratios are from 1.

    One row a run and workload; the three runs of `.ci/gpu aa`, or while there are none the one before them.
    """
    paths = [path.relative_to(root) for path in sorted(root.glob(AA_RUNS))] or [AA]
    runs = [read(root, path) for path in paths if (root / path).is_file()]
    if not runs:
        return NO_RUN
    try:
        columns = (
            Column("run", "Run"),
            Column("workload", "Workload"),
            Column("rounds", "Rounds"),
            Column("points", "Points", Kind.COUNT),
            *(Column(verdict, verdict, Kind.COUNT) for verdict in ("same", "unresolved", "faster", "slower")),
            Column("least", "Least ratio", Kind.RATIO),
            Column("greatest", "Greatest ratio", Kind.RATIO),
        )
        body = [row for run in runs for row in _counts(run)]
        caption = f"{'; '.join(map(made, runs))}. Verdicts corrected for all points of a run."
    except (KeyError, TypeError, ValueError) as error:
        raise unusable(paths[0], error) from None
    return markdown(columns, body, caption)


def _counts(run: Mapping[str, Any]) -> list[tuple[Value, ...]]:
    rows = [row for row in run["rows"] if row["verdict"] and METRICS[row["metric"]].primary]
    places = dict.fromkeys((row["model"], row["workload"]) for row in rows)
    return [
        (run["run_id"], *_counted(place, [r for r in rows if (r["model"], r["workload"]) == place])) for place in places
    ]


def _counted(place: tuple[str, str], rows: Sequence[Mapping[str, Any]]) -> tuple[Value, ...]:
    counts = [sum(row["verdict"] == verdict for row in rows) for verdict in ("same", "unresolved", "faster", "slower")]
    ratios = [row["speedup"] for row in rows if row["speedup"] is not None]
    least, most = min(row["n"] for row in rows), max(row["n"] for row in rows)
    rounds = f"{least} to {most}" if least < most else str(most)
    return " ".join(place), rounds, len(rows), *counts, min(ratios), max(ratios)


def _cell(row: Mapping[str, str]) -> str:
    """The cell's name without its model."""
    return cell_name("", row["workload"], int(row["batch"]), int(row["length"])).strip()


def _speedup(row: Mapping[str, str]) -> str:
    return f"{ratio(float(row['speedup']))} {row['verdict']}"
