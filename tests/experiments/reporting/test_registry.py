"""Each figure says how to make it again, and asks for no more than it shows."""

import shlex
from dataclasses import replace

import pytest

from experiments.compose import compose
from experiments.reporting.charts.palette import SERIES
from experiments.reporting.figures import FIGURES, build_figures
from experiments.reporting.figures.registry import slots
from experiments.reporting.rows import analyse
from experiments.reporting.run import assemble
from tests.experiments.reporting.synthetic import Synthetic, ledger


def _commands() -> dict[str, tuple[str, ...]]:
    made = Synthetic(variants=("baseline", "control", "fused"), rounds=3)
    manifest = made.manifest()
    asked = replace(manifest.config, overrides=["experiment=headline"])
    manifest = replace(manifest, experiment="headline", config=asked)
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


@pytest.mark.parametrize("count", [1, 8, 9, 17])
def test_the_baseline_and_the_last_variant_share_their_colour_with_nobody(count: int) -> None:
    variants = ("baseline", *(f"v{i}" for i in range(count - 1)))
    color = slots(Synthetic(variants=variants, rounds=1, models=("m",)).run())
    assert set(color) == set(variants)
    assert set(color.values()) <= set(range(len(SERIES)))
    for end in (variants[0], variants[-1]):
        assert [name for name in variants if color[name] == color[end]] == [end]
    assert len(set(color.values())) == min(count, len(SERIES))


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
