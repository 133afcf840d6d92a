"""A spread run is one run, and the report says what of it was measured where."""

import json
from dataclasses import replace

import jsonschema
import pytest

from experiments.cluster.records import ShardRecord
from experiments.records import CellResult
from experiments.reporting.first_screen import first_screen
from experiments.reporting.methods import methods
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import Run, assemble
from experiments.reporting.shards import places
from experiments.reporting.summary import SCHEMA_FILE, summary_of
from experiments.reporting.tables.registry import build_tables
from tests.experiments.reporting.synthetic import CEILINGS, Synthetic

SLOW = {"read_bytes_per_s": 2.32e12, "bf16_flop_per_s": 3.5e14}
GPU = Synthetic().manifest().gpu


def record(name: str, node: str, gpu: str, ceilings: dict[str, float]) -> ShardRecord:
    return ShardRecord(name, node, "0", "", (), (), gpu, {"cpu": "a CPU"}, {}, ceilings=ceilings)


def spread(*shards: ShardRecord, seconds_apart: int = 0) -> Run:
    """Decode points by the first shard, prefill points by the second; each cell takes ten seconds from its start."""

    def mend(result: CellResult) -> CellResult:
        place = result.cell.point.workload == "prefill"
        started = f"2026-11-23T10:{seconds_apart * place // 60:02d}:00+00:00"
        return replace(result, shard=shards[place].id, started=started, duration_s=10.0)

    made = Synthetic(models=("qwen3-0.6b",), variants=("baseline", "fused"), rounds=3, mend=mend)
    return assemble(made.manifest(), made.results(), shards=shards)


def fact(analysis: Analysis) -> tuple[str, str]:
    return next((f.text, f.tone) for f in first_screen(analysis).facts if f.label == "Shards")


def test_like_machines_are_one_machine() -> None:
    run = spread(record("01-00", "a", GPU, CEILINGS), record("01-01", "b", GPU, SLOW))
    analysis = analyse(run)
    alone = Synthetic(models=("qwen3-0.6b",), variants=("baseline", "fused"), rounds=3)
    assert analysis.rows == analyse(assemble(alone.manifest(), alone.results())).rows
    assert fact(analysis) == ("2 on a, b", "")
    assert "machine" not in [column.name for column in build_tables(analysis)["results"].columns]
    assert "spread over 2 shards" in dict(methods(analysis))["Protocol"]


def test_shards_that_ran_side_by_side_are_named() -> None:
    both = (record("01-00", "a", GPU, CEILINGS), record("01-01", "a", GPU, CEILINGS))
    analysis = analyse(spread(*both))
    assert [place.beside for place in places(analysis.run)] == [("01-01",), ("01-00",)]
    assert fact(analysis) == ("2 on a; side by side on a, sharing its cores, memory and PCIe", "warn")
    table = build_tables(analysis)["shards"]
    assert [(row[0], row[4], row[5], row[6], row[7]) for row in table.rows] == [
        ("01-00", 6, 36, 10.0, "01-01"),
        ("01-01", 6, 36, 10.0, "01-00"),
    ]
    # One after the other is no contention, and neither is another host.
    assert [place.beside for place in places(spread(*both, seconds_apart=60))] == [(), ()]
    apart = spread(both[0], replace(both[1], node="b"))
    assert [place.beside for place in places(apart)] == [(), ()]


def test_rows_of_unlike_machines_are_marked_and_held_against_their_own_ceilings() -> None:
    analysis = analyse(spread(record("01-00", "a", GPU, CEILINGS), record("01-01", "b", "NVIDIA H100", SLOW)))
    assert {(row.workload, row.machine) for row in analysis.rows} == {("decode", GPU), ("prefill", "NVIDIA H100")}
    text, tone = fact(analysis)
    assert "on unlike machines (NVIDIA H100, " in text
    assert tone == "warn"
    results = build_tables(analysis)["results"]
    assert results.columns[-1].name == "machine"
    assert {row[-1] for row in results.rows} == {GPU, "NVIDIA H100"}
    jsonschema.validate(summary_of(analysis), json.loads(SCHEMA_FILE.read_text()))
    # Half the rates, twice the floor.
    alike = analyse(spread(record("01-00", "a", GPU, CEILINGS), record("01-01", "b", GPU, CEILINGS)))
    for row, same in zip(analysis.primary, alike.primary, strict=True):
        assert same.floor
        assert row.floor == pytest.approx((2 if row.workload == "prefill" else 1) * same.floor)
