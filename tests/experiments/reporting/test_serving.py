"""A sweep of rates in the report: one line a rate, its percentiles, what was good, and where the engine fell behind."""

import io
import json
from dataclasses import replace

import jsonschema
import pytest
from rich.console import Console

from experiments.config import WorkloadConfig
from experiments.floors import Ceilings, floor_of
from experiments.records import Cell, CellResult, Point, Status, Verdict
from experiments.reporting.figures import build_figures
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import Run, assemble
from experiments.reporting.summary import SCHEMA_FILE, summary_of
from experiments.reporting.tables import build_tables
from experiments.reporting.terminal import show
from tests.experiments.reporting.synthetic import CEILINGS, QWEN3_06B, Synthetic

RATES = (32.0, 256.0, 2048.0)
ROUNDS = 3
SERVING = WorkloadConfig(
    "serving", "serving", [100], [0], input_tokens=[32, 256], output_tokens=[16, 64], max_num_seqs=32,
    ttft_slo_ms=200, itl_slo_ms=20,
)  # fmt: skip
WORKLOADS = [replace(SERVING, name=f"serving-{rate:g}rps", rates=[rate]) for rate in RATES]


def serving_run() -> Run:
    """The baseline and a variant of twice its speed; at the greatest rate nobody is served in time."""
    results = [
        served(Cell(Point("qwen3-0.6b", workload.name, 100, 0), variant, round_))
        for workload in WORKLOADS
        for variant in ("baseline", "fused")
        for round_ in range(ROUNDS)
    ]
    manifest = Synthetic(models=("qwen3-0.6b",), variants=("baseline", "fused"), rounds=ROUNDS).manifest()
    points = tuple(Point("qwen3-0.6b", workload.name, 100, 0) for workload in WORKLOADS)
    config, plan = replace(manifest.config, workloads=WORKLOADS), replace(manifest.plan, points=points)
    return assemble(replace(manifest, config=config, plan=plan), results)


def served(cell: Cell) -> CellResult:
    speed = 2.0 if cell.variant == "fused" else 1.0
    drift = 1 + 0.01 * cell.round
    saturated = "2048" in cell.point.workload
    times = [drift * (1 + i / 100) / speed for i in range(100)]
    samples = {
        "itl_ms": times,
        "ttft_ms": [10 * t for t in times],
        "e2e_ms": [50 * t for t in times],
        "requests_per_s": [90.0],
        "output_tokens_per_s": [4000.0],
        "goodput_requests_per_s": [0.0 if saturated else 80.0 * speed],
    }
    counters = {"backlog": 70.0 + cell.round if saturated else 0.0, "saturated": float(saturated)}
    verdict = Verdict(True, "", 64, 1.0, 1e-6, 1e-5, 3)
    return CellResult(cell, Status.OK, "", "compiled", samples, counters=counters, verdict=verdict)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(serving_run())


def test_one_line_a_rate_and_variant(analysis: Analysis) -> None:
    """In order of the rate; p99 of requests pooled over the rounds, 300 of them."""
    made = build_tables(analysis)["serving"]
    lines = [dict(zip((c.name for c in made.columns), row, strict=True)) for row in made.rows]
    assert [(line["rate"], line["variant"]) for line in lines] == [(r, v) for r in RATES for v in ("baseline", "fused")]
    first = lines[0]
    assert (first["itl_p50_ms"], first["ttft_p50_ms"]) == (pytest.approx(1.51, rel=0.01), pytest.approx(15.1, rel=0.01))
    assert first["ttft_p99_ms"] == pytest.approx(10 * 1.02 * 1.98, rel=0.02)
    assert [(line["goodput_requests_per_s"], line["backlog"], line["saturated"]) for line in lines[::2]] == [
        (80.0, 0, 0), (80.0, 0, 0), (0.0, 72, 3),
    ]  # fmt: skip


def test_verdicts_are_counted_on_the_time_between_tokens(analysis: Analysis) -> None:
    """Bounded by one decode step of one short sequence; nothing else is bounded by that."""
    assert {row.metric for row in analysis.primary} == {"itl_p50_ms"}
    fused = [row for row in analysis.primary if row.variant == "fused"]
    assert [(row.verdict, row.speedup) for row in fused] == [("faster", pytest.approx(2.0))] * len(RATES)
    step = Point("qwen3-0.6b", "decode", 1, 32)
    floor = floor_of(QWEN3_06B, WorkloadConfig("decode", "decode"), step, Ceilings(**CEILINGS), 2)
    assert floor is not None
    bounded = {row.metric: row.floor for row in analysis.rows if row.floor is not None}
    assert bounded == {"itl_p50_ms": floor.floor_ms, "itl_p90_ms": floor.floor_ms}
    # 100 requests a round are enough for p90, not for p99.
    assert not any("p99" in row.metric for row in analysis.rows)


def test_no_goodput_has_no_row_and_is_no_error(analysis: Analysis) -> None:
    """A ratio to nothing would be nonsense; the table of serving has the zero."""
    rows = [row.workload for row in analysis.rows if row.metric == "goodput_requests_per_s"]
    assert sorted(set(rows)) == ["serving-256rps", "serving-32rps"]
    assert all(row.status is Status.OK for row in analysis.rows)


def test_rates_are_one_figure(analysis: Analysis) -> None:
    """Along the rate; there is no grid of batches and lengths to map."""
    figures = build_figures(analysis)
    _, figure = figures["serving_qwen3-0.6b_serving"]
    assert [panel.title for panel in figure.panels] == ["ttft_p50_ms", "itl_p50_ms", "goodput_requests_per_s"]
    assert [getattr(panel.chart, "x_ticks", None) for panel in figure.panels] == [RATES, RATES, RATES[:2]]
    assert not any(name.startswith(("speedup", "latency", "throughput")) for name in figures)


def test_the_summary_keeps_its_schema(analysis: Analysis) -> None:
    """A rate is a workload: batch is the number of requests, context 0."""
    summary = summary_of(analysis)
    jsonschema.validate(summary, json.loads(SCHEMA_FILE.read_text()))
    row = next(row for row in summary["rows"] if row["metric"] == "itl_p50_ms")
    assert (row["workload"], row["batch"], row["context"]) == ("serving-2048rps", 100, 0)


def test_a_terminal_shows_it() -> None:
    out = io.StringIO()
    show(serving_run(), Console(file=out, width=160))
    assert "qwen3-0.6b serving-32rps 100" in out.getvalue()
