"""Finding ncu, and one cell under it from the worker's start to the counters, with an ncu that hands out a page."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments import plain
from experiments.compose import compose
from experiments.durable import read_json
from experiments.errors import UserError
from experiments.models import Model
from experiments.records import Cell, Point
from experiments.trace import command, counting
from experiments.trace import ncu as module
from experiments.trace.counters import METRICS, Counters
from experiments.trace.counting import Counter
from experiments.trace.ncu import MENDS, MOST_LAUNCHES, Ncu, find_ncu, profile_arguments, why_nothing
from experiments.trace.options import Options, take_options
from experiments.trace.session import CannotTrace
from experiments.workplace import Workplace
from tests.experiments.trace.test_nsys import path_with, script

WORKER = Path(__file__).with_name("tracing_worker.py")
PAGE = Path(__file__).parent / "data" / "ncu_raw_page.csv"
VERSION = "NVIDIA (R) Nsight Compute Command Line Profiler\nCopyright (c) 2018-2025\nVersion 2025.3.1.0 (build 1)"
CELL = Cell(Point("tiny", "decode", 1, 16), "baseline", 0)
# As ncu does it: the target's output is mixed with its own, and it names the report itself.
STAND_IN = """#!{python}
import shutil, subprocess, sys
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print({version!r})
elif "--import" in arguments:
    assert open(arguments[arguments.index("--import") + 1]).read() == "report"
    sys.stdout.write(open({page!r}).read())
else:
    output = next(a.partition("=")[2] for a in arguments if a.startswith("--export="))
    print({say!r})
    target = arguments[arguments.index("/bin/sh"):]
    code = subprocess.run(target, pass_fds=(3, 4)).returncode
    if {report}:
        open(output + ".ncu-rep", "w").write("report")
    sys.exit(code)
"""


def stand_in(folder: Path, say: str = "==PROF== Connected", report: bool = True) -> Path:
    path = folder / "ncu"
    text = STAND_IN.format(python=sys.executable, version=VERSION, page=str(PAGE), say=say, report=report)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def no_installed_ncu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTALL_PLACES", ())


def test_the_one_asked_for_comes_before_the_one_on_path(tmp_path: Path) -> None:
    (tmp_path / "on_path").mkdir()
    on_path = stand_in(tmp_path / "on_path")
    asked = script(tmp_path / "kit" / "nsight-compute" / "2026.1.0" / "ncu", "echo Version 2026.1.0.0")
    environ = path_with(on_path.parent)
    assert find_ncu(None, environ) == Ncu(on_path, "2025.3.1.0")
    assert find_ncu(str(asked), environ).version == "2026.1.0.0"
    assert find_ncu(str(tmp_path / "kit"), environ).path == asked
    assert find_ncu(None, {**environ, "FUSEBENCH_NCU": str(asked)}).path == asked


def test_what_is_missing_is_said_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ncu is not on this machine; install Nsight Compute"):
        find_ncu(None, path_with())
    with pytest.raises(UserError, match="no-such-ncu: there is no ncu"):
        find_ncu("no-such-ncu", path_with())
    broken = script(tmp_path / "ncu", "echo cannot start >&2; exit 1")
    with pytest.raises(UserError, match="does not run as ncu: cannot start"):
        find_ncu(str(broken), path_with())


def test_ncu_counts_the_workers_window_graph_by_node_and_leaves_clocks_alone() -> None:
    arguments = profile_arguments(Path("/tmp/x/capture"))
    assert arguments[:5] == [
        "--profile-from-start=off", "--target-processes=all", "--graph-profiling=node", "--clock-control=none",
        "--cache-control=all",
    ]  # fmt: skip
    assert f"--metrics={','.join(METRICS.values())}" in arguments
    assert arguments[-1] == "--export=/tmp/x/capture"
    assert f"--launch-count={MOST_LAUNCHES}" in arguments


@pytest.mark.parametrize("words", list(MENDS))
def test_what_ncu_complains_of_has_its_mend(words: str) -> None:
    assert why_nothing(f"==PROF== x\n==ERROR== {words} - and more\n") == f"ncu counted nothing: {MENDS[words]}"
    assert why_nothing("==PROF== Connected") == ""


def counter(tmp_path: Path, path: Path, *mode: str) -> Counter:
    config = replace(compose(["experiment=quick", "models=[tiny]"]), device="cuda", dtype="bfloat16")
    (tmp_path / "raw").mkdir()
    worker = [sys.executable, "-P", str(WORKER), *mode]
    return Counter(Workplace(config, tmp_path, lambda text: None, worker), 1, Ncu(path, "2025.3.1"), tmp_path / "raw")


def test_what_ncu_was_told_to_leave_out_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many kernels as it was told to stop after."""
    monkeypatch.setattr(counting, "MOST_LAUNCHES", 4)
    under = counter(tmp_path, stand_in(tmp_path))
    assert under.count(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL).first == 4


def test_from_a_worker_under_ncu_to_its_counters(tmp_path: Path) -> None:
    under = counter(tmp_path, stand_in(tmp_path))
    counters = under.count(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL)
    assert (counters.cell, counters.profiler_version, counters.steps) == (CELL, "2025.3.1", 1)
    assert counters.first == 0
    assert [row.name for row in counters.rows] == ["_norm_linear_kernel", "reduce", "_norm_linear_kernel"]
    assert [file.name for file in (tmp_path / "raw").iterdir()] == [f"{CELL.id}.ncu-rep"]
    assert "a library says hello" in (tmp_path / f"{CELL.id}.ncu.log").read_text()


DENIED = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"


@pytest.mark.parametrize(
    ("say", "complaint"),
    [(DENIED, "this user may not read the GPU's counters: run as root"), ("==PROF== x", "ncu wrote no report: look")],
)
def test_no_report_is_explained_from_the_log(tmp_path: Path, say: str, complaint: str) -> None:
    under = counter(tmp_path, stand_in(tmp_path, say, report=False))
    with pytest.raises(UserError, match=complaint):
        under.count(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL)


@pytest.mark.parametrize(("say", "kind"), [(DENIED, UserError), ("==PROF== x", CannotTrace)])
def test_a_worker_that_dies_is_the_cells_trouble_unless_ncu_says_otherwise(
    tmp_path: Path, say: str, kind: type[Exception]
) -> None:
    under = counter(tmp_path, stand_in(tmp_path, say), "die")
    with pytest.raises(kind):
        under.count(Model("tiny", "tiny"), under.workplace.config.variants[0], CELL)


def test_the_command_stores_and_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("experiment=quick", "models=[tiny]", "batches=[1]", "lengths=[8]", "device=cpu", "workloads=[decode]")
    config = compose([*small, "variants=[baseline,folded]", f"results_dir={tmp_path / 'results'}"])
    console = Console(width=240, file=io.StringIO(), record=True)
    (tmp_path / "bin").mkdir()
    path = stand_in(tmp_path / "bin")
    with pytest.raises(UserError, match="profiler=ncu sees kernels of a GPU only"):
        command.run_trace(config, Options(profiler="ncu", ncu=str(path)), console)
    monkeypatch.setattr(command, "choose_profiler", lambda *_: find_ncu(str(path)))
    worker = [sys.executable, "-P", str(WORKER)]
    assert command.run_trace(config, Options(profiler="ncu", steps=1), console, worker) == 0
    stored = sorted(tmp_path.glob("results/*/*/counters/*.json"))
    assert [file.stem for file in stored] == [f"tiny.decode.b1.l8.{v}.r00" for v in ("baseline", "folded")]
    assert plain.decode(Counters, read_json(stored[0])).rows[0].values["registers"] == 96
    printed = console.export_text()
    assert "2 cells under ncu 2025.3.1.0" in printed
    assert "long scoreboard 20.5" in printed


def test_ncu_takes_one_step_unless_told_otherwise() -> None:
    assert take_options(["profiler=ncu"])[0].steps == 1
    assert take_options(["profiler=ncu", "steps=3", "ncu=/x"])[0] == Options(profiler="ncu", steps=3, ncu="/x")
