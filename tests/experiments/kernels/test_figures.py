"""What the gates measure with: wrong outputs, strays and changing bits are counted, right ones are not."""

import itertools

import pytest
import torch

from experiments.kernels.case import Deviation
from experiments.kernels.figures import (
    changed_by_repeating,
    changed_bytes,
    guarded_outputs,
    largest_error,
    randn,
    relative_error,
    strided,
    tolerance,
)


def test_errors_are_relative_and_largest() -> None:
    oracle = torch.tensor([3.0, 4.0])
    assert relative_error(oracle + torch.tensor([0.0, 0.5]), oracle) == pytest.approx(0.1)
    assert largest_error(oracle + torch.tensor([0.25, -0.5]), oracle) == 0.5
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(1), torch.zeros(1)) == 1


def test_one_rounding_is_within_tolerance_and_two_in_bf16_are_not() -> None:
    exact = randn(400, 400, dtype=torch.float32, seed=0)
    once = exact.bfloat16()
    assert relative_error(once, exact) < tolerance(torch.bfloat16)
    again = (once.double() * (1 + 2**-8)).bfloat16()
    assert relative_error(again, exact) > tolerance(torch.bfloat16)


@pytest.mark.parametrize(("index", "count"), [(slice(0, 4), 0), (slice(-2, 4), 2), (slice(3, 6), 2)])
def test_writes_outside_of_an_output_are_counted(index: slice, count: int) -> None:
    with guarded_outputs() as guarded:
        out = torch.empty(2, 2)
        [(whole, low, _)] = guarded.outputs
        whole[low + index.start : low + index.stop] = 1.0
    assert guarded.written_outside() == count
    assert out.isnan().sum() == 4 - len(range(max(0, index.start), min(4, index.stop)))


def test_outputs_are_guarded_within_the_block_only() -> None:
    like = torch.zeros(3, dtype=torch.int32)
    with guarded_outputs() as guarded:
        assert torch.empty_like(like).tolist() == [-7, -7, -7]
    assert len(guarded.outputs) == 1
    torch.empty(3)
    assert len(guarded.outputs) == 1


def test_a_launch_that_changes_is_found() -> None:
    steady, drifting = torch.ones(4), itertools.count()
    assert changed_by_repeating(lambda: steady, repeats=5) == 0
    assert changed_by_repeating(lambda: torch.tensor([float(next(drifting) == 3)]), repeats=5) > 0
    nan = torch.tensor([float("nan")])
    assert changed_bytes(nan, nan) == 0
    assert changed_bytes(torch.tensor([0.0]), torch.tensor([-0.0])) == 1


def test_rows_apart_have_nan_between_them() -> None:
    x = torch.arange(6.0).view(2, 3)
    apart = strided(x, padding=2)
    assert torch.equal(apart, x)
    assert apart.stride() == (5, 1)
    assert apart.as_strided((2, 2), (5, 1), 3).isnan().all()


def test_nan_is_beyond_every_bound() -> None:
    assert Deviation("", 0.0, 0.0).ok
    assert not Deviation("", float("nan"), 1.0).ok
    by_excess = [Deviation("", error, bound).excess for error, bound in ((0, 0), (1, 2), (1, 0), (float("nan"), 2))]
    assert by_excess == [0, 0.5, float("inf"), float("inf")]
