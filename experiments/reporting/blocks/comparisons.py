"""Committed runs whose question is not the headline's: what each rung is worth, and the baseline against itself."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics import METRICS
from experiments.reporting.blocks.headline import made
from experiments.reporting.blocks.registry import block, markdown, read, read_table, usable
from experiments.reporting.compact import cell_name
from experiments.reporting.formats import BLANK, Column, Kind, Value, interval, ratio

# One run, and several side by side of a model whose engines do not fit on one GPU together.
ABLATIONS = (Path("reports/ablation"), Path("reports/ablation_8b"))
RUNGS = Path("tables/ablation.csv")
NEEDED = (
    "model", "workload", "batch", "length", "how", "rung", "speedup", "speedup_ci_low", "speedup_ci_high", "verdict",
)  # fmt: skip
CAPTION = "Speed-ups with their 95 % intervals, paired within their own run, verdicts corrected for all of that run."
PREDICTIONS = Path("docs/data/rung_predictions.json")
AA_RUNS = "reports/aa_*/summary.json"
NO_RUN = "No H200 run of it is committed yet.\n"
HOW = ("added", "left out")


@block
@usable(PREDICTIONS)
def rungs(root: Path) -> str:
    """Each rung at each point: what was expected, its speed-up added to nothing and left out of the whole."""
    places: dict[str, tuple[str, str]] = {}
    measured: dict[tuple[str, str, str], str] = {}
    for path in (report / RUNGS for report in ABLATIONS):
        with usable(path):
            for row in (row for row in read_table(root, path, NEEDED) if row["how"] in HOW):
                places[_place(row)] = row["model"], row["workload"]
                if row["speedup"]:
                    measured[_place(row), row["rung"], row["how"]] = _worth(row)
    if not places:
        return NO_RUN
    expected = read(root, PREDICTIONS)
    columns = (
        Column("cell", "Cell"),
        Column("rung", "Rung"),
        Column("expected", "Expected"),
        Column("added", "Added"),
        Column("left_out", "Left out"),
    )
    body: list[tuple[Value, ...]] = []
    for place, (model, workload) in places.items():
        is_foreseen = model in expected["models"] and workload in expected["workloads"]
        for rung, words in expected["rungs"].items():
            worths = (measured.get((place, rung, how), BLANK) for how in HOW)
            body.append((place, rung, words if is_foreseen else BLANK, *worths))
    return markdown(columns, body, f"{_all_made(root)}. {CAPTION} Expected: {expected['source']}")


def _all_made(root: Path) -> str:
    """On what the runs behind the rungs were made, those alike but for their id at once."""
    ids = {}
    for path in sorted(path for report in ABLATIONS for path in _found(root, f"{report}/summary*.json")):
        with usable(path):
            run = read(root, path)
            ids[run["run_id"]] = made(run | {"run_id": ""}).removesuffix(", run ")
    alike: dict[str, list[str]] = defaultdict(list)
    for run_id, words in sorted(ids.items()):
        alike[words].append(run_id)
    return "; ".join(f"{words}, run{'s' * (len(runs) > 1)} {', '.join(runs)}" for words, runs in alike.items())


@block
def against_itself(root: Path) -> str:
    """The baseline against itself in another process: how many points were called what, how far ratios are from 1.

    One row a run and workload.
    """
    origins, body = [], []
    for path in _found(root, AA_RUNS):
        with usable(path):
            run = read(root, path)
            origins.append(made(run))
            body += _counts(run)
    if not origins:
        return NO_RUN
    columns = (
        Column("run", "Run"),
        Column("workload", "Workload"),
        Column("rounds", "Rounds"),
        Column("points", "Points", Kind.COUNT),
        *(Column(verdict, verdict, Kind.COUNT) for verdict in ("same", "unresolved", "faster", "slower")),
        Column("least", "Least ratio", Kind.RATIO),
        Column("greatest", "Greatest ratio", Kind.RATIO),
    )
    return markdown(columns, body, f"{'; '.join(origins)}. Verdicts corrected for all points of a run.")


def _found(root: Path, pattern: str) -> list[Path]:
    """The files of a pattern, relative to the root."""
    return sorted(path.relative_to(root) for path in root.glob(pattern))


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


def _place(row: Mapping[str, str]) -> str:
    return cell_name(row["model"], row["workload"], int(row["batch"]), int(row["length"]))


def _worth(row: Mapping[str, str]) -> str:
    low, high = (float(row[f"speedup_ci_{end}"]) if row[f"speedup_ci_{end}"] else None for end in ("low", "high"))
    return f"{ratio(float(row['speedup']))} [{interval(low, high)}] {row['verdict']}"
