"""One cell under nsys, from the worker's start to the ledger, with an nsys that hands out a prepared export."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.compose import compose
from experiments.errors import UserError
from experiments.models import Model
from experiments.records import Cell, Point
from experiments.trace import nsys as nsys_module
from experiments.trace.nsys import Nsys
from experiments.trace.reader import read_trace
from experiments.trace.session import CannotTrace, Tracer, check_content
from experiments.workplace import Workplace

Synthetic = Callable[..., Any]

CELL = Cell(Point("tiny", "decode", 1, 16), "baseline", 0)
WORKER = Path(__file__).with_name("tracing_worker.py")
STAND_IN = """#!{python}
import shutil, subprocess, sys
arguments = sys.argv[1:]
if arguments[0] == "profile":
    output = next(a.partition("=")[2] for a in arguments if a.startswith("--output="))
    target = arguments[arguments.index("/bin/sh"):]
    code = subprocess.run(target, pass_fds=(3, 4)).returncode
    if {report}:
        open(output + ".nsys-rep", "w").close()
    sys.exit(code)
shutil.copyfile({export!r}, arguments[arguments.index("-o") + 1])
"""


def stand_in(tmp_path: Path, export: Path, report: bool = True) -> Nsys:
    command = tmp_path / "nsys"
    command.write_text(STAND_IN.format(python=sys.executable, export=str(export), report=report))
    command.chmod(0o755)
    return Nsys(command, "2023.4.4.54")


def replayed_graph(synthetic: Synthetic, cell: str = CELL.id) -> Path:
    """A graph of one layer captured in the window, replayed in two steps; then the token is sampled."""
    export = synthetic()
    export.range(f"cell/{cell}", 0, 10_000)
    export.range("step/5", 10, 900)
    export.range("layer/0", 20, 400)
    export.range("op/norm_linear", 100, 200)
    export.node(11, 150)
    export.node(21, 500, original=11)
    export.range("replay", 1000, 9000)
    for i, at in enumerate((1000, 2000)):
        export.range(f"step/{6 + i}", at, at + 900)
        export.range("phase/forward", at + 10, at + 400)
        export.call(i, at + 20, at + 30, name="cudaGraphLaunch_v10000")
        export.kernel("norm_linear_kernel", i, at + 100, at + 300, graphNodeId=21)
        export.range("phase/sample", at + 410, at + 500)
        export.call(10 + i, at + 420, at + 430)
        export.kernel("argmax", 10 + i, at + 450, at + 460)
    return Path(export.close())


def tracer(tmp_path: Path, nsys: Nsys, *mode: str) -> Tracer:
    config = replace(compose(["experiment=quick", "models=[tiny]"]), device="cuda", dtype="bfloat16")
    (tmp_path / "raw").mkdir()
    worker = [sys.executable, "-P", str(WORKER), *mode]
    return Tracer(Workplace(config, tmp_path, lambda text: None, worker), 2, nsys, tmp_path / "raw")


def test_from_a_worker_under_nsys_to_its_ledger(tmp_path: Path, synthetic: Synthetic) -> None:
    under = tracer(tmp_path, stand_in(tmp_path, replayed_graph(synthetic)))
    ledger = under.trace(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL, untraced_step_ms=0.0008)
    assert (ledger.cell, ledger.profiler, ledger.steps, ledger.coverage) == (CELL, "nsys", 2, 1.0)
    rows = [(row.name, row.phase, row.layer, row.op, row.count) for row in ledger.kernels]
    assert rows == [
        ("norm_linear_kernel", "forward", "0", "norm_linear", 2),
        ("argmax", "sample", None, None, 2),
    ]
    assert (ledger.traced_step_ms, ledger.inflation) == (pytest.approx(0.001), pytest.approx(1.25))
    assert {file.name for file in (tmp_path / "raw").iterdir()} == {f"{CELL.id}.nsys-rep", f"{CELL.id}.sqlite"}
    assert "a library says hello" in (tmp_path / f"{CELL.id}.trace.log").read_text()


def test_a_capture_of_another_cell_is_refused(tmp_path: Path, synthetic: Synthetic) -> None:
    under = tracer(tmp_path, stand_in(tmp_path, replayed_graph(synthetic, "another")))
    with pytest.raises(UserError, match=f"no range cell/{CELL.id}: it is of another cell"):
        under.trace(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL, None)


def test_no_report_is_the_profilers_trouble(tmp_path: Path, synthetic: Synthetic) -> None:
    under = tracer(tmp_path, stand_in(tmp_path, replayed_graph(synthetic), report=False))
    with pytest.raises(UserError, match="the profiler window never opened"):
        under.trace(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL, None)


@pytest.mark.parametrize(("mode", "reason"), [("fail", "out of memory"), ("die", "worker exited with code")])
def test_a_failed_worker_is_the_cells_trouble(tmp_path: Path, synthetic: Synthetic, mode: str, reason: str) -> None:
    under = tracer(tmp_path, stand_in(tmp_path, replayed_graph(synthetic)), mode)
    with pytest.raises(CannotTrace, match=reason):
        under.trace(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL, None)


def test_kernels_without_ranges_point_at_nvtx(synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsys_module, "version", lambda _: "0.2.17")
    export = synthetic()
    export.call(1, 10, 20)
    export.kernel("gemm", 1, 30, 40)
    trace = export.read()
    with pytest.raises(
        UserError, match=r"no NVTX range.*drops every range of nvtx 0\.2\.17.*pip install nvtx==0\.2\.11"
    ):
        check_content(trace, CELL, "cuda", "2023.4.4.54")


def test_kernels_that_no_call_launched_are_refused(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range(f"cell/{CELL.id}", 0, 100)
    export.kernel("gemm", 1, 30, 40)
    export.database.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET correlationId = NULL")
    with pytest.raises(UserError, match="none can be joined to its launch"):
        check_content(export.read(), CELL, "cuda", "2023.4.4.54")


def test_a_whole_capture_passes(synthetic: Synthetic) -> None:
    check_content(read_trace(replayed_graph(synthetic)), CELL, "cuda", "2023.4.4.54")
