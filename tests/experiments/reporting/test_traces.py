"""Kernel ledgers: reading them, and what the report makes of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import plain
from experiments.durable import write_json
from experiments.environment import ROOT
from experiments.reporting.figures.registry import FIGURES
from experiments.reporting.figures.traces import op_times_us
from experiments.reporting.ledgers import Traced
from experiments.reporting.rows import analyse
from experiments.reporting.run import read_values
from experiments.reporting.tables import TABLES, build_tables
from tests.experiments.reporting.synthetic import Synthetic, ledger, timeline

SMALL = {"models": ("qwen3-0.6b",), "workloads": ("decode",), "batches": (1,), "lengths": (128,), "rounds": 3}


def _tables() -> dict[str, list[dict[str, object]]]:
    run = Synthetic(**SMALL).run(ledgers=[ledger("fused"), ledger("baseline")])
    tables = build_tables(analyse(run))
    return {n: [dict(zip([c.name for c in t.columns], r, strict=True)) for r in t.rows] for n, t in tables.items()}


def test_time_per_step_by_op_adds_up_to_all_kernels() -> None:
    trace = ledger("baseline")
    times = op_times_us(trace)
    assert sum(times.values()) == pytest.approx(sum(k.total_us for k in trace.kernels) / trace.steps)
    assert times["rms_norm"] == pytest.approx(28 * 2 * 1.7)
    assert times["unattributed"] == pytest.approx(2.2)
    assert list(times.values()) == sorted(times.values(), reverse=True)


def test_the_kernel_table_ranks_the_top_of_each_traced_cell() -> None:
    rows = [r for r in _tables()["kernels"] if r["variant"] == "fused"]
    assert rows[0]["kernel"] == "gate_up_proj_kernel<0>"
    assert rows[0]["launches_per_step"] == 28
    assert rows[0]["us_per_step"] == pytest.approx(28 * 5.1)
    assert sum(float(str(r["share"])) for r in rows) == pytest.approx(1)


def test_what_fusion_removed_stands_first_and_sums_to_the_difference() -> None:
    rows = _tables()["kernel_changes"]
    assert (rows[0]["op"], rows[0]["baseline_launches"], rows[0]["launches"]) == ("rms_norm", 56, 0)
    saved = sum(float(str(r["saved_us"])) for r in rows)
    before, after = (sum(op_times_us(ledger(v)).values()) for v in ("baseline", "fused"))
    assert saved == pytest.approx(before - after)


def test_traces_say_coverage_idle_and_inflation() -> None:
    row = next(r for r in _tables()["traces"] if r["variant"] == "baseline")
    assert (row["coverage"], row["inflation"], row["launches_per_step"]) == (0.97, 1.31, 283)
    assert row["idle"] == pytest.approx(1 - 1 / 1.2)
    assert row["closure"] == pytest.approx(1)
    # A step reads 1.2 GB of weights: 151,936 x 1024 of the head and 15.7 M of each of 28 layers, 2 bytes each.
    busy_us = float(str(row["busy_us_per_step"]))
    assert float(str(row["busy_gb_per_s"])) * busy_us / 1e3 == pytest.approx(1206, rel=0.02)


def test_a_trace_over_two_devices_is_shown_as_their_mean() -> None:
    """Twice the device time and the launches of one, and of the point's bytes each device reads half."""
    one = ledger("baseline")
    doubled = [replace(k, count=2 * k.count, total_us=2 * k.total_us) for k in one.kernels]
    two = replace(one, devices=2, kernels=doubled, window_ms=2 * one.window_ms, busy_ms=2 * one.busy_ms)
    rows = []
    for found in (one, two):
        table = build_tables(analyse(Synthetic(**SMALL).run(ledgers=[found])))["traces"]
        rows.append(dict(zip([c.name for c in table.columns], table.rows[0], strict=True)))
    assert rows[1].pop("variant") == "baseline (2 devices)"
    assert rows[1].pop("busy_gb_per_s") == pytest.approx(float(str(rows[0].pop("busy_gb_per_s"))) / 2)
    for name in ("launches_per_step", "busy_us_per_step", "idle", "closure"):
        assert rows[1][name] == pytest.approx(rows[0][name])
    assert op_times_us(two) == pytest.approx(op_times_us(one))


def test_a_trace_of_another_run_or_other_code_says_so() -> None:
    run = Synthetic(**SMALL).run()
    here = {"run_id": run.info.run_id, "commit": run.info.commit, "created": "2026-11-25T10:00:00+00:00"}
    expected = {
        "nsys": here,
        "nsys, run other": here | {"run_id": "other"},
        f"nsys, commit {'f' * 12} with uncommitted changes, 2026-11-25": here | {"commit": "f" * 40, "dirty": True},
    }
    for words, change in expected.items():
        made = replace(run, ledgers=(replace(ledger("baseline"), **change),))
        table = build_tables(analyse(made))["traces"]
        assert dict(zip([c.name for c in table.columns], table.rows[0], strict=True))["profiler"] == words


def test_what_has_no_op_is_its_phases_and_else_nobodys() -> None:
    launches = (
        (0.0, 1.0, "a", "0", "linear", "forward"), (2.0, 1.0, "b", "", "", "post"), (4.0, 0.5, "c", "", "", ""),
    )  # fmt: skip
    made = replace(ledger("fused"), timeline=timeline(launches))
    assert [(work.name, work.start_us, work.duration_us, work.owner) for work in made.step] == [
        ("a", 0.0, 1.0, "linear"), ("b", 2.0, 1.0, "post"), ("c", 4.0, 0.5, "unattributed"),
    ]  # fmt: skip


@pytest.mark.parametrize("change", [{"cell": None}, {"cell": {"point": 3}}, {"kernels": [{}]}, {"since": 3}])
def test_a_file_that_is_no_ledger_is_named_not_fatal(tmp_path: Path, change: dict[str, object]) -> None:
    good = ledger("fused")
    (tmp_path / "a.json").write_text("{")
    write_json(tmp_path / "b.json", plain.encode(good) | change)
    write_json(tmp_path / "c.json", plain.encode(good))
    ledgers, problems = read_values(Traced, tmp_path)
    assert ledgers == [good]
    assert [problem.split(":")[0] for problem in problems] == [f"{tmp_path.name}/a.json", f"{tmp_path.name}/b.json"]


def test_whatever_shows_times_of_kernels_says_what_is_in_them() -> None:
    entries = [FIGURES[name] for name in ("kernel_time", "timeline", "waterfall")]
    captions = [e.caption for e in entries] + [TABLES[name].caption for name in ("kernels", "kernel_changes", "traces")]
    for caption in captions:
        assert "programmatic dependent launch" in caption
        assert "its wait for" in caption


def test_no_folder_no_ledgers(tmp_path: Path) -> None:
    assert read_values(Traced, tmp_path / "traces") == ([], [])


def test_every_committed_ledger_is_read_and_drawn() -> None:
    files = sorted(ROOT.glob("results/*/*/traces/*.json"))
    assert files
    for folder in dict.fromkeys(file.parent for file in files):
        ledgers, problems = read_values(Traced, folder)
        assert not problems
        assert all(work.name for made in ledgers for work in made.step)
