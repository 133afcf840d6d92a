"""Blocks of the documentation that are made from committed results."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from experiments import plain
from experiments.durable import read_json, write_json
from experiments.errors import UserError
from experiments.kernel_records import COMPILED, FUSED, UNFUSED, KernelRun, read_run
from experiments.records import Cell, Point, Status
from experiments.report import main
from experiments.reporting.blocks import BLOCKS
from experiments.reporting.blocks.offline import OLDER
from experiments.reporting.docs import ROOT, refresh, stale_blocks
from experiments.reporting.formats import BLANK, interval, number, ratio
from experiments.reporting.rows import analyse
from experiments.reporting.summary import summary_of
from experiments.step_records import Kept, StepCell, StepRun, Tried
from experiments.trace.ledger import Part
from tests.experiments.reporting.synthetic import Synthetic, ledger

EMPTY = "# Title\n\n<!-- generated:headline -->\n<!-- /generated:headline -->\n\nafter\n"


def _commit_report(root: Path) -> None:
    folder = root / "reports/headline"
    folder.mkdir(parents=True)
    run = Synthetic(models=("qwen3-0.6b",), workloads=("decode", "prefill", "offline"), batches=(1,)).run()
    (folder / "summary.json").write_text(json.dumps(summary_of(analyse(run))))


def test_blocks_of_this_repository_are_fresh() -> None:
    assert stale_blocks() == []


def test_without_a_committed_run_the_block_says_so(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(EMPTY)
    assert stale_blocks(tmp_path) == ["README.md"]
    assert refresh(tmp_path) == ["README.md"]
    assert "No H200 run is committed yet" in (tmp_path / "README.md").read_text()
    assert stale_blocks(tmp_path) == refresh(tmp_path) == []


def test_the_headline_block_is_a_table_of_the_committed_run(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/10_benchmarks.md").write_text(EMPTY)
    (tmp_path / "README.md").write_text("nothing generated here\n")
    assert refresh(tmp_path) == ["docs/10_benchmarks.md"]
    text = (tmp_path / "docs/10_benchmarks.md").read_text()
    assert text.startswith("# Title\n\n<!-- generated:headline -->\n| Cell | baseline |")
    assert text.endswith("<!-- /generated:headline -->\n\nafter\n")
    row = next(line for line in text.splitlines() if "qwen3-0.6b decode b=1 ctx 128" in line)
    assert "| faster |" in row
    assert row.count("|") == 1 + 1 + 4 + 3
    assert "NVIDIA H200, bfloat16, commit 0a1b2c3d4e5f, 2026-11-23" in text
    assert "qwen3-0.6b offline 256" in text
    assert "the median of the rounds' ratios, not the ratio of these medians" in text


def test_a_hand_edited_block_is_stale(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY)
    refresh(tmp_path)
    readme.write_text(readme.read_text().replace("faster", "much faster", 1))
    assert stale_blocks(tmp_path) == ["README.md"]


def test_an_unknown_block_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(EMPTY.replace("headline", "heading"))
    with pytest.raises(UserError, match=r"generated:heading; there are: .*\bheadline\b"):
        refresh(tmp_path)


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "reports/headline").mkdir(parents=True)
    (tmp_path / "reports/headline/summary.json").write_text('{"rows": [{}]}')
    (tmp_path / "README.md").write_text(EMPTY)
    with pytest.raises(UserError, match=r"summary\.json cannot be used"):
        refresh(tmp_path)


def test_each_summary_that_may_be_the_damaged_one_is_named(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    shutil.copytree(tmp_path / "reports/headline", tmp_path / "reports/offline")
    (tmp_path / "reports/offline/summary.json").write_text(json.dumps({"rows": [{"workload": "offline"}]}))
    both = "^reports/headline/summary.json or reports/offline/summary.json cannot be used"
    with pytest.raises(UserError, match=both):
        BLOCKS["headline"](tmp_path)


def test_the_command_refreshes_and_stops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("experiments.reporting.docs.refresh", lambda: ["README.md"])
    assert main(["--docs"]) == 0
    assert capsys.readouterr().out == "refreshed README.md\n"


def test_goals_have_the_committed_run_beside_them(tmp_path: Path) -> None:
    goals = json.loads((ROOT / "docs/data/goals.json").read_text())
    (tmp_path / "docs/data").mkdir(parents=True)
    (tmp_path / "docs/data/goals.json").write_text(json.dumps(goals))
    assert "no H200 run is committed yet" in BLOCKS["goals"](tmp_path)
    _commit_report(tmp_path)
    rows = json.loads((tmp_path / "reports/headline/summary.json").read_text())["rows"]
    place = {"model": "qwen3-0.6b", "workload": "decode", "batch": 1, "context": 128, "metric": "step_ms"}
    fused = next(row for row in rows if {**row, **place} == row and row["variant"] == "fused")

    def said() -> list[str]:
        text = BLOCKS["goals"](tmp_path).splitlines()
        return [cell.strip() for line in text if "qwen3-0.6b decode b=1 ctx 128" in line for cell in line.split("|")]

    summary = json.loads((tmp_path / "reports/headline/summary.json").read_text())
    assert said()[-4:-1] == [number(fused["median"]), str(fused["n"]), summary["commit"][:7]]
    # A newer run has the word, where it has the cell.
    (tmp_path / "reports/peers_small").mkdir()
    newer = {**summary, "created": "9999-01-01", "commit": "b" * 40, "rows": [{**fused, "median": 0.5, "n": 1}]}
    (tmp_path / "reports/peers_small/summary.json").write_text(json.dumps(newer))
    assert said()[-4:-1] == [number(0.5), "1", "b" * 7]


def test_an_offline_run_of_its_own_stands_in_for_the_headline_s(tmp_path: Path) -> None:
    (tmp_path / "docs/data").mkdir(parents=True)
    (tmp_path / "docs/data/goals.json").write_text((ROOT / "docs/data/goals.json").read_text())
    _commit_report(tmp_path)

    def line(name: str) -> str:
        return next(line for line in BLOCKS[name](tmp_path).splitlines() if "qwen3-0.6b offline 256" in line)

    before = BLOCKS["headline"](tmp_path).splitlines()
    (tmp_path / "reports/offline").mkdir()
    apart = Synthetic(models=("qwen3-0.6b",), workloads=("offline",), batches=(1,), seed=9).run()
    summary = summary_of(analyse(apart)) | {"run_id": "20261129-120000-0a1b2c3", "created": "9999-01-01"}
    fused = next(r for r in summary["rows"] if r["variant"] == "fused" and r["metric"] == "output_tokens_per_s")
    (tmp_path / "reports/offline/summary.json").write_text(json.dumps(summary))
    after = BLOCKS["headline"](tmp_path).splitlines()
    assert len(after) == len(before)
    assert set(after) - set(before) == {line("headline"), after[-1]}
    assert number(fused["median"]) in line("headline")
    assert number(fused["median"]) in line("goals")
    assert "run 20261129-120000-0a1b2c3" in after[-1]
    assert "run 20261129-120000-0a1b2c3" in BLOCKS["goals"](tmp_path)
    # Its own control has no column among cells that have none.
    rows = summary["rows"] + [row | {"variant": "control"} for row in summary["rows"] if row["variant"] == "fused"]
    (tmp_path / "reports/offline/summary.json").write_text(json.dumps(summary | {"rows": rows}))
    assert BLOCKS["headline"](tmp_path).splitlines() == after


def test_the_search_over_the_step_is_a_row_a_cell_and_a_row_a_change(tmp_path: Path) -> None:
    kept = (Kept("qkv", "gemv 1x4x1024, 4 warps, 2 stages", 1000.0, 950.0), Kept("down", "off", 950.0, 900.0))
    tried = (Tried("o", "off", None, "RuntimeError: no"),)
    cell = StepCell("qwen3-8b", 8, 1024, 8, 0.002, (1001.0, 999.0, 1000.0), (901.0, 899.0, 900.0), (), kept, tried)
    commit = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567 with uncommitted changes"
    run = StepRun(1, "r", "2026-11-28T00:00:00+00:00", "`fusebench tune by=step`", commit, "NVIDIA H200", {}, (cell,))
    (tmp_path / "docs/data").mkdir(parents=True)
    write_json(tmp_path / "docs/data/whole_step_search.json", plain.encode(run))
    text = BLOCKS["whole_step"](tmp_path)
    cells = [[word.strip() for word in line.split("|")[1:-2]] for line in text.splitlines()[2:5]]
    assert {row[0] for row in cells} == {"qwen3-8b decode b=8 ctx 1024, 8 layers"}
    assert cells[0][1::2] == ["whole step", "1,000"]
    assert [row[1:] for row in cells[1:]] == [
        ["qkv", "gemv 1x4x1024, 4 warps, 2 stages", "1,000", "950.0"],
        ["down", "off", "950.0", "900.0"],
    ]
    assert "NVIDIA H200, commit 0a1b2c3d4e5f with uncommitted changes, 2026-11-28; 1 steps tried" in text
    assert "session 2" not in text
    two = replace(run, cells=(cell, replace(cell, session=2)))
    write_json(tmp_path / "docs/data/whole_step_search.json", plain.encode(two))
    assert "8 layers, session 2 | down | off" in BLOCKS["whole_step"](tmp_path)


def test_clocks_in_the_kernels_are_a_row_a_kernel(tmp_path: Path) -> None:
    kernel = {
        "kernel": "o", "programs": 64, "waited_us": [0.0, 0.5, 1.0], "ended_us": [2.0, 3.0, 4.0],
        "after_wait_us": [2.5, 3.5, 4.5],
    }  # fmt: skip
    cell = {"model": "qwen3-0.6b", "batch": 8, "context": 1024, "kernels": [kernel]}
    file = tmp_path / "docs/data/step_clocks.json"
    file.parent.mkdir(parents=True)
    clocks = {"commit": "worktree on 0a1b2c3", "note": "One layer.", "cells": [cell]}
    file.write_text(json.dumps({"machine": "X", "date": "2026-11-28", "clocks": clocks}))
    text = BLOCKS["step_clocks"](tmp_path)
    assert "| qwen3-0.6b decode b=8 ctx 1024 | o | 64 | 0.5000 | 2.500 | 3.500 | 4.500 |" in text
    assert "X, worktree on 0a1b2c3, 2026-11-28. One layer." in text
    file.write_text(json.dumps({"machine": "X", "date": "2026-11-28", "clocks": {**clocks, "cells": [{}]}}))
    with pytest.raises(UserError, match=r"docs/data/step_clocks.json cannot be used"):
        BLOCKS["step_clocks"](tmp_path)


STAMP = {
    "gpu": "NVIDIA H200", "dtype": "bfloat16", "commit": "0a1b2c3d4e5f60718293", "dirty": False,
    "created": "2026-11-29T12:00:00+00:00", "run_id": "20261129-120000-0a1b2c3",
}  # fmt: skip


def test_a_rung_is_a_row_with_what_was_expected_and_both_ways_to_measure_it(tmp_path: Path) -> None:
    assert "No H200 run" in BLOCKS["rungs"](tmp_path)
    tables = tmp_path / "reports/ablation/tables"
    tables.mkdir(parents=True)
    (tmp_path / "docs/data").mkdir(parents=True)
    (tmp_path / "reports/ablation/summary.json").write_text(json.dumps(STAMP | {"rows": []}))
    expected = {
        "source": "Before.",
        "models": ["m"],
        "workloads": ["decode"],
        "rungs": {"pdl": "+10 %", "lm_head": "less"},
    }
    (tmp_path / "docs/data/rung_predictions.json").write_text(json.dumps(expected))
    header = "model,workload,batch,length,how,rung,speedup,speedup_ci_low,speedup_ci_high,verdict\n"
    (tables / "ablation.csv").write_text(
        f"{header}m,decode,1,128,added,pdl,1.12,1.11,1.13,faster\n"
        "m,decode,1,128,left out,pdl,1.5239,,,unresolved\n"
        "m,decode,1,128,added,sum of the rungs,,,,\n"
        "m,prefill,1,2048,added,pdl,0.98,0.9,1.05,unresolved\n"
    )
    text = BLOCKS["rungs"](tmp_path)
    assert "| Cell | Rung | Expected | Added | Left out |" in text
    words = f"{ratio(1.12)} [{interval(1.11, 1.13)}] faster | {ratio(1.5239)} [no interval] unresolved"
    assert f"| m decode b=1 ctx 128 | pdl | +10 % | {words} |" in text
    assert f"| m decode b=1 ctx 128 | lm_head | less | {BLANK} | {BLANK} |" in text
    assert f"| m prefill 1x2048 | pdl | {BLANK} | {ratio(0.98)} [{interval(0.9, 1.05)}] unresolved | {BLANK} |" in text
    assert "run 20261129-120000-0a1b2c3. Speed-ups with" in text
    assert "Expected: Before." in text
    _commit_runs_side_by_side(tmp_path / "reports/ablation_8b", header)
    text = BLOCKS["rungs"](tmp_path)
    words = f"{ratio(1.05)} [{interval(1.04, 1.06)}] same | {ratio(1.07)} [{interval(1.06, 1.08)}] faster"
    assert f"| n decode b=1 ctx 128 | pdl | {BLANK} | {words} |" in text
    assert (
        "2026-11-29, run 20261129-120000-0a1b2c3; NVIDIA H200, bfloat16, commit ffff, 2026-11-29, runs r1, r2. " in text
    )
    second = tmp_path / "reports/ablation_8b/tables/ablation.csv"
    second.write_text(second.read_text().replace(",128,", ",long,"))
    with pytest.raises(UserError, match=r"^reports/ablation_8b/tables/ablation.csv cannot be used"):
        BLOCKS["rungs"](tmp_path)
    (tables / "ablation.csv").write_text("model,workload\nm,decode\n")
    with pytest.raises(UserError, match=r"^reports/ablation/tables/ablation.csv cannot be used: it lacks batch"):
        BLOCKS["rungs"](tmp_path)


def _commit_runs_side_by_side(report: Path, header: str) -> None:
    """Two runs, as `fusebench report runs=[...]` leaves them: a column for the run, a summary of each."""
    (report / "tables").mkdir(parents=True)
    for letter, run_id in (("A", "r1"), ("B", "r2")):
        summary = STAMP | {"run_id": run_id, "commit": "ffff", "rows": []}
        (report / f"summary.{letter}.json").write_text(json.dumps(summary))
    (report / "tables/ablation.csv").write_text(
        f"run,{header}A,n,decode,1,128,added,pdl,1.05,1.04,1.06,same\n"
        "B,n,decode,1,128,left out,pdl,1.07,1.06,1.08,faster\n"
    )


def test_the_baseline_against_itself_is_counted_by_verdict(tmp_path: Path) -> None:
    assert "No H200 run" in BLOCKS["against_itself"](tmp_path)
    place = {"model": "m", "workload": "decode", "metric": "step_ms", "variant": "control", "n": 3}
    rows = [
        place | {"verdict": "", "speedup": None, "variant": "baseline"},
        place | {"verdict": "same", "speedup": 1.001},
        place | {"verdict": "unresolved", "speedup": 0.984, "n": 4},
        place | {"verdict": "faster", "speedup": 1.2, "metric": "step_device_ms"},
    ]
    counted = f"m decode | 3 to 4 | 2 | 1 | 1 | 0 | 0 | {ratio(0.984)} | {ratio(1.001)} |"
    for run in ("1", "2"):
        (tmp_path / f"reports/aa_{run}").mkdir(parents=True)
        (tmp_path / f"reports/aa_{run}/summary.json").write_text(json.dumps(STAMP | {"run_id": run, "rows": rows}))
    text = BLOCKS["against_itself"](tmp_path)
    assert f"| 1 | {counted}\n| 2 | {counted}" in text
    (tmp_path / "reports/aa_2/summary.json").write_text(json.dumps(STAMP | {"rows": [{}]}))
    with pytest.raises(UserError, match=r"^reports/aa_2/summary.json cannot be used"):
        BLOCKS["against_itself"](tmp_path)


def test_the_bars_stand_beside_each_machine_s_times(tmp_path: Path) -> None:
    """A machine without a committed run has no columns, a cell that a run lacks no time; what a GPU reads is told."""
    (tmp_path / "docs/data").mkdir(parents=True)
    places = [("decode", 1, 128), ("offline", 256, 0)]
    cells = [
        {"model": "m", "workload": workload, "batch": batch, "context": context, "bar": 2.0}
        for workload, batch, context in places
    ]
    (tmp_path / "docs/data/goals.json").write_text(json.dumps({"cells": cells}))
    assert "no H200 run is committed yet" in BLOCKS["machines"](tmp_path)
    ceilings = {"read_bytes_per_s": 4.56e12, "bf16_flop_per_s": 695e12}
    for commit, fused_ms in (("0a1b2c3d4", 1.25), ("ffffffff0", 1.5)):
        folder = tmp_path / f"reports/headline{'_5bc1efb' if commit.startswith('0') else ''}"
        folder.mkdir(parents=True)
        place = {"model": "m", "workload": "decode", "batch": 1, "context": 128, "metric": "step_ms", "status": "ok"}
        rows = [place | {"variant": "baseline", "median": 3.0}, place | {"variant": "fused", "median": fused_ms}]
        (folder / "summary.json").write_text(json.dumps(STAMP | {"commit": commit, "ceilings": ceilings, "rows": rows}))
    text = BLOCKS["machines"](tmp_path)
    assert "| baseline, 0a1b2c3 | fused, 0a1b2c3 | baseline, fffffff | fused, fffffff |" in text
    assert "| m decode b=1 ctx 128 | 2.000 | 3.000 | 1.250 | 3.000 | 1.500 |" in text
    assert f"| m offline 256 | 2.000 | {BLANK} | {BLANK} | {BLANK} | {BLANK} |" in text
    assert "0a1b2c3 4.56 TB/s and 695 TFLOP/s; fffffff 4.56" in text
    (tmp_path / "reports/headline/summary.json").write_text(json.dumps(STAMP | {"rows": []}))
    with pytest.raises(UserError, match=r"^reports/headline/summary.json cannot be used"):
        BLOCKS["machines"](tmp_path)


def test_other_engines_are_held_against_what_was_quoted(tmp_path: Path) -> None:
    """More than five per cent stands out; a cell that was not measured says how it ended."""
    assert "No H200 run" in BLOCKS["peers"](tmp_path)
    (tmp_path / "docs/data").mkdir(parents=True)
    quoted = {"model": "m", "workload": "decode", "batch": 256, "context": 1024, "vllm": 2.0, "nano_vllm": 4.0}
    (tmp_path / "docs/data/peers.json").write_text(json.dumps({"source": "Once.", "cells": [quoted]}))
    place = {"model": "m", "workload": "decode_long", "batch": 256, "context": 1024, "metric": "step_ms"}
    medians = {"baseline": 1.5, "fused": 1.25, "transformers": None, "nano_vllm": 4.16, "vllm": 1.8}
    rows = [
        place | {"variant": name, "median": median, "status": "ok" if median else "timeout"}
        for name, median in medians.items()
    ]
    rows.append(place | {"variant": "fused", "metric": "step_device_ms", "median": 9.0, "status": "ok"})
    rows.append(place | {"variant": "vllm", "workload": "prefill", "batch": 1, "median": 3.0, "status": "ok"})
    (tmp_path / "reports/peers_large").mkdir(parents=True)
    (tmp_path / "reports/peers_large/summary.json").write_text(json.dumps(STAMP | {"rows": rows}))
    text = BLOCKS["peers"](tmp_path)
    assert "| m decode b=256 ctx 1024 | 1.500 | 1.250 | timeout | 1.800 | 4.160 | **-10.0 %** | +4.0 % |" in text
    assert f"| m prefill 1x1024 | {BLANK} | {BLANK} | {BLANK} | 3.000 | {BLANK} | {BLANK} | {BLANK} |" in text
    assert "run 20261129-120000-0a1b2c3" in text
    assert "Quoted: Once." in text
    (tmp_path / "reports/peers_large/summary.json").write_text(json.dumps(STAMP | {"rows": [{}]}))
    with pytest.raises(UserError, match=r"^reports/peers_large/summary.json cannot be used"):
        BLOCKS["peers"](tmp_path)


def test_what_the_harness_costs_is_shown_with_its_interval(tmp_path: Path) -> None:
    assert "No H200 measurement" in BLOCKS["overhead"](tmp_path)
    row = {
        "variant": "baseline", "bare_us": 1400.0, "timed_us": 1401.4, "added_us": 1.4, "ratio": 1.001,
        "ratio_low": 0.9999, "ratio_high": 1.0021, "guard_us": 90.0, "pairs": [[1400.0, 1401.4]],
    }  # fmt: skip
    kept = {"model": "m", "context": 128, "steps": 64, "gpu": "NVIDIA H200", "commit": "0a1b2c3d4e5f6"}
    (tmp_path / "docs/data").mkdir(parents=True)
    path = tmp_path / "docs/data/overhead.json"
    path.write_text(json.dumps(kept | {"created": "2026-11-29T00:00:00", "rows": [row]}))
    text = BLOCKS["overhead"](tmp_path)
    assert "+0.100 % | -0.010 % to +0.210 % | 90.00 |" in text
    assert "NVIDIA H200, m, one sequence from 128 tokens on, 1 pairs of windows of 64 steps" in text
    path.write_text(json.dumps(kept))
    with pytest.raises(UserError, match="cannot be used"):
        BLOCKS["overhead"](tmp_path)


def test_traffic_blocks_show_every_row_and_its_commit(tmp_path: Path) -> None:
    usage = {
        "engine": "vllm", "version": "0.26.0", "traffic": "chat", "block_size": 16, "answered": 3, "requests": 3,
        "steps": 40, "needed_tokens": 400, "computed_tokens": 100, "reused_tokens": 300, "preemptions": 2,
        "mean_used": 0.25, "mean_waste": 0.013, "stalled_steps": 7, "longest_stall": 5,
    }  # fmt: skip
    kept = {"commit": "0a1b2c3d4e5f6", "created": "2026-11-25T00:00:00+00:00", "traffics": {"chat": "Chats."}}
    (tmp_path / "docs/data").mkdir(parents=True)
    write_json(tmp_path / "docs/data/traffic.json", kept | {"rows": [usage]})
    memory, waiting = BLOCKS["traffic_memory"](tmp_path), BLOCKS["traffic_waiting"](tmp_path)
    assert "| chat | vLLM 0.26.0 | 16 | 25.0 % | 1.3 % | 0.7500 | 0.2500 | 2 |" in memory
    assert "| chat | vLLM 0.26.0 | 3 | 40 | 7 | 5 |" in waiting
    assert "commit 0a1b2c3d4e5f, 2026-11-25" in memory
    (tmp_path / "docs/data/traffic.json").write_text('{"crc32": 0, "content": {}}')
    with pytest.raises(UserError, match=r"docs/data/traffic\.json cannot be used: its checksum does not match"):
        BLOCKS["traffic_memory"](tmp_path)


def _commit_table(root: Path, name: str, header: str, *rows: str, report: str = "headline") -> None:
    tables = root / "reports" / report / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    (tables / name).write_text("\n".join([header, *rows]) + "\n")


TRACED = (
    "model,workload,batch,length,variant,profiler,steps,launches_per_step,busy_us_per_step,busy_gb_per_s,idle,closure,"
    "coverage,inflation,fusions"
)
CHANGED = "model,workload,batch,length,variant,op,baseline_launches,launches,baseline_us,us,saved_us"


def test_blocks_of_traces_say_where_there_is_no_run_and_where_no_trace(tmp_path: Path) -> None:
    for name in ("traces", "changes", "decode_split"):
        assert "No H200 run is committed yet" in BLOCKS[name](tmp_path)
    _commit_report(tmp_path)
    for name in ("traces", "changes", "decode_split"):
        assert "No trace of an H200 run is committed yet" in BLOCKS[name](tmp_path)


def test_a_traced_cell_is_a_line_with_its_coverage(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    # The second has no untraced time to compare with.
    _commit_table(
        tmp_path, "traces.csv", TRACED,
        "qwen3-0.6b,decode,1,128,baseline,nsys,8,373.125,1320.77,914.0,0.135,1.0,0.998,1.13,",
        "qwen3-0.6b,decode,1,128,fused,nsys,8,146.125,616.9,1956.8,0.024,1.0,0.996,,norm_linear live",
    )  # fmt: skip
    text = BLOCKS["traces"](tmp_path)
    assert "| qwen3-0.6b decode b=1 ctx 128 | baseline | 373.1 | 1,321 | 13.5 % | 100.0 % | 99.8 % | 1.13" in text
    assert "| fused | 146.1 | 616.9 | 2.4 % | 100.0 % | 99.6 % |" in text
    assert "commit 0a1b2c3d4e5f" in text


def test_traces_of_an_older_run_stay_until_a_newer_one_is_traced(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    row = "qwen3-0.6b,decode,1,128,{},nsys,8,373.125,1320.77,914.0,0.135,1.0,0.998,1.13,"
    _commit_table(tmp_path, "traces.csv", TRACED, row.format("baseline"), report="traced")
    older = json.loads((tmp_path / "reports/headline/summary.json").read_text()) | {"commit": "9f8e7d6c5b4a3"}
    (tmp_path / "reports/traced/summary.json").write_text(json.dumps(older))
    text = BLOCKS["traces"](tmp_path)
    assert "| baseline | 373.1 |" in text
    assert "commit 9f8e7d6c5b4a" in text
    _commit_table(tmp_path, "traces.csv", TRACED, row.format("fused"))
    text = BLOCKS["traces"](tmp_path)
    assert "| fused | 373.1 |" in text
    assert "commit 0a1b2c3d4e5f" in text


def test_only_operations_that_changed_are_shown(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    _commit_table(
        tmp_path, "kernel_changes.csv", CHANGED,
        "qwen3-0.6b,decode,1,128,fused,linear,142,0,890,0,890",
        "qwen3-0.6b,decode,1,128,fused,embed,1,1,2.2,2.3,-0.1",
        "qwen3-0.6b,decode,1,128,compiled,linear,142,100,890,500,390",
    )  # fmt: skip
    lines = [line for line in BLOCKS["changes"](tmp_path).splitlines() if line.startswith("| qwen3")]
    assert lines == ["| qwen3-0.6b decode b=1 ctx 128 | linear | 142.0 | 0 | 890.0 | 0 | 890.0 |"]


def test_a_decode_step_is_split_into_work_small_kernels_and_idle_time(tmp_path: Path) -> None:
    """Idle is a share of the step, of which the rest is busy; the embedding is in neither sum."""
    _commit_report(tmp_path)
    _commit_table(
        tmp_path, "traces.csv", TRACED,
        "qwen3-0.6b,decode,1,128,baseline,nsys,8,373,900,914.0,0.1,1.0,0.998,1.13,",
        "qwen3-0.6b,decode,1,128,fused,nsys,8,147,500,914.0,0,1.0,0.998,1.13,",
        "qwen3-0.6b,prefill,1,512,fused,nsys,8,147,500,914.0,0,1.0,0.998,1.13,",
    )  # fmt: skip
    _commit_table(
        tmp_path, "kernel_changes.csv", CHANGED,
        "qwen3-0.6b,decode,1,128,fused,linear,142,0,600,0,600",
        "qwen3-0.6b,decode,1,128,fused,rope,28,0,100,0,100",
        "qwen3-0.6b,decode,1,128,fused,rms_norm,57,1,150,10,140",
        "qwen3-0.6b,decode,1,128,fused,attend,0,28,0,480,-480",
        "qwen3-0.6b,decode,1,128,fused,embed,1,1,50,10,40",
        "qwen3-0.6b,decode,1,128,compiled,linear,142,100,600,500,100",
    )  # fmt: skip
    lines = [line for line in BLOCKS["decode_split"](tmp_path).splitlines() if line.startswith("| qwen3")]
    assert lines == ["| qwen3-0.6b decode b=1 ctx 128 | 600.0 | 480.0 | 250.0 | 10.00 | 100.0 | 0 | 1,000 | 500.0 |"]


def test_memory_stands_by_variant_and_a_cell_without_it_has_a_dash(tmp_path: Path) -> None:
    assert "No H200 run is committed yet" in BLOCKS["memory"](tmp_path)
    _commit_report(tmp_path)
    _commit_table(
        tmp_path, "memory.csv", "model,workload,batch,length,variant,allocated_bytes,device_bytes,reserved_bytes",
        "qwen3-0.6b,decode,1,128,baseline,2147483648,3,3",
        "qwen3-0.6b,decode,1,128,fused,,3,3",
    )  # fmt: skip
    text = BLOCKS["memory"](tmp_path)
    assert "| Cell | baseline | fused |" in text
    assert "| qwen3-0.6b decode b=1 ctx 128 | 2.15 GB |" in text


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    _commit_table(tmp_path, "traces.csv", "model", "x")
    with pytest.raises(UserError, match=r"reports/headline/tables/traces.csv cannot be used"):
        BLOCKS["traces"](tmp_path)


def test_one_gpu_against_two_is_a_table_of_its_own_run(tmp_path: Path) -> None:
    assert "`fusebench sweep experiment=tensor_parallel` on one makes this table" in BLOCKS["tensor_parallel"](tmp_path)
    _commit_report(tmp_path)
    (tmp_path / "reports/headline").rename(tmp_path / "reports/tensor_parallel")
    assert "| qwen3-0.6b decode b=1 ctx 128 |" in BLOCKS["tensor_parallel"](tmp_path)


def test_kernels_are_shown_cold_and_where_both_were_timed(tmp_path: Path) -> None:
    run = read_run(KernelRun, ROOT / "docs/data/kernels.json")
    first = run.rows[0]
    kept = [row for row in run.rows if (row.shape, row.form, row.rows) == (first.shape, first.form, first.rows)]
    failed = [replace(row, status=Status.INVALID, samples_us=()) for row in kept if row.contender == FUSED]
    (tmp_path / "docs/data").mkdir(parents=True)
    file = tmp_path / "docs/data/kernels.json"
    write_json(file, plain.encode(replace(run, rows=tuple(kept))))
    lines = [line for line in BLOCKS["kernels"](tmp_path).splitlines() if line.startswith("| norm_linear")]
    cold = {row.contender: row.samples_us for row in kept if row.cache == "cold"}
    assert len(lines) == 1
    assert f"| {number(median(cold[UNFUSED]))} | {number(median(cold[FUSED]))} |" in lines[0]
    write_json(file, plain.encode(replace(run, rows=(*(row for row in kept if row.contender == UNFUSED), *failed))))
    assert "| norm_linear" not in BLOCKS["kernels"](tmp_path)


def test_norm_linear_is_a_heat_map_of_every_model_over_each_contender(tmp_path: Path) -> None:
    assert "No H200 run of all models" in BLOCKS["norm_linear"](tmp_path)
    run = read_run(KernelRun, ROOT / "docs/data/kernels.json")
    first = run.rows[0]
    rows = [
        replace(first, contender=contender, rows=m, samples_us=(us,), floor_us=2.0, cache="cold", status=Status.OK)
        for m, contender, us in (
            (1, UNFUSED, 6.0), (1, FUSED, 4.0), (1, COMPILED, 5.0), (8192, UNFUSED, 30.0), (8192, FUSED, 40.0),
        )
    ]  # fmt: skip
    (tmp_path / "reports/kernels").mkdir(parents=True)
    write_json(tmp_path / "reports/kernels/kernels.json", plain.encode(replace(run, rows=tuple(rows))))
    text = BLOCKS["norm_linear"](tmp_path)
    place = f"{first.model} | {first.site} {'x'.join(map(str, first.shape))} | {first.form} | cold"
    assert "| Model | Weight | Form | L2 | Over | 1 | 8,192 |" in text
    assert f"| {place} | cuBLAS + norm | {ratio(1.5)} | {ratio(0.75)} |" in text
    assert f"| {place} | torch.compile | {ratio(1.25)} | {BLANK} |" in text
    assert f"| {place} | roofline | 50.0 % | 5.0 % |" in text


def test_readings_of_large_exports_carry_machine_and_command(tmp_path: Path) -> None:
    (tmp_path / "docs/data").mkdir(parents=True)
    file = tmp_path / "docs/data/trace_reader.json"
    row = {"commit": "0a1b2c3d4e5f67", "bytes": 2e9, "kernels": 1200, "cpu_s": 51, "wall_s": 70, "peak_bytes": 1.5e9}
    file.write_text(json.dumps({"command": "read it", "machine": "A CPU", "date": "2026-11-28", "rows": [row]}))
    text = BLOCKS["trace_reader"](tmp_path)
    assert "| 0a1b2c3d4e5f | 2.000 | 1,200 | 51.00 | 70.00 | 1.500 |" in text
    assert "`read it` on A CPU, 2026-11-28" in text
    file.write_text('{"rows": [{}]}')
    with pytest.raises(UserError, match=r"docs/data/trace_reader.json cannot be used"):
        BLOCKS["trace_reader"](tmp_path)


def test_steps_of_the_guide_carry_machine_and_commit(tmp_path: Path) -> None:
    (tmp_path / "docs/data").mkdir(parents=True)
    file = tmp_path / "docs/data/gpu_steps.json"
    steps = [{"command": "fusebench doctor", "note": ", again", "seconds": 1}]
    file.write_text(json.dumps({"machine": "A GPU", "commit": "0a1b2c3d4e5f67", "date": "2026-11-28", "steps": steps}))
    text = BLOCKS["gpu_steps"](tmp_path)
    assert "| `fusebench doctor`, again | 1.000 |" in text
    assert "A GPU, commit 0a1b2c3d4e5f, 2026-11-28" in text
    file.write_text("{}")
    with pytest.raises(UserError, match=r"docs/data/gpu_steps.json cannot be used"):
        BLOCKS["gpu_steps"](tmp_path)


def test_prefill_attention_is_a_row_a_kernel_and_a_column_a_shape(tmp_path: Path) -> None:
    (tmp_path / "docs/data").mkdir(parents=True)
    file = tmp_path / "docs/data/prefill_attention.json"
    shape = {"heads": 16, "kv_heads": 8, "tokens": 8192, "sequences": 1, "ms": 0.5}
    rows = [
        shape | {"session": 1, "kernel": "base", "tflops": 461.5},
        shape | {"session": 1, "kernel": "new", "tflops": 662.7},
        shape | {"session": 1, "kernel": "new", "tokens": 512, "sequences": 16, "tflops": 243.4},
    ]
    made = {"date": "2026-11-28", "gpu": "A GPU", "torch": "2.11", "triton": "3.6.0", "commits": ["0a1b2c3d4e5f67"]}
    words = {"method": "a script", "note": "Causal.", "kernels": {"base": "Triton", "new": "Gluon"}}
    file.write_text(json.dumps(made | words | {"rows": rows}))
    text = BLOCKS["prefill_attention"](tmp_path)
    assert "| 16 heads, 8,192 | 16 heads, 16 × 512 |" in text  # noqa: RUF001
    assert "| Triton | 1 | 461.5 | – |" in text  # noqa: RUF001
    assert "| Gluon | 1 | 662.7 | 243.4 |" in text
    assert "by a script on A GPU, torch 2.11, Triton 3.6.0, 2026-11-28; session 1 at commit 0a1b2c3d4e5f: Ca" in text
    file.write_text("{}")
    with pytest.raises(UserError, match=r"docs/data/prefill_attention.json cannot be used"):
        BLOCKS["prefill_attention"](tmp_path)


def _commit_offline_ledger(root: Path, variant: str, attention_ms: float) -> None:
    run = root / "results/offline/20261129-120000-0a1b2c3"
    (run / "traces").mkdir(parents=True, exist_ok=True)
    write_json(run / "manifest.json", {"gpu": "NVIDIA H200"})
    decode = Part(
        "decode",
        900,
        90_000,
        0,
        attention_ms + 1009,
        20,
        30,
        {"decode_attention": attention_ms, "linear": 1000, "rope": 9},
    )
    prefill = Part("prefill", 10, 500, 144_000, 400, 5, 45, {"linear": 400})
    window_ms = attention_ms + 1009 + 50 + 450 - 9
    made = replace(
        ledger(variant),
        cell=Cell(Point("qwen3-0.6b", "offline", 256, 0), variant, 0),
        parts=[decode, prefill],
        overlap_ms=9,
        output_tokens=100_000,
        window_ms=window_ms,
        run_ms=window_ms + 50,
    )
    write_json(run / f"traces/{made.cell.id}.json", plain.encode(made))


def test_the_offline_split_adds_up_to_the_run(tmp_path: Path) -> None:
    """A row an operation, those below one per cent in one; idle and what lies around the device's window stay."""
    assert "No trace of an offline run is committed yet" in BLOCKS["offline_split"](tmp_path)
    _commit_offline_ledger(tmp_path, "baseline", 2400.0)
    _commit_offline_ledger(tmp_path, "fused", 2000.0)
    text = BLOCKS["offline_split"](tmp_path)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert rows[0] == ["Steps", "What", "baseline, ms", "share", "fused, ms", "share"]
    found = {(row[0], row[1]): row[2:] for row in rows[1:]}
    assert found["decode", "decode_attention"] == ["2,400", "60.8 %", "2,000", "56.3 %"]
    assert found["decode", "1 more"][0] == "9.000"
    assert found["prefill", "idle until the step is launched"][0] == "45.00"
    assert found["all", "before the first kernel and after the last"][0] == "50.00"
    assert found["all", "the run"] == ["3,950", "100.0 %", "3,550", "100.0 %"]
    for column in (0, 2):
        *numbers, total = (float(row[column].replace(",", "")) for row in found.values())
        assert sum(numbers) == pytest.approx(total)
    assert "900 decode steps with 100 sequences decoding; 10 prefill steps with 50.0 sequences decoding and" in text
    assert "25,316 output tokens/s while traced" in text
    assert "NVIDIA H200, run 20261129-120000-0a1b2c3" in text
    assert OLDER not in text


def test_the_offline_split_of_an_older_trace_says_where_its_waits_are(tmp_path: Path) -> None:
    _commit_offline_ledger(tmp_path, "baseline", 2400.0)
    (file,) = tmp_path.glob("results/offline/*/traces/*.json")
    write_json(file, read_json(file) | {"schema": 2})
    assert OLDER in BLOCKS["offline_split"](tmp_path)


def test_a_damaged_offline_ledger_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "results/offline/20261129-120000-0a1b2c3/traces"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps({"cell": {"variant": "fused"}}))
    with pytest.raises(UserError, match=r"^results/offline/\S+/traces/x.json cannot be used"):
        BLOCKS["offline_split"](tmp_path)
