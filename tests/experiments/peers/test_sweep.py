"""Peers in a sweep: real workers, one peer that runs, one that dies in mid-cell, one that is not here."""

import os
from pathlib import Path

import pytest

from experiments.compose import compose
from experiments.manifest import Manifest
from experiments.records import CellResult, Status
from experiments.reporting.rows import analyse
from experiments.reporting.run import load_run
from experiments.reporting.tables import TABLES, build_tables
from experiments.store import read_manifest, read_run
from experiments.sweep import run_sweep
from tests.experiments.peers.loads import FAKES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder. vLLM dies in its seventh call: two are for the verdict, two or three for each cell."""
    root = tmp_path_factory.mktemp("sweep")
    asked = [
        "experiment=quick",
        "variants=[baseline,transformers,vllm,nano_vllm]",
        "workloads=[decode,prefill,offline]",
        "workload.offline.batches=[2]",
        "workload.offline.input_tokens=[3,9]",
        "workload.offline.output_tokens=[2,6]",
        "protocol=smoke",
        # Many steps, that two calls differ by more than a busy machine makes them; and no more calls than are needed.
        "protocol.steps_per_window=64",
        "protocol.window_ms=1",
        f"results_dir={root / 'results'}",
        f"reports_dir={root / 'reports'}",
        "device=cpu",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEBENCH_CACHE", str(root / "cache"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(FAKES), os.environ.get("PYTHONPATH")))))
        patch.setenv("FAKE_VLLM_DIES", "7")
        patch.setenv("OMP_NUM_THREADS", "1")
        assert run_sweep(compose(asked), asked) == 0
    return next((root / "results" / "quick").iterdir())


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, list[CellResult]]:
    """The cells of each variant."""
    _, found, damaged = read_run(run)
    assert not damaged
    return {
        name: [r for r in found if r.cell.variant == name] for name in ("baseline", "transformers", "vllm", "nano_vllm")
    }


def test_every_planned_cell_is_a_row(results: dict[str, list[CellResult]]) -> None:
    assert {name: len(cells) for name, cells in results.items()} == dict.fromkeys(results, 3)


def test_a_peer_runs_in_the_same_cells(results: dict[str, list[CellResult]]) -> None:
    for cell in results["transformers"]:
        assert cell.status is Status.OK, cell.reason
        assert cell.verdict is not None
        assert cell.verdict.ok
        assert cell.kernels == "peer beside twins"
    baseline = {(cell.cell.point, *cell.samples) for cell in results["baseline"]}
    assert {(cell.cell.point, *cell.samples) for cell in results["transformers"]} == baseline


def test_a_peer_that_dies_in_mid_cell_costs_that_cell(results: dict[str, list[CellResult]]) -> None:
    """A fresh process takes what is left, and does not get as far."""
    died = [cell for cell in results["vllm"] if cell.status is not Status.OK]
    assert len(died) == 1
    expected = "the worker exited with code 1: RuntimeError: an illegal memory access was encountered"
    assert (died[0].status, died[0].reason) == (Status.ERROR, expected)


def test_a_peer_that_is_not_here_is_skipped_with_the_mend(results: dict[str, list[CellResult]]) -> None:
    for cell in results["nano_vllm"]:
        assert cell.status is Status.SKIPPED
        assert cell.reason == "not run: name a checkout of nano-vLLM: variant.nano_vllm.path=FOLDER"


def test_the_manifest_says_what_peers_are_and_nothing_of_where(run: Path) -> None:
    manifest: Manifest = read_manifest(run)
    assert set(manifest.peers) == {"transformers", "vllm"}
    assert manifest.peers["transformers"]["attention"] == "sdpa"
    assert "generate()" in manifest.peers["transformers"]["includes"]
    assert str(FAKES) not in (run / "manifest.json").read_text()


def test_the_report_says_what_their_times_include(run: Path) -> None:
    """Beside them, in the section of speed; and every row of a peer is marked as no claim."""
    analysis = analyse(load_run(run.parents[1], "quick", "latest"))
    rows = build_tables(analysis)["peers"].rows
    assert TABLES["peers"].section == "faster"
    told = {(variant, fact): value for variant, fact, value in rows}
    assert "its scheduler in a thread of this process" in str(told["transformers", "includes"])
    assert told["vllm", "attention"] == "FLASH_ATTN"
    assert {row.kernels for row in analysis.primary if row.variant == "transformers"} == {"peer beside twins"}
