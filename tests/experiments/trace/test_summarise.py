"""Sums, unions and gaps: what a ledger says must add up, to the nanosecond."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from experiments.errors import UserError
from experiments.messages import TracedRun
from experiments.records import Cell, Point
from experiments.trace.attribution import attribute
from experiments.trace.ledger import Ledger, Timeline, per_step
from experiments.trace.liveness import assert_present
from experiments.trace.reader import Trace, read_trace
from experiments.trace.summarise import make_ledger
from experiments.trace.tables import facts

Synthetic = Callable[..., Any]
CELL = Cell(Point("tiny", "decode", 1, 16), "fused", 0)


def ledger_of(trace: Trace, **options: Any) -> Ledger:
    return make_ledger(trace, attribute(trace), "nsys", **options)


def two_steps(export: Any, prefix: str = "") -> None:
    """Two steps of a gemm (streams 1 and 2 overlap by half) and a sampler, 100 ns apart; then work after the steps."""
    for step in (0, 1):
        at = 1000 + 100 * step
        export.range(f"step/{step}", at, at + 50)
        export.range("phase/forward", at, at + 20)
        export.range("layer/0", at, at + 20)
        export.range("op/linear", at, at + 20)
        export.range("phase/sample", at + 30, at + 40)
        export.call(10 + step, at + 5, at + 6)
        export.kernel("gemm", 10 + step, at + 10, at + 30, streamId=1)
        export.kernel("gemm", 10 + step, at + 20, at + 40, streamId=2)
        export.call(20 + step, at + 32, at + 33)
        export.kernel("argmax", 20 + step, at + 45, at + 50, streamId=1)
    export.call(30, 3000, 3001)
    export.kernel("later", 30, 3010, 3020)


def test_overlapping_streams_count_once(synthetic: Synthetic) -> None:
    export = synthetic()
    two_steps(export)
    ledger = ledger_of(export.read())
    # Each step: 10..40 and 45..50 busy; from the first work of step 0 at 1010 to the last of step 1 at 1150.
    assert ledger.window_ms == pytest.approx(140e-6)
    assert ledger.busy_ms == pytest.approx(70e-6)
    assert ledger.gap_ms == pytest.approx(70e-6)
    assert ledger.overlap_ms == pytest.approx(20e-6)
    assert sum(row.total_us for row in ledger.kernels) == pytest.approx(1e3 * (ledger.busy_ms + ledger.overlap_ms))
    assert (ledger.gaps.within_steps_us, ledger.gaps.between_steps_us) == pytest.approx((0.010, 0.060))
    assert (ledger.gaps.count, ledger.gaps.max_us) == (3, pytest.approx(0.060))


def test_the_parts_of_a_run_are_its_window(synthetic: Synthetic) -> None:
    """A step that prefills, one that decodes, and work between them that no step launched."""
    export = synthetic()
    export.range("replay", 900, 2000)
    export.range("phase/schedule", 100, 400)
    export.range("phase/schedule", 920, 950)
    two_steps(export)
    export.call(40, 960, 961)
    export.kernel("stray", 40, 1070, 1080)
    run = TracedRun(first=0, decodes=(3, 5), prefill_tokens=(64, 0), output_tokens=9, run_ms=0.5)
    ledger = ledger_of(export.read(), run=run)
    decode, prefill, other = ledger.parts
    assert [(p.name, p.steps, p.decoded_tokens, p.prefill_tokens) for p in ledger.parts] == [
        ("decode", 1, 5, 0), ("prefill", 1, 3, 64), ("other", 0, 0, 0),
    ]  # fmt: skip
    # Two gemms of 20 and a sampler of 5; 5 idle before the sampler; step 0 ends at 1050, the stray work at 1080.
    nanoseconds = [(1e6 * p.work_ms, 1e6 * p.within_ms, 1e6 * p.before_ms) for p in ledger.parts]
    for found, wanted in zip(nanoseconds, [(45, 5, 30), (45, 5, 0), (10, 20, 0)], strict=True):
        assert found == pytest.approx(wanted)
    assert {op: 1e6 * ms for op, ms in decode.op_ms.items()} == pytest.approx({"linear": 40, "sample": 5})
    assert prefill.op_ms == decode.op_ms
    assert {op: 1e6 * ms for op, ms in other.op_ms.items()} == pytest.approx({"-": 10})
    window_ms = sum(p.work_ms + p.within_ms + p.before_ms for p in ledger.parts) - ledger.overlap_ms
    assert (window_ms, ledger.closure) == (pytest.approx(ledger.window_ms), pytest.approx(1))
    assert (ledger.output_tokens, ledger.run_ms) == (9, 0.5)
    # Those before the run do not count.
    assert ledger.host_ms == pytest.approx({"schedule": 30e-6, "forward": 40e-6, "sample": 20e-6})


def test_steps_before_a_run_are_no_part_of_it(synthetic: Synthetic) -> None:
    """Where an export lost the range that tells them apart, their work is nobody's."""
    export = synthetic()
    two_steps(export)
    (decode, other) = ledger_of(export.read(), run=TracedRun(1, (5,), (0,), 5, 0.5)).parts
    assert (decode.name, decode.steps, 1e6 * decode.work_ms) == ("decode", 1, pytest.approx(45))
    assert (other.name, other.steps, 1e6 * other.work_ms) == ("other", 0, pytest.approx(45))


def test_every_step_of_a_run_is_of_its_own_kind(synthetic: Synthetic) -> None:
    """Which is told from the run's first step on, whatever its number; what follows the last is nobody's."""
    export = synthetic()
    for step, length in enumerate((10, 20, 40, 80), start=4):
        at = 1000 * step
        export.range(f"step/{step}", at, at + 500)
        export.call(step, at + 1, at + 2)
        export.kernel("gemm", step, at + 5, at + 5 + length)
    run = TracedRun(first=4, decodes=(0, 2, 3), prefill_tokens=(64, 0, 8), output_tokens=5, run_ms=0.5)
    parts = {part.name: part for part in ledger_of(export.read(), run=run).parts}
    assert {name: (p.steps, p.decoded_tokens, p.prefill_tokens) for name, p in parts.items()} == {
        "decode": (1, 2, 0), "prefill": (2, 3, 72), "other": (0, 0, 0),
    }  # fmt: skip
    work_ns = {name: 1e6 * part.work_ms for name, part in parts.items()}
    assert work_ns == pytest.approx({"decode": 20, "prefill": 50, "other": 80})


def test_rows_of_a_run_are_folded(synthetic: Synthetic) -> None:
    """Layers and shapes are left out, and nothing is lost."""
    export = synthetic()
    for i in range(4):
        at = 1000 + 100 * i
        export.range("step/0" if i < 2 else "step/1", at, at + 50)
        export.range(f"layer/{i}", at, at + 40)
        export.range("op/linear", at, at + 40)
        export.call(i, at + 5, at + 6)
        export.kernel("gemm", i, at + 10, at + 30, gridX=i)
    trace = export.read()
    run = TracedRun(0, (1, 1), (0, 0), 2, 1.0)
    (row,) = ledger_of(trace, run=run).kernels
    assert (row.name, row.op, row.layer, row.count, row.total_us) == ("gemm", "linear", None, 4, pytest.approx(0.08))
    assert len(ledger_of(trace).kernels) == 4


def test_a_device_that_has_its_inputs_alone_waits_for_the_host(synthetic: Synthetic) -> None:
    """Two prompts: two uploads, a kernel much later, a download. Only what follows the kernel is idle in the step."""
    export = synthetic()
    for step in (0, 1):
        at = 1000 * step
        export.range(f"step/{step}", at, at + 500)
        for i, (start, end) in enumerate(((10, 20), (25, 30), (700, 710))):
            export.call(100 * step + i, at + 2 + i, at + 3 + i)
            export.work("CUPTI_ACTIVITY_KIND_MEMCPY", 100 * step + i, at + start, at + end, copyKind=1 + (i == 2))
        export.call(100 * step + 9, at + 400, at + 401)
        export.kernel("gemm", 100 * step + 9, at + 404, at + 690)
    ledger = ledger_of(export.read(), run=TracedRun(0, (0, 0), (8, 8), 2, 1.0))
    # Twice 5 between the uploads and 374 until the kernel, once 300 until the next step; twice 10 until the download.
    assert (ledger.gaps.within_steps_us, ledger.gaps.between_steps_us) == pytest.approx((0.020, 1.058))
    (prefill,) = ledger.parts
    assert (1e6 * prefill.within_ms, 1e6 * prefill.before_ms) == pytest.approx((20, 1058))
    assert ledger.traced_step_ms == pytest.approx(1000e-6)


def test_per_step_figures(synthetic: Synthetic) -> None:
    export = synthetic()
    two_steps(export)
    ledger = ledger_of(export.read(), cell=CELL, untraced_step_ms=80e-6)
    assert (ledger.steps, ledger.kernels_per_step, ledger.launches_per_step) == (2, 3.0, 2.0)
    assert ledger.traced_step_ms == pytest.approx(100e-6)
    assert ledger.inflation == pytest.approx(1.25)
    assert ledger.outside_ms == pytest.approx(10e-6)
    assert ledger.coverage == 1.0
    assert ledger.warning == ""
    rows = {(row.name, row.phase, row.layer, row.op, row.count, row.total_us) for row in ledger.kernels}
    assert rows == {("gemm", "forward", "0", "linear", 4, 0.08), ("argmax", "sample", None, None, 2, 0.01)}
    drawn = ledger.timeline
    assert list(zip(drawn.start_ns, drawn.duration_ns, drawn.stream, strict=True)) == [
        (0, 20, 1),
        (10, 20, 2),
        (35, 5, 1),
    ]
    named = [[drawn.texts[i] for i in column] for column in (drawn.name, drawn.layer, drawn.op, drawn.phase)]
    assert named == [
        ["gemm", "gemm", "argmax"], ["0", "0", ""], ["linear", "linear", ""], ["forward", "forward", "sample"],
    ]  # fmt: skip


def test_the_step_that_is_drawn_is_the_one_of_median_length(synthetic: Synthetic) -> None:
    export = synthetic()
    for step, length in enumerate((90, 10, 40, 30, 20)):
        at = 1000 * step
        export.range(f"step/{step}", at, at + 900)
        export.call(step, at + 1, at + 2)
        export.kernel("gemm", step, at + 5, at + 5 + length)
    assert ledger_of(export.read()).timeline.duration_ns == [30]


@pytest.mark.parametrize("seed", range(8))
def test_no_microsecond_of_a_window_is_lost(synthetic: Synthetic, seed: int) -> None:
    """Any work on any streams of two devices, inside steps and outside: kernels + gaps - overlap = window."""
    rng = Random(seed)
    export = synthetic()
    for i in range(60):
        at = rng.randrange(20_000)
        if rng.random() < 0.8:
            export.range(f"step/{i}", at, at + 40)
        export.call(i, at + 1, at + 2)
        where = {"deviceId": rng.randrange(2), "streamId": rng.randrange(3)}
        start = at + rng.randrange(200)
        export.kernel(f"k{rng.randrange(4)}", i, start, start + rng.randrange(1, 900), **where)
    ledger = ledger_of(export.read())
    assert ledger.overlap_ms > 0
    assert ledger.closure == pytest.approx(1, abs=1e-9)
    gaps_us = ledger.gaps.within_steps_us + ledger.gaps.between_steps_us
    assert gaps_us == pytest.approx(1e3 * ledger.gap_ms, abs=1e-9)
    lost = replace(ledger, kernels=ledger.kernels[1:])
    assert "add up to" in lost.warning


def test_devices_are_united_apart(synthetic: Synthetic) -> None:
    export = synthetic()
    for device in (0, 1):
        export.range("step/0", 0, 100, thread=(1 + device, 1))
        export.call(1, 10, 20, thread=(1 + device, 1))
        export.kernel("gemm", 1, 30, 40 + device, process=1 + device, deviceId=device)
    ledger = ledger_of(export.read())
    assert (ledger.devices, ledger.kernels_per_step, ledger.launches_per_step) == (2, 1.0, 1.0)
    assert ledger.busy_ms == ledger.window_ms == pytest.approx(21e-6)
    assert ledger.traced_step_ms == pytest.approx(10.5e-6)
    assert per_step(ledger, "name") == {"gemm": (1.0, pytest.approx(0.0105))}
    assert_present(ledger, {"gemm": 1})
    assert facts(ledger)[0] == "1 steps, 1 kernels and 1 launches per step and device; totals are sums over 2 devices"


def test_a_device_that_starts_late_was_not_idle_before(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("step/0", 0, 1000)
    export.call(1, 10, 20)
    for device, start in ((0, 100), (1, 700)):
        export.kernel("gemm", 1, start, start + 50, deviceId=device)
        export.kernel("gemm", 1, start + 60, start + 70, deviceId=device)
    ledger = ledger_of(export.read())
    assert 1e6 * ledger.window_ms == pytest.approx(2 * 70)
    assert (ledger.gaps.count, ledger.gaps.max_us) == (2, pytest.approx(0.010))


def test_work_in_the_window_that_no_step_owns_is_shown_as_not_covered(synthetic: Synthetic) -> None:
    export = synthetic()
    two_steps(export)
    export.call(99, 1060, 1061)
    export.kernel("intruder", 99, 1070, 1080)
    ledger = ledger_of(export.read())
    (intruder,) = [row for row in ledger.kernels if not row.covered]
    assert (intruder.name, intruder.phase, intruder.total_us) == ("intruder", None, 0.01)
    assert ledger.coverage == pytest.approx(90 / 100)
    assert "90.0%" in ledger.warning


def test_work_that_reaches_into_the_window_counts_as_far_as_it_does(synthetic: Synthetic) -> None:
    export = synthetic()
    two_steps(export)
    export.kernel("before", 98, 0, 1012)
    export.kernel("after", 99, 1148, 2000)
    ledger = ledger_of(export.read())
    assert (1e6 * ledger.window_ms, 1e6 * ledger.busy_ms) == (pytest.approx(140), pytest.approx(70))
    assert {row.name: row.total_us for row in ledger.kernels if not row.covered} == {"before": 0.002, "after": 0.002}
    assert 1e6 * ledger.outside_ms == pytest.approx(1010 + 850 + 10)


def test_work_that_ends_before_it_begins_is_told(synthetic: Synthetic) -> None:
    """The sums close all the same, for busy time is made from the same rows; and other overlap hides the negative."""
    export = synthetic()
    two_steps(export)
    export.kernel("gemm", 99, 1030, 1020)
    ledger = ledger_of(export.read())
    assert (1e6 * ledger.overlap_ms, ledger.closure) == (pytest.approx(10), pytest.approx(1))
    assert ledger.warning == "work that ends before it begins: this trace was read wrongly"
    assert replace(ledger, backward_rows=0, overlap_ms=-1e-6).warning == ledger.warning


def test_forward_work_without_a_layer_or_op_is_not_covered(synthetic: Synthetic) -> None:
    export = synthetic()
    export.with_graph_trace()
    export.range("step/0", 0, 50)
    export.range("phase/forward", 0, 40)
    export.call(1, 10, 20)
    export.work("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", 1, 30, 90, graphId=4)
    ledger = ledger_of(export.read())
    assert (ledger.coverage, ledger.kernels_per_step) == (0.0, 0.0)
    assert [(row.name, row.kind) for row in ledger.kernels] == [("[graph 4]", "graph")]
    assert "most of them in [graph 4]" in ledger.warning


def test_one_cell_of_several(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range(f"cell/{CELL.id}", 0, 200)
    export.range("cell/another", 2000, 2200)
    for at in (0, 2000):
        export.range("step/0", at + 10, at + 100)
        export.call(at, at + 20, at + 21)
        export.kernel(f"gemm{at}", at, at + 30, at + 40)
    assert [row.name for row in ledger_of(export.read(), cell=CELL).kernels] == ["gemm0"]


def test_only_replayed_steps_count_where_there_are_some(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range(f"cell/{CELL.id}", 0, 2000)
    export.range("replay", 1000, 2000)
    for step, at in enumerate((0, 1000, 1100, 1200)):
        export.range(f"step/{step}", at + 1, at + 50)
        export.call(step, at + 10, at + 11)
        export.kernel("capturing" if step == 0 else "replayed", step, at + 20, at + 30)
    ledger = ledger_of(export.read(), cell=CELL)
    assert (ledger.steps, [row.name for row in ledger.kernels]) == (3, ["replayed"])
    assert ledger.outside_ms == pytest.approx(10e-6)


def test_a_step_of_several_engine_steps(synthetic: Synthetic) -> None:
    """Two prompts in three chunks each: one step is a prompt, and takes as long as one."""
    export = synthetic()
    for step, at in enumerate((0, 10, 20, 100, 110, 120)):
        export.range(f"step/{step}", at + 1, at + 9)
        export.call(step, at + 2, at + 3)
        export.kernel("chunk", step, at + 4, at + 8)
    trace = export.read()
    ledger = ledger_of(trace, steps=2)
    assert (ledger.steps, ledger.kernels_per_step, ledger.traced_step_ms) == (2, 3.0, pytest.approx(100e-6))
    # Where ranges were lost, those that are there divide the work that is there.
    assert ledger_of(trace, steps=9) == ledger_of(trace)


def test_copies_of_a_step_are_named_by_what_they_are(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("step/0", 0, 50)
    export.range("phase/forward", 0, 40)
    export.call(1, 10, 20)
    export.work("CUPTI_ACTIVITY_KIND_MEMCPY", 1, 30, 34, copyKind=1)
    export.work("CUPTI_ACTIVITY_KIND_MEMCPY", 99, 31, 33, copyKind=2)
    ledger = ledger_of(export.read())
    assert {row.name: row.covered for row in ledger.kernels} == {"[memcpy HtoD]": True, "[memcpy DtoH]": False}


def test_a_trace_without_steps_counts_as_a_whole(synthetic: Synthetic) -> None:
    export = synthetic()
    export.kernel("gemm", 1, 0, 10)
    export.work("CUPTI_ACTIVITY_KIND_MEMCPY", 2, 20, 25, copyKind=1)
    export.work("CUPTI_ACTIVITY_KIND_MEMSET", 3, 30, 31)
    ledger = ledger_of(export.read())
    assert (ledger.steps, ledger.kernels_per_step, ledger.timeline) == (0, 1.0, Timeline())
    assert [(row.name, row.kind) for row in ledger.kernels] == [
        ("gemm", "kernel"), ("[memcpy HtoD]", "memcpy"), ("[memset]", "memset"),
    ]  # fmt: skip


def test_a_trace_without_work_is_refused(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("step/0", 0, 10)
    with pytest.raises(UserError, match="no kernel ran inside the window"):
        ledger_of(export.read())


def test_a_real_trace_of_an_h200_adds_up(h200: Path) -> None:
    trace = read_trace(h200)
    ledger = ledger_of(trace)
    assert (ledger.steps, ledger.kernels_per_step, ledger.launches_per_step) == (3, 8.0, 1.0)
    assert ledger.busy_ms + ledger.gap_ms == pytest.approx(ledger.window_ms, abs=1e-9)
    in_steps_ns = int((trace.gpu["end"] - trace.gpu["start"])[2:].sum())
    assert sum(row.total_us for row in ledger.kernels) == pytest.approx(in_steps_ns / 1e3, abs=1e-6)
    # One replay in three is of a graph made before the window: a third of the time has no layer.
    assert 0.6 < ledger.coverage < 0.7
    norms = [row for row in ledger.kernels if row.op == "norm" and row.name == "vectorized_layer_norm_kernel"]
    assert sorted((row.layer, row.count) for row in norms) == [("0", 2), ("1", 2), ("2", 2)]
    assert norms[0].grid == [8, 1, 1]
    assert (norms[0].registers, norms[0].shared_bytes) == (27, 24)
