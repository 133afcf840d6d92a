"""Comparing ledgers, liveness, and the way to a file and back."""

import json
from dataclasses import replace

import pytest

from experiments import plain
from experiments.errors import UserError
from experiments.trace.ledger import Gaps, KernelRow, Ledger, Timeline, assert_present, compare


def row(name: str, op: str | None, count: int, total_us: float, layer: str | None = None) -> KernelRow:
    return KernelRow(name, "kernel", "forward", layer, op, count, total_us, [1, 1, 1], [128, 1, 1], 32, 0, True)


def ledger(*rows: KernelRow, steps: int = 2) -> Ledger:
    return Ledger(
        schema=2, cell=None, profiler="nsys", profiler_version="2023.4", export_schema="3.7.2", coverage=1.0,
        window_ms=1.0, busy_ms=0.5, gap_ms=0.5, overlap_ms=0.0, outside_ms=0.0, devices=1, steps=steps,
        kernels_per_step=1.0, launches_per_step=1.0, traced_step_ms=0.5, untraced_step_ms=None, inflation=None,
        gaps=Gaps(0.0, 0.0, 0, 0.0, 0.0), kernels=list(rows), timeline=Timeline(),
    )  # fmt: skip


GEMMS = (row("gemm", "linear", 4, 60.0, "0"), row("gemm", "linear", 4, 64.0, "1"))
BASELINE = ledger(row("norm", "norm", 4, 20.0), *GEMMS)
FUSED = ledger(row("norm_gemm", "linear", 8, 120.0), row("tune", None, 1, 1.0), steps=4)


def test_compare_counts_per_step_and_puts_the_largest_saving_first() -> None:
    changes = {change.key: change for change in compare(BASELINE, FUSED)}
    assert list(changes) == ["gemm", "norm", "tune", "norm_gemm"]
    assert (changes["gemm"].baseline_count, changes["gemm"].saved_us, changes["gemm"].fate) == (4.0, 62.0, "removed")
    assert (changes["norm_gemm"].other_us, changes["norm_gemm"].fate) == (30.0, "added")
    saved = sum(change.saved_us for change in changes.values())
    assert saved == pytest.approx((20 + 60 + 64) / 2 - (120 + 1) / 4)


def test_compare_by_op() -> None:
    changes = {change.key: (change.saved_us, change.fate) for change in compare(BASELINE, FUSED, "op")}
    assert changes == {"linear": (32.0, "changed"), "norm": (10.0, "removed"), "-": (-0.25, "added")}
    assert {change.fate for change in compare(BASELINE, BASELINE)} == {"kept"}


def test_a_fusion_that_ran_is_present() -> None:
    assert_present(FUSED, {"norm_gemm": 2, "norm_*": None})


@pytest.mark.parametrize(
    ("kernels", "complaint"),
    [({"qk_norm_rope": None}, "qk_norm_rope never ran"), ({"norm_gemm": 28}, "norm_gemm ran 2 times per step, not 28")],
)
def test_a_fusion_that_is_absent_is_an_error_that_names_it(kernels: dict[str, int | None], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        assert_present(FUSED, kernels)
    assert "what ran: norm_gemm, tune" in str(caught.value)


def test_a_removed_kernel_can_be_asserted_too() -> None:
    assert_present(FUSED, {"gemm": 0})
    with pytest.raises(UserError, match="norm_gemm ran 2 times per step, not 0"):
        assert_present(FUSED, {"norm_gemm": 0})


def test_ledgers_survive_json() -> None:
    ledger = replace(BASELINE, untraced_step_ms=0.4, inflation=1.25)
    assert plain.decode(Ledger, json.loads(json.dumps(plain.encode(ledger)))) == ledger
