"""What the report takes from a manifest."""

from dataclasses import replace

from experiments.config import RuntimeConfig
from experiments.reporting.info import RunInfo
from experiments.reporting.methods import methods
from experiments.reporting.rows import analyse
from experiments.reporting.run import assemble
from tests.experiments.reporting.synthetic import Synthetic


def test_a_control_is_the_baseline_under_another_name() -> None:
    launched = {"kind": "baseline", "runtime": RuntimeConfig(pdl=True)}
    made = Synthetic(variants=("baseline", "control", "launched"), settings={"launched": launched})
    assert RunInfo.of(made.manifest()).controls == ("control",)


def test_methods_say_when_engines_ran_apart() -> None:
    manifest = Synthetic(models=("qwen3-8b",)).manifest()
    apart = replace(manifest, plan=replace(manifest.plan, by_process=("qwen3-8b",)))
    words = dict(methods(analyse(assemble(apart, []))))
    assert "engines of qwen3-8b do not fit" in words["Protocol"]
    together = dict(methods(analyse(assemble(manifest, []))))
    assert "do not fit" not in together["Protocol"]
