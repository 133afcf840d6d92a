"""Rungs that are switched on must show in the trace, and those that are off must not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from experiments.errors import UserError
from experiments.messages import Rung
from experiments.trace.attribution import attribute
from experiments.trace.ledger import Fate
from experiments.trace.liveness import assert_present, check_rungs, contradictions
from experiments.trace.summarise import make_ledger
from tests.experiments.trace.test_ledger import FUSED

Synthetic = Callable[..., Any]
KERNEL = "_norm_linear_kernel"


def fate(synthetic: Synthetic, on: bool, taken: bool, ran: bool) -> tuple[Fate, float, list[str]]:
    """Of a rung in a trace of two steps, its mark left while the first of three captured."""
    export = synthetic()
    export.range("cell/x", 0, 9000)
    if taken:
        export.range("rung/norm_linear", 20, 20)
    export.range("replay", 1000, 3000)
    for step in (0, 1):
        at = 1000 * (1 + step)
        export.range(f"step/{step}", at, at + 500)
        export.call(step, at + 10, at + 20)
        export.kernel(KERNEL if ran else "gemm", step, at + 30, at + 40)
        export.call(10 + step, at + 50, at + 60, name="cudaMemcpyAsync_v3020")
        export.work("CUPTI_ACTIVITY_KIND_MEMCPY", 10 + step, at + 70, at + 80)
    trace = export.read()
    ledger = make_ledger(trace, attribute(trace), "nsys")
    (row,) = check_rungs(trace, ledger, [Rung("norm_linear", KERNEL, on)])
    return row.fate, row.count_per_step, contradictions(replace(ledger, rungs=[row]))


@pytest.mark.parametrize(
    ("on", "taken", "ran", "expected"),
    [
        (True, True, True, Fate.LIVE),
        (True, False, True, Fate.LIVE),
        (True, False, False, Fate.LEFT_OFF),
        (False, False, False, Fate.OFF),
    ],
)
def test_what_fits_the_variant_is_no_error(
    synthetic: Synthetic, on: bool, taken: bool, ran: bool, expected: Fate
) -> None:
    assert fate(synthetic, on, taken, ran) == (expected, 1.0 if ran else 0.0, [])


def test_a_rung_that_took_work_and_left_no_kernel_is_dead(synthetic: Synthetic) -> None:
    found, _, against = fate(synthetic, on=True, taken=True, ran=False)
    assert found is Fate.DEAD
    assert against == [f"rung norm_linear took work and its kernel {KERNEL} never ran"]


def test_without_kernels_a_rung_that_took_work_is_its_twin(synthetic: Synthetic) -> None:
    """On a CPU nothing can prove it: that is no contradiction, and no rung that runs either."""
    export = synthetic()
    export.range("rung/norm_linear", 20, 20)
    operations = [replace(row, kind="cpu_op") for row in FUSED.kernels]
    ledger = replace(FUSED, kernels=operations)
    rungs = [Rung("norm_linear", KERNEL, on=True), Rung("lm_head", "_tile_argmax_kernel", on=True)]
    rows = check_rungs(export.read(), ledger, rungs)
    assert [row.fate for row in rows] == [Fate.TWIN, Fate.LEFT_OFF]
    assert contradictions(replace(ledger, rungs=rows)) == []


@pytest.mark.parametrize(("taken", "ran"), [(False, True), (True, False)])
def test_a_rung_that_runs_though_it_is_off_is_stray(synthetic: Synthetic, taken: bool, ran: bool) -> None:
    """Such an ablation would compare the variant with itself."""
    found, _, against = fate(synthetic, on=False, taken=taken, ran=ran)
    assert found is Fate.STRAY
    assert against == [f"rung norm_linear is switched off and ran all the same ({KERNEL})"]


def test_a_fusion_that_ran_is_present() -> None:
    assert_present(FUSED, {"norm_gemm": 2, "norm_*": None})


@pytest.mark.parametrize(
    ("kernels", "complaint"),
    [({"qk_norm_rope": None}, "qk_norm_rope never ran"), ({"norm_gemm": 28}, "norm_gemm ran 2 times per step, not 28")],
)
def test_a_fusion_that_is_absent_is_an_error_that_names_it(kernels: dict[str, int | None], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        assert_present(FUSED, kernels)
    assert "(what ran: norm_gemm, tune)" in str(caught.value)


def test_copies_are_no_kernels_that_ran() -> None:
    copies = replace(FUSED, kernels=[replace(row, kind="memcpy", name="[memcpy HtoD]") for row in FUSED.kernels])
    with pytest.raises(UserError, match=r"norm_gemm never ran; tune never ran \(what ran: no kernel\)$"):
        assert_present(copies, {"norm_gemm": None, "tune": None})


def test_a_removed_kernel_can_be_asserted_too() -> None:
    assert_present(FUSED, {"gemm": 0})
    with pytest.raises(UserError, match="norm_gemm ran 2 times per step, not 0"):
        assert_present(FUSED, {"norm_gemm": 0})
