"""A worker process can be ended in whatever state it is, and its last words are kept."""

import os
import sys
import time
from pathlib import Path

import pytest

from experiments.compose import compose
from experiments.environment import ROOT
from experiments.errors import UserError
from experiments.messages import Exit, Load, Progress, Verified, Verify, to_line
from experiments.records import Point, Status
from experiments.worker_process import WorkerLost, WorkerProcess, without_paths
from tests.experiments.sweeping import worker_command

CONFIG = compose(["experiment=quick"])


def python(tmp_path: Path, program: str) -> WorkerProcess:
    return WorkerProcess(tmp_path / "log", [sys.executable, "-c", program])


def ignore(_: str) -> None:
    """Progress that nobody watches."""


def test_progress_is_passed_on_before_the_answer(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path / "log", worker_command(tmp_path, []))
    said: list[str] = []
    assert isinstance(worker.ask(Verify(), 30, said.append), Verified)
    worker.close()
    assert (said, worker._process.returncode) == ([], 0)

    chatty = python(tmp_path, f"import sys; sys.stdout.buffer.write({to_line(Progress('halfway'))!r})")
    with pytest.raises(WorkerLost, match="the worker exited with code 0"):
        chatty.ask(Verify(), 30, said.append)
    assert said == ["halfway"]


def test_a_worker_that_never_reads_is_given_up(tmp_path: Path) -> None:
    # More than a pipe holds.
    points = tuple(Point("m", "decode", batch, 1) for batch in range(1, 5000))
    load = Load("m", CONFIG.variants[0], "cpu", "float32", "auto", 0, points, (), CONFIG.protocol)
    worker = python(tmp_path, "import time; time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(WorkerLost) as raised:
        worker.ask(load, 0.5, ignore)
    assert raised.value.status is Status.TIMEOUT
    assert time.monotonic() - start < 10


def test_closing_ends_a_worker_that_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.worker_process.EXIT_TIMEOUT_S", 0.3)
    worker = python(tmp_path, "import time; time.sleep(60)")
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_a_kill_takes_the_children_too(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    worker = python(tmp_path, program)
    deadline = time.monotonic() + 30
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.kill()
    child = Path("/proc") / (tmp_path / "child").read_text()
    deadline = time.monotonic() + 10
    while child.exists() and " Z " not in (child / "stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_last_words_are_this_workers_own(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of an earlier worker\n")
    worker = python(tmp_path, f"import sys; sys.exit('no model in {ROOT}/models or {Path.home()}/x')")
    with pytest.raises(WorkerLost) as raised:
        worker.ask(Exit(), 30, ignore)
    assert raised.value.reason == "the worker exited with code 1: no model in models or ~/x"
    silent = python(tmp_path, "import os; os._exit(4)")
    with pytest.raises(WorkerLost, match=r"^the worker exited with code 4$"):
        silent.ask(Verify(), 30, ignore)


def test_a_log_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        WorkerProcess(tmp_path / "missing" / "log", ["true"])


def test_places_on_this_machine_are_left_out() -> None:
    assert without_paths(f"{ROOT}/engine/ops.py and {Path.home()}/models") == "engine/ops.py and ~/models"


def test_a_home_that_is_the_root_leaves_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert without_paths("3 tokens/s of /models") == "3 tokens/s of /models"
