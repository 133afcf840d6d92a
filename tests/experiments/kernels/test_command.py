"""`fusebench kernels` and `fusebench validate` from end to end, small, on twins."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import validate
from experiments.cli import main
from experiments.kernel_records import (
    SCHEMA,
    VALIDATE,
    GateRow,
    GateRun,
    GateStatus,
    KernelRun,
    new_stamp,
    read_run,
    write_run,
)
from experiments.kernels import command, gates
from experiments.kernels.cases import CASES
from experiments.kernels.chained_cases import ChainedGateUpSilu
from experiments.kernels.command import ahead, places
from experiments.kernels.compiling import Compilation, compile_on_gpu
from experiments.kernels.linear_cases import NormLinear
from experiments.kernels.measure import Bench, _formula
from experiments.kernels.timing import time_on_cpu
from experiments.records import Status
from variants.kernels.tiles import Tile


def test_kernels_are_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ops=[norm_linear,lm_head]", "rows=[1,512]", "repeats=2", "device=cpu", f"results_dir={tmp_path}"]
    assert main(["kernels", *asked]) == 0
    [file] = tmp_path.glob("kernels/*/kernels.json")
    run = read_run(KernelRun, file)
    # The LM head never sees a prompt; each place has the kernel and what it replaces.
    assert [(r.op, r.form, r.site, r.rows) for r in run.rows[::2]] == [
        *(("norm_linear", form, "qkv", rows) for form in ("alone", "chained") for rows in (1, 512)),
        *(("norm_linear", form, "gate_up", rows) for form in ("alone", "chained") for rows in (1, 512)),
        ("lm_head", "alone", "lm_head", 1), ("lm_head", "chained", "lm_head", 1),
    ]  # fmt: skip
    assert all(r.status is Status.OK and r.kernels == "twin" and len(r.samples_us) == 2 for r in run.rows)
    assert all(r.error is not None and r.floor_us is None for r in run.rows)
    assert run.stamp.run_id == file.parent.name
    assert f"run={file.parent.name}" in capsys.readouterr().out


def test_what_is_compiled_ahead_is_each_tile_of_each_product_once() -> None:
    """Rows that share a tile share its compilation; qkv_post has no tile."""
    bench = Bench(torch.device("cpu"), "bfloat16", time_on_cpu, 1, pdl=True)
    todo = places(["qwen3-0.6b"], ["norm_linear", "qkv_post"], (1, 3, 8, 2048, 8192))
    jobs = ahead(todo, bench)
    assert len(jobs) == len(set(jobs))
    assert {job.tile.path for job in jobs} >= {"gemv", "wide"}
    assert len(jobs) < len([place for place in todo if place.op == "norm_linear"])
    assert {(job.op, job.form, job.pdl) for job in jobs} == {
        ("norm_linear", form, True) for form in ("alone", "chained")
    }
    for rows in (1, 3, 8):
        case = NormLinear.blank((6144, 1024), rows, torch.bfloat16, torch.device("cpu"))
        assert case.dispatch_class(rows) in {job.tile for job in jobs if job.shape == (6144, 1024)}


@pytest.mark.parametrize("op", ["norm_linear", "linear_add", "gate_up_silu", "lm_head"])
def test_torch_compile_can_trace_each_formula(op: str) -> None:
    """Whole, as max-autotune is given it; the compiler itself needs a GPU here."""
    case = CASES[op].draw(CASES[op].SHAPES[0], 2, torch.float32, torch.device("cpu"), plain=True)
    traced = torch.compile(_formula, fullgraph=True, dynamic=False, backend="eager")
    for one, other in zip(traced(case), _formula(case), strict=True):
        assert torch.equal(one, other)


def test_a_wrong_kernel_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = NormLinear.launch
    monkeypatch.setattr(NormLinear, "launch", lambda *a, **k: tuple(2 * x for x in right(*a, **k)))
    asked = ["ops=norm_linear", "rows=1", "repeats=1", "device=cpu", f"results_dir={tmp_path}"]
    assert main(["kernels", *asked]) == 1
    monkeypatch.setattr(gates, "MOST_TWIN_ROWS", 7)
    asked = ["level=kernels", "ops=norm_linear", "dtypes=bfloat16", "device=cpu", f"results_dir={tmp_path}"]
    assert main(["validate", *asked]) == 1


def test_gates_are_shown_with_figures_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["models=tiny", "variants=folded", "level=models", "device=cpu", f"results_dir={tmp_path}"]
    assert main(["validate", *asked]) == 0
    [file] = tmp_path.glob("validate/*/validate.json")
    first, *others = read_run(GateRun, file).rows
    assert first.subject == "folded on tiny"
    assert first.status is GateStatus.PASSED
    assert first.figure is not None
    assert first.bound is not None
    assert 0 <= first.figure <= first.bound
    assert [row.status for row in others] == [GateStatus.SHOWN] * 2
    said, page = capsys.readouterr().out, file.with_suffix(".md").read_text()
    assert "mean KL" in said
    assert "| folded on tiny | twin | float32 | mean KL" in page


@pytest.mark.parametrize(
    ("counts", "most"), [((0, 3, 1, 0, 2, 1), 3), ((0,) * 6, 0), ((None,) * 6, None), ((None, 0, None, 2, None, 1), 2)]
)
def test_the_most_processes_beside_a_run_are_kept(
    counts: tuple[int | None, ...], most: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As each place ends: what came and went in between is seen by those in which it was."""
    seen = iter(counts)
    monkeypatch.setattr(command, "others_on_gpu", lambda device: next(seen))
    asked = ["ops=lm_head", "rows=[1,2,3]", "repeats=2", "device=cpu", f"results_dir={tmp_path}"]
    assert main(["kernels", *asked]) == 0
    [file] = tmp_path.glob("kernels/*/kernels.json")
    assert read_run(KernelRun, file).other_processes == most
    assert not list(seen), "one look for each place"


def test_processes_side_by_side_find_what_one_finds(tmp_path: Path) -> None:
    """In its order too. bfloat16: twins alone, which are quick."""
    asked = ["ops=[qkv_post,linear_add]", "dtypes=bfloat16", "models=tiny", "variants=folded", "device=cpu"]
    found = []
    for at_once in (1, 3):
        folder = tmp_path / str(at_once)
        assert main(["validate", *asked, f"at_once={at_once}", f"results_dir={folder}"]) == 0
        [file] = folder.glob("validate/*/validate.json")
        found.append(read_run(GateRun, file).rows)
    assert [row.subject for row in found[0]] == [row.subject for row in found[1]]
    assert found[0] == found[1]


def test_as_many_processes_run_at_once_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other."""
    both = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(validate, "rows_of_part", lambda part: [both.wait()])
    options = validate.Options(level="kernels", ops=("linear_add",), dtypes=("float16", "float32"), at_once=2)
    assert len(list(validate.rows_side_by_side(options, "cpu"))) == 2


def test_a_process_that_dies_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether it fell silent or had its say, and the others go on."""
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\ncase $* in *linear_add*) echo 'illegal memory access' >&2; kill -9 $$;; esac\n")
    dying.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(dying))
    options = validate.Options(level="kernels", ops=("linear_add", "qkv_post"), dtypes=("float16",), at_once=2)
    dead, silent = validate.rows_side_by_side(options, "cpu")
    assert (dead.subject, dead.status) == ("linear_add float16", GateStatus.FAILED)
    assert dead.where == "its process ended with -9: illegal memory access"
    assert (silent.subject, silent.status) == ("qkv_post float16", GateStatus.FAILED)
    assert silent.where == "its process ended with 0: it said nothing"


def test_what_a_process_found_before_it_died_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And its end is told beside it, whatever the gates said."""
    row = GateRow("qkv_post", "twin", "float16", "a gate", GateStatus.PASSED, "M=1")
    write_run(tmp_path, VALIDATE, GateRun(SCHEMA, new_stamp("validate", "cpu"), (row,)))
    dying = tmp_path / "dying"
    dying.write_text(
        "#!/bin/sh\nfor word; do case $word in results_dir=*) folder=${word#results_dir=}/validate/run;; esac; done\n"
        f'mkdir -p "$folder"; cp {tmp_path}/{VALIDATE}.json "$folder"; kill -9 $$\n'
    )
    dying.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(dying))
    kept, dead = validate.rows_of_part(validate.Options(ops=("qkv_post",), dtypes=("float16",)))
    assert kept == row
    assert (dead.status, dead.where) == (GateStatus.FAILED, "its process ended with -9: it said nothing")
    # A model's own folder, which is no place for a run's files, goes into no name of theirs.
    model = str(tmp_path / "model")
    assert (
        validate.rows_of_part(validate.Options(level="models", models=(model,), variants=("fused",)))[1].subject
        == f"fused {model}"
    )
    assert not list(tmp_path.glob("model*"))


def test_a_model_that_is_not_there_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FUSEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(validate, "SMALL_MODELS", ())
    [row] = validate.model_rows(validate.Options(), "cpu")
    assert row.status is GateStatus.SKIPPED
    assert "fusebench fetch smollm2-135m" in row.where


def test_a_cpu_tries_twins_and_the_interpreter_in_what_it_can() -> None:
    tried = [(r.kernels, str(r.dtype)) for r in validate.reaches(["linear_add"], ["float32", "bfloat16"], "cpu")]
    expected = [("twin", "torch.float32"), ("interpreted", "torch.float32"), ("twin", "torch.bfloat16")]
    assert tried == [pair for pair in expected if pair[0] == "twin" or os.environ.get("TRITON_INTERPRET")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["kernels", "ops=norm_liner"], "ops: there is no 'norm_liner'; did you mean 'norm_linear'"),
        (["kernels", "models=qwen3-0.6"], "qwen3-0.6b"),
        (["kernels", "rows=[0]"], "kernels: rows has a 0"),
        (["kernels", "rows=[1,99999999999]"], "kernels: rows=99999999999 must be 131072 or less"),
        (["kernels", "compile=true", "compile_rows=[1,0]"], "kernels: compile_rows has a 0"),
        (["kernels", "compile_rows=1"], "compile_rows is for compile=true"),
        (["kernels", "repeats=0"], "repeats=0 must be at least 1"),
        (["kernels", "device=cpu", "pdl=true"], "need a GPU"),
        (["validate", "level=kernel"], "level: there is no 'kernel'; did you mean 'kernels'"),
        (["validate", "positions=0"], "validate: positions=0 must be at least 1"),
        (["validate", "dtypes=fp8"], "dtypes: there is no 'fp8'"),
        (["validate", "variants=fuzed"], "did you mean 'fused'"),
        (["validate", "models=nope"], "nope"),
    ],
)
def test_bad_input_is_one_line_and_two(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, f"results_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert complaint in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["kernels", "validate", "tune"])
def test_help_lists_every_key(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"fusebench {command}" in said
    assert "keys: " in said
    assert str(Path.cwd()) not in said


@pytest.mark.gpu
def test_compiled_kernels_are_measured_cold_and_hot(tmp_path: Path) -> None:
    asked = ["models=qwen3-0.6b", "ops=norm_linear", "rows=[1,64]", "repeats=5", f"results_dir={tmp_path}"]
    assert main(["kernels", *asked]) == 0
    [file] = tmp_path.glob("kernels/*/kernels.json")
    rows = read_run(KernelRun, file).rows
    assert {row.cache for row in rows} == {"cold", "hot"}
    assert all(row.floor_us for row in rows if row.cache == "cold")
    # No launch is faster than the roofline allows: then its weights were not cold, or it did not run.
    assert all(min(row.samples_us) > row.floor_us for row in rows if row.floor_us)


@pytest.mark.gpu
def test_what_workers_compiled_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what does not compile in one of them is left out."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    device, shape = torch.device("cuda"), (1168, 592)
    job = Compilation("gate_up_silu", "chained", shape, "bfloat16", True, Tile("skinny", 8, 32, 64, 4, 3))
    too_large = replace(job, tile=replace(job.tile, block_n=256, block_k=1024, stages=6))
    assert compile_on_gpu([job, too_large], time.monotonic() + 300) == {job}
    compiled = set(tmp_path.rglob("*.cubin"))
    assert compiled
    with torch.inference_mode():
        case = ChainedGateUpSilu.draw(shape, 5, torch.bfloat16, device, plain=True)
        case.launch("triton", pdl=True, tile=job.tile)
    assert set(tmp_path.rglob("*.cubin")) == compiled


@pytest.mark.gpu
def test_a_tuned_table_is_written(tmp_path: Path) -> None:
    table = tmp_path / "tiles.json"
    table.write_text('{"schema": 1, "gpus": {}}')
    assert main(["tune", "models=tiny", "ops=linear_add", "rows=1", "repeats=5", f"table={table}"]) == 0
    [gpu] = json.loads(table.read_text())["gpus"].values()
    assert set(gpu["fused_up_to_rows"]) == {"linear_add 64x64", "linear_add 64x160"}


def test_gate_rows_survive_the_file(tmp_path: Path) -> None:
    """NaN figures included."""
    from experiments import plain

    row = GateRow("x", "twin", "float32", "error", GateStatus.FAILED, "1 rows", float("nan"), 1.0)
    back = plain.decode(GateRow, json.loads(json.dumps(plain.encode(row), allow_nan=False)))
    assert back.figure != back.figure
    assert back.status is GateStatus.FAILED


def test_peers_are_left_to_sweeps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    judged: list[str] = []
    monkeypatch.setattr(
        validate, "verdict_rows", lambda _options, _device, _model, variant: judged.append(variant) or ()
    )
    list(validate.model_rows(validate.Options(models=("tiny",)), "cpu"))
    assert {"compiled", "folded", "fused", "norm_linear"} <= set(judged)
    assert not {"baseline", "nano_vllm", "transformers", "vllm"} & set(judged)
    assert main(["validate", "variants=vllm"]) == 2
    assert "variants: there is no 'vllm'" in capsys.readouterr().err
