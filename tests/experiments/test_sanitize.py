"""`fusebench sanitize` with a shell script in compute-sanitizer's place; what it watches, in Triton's interpreter."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.kernels._triton import INTERPRETED
from experiments import plain
from experiments.cli import main
from experiments.durable import write_json
from experiments.kernel_records import SanitizeRun, Watched, new_stamp, read_run, write_run
from experiments.kernels import launched
from experiments.reporting.blocks import BLOCKS
from experiments.sanitize import SECTIONS, what_it_said
from tests.processes import is_running

CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
WRONG = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 2 bytes
=========     at _norm_linear_kernel+0x1230 in norm_linear.py:60
=========
========= ERROR SUMMARY: 3 errors
"""
RACES = """========= COMPUTE-SANITIZER
========= Error: Race reported between Read access at _norm_linear_kernel_sm90+0x100 in normed_product_sm90.py:201
=========     and Write access at _norm_linear_kernel_sm90+0x6a80 in normed_product_sm90.py:206 [4 hazards]
=========
========= Warning: Race reported between Write access at void cub::Block<float, (int)64>::Store(float)+0xa70 in a.cuh:9
=========     and Write access at void cub::Block<float, (int)64>::Store(float)+0x5b0 in a.cuh:9 [1 hazards]
=========
========= RACECHECK SUMMARY: 5 hazards displayed (2 errors, 3 warnings)
"""
# Answers to --version, keeps its arguments and the allocator's setting, prints what SAYS and ends as ENDS.
STUB = """#!/bin/sh
[ "$1" != --version ] || { echo "NVIDIA (R) Compute Sanitizer"; echo "Version 2025.3.1.0 (build 1)"; exit; }
for file; do :; done
printf '{"_some_kernel": 2}' >"$file"
echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" >>"$0.asked"
printf '%s' "$SAYS"
exit "${ENDS:-0}"
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """compute-sanitizer, and Python without a tool, both played by the script."""
    path = tmp_path / "compute-sanitizer"
    path.write_text(STUB)
    path.chmod(0o755)
    monkeypatch.setattr("experiments.sanitize.sys.executable", str(path))
    return path


def kept_runs(tmp_path: Path) -> list[SanitizeRun]:
    return [read_run(SanitizeRun, file) for file in tmp_path.glob("results/sanitize/*/sanitize.json")]


def kept(tmp_path: Path) -> SanitizeRun:
    [run] = kept_runs(tmp_path)
    return run


def test_every_section_is_watched_by_every_tool(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAYS", CLEAN)
    assert main(["sanitize", f"sanitizer={stub}", "tools=[memcheck,synccheck]", f"results_dir={tmp_path}/results"]) == 0
    run = kept(tmp_path)
    assert run.version == "2025.3.1.0"
    # Without the tool's place, which is this machine's own.
    assert run.stamp.command == f"fusebench sanitize 'tools=[memcheck,synccheck]' results_dir={tmp_path}/results"
    assert [(row.tool, row.section) for row in run.rows] == [
        (tool, section) for tool in ("memcheck", "synccheck") for section in SECTIONS
    ]
    assert all(row.clean and row.launches == {"_some_kernel": 2} for row in run.rows)
    asked = Path(f"{stub}.asked").read_text().splitlines()
    # Compiled once each, then watched; a tensor is an allocation of its own under memcheck, where there are no graphs.
    assert len(asked) == 3 * len(SECTIONS)
    assert sum(line.startswith("1 --tool memcheck") for line in asked) == len(SECTIONS) - 1
    assert sum(line.startswith("1 ") for line in asked) == len(SECTIONS) - 1
    assert "memcheck attention: 2 launches of 1 kernels, 0 errors, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("says", "ends", "errors"), [(WRONG, "9", 3), (CLEAN, "1", None), ("Device not supported\n", "0", None)]
)
def test_what_was_found_or_did_not_end_is_exit_code_1(
    says: str, ends: str, errors: int | None, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAYS", says)
    monkeypatch.setenv("ENDS", ends)
    asked = [f"sanitizer={stub}", "tools=memcheck", "sections=attention", f"results_dir={tmp_path}/results"]
    assert main(["sanitize", *asked]) == 1
    row = kept(tmp_path).rows[-1]
    assert (row.tool, row.errors, row.clean) == ("memcheck", errors, False)


def test_what_takes_too_long_is_killed_with_what_it_started(stub: Path, tmp_path: Path) -> None:
    """Else it would be waited for: it holds the pipe that the tool's output is read from."""
    hangs = f'[ "$1" != --tool ] || {{ sleep 60 & echo $! >{tmp_path}/pid; wait; }}\n'
    stub.write_text(STUB.replace("printf '%s'", f"{hangs}printf '%s'"))
    began = time.monotonic()
    asked = [f"sanitizer={stub}", "tools=racecheck", "sections=attention", f"results_dir={tmp_path}/results"]
    assert main(["sanitize", *asked, "timeout_s=1"]) == 1
    assert time.monotonic() - began < 30
    [row] = kept(tmp_path).rows
    assert (row.ended, row.said) == (False, ("it took longer than 3 s",))
    # On a busy machine a signal takes effect a moment after it was sent.
    ends_at = time.monotonic() + 30
    while is_running(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_summaries_are_read() -> None:
    assert what_it_said(CLEAN) == (0, 0, ())
    assert what_it_said(RACES)[:2] == (2, 3)
    errors, _, said = what_it_said(WRONG)
    assert errors == 3
    assert said == (
        "Invalid __global__ write of size 2 bytes",
        "at _norm_linear_kernel+0x1230 in norm_linear.py:60",
    )
    assert what_it_said("Device not supported")[0] is None


def test_reports_are_counted_by_the_kernel_that_they_begin_with(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [f"sanitizer={stub}", "sections=attention", f"results_dir={tmp_path}/results"]
    for says, tool, reported in (
        (RACES, "racecheck", {"_norm_linear_kernel_sm90": 1, "cub::Block": 1}),
        (WRONG, "memcheck", {"_norm_linear_kernel": 1}),
        (CLEAN, "synccheck", {}),
    ):
        monkeypatch.setenv("SAYS", says)
        main(["sanitize", *asked, f"tools={tool}"])
        assert max(kept_runs(tmp_path), key=lambda run: run.stamp.run_id).rows[0].reported == reported


def test_planted_races_must_be_found(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [f"sanitizer={stub}", "sections=planted", f"results_dir={tmp_path}/results"]
    for says, tool, code in (
        (RACES, "racecheck", 0),
        (CLEAN, "racecheck", 1),
        (CLEAN, "memcheck", 0),
        (RACES, "memcheck", 1),
    ):
        monkeypatch.setenv("SAYS", says)
        assert main(["sanitize", *asked, f"tools={tool}"]) == code


def test_an_interrupted_run_keeps_what_has_ended(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAYS", CLEAN)

    def interrupted(folder: Path, kind: str, run: SanitizeRun) -> None:
        write_run(folder, kind, run)
        if len(run.rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("experiments.sanitize.write_run", interrupted)
    assert main(["sanitize", f"sanitizer={stub}", "tools=memcheck", f"results_dir={tmp_path}/results"]) != 0
    assert len(kept(tmp_path).rows) == 2


def test_the_engine_is_brief_for_what_watches_every_access(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAYS", CLEAN)
    main(["sanitize", f"sanitizer={stub}", "sections=[engine,prefill]", f"results_dir={tmp_path}/results"])
    asked = Path(f"{stub}.asked").read_text().splitlines()
    brief = [line.split()[1] for line in asked if "--brief engine" in line and "--kernel-name regex=^_[^Z]" in line]
    assert sorted(brief) == ["racecheck", "synccheck"]
    assert sum("--brief" in line or "--kernel-name" in line for line in asked) == 2


def test_without_a_sanitizer_it_says_where_one_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("experiments.sanitize.INSTALL_PLACES", ())
    assert main(["sanitize"]) == 2
    assert "no compute-sanitizer answers here" in capsys.readouterr().err


def test_the_sections_are_what_can_be_launched() -> None:
    assert launched.SECTIONS == SECTIONS
    assert launched.SHAPES.keys() == set(SECTIONS[:-4])


@pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs Triton")
@pytest.mark.parametrize("op", ["norm_linear", "qkv_post"])
def test_a_section_launches_its_kernels(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `fused` in each form, and the baseline's."""
    seen: list[str] = []
    [kind, *others] = launched.forms(op).values()
    for one in (kind, *others):
        right = one.launch
        monkeypatch.setattr(
            one, "launch", lambda self, *a, right=right, **k: seen.append(type(self).__name__) or right(self, *a, **k)
        )
    monkeypatch.setattr(torch, "bfloat16", torch.float32 if INTERPRETED else torch.bfloat16)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        launched.launch_op(op, kind.SHAPES[0], (1, 2), device)
    assert set(seen) == {one.__name__ for one in (kind, *others)}


@pytest.mark.gpu
@pytest.mark.parametrize("section", launched.SECTIONS)
def test_each_section_runs(section: str) -> None:
    launched.launch(section, torch.device("cuda"))
    torch.cuda.synchronize()


def test_the_documents_show_each_tool_and_what_it_said(tmp_path: Path) -> None:
    assert "`fusebench sanitize` makes this table" in BLOCKS["sanitizer"](tmp_path)
    clean = Watched("memcheck", "attention", {"_decode_kernel": 3, "_merge_kernel": 1}, 0, 0, ("a warning",))
    lost = replace(clean, tool="racecheck", errors=None, said=("it took longer than 60 s",))
    found = replace(clean, section="planted", errors=3, reported={"_ring_control": 2, "_one_tile_control": 1})
    stamp = replace(new_stamp("fusebench sanitize", "cuda"), run_id="r")
    run = SanitizeRun(1, stamp, "2025.3.1", (clean, lost, found))
    (tmp_path / "docs/data").mkdir(parents=True)
    write_json(tmp_path / "docs/data/sanitize.json", plain.encode(run))
    text = BLOCKS["sanitizer"](tmp_path)
    assert "| attention | memcheck | 2 | 4 | 0 | 0 |" in text
    assert "| attention | racecheck | 2 | 4 |" in text
    assert "it took longer than 60 s" in text
    assert "a warning" not in text
    assert "| planted | memcheck | 2 | 4 | 3 | 0 | _ring_control: 2, _one_tile_control: 1 |" in text
    assert "`controls` is a false alarm" in text
    assert "compute-sanitizer 2025.3.1" in text
    assert "Kernels: `_decode_kernel`, `_merge_kernel`." in text
    assert json.loads((tmp_path / "docs/data/sanitize.json").read_text())["content"]["schema"] == 1
