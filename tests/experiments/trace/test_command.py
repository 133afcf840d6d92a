"""`fusebench trace` from its arguments to the stored ledgers, with a worker that has no engine, and once with one."""

import errno
import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console

from experiments import plain
from experiments.compose import compose
from experiments.durable import read_json, write_json
from experiments.errors import UserError
from experiments.records import Cell, CellResult, Point, Status
from experiments.reporting.ledgers import Traced
from experiments.reporting.run import read_values
from experiments.store import read_manifest, read_run
from experiments.sweep import prepare
from experiments.trace import command
from experiments.trace.command import main
from experiments.trace.ledger import Ledger
from experiments.trace.options import Options, take_options
from experiments.trace.runs import open_run
from tests.experiments.sweeping import sweep

WORKER = Path(__file__).with_name("tracing_worker.py")
SMALL = ("experiment=quick", "models=[tiny]", "batches=[1]", "lengths=[8]", "protocol=smoke", "device=cpu")


def run(tmp_path: Path, *overrides: str, mode: str = "", options: Options | None = None) -> tuple[int, str]:
    """Trace with the fake worker; returns the exit code and what was printed."""
    config = compose([*SMALL, f"results_dir={tmp_path / 'results'}", *overrides])
    console = Console(width=140, file=io.StringIO(), record=True)
    worker = [sys.executable, "-P", str(WORKER), *([mode] if mode else [])]
    code = command.run_trace(config, options or Options(steps=3), console, worker)
    return code, console.export_text()


def ledgers(tmp_path: Path) -> dict[str, Ledger]:
    files = sorted(tmp_path.glob("results/*/*/traces/*.json"))
    return {file.stem: plain.decode(Ledger, read_json(file)) for file in files}


def test_every_point_and_variant_gets_a_ledger(tmp_path: Path) -> None:
    code, printed = run(tmp_path, "variants=[baseline,folded]")
    assert code == 0
    found = ledgers(tmp_path)
    names = [f"tiny.{w}.b1.l8.{v}.r00" for w in ("decode", "prefill") for v in ("baseline", "folded")]
    assert sorted(found) == sorted(names)
    ledger = found[names[0]]
    assert (ledger.cell, ledger.steps) == (Cell(Point("tiny", "decode", 1, 8), "baseline", 0), 3)
    (manifest,) = map(read_manifest, tmp_path.glob("results/*/*"))
    assert (ledger.run_id, ledger.commit, ledger.dirty) == (manifest.run_id, manifest.commit, manifest.dirty)
    assert (ledger.gpu, ledger.created) == (manifest.gpu, manifest.created)
    assert {row.name: (row.op, row.count) for row in ledger.kernels} == {
        "aten::linear": ("linear", 3),
        "aten::copy_": (None, 3),
    }
    assert ledger.traced_step_ms == pytest.approx(1.0)
    assert "the very kernels of the baseline" in printed
    # And the report reads them.
    (traces,) = tmp_path.glob("results/*/*/traces")
    read, problems = read_values(Traced, traces)
    assert (len(read), problems) == (4, [])
    assert [x.label for x in read[:2]] == ["baseline (twin)", "folded (twin)"]
    assert [(work.name, work.owner, work.start_us, work.duration_us) for work in read[0].step] == [
        ("aten::linear", "linear", 0.0, 300.0), ("aten::copy_", "forward", 490.0, 100.5),
    ]  # fmt: skip


def test_a_twin_that_makes_the_same_calls_is_not_said_to_replace_nothing(tmp_path: Path) -> None:
    code, printed = run(tmp_path, "workloads=[decode]", "variants=[baseline,folded]", mode="twins")
    assert code == 0
    assert "rungs: folded twin" in printed
    assert "the twins ran, and only a GPU shows what the kernels replace" in " ".join(printed.split())
    assert "replaces nothing" not in printed


def test_a_variant_under_a_second_name_is_not_traced_twice(tmp_path: Path) -> None:
    overrides = ("variants=[baseline,control,folded]", "variant.control.extends=baseline", "workloads=[decode]")
    run(tmp_path, *overrides)
    assert {ledger.cell.variant for ledger in ledgers(tmp_path).values() if ledger.cell} == {"baseline", "folded"}


def test_another_engine_is_not_traced() -> None:
    """It has none of the ranges that a ledger is made by."""
    prepared = prepare(compose([*SMALL, "variants=[baseline,transformers,vllm]"]))
    assert {job.variant.name for job in command.plan_jobs(prepared)} == {"baseline"}


def test_ledgers_join_the_run_that_was_measured(tmp_path: Path) -> None:
    outcome = sweep(tmp_path, "models=[tiny]", "device=cpu")
    overrides = ("workloads=[decode]", "variants=[baseline]", "batches=[1,2]")
    config = compose([*SMALL, f"results_dir={tmp_path / 'results'}", *overrides])
    code, _ = run(tmp_path, *overrides)
    assert code == 0
    assert len(list((tmp_path / "results" / config.name).iterdir())) == 1
    for ledger in ledgers(tmp_path).values():
        assert ledger.cell is not None
        rounds = [
            median(result.samples["step_ms"])
            for result in outcome.results.values()
            if (result.cell.point, result.cell.variant) == (ledger.cell.point, "baseline")
        ]
        assert ledger.untraced_step_ms == pytest.approx(median(rounds))
        assert ledger.inflation == pytest.approx(ledger.traced_step_ms / ledger.untraced_step_ms)
    _, results, damaged = read_run(outcome.path)
    assert (len(results), damaged) == (len(outcome.results), [])


def test_a_run_of_another_machine_is_refused_and_new_makes_one(tmp_path: Path) -> None:
    outcome = sweep(tmp_path, "models=[tiny]", "device=cpu", "dtype=float32")
    with pytest.raises(UserError, match="has dtype float32, this trace bfloat16; use run=new"):
        run(tmp_path, "dtype=bfloat16")
    with pytest.raises(UserError, match=f"run=yesterday is no run in .*; there are {outcome.path.name}, or new"):
        run(tmp_path, options=Options(run="yesterday"))
    code, _ = run(tmp_path, "dtype=bfloat16", "workloads=[decode]", options=Options(run="new"))
    assert (code, len(list(outcome.path.parent.iterdir()))) == (0, 2)


def test_another_variant_of_the_same_name_is_refused(tmp_path: Path) -> None:
    sweep(tmp_path, "models=[tiny]", "device=cpu", "dtype=float32")
    with pytest.raises(UserError, match=r"variant\.fused\.switches\.norm_linear was .* use run=new"):
        run(tmp_path, "dtype=float32", "variants=[baseline,fused]", "variant.fused.switches.norm_linear=false")


def test_a_sweep_under_way_is_left_alone(tmp_path: Path) -> None:
    config = compose([*SMALL, f"results_dir={tmp_path / 'results'}"])
    run(tmp_path)
    prepared = command.prepare(config)
    with open_run(prepared, "latest"), pytest.raises(UserError, match="being written by another sweep"):
        run(tmp_path)


def test_a_run_that_cannot_be_added_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = command.prepare(compose([*SMALL, f"results_dir={tmp_path / 'results'}"]))
    path = sweep(tmp_path, "models=[tiny]", "device=cpu", "dtype=float32").path

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    with (
        pytest.raises(UserError, match=f"cannot write {path / 'traces'}: Read-only"),
        open_run(replace(prepared, config=replace(prepared.config, name="quick")), "latest"),
    ):
        pass


def test_measured_cells_that_failed_are_no_untraced_time(tmp_path: Path) -> None:
    config = compose([*SMALL, f"results_dir={tmp_path / 'results'}"])
    with open_run(command.prepare(config), "latest") as opened:
        cell = Cell(Point("tiny", "decode", 1, 8), "baseline", 0)
        bad = CellResult(cell, Status.INVALID, samples={"step_ms": [1.0]})
        opened.results.append(bad)
        assert opened.untraced_step_ms(cell) is None
        opened.results.append(CellResult(cell, Status.OK, samples={"step_ms": [2.0, 4.0]}))
        assert opened.untraced_step_ms(cell) == 3.0
        # A round of many samples counts as much as any other.
        opened.results.append(CellResult(replace(cell, round=1), Status.OK, samples={"step_ms": [5.0] * 9}))
        assert opened.untraced_step_ms(cell) == 4.0


@pytest.mark.parametrize(("mode", "reason"), [("fail", "out of memory"), ("die", "the worker exited with code 3")])
def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path, mode: str, reason: str) -> None:
    code, printed = run(tmp_path, "workloads=[decode]", "variants=[baseline,folded]", mode=mode)
    assert code == 1
    assert printed.count(f"not traced: {reason}") == 2
    assert "2 of 2 cells failed" in printed
    assert not list(tmp_path.glob("results/*/*")), "a run without a cell and without a ledger is nothing"


def test_bad_input_to_the_worker_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such thing"):
        run(tmp_path, mode="user")


def test_an_empty_trace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no NVTX range, so no kernel has an owner: the profiler recorded no range"):
        run(tmp_path, mode="empty")


def test_an_expected_kernel_that_never_ran_is_an_error(tmp_path: Path) -> None:
    overrides = ("workloads=[decode]", "variants=[baseline,folded]")
    assert run(tmp_path, *overrides, options=Options(steps=2, expect=("aten::lin*",)))[0] == 0
    with pytest.raises(UserError, match="norm_linear_kernel never ran"):
        run(tmp_path, *overrides, options=Options(steps=2, expect=("norm_linear_kernel",)))


def test_a_trace_that_contradicts_the_variant_fails_its_cell_and_not_the_others(tmp_path: Path) -> None:
    code, printed = run(tmp_path, "workloads=[decode]", "variants=[baseline,folded]", mode="rungs")
    printed = " ".join(printed.split())
    assert code == 1
    assert "rungs: live live (1 per step), idle left off at this shape, stray stray (1 per step)" in printed
    assert printed.count("contradicts the variant: rung stray is switched off and ran all the same (aten::copy_)") == 2
    assert "2 of 2 cells failed" in printed
    # Both ledgers are kept, and say so.
    fates = [[row.fate for row in ledger.rungs] for ledger in ledgers(tmp_path).values()]
    assert fates == [["live", "left off at this shape", "stray"]] * 2


def test_raw_traces_are_kept_where_asked_and_said_to_be_private(tmp_path: Path) -> None:
    options = Options(steps=2, keep_raw=str(tmp_path / "raw"))
    _, printed = run(tmp_path, "workloads=[decode]", "variants=[baseline]", options=options)
    # The longer the folder's name, the more lines it takes.
    assert "keep them private" in " ".join(printed.split())
    raw = tmp_path / "raw" / "tiny.decode.b1.l8.baseline.r00.pt.trace.json"
    assert raw.is_file()
    # What was kept can be read again, alone or against a stored ledger.
    (stored,) = tmp_path.glob("results/*/*/traces/*.json")
    assert main([f"read={raw}"]) == 0
    assert main([f"read={stored}", f"against={raw}"]) == 0


def test_dry_run_prints_the_cells_and_writes_nothing(tmp_path: Path) -> None:
    code, printed = run(tmp_path, "variants=[baseline]", "dry_run=true")
    assert code == 0
    assert printed.splitlines()[0] == "2 cells:"
    assert not (tmp_path / "results").exists()


def test_offline_without_nsys_is_nothing_to_trace() -> None:
    """A GPU's whole run, eager and in a Chrome trace, would take gigabytes."""
    prepared = prepare(compose([*SMALL, "workloads=[offline]", "variants=[baseline]"]))
    console = Console(width=140, file=io.StringIO(), record=True)
    assert [job.cell.point.batch for job in command.jobs_under(None, prepared, console)] == [256]
    on_gpu = replace(prepared, config=replace(prepared.config, device="cuda"))
    with pytest.raises(UserError, match="nothing to trace"):
        command.jobs_under(None, on_gpu, console)
    assert console.export_text() == ""


def test_offline_cells_beside_others_are_said_to_be_left_out() -> None:
    config = compose([*SMALL, "workloads=[decode,offline]", "variants=[baseline]"])
    prepared = prepare(config)
    console = Console(width=140, file=io.StringIO(), record=True)
    on_gpu = replace(prepared, config=replace(prepared.config, device="cuda"))
    assert {job.cell.point.workload for job in command.jobs_under(None, on_gpu, console)} == {"decode"}
    assert "which need nsys: 1 left out" in console.export_text()


def test_a_whole_run_is_told_apart_by_what_its_steps_compute(tmp_path: Path) -> None:
    """With an engine: prompts, then decodes; every step and token, by operation, and no layers."""
    lengths = ("workload.offline.input_tokens=[40,60]", "workload.offline.output_tokens=[3,9]")
    overrides = (*SMALL, *lengths, "workloads=[offline]", "workload.offline.batches=[5]", "variants=[baseline]")
    config = compose([*overrides, f"results_dir={tmp_path / 'results'}"])
    console = Console(width=200, file=io.StringIO(), record=True)
    assert command.run_trace(config, Options(), console) == 0
    (ledger,) = ledgers(tmp_path).values()
    parts = {part.name: part for part in ledger.parts}
    assert [*parts][:2] == ["decode", "prefill"]
    assert sum(part.steps for part in ledger.parts) == ledger.steps
    assert sum(part.decoded_tokens for part in ledger.parts) + 5 == ledger.output_tokens
    assert 5 * 40 <= parts["prefill"].prefill_tokens <= 5 * 60
    assert parts["decode"].prefill_tokens == 0
    assert "decode_attention" not in parts["prefill"].op_ms
    assert "prefill_attention" not in parts["decode"].op_ms
    closed = sum(part.work_ms + part.within_ms + part.before_ms for part in ledger.parts) - ledger.overlap_ms
    assert closed == pytest.approx(ledger.window_ms)
    assert ledger.run_ms > ledger.window_ms > 0
    assert {"schedule", "forward", "post"} <= set(ledger.host_ms)
    assert {row.layer for row in ledger.kernels} == {None}
    printed = console.export_text()
    assert "decode: " in printed
    assert "output tokens/s; the host by phase" in printed
    # And the report reads it.
    (read,), problems = read_values(Traced, next(tmp_path.glob("results/*/*/traces")))
    assert (read.steps, problems) == (ledger.steps, [])


def test_a_spread_sweep_is_not_traced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out cluster and devices"):
        run(tmp_path, "cluster=slurm")


def test_nsys_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="profiler=nsys sees kernels of a GPU only"):
        run(tmp_path, options=Options(profiler="nsys"))


def test_auto_falls_back_to_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=200, file=io.StringIO(), record=True)

    def nothing(configured: str | None) -> None:
        raise UserError("nsys is not on this machine")

    monkeypatch.setattr(command, "find_nsys", nothing)
    assert command.choose_profiler(Options(), "cuda", console) is None
    assert "stands in: nsys is not on this machine" in console.export_text()
    with pytest.raises(UserError, match="not on this machine"):
        command.choose_profiler(Options(profiler="nsys"), "cuda", console)


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("profiler=nsight", "profiler=nsight is not one of auto, nsys, torch"),
        ("steps=0", "steps=0 must be a whole number from 1 to 200"),
        ("steps=many", "steps=many is no whole number"),
        ("run=", "run= has no value"),
        ("against=a.json", "against= belongs to read="),
    ],
)
def test_bad_options(argument: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        take_options([argument])


def test_options_and_the_experiments_keys_are_told_apart() -> None:
    options, rest = take_options(["experiment=demo", "steps=5", "expect=[a,b*]", "batches=[1]", "nsys=/x"])
    assert options == Options(steps=5, expect=("a", "b*"), nsys="/x")
    assert rest == ["experiment=demo", "batches=[1]"]
    with pytest.raises(UserError, match="'batches="):
        take_options(["read=x", "batches=[1]"])


@pytest.mark.parametrize("name", ["absent.json", "absent.sqlite", "absent.nsys-rep"])
def test_reading_a_file_that_is_not_there(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"read={tmp_path / name}"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_reading_a_damaged_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ledger.json"
    write_json(path, {"schema": 1})
    assert main([f"read={path}"]) == 2
    assert "no ledger that this version reads" in capsys.readouterr().err


def test_an_export_of_an_h200_in_a_terminal(h200: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"read={h200}"]) == 0
    printed = capsys.readouterr().out
    assert "3 steps, 8 kernels and 1 launches per step" in printed
    assert "nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT" in printed


def test_a_real_engine_on_a_cpu(tmp_path: Path) -> None:
    """The whole way: engine, ranges, PyTorch profiler, ledger."""
    config = [*SMALL, "workloads=[decode]", "variants=[baseline,norm_linear]", f"results_dir={tmp_path / 'results'}"]
    assert main([*config, "steps=3"]) == 0
    found = ledgers(tmp_path)
    for ledger in found.values():
        assert ledger.steps == 3
        # Of operations, not of their time: a step that is interrupted may take long anywhere.
        assert sum(row.count for row in ledger.kernels if row.op) > 0.85 * sum(row.count for row in ledger.kernels)
        assert {row.layer for row in ledger.kernels} >= {"embed", "0", "1", "head"}
    ops = {name.split(".")[4]: {row.op for row in ledger.kernels} for name, ledger in found.items()}
    assert "norm_linear" in ops["norm_linear"]
    # A CPU runs the twins of the kernels: the rung is seen to take its work, its kernel cannot be.
    fates = {name.split(".")[4]: [row.fate for row in ledger.rungs] for name, ledger in found.items()}
    assert fates == {"baseline": [], "norm_linear": ["twin"]}
