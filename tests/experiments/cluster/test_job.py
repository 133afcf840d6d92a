"""A shard measures what is missing of it, on a machine like the run's, and keeps what it learnt to itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.cluster import job as job_module
from experiments.cluster.job import ShardJob, only
from experiments.cluster.records import ShardRecord, merged, read_records, write_record
from experiments.cluster.shards import Shard, make_shards
from experiments.compose import compose
from experiments.environment import Code, Environment, Gpu
from experiments.errors import UserError
from experiments.manifest import Manifest, new_manifest
from experiments.records import CellResult, Status
from experiments.store import RunStore, create_run, read_manifest, read_run, resume_run
from experiments.sweep import Prepared, Sweep, prepare
from tests.experiments.sweeping import Rules, arguments, outcome, sweep, worker_command

CODE = Code("abcdef0123456789", False, "0" * 64)
H200 = Environment("3.12", "Linux", "a CPU", 2, Gpu("NVIDIA H200", "1", 141 << 30, 1), {"torch": "2.13.0"})
H100 = replace(H200, gpu=Gpu("NVIDIA H100", "1", 80 << 30, 1))


class Node:
    """What the next shard finds itself on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.become(H200, "one")

    def become(self, environment: Environment, name: str) -> None:
        self._patch.setattr("experiments.sweep.machine", lambda: environment)
        self._patch.setenv("SLURMD_NODENAME", name)
        self._patch.setenv("CUDA_VISIBLE_DEVICES", "0")


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(job_module, "GRACE_S", 0)
    monkeypatch.setattr(job_module, "code", lambda: CODE)
    return Node(monkeypatch)


class Launched:
    """A run that a launcher made without knowing its nodes, and its two shards."""

    def __init__(self, tmp_path: Path, *overrides: str, rules: Rules | None = None) -> None:
        config = compose(arguments(tmp_path, "cluster=slurm", "device=cuda", *overrides))
        self.prepared: Prepared = prepare(config)
        config = self.prepared.config
        manifest = new_manifest(config, self.prepared.models, self.prepared.plan, self.prepared.environment, CODE)
        self.wanted: Manifest = replace(manifest, gpu="", machine={})
        with create_run(tmp_path / "results", self.wanted) as store:
            self.path = store.path
        self.shards: tuple[Shard, ...] = make_shards(self.prepared.plan, self.prepared.plan.cells, 2)
        self._worker = tuple(worker_command(tmp_path, rules or []))

    def run(self, number: int) -> str:
        """Run one shard here; returns its complaint."""
        return ShardJob(str(self.path), self.shards[number], self.prepared.config, self._worker)()


def test_two_shards_make_one_run(tmp_path: Path, node: Node) -> None:
    launched = Launched(tmp_path)
    assert [launched.run(0), launched.run(1)] == ["", ""]
    manifest, results, problems = read_run(launched.path)
    assert not problems
    assert {r.cell for r in results} == set(launched.prepared.plan.cells)
    for result in results:
        assert result.status is Status.OK
        assert result.cell.point in next(s for s in launched.shards if s.id == result.shard).points
    assert (manifest.gpu, manifest.machine["cpu"]) == ("NVIDIA H200", "a CPU")
    assert (manifest.weights, manifest.weights_hash) == ({"tiny": "fake"}, {"tiny": "0123"})
    told = [(s.id, s.node, s.device, s.weights_hash) for s in read_records(launched.path)[0]]
    assert told == [(shard.id, "one", "0", {"tiny": "0123"}) for shard in launched.shards]
    # Each shard in the order planned.
    for shard in launched.shards:
        asked = [cell for _, cell in outcome(tmp_path).measured if cell in {c.id for c in cells_of(launched, shard)}]
        assert asked == [cell.id for cell in cells_of(launched, shard)]


def cells_of(launched: Launched, shard: Shard) -> tuple[object, ...]:
    return only(launched.prepared, shard.points).plan.cells


def test_a_shard_that_starts_again_measures_what_is_missing(tmp_path: Path, node: Node) -> None:
    launched = Launched(tmp_path, rules=[{"do": "wrong", "on": "verify", "variant": "fused"}])
    launched.run(0)
    before = len(outcome(tmp_path).measured)
    assert launched.run(0) == ""
    assert len(outcome(tmp_path).measured) == before
    # Half of a pair goes, so the whole round is measured again; verdicts of this machine stand.
    victim = f"{launched.shards[0].points[0].model}.decode.b1.l8.fused.r01"
    (launched.path / "cells" / f"{victim}.json").unlink()
    launched.run(0)
    found = outcome(tmp_path)
    assert found.measured[before:] == [("baseline", victim.replace("fused", "baseline"))]
    assert found.results[victim].status is Status.INVALID
    assert [record.id for record in read_records(launched.path)[0]] == ["01-00"]


def test_a_torn_round_is_forgotten_before_its_shard_measures(
    tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two once more, the round must not look whole."""
    launched = Launched(tmp_path)
    launched.run(0)
    whole = outcome(tmp_path).results.keys()
    torn = f"{launched.shards[0].points[0].model}.decode.b1.l8.{{}}.r01"
    (launched.path / "cells" / f"{torn.format('fused')}.json").unlink()
    monkeypatch.setattr(Sweep, "run", lambda self: None)
    launched.run(0)
    assert whole - outcome(tmp_path).results.keys() == {torn.format("baseline"), torn.format("fused")}


def test_unlike_machines_are_refused(tmp_path: Path, node: Node) -> None:
    launched = Launched(tmp_path)
    assert launched.run(0) == ""
    node.become(H100, "two")
    assert "shard 01-01 on two is refused: gpu was NVIDIA H200 and is NVIDIA H100" in launched.run(1)
    assert {r.shard for r in read_run(launched.path)[1]} == {"01-00"}
    assert [record.node for record in read_records(launched.path)[0]] == ["one"]


def test_unlike_machines_are_told_apart_where_they_are_wanted(tmp_path: Path, node: Node) -> None:
    launched = Launched(tmp_path, "cluster.mixed=true")
    launched.run(0)
    node.become(H100, "two")
    assert launched.run(1) == ""
    manifest, results, _ = read_run(launched.path)
    gpus = {shard.id: shard.gpu for shard in read_records(launched.path)[0]}
    assert manifest.gpu == "NVIDIA H200"
    assert {(gpus[r.shard], r.shard) for r in results} == {("NVIDIA H200", "01-00"), ("NVIDIA H100", "01-01")}
    # A point is not continued on another type of GPU: it starts over there.
    (launched.path / "cells" / "tiny.decode.b1.l8.fused.r01.json").unlink()
    launched.run(0)
    moved = {r.shard for r in read_run(launched.path)[1] if r.cell.point in launched.shards[0].points}
    assert moved == {"01-00.1"}
    assert {r.id: r.gpu for r in read_records(launched.path)[0]}["01-00.1"] == "NVIDIA H100"


def test_other_code_or_software_is_refused(tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched(tmp_path)
    node.become(replace(H200, packages={"torch": "2.12.0"}), "one")
    assert "refused: torch was 2.13.0 and is 2.12.0" in launched.run(0)
    node.become(H200, "one")
    monkeypatch.setattr(job_module, "code", lambda: replace(CODE, source_hash="1" * 64))
    assert "the code that is timed or times changed" in launched.run(0)
    assert not outcome(tmp_path).results


def test_one_process_may_finish_what_shards_began(tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched(tmp_path)
    launched.run(0)
    monkeypatch.setattr("experiments.sweep.code", lambda: CODE)
    node.become(H100, "two")
    with pytest.raises(UserError, match="gpu was NVIDIA H200 and is NVIDIA H100"):
        sweep(tmp_path, "device=cuda", "resume=latest")
    node.become(H200, "two")
    found = sweep(tmp_path, "device=cuda", "resume=latest")
    assert found.path == launched.path
    assert {r.shard for r in found.results.values() if r.cell.point in launched.shards[1].points} == {""}
    assert found.results.keys() == {cell.id for cell in launched.prepared.plan.cells}
    assert (found.manifest.gpu, found.manifest.weights) == ("NVIDIA H200", {"tiny": "fake"})


def test_each_node_decides_what_fits_its_gpu(tmp_path: Path, node: Node) -> None:
    small = replace(H200, gpu=Gpu("Small GPU", "1", 8 << 30, 1))
    launched = Launched(tmp_path, "models=qwen3-0.6b")
    assert not launched.prepared.plan.models[0].by_process
    node.become(small, "one")
    assert launched.run(0) == ""
    (record,) = read_records(launched.path)[0]
    assert record.by_process == ("qwen3-0.6b",)
    variants = [variant for variant, _ in outcome(tmp_path).measured]
    assert variants[0] == variants[1] != variants[2] == variants[3]


def test_unlike_weights_are_found(tmp_path: Path, node: Node) -> None:
    launched = Launched(tmp_path)
    launched.run(0)
    script = tmp_path / "other_worker.py"
    script.write_text(Path("tests/experiments/fake_worker.py").read_text().replace('"0123"', '"4567"'))
    worker = (*worker_command(tmp_path, [])[:2], str(script), str(tmp_path / "rules.json"))
    other = ShardJob(str(launched.path), launched.shards[1], launched.prepared.config, worker)
    assert "loaded tiny with weights 4567, this run began with 0123" in other()
    # Two that start in the same moment cannot see each other; whoever reads the run can.
    record = read_records(launched.path)[0][0]
    job_module.write_record(launched.path, replace(record, id="01-01", weights_hash={"tiny": "4567"}))
    assert read_run(launched.path)[2] == ["shards loaded tiny with unlike weights: 0123, 4567"]


def test_shards_write_side_by_side_and_nobody_else(tmp_path: Path, node: Node) -> None:
    launched = Launched(tmp_path)
    manifest = read_manifest(launched.path)
    with RunStore(launched.path, manifest, shared=True), RunStore(launched.path, manifest, shared=True):
        with pytest.raises(UserError, match="is being written by another sweep"):
            resume_run(tmp_path / "results", "latest", launched.wanted)
    with RunStore(launched.path, manifest) as store:
        assert "is being written by another sweep" in launched.run(0)
        store.share()
        assert launched.run(0) == ""


def test_a_damaged_record_is_named(tmp_path: Path, node: Node) -> None:
    launched = Launched(tmp_path)
    launched.run(0)
    (launched.path / "shards" / "01-00.json").write_text("{")
    (problem,) = read_run(launched.path)[2]
    assert problem == "shards/01-00.json: truncated, or not JSON; what this shard ran on is not known"
    (launched.path / "shards" / "first.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json cannot be used: truncated"):
        read_run(launched.path)


def test_an_error_is_written_only_once_the_job_itself_is_safe(
    tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is being ended loses its workers first: what looks like a crash is no result then."""

    def ended(_seconds: float) -> None:
        raise KeyboardInterrupt

    launched = Launched(tmp_path)
    record = ShardRecord("01-00", "one", "0", "", launched.shards[0].points, (), "", {}, {})
    with job_module.ShardStore(launched.path, read_manifest(launched.path), record) as store:
        monkeypatch.setattr("experiments.cluster.job.time.sleep", ended)
        cell = launched.prepared.plan.cells[0]
        with pytest.raises(KeyboardInterrupt):
            store.write_cell(CellResult(cell, Status.ERROR, "the worker was killed by SIGTERM"))
        store.write_cell(CellResult(cell, Status.SKIPPED, "no wait for what tells of no crash"))
    assert [r.status for r in read_run(launched.path)[1]] == [Status.SKIPPED]


def test_the_best_that_a_gpu_of_the_run_reached_is_the_runs_ceiling(tmp_path: Path, node: Node) -> None:
    """Each shard measures its own; one that measured a cold GPU must not raise every share of the floor."""
    launched = Launched(tmp_path)
    manifest = replace(read_manifest(launched.path), gpu="X", machine={"cpu": "a CPU"})
    for name, gpu, read, flop in (
        ("01-00", "X", 4.2e12, 8e14),
        ("01-01", "X", 4.5e12, 7e14),
        ("01-02", "Y", 9e12, 9e14),
    ):
        ceilings = {"read_bytes_per_s": read, "bf16_flop_per_s": flop}
        write_record(launched.path, ShardRecord(name, "one", "0", "", (), (), gpu, {}, {}, ceilings=ceilings))
    assert merged(manifest, launched.path).ceilings == {"read_bytes_per_s": 4.5e12, "bf16_flop_per_s": 8e14}
