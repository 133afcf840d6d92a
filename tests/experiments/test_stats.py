"""Statistics: exact small cases, and simulated coverage and error rates (seeded)."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from experiments.stats import (
    Claim,
    Estimate,
    Looks,
    SampleError,
    cell_value,
    claim,
    claims,
    estimate,
    geometric_mean,
    holm,
    paired_ratios,
    percentile,
    spread,
    unpaired_ratio,
)

Noise = Callable[[np.random.Generator, int], np.ndarray]
NOISES: dict[str, Noise] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "one hiccup in twenty": lambda rng, n: rng.normal(size=n) * np.where(rng.random(n) < 0.05, 8.0, 1.0),
}


def test_cell_value_is_the_median() -> None:
    assert cell_value([9.0, 1.0, 2.0]) == 2.0
    assert cell_value([1.0, 2.0]) == 1.5


@pytest.mark.parametrize(("samples", "says"), [([], "no samples"), ([1.0, math.nan, math.inf, 0.0], "3 of 4")])
def test_cell_value_refuses_what_is_no_measurement(samples: list[float], says: str) -> None:
    with pytest.raises(SampleError, match=says):
        cell_value(samples)


def test_estimate_of_a_known_case() -> None:
    got = estimate([math.exp(x) for x in (0.1, 0.2, 0.3)])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert got.value == pytest.approx(math.exp(0.2))
    assert got.low == pytest.approx(math.exp(0.2 - half), rel=1e-6)
    assert got.high == pytest.approx(math.exp(0.2 + half), rel=1e-6)
    assert got.p_value == pytest.approx(0.0741799, abs=1e-6)
    assert got.n == 3


@pytest.mark.parametrize("values", [[1.3], [1.3, 1.4]])
def test_fewer_than_three_rounds_have_no_interval(values: list[float]) -> None:
    got = estimate(values)
    assert (got.low, got.high) == (None, None)
    assert claim(got, 0.0) is Claim.UNRESOLVED


def test_data_without_spread() -> None:
    flat = estimate([2.0] * 4)
    assert (flat.low, flat.high, flat.p_value) == (2.0, 2.0, 0.0)
    assert estimate([1.0] * 4).p_value == 1.0


def test_the_interval_holds_the_median_of_skewed_data() -> None:
    got = estimate([1.0] * 20 + [5.0] * 19)
    assert got.low is not None
    assert got.high is not None
    assert got.low <= got.value <= got.high


def test_pairing_uses_only_rounds_that_both_have() -> None:
    assert paired_ratios({0: 4.0, 1: 6.0, 2: 9.0}, {1: 3.0, 2: 3.0, 3: 1.0}, lower_is_better=True) == {1: 2.0, 2: 3.0}
    assert paired_ratios({0: 4.0}, {0: 6.0}, lower_is_better=False) == {0: 1.5}


def test_pairing_cancels_drift() -> None:
    drift = {r: 1.0 + 0.3 * r for r in range(5)}
    ratios = paired_ratios(drift, {r: v / 1.25 for r, v in drift.items()}, lower_is_better=True)
    got = estimate(list(ratios.values()))
    assert got.low == pytest.approx(1.25)
    assert got.high == pytest.approx(1.25)


def test_swapping_the_sides_inverts_the_estimate() -> None:
    values = [1.1, 1.3, 1.2, 1.25, 1.05]
    there, back = estimate(values), estimate([1 / v for v in values])
    assert there.low is not None
    assert back.high is not None
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)
    assert there.p_value == pytest.approx(back.p_value)


def test_geometric_mean_treats_a_ratio_and_its_inverse_alike() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)


def test_an_unpaired_ratio_is_welchs_on_the_logarithms() -> None:
    a, b = [1.02, 1.05, 0.98, 1.01], [0.5, 0.56, 0.47]
    got = unpaired_ratio(a, b)
    welch = scipy.stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert got.value == pytest.approx(1.015 / 0.5)
    assert got.low == pytest.approx(math.exp(interval.low))
    assert got.high == pytest.approx(math.exp(interval.high))
    assert got.p_value == pytest.approx(welch.pvalue)
    assert got.n == 3
    back = unpaired_ratio(b, a)
    assert (back.value, back.high) == pytest.approx((1 / got.value, 1 / got.low))


def test_an_unpaired_ratio_of_too_few_rounds_or_without_spread() -> None:
    assert unpaired_ratio([1.0, 2.0], [1.0] * 9).low is None
    flat = unpaired_ratio([2.0] * 3, [1.0] * 3)
    assert (flat.low, flat.high, flat.p_value) == (2.0, 2.0, 0.0)


@pytest.mark.parametrize("noise", sorted(NOISES))
@pytest.mark.parametrize("sizes", [(3, 3), (5, 5), (10, 4)])
def test_unpaired_intervals_cover_the_truth(noise: str, sizes: tuple[int, int]) -> None:
    """2,000 pairs of runs, one three times as noisy: 95 % within three binomial standard errors of 0.5 points."""
    rng = np.random.default_rng(17)
    hits, trials = 0, 2000
    for _ in range(trials):
        above, below = (np.exp(s * NOISES[noise](rng, n)) for s, n in zip((0.01, 0.03), sizes, strict=True))
        got = unpaired_ratio([float(x) for x in 1.2 * above], [float(x) for x in below])
        hits += got.low is not None and got.high is not None and got.low <= 1.2 <= got.high
    assert hits / trials >= 0.935


def test_each_of_a_family_pays_for_its_look_and_for_the_others() -> None:
    """p = 0.006, four times that at one of two early looks: 0.048 among two, 0.072 among three."""
    found, looks = Estimate(1.1, 1.05, 1.15, 5, 0.006), Looks(5, 7)
    assert looks.price(5) == 4
    assert claims([found] * 8) == [Claim.FASTER] * 8
    assert claims([found] * 9) == [Claim.UNRESOLVED] * 9
    assert claims([found, None, found], looks) == [Claim.FASTER, None, Claim.FASTER]
    assert claims([found] * 3, looks) == [Claim.UNRESOLVED] * 3
    assert claims([]) == claims([], looks) == []


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (1.05, 1.10, 0.001, Claim.FASTER),
        (0.80, 0.90, 0.001, Claim.SLOWER),
        (1.05, 1.10, 0.2, Claim.UNRESOLVED),
        (0.98, 1.005, 0.6, Claim.UNRESOLVED),
        (0.999, 1.30, 0.001, Claim.UNRESOLVED),
        (0.995, 1.005, 0.6, Claim.SAME),
        (0.99, 1.01, 0.6, Claim.SAME),
        (1.002, 1.006, 0.0, Claim.SAME),
        (1.005, 1.02, 0.001, Claim.FASTER),
    ],
)
def test_claims(low: float, high: float, p: float, expected: Claim) -> None:
    assert claim(Estimate((low + high) / 2, low, high, 5), p) is expected


@pytest.mark.parametrize("noise", sorted(NOISES))
@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(noise: str, rounds: int) -> None:
    """2,000 simulated cells each; the binomial standard error at 95 % is 0.5 points, so 93.5 % is three of them low."""
    rng = np.random.default_rng(7)
    truth, hits, trials = 1.2, 0, 2000
    for _ in range(trials):
        got = estimate([float(x) for x in truth * np.exp(0.01 * NOISES[noise](rng, rounds))])
        hits += got.low is not None and got.high is not None and got.low <= truth <= got.high
    assert hits / trials >= 0.935


def test_a_percentile_bootstrap_of_five_rounds_would_cover_too_little() -> None:
    """The reason for Student's interval, kept as a test."""
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(1500, 5))
    resampled = np.take_along_axis(samples[:, None, :], rng.integers(0, 5, size=(1500, 400, 5)), axis=2)
    low, high = np.quantile(resampled.mean(axis=2), [0.025, 0.975], axis=1)
    assert ((low <= 0) & (high >= 0)).mean() < 0.88


@pytest.mark.parametrize("noise", sorted(NOISES))
def test_a_whole_run_of_equal_variants_rarely_makes_one_false_claim(noise: str) -> None:
    """300 simulated A/A runs of 40 cells, 5 rounds: at most 5 % may hold a `faster` or `slower` (8 %: 2.4 sigma)."""
    rng = np.random.default_rng(11)
    false_runs = 0
    for _ in range(300):
        cells = [estimate([float(x) for x in np.exp(0.02 * NOISES[noise](rng, 5))]) for _ in range(40)]
        false_runs += any(c in (Claim.FASTER, Claim.SLOWER) for c in claims(cells))
    assert false_runs / 300 <= 0.08


def test_a_real_gain_is_found_and_a_tight_tie_is_called_same() -> None:
    rng = np.random.default_rng(5)
    gains = [estimate([float(x) for x in 1.2 * np.exp(0.005 * rng.normal(size=5))]) for _ in range(40)]
    assert claims(gains) == [Claim.FASTER] * len(gains)
    tie = estimate([float(x) for x in np.exp(0.001 * rng.normal(size=5))])
    assert claim(tie, 1.0) is Claim.SAME


@pytest.mark.parametrize(("quantile", "needed"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_percentiles_only_where_n_supports_them(quantile: float, needed: int) -> None:
    samples = [float(i) for i in range(needed)]
    assert percentile(samples[:-1], quantile) is None
    assert percentile(samples, quantile) == pytest.approx(quantile * (needed - 1))


def test_percentiles_of_nothing_and_of_unsorted_samples() -> None:
    assert percentile([], 0.5) is None
    assert percentile([32.0, 1.0, 2.0, 16.0, 4.0, 8.0], 0.5) == 6.0
    assert percentile([5.0, 1.0, 3.0, 2.0, 4.0], 0.5) == 3.0


def test_spread_is_about_the_coefficient_of_variation() -> None:
    assert spread([1.0]) is None
    assert spread([0.99, 1.0, 1.01]) == pytest.approx(0.01, rel=1e-3)
