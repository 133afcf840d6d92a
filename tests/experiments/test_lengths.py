"""Ragged lengths add up exactly, have the shape asked for, and are the same for everybody."""

import math
from statistics import fmean, pstdev

import pytest

from experiments.lengths import lognormal_lengths


@pytest.mark.parametrize(
    ("count", "mean", "sigma"), [(1, 7, 1.0), (4, 128, 0.8), (64, 1024, 1.5), (9, 1, 2.0), (5, 3, 300)]
)
def test_the_sum_is_exact_and_nothing_is_empty(count: int, mean: int, sigma: float) -> None:
    """Whatever the spread: the floor and the memory of a ragged batch are those of its total."""
    lengths = lognormal_lengths(count, mean, sigma, "s")
    assert sum(lengths) == count * mean
    assert len(lengths) == count
    assert min(lengths) >= 1


def test_logarithms_have_the_sigma_asked_for() -> None:
    """Of 400 strata, to the 2 % by which a stratified draw can miss; and the median of a log-normal around its mean."""
    lengths = sorted(lognormal_lengths(400, 100_000, 0.8, "s"))
    logs = [math.log(length) for length in lengths]
    assert pstdev(logs) == pytest.approx(0.8, rel=0.02)
    assert fmean(logs) == pytest.approx(math.log(100_000) - 0.8**2 / 2, abs=0.02)


def test_no_sigma_is_no_spread() -> None:
    assert lognormal_lengths(6, 50, 0.0, "s") == [50] * 6


def test_the_seed_decides() -> None:
    first = lognormal_lengths(16, 200, 1.0, "a")
    assert first == lognormal_lengths(16, 200, 1.0, "a")
    assert first != lognormal_lengths(16, 200, 1.0, "b")
    assert first != sorted(first), "rows are in no order"
