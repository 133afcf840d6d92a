"""The pictures of a trace: a step on a time axis, and the waterfall from the baseline to a variant."""

import inspect
import re
from dataclasses import replace

import pytest

from engine.ops import Ops
from experiments.reporting.charts import paper
from experiments.reporting.charts.spans import MOST_DETAILED
from experiments.reporting.charts.specs import Bars, Figure, Lane, Span, Spans
from experiments.reporting.charts.svg import draw
from experiments.reporting.families import FAMILIES, IDLE, OTHER, SLOTS, family_of, legend, slot_of
from experiments.reporting.figures import build_figures
from experiments.reporting.figures.timeline import one_layer
from experiments.reporting.figures.waterfall import MOST_STEPS, steps_between
from experiments.reporting.ledgers import Traced
from experiments.reporting.rows import analyse
from tests.experiments.reporting.synthetic import Synthetic, kernel, ledger, timeline
from variants import compiled, folded, fused, norm_linear

SMALL = {"models": ("qwen3-0.6b",), "workloads": ("decode",), "batches": (1,), "lengths": (128,), "rounds": 1}


def figures(*ledgers: Traced) -> dict[str, Figure]:
    return {name: made for name, (_, made) in build_figures(analyse(Synthetic(**SMALL).run(ledgers=ledgers))).items()}


def chart(figure: Figure, panel: int = 0) -> Spans:
    found = figure.panels[panel].chart
    assert isinstance(found, Spans)
    return found


def test_every_op_has_a_family_and_every_family_a_colour() -> None:
    classes = (Ops, compiled.CompiledOps, folded.FoldedOps, fused.FusedOps, norm_linear.NormLinearOps)
    ops = {
        name
        for kind in classes
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if getattr(method, "is_op", False)
    }
    # A compiled layer is all of these at once; what ranks tell each other has no colour of its own.
    assert {op for op in ops if family_of(op) == OTHER} == {"layer", "all_reduce", "all_gather", "best_of_ranks"}
    assert sorted(SLOTS.values()) == list(range(len(FAMILIES)))
    assert IDLE == len(FAMILIES)
    assert slot_of("norm_linear") != slot_of("linear") != slot_of("rms_norm")


def test_a_legend_names_what_appears_and_grey_last() -> None:
    assert legend({"rope", "a kernel of someone", "linear"}, idle=True) == (
        ("linear", SLOTS["linear"]), ("RoPE, KV store", SLOTS["RoPE, KV store"]), (OTHER, SLOTS[OTHER]), ("idle", IDLE),
    )  # fmt: skip


def test_the_step_of_each_variant_stands_under_the_baselines_on_one_axis() -> None:
    made = figures(ledger("fused"), ledger("baseline"))["timeline_qwen3-0.6b_decode"]
    step, layer = chart(made, 0), chart(made, 1)
    assert [(lane.label, len(lane.spans)) for lane in step.lanes] == [("baseline", 282), ("fused", 142)]
    assert [panel.title for panel in made.panels] == ["batch 1, length 128: the step", "batch 1, length 128: layer 14"]
    assert [(lane.label, len(lane.spans)) for lane in layer.lanes] == [("baseline", 10), ("fused", 5)]
    # Half a microsecond lies between any two kernels, and it is not drawn over.
    for lane in (*step.lanes, *layer.lanes):
        assert lane.spans[0].start == 0
        gaps = [after.start - before.end for before, after in zip(lane.spans, lane.spans[1:], strict=False)]
        assert gaps == pytest.approx([0.5] * len(gaps))
    assert made.columns[5:] == ("start_us", "duration_us", "kernel", "layer", "op")
    assert len(made.records) == 282 + 142
    assert "one lane per traced variant" in made.alt


def test_overlapping_kernels_get_lines_of_their_own() -> None:
    times = ((0.0, 10.0), (8.0, 4.0), (10.0, 5.0), (11.0, 3.0))
    step = timeline((start, length, "k", "0", "linear", "") for start, length in times)
    made = figures(replace(ledger("fused"), timeline=step))["timeline_qwen3-0.6b_decode"]
    (lane,) = chart(made).lanes
    assert [span.track for span in lane.spans] == [0, 1, 0, 2]
    assert lane.tracks == 3


def test_a_layer_is_cut_from_its_first_kernel_to_its_last() -> None:
    layers = ("embed", "0", "0", "", "0", "1")
    drawn = timeline((10.0 * i, 5.0, f"k{i}", layer, "linear", "") for i, layer in enumerate(layers))
    step = replace(ledger("fused"), timeline=drawn).step
    assert [(work.name, work.start_us) for work in one_layer(step, "0")] == [
        ("k1", 0.0), ("k2", 10.0), ("k3", 20.0), ("k4", 30.0),
    ]  # fmt: skip
    assert one_layer(step, "7") == ()


def test_twins_are_called_twins() -> None:
    twins = [
        replace(made, kernels=[replace(row, kind="cpu_op") for row in made.kernels])
        for made in map(ledger, ("baseline", "fused"))
    ]
    made = figures(*twins)
    assert [lane.label for lane in chart(made["timeline_qwen3-0.6b_decode"]).lanes] == [
        "baseline (twin)", "fused (twin)",
    ]  # fmt: skip
    assert made["waterfall_qwen3-0.6b_decode"].panels[0].title.endswith("fused (twin)")


def test_a_ledger_without_a_step_has_no_timeline() -> None:
    bare = [replace(ledger(variant), timeline=timeline([])) for variant in ("baseline", "fused")]
    assert "timeline_qwen3-0.6b_decode" not in figures(*bare)
    assert "waterfall_qwen3-0.6b_decode" in figures(*bare)


@pytest.mark.parametrize("count", [3, MOST_DETAILED + 1])
def test_bars_are_as_wide_as_they_ran_in_small_and_large_charts(count: int) -> None:
    spans = tuple(Span(2.0 * i, 2.0 * i + 1, 1 + i % 2, "op", f"tip {i}") for i in range(count))
    drawn = draw(Spans("µs", (Lane("v", spans, "end"),)), "A chart.")
    assert 'aria-label="A chart."' in drawn
    is_detailed = count <= MOST_DETAILED
    assert drawn.count("<title>") == (count if is_detailed else 0)
    shapes = (
        re.findall(r'<rect class="q s\d" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
        if is_detailed
        else re.findall(r"M([\d.]+) [\d.]+h([\d.]+)v", drawn)
    )
    boxes = sorted((float(x), float(width)) for x, width in shapes)
    assert len(boxes) == count
    pitch = (boxes[-1][0] - boxes[0][0]) / (count - 1)
    assert all(width == pytest.approx(pitch / 2, abs=0.11) for _, width in boxes)
    assert draw(Spans("µs", (Lane("v", (), ""),)), "Nothing.") == ""


def test_the_waterfall_closes_on_the_variants_step() -> None:
    before, after = ledger("baseline"), replace(ledger("fused"), window_ms=7.0)
    steps = steps_between(before, after)
    assert before.step_us + sum(step.change_us for step in steps) == pytest.approx(after.step_us)
    fates = {step.name: step.fate for step in steps}
    assert (fates["rms_norm_kernel<0>"], fates["attention_kernel<1>"], fates["idle"]) == ("removed", "changed", "")
    made = figures(before, after)["waterfall_qwen3-0.6b_decode"]
    bars_chart = made.panels[0].chart
    assert isinstance(bars_chart, Bars)
    bars = bars_chart.groups[0].bars
    assert (bars[0].label, bars[-1].label) == ("baseline", "fused")
    level = bars[0].segments[0].value
    for bar in bars[1:-1]:
        value = bar.segments[0].value
        assert level == pytest.approx(bar.start + value if bar.text.startswith("−") else bar.start)  # noqa: RUF001
        level += -value if bar.text.startswith("−") else value  # noqa: RUF001
    assert level == pytest.approx(bars[-1].segments[0].value)


def test_overlap_is_a_step_of_the_waterfall() -> None:
    """Kernels of 10 us that overlap by 4 us take 16 us."""
    kernels = [kernel(name, "linear", 1, 10.0) for name in "ab"]
    apart = replace(ledger("baseline"), kernels=kernels, steps=1, window_ms=0.020, busy_ms=0.020)
    over = replace(ledger("fused"), kernels=kernels, steps=1, window_ms=0.016, busy_ms=0.016)
    changes = {step.name: step.change_us for step in steps_between(apart, over)}
    assert changes == pytest.approx({"a": 0.0, "b": 0.0, "idle": 0.0, "overlap": -4.0})


def test_many_small_changes_are_one_bar() -> None:
    extra = [kernel(f"k{i}", "linear", 10, 10.0 + i) for i in range(MOST_STEPS + 5)]
    after = ledger("fused")
    made = figures(ledger("baseline"), replace(after, kernels=[*after.kernels, *extra]))["waterfall_qwen3-0.6b_decode"]
    bars_chart = made.panels[0].chart
    assert isinstance(bars_chart, Bars)
    names = [bar.label for bar in bars_chart.groups[0].bars]
    assert "10 other kernels" in names
    assert len(names) == 2 + MOST_STEPS + 1 + 2
    assert len(made.records) > len(names)


def test_both_are_drawn_for_papers() -> None:
    made = figures(ledger("baseline"), ledger("fused"))
    for name in ("timeline_qwen3-0.6b_decode", "waterfall_qwen3-0.6b_decode"):
        drawn = paper.render(made[name])
        assert drawn["png"].startswith(b"\x89PNG")
        assert drawn["svg"].count(b"<path") > 20
