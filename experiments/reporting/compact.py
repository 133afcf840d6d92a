"""The headline as one narrow table, from the rows of a summary.json: for the documentation and for a terminal."""

from typing import Any

from experiments.metrics import METRICS
from experiments.reporting.formats import Column, Kind, Table, Value
from experiments.reporting.headline import lead_of


def compact_table(rows: list[dict[str, Any]]) -> Table:
    """One line a cell: time by variant, then what the lead variant gains."""
    primary = [r for r in rows if r["metric"] in METRICS and METRICS[r["metric"]].primary]
    variants = list(dict.fromkeys(r["variant"] for r in primary))
    points: dict[tuple[str, str, int, int], dict[str, dict[str, Any]]] = {}
    for row in primary:
        points.setdefault((row["model"], row["workload"], row["batch"], row["context"]), {})[row["variant"]] = row
    lead = lead_of(variants)
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
        at = found.get(lead, {}) if lead else {}
        gain = [at.get(k) for k in ("speedup", "speedup_ci_low", "speedup_ci_high")]
        body.append((cell_name(*point), *medians, *gain, _verdict(at), at.get("share_of_floor")))
    return Table("headline", "Headline", "", columns, tuple(body))


def _median(row: dict[str, Any] | None) -> Value:
    if row is None:
        return None
    median: Value = row["median"] if row["status"] == "ok" else row["status"]
    return median


def _verdict(row: dict[str, Any]) -> str:
    """The verdict, labelled where it was timed on twins; the status of a cell without one."""
    if not row or row["status"] != "ok":
        return str(row.get("status", ""))
    return f"{row['verdict']} (twin)" if "twin" in row["kernels"] else str(row["verdict"])


def cell_name(model: str, workload: str, batch: int, context: int) -> str:
    """A point in words."""
    if workload == "prefill":
        return f"{model} prefill {batch}x{context}"
    if not context:
        return f"{model} {workload} {batch}"
    return f"{model} {workload} b={batch} ctx {context}"
