"""What each rung is worth: which variants make a ladder, and waterfalls that close."""

import itertools
from dataclasses import replace

import pytest

from experiments.compose import compose, load_yaml
from experiments.records import CellResult, Status
from experiments.reporting.ablation import ADDED, LEFT_OUT, Ablation, ablations, ladders
from experiments.reporting.charts.specs import Bar, Bars
from experiments.reporting.figures import build_figures
from experiments.reporting.rows import analyse
from experiments.reporting.tables import build_tables
from tests.experiments.reporting.synthetic import Synthetic

ON = {
    "baseline": ("baseline", ()),
    "only_a": ("fused", ("a",)),
    "only_b": ("fused", ("b",)),
    "ab": ("fused", ("a", "b")),
    "without_a": ("fused", ("b", "c")),
    "fused": ("fused", ("a", "b", "c")),
}
# A saves less beside B than alone: together they gain less than their sum.
GAINS = {"only_a": 1.25, "only_b": 1.25, "ab": 1.4, "without_a": 1.5, "fused": 1.6}


def _made(**changes: object) -> Synthetic:
    settings = {
        name: {"kind": kind, "switches": {x: x in on for x in "abc"} if kind == "fused" else {}}
        for name, (kind, on) in ON.items()
    }
    small = {"models": ("qwen3-0.6b",), "workloads": ("decode", "offline"), "batches": (1,), "lengths": (128,)}
    return Synthetic(**(small | {"variants": tuple(ON), "settings": settings, "gains": GAINS} | changes))  # type: ignore[arg-type]


def _only(made: Synthetic) -> Ablation:
    (found,) = ablations(analyse(made.run()))
    return found


def test_rungs_are_pairs_of_variants_that_differ_in_one_switch() -> None:
    (ladder,) = ladders(_made().manifest().config.variants)
    assert ladder.full == "fused"
    assert [(r.name, r.how, r.without, r.having) for r in ladder.rungs] == [
        ("a", ADDED, "baseline", "only_a"),
        ("a", LEFT_OUT, "without_a", "fused"),
        ("b", ADDED, "baseline", "only_b"),
        ("c", ADDED, "only_b", "without_a"),
        ("c", LEFT_OUT, "ab", "fused"),
    ]


@pytest.mark.parametrize("variants", [("baseline", "fused"), ("baseline", "only_a", "fused"), ("fused", "without_a")])
def test_one_rung_or_none_is_no_ladder(variants: tuple[str, ...]) -> None:
    made = _made(variants=variants, settings={v: _made().settings[v] for v in variants})
    assert ladders(made.manifest().config.variants) == []
    assert not [name for name in build_figures(analyse(made.run())) if name.startswith("ablation")]


def test_headline_has_no_ladder_and_ablation_has_every_rung_of_fused_both_ways() -> None:
    def of(name: str) -> list[tuple[str, str]]:
        found = ladders(compose([f"experiment={name}"]).variants)
        return [(rung.name, rung.how) for ladder in found for rung in ladder.rungs]

    assert of("headline") == []
    rungs = [*load_yaml("variant", "fused").switches, "pdl"]
    assert sorted(of("ablation")) == sorted(itertools.product(rungs, (ADDED, LEFT_OUT)))


def test_a_rung_is_added_to_the_fused_engine_with_everything_off_where_there_is_one() -> None:
    (ladder,) = ladders(compose(["experiment=ablation"]).variants)
    added = {r.name: r.without for r in ladder.rungs if r.how == ADDED}
    assert added.pop("attention") == "only_qkv_post"
    assert set(added.values()) == {"nothing"}


def test_the_ablation_experiment_measures_where_issue_four_asks() -> None:
    config = compose(["experiment=ablation"])
    points = {(w.name, *pair) for w in config.workloads for pair in w.pairs()}
    assert config.models == ["qwen3-0.6b", "qwen3-8b"]
    assert {(name, batch) for name, batch, _ in points} >= {("decode", b) for b in (1, 8, 64)}
    assert ("prefill", 1, 2048) in points


def test_a_run_without_the_whole_has_what_was_added_and_no_waterfall() -> None:
    """Some rungs of a model whose engines do not fit on the GPU together."""
    variants = ("baseline", "only_a", "only_b", "ab")
    made = _made(variants=variants, settings={v: _made().settings[v] for v in variants})
    analysis = analyse(made.run())
    (found,) = ablations(analysis)
    assert (found.full, found.full_ms) == ("", None)
    assert [(w.rung.name, w.rung.how, w.rung.without, w.rung.having) for w in found.worths] == [
        ("a", ADDED, "baseline", "only_a"),
        ("b", ADDED, "baseline", "only_b"),
    ]
    assert all(w.speedup and w.verdict for w in found.worths)
    assert not [name for name in build_figures(analysis) if name.startswith("ablation")]
    rungs = [row[5] for row in build_tables(analysis)["ablation"].rows]
    assert rungs == ["a", "b", "sum of the rungs measured"]


def test_savings_are_paired_and_recover_what_was_made() -> None:
    found = _only(_made(noise=0.001))
    shrink = 1 + 1 / 64
    times = {name: 1 / (1 + (gain - 1) / shrink) for name, gain in GAINS.items()}
    scale = found.baseline_ms
    a, _, b, _, c = found.worths
    assert a.saved_ms == pytest.approx(scale * (1 - times["only_a"]), rel=0.02)
    assert c.saved_ms == pytest.approx(scale * (times["ab"] - times["fused"]), rel=0.05)
    assert {w.verdict for w in found.worths} == {"faster"}
    assert b.speedup is not None
    assert b.speedup.low is not None
    assert b.speedup.high is not None
    assert b.speedup.low < 1 / times["only_b"] < b.speedup.high


def test_only_times_have_a_waterfall() -> None:
    assert _only(_made()).point.workload == "decode"


def test_waterfalls_lead_from_the_baseline_to_the_full_variant() -> None:
    analysis = analyse(_made().run())
    _, figure = build_figures(analysis)["ablation_fused_qwen3-0.6b_decode"]
    found = _only(_made())
    assert [panel.title.partition(": ")[2] for panel in figure.panels] == [
        "each added",
        "each left out of fused, but for b",
    ]
    for panel in figure.panels:
        first, *steps, last = _bars(panel.chart)
        assert (_end(first), _end(last)) == (found.baseline_ms, found.full_ms)
        # Each bar touches the one before it: it begins or ends where the level was left.
        level = found.baseline_ms
        for bar in steps:
            assert level == pytest.approx(bar.start) or level == pytest.approx(_end(bar))
            level = bar.start if level == pytest.approx(_end(bar)) else _end(bar)
        assert level == pytest.approx(found.full_ms)
    added, left_out = (_bars(panel.chart) for panel in figure.panels)
    assert [bar.label for bar in added] == ["baseline", "a", "b", "c", "overlap", "fused"]
    assert [bar.label for bar in left_out] == ["baseline", "overlap", "a", "c", "fused"]
    # A and B save a fifth each alone, less together: the sum of the rungs is too much, the overlap takes it back.
    assert added[4].start == pytest.approx(added[3].start)


def _bars(chart: object) -> tuple[Bar, ...]:
    assert isinstance(chart, Bars)
    return chart.groups[0].bars


def _end(bar: Bar) -> float:
    return bar.start + bar.segments[0].value


def test_the_table_shows_the_sums_beside_what_all_save_together() -> None:
    table = build_tables(analyse(_made().run()))["ablation"]
    rows = [dict(zip([c.name for c in table.columns], row, strict=True)) for row in table.rows]
    added = [r["saved_ms"] for r in rows if r["how"] == ADDED and r["rung"] in "abc"]
    assert next(r["saved_ms"] for r in rows if (r["how"], r["rung"]) == (ADDED, "sum of the rungs")) == sum(added)
    together = rows[-1]
    assert (together["without"], together["having"]) == ("baseline", "fused")
    assert together["saved_ms"] == pytest.approx(_only(_made()).baseline_ms - _only(_made()).full_ms)


def test_a_rung_that_failed_has_no_value_and_its_bar_no_length() -> None:
    def fail(r: CellResult) -> CellResult:
        return replace(r, status=Status.OOM, reason="x", samples={}) if r.cell.variant == "only_a" else r

    analysis = analyse(_made(mend=fail).run())
    _, figure = build_figures(analysis)["ablation_fused_qwen3-0.6b_decode"]
    bar = _bars(figure.panels[0].chart)[1]
    assert (bar.label, bar.start, bar.text) == ("a", _end(bar), "no value")
    assert any("no value" in row for row in build_tables(analysis)["ablation"].rows)
    assert (figure.records[0][5], figure.records[0][-1]) == ("a", None)


@pytest.mark.parametrize("gone", ["baseline", "fused"])
def test_without_either_end_there_is_no_waterfall(gone: str) -> None:
    def fail(r: CellResult) -> CellResult:
        return replace(r, status=Status.OOM, reason="x", samples={}) if r.cell.variant == gone else r

    assert ablations(analyse(_made(mend=fail).run())) == []
