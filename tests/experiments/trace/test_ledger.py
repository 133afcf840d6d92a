"""Comparing ledgers, and the way to a file and back."""

import json
from dataclasses import replace

import pytest

from experiments import plain
from experiments.trace.ledger import Gaps, KernelRow, Ledger, Timeline, compare


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


def test_ledgers_survive_json() -> None:
    ledger = replace(BASELINE, untraced_step_ms=0.4, inflation=1.25)
    assert plain.decode(Ledger, json.loads(json.dumps(plain.encode(ledger)))) == ledger
