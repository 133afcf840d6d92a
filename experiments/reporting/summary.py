"""summary.json: the report for machines (design section 7; its schema is summary.schema.json)."""

import json
from pathlib import Path
from typing import Any

from experiments.records import Row
from experiments.reporting.formats import rounded
from experiments.reporting.rows import Analysis

SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("summary.schema.json")


def summary_of(analysis: Analysis) -> dict[str, Any]:
    """The whole summary as plain data."""
    run, info = analysis.run, analysis.run.info
    ceilings = info.ceilings
    return {
        "schema": SCHEMA,
        "experiment": info.experiment,
        "run_id": info.run_id,
        "question": info.question,
        "commit": info.commit,
        "dirty": info.dirty,
        "created": info.created,
        "gpu": info.gpu,
        "device": info.device,
        "dtype": info.dtype,
        "weights": info.weights,
        "software": info.software,
        "ceilings": {
            "read_bytes_per_s": rounded(ceilings.read_bytes_per_s) if ceilings else None,
            "bf16_flop_per_s": rounded(ceilings.bf16_flop_per_s) if ceilings else None,
        },
        "ledger": run.status_counts(),
        "rows": [row_data(row) for row in analysis.rows],
    }


def row_data(row: Row) -> dict[str, Any]:
    """A row as plain data, floats rounded so that machines agree."""
    data: dict[str, Any] = {}
    for name in Row.__dataclass_fields__:
        value = getattr(row, name)
        data[name] = rounded(value) if isinstance(value, float) else value
    data["status"] = row.status.value
    return data


def to_json(data: dict[str, Any]) -> str:
    """Readable and diffable: one row a line."""
    head = json.dumps({k: v for k, v in data.items() if k != "rows"}, indent=1, ensure_ascii=False, allow_nan=False)
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in data["rows"])
    return head[:-2] + ',\n "rows": [\n' + rows + "\n ]\n}\n"
