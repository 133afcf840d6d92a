"""Shards as local processes: they measure what one process would, whatever dies, and leave nothing running."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cluster.hosts import device_groups
from experiments.cluster.records import read_records
from experiments.compose import compose
from experiments.environment import ROOT, Environment, Gpu
from experiments.errors import UserError
from experiments.records import Status
from experiments.run_end import how_to_go_on
from experiments.sweep import prepare, run_sweep
from tests.experiments.cluster.spread import measured, rows, unsharded
from tests.experiments.sweeping import arguments, outcome, sweep, worker_command
from tests.experiments.test_faults import PROGRAM, cells, wait_for, workers

LOCAL = ("cluster=local", "cluster.shards=2")


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.cluster.watch.POLL_S", 0.05)


def test_a_shard_that_is_killed_is_resumed_and_the_run_is_as_if_it_were_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = unsharded(tmp_path)
    capsys.readouterr()
    when = {"on": "measure", "variant": "fused", "times": 1}
    rules = [{"do": "kill_harness", "batch": 2, "round": 0, **when}, {"do": "preempt", "batch": 1, "round": 1, **when}]
    lost = sweep(tmp_path, *LOCAL, rules=rules)
    said = capsys.readouterr()
    assert lost.code == 1
    # Who is preempted goes on by itself; who is killed is lost.
    assert {r.shard for r in lost.results.values() if r.cell.point.batch == 1} == {"01-00"}
    assert sum(r.cell.point.batch == 1 for r in lost.results.values()) == 8
    assert sum(r.cell.point.batch == 2 for r in lost.results.values()) <= 3
    assert "ended before its time; its log is " in said.err
    assert said.err.strip().endswith(f"resume={lost.path.name}")

    found = sweep(tmp_path, *LOCAL, "resume=latest")
    assert (found.code, found.path) == (0, lost.path)
    assert measured(found) == measured(whole)
    assert rows(found) == rows(whole)
    assert {r.status for r in found.results.values()} == {Status.OK}
    # What the first launch finished stays; both shards of the second have part of what the killed one left.
    assert {r.shard for r in found.results.values()} == {"01-00", "02-00", "02-01"}
    assert not found.damaged
    assert not list(found.path.rglob("*.tmp"))
    assert "16/16" in capsys.readouterr().out

    # Nothing is left, so nothing is started.
    before = len(found.measured)
    assert sweep(tmp_path, *LOCAL, "resume=latest").code == 0
    assert len(outcome(tmp_path).measured) == before
    assert not workers(tmp_path)


def test_gpus_of_one_host_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard has one GPU; a host with two of them, and a torch that could use them, are pretended."""
    bin_, packages = tmp_path / "bin", tmp_path / "packages"
    (packages / "torch-2.13.0.dist-info").mkdir(parents=True)
    (packages / "torch-2.13.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.13.0\n")
    bin_.mkdir()
    smi = bin_ / "nvidia-smi"
    lines = "NVIDIA H200, 570.1, 143771\\n"
    smi.write_text(f'#!/bin/sh\ncase "$1" in --id=*) printf "{lines}";; *) printf "{lines}{lines}";; esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(packages), prepend=os.pathsep)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    found = sweep(tmp_path, "devices=[1,0]", "device=cuda")
    assert found.code == 0
    assert (found.manifest.gpu, found.manifest.machine["gpus"]) == ("NVIDIA H200", "2")
    assert [(s.id, s.device, s.gpu) for s in read_records(found.path)[0]] == [
        ("01-00", "1", "NVIDIA H200"),
        ("01-01", "0", "NVIDIA H200"),
    ]
    by_point = {r.cell.point: r.shard for r in found.results.values()}
    assert all(by_point[r.cell.point] == r.shard for r in found.results.values())
    with pytest.raises(UserError, match=r"devices=\[0, 2\]: there is no GPU 2, only \[0, 1\]"):
        sweep(tmp_path, "devices=[0,2]", "device=cuda")
    with pytest.raises(UserError, match=r"cluster.shards=3 of 1 GPUs each need more than the GPUs \[0, 1\]"):
        sweep(tmp_path, "cluster=local", "cluster.shards=3", "device=cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=MIG-1234 must have numbers"):
        sweep(tmp_path, "cluster=local", "device=cuda")


def test_tensor_parallel_cells_take_several_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    four = Environment("3.12", "Linux", "a CPU", 2, Gpu("NVIDIA H200", "1", 141 << 30, 4), {"torch": "2.13.0"})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def groups(*overrides: str) -> list[list[int]]:
        asked = compose(arguments(tmp_path, "device=cuda", "cluster=local", *overrides))
        return device_groups(prepare(asked, four))

    assert groups("cluster.gpus_per_node=2") == [[0, 1], [2, 3]]
    assert groups("cluster.gpus_per_node=2", "devices=[3,1,0]") == [[3, 1]]
    assert groups("cluster.shards=3") == [[0], [1], [2]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert groups() == [[5], [7]]


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_ctrl_c_cancels_and_keeps_what_is_finished(tmp_path: Path, send: Callable[[int, int], None]) -> None:
    """To the launcher alone, and as a terminal does, to all; what submitit's processes say to it is for their log."""
    asked = arguments(tmp_path, "protocol.rounds=8", *LOCAL)
    command = [sys.executable, "-c", PROGRAM, json.dumps([asked, worker_command(tmp_path, [])])]
    environment = os.environ | {"FAKE_CELL_S": "0.1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    running = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)
    assert wait_for(lambda: len(cells(tmp_path)) > 2)
    send(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    stopped = outcome(tmp_path)
    go_on = how_to_go_on(asked, stopped.path.name)
    assert err.strip() == f"cancelled; every finished cell is kept; go on with: {go_on}"
    [log] = stopped.path.glob("logs/jobs/01/submitit.err")
    assert "KeyboardInterrupt" in log.read_text()
    assert wait_for(lambda: not workers(tmp_path), 10)
    assert {r.status for r in stopped.results.values()} == {Status.OK}
    assert 2 < len(stopped.results) < 64
    assert len(cells(tmp_path)) == len(stopped.results)


def test_without_waiting_it_says_how_to_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = sweep(tmp_path, *LOCAL, "cluster.wait=false")
    assert started.code == 0
    said = capsys.readouterr().out
    for words in ("2 shards submitted, jobs ", "follow them: tail -F ", "cancel them: kill -INT ", "--terminal"):
        assert words in said
    assert f"what is missing once they ended: fusebench sweep {' '.join(['experiment=quick'])}" in said
    assert wait_for(lambda: len(cells(tmp_path)) == 16, 60)
    assert wait_for(lambda: not workers(tmp_path), 10)


def test_one_shard_is_one_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = arguments(tmp_path, "cluster=slurm", "cluster.shards=1", "batches=1", "lengths=8", "dry_run=true")
    assert run_sweep(compose(asked), asked, ["false"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["4 cells in 1 shard", "shard 01-00: 1 point, 4 cells"]


def test_dry_run_says_who_measures_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = arguments(tmp_path, "cluster=slurm", "cluster.shards=2", "dry_run=true")
    assert run_sweep(compose(asked), asked, ["false"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "16 cells in 2 shards"
    assert [line for line in printed if line.startswith("shard")] == [
        "shard 01-00: 2 points, 8 cells",
        "shard 01-01: 2 points, 8 cells",
    ]
    assert len({line.strip() for line in printed}) == 1 + 2 + 16
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["devices=[0,1]"], r"devices=\[0, 1\] spreads points over GPUs, and this sweep runs on a CPU; drop it"),
        (["devices=[0,0]"], "devices has 0 twice"),
        (["devices=[-1]"], "devices=-1 must be 0 or more"),
        (["devices=[0]", "cluster=slurm"], "devices is for this host; on Slurm each shard gets"),
        (["cluster.shards=2"], "nothing is spread: add cluster=slurm, cluster=local or devices"),
        (["cluster=local", "cluster.shards=0"], "cluster.shards=0 must be positive"),
        (["cluster=slurm", "cluster.gpus_per_node=-1"], "cluster.gpus_per_node=-1 must be 0 or more"),
        (["cluster=slurm", "cluster.kind=lsf"], "cluster.kind=lsf is not one of none, local, slurm"),
    ],
)
def test_what_cannot_be_spread_is_named(tmp_path: Path, overrides: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        sweep(tmp_path, *overrides)
    assert not list(tmp_path.glob("results/*"))


def test_missing_submitit_and_missing_slurm_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="cluster=slurm needs Slurm's commands on this machine, and there is no srun"):
        sweep(tmp_path, "cluster=slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"cluster=local needs submitit; install the extra: pip"):
        sweep(tmp_path, "cluster=local")
    assert not list(tmp_path.glob("results/*/*"))
