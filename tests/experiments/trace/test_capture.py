"""A worker under nsys: its command line, its environment, its pipes; and a real capture of NVTX ranges on a CPU."""

import sys
import time
from pathlib import Path

import pytest

from experiments.compose import compose
from experiments.environment import ROOT
from experiments.errors import UserError
from experiments.messages import Load, Ready, Trace, Traced
from experiments.records import Cell, Point
from experiments.trace.attribution import Owner
from experiments.trace.capture import TracedWorker, profile_arguments, reduced_environment, traced_command
from experiments.trace.nsys import Nsys, export_sqlite, find_nsys, finish_report
from experiments.trace.reader import read_trace
from experiments.trace.session import check_content
from experiments.trace.sweep import sweep
from experiments.worker_process import WorkerLost

CELL = Cell(Point("tiny", "decode", 1, 16), "baseline", 0)
WORKER = Path(__file__).with_name("tracing_worker.py")


def worker(*mode: str) -> list[str]:
    return [sys.executable, "-P", str(WORKER), *mode]


def test_nsys_is_told_to_record_one_window_and_nothing_else() -> None:
    assert profile_arguments(Path("/tmp/x/capture")) == [
        "profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none", "--cuda-graph-trace=node",
        "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--wait=primary", "--force-overwrite=true",
        "--output=/tmp/x/capture",
    ]  # fmt: skip


def test_a_window_can_be_a_range() -> None:
    arguments = profile_arguments(Path("capture"), window="replay", activities="nvtx")
    assert "--nvtx-capture=replay@*" in arguments
    assert not any("cuda" in argument for argument in arguments)


def test_secrets_and_strangers_stay_out_of_the_environment() -> None:
    environ = {
        "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "TRITON_CACHE_DIR": "/cache", "PYTHONPATH": "/lib",
        "HF_HOME": "/hf", "HF_TOKEN": "s", "AWS_SECRET_ACCESS_KEY": "s", "TORCH_API_KEY": "s", "EDITOR": "vi",
        "LD_LIBRARY_PATH": "/l",
    }  # fmt: skip
    kept = reduced_environment(environ)
    assert set(kept) == {
        "PATH", "CUDA_VISIBLE_DEVICES", "TRITON_CACHE_DIR", "PYTHONPATH", "HF_HOME", "LD_LIBRARY_PATH",
    }  # fmt: skip
    assert kept["PYTHONPATH"] == f"{ROOT}:/lib"


@pytest.fixture
def chatty_nsys(tmp_path: Path) -> Nsys:
    """Runs its target as nsys does: output mixed with its own, on its own pipes."""
    command = tmp_path / "chatty"
    skip = 'while [ "${1#-}" != "$1" ] || [ "$1" = profile ]; do shift; done'
    command.write_text(f"#!/bin/sh\n{skip}\nprintf '[1/1] 0%%'\n\"$@\" </dev/null | cat\necho done; env >&2\n")
    command.chmod(0o755)
    return Nsys(command, "2023.4", library_path="/kit/lib")


def ask_load(process: TracedWorker) -> None:
    config = compose(["experiment=quick"])
    load = Load("tiny", config.variants[0], "cpu", "float32", "auto", 0, (), (), config.protocol)
    assert isinstance(process.ask(load, 60, lambda _: None), Ready)


def test_messages_go_around_the_profilers_own_output(tmp_path: Path, chatty_nsys: Nsys) -> None:
    environ = {"PATH": "/usr/bin:/bin", "SECRET": "hunter2"}
    command = traced_command(chatty_nsys, profile_arguments(tmp_path / "capture"), environ, worker())
    process = TracedWorker(tmp_path / "log", command)
    ask_load(process)
    process.finish(60)
    log = (tmp_path / "log").read_text()
    assert "[1/1] 0%" in log
    assert "a library says hello" in log
    assert "LD_LIBRARY_PATH=/kit/lib" in log
    assert "hunter2" not in log


def test_a_dead_worker_is_noticed_through_the_profiler(tmp_path: Path, chatty_nsys: Nsys) -> None:
    arguments = profile_arguments(tmp_path / "capture")
    process = TracedWorker(tmp_path / "log", traced_command(chatty_nsys, arguments, worker=worker("die")))
    ask_load(process)
    with pytest.raises(WorkerLost):
        process.ask(Trace(CELL, 2), 60, lambda _: None)


def test_a_report_that_never_comes_is_given_up(tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.write_text("#!/bin/sh\nexec sleep 600\n")
    stuck.chmod(0o755)
    process = TracedWorker(tmp_path / "log", traced_command(Nsys(stuck, "2023.4"), [], worker=worker()))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no report 0\.3 s after"):
        process.finish(0.3)
    assert time.monotonic() - start < 30


@pytest.fixture(scope="module")
def nsys() -> Nsys:
    try:
        return find_nsys()
    except UserError as error:
        pytest.skip(f"no nsys to capture with: {error}")


@pytest.fixture(scope="module")
def captured(nsys: Nsys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real capture of a worker that pushes ranges, its window opened by the first of them, exported."""
    folder = tmp_path_factory.mktemp("capture")
    arguments = profile_arguments(folder / "capture", window=f"cell/{CELL.id}", activities="nvtx")
    process = TracedWorker(folder / "log", traced_command(nsys, arguments, worker=worker()))
    ask_load(process)
    assert process.ask(Trace(CELL, 3), 60, lambda _: None) == Traced(CELL, 3)
    process.finish(120)
    return export_sqlite(nsys, finish_report(nsys, folder / "capture.nsys-rep"), folder / "capture.sqlite")


def test_a_real_capture_holds_the_ranges_pushed(captured: Path, nsys: Nsys) -> None:
    trace = read_trace(captured)
    assert trace.product.startswith(nsys.version[:6])
    ranges = trace.ranges
    names = [trace.strings[name] for name in ranges["name"]]
    assert names.count("op/linear") == names.count("rung/live") == 3
    assert {f"step/{i}" for i in range(3)} <= set(names)
    # 1 ms of sleep in each; no clock is that wrong.
    inner = ranges[[name == "op/linear" for name in names]]
    assert ((inner["end"] - inner["start"]) >= 1_000_000).all()
    swept = sweep(ranges)
    middle = ((inner["start"] + inner["end"]) // 2).to_numpy()
    paths = [swept.paths[i] for i in swept.path_ids(inner["thread"].to_numpy(), middle)]
    owners = [Owner.of(trace.strings[name] for name in path) for path in paths]
    assert [(o.cell, o.replay, o.phase, o.op) for o in owners] == [(CELL.id, True, "forward", "linear")] * 3
    assert [name for o in owners for name in o.path if name.startswith("step/")] == ["step/0", "step/1", "step/2"]


def test_a_real_capture_of_a_cpu_has_no_kernels_and_says_so(captured: Path, nsys: Nsys) -> None:
    with pytest.raises(UserError, match="holds no kernel: the profiler saw no CUDA"):
        check_content(read_trace(captured), CELL, "cuda", nsys.version)


def test_a_window_that_never_opens_is_explained(nsys: Nsys, tmp_path: Path) -> None:
    arguments = profile_arguments(tmp_path / "capture", window="never", activities="nvtx")
    process = TracedWorker(tmp_path / "log", traced_command(nsys, arguments, worker=worker("no-window")))
    ask_load(process)
    process.ask(Trace(CELL, 1), 60, lambda _: None)
    process.finish(120)
    with pytest.raises(UserError, match="the profiler window never opened"):
        finish_report(nsys, tmp_path / "capture.nsys-rep")
