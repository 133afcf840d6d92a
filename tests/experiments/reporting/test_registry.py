"""Each figure says how to make it again, and asks for no more than it shows."""

import shlex

import pytest

from experiments.compose import compose
from experiments.reporting.figures import FIGURES, build_figures
from experiments.reporting.rows import analyse
from experiments.reporting.run import assemble
from tests.experiments.reporting.synthetic import Synthetic, ledger


def _commands() -> dict[str, tuple[str, ...]]:
    made = Synthetic(variants=("baseline", "control", "fused"), rounds=3)
    manifest = made.manifest() | {"experiment": "headline"}
    run = assemble(manifest, made.results(), [], [ledger("baseline"), ledger("fused")])
    return {name: figure.commands for name, (_, figure) in build_figures(analyse(run)).items()}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("speedup_qwen3-0.6b_decode", "sweep experiment=headline models=[qwen3-0.6b] workloads=[decode]"),
        ("latency_smollm2-135m_prefill", "sweep experiment=headline models=[smollm2-135m] workloads=[prefill]"),
        ("roofline", "sweep experiment=headline"),
        (
            "kernel_time_qwen3-0.6b_decode",
            "trace experiment=headline models=[qwen3-0.6b] workloads=[decode] variants=[baseline,fused]",
        ),
    ],
)
def test_the_command_names_what_the_figure_shows(name: str, command: str) -> None:
    assert _commands()[name] == (f"fusebench {command}", "fusebench report experiment=headline")


def test_no_two_figures_have_one_name() -> None:
    analysis = analyse(Synthetic(rounds=3).run(ledgers=[ledger("baseline"), ledger("fused")]))
    made = [figure.name for entry in FIGURES.values() for figure in entry.make(analysis)]
    assert sorted(made) == sorted(build_figures(analysis))


def test_every_figures_commands_compose() -> None:
    for again in sorted({again for again, _ in _commands().values()}):
        _, command, *arguments = shlex.split(again)
        assert command in {entry.command for entry in FIGURES.values()}
        config = compose(arguments)
        assert "baseline" in [variant.name for variant in config.variants]
