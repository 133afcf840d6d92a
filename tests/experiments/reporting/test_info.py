"""What the report takes from a manifest, and what it makes of one that says little."""

from experiments.config import WorkloadConfig
from experiments.reporting.info import planned_cells, run_info
from experiments.reporting.methods import methods
from experiments.reporting.rows import analyse
from experiments.reporting.run import assemble
from tests.experiments.reporting.synthetic import Synthetic


def test_a_manifest_that_says_nothing_leaves_blanks() -> None:
    info = run_info({}, "name", "run")
    assert (info.experiment, info.run_id, info.gpu, info.commit) == ("name", "run", "", "")
    assert info.ceilings is None
    assert planned_cells({}) == ([], [])


def test_a_control_is_the_baseline_under_another_name() -> None:
    same, other = {"kind": "baseline", "runtime": {"pdl": False}}, {"kind": "baseline", "runtime": {"pdl": True}}
    variants = [{"name": "baseline", **same}, {"name": "control", **same}, {"name": "pdl", **other}]
    assert run_info({"config": {"variants": variants}}).controls == ("control",)


def test_a_workload_is_read_as_far_as_it_is_known() -> None:
    """Keys of another version are passed over; one that the manifest lacks is of the kind that its name says."""
    workload = {"name": "short", "kind": "offline", "input_tokens": [10, 20], "output_tokens": [5, 5], "since": 3}
    info = run_info({"config": {"workloads": [workload, {"name": "prefill"}]}})
    assert info.workload("short") == WorkloadConfig("short", "offline", input_tokens=[10, 20], output_tokens=[5, 5])
    assert [info.kind(name) for name in ("short", "prefill", "decode")] == ["offline", "prefill", "decode"]


def test_a_planned_cell_that_cannot_be_read_is_a_problem() -> None:
    manifest = Synthetic(models=("m",), rounds=1).manifest()
    manifest["cells"][3] = {"point": 5}
    cells, problems = planned_cells(manifest)
    assert len(cells) == len(manifest["cells"]) - 1
    assert problems == ["manifest.json, cell 3: Cell lacks 'round'"]


def test_methods_say_when_engines_ran_apart() -> None:
    apart = Synthetic(models=("m",)).manifest() | {"plan": {"by_process": ["qwen3-8b"]}}
    words = dict(methods(analyse(assemble(apart, []))))
    assert "engines of qwen3-8b do not fit" in words["Protocol"]
    together = dict(methods(analyse(assemble(Synthetic(models=("m",)).manifest(), []))))
    assert "do not fit" not in together["Protocol"]
