"""Runs are kept, gone on with only where they fit, and read around whatever is damaged."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import plain
from experiments.compose import compose
from experiments.durable import make_new_folder, write_json
from experiments.environment import ROOT, Code, Environment, Gpu
from experiments.errors import UserError
from experiments.manifest import Manifest, new_manifest
from experiments.models import find_model
from experiments.plan import make_plan
from experiments.records import CellResult, Status
from experiments.reporting.run import find_run
from experiments.store import COUNTERS, TRACES, RunStore, create_run, read_run, resume_run

CODE = Code("abcdef0123456789", False, "0" * 64)
GPU = Gpu("NVIDIA H200", "570.1", 141 << 30, 1)
MACHINE = Environment("3.12.1", "Linux x86_64", "A CPU", 2, GPU, {"torch": "2.13.0", "triton": "3.6.0", "numpy": "2.3"})


def manifest(*overrides: str, machine: Environment = MACHINE, code: Code = CODE) -> Manifest:
    config = replace(compose(["experiment=quick", *overrides]), device="cuda", dtype="bfloat16")
    models = [find_model(source) for source in config.models]
    return new_manifest(config, models, make_plan(config, [model.name for model in models]), machine, code)


def results_of(store: RunStore) -> list[CellResult]:
    return [CellResult(cell, Status.OK, samples={"step_ms": [1.0]}) for cell in store.manifest.plan.cells()]


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    with create_run(tmp_path, manifest()) as store:
        written = results_of(store)
        for result in written:
            store.write_cell(result)
        store.write_manifest(replace(store.manifest, weights={"tiny": "random"}))
    told, results, damaged = read_run(store.path)
    assert sorted(results, key=lambda r: r.cell) == sorted(written, key=lambda r: r.cell)
    assert not damaged
    assert told.weights == {"tiny": "random"}
    assert told.models["tiny"]["hidden_size"] == 64
    assert told.gpu == "NVIDIA H200"
    assert len(told.plan.cells()) == len(written)


def test_a_run_is_named_by_time_and_commit(tmp_path: Path) -> None:
    first, second = create_run(tmp_path, manifest()), create_run(tmp_path, manifest())
    assert re.fullmatch(r"\d{8}-\d{6}-abcdef0", first.path.name)
    assert first.path != second.path
    assert second.manifest.run_id == second.path.name


def test_a_clock_that_was_set_back_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`latest` goes by the time in a run's name, and copies of runs are never the latest."""
    first = create_run(tmp_path, replace(manifest(), run_id="20260102-000000-abcdef0"))
    (first.path.parent / "copy-of-a-run").mkdir()
    create_run(tmp_path, replace(manifest(), run_id="20260102-000000-abcdef0"))
    assert capsys.readouterr().err == ""
    create_run(tmp_path, replace(manifest(), run_id="20260101-000000-abcdef0"))
    assert "warning: by its name 20260102-000000-abcdef0-2 is later than this run" in capsys.readouterr().err


def test_a_manifest_names_no_place_and_no_person(tmp_path: Path) -> None:
    model = tmp_path / "secret-place" / "my-model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    with create_run(tmp_path, manifest(f"models=[{model}]", f"results_dir={tmp_path}")) as store:
        text = (store.path / "manifest.json").read_text()
    assert "my-model" in text
    for private in ("secret-place", str(tmp_path), os.environ.get("USER") or "no-user", str(Path.home())):
        assert f'"{private}' not in text
        assert f"/{private}/" not in text


def test_a_manifest_says_how_it_was_asked_for(tmp_path: Path) -> None:
    """All but places: of models their names, of a peer's checkout nothing."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    asked = ("name=mine", f"models=[{tmp_path}/mine]", "variants=[baseline,nano_vllm]", "seed=3")
    places = (f"variant.nano_vllm.path={tmp_path}", f"results_dir={tmp_path}", "devices=[0]", "cluster.mixed=true")
    assert manifest(*asked, *places).config.overrides == [
        "experiment=quick", "name=mine", "models=[mine]", "variants=[baseline,nano_vllm]", "seed=3",
    ]  # fmt: skip


def test_a_peer_s_checkout_is_no_part_of_the_manifest(tmp_path: Path) -> None:
    """Its place differs from machine to machine; which commit it was is among the peer's facts."""
    asked = ("variants=[baseline,nano_vllm]", f"variant.nano_vllm.path={tmp_path}")
    assert [variant.path for variant in manifest(*asked).config.variants] == ["", ""]


CHANGES = [
    (manifest("protocol.rounds=5"), "protocol.rounds was 3 and is 5", True),
    (manifest("seed=3"), "seed was 0 and is 3", True),
    (manifest("variants=[baseline,folded]"), r"variants was \[baseline, fused\] and is \[baseline, folded\]", True),
    (manifest("variant.fused.switches.norm_linear=false"), "variants.fused.switches.norm_linear was True", True),
    (manifest("models=[qwen3-0.6b]"), r"models was \[tiny\] and is \[qwen3-0.6b\]", True),
    (replace(manifest(), models={"tiny": {"num_layers": 3}}), r"model.tiny.hidden_size was 64 and is None", True),
    (manifest(code=replace(CODE, source_hash="1" * 64)), "the code that is timed or times changed", True),
    (manifest(machine=replace(MACHINE, gpu=replace(GPU, name="H100"))), "gpu was NVIDIA H200 and is H100", True),
    (manifest(machine=replace(MACHINE, packages={"torch": "2.12.0"})), "torch was 2.13.0 and is 2.12.0", True),
    (manifest(code=replace(CODE, commit="fff", dirty=True)), "", False),
    (manifest(machine=replace(MACHINE, python="3.13.0")), "", False),
    (manifest("results_dir=elsewhere", "reports_dir=there"), "", False),
    (manifest("protocol.time_budget_s=300"), "", False),
]


@pytest.mark.parametrize(("now", "complaint", "refused"), CHANGES, ids=[text or "harmless" for _, text, _ in CHANGES])
def test_resume_refuses_what_would_mix_unlike_results(
    tmp_path: Path, now: Manifest, complaint: str, refused: bool
) -> None:
    create_run(tmp_path, manifest()).__exit__()
    if not refused:
        resume_run(tmp_path, "latest", now)[0].__exit__()
        return
    with pytest.raises(UserError, match=complaint):
        resume_run(tmp_path, "latest", now)


def test_resume_finds_the_run_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no runs to resume"):
        resume_run(tmp_path, "latest", manifest())
    first, second = create_run(tmp_path, manifest()), create_run(tmp_path, manifest())
    first.__exit__()
    second.__exit__()
    for asked, found in ((first.path.name, first), ("latest", second)):
        store, done, damaged = resume_run(tmp_path, asked, manifest())
        assert (store.path, done, damaged) == (found.path, [], [])
        store.__exit__()
    with pytest.raises(UserError, match=f"resume=nonsense is no run .*{first.path.name}"):
        resume_run(tmp_path, "nonsense", manifest())


def test_damaged_cells_are_named_and_set_aside(tmp_path: Path) -> None:
    with create_run(tmp_path, manifest()) as store:
        written = results_of(store)
        for result in written:
            store.write_cell(result)
    files = [store.path / "cells" / f"{result.cell.id}.json" for result in written]
    files[0].write_bytes(files[0].read_bytes()[:-9])
    files[1].write_bytes(files[1].read_bytes().replace(b"1.0", b"9.0"))
    files[2].write_bytes(files[3].read_bytes())
    (store.path / "cells" / "tiny.decode.b99.l64.fused.r00.json").write_text("{}")
    leftover = store.path / "cells" / f".{files[0].name}.123.tmp"
    leftover.touch()

    again, done, damaged = resume_run(tmp_path, "latest", manifest())
    again.__exit__()
    assert len(done) == len(written) - 3
    assert len(damaged) == 4
    for file, complaint in zip(files[:3], ("truncated", "checksum", "no cell of this plan"), strict=True):
        assert not file.exists()
        assert file.with_name(f"{file.name}.corrupt").exists()
        assert any(line.startswith(f"{file.name}: ") and complaint in line for line in damaged)
    assert not leftover.exists()
    assert read_run(store.path)[1:] == (done, [])


def test_a_whole_cell_of_another_version_is_named_and_stays(tmp_path: Path) -> None:
    """It has its right checksum, and a version that knows its keys will want it."""
    with create_run(tmp_path, manifest()) as store:
        first, *others = results_of(store)
        for result in (first, *others):
            store.write_cell(result)
    file = store.path / "cells" / f"{first.cell.id}.json"
    write_json(file, {**plain.encode(first), "nvlink_bytes": 0})
    for _ in range(2):
        _, found, problems = read_run(store.path)
        assert {result.cell for result in found} == {result.cell for result in others}
        assert problems == [f"{file.name}: CellResult has no key 'nvlink_bytes'; left where it is, not counted"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "truncated"),
        ('{"crc32": "0", "content": {}}', "checksum"),
        (None, "no manifest.json"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str | None, complaint: str) -> None:
    with create_run(tmp_path, manifest()) as store:
        file = store.path / "manifest.json"
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(UserError, match=complaint):
            read_run(store.path)


def test_a_manifest_of_another_version_is_named(tmp_path: Path) -> None:
    with create_run(tmp_path, replace(manifest(), schema=2)) as store, pytest.raises(UserError, match="has schema 2"):
        read_run(store.path)


def _try_to_resume(folder: Path, answer: "multiprocessing.Queue[str]") -> None:
    try:
        resume_run(folder, "latest", manifest())
    except UserError as error:
        answer.put(str(error))


def test_one_process_writes_a_run_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with create_run(tmp_path, manifest()):
        other = context.Process(target=_try_to_resume, args=(tmp_path, answer))
        other.start()
        assert "is being written by another sweep" in answer.get(timeout=60)
        other.join()
    resume_run(tmp_path, "latest", manifest())[0].__exit__()


def test_an_empty_run_can_be_discarded_and_no_other(tmp_path: Path) -> None:
    with create_run(tmp_path, manifest()) as store:
        store.discard()
        assert not store.path.exists()
    with create_run(tmp_path, manifest()) as store:
        store.write_cell(results_of(store)[0])
        store.discard()
        assert len(read_run(store.path)[1]) == 1
    for part in (TRACES, COUNTERS):
        with create_run(tmp_path, manifest()) as store:
            write_json(make_new_folder(store.path / part) / "cell.json", {})
            store.discard()
            assert (store.path / part / "cell.json").exists()


def test_ten_thousand_cells_are_resumed_in_five_seconds(tmp_path: Path) -> None:
    listed = ",".join(map(str, range(1, 51)))
    many = manifest(f"batches=[{listed}]", f"lengths=[{listed}]", "protocol.rounds=1")
    with create_run(tmp_path, many) as store:
        results = results_of(store)
        # Without the syncs, which test_durable covers, and which would take this test a minute.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "fsync", lambda _: None)
            for result in results:
                store.write_cell(result)
    start = time.process_time()
    store, done, damaged = resume_run(tmp_path, "latest", many)
    assert time.process_time() - start < 5
    assert (len(done), damaged) == (10_000, [])
    assert len(json.dumps(plain.encode(read_run(store.path)[0].plan))) < 500_000
    store.__exit__()
    if sys.platform == "linux":
        assert _peak_mib_of_reading(store.path) < 500


def _peak_mib_of_reading(path: Path) -> float:
    """The most memory that a process of its own needs to read a run."""
    # Not ru_maxrss, which a child inherits from the process that forked it; this mark begins anew with its program.
    program = "import sys; from pathlib import Path; from experiments.store import read_run\n"
    program += "read_run(Path(sys.argv[1])); print(Path('/proc/self/status').read_text())"
    command = [sys.executable, "-c", program, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return int(re.search(r"VmHWM:\s+(\d+) kB", told)[1]) / 2**10


def test_a_copy_of_a_run_is_not_the_latest(tmp_path: Path) -> None:
    """Nor is the second of ten runs of one second."""
    first = create_run(tmp_path, manifest())
    first.__exit__()
    names = [f"20261124-120000-abcdef0{number}" for number in ("", "-2", "-10", "-2.bak", " copy")]
    for name in (*names, "before", "20991231 kept"):
        shutil.copytree(first.path, first.path.with_name(name))
    shutil.rmtree(first.path)
    assert find_run(tmp_path, manifest().experiment, "latest").name == names[2]
    store, _, _ = resume_run(tmp_path, "latest", manifest())
    store.__exit__()
    assert store.path.name == names[2]
