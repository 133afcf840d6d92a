"""Shards as jobs of a real Slurm of one node: killed, requeued, cancelled, and still one run."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.cluster.executors import slurm_queue
from experiments.errors import UserError
from experiments.records import Status
from tests.experiments.cluster.one_node_slurm import CannotStart, one_node_slurm, why_not
from tests.experiments.cluster.spread import measured, rows, unsharded
from tests.experiments.sweeping import outcome, sweep
from tests.experiments.test_faults import wait_for, workers

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is one")

SLURM = ("cluster=slurm", "cluster.shards=2", "cluster.gpus_per_node=0", "cluster.timeout_min=5")


@pytest.fixture(scope="module")
def _slurm() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, contextlib.ExitStack() as stack:
        try:
            environment = stack.enter_context(one_node_slurm(Path(folder)))
        except CannotStart as error:
            pytest.skip(str(error))
        yield environment


@pytest.fixture(autouse=True)
def _here(_slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, _slurm[name])
    monkeypatch.setattr("experiments.cluster.watch.POLL_S", 0.1)


def test_one_shard_is_requeued_and_one_is_lost_and_the_run_is_as_if_it_were_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = unsharded(tmp_path)
    rules = [
        {"do": "requeue", "on": "measure", "variant": "fused", "batch": 1, "round": 1, "times": 1},
        {"do": "kill_harness", "on": "measure", "variant": "fused", "batch": 2, "round": 1, "times": 1},
    ]
    lost = sweep(tmp_path, *SLURM, rules=rules)
    said = capsys.readouterr()
    assert lost.code == 1
    requeued = {name: r for name, r in lost.results.items() if r.cell.point.batch == 1}
    assert len(requeued) == 8
    assert {(r.status, r.shard) for r in requeued.values()} == {(Status.OK, "01-00")}
    assert "pending" in said.out
    # The first round of the killed shard stays, and the cell of the second that came before the kill.
    assert 4 <= sum(r.cell.point.batch == 2 for r in lost.results.values()) <= 7
    assert "ended before its time; its log is " in said.err
    # The requeued job went on: the first round was measured once.
    first_round = [cell for _, cell in lost.measured if ".b1." in cell and cell.endswith("r00")]
    assert sorted(first_round) == sorted(set(first_round))

    found = sweep(tmp_path, *SLURM, "resume=latest")
    assert (found.code, found.path) == (0, lost.path)
    assert measured(found) == measured(whole)
    assert rows(found) == rows(whole)
    assert found.manifest.machine == whole.manifest.machine
    assert found.manifest.weights_hash == whole.manifest.weights_hash
    assert not found.damaged
    assert not workers(tmp_path)


def test_a_run_whose_jobs_are_queued_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, *SLURM, "cluster.wait=false", "cluster.sbatch.hold=true").code == 0
    said = capsys.readouterr().out
    name = f"fusebench-quick-{outcome(tmp_path).path.name}"
    assert f"follow them: squeue --name={name}" in said
    queue = slurm_queue(name)
    assert queue
    assert list(queue.values()) == ["pending", "pending"]
    with pytest.raises(UserError, match=rf"jobs of this run are still queued or running .*scancel --name={name}"):
        sweep(tmp_path, *SLURM, "resume=latest")
    subprocess.run(said.partition("cancel them: ")[2].splitlines()[0].split(), check=True)
    assert wait_for(lambda: slurm_queue(name) == {})


def test_what_slurm_does_not_take_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Slurm did not take the shards: .*[Pp]artition"):
        sweep(tmp_path, *SLURM, "cluster.partition=nonsense")
    assert not list(tmp_path.glob("results/*/*"))
