"""The command that a report gives plans the cells that the run had."""

import shlex
from dataclasses import replace

import pytest

from experiments.compose import compose
from experiments.config import ExperimentConfig
from experiments.plan import Plan, make_plan
from experiments.reporting.again import as_typed, asked_for

ASKED = {
    "headline": ("models=[qwen3-8b,qwen3-0.6b]", "variants=[baseline,fused]", "workloads=[decode,prefill_long]"),
    "ablation": ("name=rungs_1", "models=[qwen3-8b]", "variants=[baseline,nothing,only_pdl]", "protocol.rounds=2"),
    "aa": ("name=aa_1", "seed=1", "protocol.time_budget_s=131"),
    "serving": ("protocol.rounds=3",),
}


def _plan(config: ExperimentConfig) -> Plan:
    return make_plan(config, config.models)


@pytest.mark.parametrize("recorded", [True, False], ids=["as typed", "as known"])
@pytest.mark.parametrize("experiment", ASKED)
def test_the_same_cells_are_planned(experiment: str, recorded: bool) -> None:
    """Manifests have what was typed; older ones have not, and a name that no YAML has."""
    config = compose([f"experiment={experiment}", *ASKED[experiment]])
    command = as_typed("sweep", asked_for(config if recorded else replace(config, overrides=[])))
    again = compose(shlex.split(command)[2:])
    assert (again.name, again.question) == (config.name, config.question)
    assert again.protocol.time_budget_s == config.protocol.time_budget_s
    assert _plan(again).digest == _plan(config).digest
    assert command.startswith(f"fusebench sweep experiment={experiment} ")


def test_what_a_shell_would_take_apart_is_quoted() -> None:
    asked = asked_for(compose(["experiment=quick", "question='Is it, really?'", "seed=1", "seed=2", "models=[tiny]"]))
    command = as_typed("sweep", asked)
    assert dict(text.split("=", 1) for text in shlex.split(command)[2:]) == asked
    assert (asked["seed"], command.endswith(" models=[tiny]")) == ("2", True)
